#!/bin/bash
# In a folder that pack.sh made, on a machine with a GPU: all tests that need one, then a short
# benchmark (cells of tests/perf/gpu.md). Prints each result as it comes, and a table of all.
# run.sh [--tests | --bench]
# HEADRACE_MODELS, HEADRACE_SHARED: as for the other tests, for the goldens of real models.
# OUT: a folder for the logs. SECONDS_LEFT: how long it may take, 530 without it; what has no time
# any more is a row that says so. Exit code 77 where there is no GPU, 1 where not all was run and
# passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export LD_LIBRARY_PATH=$PWD/lib:${LD_LIBRARY_PATH:-/usr/local/cuda/lib64}
export HEADRACE=$PWD/bin/headrace HEADRACE_CUDA_MODULE=$PWD/bin/libheadrace_cuda.so
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
end=$((SECONDS + ${SECONDS_LEFT:-530}))
failed=0
table=()
parts=()

# note TEXT: a line of the table, at once.
note() {
  table+=("$1")
  echo "$1"
}

# row NAME RESULT SECONDS
row() {
  note "$(printf '%-28s %-20s %4d s' "$@")"
  if [[ -n ${OUT:-} ]]; then cp log.* "$OUT/"; fi
}

# has_time NAME: whether there is some left, else a row.
has_time() {
  if ((SECONDS + 5 < end)); then return 0; fi
  failed=1
  row "$1" "NOT RUN: no time left" 0
  return 1
}

# limited SECONDS COMMAND...: no longer than that, or than there is time.
limited() {
  local limit=$1
  shift
  timeout -k 10 "$((limit < end - SECONDS ? limit : end - SECONDS))" "$@"
}

# judge NAME CODE BEGIN: what log.NAME says of a command that has ended.
judge() {
  local name=$1 code=$2 result=ok
  case $code in
    0 | 77) ;;  # 77: all were skipped
    124 | 137 | 143) result="FAILED: too long" ;;
    *) result="FAILED: $code" ;;
  esac
  if grep -q "SKIPPED\|^skipped" "log.$name"; then result="$result, some skipped"; fi
  if [[ $result == FAILED* ]]; then
    tail -n 40 "log.$name"
    failed=1
  fi
  row "$name" "$result" $((SECONDS - $3))
}

# check NAME SECONDS COMMAND...
check() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  has_time "$name" || return 0
  limited "$limit" "$@" >"log.$name" 2>&1 || code=$?
  judge "$name" "$code" "$begin"
}

# runs NAME TESTS...: whole runs beside others, each with a part of the GPU.
runs() {
  local name=$1
  shift
  has_time "runs-$name" || return 0
  HEADRACE_GPU_MEMORY=8GiB limited 240 python3 tests/gpu/gpu_test.py "$@" >"log.runs-$name" 2>&1 &
  parts+=("runs-$name $!")
}

await_runs() {
  local begin=$1 part code
  for part in "${parts[@]}"; do
    code=0
    wait "${part#* }" || code=$?
    judge "${part% *}" "$code" "$begin"
  done
  parts=()
}

# bench NAME OPTIONS...: what the plan expects, then a line for each batch size.
bench() {
  local name=$1 code=0 begin=$SECONDS line
  shift
  has_time "$name" || return 0
  limited 150 "$HEADRACE" bench --device cuda "$@" >"log.out-$name" 2>"log.$name" || code=$?
  while IFS= read -r line; do note "  $line"; done < <(
    sed -n "s/.*stage 1 expects, for /$name expects: /p" "log.$name"
    tail -n +4 "log.out-$name" | sed "s/^/$name /;/rank/d"
  )
  judge "$name" "$code" "$begin"
}

# micro OP: a part of device_bench.
micro() {
  check "bench-$1" 60 bin/device_bench bin/libheadrace_cuda.so "$1"
  if [[ -f log.bench-$1 ]]; then
    while IFS= read -r line; do note "  $line"; done <"log.bench-$1"
  fi
}

