#!/bin/sh
# Builds the GPU in software into a folder, under the names that a binary built with the feature `cuda` asks the loader for:
#   tests/gpu/build.sh DIR && LD_LIBRARY_PATH=DIR:$CUDA_HOME/lib64 interp doctor --gpu
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
g++ -std=c++20 -O3 -march=native -ffp-contract=fast -Wall -Wextra -U_FORTIFY_SOURCE -fPIC -shared -DHERE="\"$here\"" -I "${CUDA_HOME:-/usr/local/cuda}/include" \
    "$here/driver.cpp" "$here/ptx.cpp" -Wl,-soname,libcuda.so.1 -ldl -o "$1/libcuda.so.1"
major=$(nvcc --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
for name in "libcublas.so.$major" "libcublasLt.so.$major" libcurand.so.10 "libnvrtc.so.$major"; do
    # Nothing of its own: who looks for a function in it finds that of the first.
    echo "" | cc -shared -x c - -Wl,-soname,"$name" -Wl,--no-as-needed -L"$1" -l:libcuda.so.1 -o "$1/$name"
done
