#!/bin/sh
# The published comparison of the two models in one command, `make paper`: trains both, evaluates the best model of each
# on every test window, samples the figures, and writes the tables, all into out/paper. Interrupt it when you like: the
# same command goes on where it was, and what is finished is not done again. From the environment (make passes it on):
#
#   DATA         a folder with the folders train and test of MIDI files, or one with train.safetensors and
#                test.safetensors [data; if there is no music in it, the starter corpus is composed into it first]
#   RECIPES      "published", "tuned" or both: how the models are trained (the trainers' --recipe) [published]
#   SONGS        of so many songs of each model, and so many that go on from test pieces, the statistics are [100]
#   PAPER_OUT    where everything goes [out/paper]
#   PAPER_FLAGS  flags for both trainers, GPT_FLAGS and LSTM_FLAGS for one of them [none: what the recipe says]; a run
#                goes on with the same ones, but for --epochs and --patience, which may be raised, and --threads
#   TRAIN_GPT_MUSIC, TRAIN_LSTM_MUSIC, SAMPLE_MUSIC   the programs [those of this checkout]
# shellcheck disable=SC2086,SC2154  # flags are split into words; eval sets some variables
root=$(dirname "$0")/../..
out=${PAPER_OUT:-out/paper}
recipes=${RECIPES:-published}
songs=${SONGS:-100}
data=${DATA:-data}
gpt=${TRAIN_GPT_MUSIC:-$root/train_gpt_music}
lstm=${TRAIN_LSTM_MUSIC:-$root/train_lstm_music}
sample=${SAMPLE_MUSIC:-$root/sample_music}
prepare=$root/data_prep/prepare_music paper=$root/dev/tools/paper statistics=$root/dev/tools/music_stats
LC_ALL=C
export LC_ALL

refuse() {
    echo "paper: $1" >&2
    exit 1
}

# ---- stopping
# A trainer saves on a first signal and dies of a second one. So it must hear of Ctrl-C, TERM or a closed terminal once,
# whoever else they were sent to: it runs in a process group of its own, and this script passes them on; a second Ctrl-C
# too. It runs in the background, because only a shell that waits hears a signal.
child='' heard='' stopped='' told='' calm=''
pass() { # SIGNAL
    [ -z "$child" ] || kill "-$1" "-$child" 2>/dev/null || kill "-$1" "$child" 2>/dev/null
}
tell() {
    trap '' HUP INT TERM # make and timeout send one to this script and to its group, which is twice
    told=yes
    pass TERM
    sleep 1
    trap stop HUP INT TERM
}
stop() {
    heard=yes stopped=yes
    [ -n "$calm" ] || return 0 # the second of the two, if it came before tell() ignored it; or there is no child yet
    calm=''
    tell
}
pause() { # Ctrl-Z, until fg or bg
    heard=yes
    pass STOP
    kill -STOP $$
    pass CONT
}
trap stop HUP INT TERM
trap pause TSTP

run() { # COMMAND...: until it ends; where a signal stops it, the script ends too
    "$paper" --alone "$@" &
    child=$! told=''
    while :; do
        heard='' calm=yes
        [ -z "$stopped" ] || [ -n "$told" ] || tell
        wait "$child"
        status=$?
        [ -n "$heard" ] || break # else the signal has ended the waiting, not the program
    done
    calm=''
    child=''
    [ -z "$stopped" ] || refuse "stopped; the same command goes on with $out"
    return "$status"
}

# ---- before anything is done

for program in "$gpt" "$lstm" "$sample" "$prepare" "$paper" "$statistics"; do
    [ -x "$program" ] || refuse "$program: is not built yet; run make paper"
done
if [ -e "$out" ] && [ ! -e "$out/settings.txt" ]; then
    for file in "$out"/* "$out"/.[!.]*; do
        case ${file##*/} in
            data | data.new | prime-?.mid | *.tmp) ;; # a run that has just begun
            *) [ ! -e "$file" ] || refuse "$out: holds something else than such a run; give another PAPER_OUT" ;;
        esac
    done
