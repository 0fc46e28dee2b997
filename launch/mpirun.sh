#!/bin/bash
# Starts headrace under Open MPI with settings that suit it:
#   launch/mpirun.sh [MPIRUN OPTIONS] generate|bench|plan|doctor [HEADRACE OPTIONS]
#   launch/mpirun.sh -np 2 generate --model m.gguf --input in.jsonl --output out.jsonl
#   launch/mpirun.sh --host node1,node2 generate --config cluster-configs/two-node.toml ...
#   launch/mpirun.sh -np 2 bench --model m.gguf --batch 1,16 --json bench.json
# What stands before the command goes to mpirun, the rest to headrace. On several machines the
# program and the model have the same path everywhere, and ssh needs no password.
# HEADRACE names another program than build/release/headrace. OMPI_MCA_... variables that are
# already set are kept. Ctrl-C or SIGTERM lets the ranks write what is done and ends with 75, once
# more, two seconds later, ends them at once. The exit code is headrace's: where mpirun has one of its
# own (137 after a rank was killed, 205 after a machine was lost), 75. But what mpirun refuses before
# a rank starts (an option of its own, too few slots) has mpirun's code, 1 mostly.
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
if [[ -t 2 ]]; then
  export HEADRACE_PROGRESS=${HEADRACE_PROGRESS:-line}
  progress=(-x HEADRACE_PROGRESS)
fi

# An interrupt is handed to the ranks as SIGUSR1, which mpirun passes on: they end by themselves and
# give 75. An INT or TERM of its own, which a terminal's Ctrl-C and timeout(1) send to all processes
# of the group, makes mpirun kill them after a second; a second interrupt does that. What comes
# within two seconds is the same one: timeout(1) sends it to this script and to its group.
mpirun=0 sender=0 interrupts=0 first=0
interrupt() {
  if [[ $interrupts == 0 ]]; then
    interrupts=1 first=$EPOCHSECONDS
    if [[ $mpirun != 0 ]]; then hand_on; fi
  elif ((EPOCHSECONDS - first >= 2)) && [[ $mpirun != 0 ]]; then
    interrupts=2
    kill -HUP "$mpirun" 2>/dev/null || true
  fi
  return 0
}
# Again and again, for ranks may only be starting. What sends it is not ended by a signal to all of
# the group, and has no sleep(1), which would outlive this script and hold what it has open.
hand_on() {
  if [[ $sender != 0 ]]; then return; fi
  echo "mpirun.sh: interrupted; the ranks write what is done and end. Once more, after two seconds," \
    "ends them at once" >&2
  trap '' INT TERM
  while kill -USR1 "$mpirun"; do read -rt 1 <> <(:) || true; done 2>/dev/null &
  sender=$!
  trap interrupt INT TERM
}
trap interrupt INT TERM

# A rank has several threads, so it is not bound to one core. Should this script be killed, mpirun
# ends, too.
env --default-signal=INT,QUIT --block-signal=INT,TERM setpriv --pdeathsig HUP \
  mpirun --bind-to none --oversubscribe "${progress[@]}" "${for_mpirun[@]}" \
  "$program" "$command" "$@" <&0 &
mpirun=$!
if [[ $interrupts != 0 ]]; then hand_on; fi
while kill -0 "$mpirun" 2>/dev/null; do wait "$mpirun" || true; done  # interrupts end a wait
code=0
wait "$mpirun" || code=$?
if [[ $sender != 0 ]]; then
  kill -HUP "$sender" 2>/dev/null || true
  wait "$sender" || true
fi

case $code in
  0 | 2 | 65 | 69 | 70 | 73 | 74 | 75) ;;
  1) if [[ $interrupts -gt 1 ]]; then code=75; fi ;;
  *)
    echo "mpirun.sh: mpirun ended with exit code $code, which is not headrace's own: a rank or its" \
      "machine was lost, or did not start; see above, and run again with --resume" >&2
    code=75
    ;;
esac
exit "$code"
