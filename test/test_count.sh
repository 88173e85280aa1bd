#!/bin/sh
# dev/emu/cuda_emu_count.cpp: the counts of small kernels, test_count.cu, are those that one can tell by looking at
# them, in any order of threads; and a training step of each model, small, is counted whole, with counts that can be.
# What dev/tools/count.sh makes of counts: those of more layers, what a listing of machine code says, a time.
. "$(dirname "$0")/check.sh"
needs count "$root/build/test/test_count_emu_count" "$root/build/train_gpt_music_emu_count" \
    "$root/build/train_lstm_music_emu_count" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"

# kernel, times, on the path, blocks, threads; loads: requests, sectors, fewest, once; stores: the same; shared memory:
# requests, wavefronts, fewest; products; barriers: blocks, warps, grids
cat >expected <<'END'
adjacent     2 0 1 32   2  8  8  8   2  8  8  8    0  0  0  0   0  0 0
reversed     1 0 1 32   1  4  4  4   1  4  4  4    0  0  0  0   0  0 0
shifted      1 0 1 32   1  5  4  5   1  4  4  4    0  0  0  0   0  0 0
strided      1 0 1 32   1 32  4 32   1 32  4 32    0  0  0  0   0  0 0
broadcast    1 0 1 32   1  1  1  1   1  4  4  4    0  0  0  0   0  0 0
fours        1 0 1 32   1 16 16 16   1 16 16 16    0  0  0  0   0  0 0
made         1 0 1 32   0  0  0  0   2 24 24 24    0  0  0  0   0  0 0
shorts       1 0 1 32   1  2  2  2   1  2  2  2    0  0  0  0   0  0 0
again        1 0 2 32   6 24 24  4   2  8  8  8    0  0  0  0   0  0 0
rewritten    1 0 1 32   1  4  4  0   2  8  8  4    0  0  0  0   0  0 0
added        1 0 2 32   0  0  0  0   2  2  2  1    0  0  0  0   0  0 0
branches     1 0 1 32   2  4  4  4   2  4  4  4    0  0  0  0   0  0 0
trips        1 0 1 32   4 10 10 10   1  4  4  4    0  0  0  0   0  0 0
every<1>     1 0 1 32   0  0  0  0   1  4  4  4    2  2  2  0   0  1 0
every<2>     1 0 1 32   0  0  0  0   1  4  4  4    2  4  2  0   0  1 0
every<32>    1 0 1 32   0  0  0  0   1  4  4  4    2 64  2  0   0  1 0
every<33>    1 0 1 32   0  0  0  0   1  4  4  4    2  2  2  0   0  1 0
one_word     1 0 1 32   0  0  0  0   1  4  4  4    3  3  3  0   0  1 0
wide         1 0 1 32   0  0  0  0   1  4  4  4    2  6  6  0   0  1 0
few_words    1 0 1 32   0  0  0  0   1  4  4  4    3  7  7  0   0  1 0
rows<64>     1 0 1 32   1  8  8  8   1  4  4  4    2  5  5  0   0  1 0
rows<80>     1 0 1 32   1  8  8  8   1  4  4  4    2  9  5  0   0  1 0
matrices<128> 1 0 1 32  0  0  0  0   1  4  4  4   33 64 36  3   0  1 0
matrices<144> 1 0 1 32  0  0  0  0   1  4  4  4   37 40 40  3   0  1 0
barriers     1 0 2 64   0  0  0  0   2  2  2  1    8  8  8  0  12 12 0
grids        1 0 2 32   2  2  2  0   4 64 48 32    0  0  0  0   0  0 2
END
cat >expected_graph <<'END'
on_both      2 2 1 32   0  0  0  0   2  8  8  8    0  0  0  0   0  0 0
on_side      1 0 1 32   0  0  0  0   1  4  4  4    0  0  0  0   0  0 0
on_main      2 2 1 32   0  0  0  0   2  8  8  8    0  0  0  0   0  0 0
END
# counted FILE NAMES: what was counted of the kernels in NAMES, in the form above
counted() {
    awk 'NR == FNR { wanted[$1]; next }
        $1 == "kernel" && $2 in wanted { $1 = $7 = ""; $0 = $0; $1 = $1; print }' "$2" "$1"
}
same() { awk '{ $1 = $1; print }' "$1" | sort >wanted && sort "$2" | diff wanted - >stderr 2>&1; }
for order in fwd rev rand; do
    for graph in '' graph; do
        rm -f counts
        CUDA_EMU_ORDER=$order CUDA_EMU_COUNTS=counts "$root/build/test/test_count_emu_count" $graph >stdout 2>stderr
        counted counts "expected${graph:+_graph}" >lines
        check "counts${graph:+ of a graph}, $order" same "expected${graph:+_graph}" lines
        test -z "$graph" || check "a graph's path, $order" [ "$(head -n 1 counts)" = 'graph 6 5 0' ]
    done
