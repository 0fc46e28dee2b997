#!/bin/bash
# Packs what a machine with a GPU but no development packages needs to run the tests and a short
# benchmark: pack.sh BUILD FOLDER. Left out is what such a machine has: libc, CUDA, MPI. Fails
# where it becomes too large to be carried there.
set -euo pipefail
build=$(realpath "${1:?build folder}")
folder=${2:?folder to fill}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
rm -rf "$folder"/{bin,lib,tests}
mkdir -p "$folder/bin" "$folder/lib" "$folder/tests"
cp "$build/headrace" "$build/libheadrace_cuda.so" "$folder/bin/"
cmake --build "$build" --target device_bench >/dev/null  # no part of a usual build
cp "$build"/tests/{device_module_test,device_ops_test,device_weights_test,products_test,device_bench} "$folder/bin/"
strip "$folder"/bin/*
ldd "$folder"/bin/headrace "$folder"/bin/*_test | awk '/=> \//{print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*|libgcc_s|libstdc\+\+|libmpi|libopen-[a-z]*|libhwloc|libevent[^/]*|libudev|libz|libcu[a-z]*|libnccl)\.so' |
  xargs -I{} cp -L {} "$folder/lib/"
cp -r "$source/tests/mp" "$source/tests/gpu" "$folder/tests/"
mkdir -p "$folder/tests/data"
cp -r "$source/tests/data/models" "$folder/tests/data/"
cp "$source/tests/gpu/run.sh" "$source/tests/perf/trace_table.py" "$folder/"
if [[ -z ${CUDAARCHS:-} ]]; then
  # A release is for all of them.
  cubins=$(cuobjdump --list-elf --list-ptx "$folder/bin/libheadrace_cuda.so")
  for wanted in sm_80.cubin sm_90.cubin sm_90.ptx; do
    if [[ $cubins != *$wanted* ]]; then
      echo "pack.sh: libheadrace_cuda.so has no $wanted" >&2
      exit 1
    fi
  done
fi
megabytes=$(du -sm "$folder" | cut -f1)
echo "$folder: $megabytes MiB"
if ((megabytes > 60)); then
  echo "pack.sh: more than 60 MiB" >&2
  exit 1
fi
