#!/bin/sh
# A CUDA trainer through the emulator (dev/emu/cuda_emu.h) against its CPU reference: whole training steps, dropout on,
# compared tensor by tensor (--dump, dev/tools/compare_tensors), in both precisions, odd sizes, several orders of
# threads, with the sanitizers and with the race check; every kernel in the source must have run.
#   test_gpu.sh gpt|lstm [all]     all: every combination of sizes, every architecture
# shellcheck disable=SC2046,SC2086 # flags are split into words
. "$(dirname "$0")/check.sh"
model=$1 every=$2
cpu=$root/build/train_${model}_music_cpu
plain=$root/build/train_${model}_music_emu
needs "gpu, $model" "$cpu" "$plain" "${plain}_sanitized" "${plain}_race"
needs "gpu, $model" "$root/dev/tools/compare_tensors" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"
OMP_WAIT_POLICY=passive
export OMP_WAIT_POLICY
test "$model" = gpt || export CUDA_EMU_MULTIPROCESSORS=64 # enough for the published width in one launch
{
    "$root/data_prep/compose_music" --pieces 6 --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >stdout 2>stderr
check "making music" test -s data/test.safetensors

# flags_of SIZES: sizes that take the several paths through a model
flags_of() {
    case $model,$1 in
    gpt,published) echo "--layers 2" ;;
    gpt,odd) echo "--layers 2 --width 20 --heads 4 --hidden 28 --rel 9" ;;
    gpt,heads16) echo "--layers 2 --width 32 --heads 2 --hidden 40 --rel 20" ;; # attention on tensor cores
    gpt,fused) echo "--layers 2 --heads 8 --hidden 72 --rel 31" ;; # LayerNorm fused with its product, other heads
    lstm,published) ;;
    lstm,odd) echo "--embed 12 --width 20" ;;
    lstm,fast32) echo "--embed 12 --width 32" ;;          # the recurrence in one launch
    lstm,three) echo "--embed 8 --width 40 --layers 3" ;; # more layers than that takes
    esac
}
odd=$(flags_of odd)
clusters="--layers 2 --window 64 --batch 1" # what lies between two attentions as one kernel, in bf16
export CUDA_EMU_CLUSTERS=1

# tolerances PRECISION FLAGS...: of ||a - b|| / ||b||, but for what ReLUs add that are open in one program only. In bf16
# the reference rounds the operands of the same products, but not those of attention. The keys' bias has a gradient that
# is zero but for rounding, and Adamax makes a whole step of it. With T = 1 attention's softmax has one key, and the
# gradients of the scores and of what they are made of are zero but for rounding.
tolerances() {
    case $1 in
    fp32) echo "--rtol 1e-5 --rtol new.=5e-3" ;;
    bf16) echo "--rtol 5e-2 --rtol new.=1" ;;
    esac
    case $model,$1 in
    gpt,fp32) echo "--rtol new.layers.*.attn.qkv.bias=1 --relu act.layers.*.fc1" ;;
    gpt,bf16) echo "--relu act.layers.*.fc1" ;;
    lstm,*) echo "--relu act.head.3 --relu act.head.7" ;;
    esac
    case " $* " in *' --window 1 '*) echo "--rtol grad.layers.*.attn.rel=1e-3" ;; esac
    case " $* " in ' fp32 '*' --window 1 '*) echo "--rtol new.layers.*.attn.qkv.weight=1e-2" ;; esac
}

# agree PRECISION PROGRAM FLAGS...: one step of the reference and of the program
agree() {
    precision=$1 program=$2
    shift 2
    "$cpu" --data data --precision "$precision" "$@" --dump cpu >stdout 2>stderr || return 1
    CUDA_EMU_KERNELS=ran.${program##*_} \
        "$program" --data data --precision "$precision" "$@" --dump emu >stdout 2>stderr || return 1
    "$root/dev/tools/compare_tensors" compare emu cpu $(tolerances "$precision" "$@") --require '*' --quiet \
        >stdout 2>stderr && return
    cp stdout stderr
    return 1
}

# learns PROGRAM FLAGS...: the losses of a short run, of training and of the test, are those of the reference
learns() {
    program=$1
    shift
    rm -rf one two
    "$cpu" --data data "$@" --out one >stdout 2>stderr || return 1
    CUDA_EMU_KERNELS=ran.${program##*_} "$program" --data data "$@" --out two >stdout 2>stderr || return 1
    paste -d , one/log.csv two/log.csv >stderr
    awk -F , 'NR == 2 { near = ($3 - $10)^2 < 25e-6 && ($4 - $11)^2 < 25e-6 } END { exit !near || NR != 2 }' stderr
}

# cases: of lines T B SIZES PRECISION ORDER, a step each, with clusters but in order rev
cases() {
    while read -r t b sizes precision order; do
        CUDA_EMU_CLUSTERS=$(test "$order" = rev; echo $?)
        export CUDA_EMU_ORDER="$order" CUDA_EMU_CLUSTERS
        check "$precision, $sizes, T $t, B $b, $order" \
            agree "$precision" "$plain" $(flags_of "$sizes") --window "$t" --batch "$b"
    done
}
set -f # patterns in the tolerances are not files
if [ "$every" = all ]; then
    case $model in
    gpt) all_sizes="published odd heads16 fused" all_T="1 7 255 257 300" all_B="1 3" ;;
    lstm) all_sizes="published odd fast32 three" all_T="1 7 257" all_B="1 3 9" ;;
    esac
    for t in $all_T; do
        for b in $all_B; do
            for sizes in $all_sizes; do
                for order in fwd rev rand; do
                    echo $t $b $sizes fp32 $order
                    echo $t $b $sizes bf16 $order
                done
            done
        done
    done >cases.txt
