#!/bin/bash
# Installs the Debian 12 packages that headrace needs to build, run and be tested. Only what is
# missing is installed; where nothing is, no network and no root are needed.
set -euo pipefail

packages=(
  # build
  g++ cmake ninja-build pkg-config git
  libopenmpi-dev libhwy-dev libpcre2-dev libutf8proc-dev libxxhash-dev
  liburing-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libtomlplusplus-dev libgtest-dev
  # run
  openmpi-bin
  # fetch-model.py, the tests
  python3 python3-pip python3-venv ca-certificates
  # the sandbox of experiments/mbpp
  bubblewrap libseccomp2
)

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not a Debian system; install what these Debian 12 packages hold:" >&2
  echo "  ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  # "ii": installed, whole. A package of another architecture does not count.
  status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == ii* ]] || missing+=("$package")
done
if [[ ${#missing[@]} == 0 ]]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi
echo "setup: installing ${missing[*]}"

as_root=()
if [[ $(id -u) != 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: run this as root (there is no sudo): apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0
     -o DPkg::Lock::Timeout=300)
install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")

# Lists of a fresh machine may be empty or old: fetch them when the first try fails.
if ! "${install[@]}" </dev/null; then
  echo "setup: fetching the package lists and trying again"
  "${apt[@]}" update </dev/null
  "${install[@]}" </dev/null
fi
echo "setup: done"
