#!/bin/sh
# dev/matmul.cuh: its kernels in the emulator, test_matmul_gpu.cu, in every build and order of threads, to the same bytes.
# Where there is nvcc, it takes them without a warning, keeps all sums in registers, and uses the tensor cores.
. "$(dirname "$0")/check.sh"
ulimit -c 0 2>/dev/null
case ${CC:-cc} in *clang*) CXX=${CXX:-clang++} ;; *) CXX=${CXX:-g++} ;; esac

# The .cu files as C++, where the compiler looks before it looks in the checkout
mkdir dev test
for file in test/test_matmul_gpu.cu dev/tensor_core.cuh dev/matmul.cuh; do
    { echo "#line 1 \"$file\"" && sed -f "${root:?}/dev/cuda2cpp.sed" "$root/$file"; } >"${file%.cu}" || exit 1
done
mv test/test_matmul_gpu test/test_matmul_gpu.cpp
openmp=
echo 'int main() {}' | $CXX -fopenmp -x c++ - -o probe 2>/dev/null && openmp=-fopenmp
strict="-std=c++17 -Wall -Wextra -Werror -I. -I$root -I$root/test"

# shellcheck disable=SC2086
compile() { nice $CXX $strict "$@" >stdout 2>stderr; }
check "plain build" compile -O1 $openmp test/test_matmul_gpu.cpp -o plain
check "build with sanitizers" compile -O1 $openmp -fsanitize=address,undefined -fno-sanitize-recover=all \
    test/test_matmul_gpu.cpp -o sanitized
check "build for the race check" compile -O1 -g -fsanitize=thread -c test/test_matmul_gpu.cpp -o race.o
check "the race check itself" compile -O1 race.o "$root/dev/cuda_emu_race.cpp" -o race

# run BUILD ORDER: all checks hold, and the bytes of all results are those of the build's first run
run() {
    CUDA_EMU_ORDER=$2 CUDA_EMU_KERNELS=ran.txt nice ./"$1" >stdout 2>stderr || { grep FAIL stdout; false; } || return 1
    grep '^bytes' stdout >bytes.txt && { test -f "$1.txt" || cp bytes.txt "$1.txt"; } && cmp bytes.txt "$1.txt"
}
for order in fwd rev rand rand:2; do check "all products, plain, $order" run plain $order; done
check "all products, sanitized" run sanitized rev
for order in fwd rand; do check "all products, race, $order" run race $order; done

# The kernels that the sources define, a name a line; and those that ran, without template arguments
cat "$root/dev/matmul.cuh" "$root/test/test_matmul_gpu.cu" | sed 's|^ *//.*||; s/__launch_bounds__([^)]*)//' |
    tr '\n' ' ' | grep -o '__global__ *void *[A-Za-z0-9_]*' | sed 's/.* //' | sort >kernels.txt
sed 's/<.*//' ran.txt | sort -u >names.txt
check "every kernel ran" cmp kernels.txt names.txt

if command -v nvcc >/dev/null; then
    compile_cuda() { nice nvcc "$@" >stdout 2>stderr; }
    check "nvcc takes them" compile_cuda -std=c++17 -arch=compute_80 -ptx -Werror all-warnings -I"$root/test" \
        "$root/test/test_matmul_gpu.cu" -o 80.ptx
    for instruction in mma.sync.aligned.m16n8k16 ldmatrix.sync.aligned.m8n8.x4.shared \
        ldmatrix.sync.aligned.m8n8.x4.trans cp.async.cg; do
        check "$instruction for sm_80" grep -q -F $instruction 80.ptx
    done
    check "machine code" compile_cuda -arch=sm_80 -cubin -Xptxas -v 80.ptx -o 80.cubin
    cat stdout stderr | grep 'spill stores' >spills.txt
    check "no register spills" [ "$(grep -c ' 0 bytes spill stores, 0 bytes spill loads' spills.txt)" -eq \
        "$(grep -c entry 80.ptx)" ]
fi
report matmul_gpu
