# What the CUDA backend is made of, for the plugin (CMakeLists.txt) and for the emulator of the tests
# (tests/lib/cuda_host), which has products of its own in place of gemm.c. New files go in here.
set(SFC_CUDA_SOURCES backend.c head_new.c head_memory.c head_rearrange.c head_plan.c head_passes.c head_state.c ceilings.c dense.c dense_new.c)
set(SFC_CUDA_KERNELS plan.cu gather.cu features.cu logits.cu targets.cu gradient.cu commit.cu state.cu dense.cu)
