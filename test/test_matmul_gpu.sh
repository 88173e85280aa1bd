#!/bin/sh
# dev/cuda/matmul.cuh: its kernels in the emulator, test_matmul_gpu.cu, plain, with sanitizers and with the race check,
# to the same bytes. test_matmul_gpu.sh all: all shapes, more orders of threads, and where there is nvcc: it takes them
# without a warning, keeps all sums in registers, and uses the tensor cores.
. "$(dirname "$0")/check.sh"
emulated "test_matmul_gpu${1:+_all}"

# run BUILD ORDER: all checks hold, and the bytes of all results are those of the first run
run() {
    CUDA_EMU_ORDER=$2 CUDA_EMU_KERNELS=ran.txt nice ./"$1" >stdout 2>stderr || { grep FAIL stdout; false; } || return 1
    grep '^bytes' stdout >bytes.txt && { test -f first.txt || cp bytes.txt first.txt; } && cmp bytes.txt first.txt
}
runs="plain:rand sanitized:rev race:fwd"
test "$1" = all && runs="plain:fwd plain:rev $runs plain:rand:2 race:rand"
for run in $runs; do check "all products, $run" run "${run%%:*}" "${run#*:}"; done

kernels_of "${root:?}/dev/cuda/matmul.cuh" "$root/test/test_matmul_gpu.cu" >kernels.txt
ran ran.txt >names.txt
check "every kernel ran" cmp kernels.txt names.txt

if [ "$1" = all ] && command -v nvcc >/dev/null; then
    compile_cuda() { nice nvcc "$@" >stdout 2>stderr; }
    check "nvcc takes them" compile_cuda -std=c++20 -arch=compute_80 -ptx -Werror all-warnings \
        -I"$root" -I"$root/dev" "$root/test/test_matmul_gpu_all.cu" -o 80.ptx
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
