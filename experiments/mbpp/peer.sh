#!/bin/bash
# Builds the peer of the study, llama.cpp as it lies in the package llama-cpp-python 0.3.36:
#   experiments/mbpp/peer.sh DIR
# It is compiled once, for two servers on one library: llama-server, which computes the requests of
# several clients together, and "python3 -m llama_cpp.server", which takes one after another.
# DIR/commands then has LABEL=COMMAND for each, as study.main --peer takes them, DIR/about what they are.
set -euo pipefail
if [[ $# != 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit $(($# == 1 ? 0 : 2))
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
folder=$(realpath "$1")
version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
source=$folder/llama_cpp_python-$version
threads=2  # as headrace has in the runs beside it
if [[ -f $folder/commands ]]; then exit 0; fi

if [[ ! -d $source ]]; then
  # With the hash, pip looks at it before it unpacks anything.
  echo "llama-cpp-python==$version --hash=sha256:$sha256" >"$folder/source.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary=:all: \
    --require-hashes --dest "$folder" -r "$folder/source.txt" >&2
  mkdir -p "$folder/unpacking"
  tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder/unpacking"
  mv "$folder/unpacking/llama_cpp_python-$version" "$source"
fi

# Without AMX: compiled by g++ 12, llama.cpp's AMX kernels ended with an illegal instruction where they
# were tried.
flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

# A Release build for this machine's CPU, without what a server on this machine does not need.
cmake -S "$source/vendor/llama.cpp" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_USE_PREBUILT_UI=OFF -DBUILD_SHARED_LIBS=ON \
  -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" >"$folder/configure.log"
nice cmake --build "$folder/build" --target llama-server -j "$(nproc)" >"$folder/build.log"

# The Python package without a library of its own: it finds the one above.
python3 -m venv "$folder/venv"
install=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps)
"${install[@]}" --require-hashes --only-binary=:all: -r "$here/requirements-peer.txt" >&2
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" "${install[@]}" --no-build-isolation "$source" >&2

python="env LLAMA_CPP_LIB_PATH=$folder/build/bin $folder/venv/bin/python"
echo "The servers are of llama-cpp-python $version, its llama.cpp compiled on this machine for its CPU" \
  "by $(c++ --version | head -n 1) without AMX (peer.sh says why)." >"$folder/about"
cat >"$folder/commands.part" <<END
llama-server=$folder/build/bin/llama-server --model {model} --host 127.0.0.1 --port {port} --threads $threads --threads-batch $threads --parallel {concurrency} --ctx-size {contexts} --flash-attn on
llama_cpp.server=$python -m llama_cpp.server --model {model} --host 127.0.0.1 --port {port} --n_threads $threads --n_threads_batch $threads --n_ctx {context} --flash_attn true
END
mv "$folder/commands.part" "$folder/commands"
