#!/bin/sh
# Training runs compared: dev/tools/sweep.sh LIST, a file of lines NAME MODEL FLAGS..., the most valuable first, such as
#     published gpt
#     transposed gpt --transpose -5,6
# trains gpt or lstm with each line's flags and each seed, and prints a table: the lowest test loss, mean and spread
# (the largest minus the smallest) over the seeds, the epoch that it came after, the loss per kind of token, and the
# seconds of a run. Interrupted, the same command goes on where it was. Variables:
#     SEEDS   [1 2 3]
#     FLAGS   of all runs, for instance --data DIR or sizes
#     OUT     where the runs are [out/sweep]
#     LIMIT   begin no other run after so many seconds; lines without a run are left out
if ! [ -f "$1" ]; then
    echo "write dev/tools/sweep.sh LIST; its head tells what a list is" >&2
    exit 2
fi
list=$(cat "$1")
cd "$(dirname "$0")/../.." || exit 1
SEEDS=${SEEDS:-1 2 3} OUT=${OUT:-out/sweep} FLAGS=${FLAGS:-}
make -s train_gpt_music train_lstm_music || exit 1
mkdir -p "$OUT" || exit 1
began=$(date +%s)

# train NAME MODEL SEED FLAGS...: the run, if it is not over, and a line for it in $OUT/rows
train() {
    run=$OUT/$1-$3 model=$2 seed=$3
    shift 3
    resume=
    if [ -e "$run/last.safetensors" ]; then
        resume=--resume
    elif [ -n "$LIMIT" ] && [ $(($(date +%s) - began)) -ge "$LIMIT" ]; then
        return 0
    fi
    # shellcheck disable=SC2086 # flags are split into words
    "./train_${model}_music" $FLAGS "$@" --seed "$seed" --out "$run" $resume </dev/null >>"$run.log" || return 1
    # shellcheck disable=SC2086
    "./train_${model}_music" $FLAGS --init "$run/model.safetensors" --eval >"$run.eval" || return 1
    {
        awk -F, 'NR > 1 { s += $7; if (!best || $4 < best) { best = $4; epoch = $1 } }
            END { printf "%s %s %s", best, epoch, s }' "$run/log.csv" &&
            awk '$2 == "loss" { printf " %s", $3 }' "$run.eval" && echo
    } >"$run.row"
}

echo "| run | seeds | test loss | spread | epoch | bar | offset | pitch | duration | seconds |"
echo "|---|---|---|---|---|---|---|---|---|---|"
echo "$list" | while read -r name model flags; do
    case $name in '' | '#'*) continue ;; esac
    for seed in $SEEDS; do
        # shellcheck disable=SC2086
        train "$name" "$model" "$seed" $flags || exit 1
    done
    for seed in $SEEDS; do cat "$OUT/$name-$seed.row" 2>/dev/null; done | awk -v name="$name" '
        {
            n++
            for (i = 1; i <= 7; i++) sum[i] += $i
            if (n == 1 || $1 < least) least = $1
            if ($1 > most) most = $1
        }
        END {
            if (!n) exit
            printf "| %s | %d | %.4f | %.4f | %.1f", name, n, sum[1] / n, most - least, sum[2] / n
            for (i = 4; i <= 7; i++) printf " | %.3f", sum[i] / n
            printf " | %.0f |\n", sum[3] / n
        }'
done
