#!/usr/bin/env bash
# Measures one GPU: its ceilings (a large copy, products in our shapes), our head's step at 1 and 10 million
# identities (rate 0.1, batch 1024, dim 512), PyTorch's Partial FC on the same card, and our step at the largest
# number of identities that PyTorch can hold. Prints one table with ratios.
#   tests/bench/gpu.sh [--kit DIR] [--out DIR] [--seconds N] [--classes N,N] [--no-peer]
#   --kit      what target gpu-kit made (build/cuda/gpu-kit); needs CUDA's libraries and python3 with torch, no build
#   --out      where gpu.jsonl and table.txt go ($OUT, or build/cuda/gpu-bench)
#   --seconds  of everything (150); what was measured so far is printed also when it ends early or is killed
#   --classes  of our step in bf16 (10000000,1000000); f32 is measured at the last of them
set -uo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." 2>/dev/null && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kit=$top/build/cuda/gpu-kit out=${OUT:-} seconds=${SFC_BENCH_SECONDS:-150} classes=10000000,1000000 peer=yes
while [ $# -gt 0 ]; do
  case $1 in
  --kit) kit=${2:?} && shift ;;
  --out) out=${2:?} && shift ;;
  --seconds) seconds=${2:?} && shift ;;
  --classes) classes=${2:?} && shift ;;
  --no-peer) peer=no ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    [ "$1" = --help ] && exit 0 || exit 2
    ;;
  esac
  shift
done
if [ ! -x "$kit/bin/bench_head_plain" ]; then
  echo "gpu.sh: no kit in $kit; make it with: cmake --preset cuda && cmake --build --preset cuda --target gpu-kit" >&2
  exit 2
fi
if [ -z "${SFC_LIBRARIES_BEFORE+set}" ]; then # the kit's run finds cuBLASLt and comes back
  exec "$kit/run" bench --out "${out:-$top/build/cuda/gpu-bench}" --seconds "$seconds" --classes "$classes" \
    $([ $peer = no ] && echo --no-peer)
fi
out=${out:-$kit/../gpu-bench}
mkdir -p "$out"
results=$out/gpu.jsonl
: >"$results"
table() {
  python3 "$here/gpu_table.py" "$results" | tee "$out/table.txt"
}
trap 'exit 143' TERM INT
trap table EXIT
end=$((SECONDS + seconds)) failed=0

# keep KIND COMMAND...: its JSON lines go to the results with their kind; at most the time that is left.
keep() {
  local kind=$1 left=$((end - SECONDS)) code=0
  shift
  if [ $left -lt 3 ]; then
    echo "gpu.sh: no time left for: $*" >&2
    failed=1
    return
  fi
  timeout "$left" "$@" 2> >(tee -a "$out/stderr.txt" >&2) | while read -r line; do
    printf '{"kind": "%s", "data": %s}\n' "$kind" "$line" | tee -a "$results"
  done || code=$?
  [ $code = 0 ] || {
    echo "gpu.sh: exit $code: $*" >&2
    failed=1
  }
}
ours() { # classes dtype momentum-mode
  keep ours "$kit/bin/bench_head_plain" --classes "$1" --dtype "$2" --gemm "$2" --momentum-mode "$3" --json
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader 2>/dev/null || true
keep ceilings "$kit/bin/gpu_ceilings"
for n in ${classes//,/ }; do
  ours "$n" bf16 dense
done
ours "$n" f32 dense
ours "$n" bf16 sampled
if [ $peer = yes ]; then
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True # its memory would be in pieces otherwise
  # PyTorch brings its own cuBLAS, which must not meet another cuBLASLt.
  keep peer env LD_LIBRARY_PATH="${SFC_LIBRARIES_BEFORE:-}" python3 -u "$here/peer_torch_gpu.py" --classes "$n" --seconds $((end - SECONDS > 45 ? end - SECONDS - 20 : 25))
  largest=$(grep '"largest": true' "$results" | sed -n 's/.*"classes": \([0-9]*\).*/\1/p' | tail -n 1)
  [ -z "$largest" ] || ours "$largest" bf16 dense
fi
exit $failed