done
line=$(grep -n 'cp_async(s' "$root/test/test_count.cu" | sed 's/:.*//')
CUDA_EMU_COUNTS=counts "$root/build/test/test_count_emu_count"
check "where banks conflict" [ "$(grep -c "^conflict rows<80> .*test_count.cu:$line  *8 *4\$" counts)" = 1 ]
check "nowhere else" [ "$(grep ^conflict counts | grep -c -v ' \(every<[23]2*>\|rows<80>\|matrices<128>\) ')" = 0 ]
check "they are printed" [ "$("$root/build/test/test_count_emu_count" | grep -c ^kernel)" = 27 ]

# A step of each model: the kernels of its graph, and no count below the least that there can be
{
    "$root/data_prep/compose_music" --pieces 6 --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >stdout 2>stderr
sound() {
    awk '$1 == "kernel" { n++
            for (i = 8; i <= 12; i += 4)
                if ($(i + 1) < $(i + 2) || $(i + 1) < $(i + 3) || $(i + 1) < $i) bad = bad "\n" $0
            if ($17 < $18 || $18 < $16 || $4 > $3 || $8 + $12 + $16 == 0) bad = bad "\n" $0
            products += $19
            launches += $3 }
        $1 == "graph" { nodes = $2; path = $3 }
        END { if (bad != "" || !products || path > nodes || launches > nodes || launches < nodes - 4 || n < 20) {
            print "nodes " nodes ", path " path ", launches " launches ", wrong:" bad; exit 1 } }' counts >stderr
}
step() {
    trainer=$root/build/train_$1_music_emu_count
    shift
    rm -f counts ran.txt
    CUDA_EMU_COUNTS=counts CUDA_EMU_KERNELS=ran.txt CUDA_EMU_MULTIPROCESSORS=8 \
        "$trainer" --data data --precision bf16 --batch 2 "$@" --dump step >stdout 2>stderr
}
# all_but FILE: every kernel that ran was counted but these, which make a model's first weights, outside of the graph
all_but() {
    ran ran.txt >all
    sed -n 's/^kernel \([a-z0-9_]*\).*/\1/p' counts | sort -u | comm -3 - all | diff "$1" - >stderr 2>&1
}
printf '\tto_operands_kernel\n' >outside
for model in gpt lstm; do
    case $model in
    gpt) sizes='--layers 2 --width 32 --heads 2 --hidden 40 --rel 20 --window 40' ;;
    lstm) sizes='--embed 8 --width 32 --window 12' ;;
    esac
    # shellcheck disable=SC2086 # flags are split into words
    check "a step" step $model $sizes
    check "its counts" sound
    check "its kernels" all_but outside
done
model=
# A step of 3 layers is what count.sh says of it from 1 and 2 layers, but for kernels of all parameters, whose last warp
# is not full.
sizes='--width 32 --heads 2 --hidden 40 --rel 20 --window 40'
# shellcheck disable=SC2086
CUDA_EMU_KERNELS=/dev/null step gpt --layers 3 $sizes
# shellcheck disable=SC2086
DATA=$scratch/data COUNTS=$scratch/continued "$root/dev/tools/count.sh" gpt --batch 2 --layers 3 $sizes >table 2>stderr
words() { awk '!/adamax|check_finite/ { $1 = $1; print }' "$1" | sort; }
words counts >wanted
words continued | diff wanted - >stderr
check "3 layers are continued from 1 and 2" test ! -s stderr -a -s wanted
check "the table names the graph" \
    grep -q '^a graph of [0-9]* nodes, [0-9]* on the longest path, [0-9]* of them behind a programmatic edge$' table

# A kernel with three instructions outside of a loop of four, in which are a product and a wide load. The branch to
# itself behind its end is none of them.
cat >listing <<'END'
ptxas info    : Compiling entry function 'void made<__nv_bfloat16, true>(int)' for 'sm_90'
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem
FUNCTION void made<__nv_bfloat16, true>(int)
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R12, R2, R4 ;
        /*0030*/                   LDS R4, [R5] ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/               @P0 EXIT ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2) ;
END
echo 'graph 4 3 1
kernel made<bf16,true> 1 1 264 256 39936 21120 2000000 1000000 1000000 0 0 0 0 0 0 0 21120 0 0 0' >counts
awk -v arch=90 -f "$root/dev/tools/sass.awk" counts listing >sass
check "a listing" [ "$(awk '{ $1 = $1; print }' sass)" = 'made<bf16,true> 256 39936 96 1024 2 0.1 3/0/0/0 4/1/1/1' ]
# 2112 warps, each half of 3 instructions and 10 rounds of 4: 87648, by 528 schedulers. 64 MB
awk -v l2=1e12 -v node=1e-6 -v early=5e-7 -v overlap=0 -f "$root/dev/tools/cost.awk" sass counts >cost
check "a time" grep -q '^made<bf16,true> *1 *264 *2 *0.09 *0.0 *64.0 *64.0 L2$' cost
check "a step" [ "$(tail -n 1 cost)" = \
    "path of kernels 64 us, beside it 0 us, 2 nodes of the path x 1.0 us and 1 x 0.5 us = 2 us; a step 0.066 ms" ]
awk -v ipc=.1 -v clock=1e6 -v l2_sm=1e9 -v overlap=0 -f "$root/dev/tools/cost.awk" sass counts >cost
check "instructions" grep -q ' 1660.0 issue$' cost
report count
