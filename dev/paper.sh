#!/bin/sh
# The published comparison of the two models in one command, `make paper`: trains both, evaluates the best model of each
# on every test window, samples the figures, and writes the tables, all into out/paper. Interrupt it when you like: the
# same command goes on where it was, and what is finished is not done again. From the environment (make passes it on):
#
#   DATA         a folder with the folders train and test of MIDI files, or one with train.safetensors and
#                test.safetensors [data; if there is none, the starter corpus is composed into it first]
#   PAPER_OUT    where everything goes [out/paper]
#   PAPER_FLAGS  flags for both trainers, GPT_FLAGS and LSTM_FLAGS for one of them [none: the published recipe]
#   TRAIN_GPT_MUSIC, TRAIN_LSTM_MUSIC, SAMPLE_MUSIC   the programs [those of this checkout]
root=$(dirname "$0")/..
out=${PAPER_OUT:-out/paper}
data=${DATA:-}
gpt=${TRAIN_GPT_MUSIC:-$root/train_gpt_music}
lstm=${TRAIN_LSTM_MUSIC:-$root/train_lstm_music}
sample=${SAMPLE_MUSIC:-$root/sample_music}
compose=$root/data_prep/compose_music prepare=$root/data_prep/prepare_music paper=$root/dev/paper
LC_ALL=C
export LC_ALL

refuse() {
    echo "paper: $1" >&2
    exit 1
}

# ---- stopping
# Programs run in the background, because only a shell that waits can hear a signal. The trainers save on a first INT or
# TERM and die of a second one: Ctrl-C reaches them without this script, TERM perhaps not, and so it is passed on a
# little later. Nothing else has anything to save.
child='' signals=0 saves=''
stop() {
    signals=$((signals + 1))
    [ -n "$child" ] || exit 1
    if [ -n "$saves" ]; then
        [ "$1" = TERM ] || return
        sleep 2
    fi
    kill "$child" 2>/dev/null
}
trap 'stop INT' INT
trap 'stop TERM' TERM

run() { # COMMAND...: until it ends; where a signal stops it, the script ends too
    "$@" &
    child=$! heard=0
    wait "$child"
    status=$?
    while [ "$heard" -lt "$signals" ]; do # the signal has ended the waiting, not the program
        heard=$signals
        wait "$child"
        status=$?
    done
    child=''
    [ "$signals" -eq 0 ] || refuse "stopped; the same command goes on with $out"
    return "$status"
}

# ---- the data

# As the trainers do: a folder ./data that is missing, or was left half made, gets the starter corpus.
compose_starter() {
    others=''
    for file in data/* data/.[!.]*; do
        case $file in
            data/starter | *.tmp | *.new) ;;
            *) [ ! -e "$file" ] || others="$others$file" ;;
        esac
    done
    [ "$others" != data/train.safetensors ] || [ ! -d data/starter ] || others=''
    [ -z "$others" ] || return 0
    echo "paper: no music in data yet: composing the starter corpus into it"
    run "$compose" --out data/starter && run "$prepare" --out data data/starter/train data/starter/test
}

# The datasets are made anew each time and compared, because the folder may have changed since.
prepare_data() {
    rm -rf "$out/data.new"
    if [ ! -d "$out/data" ]; then
        run "$prepare" --out "$out/data.new" "$data/train" "$data/test" && mv "$out/data.new" "$out/data" || return 1
    else
        run "$prepare" --out "$out/data.new" "$data/train" "$data/test" >/dev/null || return 1
        for part in train test; do
            cmp -s "$out/data/$part.safetensors" "$out/data.new/$part.safetensors" ||
                refuse "$data/$part: its music has changed since $out was begun; give another folder as PAPER_OUT"
        done
        rm -rf "$out/data.new"
    fi
    data=$out/data
}

settings() { # what a run is made of: other settings are another run
    for part in train test; do
        echo "$part data: $(cksum <"$data/$part.safetensors")"
    done
    echo "flags for both models: ${PAPER_FLAGS:-none}"
    echo "flags for the Transformer: ${GPT_FLAGS:-none}"
    echo "flags for the LSTM: ${LSTM_FLAGS:-none}"
}

for program in "$gpt" "$lstm" "$sample" "$compose" "$prepare" "$paper"; do
    [ -x "$program" ] || refuse "$program: is not built yet; run make paper"
done
if [ -e "$out" ] && [ ! -e "$out/settings.txt" ]; then
    for file in "$out"/* "$out"/.[!.]*; do
        case ${file##*/} in
            data | data.new | prime-?.mid | *.tmp) ;; # a run that has just begun
            *) [ ! -e "$file" ] || refuse "$out: holds something else than a run of make paper; give another PAPER_OUT" ;;
        esac
    done