code=0
timeout -k 5 60 "$HEADRACE" bench --device cuda --model synthetic:tiny-llama --batch 1 --repeat 1 \
  --generate-tokens 2 >log.start 2>&1 || code=$?
if [[ $code == 69 ]] && grep -q "there is no GPU\|there is no NVIDIA driver" log.start; then
  tail -n 5 log.start
  echo "run.sh: there is no GPU to run on"
  exit 77
fi
judge start "$code" 0
check doctor 60 "$HEADRACE" doctor
while IFS= read -r line; do note "  $line"; done < <(grep -E "^ +(gpu|memory|disk) |^warning" log.doctor)

if [[ ${1:-} != --bench ]]; then
  check module 60 bin/device_module_test --gtest_brief=1 --gtest_filter='DeviceModule.Cuda*'
  check products 150 bin/products_test
  while IFS= read -r line; do note "  $line"; done < <(grep "tried\|bits are" log.products)
  check ops 120 bin/device_ops_test --gtest_brief=1 --gtest_filter='*/gpu'
  check weights 60 bin/device_weights_test --gtest_brief=1
  begin=$SECONDS
  runs f16-larger Float16.test_larger_models Float16.test_larger_batches Float16.test_a_larger_model_in_4_bits
  runs f16-tiny Float16.test_tiny_models
  runs f16-more Float16.test_batches Float16.test_formats Float16.test_after_a_resume Float16.test_near_the_cpu
  runs f32 Float32 BadInput Goldens
  runs real RealModels
  runs link SharedPrefixes Link
  runs host HostAttention LongSteps
  await_runs "$begin"
  small=$(printf '*/DeviceHalf.%s/gpu:' 'Small*' PanelsBecomeRows BestTokensOfManyRows Activations)
  small+=$(printf '*/DeviceOps.%s/gpu:' 'Small*' Rope)
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      check "$tool" 120 compute-sanitizer --tool $tool --error-exitcode 9 bin/device_ops_test \
        --gtest_brief=1 --gtest_filter="${small%:}"
      check "$tool-packed" 60 compute-sanitizer --tool $tool --error-exitcode 9 bin/products_test \
        --gtest_brief=1 --gtest_filter='PackedKernel.*:ProductAlgorithms.Halves*'
    else
      failed=1
      row "$tool" "NOT RUN: not there" 0
    fi
  done
fi
if [[ ${1:-} != --tests ]]; then
  note "batch, prefill / decode / generated tokens per second, each min median max"
  opt=(--model synthetic:opt-6.7b --prompt-tokens 512 --generate-tokens 32 --prefill-chunk 512)
  host=(--batch 128 --device-weights 0 --device-memory 6GiB)
  bench qwen2.5-0.5b --model synthetic:qwen2.5-0.5b:bf16 --batch 1,4,16,64 --repeat 5
  bench opt-6.7b "${opt[@]}" --batch 32,192 --repeat 5
  bench opt-6.7b-with-the-cpu "${opt[@]}" "${host[@]}" --host-attention on
  bench opt-1.3b-from-disk --model synthetic:opt-1.3b --prompt-tokens 512 --generate-tokens 8 \
    --prefill-chunk 512 --batch 128 --device-weights 220MiB --host-memory 1000MiB --disk "$PWD/disk"
  # Few rows, which may read the weights as they are packed.
  bench qwen2.5-0.5b-q4 --model synthetic:qwen2.5-0.5b --weights q4 --batch 1,16,64 --repeat 3
  bench opt-6.7b-q4 "${opt[@]}" --weights q4 --batch 32 --repeat 3
  micro products
  micro attention
  micro packed
  bench opt-6.7b-q4-from-host "${opt[@]}" --batch 256 --weights q4 --device-weights 250MiB --repeat 3
  bench opt-6.7b-all-on-host "${opt[@]}" "${host[@]}"
  bench opt-6.7b-from-host "${opt[@]}" --batch 256 --device-weights 450MiB
  bench opt-30b --model synthetic:opt-30b "${opt[@]:2}" --batch 72
fi
echo "all of it, in $SECONDS s:"
printf '%s\n' "${table[@]}"
exit $failed
