#!/usr/bin/env bash
# scripts/test-gpu.sh: the GPU suite, on a machine with an NVIDIA GPU. It builds and installs nothing: build/cuda/greta and
# build/cuda/tests/gpu_tests are made elsewhere (cmake --preset cuda && cmake --build --preset cuda --target greta gpu_tests) and
# brought along. A line a check; the log of one that fails is shown. Status: 0 all passed, 1 one did not, 2 it cannot start.
set -uo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit 2

greta=$PWD/build/cuda/greta
device=cuda:0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 not_run=0

[ -x "$greta" ] || { echo "scripts/test-gpu.sh: there is no build/cuda/greta" >&2; exit 2; }
find_cublas  # for the matrix rate of bench

# result NAME WORD SECONDS [TEXT]
result() { printf '%-48s %-8s %4s s  %s\n' "$1" "$2" "$3" "${4:-}"; }
# check SECONDS NAME COMMAND...: passes if the command ends with status 0 in so many seconds.
check() {
  local limit=$1 name=$2 start=$SECONDS log=$work/log status=0
  shift 2
  timeout "$limit" "$@" >"$log" 2>&1 || status=$?
  if [ $status -eq 0 ]; then
    passed=$((passed + 1))
    result "$name" pass $((SECONDS - start)) "$(grep -av '^report ' "$log" | tail -n 1 | cut -c 1-100)"
  else
    failed=$((failed + 1))
    result "$name" FAIL $((SECONDS - start)) "status $status"
    tail -n 40 "$log" | sed 's/^/    /'
  fi
}
skip() { not_run=$((not_run + 1)); result "$1" "not run" 0 "$2"; }

# model NAME OPTION...: a random model; prints its path.
model() {
  local path=$work/$1.gguf
  shift
  "$greta" synth --quiet -o "$path" --vocab 300 "$@" >&2 && echo "$path"
}
# bisected NAME OPTION...: no operator of such a model is wrong on the GPU.
bisected() {
  local name=$1 path
  path=$(model "$@") || { failed=$((failed + 1)); result "bisect $name" FAIL 0 "synth"; return; }
  check 120 "bisect $name" "$greta" bisect "$path" --a reference --b $device --quiet -o "$work/report-$name"
  rm -rf "$path" "$work/report-$name"
}

# sanitized TOOL MODEL: a run under one tool of compute-sanitizer.
sanitized() {
  local tool=$1 path=$2
  check 150 "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$greta" run "$path" --device $device --prompt 'A few words.' --max-tokens 3 --greedy --quiet
}

# sees_a_write_past_the_end: that memcheck can fail: a test that writes one element past its memory must end with its status, 9.
sees_a_write_past_the_end() {
  check 150 "compute-sanitizer tells of a planted write" bash -c "compute-sanitizer --tool memcheck --error-exitcode 9 \
    $gpu_tests --gtest_also_run_disabled_tests --gtest_filter=GpuSanitizer.DISABLED_WritesPastItsMemory >$work/planted 2>&1
    status=\$?
    cat $work/planted
    [ \$status -eq 9 ] && grep -q 'Invalid __global__ write of size 4' $work/planted"
}

"$greta" --version
"$greta" devices
"$greta" devices | grep -q "^$device .*available" || { echo "scripts/test-gpu.sh: no usable $device" >&2; exit 2; }
echo

gpu_tests=build/cuda/tests/gpu_tests
# The emulation's cases are CI's (scripts/test.sh).
if [ -x $gpu_tests ]; then
  check 240 "gpu_tests" $gpu_tests --gtest_brief=1 --gtest_filter='-*sim32*:*sim64*:Sim*'
  check 60 "load rate" bash -o pipefail -c "$gpu_tests --gtest_filter=GpuLoad.* | grep '^load '"
else
  skip "gpu_tests" "there is no $gpu_tests"
fi

for type in f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k; do
  bisected "$type" --type $type
done
for arch in qwen2 qwen3 qwen3moe gemma2 gemma3 phi3 olmo2; do
  bisected "$arch" --arch $arch
done
bisected head_dim_80 --dim 320 --head-dim 80
bisected one_kv_head --dim 256 --heads 8 --kv-heads 1
bisected odd_ffn --ffn-dim 1000 --type f16

if command -v compute-sanitizer >/dev/null; then
  if timeout 60 compute-sanitizer --error-exitcode 9 "$greta" devices >"$work/log" 2>&1; then
    tiny=$(model tiny --dim 256 --layers 1 --heads 2 --type q4_k --ffn-dim 256)
    for tool in memcheck racecheck initcheck; do sanitized $tool "$tiny"; done
    if [ -x $gpu_tests ]; then sees_a_write_past_the_end; fi
  else
    skip "compute-sanitizer" "it refuses: $(grep -m 1 -i 'error\|not supported' "$work/log" | cut -c 1-160)"
  fi
else
  skip "compute-sanitizer" "not on this machine"
fi

echo
echo "scripts/test-gpu.sh: $SECONDS s, $passed passed, $failed failed, $not_run not run"
[ $failed -eq 0 ]
