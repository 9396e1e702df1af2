#!/usr/bin/env bash
# A CUDA plugin exports its entry alone, and needs libcublasLt, what is named besides and the C library alone: no
# oneDNN, gRPC, or other library of ShardFC's.
#   test_plugin_symbols.sh PLUGIN [ENTRY [LIBRARY]]
set -euo pipefail
plugin=${1:?path of libshardfc-cuda.so}
entry=${2:-sfc_backend_plugin}
besides=${3:-libcublasLt}
exported=$(nm -D --defined-only "$plugin" | awk '{print $3}' | sort)
if [ "$exported" != "$entry" ]; then
  printf 'exported beside %s:\n%s\n' "$entry" "$exported" >&2
  exit 1
fi
needed=$(readelf -d "$plugin" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
if ! grep -q '^libcublasLt\.so\.' <<<"$needed"; then
  echo "libcublasLt is not linked" >&2
  exit 1
fi
others=$(grep -vE "^($besides|libcublasLt|libc|libm|libdl|libpthread|librt|ld-linux-x86-64)\.so\." <<<"$needed" || true)
if [ -n "$others" ]; then
  printf 'needed libraries that a machine with CUDA may not have:\n%s\n' "$others" >&2
  exit 1
fi
