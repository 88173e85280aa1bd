#!/bin/sh
# dev/cuda_emu.h: its kernels, test_emu.cu, give the right results in every build and every order of threads, and each
# planted mistake is found, by its line. Where there is nvcc, it takes the same file without a warning.
. "$(dirname "$0")/check.sh"
ulimit -c 0 2>/dev/null
case ${CC:-cc} in *clang*) CXX=${CXX:-clang++} ;; *) CXX=${CXX:-g++} ;; esac
source=${root:?}/test/test_emu.cu

# The .cu files as C++, where the compiler looks before it looks in the checkout
mkdir dev test
for file in test/test_emu.cu dev/tensor_core.cuh; do
    { echo "#line 1 \"$file\"" && sed -f "$root/dev/cuda2cpp.sed" "$root/$file"; } >"${file%.cu}" || exit 1
done
mv test/test_emu test/test_emu.cpp
openmp=
echo 'int main() {}' | $CXX -fopenmp -x c++ - -o probe 2>/dev/null && openmp=-fopenmp
strict="-std=c++17 -Wall -Wextra -Werror -I. -I$root -I$root/test"

# shellcheck disable=SC2086
compile() { nice $CXX $strict "$@" >stdout 2>stderr; }
check "plain build" compile -O1 $openmp test/test_emu.cpp -o plain
check "build with sanitizers" compile -O0 -g $openmp -fsanitize=address,undefined -fno-sanitize-recover=all \
    test/test_emu.cpp -o sanitized
check "build for the race check" compile -O0 -g -fsanitize=thread -c test/test_emu.cpp -o race.o
check "the race check itself" compile -O1 race.o "$root/dev/cuda_emu_race.cpp" -o race

run() { "$@" >stdout 2>stderr; }
for order in fwd rev rand rand:2; do
    for build in plain sanitized race; do
        check "all kernels, $build, $order" run env CUDA_EMU_ORDER=$order CUDA_EMU_KERNELS=ran.txt ./$build
    done
done
check "one thread of the operating system" run env OMP_NUM_THREADS=1 ./plain
check "the order is checked" [ "$(CUDA_EMU_ORDER=up ./plain 2>&1)" = \
    "cuda_emu: CUDA_EMU_ORDER=up: it can be fwd, rev, rand or rand:SEED" ]

# The kernels that the source defines, a name a line; and those that ran, without template arguments
kernels_of() {
    sed 's/__launch_bounds__([^)]*)//' | tr '\n' ' ' | grep -o '__global__ *void *[A-Za-z0-9_]*' | sed 's/.* //' | sort
}
sed '/^\/\/ ---- Kernels with a mistake/q' "$source" | kernels_of >kernels.txt
sed 's/<.*//' ran.txt | sort -u >names.txt
check "every kernel ran, and CUDA_EMU_KERNELS names it" cmp kernels.txt names.txt

# found BUILD PLANTED MESSAGE [ORDER]: the mistake ends the program with this message and one of the lines that it is on
found() {
    run env CUDA_EMU_ORDER="${4:-fwd}" ./"$1" "$2"
    status=$?
    test $status -ne 0 && grep -q "$3" stderr || return 1
    # clang's AddressSanitizer finds lines by llvm-symbolizer only
    test "$1" = sanitized && test "$CXX" != g++ && ! command -v llvm-symbolizer >/dev/null && return
    grep -n "here:.* $2\b" "$source" | sed 's/:.*//' >lines.txt
    test -s lines.txt && sed 's/.*/test_emu.cu:&\\b/' lines.txt | grep -q -f - stderr
}
for planted in global dynamic; do check "$planted, out of bounds" found sanitized $planted heap-buffer-overflow; done
check "static, out of bounds" found sanitized static 'out of bounds'
for order in fwd rev rand; do
    for planted in barrier1 barrier2 neighbour lockstep blocks ticket reuse; do
        check "$planted, $order, is a race" found race $planted 'race in kernel' $order
    done
    check "nowait, $order, is found" found race nowait 'not waited for' $order
done
check "host code in device memory" found race host 'host code writes'
for build in plain sanitized race; do
    check "divergent, $build" found $build divergent 'others of its block are at the one at'
    check "deadlock, $build" found $build deadlock 'deadlock in kernel stuck'
    check "absent, $build" found $build absent 'lane 0 reads from lane 16'
done
check "nowait shows in forward order" [ "$(./plain nowait | tail -n 1)" = "nowait: 9 passed, 1 failed" ]
check "no device" [ "$(CUDA_EMU_CAPABILITY=0 ./plain none | grep -c 'no CUDA-capable device')" -gt 0 ]
check "a small device" [ "$(CUDA_EMU_MEMORY=0 ./plain none | grep -c 'out of memory')" -gt 0 ]

if command -v nvcc >/dev/null; then
    for arch in 75 80; do
        check "nvcc, sm_$arch" run nice nvcc -std=c++17 -arch=compute_$arch -ptx -Werror all-warnings -I"$root/test" \
            "$source" -o $arch.ptx
    done
    for instruction in mma.sync.aligned.m16n8k16 ldmatrix.sync.aligned.m8n8.x4.trans cp.async.cg cp.async.wait_group; do
        check "$instruction for sm_80" grep -q -F $instruction 80.ptx
    done
fi
report emu
