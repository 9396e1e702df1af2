# Shared arrays of a kernel, one declaration a line, as tests/lib/cuda_host/include/cuda_runtime.h has them. What this
# doesn't match stays __shared__, which is no word of C++.
s/^([[:space:]]*)__shared__[[:space:]]+(alignas\([^)]*\)[[:space:]]+|__align__\([^)]*\)[[:space:]]+)?([^;,=]*[^][:space:]*;,=[])[[:space:]]+([A-Za-z_][A-Za-z0-9_]*)((\[[^;,=]*\])*);/\1SFC_CUDA_SHARED(\4, \3 \5);/
