#!/bin/sh
# make count: what a GPU would do in one training step, counted in the emulator (dev/emu/cuda_emu_count.cpp), where nvcc
# is also what it made of each kernel (sass.awk), and from both a model of the step's time (cost.awk).
#   dev/tools/count.sh gpt|lstm [FLAGS...]     FLAGS: of the trainer [the published sizes, batch 8, bf16]
# Tokens come from the folder DATA, or from the starter corpus. COUNTS=FILE keeps what was counted, for cost.awk. After
# make CLUSTERS=1 count (dev/cuda/cluster.cuh) the step is that of a GPU with clusters.
# NVDISASM=PROGRAM names a disassembler; else it is looked for in PATH and in Python's triton package. The Transformer
# of L layers is run with 2 and with 3 layers, as its layers are alike but for the first and the last (with 1 layer the
# longest path is of another kind): counts(L) = counts(2) + (L - 2) (counts(3) - counts(2)), kernel by kernel.
# shellcheck disable=SC2086 # flags are split into words
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
model=$1
case $model in
gpt | lstm) shift ;;
*)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
scratch=$(mktemp -d "${TMPDIR:-/tmp}/count.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
tools=$root/dev/tools trainer=$root/build/train_${model}_music_emu_count
layers=$(echo " $*" | sed -n 's/.* --layers[ =]\([0-9]*\).*/\1/p')
flags=$*
test "$model" = lstm || flags=$(echo " $*" | sed 's/ --layers[ =][0-9]*//')
cd "$scratch" || exit 1
[ -n "$DATA" ] || {
    "$root/data_prep/compose_music" --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >log 2>&1 || { cat log >&2; exit 1; }

# step NAME FLAGS...: the counts of a step, in the file NAME
step() {
    name=$1
    shift
    CUDA_EMU_COUNTS=$name CUDA_EMU_MULTIPROCESSORS=${CUDA_EMU_MULTIPROCESSORS:-132} \
        CUDA_EMU_CLUSTERS=${CLUSTERS:-0} "$trainer" --data "${DATA:-data}" --precision bf16 $flags "$@" --dump step \
        >log 2>&1 || { cat log >&2; exit 1; }
}
if [ "$model" = gpt ]; then
    step two --layers 2
    step three --layers 3
    layers=${layers:-8}
    awk -v L="$layers" -f "$tools/count_layers.awk" two three >counts
    echo "Transformer, $layers layers, ${*:-published sizes}: counted with 2 and with 3 layers, and continued"
else
    step counts
    echo "LSTM, ${*:-published sizes}: its blocks look for each other's numbers as often as the emulator's order has it"
fi
[ -z "$COUNTS" ] || cp counts "$COUNTS"
awk -f "$tools/count.awk" counts

nvdisasm=$(command -v "${NVDISASM:-nvdisasm}" ||
    python3 -c 'import triton; print(triton.__path__[0] + "/backends/nvidia/bin/nvdisasm")' 2>/dev/null)
for arch in 80 90; do
    built=$root/build/nvcc/train_${model}_music.$arch
    if [ ! -x "$nvdisasm" ] || [ ! -e "$built" ]; then
        echo "no table of sm_$arch, and no times: there is no nvcc here, or no nvdisasm (NVDISASM=PROGRAM)"
        continue
    fi
    { cat "$built"; "$nvdisasm" -c "$built.files/cubin"; } | sed 's/^\.text\.\(.*\):$/FUNCTION \1/' | c++filt >listing
    awk -v arch=$arch -f "$tools/sass.awk" counts listing >sass
    printf '\nsm_%s: %-46s %4s %6s %4s %6s %3s %6s  %s\n' $arch "threads, dynamic shared memory, registers," "" "" "" \
        static /SM KB "instructions/HMMA/global/shared outside, in loops"
    cat sass
done
[ ! -s sass ] || { printf '\na model of the time on an H100 (cost.awk): microseconds of a launch\n' &&
    awk -f "$tools/cost.awk" sass counts; }