fi
set -f # from here on flags are split into words; * and ? in them mean nothing

check_flags() { # TRAINER VARIABLE: whether the trainer understands them
    for variable in PAPER_FLAGS "$2"; do
        eval "words=\${$variable:-}"
        for word in $words; do
            case ${word%%=*} in
                --data | --out | --init | --resume | --eval | --dump | --bench | --steps | --help | -h | --version)
                    refuse "$variable: leave out ${word%%=*}; make paper trains whole runs of DATA in PAPER_OUT" ;;
            esac
        done
    done
    eval "words=\"\${PAPER_FLAGS:-} \${$2:-}\""
    run "$1" $words --help >/dev/null || exit 1
}
check_flags "$gpt" GPT_FLAGS
check_flags "$lstm" LSTM_FLAGS

case $recipes in
    published | tuned | 'published tuned' | 'tuned published') ;;
    *) refuse "RECIPES='$recipes': it may be published, tuned or 'published tuned'" ;;
esac
case $songs in
    0* | *[!0-9]* | ?????*) refuse "SONGS='$songs': it must be a whole number from 1 to 9999" ;;
esac

# ---- the data

[ -z "${DATA:-}" ] || [ -d "$data" ] ||
    refuse "DATA=$data: there is no such folder; give one with the folders train and test of MIDI files"
if [ ! -e "$data/train.safetensors" ] || [ ! -e "$data/test.safetensors" ]; then
    if [ -d "$data/train" ] && [ -d "$data/test" ]; then
        rm -rf "$out/data.new" # made anew each time, because the folder may have changed since
        run "$prepare" --out "$out/data.new" "$data/train" "$data/test" || exit 1
        data=$out/data.new
    elif [ -n "${DATA:-}" ]; then
        refuse "DATA=$data: has no folders train and test of MIDI files, nor train.safetensors and test.safetensors"
    else # a trainer's first run composes the starter corpus; its shortest run is this one
        mkdir -p "$out" && run "$gpt" --layers 1 --batch 1 --dump "$out/starter.tmp" >/dev/null || exit 1
        rm -f "$out/starter.tmp"
    fi
fi
mkdir -p "$out" || exit 1

# ---- the settings: other ones are another run, but for what no training has used yet

begun() { # gpt or lstm
    for file in last.safetensors eval.txt; do
        [ ! -e "$out/$1/$file" ] && [ ! -e "$out/$1-tuned/$file" ] || return 0
    done
    return 1
}
open='' # the lines that may still change
begun gpt || open="$open/^flags for the Transformer:/d;"
begun lstm || open="$open/^flags for the LSTM:/d;"
begun gpt || begun lstm || open=d

binding() { # what a trainer, too, wants to be the same when it goes on
    sed -e "$open" -e 's/ --epochs[= ][^ ]*//g; s/ --patience[= ][^ ]*//g; s/ --threads[= ][^ ]*//g; s/:$/: none/'
}
flags() { # WHOSE FLAGS
    printf 'flags for %s:' "$1"
    printf ' %s' ${2:-none}
    echo
}
for part in train test; do
    echo "$part data: $(cksum <"$data/$part.safetensors")"
done >"$out/settings.txt.tmp" || exit 1
{
    flags "both models" "${PAPER_FLAGS:-}"
    flags "the Transformer" "${GPT_FLAGS:-}"
    flags "the LSTM" "${LSTM_FLAGS:-}"
} >>"$out/settings.txt.tmp" || exit 1
if [ -e "$out/settings.txt" ]; then
    old=$(binding <"$out/settings.txt")
    now=$(binding <"$out/settings.txt.tmp" | grep -v -x -F "$old" | head -n 1)
    was=$(echo "$old" | grep -F "${now%%:*}:")
    case $now in
        '') ;;
        *data:*) refuse "DATA=${DATA:-data}: is other music than $out was begun with; give another PAPER_OUT" ;;
        *) refuse "$out was begun with '$was', not '$now'; give the same again, or another folder as PAPER_OUT" ;;
    esac
