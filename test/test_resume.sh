#!/bin/sh
# test/test_resume.sh [MODEL...]: the real trainers, small, are killed (SIGKILL) again and again and resumed each time:
# at ten random moments, before anything was saved, and in the middle of writing each file. They end with the same bytes
# of model.safetensors, last.safetensors, loss.svg and log.csv (its seconds aside) as a run that was never killed, also
# where log.csv was lost or edited meanwhile. RESUME_SEED=N repeats a test's moments, as far as time repeats itself.
# data_prep/compose_music and prepare_music must have been built.
# shellcheck disable=SC2086 # flags are split into words
. "$(dirname "$0")/check.sh"
models=${*:-gpt lstm}
random=${RESUME_SEED:-$$}
echo "RESUME_SEED=$random"

# pause MOST: sleeps for a random number of milliseconds below this
pause() {
    random=$(((random * 1103515245 + 12345) % 2147483648))
    sleep "$(printf '0.%03d' $((random / 65536 % $1)))"
}

# saved KEY: a number in the metadata of killed/last.safetensors; 0 where it has none
saved() {
    value=$(sed -n "/^\"$1\":\"[0-9]*\",*\$/{s/[^0-9]//g;p;q;}" killed/last.safetensors)
    echo "${value:-0}"
}

# The log's epochs are numbered without gaps or repeats, and so are the steps.
continuous() {
    awk -F, -v steps=$epoch_steps '
        NR == 1 { wrong = $0 != "epoch,step,train_loss,test_loss,lr,steps,seconds"; next }
        NF != 7 || $1 != NR - 1 || $2 != $1 * steps || $6 != steps { wrong = 1 }
        END { exit wrong || !NR }' "$1"
}

