#!/bin/sh
# test/fuzz/seeds.sh FOLDER: makes FOLDER/TARGET, small inputs of each fuzz target to begin with, by the project's own
# programs: pieces, a dataset of them, models of width 1 with their states, songs, command lines.
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/music_seeds.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
rm -rf "$1"
for target in midi prime safetensors dataset model state_gpt state_lstm trainer sampler writers; do
    mkdir -p "$1/$target" || exit 1
done
{
    data_prep/compose_music --out "$work/music" --pieces 4 && data_prep/prepare_music --out "$work/data" "$work/music"
} >/dev/null || exit 1

# train MODEL OUT FLAG...: a model of width 1
train() {
    model=$1 out=$2
    shift 2
    case $model in
    gpt) set -- --heads 1 --hidden 1 --rel 2 "$@" ;;
    lstm) set -- --embed 1 "$@" ;;
    esac
    "build/train_${model}_music_cpu" --data "$work/data" --out "$work/$out" --layers 1 --width 1 --window 8 --batch 2 \
        --threads 1 "$@" >/dev/null 2>&1
}
for model in gpt lstm; do
    train "$model" "${model}_epochs" --epoch-size 1e-9 --epochs 3 || exit 1
    train "$model" "${model}_part" --steps 2 || exit 1
    cp "$work/${model}_part/model.safetensors" "$1/state_$model/weights"
    cp "$work/${model}_part/last.safetensors" "$1/state_$model/part_of_an_epoch"
    cp "$work/${model}_epochs/last.safetensors" "$1/state_$model/epochs"
    cp "$work/${model}_part/model.safetensors" "$1/model/$model"
    cp "$work/${model}_part/model.safetensors" "$1/safetensors/$model"
done

# bytes: the numbers of standard input as bytes
bytes() {
    # shellcheck disable=SC2059 # they are the format
    printf "$(awk '{ for (i = 1; i <= NF; i++) printf "\\%03o", $i }')"
}
mkdir "$work/songs"
number=0
for piece in "$work"/music/*/*.mid; do
    number=$((number + 1))
    song=$work/songs/$number.mid
    ./sample_music "$work/gpt_part/model.safetensors" --prime "$piece" --prime-tokens $((20 * number)) --seed $number \
        --tokens 30 -o "$song" >/dev/null || exit 1
    cp "$song" "$1/midi/$number"
    {
        echo 7 1 $((40 * number)) $((number % 2)) 0 $((50 * number)) 0 0 | bytes
        printf 'out/gpt\0&<>\nfrom here\0'
        data_prep/prepare_music --tokens "$song" | bytes
    } >"$1/writers/$number"
done
# Two tracks, in the second one all kinds of events: a program, a controller, a bend, pressures, sysex, a key signature,
# running status, a note of no length, one that is never ended, and one that never began.
printf 'MThd\0\0\0\6\0\1\0\2\0\140MTrk\0\0\0\30\0\377\130\4\6\3\44\10\0\377\121\3\7\241\40\0\377\6\1a\0\377\57\0' \
    >"$1/midi/tracks"
printf 'MTrk\0\0\0\66\0\300\1\0\260\100\177\0\340\0\100\0\320\1\0\240\74\1\0\360\2\1\367' >>"$1/midi/tracks"
printf '\0\377\131\2\1\0\0\220\74\100\30\74\0\0\100\1\0\100\0\0\105\1\0\210\60\0\201\0\377\57\0' >>"$1/midi/tracks"
{
    printf 'RIFF\164\0\0\0RMIDdata\154\0\0\0'
    cat "$1/midi/tracks"
} >"$1/midi/wrapped"
header='{"__metadata__":{"a":"\ud834\udd1e"},"":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
header=$header'"x":{"dtype":"F64","shape":[],"data_offsets":[4,12]}}  '
{
    echo ${#header} 0 0 0 0 0 0 0 | bytes
    printf '%s\0\74\1\0\0\0\0\0\0\0\360\77' "$header"
} >"$1/safetensors/types"
cp "$1"/midi/* "$1/prime"
data_prep/prepare_music --out "$work/small" "$work/songs" >/dev/null || exit 1
cp "$work/small/train.safetensors" "$1/dataset/train"
cp "$work/small/test.safetensors" "$1/dataset/test"
cp "$work/small/test.safetensors" "$1/safetensors/dataset"

printf 'gpt\n--data\nd\n--batch=3\n--lr=1e-3\n--rel=5\n--seed\n18446744073709551615\n--steps=2' >"$1/trainer/gpt"
printf 'lstm\n--width=3\n--dropout\n0.25\n--precision=fp32\n--resume' >"$1/trainer/lstm"
printf 'sample_music\nm.safetensors\n-o\na.svg\n-n\n3\n--lowest=C3\n--scale\nF#-minor\n--top-p\n.9' >"$1/sampler/song"
printf 'sample_music\n--prime=a.mid\n--no-prime\n--bars=3\n--weights=int8\n-o=a.html\n--seed=3' >"$1/sampler/prime"