fi
if [ -z "$data" ]; then
    compose_starter || exit 1
    data=data
elif [ ! -d "$data" ]; then
    refuse "DATA=$data: there is no such folder; give one with the folders train and test of MIDI files"
fi
if [ ! -e "$data/train.safetensors" ] || [ ! -e "$data/test.safetensors" ]; then
    if [ ! -d "$data/train" ] || [ ! -d "$data/test" ]; then
        refuse "DATA=$data: has no folders train and test of MIDI files, nor train.safetensors and test.safetensors"
    fi
    prepare_data || exit 1
fi
mkdir -p "$out" || exit 1
if [ -e "$out/settings.txt" ]; then
    settings >"$out/settings.txt.tmp"
    now=$(diff "$out/settings.txt" "$out/settings.txt.tmp" | sed -n 's/^> //p' | head -n 1)
    was=$(grep -F "${now%%:*}:" "$out/settings.txt")
    rm -f "$out/settings.txt.tmp"
    [ -z "$now" ] || refuse "$out was begun with '$was', not '$now'; give the same again, or another folder as PAPER_OUT"
else
    "$paper" --data "$data" --out "$out" --primes || exit 1
    settings >"$out/settings.txt.tmp" && mv "$out/settings.txt.tmp" "$out/settings.txt" || exit 1
fi

# ---- the two models

train() { # TRAINER FOLDER FLAGS: and evaluate the best model, with the loss per kind of token
    folder=$out/$2
    if [ -e "$folder/eval.txt" ]; then
        echo "paper: $folder is trained and evaluated"
        return 0
    fi
    trainer=$1
    set -f # the flags are split into words; * and ? in them mean nothing
    # shellcheck disable=SC2086
    set -- ${PAPER_FLAGS:-} $3 --data "$data"
    set +f
    echo "paper: training into $folder"
    saves=yes
    if [ -e "$folder/last.safetensors" ]; then
        run "$trainer" "$@" --out "$folder" --resume || return 1
    else
        run "$trainer" "$@" --out "$folder" || return 1
    fi
    saves=''
    echo "paper: evaluating $folder/model.safetensors on every test window"
    run "$trainer" "$@" --eval --init "$folder/model.safetensors" --eval-stride 1 >"$folder/eval.txt.tmp" || return 1
    mv "$folder/eval.txt.tmp" "$folder/eval.txt"
}

figures() { # FOLDER: seed 1 and seed 2, without a prime and behind one
    for seed in 1 2; do
        figure "$1-sample-$seed" "$1" --seed $seed --tokens 1024
        figure "$1-continued-$seed" "$1" --seed $seed --tokens 768 --prime "$out/prime-$seed.mid" --prime-tokens 256
    done
}

figure() { # NAME FOLDER FLAGS...: the .svg is written last
    figure=$out/$1 model=$out/$2/model.safetensors
    shift 2
    [ -e "$figure.svg" ] || run "$sample" "$model" "$@" -o "$figure.mid" -o "$figure.svg" || exit 1
}

train "$gpt" gpt "${GPT_FLAGS:-}" && figures gpt && train "$lstm" lstm "${LSTM_FLAGS:-}" && figures lstm || exit 1
"$paper" --data "$data" --out "$out" || exit 1
sed -n '/^|/p; /^## /q' "$out/paper.md"
echo "paper: $out/paper.md has the tables, and the figures lie beside it"
