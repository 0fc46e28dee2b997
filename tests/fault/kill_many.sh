#!/bin/bash
# Kills a small run with SIGKILL (a random rank or mpirun, at a random moment) and resumes it, again
# and again; compares every finished run with an undisturbed one: tests/fault/kill_many.sh [N [SEED]]
# N        kills at least, 200 if not given; the last run is finished
# SEED     of what is killed when, 1 if not given
# HEADRACE the program, build/release/headrace if not given
set -euo pipefail
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export KILLS=${1:-200} SEED=${2:-1}
export HEADRACE=${HEADRACE:-$tests/../build/release/headrace}
export PYTHONPATH=$tests/mp PYTHONDONTWRITEBYTECODE=1
exec python3 "$tests/fault/kill_many.py"