elif [ "$model" = gpt ]; then # any two of the values in a row's columns meet in one of these
    cat >cases.txt <<END
1 1 fused fp32 rev
1 1 heads16 fp32 fwd
1 1 published bf16 rand
1 3 odd bf16 rev
7 1 odd fp32 rand
7 3 fused bf16 fwd
7 3 heads16 bf16 rand
7 3 published fp32 rev
257 1 fused fp32 rand
257 1 odd bf16 fwd
257 1 published bf16 fwd
250 3 heads16 bf16 rand
257 3 heads16 bf16 rev
END
else # any two, but T = 257 in the published width
    cat >cases.txt <<END
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
cases <cases.txt
export CUDA_EMU_ORDER=rand:5 CUDA_EMU_CLUSTERS=1
check "transposed windows" agree fp32 "$plain" $odd --window 64 --batch 3 --transpose -5,6
check "a dropout that is no binary fraction" agree fp32 "$plain" $odd --window 64 --batch 2 --dropout 0.1
if [ "$model" = gpt ]; then
    few="--window 19 --batch 2" more="$(flags_of heads16) --layers 4 --window 35 --batch 1"
    third="$(flags_of fused) --window 19 --batch 1"
    check "one layer" agree bf16 "$plain" $more --layers 1 --batch 2
    check "five layers" agree fp32 "$plain" $more --layers 5 --batch 2
    check "between attentions in clusters" agree bf16 "$plain" $clusters --window 32 --batch 6
    check "the same, and all that follows a step" learns "$plain" $clusters --precision bf16 --steps 1 \
        --eval-stride 99999
    check "so many rows that blocks have 64" agree bf16 "$plain" --layers 1 --heads 1 --hidden 8 \
        --window 32 --batch 256
else
    few="--window 7 --batch 3" more="$(flags_of fast32) --window 9 --batch 4"
    third="$(flags_of three) --window 5 --batch 2"
    check "one layer" agree bf16 "$plain" $more --layers 1
    check "several sets of blocks" agree bf16 "$plain" $more --batch 33
fi
for build in sanitized race; do
    test "$model" = lstm || # a head too long for the tensor cores' kernels
        check "bf16, $build, window 257" agree bf16 "${plain}_$build" $(flags_of heads16) --layers 1 \
            --window 257 --batch 1
    if [ "$model" = gpt ]; then
        check "bf16, $build, $clusters" agree bf16 "${plain}_$build" $clusters
    else
        CUDA_EMU_CLUSTERS=0
        check "bf16, $build, without clusters" agree bf16 "${plain}_$build" $more
        CUDA_EMU_CLUSTERS=1
    fi
    for precision in fp32 bf16; do
        for flags in "$odd $few" "$more" "$third"; do
            check "$precision, $build, $flags" agree $precision "${plain}_$build" $flags
        done
        check "$precision, $build, all that follows a step" learns "${plain}_$build" $few --precision $precision \
            --average 0.5 --weight-decay 3 --steps 1 --eval-stride 99999 $odd
    done
done

short="$odd --window 24 --batch 2 --eval-stride 2000 --precision fp32"
check "20 steps by themselves" learns "$plain" $short --steps 20 --epoch-size 0.1
check "an epoch of another recipe" learns "$plain" $short --epoch-size 0.001 --epochs 1 --transpose -5,6 \
    --average 0.9 --weight-decay 3 --warmup 5

# Every kernel of the sources ran, in every build.
between=/dev/null
test "$model" = lstm || between=$root/dev/cuda/between_attentions.cuh
kernels_of "$root/train_${model}_music.cu" "$root/dev/cuda/matmul.cuh" "$root/dev/cuda/device_model.cuh" "$between" \
    >kernels.txt
for build in emu sanitized race; do
    ran ran.$build >names.txt
    comm -23 kernels.txt names.txt >stderr
    check "every kernel ran, $build" test ! -s stderr
done
check "the source has them" test "$(wc -l <kernels.txt)" -gt 15

