#!/bin/sh
# dev/emu/cuda_emu.h: its kernels, test_emu.cu, give the right results in every build and every order of threads, and
# each planted mistake is found, by its line. dev/cuda/check.cuh: a launch that CUDA refuses is reported by its line,
# and no launch in the sources goes unchecked. Where there is nvcc, it takes the same file without a warning.
. "$(dirname "$0")/check.sh"
source=${root:?}/test/test_emu.cu
emulated test_emu
CUDA_EMU_CLUSTERS=1
export CUDA_EMU_CLUSTERS

run() { "$@" >stdout 2>stderr; }
for order in fwd rev rand rand:2; do
    for build in plain sanitized race; do
        check "all kernels, $build, $order" run env CUDA_EMU_ORDER=$order CUDA_EMU_KERNELS=ran.txt ./$build
    done
done
check "kernels of a GPU on which they do not overlap" run env CUDA_EMU_ORDER=rand CUDA_EMU_CAPABILITY=8.0 ./plain
check "kernels of a GPU without clusters" run env CUDA_EMU_CLUSTERS=0 ./plain
check "one thread of the operating system" run env OMP_NUM_THREADS=1 ./plain
check "the order is checked" [ "$(CUDA_EMU_ORDER=up ./plain 2>&1)" = \
    "cuda_emu: CUDA_EMU_ORDER=up: it can be fwd, rev, rand or rand:SEED" ]

sed '/^\/\/ ---- Kernels with a mistake/q' "$source" >sound.cu
kernels_of sound.cu >kernels.txt
ran ran.txt >names.txt
check "every kernel ran, and CUDA_EMU_KERNELS names it" cmp kernels.txt names.txt

# found BUILD PLANTED MESSAGE [ORDER]: the mistake ends the program with this message and one of the lines that it is on
found() {
    run env CUDA_EMU_ORDER="${4:-fwd}" ./"$1" "$2"
    status=$?
    test $status -ne 0 && grep -q "$3" stderr || return 1
    # clang's AddressSanitizer finds lines by llvm-symbolizer only
    case $1,${CC:-cc} in sanitized,*clang*) command -v llvm-symbolizer >/dev/null || return 0 ;; esac
    grep -n "here:.* $2\b" "$source" | sed 's/:.*//' >lines.txt
    test -s lines.txt && sed 's/.*/test_emu.cu:&\\b/' lines.txt | grep -q -f - stderr
}
for planted in global dynamic beyond; do
    check "$planted, out of bounds" found sanitized $planted heap-buffer-overflow
done
check "static, out of bounds" found sanitized static 'out of bounds'
for order in fwd rev rand; do
    for planted in barrier1 barrier2 neighbour returned lockstep blocks ticket reuse fence event early; do
        check "$planted, $order, is a race" found race $planted 'race in kernel' $order
    done
    check "nowait, $order, is found" found race nowait 'not waited for' $order
    check "ahead, $order, is found" found race ahead 'doubled<MISTAKE> reads .* must call' $order
done
for order in fwd rev rand rand:2; do
    check "step, $order, is a race" found race step 'race in kernel pascal_of_cluster' $order
    for build in plain sanitized race; do
        check "unborn, $build, $order" found $build unborn 'before a cluster_sync' $order
        check "local, $build, $order" found $build local 'not in shared memory' $order
    done
    check "end, $order" found race end 'the end of its block\|a block that has ended' $order
done
check "host code in device memory" found race host 'host code writes'
for build in plain sanitized race; do
    check "divergent, $build" found $build divergent 'others of its block are at the one at'
    check "deadlock, $build" found $build deadlock 'deadlock in kernel stuck'
    check "resident, $build" found $build resident 'deadlock in kernel pascal_in_place'
    check "absent, $build" found $build absent 'lane 0 reads from lane 16'
done
for planted in launch captured; do
    check "$planted" found plain $planted 'kernel scale: invalid configuration argument'
    check "$planted ends with status 1" test "$status" = 1
done
check "attribute" found plain attribute 'cudaFuncSetAttribute(.*: invalid argument'
check "cooperative" found plain cooperative 'kernel pascal: too many blocks in cooperative launch'
for cuda in "$root"/*.cu "$root"/dev/cuda/*.cuh; do
    unchecked "$cuda" >stderr
    check "every launch in ${cuda#"$root/"} is checked" test ! -s stderr
done
check "nowait shows in forward order" [ "$(./plain nowait | tail -n 1)" = "nowait: 9 passed, 1 failed" ]
# wrong ORDER PLANTED WHAT: the mistake gives a wrong result
wrong() { ! run env CUDA_EMU_ORDER="$1" ./plain "$2" && grep -q "$3" stdout stderr; }
for planted in event early; do
    check "$planted, fwd, goes unnoticed" run env CUDA_EMU_ORDER=fwd ./plain $planted
    for order in rev rand; do check "$planted, $order, gives a wrong result" wrong $order $planted 'graph, y'; done
done
check "half of 16 bytes, fwd, goes unnoticed" run env CUDA_EMU_ORDER=fwd ./plain torn
for order in rand rand:2; do check "half of 16 bytes, $order, gives a wrong result" wrong $order torn relay; done
check "a load ahead of the wait, fwd, goes unnoticed" run env CUDA_EMU_ORDER=fwd ./plain ahead
for order in rand rand:2; do check "a load ahead of the wait, $order" wrong $order ahead 'overlapping kernels'; done
check "nor where kernels do not overlap" run env CUDA_EMU_ORDER=rand CUDA_EMU_CAPABILITY=8.0 ./plain ahead
for order in fwd rev rand; do
    check "no wait, $order" wrong $order unaware 'doubled<MISTAKE>:0: .* not called cudaGridDependencySynchronize'
done
for order in fwd rev rand; do check "a forgotten reset, $order" wrong $order forgotten relay; done
check "no device" [ "$(CUDA_EMU_CAPABILITY=0 ./plain none | grep -c 'no CUDA-capable device')" -gt 0 ]
check "a small device" [ "$(CUDA_EMU_MEMORY=0 ./plain none | grep -c 'out of memory')" -gt 0 ]

if command -v nvcc >/dev/null; then
    for arch in 75 80 90; do
        check "nvcc, sm_$arch" run nice nvcc -std=c++20 -arch=compute_$arch -ptx -Werror all-warnings \
            -DCLUSTERS=$((arch == 90)) -I"$root" -I"$root/dev" "$source" -o $arch.ptx
    done
    for instruction in mma.sync.aligned.m16n8k16 ldmatrix.sync.aligned.m8n8.x4.trans cp.async.cg cp.async.wait_group; do
        check "$instruction for sm_80" grep -q -F $instruction 80.ptx
    done
    for instruction in cluster_ctarank barrier.cluster.arrive barrier.cluster.wait mapa.u64; do
        check "$instruction for sm_90" grep -q -F $instruction 90.ptx
    done
fi
report emu
