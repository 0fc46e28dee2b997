#!/bin/bash
# Builds headrace and runs all tests: tests/run.sh [--all] [CTEST OPTIONS]
# --all also runs what needs the larger real model (491 MB to fetch); CI=true does the same.
# HEADRACE_MODELS  a folder that holds the real models; without it they are fetched
# HEADRACE_SHARED  a folder with golden/; default ../shared where it is there. Tests that need it
#                  are skipped without it.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
all=0
if [[ ${CI:-} == true ]]; then all=1; fi
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  --all)
    all=1
    shift
    ;;
esac

cmake --preset release
cmake --build --preset release -j "$(nproc)"

if [[ -z ${HEADRACE_MODELS:-} ]]; then
  model=$(launch/fetch-model.py smollm2-135m)
  if [[ $all == 1 ]]; then launch/fetch-model.py qwen2.5-coder-0.5b >/dev/null; fi
  HEADRACE_MODELS=$(dirname "$model")
fi
export HEADRACE_MODELS
if [[ -z ${HEADRACE_SHARED:-} && -d ../shared ]]; then
  HEADRACE_SHARED=$(cd ../shared && pwd)
  export HEADRACE_SHARED
fi

# The Python packages of the MBPP study.
experiments/mbpp/reproduce.sh --prepare ||
  echo "run.sh: tests of the MBPP study that need its Python packages are skipped" >&2
export HEADRACE_STUDY_PYTHON=$repository/build/mbpp/venv-scoring/bin/python

# Twice as many tests as cores at a time: those with processes of their own wait most of their time.
# What must run alone does; CTest knows which.
code=0
ctest --preset release -j "$((2 * $(nproc)))" --output-junit "$repository/build/release/tests.xml" \
  --test-output-size-passed 1000000 --test-output-size-failed 1000000 "$@" || code=$?
python3 tests/outcome.py build/release/tests.xml
exit $code
