#!/bin/bash
# In a folder that pack.sh made, on a machine with a GPU: all tests that need one, then a short
# benchmark (the cells of tests/perf/gpu.md). Prints each result as it comes, and a table.
# run.sh [--tests | --bench]
# HEADRACE_MODELS, HEADRACE_SHARED: as for the other tests, for the goldens of real models.
# OUT: a folder for the logs. Exit code 77 where there is no GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export LD_LIBRARY_PATH=$PWD/lib:${LD_LIBRARY_PATH:-/usr/local/cuda/lib64}
export HEADRACE=$PWD/bin/headrace HEADRACE_CUDA_MODULE=$PWD/bin/libheadrace_cuda.so
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
failed=0
table=()
parts=()
code=0
timeout -k 5 60 "$HEADRACE" bench --device cuda --model synthetic:tiny-llama --batch 1 --repeat 1 \
  --generate-tokens 2 >log.start 2>&1 || code=$?
if [[ $code != 0 ]]; then
  tail -n 5 log.start
  if [[ $code == 69 ]] && grep -q "there is no GPU\|there is no NVIDIA driver" log.start; then
    echo "run.sh: there is no GPU to run on"
    exit 77
  fi
  echo "run.sh: a first run ended with $code"
  exit 1
fi

# row NAME RESULT SECONDS
row() {
  table+=("$(printf '%-28s %-20s %4d s' "$@")")
  echo "${table[-1]}"
  if [[ -n ${OUT:-} ]]; then cp log.* "$OUT/"; fi
}

# check NAME SECONDS COMMAND...: no longer than that.
check() {
  local name=$1 limit=$2 begin=$SECONDS result=ok code=0
  shift 2
  timeout -k 5 "$limit" "$@" >"log.$name" 2>&1 || code=$?
  judge "$name" "$code" "$begin"
}

# judge NAME CODE BEGIN: what log.NAME says of a command that has ended.
judge() {
  local name=$1 code=$2 result=ok
  case $code in
    0 | 77) ;;  # 77: all were skipped
    124 | 137) result="FAILED: too long" ;;
    *) result=FAILED ;;
  esac
  if grep -q "SKIPPED\|^skipped" "log.$name"; then result="$result, some skipped"; fi
  if [[ $result == FAILED* ]]; then
    tail -n 40 "log.$name"
    failed=1
  fi
  row "$name" "$result" $((SECONDS - $3))
}

# bench NAME OPTIONS...: what the plan expects, then a line for each batch size.
bench() {
  local name=$1 code=0 begin=$SECONDS result=ok
  shift
  timeout -k 5 150 "$HEADRACE" bench --device cuda "$@" >"log.out-$name" 2>"log.$name" || code=$?
  sed -n "s/.*stage 1 expects, for /$name: /p" "log.$name"
  tail -n +4 "log.out-$name" | sed "s/^/$name /;/rank/d"
  if [[ $code != 0 ]]; then
    tail -n 5 "log.$name"
    failed=1 result="FAILED: $code"
  fi
  row "$name" "$result" $((SECONDS - begin))
}

if [[ ${1:-} != --bench ]]; then
  check products 150 bin/products_test
  grep "tried\|bits are" log.products
  check ops 120 bin/device_ops_test --gtest_brief=1 --gtest_filter='*/gpu'
  check weights 60 bin/device_weights_test --gtest_brief=1
  # At once, each with a part of the GPU.
  begin=$SECONDS
  for part in Float16 "Float32 BadInput" RealModels "SharedPrefixes Link" "HostAttention LongSteps"; do
    HEADRACE_GPU_MEMORY=10GiB timeout -k 5 240 python3 tests/gpu/gpu_test.py $part \
      >"log.runs-${part%% *}" 2>&1 &
    parts+=("${part%% *} $!")
  done
  for part in "${parts[@]}"; do
    code=0
    wait "${part#* }" || code=$?
    judge "runs-${part% *}" "$code" "$begin"
  done
  small=$(printf '*/DeviceHalf.%s/gpu:' 'Small*' PanelsBecomeRows RowsOfTables BestTokens Activations)
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      check "$tool" 120 compute-sanitizer --tool $tool --error-exitcode 9 bin/device_ops_test \
        --gtest_brief=1 --gtest_filter="$small*/DeviceOps.Rope/gpu:*/DeviceOps.Small*/gpu"
      check "$tool-packed" 60 compute-sanitizer --tool $tool --error-exitcode 9 bin/products_test \
        --gtest_brief=1 --gtest_filter='PackedKernel.*'
    else
      row "$tool" "not run: not there" 0
    fi
  done
fi
if [[ ${1:-} != --tests ]]; then
  echo "batch, prefill / decode / generated tokens per second, each min median max"
  timeout -k 5 60 bin/device_bench bin/libheadrace_cuda.so attention
  timeout -k 5 60 bin/device_bench bin/libheadrace_cuda.so packed
  bench qwen2.5-0.5b --model synthetic:qwen2.5-0.5b:bf16 --batch 1,4,16,64 --repeat 5
  opt=(--model synthetic:opt-6.7b --prompt-tokens 512 --generate-tokens 32 --prefill-chunk 512)
  bench opt-6.7b "${opt[@]}" --batch 32,192 --repeat 5
  # Few rows, which may read the weights as they are packed.
  bench qwen2.5-0.5b-q4 --model synthetic:qwen2.5-0.5b --weights q4 --batch 1,16,64 --repeat 3
  bench opt-6.7b-q4 "${opt[@]}" --weights q4 --batch 32 --repeat 3
  bench opt-6.7b-q4-from-host "${opt[@]}" --batch 256 --weights q4 --device-weights 250MiB --repeat 3
  host=(--batch 128 --device-weights 0 --device-memory 6GiB)
  bench opt-6.7b-all-on-host "${opt[@]}" "${host[@]}"
  bench opt-6.7b-with-the-cpu "${opt[@]}" "${host[@]}" --host-attention on
  bench opt-1.3b-from-disk --model synthetic:opt-1.3b --prompt-tokens 512 --generate-tokens 8 \
    --prefill-chunk 512 --batch 128 --device-weights 220MiB --host-memory 1000MiB --disk "$PWD/disk"
  bench opt-6.7b-from-host "${opt[@]}" --batch 256 --device-weights 450MiB
fi
echo "all of it, in $SECONDS s:"
printf '%s\n' "${table[@]}"
exit $failed
