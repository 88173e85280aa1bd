#!/bin/sh
# The CUDA trainers through the emulator (dev/cuda_emu.h) against the CPU reference: whole training steps, dropout on,
# compared tensor by tensor (--dump, dev/compare_tensors), in both precisions, odd sizes, several orders of threads, with
# the sanitizers and with the race check; every kernel in the source must have run.
. "$(dirname "$0")/check.sh"
ulimit -c 0 2>/dev/null
case ${CC:-cc} in *clang*) CXX=${CXX:-clang++} ;; *) CXX=${CXX:-g++} ;; esac
needs gpu "$root/train_gpt_music" "$root/dev/compare_tensors" "$root/data_prep/compose_music"
cpu=$root/build/train_gpt_music_cpu
plain=$root/build/train_gpt_music_emu
sanitized=$root/build/train_gpt_music_emu_sanitized
race=$root/build/train_gpt_music_emu_race
needs gpu "$cpu" "$plain" "$sanitized" "$race"
OMP_WAIT_POLICY=passive
export OMP_WAIT_POLICY
{
    "$root/data_prep/compose_music" --pieces 6 --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >stdout 2>stderr
check "making music" test -s data/test.safetensors

# agree TOLERANCE PRECISION PROGRAM FLAGS...: one step of the reference and of the program
agree() {
    tolerance=$1 precision=$2 program=$3
    shift 3
    "$cpu" --data data --precision "$precision" "$@" --dump cpu >stdout 2>stderr || return 1
    CUDA_EMU_KERNELS=ran.txt "$program" --data data --precision "$precision" "$@" --dump emu >stdout 2>stderr || return 1
    "$root/dev/compare_tensors" compare emu cpu $tolerance --require '*' --quiet >stdout 2>stderr && return
    cp stdout stderr
    return 1
}

# The keys' bias has a gradient that is zero but for rounding, and Adamax makes a whole step of it.
fp32="--rtol 1e-5 --rtol new.=5e-3 --rtol new.layers.*.attn.qkv.bias=1"
# In bf16 the reference rounds the operands of the same products, but not those of attention; what differs by a rounding
# may fall on the other side of fc1's ReLU, and then moves a whole row of its gradient.
bf16="--rtol 5e-2 --rtol grad.layers.*.fc1=1e-1 --rtol new.=1"
small="--layers 2 --width 20 --heads 4 --hidden 28 --rel 9"
paper="--layers 2"
for order in fwd rev rand; do
    CUDA_EMU_ORDER=$order
    export CUDA_EMU_ORDER
    for size in "1 1" "7 3" "65 1"; do
        set -- $size
        check "fp32, small, T $1, B $2, $order" agree "$fp32" fp32 "$plain" $small --window $1 --batch $2
        check "bf16, small, T $1, B $2, $order" agree "$bf16" bf16 "$plain" $small --window $1 --batch $2
    done
    check "fp32, the paper's widths, $order" agree "$fp32" fp32 "$plain" $paper --window 33 --batch 2
    check "bf16, the paper's widths, $order" agree "$bf16" bf16 "$plain" $paper --window 33 --batch 2
done
CUDA_EMU_ORDER=rand:5
check "fp32, a dropout that is no binary fraction" agree "$fp32" fp32 "$plain" $small --window 64 --batch 2 --dropout 0.1
for size in "255 1" "257 1" "300 3"; do
    set -- $size
    check "fp32, T $1, B $2" agree "$fp32" fp32 "$plain" $small --layers 1 --window $1 --batch $2
    check "bf16, T $1, B $2" agree "$bf16" bf16 "$plain" --layers 1 --width 32 --heads 2 --hidden 40 --window $1 --batch $2
done
for build in sanitized race; do
    eval "program=\$$build"
    for precision in fp32 bf16; do
        eval "tolerance=\$$precision"
        check "$precision, $build" agree "$tolerance" $precision "$program" $small --window 19 --batch 2
        check "$precision, $build, heads of 16" agree "$tolerance" $precision "$program" --layers 2 --width 32 \
            --heads 2 --hidden 48 --rel 20 --window 35 --batch 1
    done
done

# Every kernel of the sources ran.
kernels_of() {
    sed 's,//.*,,; s/__launch_bounds__([^)]*)//' "$@" | tr '\n' ' ' | grep -o '__global__ *void *[A-Za-z0-9_]*' | sed 's/.* //' | sort -u
}
kernels_of "$root/train_gpt_music.cu" "$root/dev/matmul.cuh" >kernels.txt
sed 's/<.*//' ran.txt | sort -u >names.txt
comm -23 kernels.txt names.txt >stderr
check "every kernel ran" test ! -s stderr

# The same seed, the same bytes: a run of its own, and one on another number of threads and another order.
run="--data data $small --window 24 --batch 2 --steps 20 --epoch-size 0.1 --eval-stride 2000 --precision fp32"
CUDA_EMU_ORDER=fwd "$plain" $run --out one >stdout 2>stderr
CUDA_EMU_ORDER=rand:9 OMP_NUM_THREADS=3 "$plain" $run --out two >stdout 2>stderr
check "20 steps end with the same bytes" cmp one/model.safetensors two/model.safetensors
"$cpu" $run --out three >stdout 2>stderr
loss() { sed -n '2s/^[^,]*,[^,]*,\([^,]*\),.*/\1/p' $1/log.csv; }
check "20 steps by themselves: loss $(loss one), reference $(loss three)" awk -v a="$(loss one)" -v b="$(loss three)" \
    'BEGIN { exit !(a > 0 && (a - b) * (a - b) < 25e-6) }'
report gpu
