#!/bin/sh
# A CUDA trainer through the emulator (dev/emu/cuda_emu.h) against its CPU reference: whole training steps, dropout on, compared
# tensor by tensor (--dump, dev/tools/compare_tensors), in both precisions, odd sizes, several orders of threads, with the
# sanitizers and with the race check; every kernel in the source must have run.
#   test_gpu.sh gpt|lstm [all]     all: every combination of sizes, every architecture
. "$(dirname "$0")/check.sh"
ulimit -c 0 2>/dev/null
model=$1 every=$2
needs "gpu, $model" "$root/train_${model}_music" "$root/dev/tools/compare_tensors" "$root/data_prep/compose_music"
cpu=$root/build/train_${model}_music_cpu
plain=$root/build/train_${model}_music_emu
sanitized=$root/build/train_${model}_music_emu_sanitized
race=$root/build/train_${model}_music_emu_race
needs "gpu, $model" "$cpu" "$plain" "$sanitized" "$race"
OMP_WAIT_POLICY=passive
export OMP_WAIT_POLICY
{
    "$root/data_prep/compose_music" --pieces 6 --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >stdout 2>stderr
check "making music" test -s data/test.safetensors

# Tolerances of ||a - b|| / ||b||, but for what ReLUs add that are open in one program only, and sizes that take the several
# paths through a model. The keys' bias has a gradient that is zero but for rounding, and Adamax makes a whole step of it.
# In bf16 the reference rounds the operands of the same products, but not those of attention. With T = 1 attention's softmax
# has one key, and the scores' gradient is zero but for rounding.
case $model in
    gpt) # two layers: the published widths; nothing round; heads of 16 on tensor cores, but LayerNorm by itself; LayerNorm
        # fused with its product, but plain attention
        fp32="--rtol 1e-5 --rtol new.=5e-3 --rtol new.layers.*.attn.qkv.bias=1"
        bf16="--rtol 5e-2 --rtol new.=1" relus="--relu act.layers.*.fc1"
        published="--layers 2"
        odd="--layers 2 --width 20 --heads 4 --hidden 28 --rel 9"
        heads16="--layers 2 --width 32 --heads 2 --hidden 40 --rel 20"
        fused="--layers 2 --width 136 --heads 8 --hidden 72 --rel 31"
        all_sizes="published odd heads16 fused" all_T="1 7 255 257 300" all_B="1 3"
        ;;
    lstm) # the published widths; nothing round; the recurrence in one launch; more layers than that has
        fp32="--rtol 1e-5 --rtol new.=5e-3"
        bf16="--rtol 5e-2 --rtol new.=1" relus="--relu act.head.3 --relu act.head.7"
        published=""
        odd="--embed 12 --width 20"
        fast32="--embed 12 --width 32"
        three="--embed 8 --width 40 --layers 3"
        all_sizes="published odd fast32 three" all_T="1 7 257" all_B="1 3 9"
        CUDA_EMU_MULTIPROCESSORS=8 # enough for the published width in one launch
        export CUDA_EMU_MULTIPROCESSORS
        ;;
esac

# agree PRECISION PROGRAM FLAGS...: one step of the reference and of the program
agree() {
    precision=$1 program=$2
    shift 2
    eval "tolerance=\$$precision"
    case " $* " in *' --window 1 '*) tolerance="$tolerance --rtol grad.layers.*.attn.rel=1e-3" ;; esac
    "$cpu" --data data --precision "$precision" "$@" --dump cpu >stdout 2>stderr || return 1
    CUDA_EMU_KERNELS=ran.${program##*_} "$program" --data data --precision "$precision" "$@" --dump emu >stdout 2>stderr || return 1
    "$root/dev/tools/compare_tensors" compare emu cpu $tolerance $relus --require '*' --quiet >stdout 2>stderr && return
    cp stdout stderr
    return 1
}