fi
if [ "$data" = "$out/data.new" ]; then
    mkdir -p "$out/data" || exit 1
    for part in train test; do
        cmp -s "$data/$part.safetensors" "$out/data/$part.safetensors" ||
            mv "$data/$part.safetensors" "$out/data" || exit 1
    done
    rm -rf "$data"
    data=$out/data
fi
if ! cmp -s "$out/settings.txt" "$out/settings.txt.tmp"; then
    if ! begun gpt && ! begun lstm; then
        rm -rf "$out/primes"
        run "$paper" --data "$data" --out "$out" --primes 2 || exit 1
    fi
    for folder in "$out/gpt" "$out/lstm" "$out/gpt-tuned" "$out/lstm-tuned"; do # perhaps more epochs: see train
        if [ -e "$folder/last.safetensors" ] && [ -e "$folder/eval.txt" ]; then
            mv "$folder/eval.txt" "$folder/eval.old" || exit 1
        fi
    done
    mv "$out/settings.txt.tmp" "$out/settings.txt" || exit 1
fi
rm -f "$out/settings.txt.tmp"

# ---- the models

train() { # TRAINER FOLDER FLAGS: and evaluate the best model, with the loss per kind of token
    folder=$out/$2
    if [ -e "$folder/eval.txt" ]; then
        echo "paper: $folder is trained and evaluated"
        return 0
    fi
    resume=''
    [ ! -e "$folder/last.safetensors" ] || resume=--resume
    echo "paper: training into $folder"
    run "$1" ${PAPER_FLAGS:-} $3 --data "$data" --out "$folder" $resume || return 1
    model="model.safetensors: $(cksum <"$folder/model.safetensors")"
    if grep -q -x -F "$model" "$folder/eval.old" 2>/dev/null; then # further epochs, if any, were no better
        mv "$folder/eval.old" "$folder/eval.txt"
        return
    fi
    for figure in sample-1 sample-2 continued-1 continued-2; do # of an earlier model
        rm -f "$out/$2-$figure.svg"
    done
    rm -rf "$folder/songs"
    echo "paper: evaluating $folder/model.safetensors on every test window"
    echo "$model" >"$folder/eval.txt.tmp" && run "$1" ${PAPER_FLAGS:-} $3 --data "$data" --eval \
        --init "$folder/model.safetensors" --eval-stride 1 >>"$folder/eval.txt.tmp" || return 1
    rm -f "$folder/eval.old"
    mv "$folder/eval.txt.tmp" "$folder/eval.txt"
}

figures() { # FOLDER: seed 1 and seed 2, without a prime and behind one
    for seed in 1 2; do
        figure "$1-sample-$seed" "$1" --seed $seed --tokens 1024
        figure "$1-continued-$seed" "$1" --seed $seed --tokens 768 --prime "$out/prime-$seed.mid" --prime-tokens 256
    done
}

figure() { # NAME FOLDER FLAGS...: the .svg gets its name last; a sampler that is stopped leaves a shorter song
    figure=$out/$1 model=$out/$2/model.safetensors
    shift 2
    [ ! -e "$figure.svg" ] || return 0
    run "$sample" "$model" "$@" --memory 0 -o "$figure.mid" -o "$figure.part.svg" || exit 1
    mv "$figure.part.svg" "$figure.svg" || exit 1
}

# FLAGS...: songs for the statistics, of the model in $folder. They have 256 tokens more than an excerpt, because of
# several notes of one key at a time a .mid file has one.
sing() {
    run "$sample" "$folder/model.safetensors" --tokens 1280 --seed 1 --data "$data" "$@" || exit 1
}