# start [VARIABLE=VALUE]: starts the run, or goes on with it, in the background. It saves after every step and never
# ends by itself.
start() {
    rm -f killed/*.tmp # so that those it leaves are its own
    cp killed/last.safetensors before 2>/dev/null || rm -f before
    resume=
    test ! -e killed/last.safetensors || resume=--resume
    env OFTEN=1 "$@" ./train $flags --epochs 1000000 --out killed $resume >stdout 2>stderr &
    process=$!
}

# Ends it, and looks at what that has left.
finish_off() {
    kill -KILL $process
    wait $process 2>/dev/null
    check "the run has ended by itself" test $? -eq 137
    process=
    kills=$((kills + 1))
    test ! -s killed/model.safetensors.1.tmp || in_model=$((in_model + 1))
    test ! -s killed/last.safetensors.1.tmp || in_last=$((in_last + 1))
    test ! -e killed/log.csv.1.tmp || in_log=$((in_log + 1))
    test -e killed/last.safetensors || return
    rows=$(saved epoch)
    step=$(saved step)
    test $step -le $((rows * epoch_steps)) || within=$((within + 1))
    test $step -lt $(((rows + 1) * epoch_steps)) || evaluating=$((evaluating + 1))
    test ! -e killed/log.csv || check "log.csv after kill $kills" continuous killed/log.csv
}

# kill_in FILE: ends it while this file is being written, on a slow disk. It is held when the temporary file appears,
# and killed if that is still there.
kill_in() {
    start SLOW=1
    polls=0
    while test $polls -lt 500000; do
        polls=$((polls + 1))
        test -e killed/$1.1.tmp || continue
        kill -STOP $process
        ! test -e killed/$1.1.tmp || break
        kill -CONT $process
    done
    finish_off
}

# ends_alike FOLDER: resumed there, the run ends with the bytes of whole.
ends_alike() {
    folder=$1
    check "$folder: resuming it" ./train $flags --epochs $epochs --out $folder --resume >stdout 2>stderr
    for file in model.safetensors last.safetensors loss.svg; do
        check "$folder: $file differs" cmp -s whole/$file $folder/$file
    done
    cut -d, -f1-6 whole/log.csv >whole.log
    cut -d, -f1-6 $folder/log.csv >$folder.log
    check "$folder: log.csv differs" cmp -s whole.log $folder.log
    check "$folder: other files" test "$(ls whole)" = "$(ls $folder)"
}

{
    "$root/data_prep/compose_music" --pieces 8 --out starter &&
        "$root/data_prep/prepare_music" --out data starter/train starter/test
} >stdout 2>stderr
model=all
check "making music" test -s data/test.safetensors

# What the builds here have of their own, where the environment asks for it: saving after every step and every
# evaluation batch, and a slow disk.
cat >changes.h <<'END'
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#define SAVE_SECONDS (getenv("OFTEN") ? 0 : 300)
#define PROGRESS_SECONDS (getenv("OFTEN") ? 0 : 10)
static size_t slow_fwrite(const void *bytes, size_t size, size_t n, FILE *file) {
    size_t written = fwrite(bytes, size, n, file);
    if (getenv("SLOW") && !fflush(file)) usleep(300);
    return written;
}
#define fwrite slow_fwrite
END

for model in $models; do
    rm -rf killed whole lost edited longer ended train
    case $model in
    gpt) sizes="--layers 2 --width 16 --heads 2 --hidden 24 --rel 12" ;;
    *) sizes="--layers 2 --width 16 --embed 12" ;;
    esac
    # Three steps and seven evaluation batches in an epoch, and a learning rate at which not every epoch is
    # a better one.
    flags="$sizes --threads 1 --window 24 --batch 2 --epoch-size 0.0003 --eval-stride 300"
    flags="$flags --transpose -3,4 --average 0.9 --weight-decay 0.5 --warmup 9"
    flags="$flags --lr 0.03 --lr-decay 0.999 --lr-min 0.02 --patience 1000000"
    ${CC:-cc} -std=gnu11 -O1 -ffp-contract=fast -fno-math-errno -Wno-unknown-pragmas -include changes.h \
        -I"$root" -I"$root/dev" "$root/dev/train_${model}_music.c" -o train -lm >stdout 2>stderr
    check "compiling it" test -x train
    test -x train || continue
    kills=0 within=0 evaluating=0 in_model=0 in_last=0 in_log=0 rows=0 epoch_steps=3

    # Before anything was saved: there is nothing to resume, and starting again works.
    start
    finish_off
    check "killed at once, the run cannot have saved" test ! -e killed/last.safetensors
    ./train $flags --out killed --resume >stdout 2>stderr
    check "resuming what never began" test $? -eq 1
    check "it is said" grep -q "there is no run to go on with" stderr
    kill_in last.safetensors # the first one

    # While files are written; now and then the run is faster than the hand.
    for tries in 1 2 3 4 5 6 7 8 9 10 11 12; do
        test $in_model -ne 0 || kill_in model.safetensors
        test $in_log -ne 0 || kill_in log.csv
        test $in_last -gt 1 || kill_in last.safetensors
    done

    # At random moments, the later the longer it takes; those count before which something new was saved.
    moments=0
    tries=0
    while test $moments -lt 10 && test $tries -lt 60; do
        tries=$((tries + 1))
        start
        pause $((tries < 25 ? 40 * tries : 999))
        finish_off
        test ! -e killed/last.safetensors || cmp -s before killed/last.safetensors || moments=$((moments + 1))
    done
    check "killed at $moments random moments" test $moments -eq 10

    check "killed $in_model times while writing model.safetensors" test $in_model -gt 0
    check "killed $in_last times while writing last.safetensors" test $in_last -gt 0
    check "killed $within times within an epoch" test $within -gt 0
    echo "$model: killed $kills times in $rows epochs, $within times within one, $evaluating of these in its" \
        "evaluation; while writing model.safetensors $in_model, last.safetensors $in_last, log.csv $in_log times"

    # The run that was never killed.
    epochs=$((rows + 2))
    check "a run of $epochs epochs" ./train $flags --epochs $epochs --out whole >stdout 2>stderr
    check "its log.csv" continuous whole/log.csv
    check "its log.csv has $epochs rows" test "$(wc -l <whole/log.csv)" -eq $((epochs + 1))
    for folder in lost edited longer; do cp -r killed $folder; done
    rm -f lost/log.csv
    sed -e 3d -e '4s/,/,9/' -e '$p' killed/log.csv >edited/log.csv
    echo "once upon a time" >>edited/log.csv
    cp whole/log.csv longer # with rows beyond the state
    for folder in killed lost edited longer; do
        ends_alike $folder
        check "$folder: where it went on" grep -q "^going on from step $step, after $rows epochs$" stdout
    done
    # A run that has ended has nothing left to do but to put its folder in order.
    cp -r whole ended
    cat whole/log.csv whole/log.csv >ended/log.csv
    for file in model.safetensors last.safetensors log.csv loss.svg; do head -c 99 whole/$file >ended/$file.1.tmp; done
    ends_alike ended
done

report resume