# case_of T B SIZES PRECISION ORDER
case_of() {
    eval "flags=\$$3"
    CUDA_EMU_ORDER=$5
    export CUDA_EMU_ORDER
    check "$4, $3, T $1, B $2, $5" agree "$4" "$plain" $flags --window "$1" --batch "$2"
}
cases() { while read -r row; do case_of $row; done; } # of lines of its arguments
set -f # patterns in the tolerances are not files
if [ "$every" = all ]; then
    for t in $all_T; do
        for b in $all_B; do
            for sizes in $all_sizes; do
                for precision in fp32 bf16; do
                    for order in fwd rev rand; do case_of $t $b $sizes $precision $order; done
                done
            done
        done
    done
elif [ $model = gpt ]; then # any two of the values above meet in one of these
    cases <<END
1 1 heads16 fp32 fwd
1 1 odd fp32 rev
1 1 published bf16 fwd
1 3 fused bf16 rand
7 1 fused fp32 fwd
7 1 heads16 fp32 rand
7 1 odd bf16 rev
7 3 published fp32 rev
255 1 fused bf16 rev
255 1 odd fp32 rand
255 1 published bf16 fwd
255 3 heads16 bf16 rev
257 1 fused fp32 rev
257 1 odd bf16 rand
257 1 published bf16 rand
257 3 heads16 bf16 fwd
300 1 fused fp32 fwd
300 1 heads16 fp32 rev
300 1 published bf16 rand
300 3 odd fp32 fwd
END
else # any two, but T = 257 in the published width
    cases <<END
1 1 fast32 fp32 fwd
1 1 published bf16 rev
1 3 odd fp32 fwd
1 3 three bf16 rev
1 9 fast32 fp32 fwd
1 9 published bf16 rand
7 1 fast32 bf16 rev
7 1 odd bf16 rand
7 3 published fp32 fwd
7 3 published bf16 fwd
7 9 three fp32 rand
257 1 three bf16 fwd
257 3 fast32 bf16 rand
257 9 odd fp32 rev
END
fi
CUDA_EMU_ORDER=rand:5
check "a dropout that is no binary fraction" agree fp32 "$plain" $odd --window 64 --batch 2 --dropout 0.1
if [ $model = gpt ]; then
    check "one layer" agree bf16 "$plain" $heads16 --layers 1 --window 40 --batch 2
    check "five layers" agree fp32 "$plain" $heads16 --layers 5 --window 40 --batch 2
    check "so many rows that blocks have 64" agree bf16 "$plain" --layers 1 --width 136 --heads 1 --hidden 8 --window 2 --batch 4100
    more="$heads16 --layers 4" third=$fused
else
    check "one layer" agree bf16 "$plain" $fast32 --layers 1 --window 40 --batch 2
    check "several sets of blocks" agree bf16 "$plain" $fast32 --window 9 --batch 33
    more=$fast32 third=$three
fi
for build in sanitized race; do
    eval "program=\$$build"
    for precision in fp32 bf16; do
        check "$precision, $build" agree $precision "$program" $odd --window 19 --batch 2
        check "$precision, $build, $more" agree $precision "$program" $more --window 35 --batch 1
        check "$precision, $build, $third" agree $precision "$program" $third --window 19 --batch 1
    done
done

# Every kernel of the sources ran, in every build.
kernels_of "$root/train_${model}_music.cu" "$root/dev/cuda/matmul.cuh" "$root/dev/cuda/device_model.cuh" >kernels.txt
for build in emu sanitized race; do
    ran ran.$build >names.txt
    comm -23 kernels.txt names.txt >stderr
    check "every kernel ran, $build" test ! -s stderr
done
check "the source has them" test "$(wc -l <kernels.txt)" -gt 15