# FOLDER NAME: the songs of a model, without and with the sampler's memory, and their rows. A sampler that is stopped
# begins with these songs again.
songs() {
    folder=$out/$1
    for set in free primed free-memory primed-memory; do
        into=$folder/songs/$songs-$set kind=${set%-memory} piece=1
        row="$2, $kind" memory='--memory 0'
        [ "$set" = "$kind" ] || row="$row, memory" memory=''
        if [ ! -e "$into" ]; then
            echo "paper: making $songs songs in $into"
            rm -rf "$into.part"
            mkdir -p "$into.part" || exit 1
            [ $kind = primed ] || sing $memory -n "$songs" -o "$into.part/song.mid" >"$into.part/songs.txt"
            while [ $kind = primed ] && [ $piece -le "$pieces" ]; do
                share=$(((songs + pieces - piece) / pieces))
                [ $share -eq 0 ] || sing $memory -n $share --prime "$out/primes/prime-$piece.mid" --no-prime \
                    -o "$into.part/prime-$piece.mid" >>"$into.part/songs.txt"
                piece=$((piece + 1))
            done
            mv "$into.part" "$into" || exit 1
        fi
        rows="$rows$line$row=$into"
    done
}
line='
'
rows="real, test=$data/test.safetensors${line}real, train=$data/train.safetensors"
if [ ! -e "$out/primes" ]; then
    rm -rf "$out/primes.part"
    run "$paper" --data "$data" --out "$out/primes.part" --primes 1000 && mv "$out/primes.part" "$out/primes" || exit 1
fi
pieces=0
while [ -e "$out/primes/prime-$((pieces + 1)).mid" ]; do
    pieces=$((pieces + 1))
done

for recipe in $recipes; do
    suffix='' flag='' of=''
    [ "$recipe" = published ] || suffix=-$recipe flag="--recipe $recipe" of=", $recipe"
    train "$gpt" "gpt$suffix" "$flag ${GPT_FLAGS:-}" && figures "gpt$suffix" && songs "gpt$suffix" "Transformer$of" &&
        train "$lstm" "lstm$suffix" "$flag ${LSTM_FLAGS:-}" && figures "lstm$suffix" &&
        songs "lstm$suffix" "LSTM$of" || exit 1
done
IFS=$line # between rows
run "$statistics" --train "$data/train.safetensors" $rows >"$out/statistics.md.tmp" &&
    mv "$out/statistics.md.tmp" "$out/statistics.md" || exit 1
unset IFS
run "$paper" --data "$data" --out "$out" --recipes "$recipes" >"$out/primes.tmp" || exit 1

# ---- the tables

# FOLDER NAME LOSS EPOCHS, the last two as published: prints a row of each table behind the table's name, from log.csv
# and from eval.txt, which is what the trainer printed for --eval.
row() {
    awk -F , -v folder="$1" -v name="$2" -v published="$3" -v epochs_published="$4" '
        function thousands(n, text) {
            for (; n >= 1000; n = int(n / 1000)) text = sprintf(",%03d%s", n % 1000, text)
            return n text
        }
        function duration(s) {
            s = int(s + 0.5)
            if (s < 3600) return sprintf("%d:%02d", s / 60, s % 60)
            return sprintf("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60)
        }
        NR == FNR {
            if (FNR == 1) next
            if (!epochs++ || $4 < best) { best = $4 + 0; text = $4; best_epoch = $1 }
            seconds += $7
            if ($7 == "") over = "over "
            next
        }
        / parameters: / {
            parameters = $0
            sub(/^[a-z]*, /, "", parameters)
            sub(/ .*/, "", parameters)
        }
        /^(bar|offset|pitch|duration) +loss / {
            split($0, word, / +/)
            kinds = kinds sprintf(",%s,%s", word[3], word[5])
            columns = columns sprintf(" %*.4f |", ++n == 4 ? 8 : 6, word[3])
            tokens[n] = word[5]
            all += word[5]
        }
        /^eval loss=[0-9.]+ windows=[0-9]+ tokens=[0-9]+ stride=1$/ {
            split($0, word, /[ =]/)
            loss = word[3]; windows = word[5]; window = word[7] / windows
        }
        END {
            if (loss == "" || n != 4) exit 1
            count = parameters
            gsub(/,/, "", count)
            printf "csv %s,%s,%s,%s,%s,%d,%.1f,%s,%d,%s,%d%s\n", folder, count, loss, text, best_epoch, epochs, seconds,
                published, epochs_published, windows, window, kinds
            printf "loss | %-18s | %10s | %13s | %9.4f | %11.4f | %10s | %13s | %s after %d epochs |\n", name,
                parameters, thousands(windows) " x " window, loss, best, best_epoch " of " epochs,
                over duration(seconds), published, epochs_published
            printf "kind | %-18s |%s %6.4f |\n", name, columns, loss
            printf "samples \nsamples ### %s\nsamples \n", name
            for (i = 1; i <= 4; i++) {
                figure = i <= 2 ? "sample" : "continued"
                printf "samples ![%s %d](%s-%s-%d.svg)\n", figure, (i - 1) % 2 + 1, folder, figure, (i - 1) % 2 + 1
            }
            printf "share | share of tokens    |"
            for (i = 1; i <= 4; i++) printf " %*.1f%% |", i == 4 ? 7 : 5, 100 * tokens[i] / all
            printf "   100%% |\n"
        }' "$out/$1/log.csv" "$out/$1/eval.txt" ||
        refuse "$out/$1/eval.txt: is not what a trainer prints for --eval --eval-stride 1"
}
rows() { # TABLE
    sed -n "s/^$1 //p" "$out/rows.tmp"
}
for recipe in published tuned; do
    case " $recipes " in *" $recipe "*) ;; *) continue ;; esac
    suffix='' of=''
    [ $recipe = published ] || suffix=-$recipe of=", $recipe"
    row "gpt$suffix" "Transformer$of" 1.237 6
    row "lstm$suffix" "LSTM$of" 1.425 9
