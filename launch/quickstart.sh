#!/bin/bash
# From a fresh Debian 12 to answers: installs packages, builds, fetches a small model, runs a batch
# on it over MPI and shows the answers.
#   launch/quickstart.sh [--model FILE-OR-DIRECTORY] [--np RANKS] [--output DIRECTORY]
# --model   another model than SmolLM2-135M-Instruct (98 MB), with a chat template of its own
# --np      pipeline stages, that is ranks (default 2)
# --output  where to put results.jsonl (default: a new folder under build/quickstart)
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
launch=$repository/launch
model="" ranks=2 output=""

wrong() {
  echo "quickstart: $1; see quickstart.sh --help" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --model | --np | --output)
      [[ $# -gt 1 && -n $2 ]] || wrong "$1 needs a value"
      case $1 in
        --model) model=$(realpath -m "$2") ;;
        --np) ranks=$2 ;;
        --output) output=$(realpath -m "$2") ;;
      esac
      shift 2
      ;;
    *) wrong "$1 is not an option" ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || wrong "--np $ranks is not a number of ranks"
[[ -z $model || -e $model ]] || wrong "--model $model is not there"
output=${output:-$repository/build/quickstart/$(date +%Y-%m-%d-%H%M%S)}
results=$output/results.jsonl
[[ ! -s $results ]] || wrong "--output $output holds results already: name another directory"

step() { printf '\n== %s\n' "$*"; }

step "1 of 5: packages"
"$launch/setup.sh"

step "2 of 5: build (build/release)"
cd "$repository"
mkdir -p build "$output"
if ! cmake --preset release >build/configure.log 2>&1; then
  cat build/configure.log
  echo "quickstart: cmake failed, see above (build/configure.log)" >&2
  exit 1
fi
cmake --build --preset release --target headrace -j "$(nproc)"

step "3 of 5: model"
if [[ -z $model ]]; then model=$("$launch/fetch-model.py" smollm2-135m); fi

step "4 of 5: mpirun -np $ranks headrace generate"
batch=$launch/quickstart.jsonl
code=0
# -q: without mpirun's own page about the exit code 1, which is expected here.
"$launch/mpirun.sh" -q -np "$ranks" generate \
  --model "$model" --input "$batch" --output "$results" || code=$?
if [[ $code != 0 && $code != 1 ]]; then
  echo "quickstart: headrace ended with exit code $code, see its message above; without one, try" >&2
  echo "  launch/mpirun.sh -np $ranks generate --model $model --prompt Hello" >&2
  exit "$code"
fi

step "5 of 5: answers"
"$launch/show-results.py" "$results" --input "$batch"
if [[ $code == 1 ]]; then
  echo
  echo "headrace ended with exit code 1: one line of the batch is wrong on purpose. It has an error"
  echo "record like any failed request, and the rest of the batch was done."
fi
echo
echo "results  $results"
echo "batch    $batch"
echo "model    $model"
