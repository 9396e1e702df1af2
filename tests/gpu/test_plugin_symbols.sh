#!/usr/bin/env bash
# The CUDA plugin exports its entry alone, and needs libcublasLt and the C library alone: no oneDNN, gRPC,
# or other library of ShardFC's.
set -euo pipefail
plugin=${1:?path of libshardfc-cuda.so}
exported=$(nm -D --defined-only "$plugin" | awk '{print $3}' | sort)
if [ "$exported" != sfc_backend_plugin ]; then
  printf 'exported beside sfc_backend_plugin:\n%s\n' "$exported" >&2
  exit 1
fi
needed=$(readelf -d "$plugin" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
if ! grep -q '^libcublasLt\.so\.' <<<"$needed"; then
  echo "libcublasLt is not linked" >&2
  exit 1
fi
others=$(grep -vE '^(libcublasLt|libc|libm|libdl|libpthread|librt|ld-linux-x86-64)\.so\.' <<<"$needed" || true)
if [ -n "$others" ]; then
  printf 'needed libraries that a machine with CUDA may not have:\n%s\n' "$others" >&2
  exit 1
fi
