#!/bin/bash
# Builds with sanitizers and runs tests: tests/sanitize.sh [--quick]
# Addresses and undefined behaviour, then threads: tests in one process, changed files of every kind
# (fuzz/README.md), and a small batch through the program, on one process and over MPI.
# --quick, for every CI run: of the tests only those of what is read from outside, of memory that
# copies to and from a GPU use, and of what runs beside the computing thread.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=(checkpoint_test offload_test request_test results_test text_test)
rest=(bench_test device_link_test device_pipeline_test device_plan_test device_run_test
  device_stage_test device_weights_test engine_test file_test io_test kv_window_test ops_test
  options_test pipeline_test report_test results_durability_test sampler_test schedule_test
  timed_device_test)
readers=(gguf safetensors tokenizer_json tokenizer_gguf requests results)
fuzz_seconds=20  # for each reader
asan=("${files[@]}" "${rest[@]}" headrace)
filter='*'
tsan=(device_link_test device_pipeline_test device_run_test engine_test file_test io_test offload_test
  pipeline_test report_test results_durability_test headrace)
case ${1:-} in
  "") ;;
  --quick)
    asan=("${files[@]}" kv_window_test device_weights_test headrace)
    tsan=(threads_test results_durability_test headrace)
    # Not every setting of what repeats one thing for long.
    filter='-*EveryByteIsRight*/?:*TheDestructorWaits*LittleAtATime'
    ;;
  *)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    if [[ $1 == -h || $1 == --help ]]; then exit 0; fi
    exit 2
    ;;
esac

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# generate PRESET [COMMAND...]: a small batch through the program, with weights and KV pages on disk,
# then once more from the middle of a result, all in memory. COMMAND starts the program.
generate() {
  local program=build/$1/headrace output=$folder/$1.$#.jsonl requests
  requests=$(wc -l <"$folder/in.jsonl")
  shift
  for memory in 16MiB 96MiB; do
    timeout 300 "$@" "$program" generate --model "$folder/model" --input "$folder/in.jsonl" --quiet \
      --output "$output" --disk "$folder/disk" --host-memory "$memory" --max-batch 8 --threads 2 \
      --chat-template chatml --resume
    [[ $(wc -l <"$output") == "$requests" ]]
    truncate --size "$(($(stat --format %s "$output") / 2))" "$output"
  done
}

# run PRESET TARGETS...
run() {
  local preset=$1
  shift
  cmake --preset "$preset"
  cmake --build --preset "$preset" -j "$(nproc)" --target "$@"
  # xargs fails if one of them does.
  printf '%s\n' "${@#headrace}" | xargs -r -P "$(nproc)" -I{} \
    timeout 1800 "build/$preset/tests/{}" --gtest_brief=1 --gtest_filter="$filter"
}

PYTHONPATH=tests/mp PYTHONDONTWRITEBYTECODE=1 python3 - "$folder/model" >"$folder/in.jsonl" <<'END'
import json, pathlib, shutil, sys, wide_models

model = pathlib.Path(sys.argv[1])
wide_models.write(model, "qwen2")
shutil.copytree("tests/data/text/qwen2", model, dirs_exist_ok=True)  # the tokenizer
text = "The mill stands where the race leaves the pond; " * 6
chance = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.2}
for i in range(4):
    for body in ({"prompt": [i + 3, 7, 9], "logprobs": 1},
                 {"prompt": f"{text}{i}", "n": 2, **chance, "logit_bias": {"5": 2}},
                 {"prompt": f"{text}{i} wheels", "stop": [" ", "e"], "logprobs": 3, **chance},
                 {"messages": [{"role": "user", "content": f"How many? {i}"}], "logprobs": True}):
        print(json.dumps({**body, "max_tokens": 6, "seed": i}))
END

run asan "${asan[@]}"
cmake --build --preset asan -j "$(nproc)" --target fuzz_readers
printf '%s\n' "${readers[@]}" | xargs -P "$(nproc)" -I{} \
  build/asan/tests/fuzz_readers {} --seconds "$fuzz_seconds"
if [[ " ${asan[*]} " == *" headrace "* ]]; then
  generate asan
  # Open MPI leaks on purpose.
  ASAN_OPTIONS=detect_leaks=0 generate asan mpirun --oversubscribe --bind-to none -np 2
fi
run tsan "${tsan[@]}"
# Open MPI is not built for this one: a single process.
if [[ " ${tsan[*]} " == *" headrace "* ]]; then generate tsan; fi
echo "tests/sanitize.sh: nothing found"
