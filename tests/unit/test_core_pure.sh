#!/bin/sh
# The pure core depends on nothing but sfc_base, sfc_rng, libc and libm: every symbol that it leaves
# undefined must be defined there. Which libc functions it may call is a list, so that a clock, a
# thread, a file or a socket can't slip in.
#   test_core_pure.sh libsfc_core.a libsfc_base.a libsfc_rng.a
set -eu
core=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -P "$core" | awk 'NF >= 2 && $2 == "U" { print $1 }' | sort -u >"$work/undefined"
nm -P "$core" "$@" | awk 'NF >= 2 && $2 ~ /^[TDRBVW]$/ { print $1 }' | sort -u >"$work/defined"
printf '%s\n' calloc free memcpy memset memmove memcmp strcmp strlen strnlen snprintf vsnprintf \
    __snprintf_chk __vsnprintf_chk __memcpy_chk __memset_chk __assert_fail __stack_chk_fail \
    qsort pow sqrt fmin fmax fabs floor _GLOBAL_OFFSET_TABLE_ |
    sort -u >"$work/allowed"
# What sanitizers and coverage add.
grep -v -E '^__(asan|ubsan|tsan|sanitizer|gcov|llvm)_|^__tsan|^__asan' "$work/undefined" >"$work/wanted"
sort -u "$work/defined" "$work/allowed" >"$work/known"
bad=$(comm -23 "$work/wanted" "$work/known")
if [ -n "$bad" ]; then
    echo "the core must be pure, but it needs:" $bad
    exit 1
fi
[ -s "$work/wanted" ] || { echo "nm found nothing in $core"; exit 1; }
echo "pure: $(wc -l <"$work/wanted") symbols from outside, all allowed"