steps=7
test "$every" != all || steps=20
# The same seed, the same bytes: a run of its own, and one on another number of threads and another order.
set -- "fp32 $more" "bf16 $more"
test "$model" = lstm || set -- "$@" "bf16 $clusters"
for sizes; do
    run="--data data --steps $steps --epoch-size 0.1 --eval-stride 2000 --precision $sizes"
    CUDA_EMU_ORDER=fwd "$plain" $run --out one >stdout 2>stderr
    CUDA_EMU_ORDER=rand:9 OMP_NUM_THREADS=3 "$plain" $run --out two >stdout 2>stderr
    check "$sizes: $steps steps end with the same bytes" cmp one/model.safetensors two/model.safetensors
done

# says PATTERN COMMAND...: it fails with one sentence
says() {
    pattern=$1
    shift
    "$@" >stdout 2>stderr
    test $? -eq 1 && grep -q -- "$pattern" stderr
}
runs() { env "$@" >stdout 2>stderr; }
step="--data data $odd --window 64"
memory=CUDA_EMU_MEMORY=3 # MiB
check "no GPU" says "no GPU that CUDA can use.*make DEVICE=cpu train_${model}_music" \
    env CUDA_EMU_CAPABILITY=0 "$plain" $step --dump emu
check "bf16 on an old GPU" says 'compute capability 7.5, and bf16 needs 8.0; take --precision fp32' \
    env CUDA_EMU_CAPABILITY=7.5 "$plain" $step --precision bf16 --dump emu
check "a GPU that it was not built for" says 'not built for .* 7.0; build it on this machine' \
    env CUDA_EMU_CAPABILITY=7.0 "$plain" $step --precision fp32 --dump emu
test "$model" = gpt || check "a GPU without clusters" runs CUDA_EMU_CAPABILITY=8.0 "$plain" --data data $more \
    --precision bf16 --dump emu
check "an old GPU" runs CUDA_EMU_CAPABILITY=7.5 "$plain" $step --precision fp32 --batch 1 --dump emu
test "$model" = lstm || check "a GPU without clusters" runs CUDA_EMU_CAPABILITY=8.0 "$plain" --data data $clusters \
    --precision bf16 --dump emu
check "too large a batch" says 'batch 3000 takes .* GB .*; --batch [0-9]* would fit' \
    env $memory "$plain" $step --batch 3000 --dump emu
fits=$(sed -n 's/.*--batch \([0-9]*\) would fit.*/\1/p' stderr)
check "--batch ${fits:=0} fits, as it said" runs $memory "$plain" $step --batch "$fits" --dump emu
check "and one more does not" says 'would fit' env $memory "$plain" $step --batch $((fits + 1)) --dump emu
check "too large a model" says 'even with --batch 1' env $memory "$plain" --data data --window 64 --dump emu

# The README's example, on the starter corpus.
if test "$model,$every" = gpt,all; then
    {
        "$root/data_prep/compose_music" --out starter &&
            "$root/data_prep/prepare_music" --out whole starter/train starter/test
    } >stdout 2>stderr
    example=$(sed -n '/ DEVICE=emu train_gpt_music/{n;s/^ *[^ ]* //p;}' "$root/README.md")
    check "it ends in a minute: $example" runs timeout 60 "$plain" --data whole $example
    check "the README says what torch_music.py needs" grep -q 'pip install torch safetensors numpy' "$root/README.md"
fi

# nvcc takes the source for every architecture; the hot kernels keep everything in registers and use the tensor cores.
if command -v nvcc >/dev/null; then
    case $model,$every in
    *,all) architectures="75 80 86 89 90 100 120" ;;
    gpt,*) architectures=80 ;;
    lstm,*) architectures=75 ;;
    esac
    for arch in $architectures; do
        report=$root/build/nvcc/train_${model}_music.$arch
        clusters=
        test "$arch" -lt 90 || clusters=CLUSTERS=1
        check "nvcc, sm_$arch" runs make -s -C "$root" $clusters "build/nvcc/train_${model}_music.$arch"
        grep 'spill stores' "$report" | grep -v ' 0 bytes spill stores, 0 bytes spill loads' >stderr
        waits=$(grep -c 'griddepcontrol.wait' "$report.files/train_${model}_music.ptx")
        check "kernels wait for each other only from sm_90 on, sm_$arch" \
            test "$arch" -lt 90 -a "$waits" -eq 0 -o "$arch" -ge 90 -a "$waits" -gt 30
        check "no register spills, sm_$arch" test ! -s stderr -a "$(grep -c 'spill stores' "$report")" -gt 30
    done
    products=$(grep -c 'mma.sync.aligned.m16n8k16.row.col.f32.bf16' "$report.files/train_${model}_music.ptx")
    check "products are mma.sync" test "$products" -gt 100 -o "$arch" -lt 80
else
    echo "nvcc is not here: nothing was compiled for a GPU"
fi
report "gpu, $model"
