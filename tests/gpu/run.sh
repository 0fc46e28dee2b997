#!/bin/bash
# In a folder that pack.sh made, on a machine with a GPU: all tests that need one, then a short
# benchmark (the cells of tests/perf/gpu.md). Prints a table. run.sh [--tests | --bench]
# HEADRACE_MODELS, HEADRACE_SHARED: as for the other tests, for the goldens of real models.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export LD_LIBRARY_PATH=$PWD/lib:${LD_LIBRARY_PATH:-/usr/local/cuda/lib64}
export HEADRACE=$PWD/bin/headrace HEADRACE_CUDA_MODULE=$PWD/bin/libheadrace_cuda.so
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
failed=0
table=()
parts=()

# check NAME COMMAND...
check() {
  local name=$1 begin=$SECONDS result=ok code=0
  shift
  "$@" >"log.$name" 2>&1 || code=$?
  if [[ $code != 0 && $code != 77 ]]; then result=FAILED; fi  # 77: all were skipped
  if grep -q "SKIPPED\|^skipped" "log.$name"; then result="$result, some skipped"; fi
  if [[ $result == FAILED* ]]; then
    tail -n 40 "log.$name"
    failed=1
  fi
  table+=("$(printf '%-28s %-20s %4d s' "$name" "$result" $((SECONDS - begin)))")
}

# await NAME PROCESS: its exit code, with what it printed.
await() {
  local code=0
  wait "$2" || code=$?
  cat "log.part-$1"
  return $code
}

# bench NAME OPTIONS...: what the plan expects, then a line for each batch size.
bench() {
  local name=$1
  shift
  "$HEADRACE" bench --device cuda "$@" >"out.$name" 2>"log.$name" || tail -n 5 "log.$name"
  sed -n "s/.*stage 1 expects, for /$name: /p" "log.$name"
  tail -n +4 "out.$name" | sed "s/^/$name /;/rank/d"
}

if [[ ${1:-} != --bench ]]; then
  check products bin/products_test --gtest_brief=1
  check ops bin/device_ops_test --gtest_brief=1
  check weights bin/device_weights_test --gtest_brief=1
  # At once, each with a part of the GPU.
  for part in Float16 "Float32 BadInput" RealModels "SharedPrefixes Link" HostAttention; do
    HEADRACE_GPU_MEMORY=10GiB python3 tests/gpu/gpu_test.py $part >"log.part-${part%% *}" 2>&1 &
    parts+=("${part%% *} $!")
  done
  for part in "${parts[@]}"; do check "runs-${part% *}" await ${part}; done
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      check "$tool" compute-sanitizer --tool $tool --error-exitcode 9 bin/device_ops_test \
        --gtest_brief=1 --gtest_filter='DeviceHalf.Small*:DeviceHalf.PanelsBecomeRows:DeviceHalf.BestTokens:DeviceOps.Rope'
    done
  fi
fi
if [[ ${1:-} != --tests ]]; then
  echo "batch, prefill / decode / generated tokens per second, each min median max"
  bin/device_bench bin/libheadrace_cuda.so attention
  bench qwen2.5-0.5b --model synthetic:qwen2.5-0.5b:bf16 --batch 1,4,16,64 --repeat 5
  opt=(--model synthetic:opt-6.7b --prompt-tokens 512 --generate-tokens 32 --prefill-chunk 512)
  bench opt-6.7b "${opt[@]}" --batch 32,192 --repeat 5
  bench opt-6.7b-q4-from-host "${opt[@]}" --batch 256 --weights q4 --device-weights 250MiB --repeat 3
  host=(--batch 128 --device-weights 0 --device-memory 6GiB)
  bench opt-6.7b-all-on-host "${opt[@]}" "${host[@]}"
  bench opt-6.7b-with-the-cpu "${opt[@]}" "${host[@]}" --host-attention on
  bench opt-6.7b-from-host "${opt[@]}" --batch 256 --device-weights 450MiB
fi
printf '%s\n' "${table[@]}"
exit $failed