# The same seed, the same bytes: a run of its own, and one on another number of threads and another order.
for precision in fp32 bf16; do
    run="--data data $more --window 24 --batch 2 --steps 20 --epoch-size 0.1 --eval-stride 2000 --precision $precision"
    CUDA_EMU_ORDER=fwd "$plain" $run --out one >stdout 2>stderr
    CUDA_EMU_ORDER=rand:9 OMP_NUM_THREADS=3 "$plain" $run --out two >stdout 2>stderr
    check "$precision: 20 steps end with the same bytes" cmp one/model.safetensors two/model.safetensors
done
run="--data data $odd --window 24 --batch 2 --steps 20 --epoch-size 0.1 --eval-stride 2000 --precision fp32"
"$plain" $run --out one >stdout 2>stderr
"$cpu" $run --out three >stdout 2>stderr
loss() { sed -n '2s/^[^,]*,[^,]*,\([^,]*\),.*/\1/p' $1/log.csv; }
check "20 steps by themselves: loss $(loss one), reference $(loss three)" awk -v a="$(loss one)" -v b="$(loss three)" \
    'BEGIN { exit !(a > 0 && (a - b) * (a - b) < 25e-6) }'

# says PATTERN COMMAND...: it fails with one sentence
says() {
    pattern=$1
    shift
    "$@" >stdout 2>stderr
    test $? -eq 1 && grep -q -- "$pattern" stderr
}
runs() { env "$@" >stdout 2>stderr; }
step="--data data $odd --window 64"
check "no GPU" says 'no GPU that CUDA can use.*make DEVICE=cpu train_'$model'_music' env CUDA_EMU_CAPABILITY=0 "$plain" $step --dump emu
check "bf16 on an old GPU" says 'compute capability 7.5, and bf16 needs 8.0; take --precision fp32' \
    env CUDA_EMU_CAPABILITY=7.5 "$plain" $step --precision bf16 --dump emu
check "a GPU that it was not built for" says 'not built for .* 7.0; build it on this machine' \
    env CUDA_EMU_CAPABILITY=7.0 "$plain" $step --precision fp32 --dump emu
check "an old GPU" runs CUDA_EMU_CAPABILITY=7.5 "$plain" $step --precision fp32 --batch 1 --dump emu
check "too large a batch" says 'batch 3000 takes .* GB .*; --batch [0-9]* would fit' env CUDA_EMU_MEMORY=8 "$plain" $step --batch 3000 --dump emu
fits=$(sed -n 's/.*--batch \([0-9]*\) would fit.*/\1/p' stderr)
check "--batch ${fits:=0} fits, as it said" runs CUDA_EMU_MEMORY=8 "$plain" $step --batch "$fits" --dump emu
check "and one more does not" says 'would fit' env CUDA_EMU_MEMORY=8 "$plain" $step --batch $((fits + 1)) --dump emu
check "too large a model" says 'even with --batch 1' env CUDA_EMU_MEMORY=8 "$plain" --data data --window 64 --dump emu

# nvcc takes the source for every architecture; the hot kernels keep everything in registers and use the tensor cores.
if command -v nvcc >/dev/null; then
    architectures="75 80"
    test "$every" = all && architectures="75 80 86 89 90 100 120"
    for arch in $architectures; do
        nice nvcc -O3 -std=c++20 -arch=sm_$arch -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas -Werror all-warnings -Xptxas -v \
            -keep -keep-dir . -I"$root/dev" -cubin -o $arch.cubin "$root/train_${model}_music.cu" >stdout 2>report
        check "nvcc, sm_$arch" test -s $arch.cubin
        grep 'spill stores' report | grep -v ' 0 bytes spill stores, 0 bytes spill loads' >stderr
        check "no register spills, sm_$arch" test ! -s stderr -a "$(grep -c 'spill stores' report)" -gt 30
    done
    check "products are mma.sync" test "$(grep -c 'mma.sync.aligned.m16n8k16.row.col.f32.bf16' train_${model}_music.ptx)" -gt 100
else
    echo "nvcc is not here: nothing was compiled for a GPU"
fi
report "gpu, $model"