done >"$out/rows.tmp" || exit 1
{
    echo "model,parameters,test_loss,seen_test_loss,best_epoch,epochs,seconds,published_loss,published_epochs,windows,\
window,bar_loss,bar_tokens,offset_loss,offset_tokens,pitch_loss,pitch_tokens,duration_loss,duration_tokens"
    rows csv
} >"$out/table.csv.tmp" && mv "$out/table.csv.tmp" "$out/table.csv" || exit 1
{
    cat <<END
# Two models of piano music

The loss is the mean negative log-likelihood per token (nats): lower is better. The test loss is that of
the run's best model over every window of the test pieces; in training only some of them were looked at
after each epoch, and the best was chosen by these.

| model              | parameters |  test windows | test loss | in training | best epoch | training time |\
  published test loss |
|--------------------|-----------:|--------------:|----------:|------------:|-----------:|--------------:|\
---------------------:|
$(rows loss)

The published models were trained on 214 pieces and tested on 24 others, each on a random 35 % of their
windows of 256. Only losses on the same pieces can be compared.

![Loss by epoch](losses.svg)

## Test loss by kind of token

| model              |    bar | offset |  pitch | duration |    all |
|--------------------|-------:|-------:|-------:|---------:|-------:|
$(rows kind)
$(rows share | head -n 1)

## Samples

By each model, at temperature 1, two pieces of 1,024 tokens, and two continuations of 768 tokens
after the first 256 (grey) of two test pieces. Each picture is also a .mid file of that name.
$(cat "$out/primes.tmp")
$(rows samples)

## Statistics

Of excerpts of 1,024 tokens: of the pieces, and of songs that each model has written at temperature 1, free
or going on from 256 tokens of the test pieces (which do not count). \`music_stats --help\` tells what each
column is. Songs are like music where they overlap with the test pieces as much as training pieces do.

$(cat "$out/statistics.md")

## Settings

The published recipe is the trainers' own; flags beside it make another experiment.

END
    sed 's/^/    /' "$out/settings.txt"
} >"$out/paper.md.tmp" && mv "$out/paper.md.tmp" "$out/paper.md" || exit 1
rm -f "$out/primes.tmp" "$out/rows.tmp"
sed -n '/^|/p; /^## /q' "$out/paper.md"
echo "paper: $out/paper.md has the tables, and the figures lie beside it"
