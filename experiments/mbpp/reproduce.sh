#!/bin/bash
# The MBPP scaling study: set-up, generation at every batch size and stage count, scoring, report.
#   experiments/mbpp/reproduce.sh [OPTIONS]
# --quick                 SmolLM2-135M-Instruct, 20 tasks, batch 1, 4 and 16: some minutes
# --model DIR|GGUF        another model (default: Qwen2.5-Coder-0.5B-Instruct Q4_K_M, fetched)
# --tasks N               only the first N of the 378 tasks
# --peer                  also llama.cpp on the same file, in turn with headrace (built from the
#                         package llama-cpp-python, which takes long)
# --check RESULTS         compare the token ids with those of committed results
# --verify-claims RESULTS nothing but: compute every figure of committed results again
# --report                no more generation: the report of the runs that are done so far
# --go-on RESULTS         an unfinished study of another machine: only what RESULTS lacks. The program
#                         must be the same, byte for byte
# --offline DIR           no network: data and model from DIR, Python packages from DIR/wheels
# --prepare               nothing but: make the Python environments
# --work DIR              everything under way (default: build/mbpp)
# --allow-unsafe-scoring  run generated programs without a sandbox where bubblewrap does not work
# Stopped or killed at any moment, it goes on when it is started again with the same options.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
prepare=0 report=0 quick=0 model="" tasks="" peer=0 check="" go_on="" offline="" work=$repository/build/mbpp unsafe=0

wrong() {
  echo "reproduce: $1; see reproduce.sh --help" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --quick) quick=1 ;;
    --prepare) prepare=1 ;;
    --report) report=1 ;;
    --peer) peer=1 ;;
    --allow-unsafe-scoring) unsafe=1 ;;
    --model | --tasks | --check | --go-on | --verify-claims | --offline | --work)
      [[ $# -gt 1 && -n $2 ]] || wrong "$1 needs a value"
      case $1 in
        --model) model=$(realpath -m "$2") ;;
        --tasks) tasks=$2 ;;
        --check) check=$(realpath -m "$2") ;;
        --go-on) go_on=$(realpath -m "$2") ;;
        --verify-claims)
          results=$(realpath -m "$2")
          cd "$here"
          exec python3 -m study.verify "$results"
          ;;
        --offline) offline=$(realpath -m "$2") ;;
        --work) work=$(realpath -m "$2") ;;
      esac
      shift
      ;;
    *) wrong "$1 is not an option" ;;
  esac
  shift
done
[[ -z $tasks || $tasks =~ ^[1-9][0-9]*$ ]] || wrong "--tasks $tasks is not a number of tasks"
[[ -z $model || -e $model ]] || wrong "--model $model is not there"
[[ -z $offline || -d $offline ]] || wrong "--offline $offline is not a folder"
[[ -z $check || -f $check/manifest.json ]] || wrong "--check $check holds no results"
[[ -z $go_on || -f $go_on/manifest.json ]] || wrong "--go-on $go_on holds no results"

step() { printf '\n== %s\n' "$*" >&2; }

# environment NAME REQUIREMENTS: a virtual environment, made once, by one process at a time.
environment() {
  local folder=$work/$1 requirements=$here/$2 stamp
  exec 9>"$folder.lock"
  flock 9
  stamp=$(sha256sum <"$requirements")
  if [[ $(cat "$folder/made-from" 2>/dev/null) != "$stamp" ]]; then
    rm -rf "$folder"
    python3 -m venv "$folder" || {
      echo "reproduce: python3 -m venv does not work; on Debian: apt-get install python3-venv" >&2
      exit 69
    }
    local from=()
    if [[ -n $offline ]]; then from=(--no-index --find-links "$offline/wheels"); fi
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
      --no-deps --only-binary=:all: "${from[@]}" -r "$requirements" >&2
    echo "$stamp" >"$folder/made-from"
  fi
  exec 9>&-
}

mkdir -p "$work"
if [[ $prepare == 1 ]]; then
  environment venv requirements.txt
  environment venv-scoring requirements-scoring.txt
  exit 0
fi

step "1 of 4: headrace"
program=${HEADRACE:-$repository/build/release/headrace}
if [[ ! -x $program ]]; then
  if [[ -z $offline ]]; then "$repository/launch/setup.sh" >&2; fi
  (cd "$repository" && cmake --preset release >&2 &&
    cmake --build --preset release --target headrace -j "$(nproc)" >&2)
fi
"$program" --version >&2

step "2 of 4: Python packages"
environment venv requirements.txt
environment venv-scoring requirements-scoring.txt

step "3 of 4: data and model"
cd "$here"
offline_data=()
if [[ -n $offline ]]; then offline_data=(--offline "$offline"); fi
data=$(python3 -m study.data "$work/data" "${offline_data[@]}")
if [[ -z $model ]]; then
  name=qwen2.5-coder-0.5b
  if [[ $quick == 1 ]]; then name=smollm2-135m; fi
  if [[ -n $check ]] && grep -q '"name": "SmolLM2' "$check/manifest.json"; then
    name=smollm2-135m
  fi
  if [[ -n $offline ]]; then
    model=$("$repository/launch/fetch-model.py" --offline "$name" "$offline") ||
      wrong "--offline $offline does not hold the model; fetch it, or name one with --model"
  else
    model=$("$repository/launch/fetch-model.py" "$name")
  fi
fi

study=$(basename "$model" .gguf | tr '[:upper:]' '[:lower:]')
options=()
if [[ $quick == 1 ]]; then
  tasks=${tasks:-20}
  study+=-quick
  options+=(--quick)
fi
if [[ -n $tasks ]]; then
  study+=-$tasks
  options+=(--tasks "$tasks")
fi
if [[ $unsafe == 1 ]]; then options+=(--allow-unsafe-scoring); fi
if [[ $report == 1 ]]; then options+=(--report); fi
if [[ -n $check ]]; then
  study+=-check  # not the runs that made the results, where they are here
  options+=(--check "$check")
fi
if [[ -n $go_on ]]; then options+=(--go-on "$go_on"); fi
if [[ $peer == 1 ]]; then
  [[ -z $offline ]] || wrong "--peer builds llama.cpp and needs the network"
  "$here/peer.sh" "$work/peer" >&2
  while IFS= read -r line; do options+=(--peer "$line"); done <"$work/peer/commands"
  options+=(--peer-about "$(cat "$work/peer/about")")
fi

step "4 of 4: generation, scoring, report ($work/$study)"
exec "$work/venv/bin/python" -m study.main --program "$program" --model "$model" --data "$data" \
  --work "$work/$study" --scoring-python "$work/venv-scoring/bin/python" "${options[@]}"
