#!/bin/sh
# make compare: whole training steps of a CUDA trainer, dropout on, against its CPU reference, tensor by tensor:
# every activation, gradient and updated parameter, from the reference's own weights and optimizer state after 0, 5,
# 10 and 20 steps.
#
#   dev/tools/compare.sh CPU_TRAINER CUDA_TRAINER [FLAGS...]     FLAGS: sizes of the model and the batch
#
# The tolerance, of ||a - b|| / ||b||, follows from how numbers are rounded. A sum of K products in float is off by
# about sqrt(K) 2^-24 of its size, and two programs that add in different orders differ by sqrt(2) of that. K is at
# most 768 in the Transformer, 2048 in the LSTM, but for weight gradients, whose terms vary in sign. A step is a chain
# of stages, 10 for each layer of the Transformer, forward and backward; of the LSTM 10 for each layer and for the
# head, where the loops through time hardly count: with forget gates near 1/2 a step's error fades by half in the next.
# Their errors add up like a random walk, as LayerNorm and gates keep their size: fp32 allows sqrt(2 K) * sqrt(stages)
# * 2^-24. In bf16 each number is off by about 2^-9. A stage rounds up to four, its operands (in attention the relative
# vectors too) and what it hands on; K cancels out, and two programs differ by sqrt(2) of that: sqrt(8) * sqrt(stages)
# * 2^-9. Where a ReLU's input is zero but for rounding the programs may disagree on its sign; compare_tensors counts
# such ReLUs and allows the gradients what follows from their number. The gradient of the keys' bias is exactly zero,
# so that what Adamax makes of it is noise, and early Adamax, almost lr * sign(gradient), makes noise of any gradient
# that is zero but for rounding.
# shellcheck disable=SC2086 # flags are split into words
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
cpu=$1 cuda=$2
if test $# -lt 2; then
    sed -n 's/^#   //p' "$0" >&2
    exit 2
fi
shift 2
case $cpu in /*) ;; *) cpu=$PWD/$cpu ;; esac
case $cuda in /*) ;; *) cuda=$PWD/$cuda ;; esac
scratch=$(mktemp -d "${TMPDIR:-/tmp}/compare.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
cd "$scratch" || exit 1
{
    "$root/data_prep/compose_music" --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >log 2>&1 || { cat log >&2; exit 1; }
flags=$* # without spaces in them
layers=$(echo "$flags" | sed -n 's/.*--layers[ =]\([0-9]*\).*/\1/p')
case $cpu in
    *lstm*) stages=$((10 * ${layers:-2} + 10)) products=2048 more='--relu act.head.3 --relu act.head.7' ;;
    *) stages=$((10 * ${layers:-8})) products=768 more='--relu act.layers.*.fc1 --rtol new.layers.*.attn.qkv.bias=1' ;;
esac
fp32=$(awk -v n="$stages" -v k=$products 'BEGIN { print sqrt(2 * k) * sqrt(n) * 2 ^ -24 }')
bf16=$(awk -v n="$stages" 'BEGIN { print sqrt(8) * sqrt(n) * 2 ^ -9 }')
set -f # the patterns in them are not files
failed=0
for precision in fp32 bf16; do
    case $precision in
        fp32) rtol=$fp32 update=1e-2 ;;
        bf16) rtol=$bf16 update=5e-2 ;;
    esac
    for steps in 0 5 10 20; do
        arguments="--data data --precision $precision $flags"
        if test $steps -gt 0; then
            rm -rf run
            "$cpu" $arguments --out run --steps $steps --eval-stride 4000 >log 2>&1 || { cat log >&2; exit 1; }
            arguments="--data data --resume --out run"
        fi
        for program in cpu cuda; do
            eval "\$$program $arguments --dump $program" >log 2>&1 || { cat log >&2; exit 1; }
        done
        echo "$precision, after $steps steps, tolerance $rtol:"
        "$root/dev/tools/compare_tensors" compare cuda cpu --require '*' --quiet --rtol "$rtol" --rtol "new.=$update" \
            $more || failed=1
    done
done
exit $failed
