#!/bin/bash
# Starts headrace under Open MPI with settings that suit it:
#   launch/mpirun.sh [MPIRUN OPTIONS] generate|bench|plan|doctor [HEADRACE OPTIONS]
#   launch/mpirun.sh -np 2 generate --model m.gguf --input in.jsonl --output out.jsonl
#   launch/mpirun.sh --host node1,node2 generate --config cluster-configs/two-node.toml ...
#   launch/mpirun.sh -np 2 bench --model m.gguf --batch 1,16 --json bench.json
# What stands before the command goes to mpirun, the rest to headrace. On several machines the
# program and the model have the same path everywhere, and ssh needs no password.
# HEADRACE names another program than build/release/headrace. OMPI_MCA_... variables that are
# already set are kept.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${HEADRACE:-$repository/build/release/headrace}

for_mpirun=()
while [[ $# -gt 0 && ! $1 =~ ^(generate|bench|plan|doctor)$ ]]; do
  if [[ $1 == --help || $1 == -h ]]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
  fi
  for_mpirun+=("$1")
  shift
done
if [[ $# == 0 ]]; then
  echo "mpirun.sh: give generate, bench, plan or doctor and its options after those of mpirun; see" \
    "mpirun.sh --help" >&2
  exit 2
fi
command=$1
shift
if ! command -v mpirun >/dev/null || [[ ! -x $program ]]; then
  echo "mpirun.sh: mpirun or $program is not there; run launch/quickstart.sh first, or set HEADRACE" >&2
  exit 2
fi

# Ranks that wait give their core away.
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
# Plain shared memory: on virtual machines 1.3 to 3.6 times faster than the kernel's single copy.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
# A machine that is gone is noticed in about 10 s instead of minutes.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-5}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-2}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}
if [[ $(id -u) == 0 ]]; then  # Open MPI asks twice
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# The ranks write to a pipe; whether a terminal is at its end is known here.
progress=()
if [[ $command == generate && -t 2 ]]; then progress=(--progress line); fi

# A rank has several threads, so it is not bound to one core.
exec mpirun --bind-to none --oversubscribe "${for_mpirun[@]}" \
  "$program" "$command" "${progress[@]}" "$@"
