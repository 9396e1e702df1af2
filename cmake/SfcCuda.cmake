# The CUDA backend (option SFC_CUDA): needs NVIDIA's toolkit 13 (nvcc, cuBLASLt) and cuDNN 9, no GPU.
set(SFC_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90" CACHE STRING
    "GPUs that the CUDA backend is compiled for, as of CMAKE_CUDA_ARCHITECTURES: newer ones than the last compile its PTX; one alone builds faster")
set(CMAKE_CUDA_ARCHITECTURES ${SFC_CUDA_ARCHITECTURES})
find_program(SFC_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin NO_CACHE)
if(NOT SFC_NVCC)
  message(FATAL_ERROR "SFC_CUDA needs nvcc of the CUDA toolkit 13: put its bin/ on PATH, or set CUDACXX")
endif()
set(CMAKE_CUDA_COMPILER ${SFC_NVCC} CACHE FILEPATH "nvcc")
# The runtime is linked in: the plugin then needs the driver and libcublasLt alone, and meets no other
# version of the runtime in the process (a worker's cuDNN has its own).
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit 13 REQUIRED)
