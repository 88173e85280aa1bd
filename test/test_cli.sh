#!/bin/sh
# The real trainers from outside, on very small models: the first run in an empty folder, wrong flags, bad data and
# models, a full disk, stopping and resuming. TRAIN_GPT_MUSIC and TRAIN_LSTM_MUSIC are the programs; data_prep/
# compose_music and prepare_music must have been built beside them.
# shellcheck disable=SC2086 # flags are split into words
. "$(dirname "$0")/check.sh"
gpt=${TRAIN_GPT_MUSIC:-$root/train_gpt_music}
lstm=${TRAIN_LSTM_MUSIC:-$root/train_lstm_music}
needs cli "$gpt" "$lstm"

# run STATUS FLAGS...: the trainer ends with this status; its words are in stdout and stderr
run() {
    wanted=$1
    shift
    "$trainer" "$@" >stdout 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}

says() { # in one sentence, the last line on stderr
    check "stderr should end with a sentence with: $1" grep -q -F -e "$1" last_line
}

refuses() { # STATUS WORDS FLAGS...
    wanted=$1
    words=$2
    shift 2
    run "$wanted" "$@"
    tail -n 1 stderr >last_line
    says "$words"
    check "the sentence should begin with the program's name: $*" grep -q '^[a-z_]*: ' last_line
}

# limited WORDS FLAGS...: within 400,000 KiB of memory the trainer ends with a sentence that has these words
limited() {
    words=$1
    shift
    # shellcheck disable=SC3045
    (ulimit -v 400000 && exec "$trainer" --threads 1 "$@" >stdout 2>stderr)
    check "it is no failure within a limit: $*" test $? -eq 1
    tail -n 1 stderr >last_line
    says "$words"
}

ends_with() { # DESCRIPTION EXPRESSION: stdout does
    tail -n 1 stdout >last_line
    check "$1" grep -q -E -e "$2" last_line
}

same() {
    check "$1 is empty" test -s "$1"
    check "$1 and $2 differ" cmp -s "$1" "$2"
}

# same_log FOLDER: its log.csv is that of whole but for the seconds
same_log() {
    cut -d, -f1-6 $model/whole/log.csv >whole.log
    cut -d, -f1-6 $model/$1/log.csv >$1.log
    same whole.log $1.log
}

# tensors FILE [NAME]: the names of its tensors, of those that begin so, on a line
tensors() {
    sed -n "s/^\"\($2[^\"]*\)\":{\"dtype\".*/\1/p" "$1" | tr '\n' ' '
}

# choose MODEL: what follows is about this one
choose() {
    model=$1
    case $model in
    gpt)
        trainer=$gpt
        sizes="--layers 2 --width 16 --heads 2 --hidden 24 --rel 12"
        lr=0.001
        ;;
    lstm)
        trainer=$lstm
        sizes="--layers 2 --width 16 --embed 12"
        lr=0.0005
        ;;
    esac
    tiny="$sizes --threads 1 --window 24 --batch 2 --epoch-size 0.0004 --eval-stride 5000"
}

# ---- what every run does, whatever the model is

# The first run: no folder data, so the starter corpus is composed, said on stderr.
choose gpt
run 0 $tiny --epochs 1 --out first
check "the composing was announced" grep -q "composing the starter corpus" stderr
check "the music is there" test -s data/train.safetensors
"$trainer" --version >/dev/full 2>stderr
check "a full stdout is an error" test $? -eq 1

# Wrong usage.
refuses 2 "--bach: there is no such flag" --bach 4
refuses 2 "--batch 0: " --batch 0
refuses 2 "--lr nan: " --lr nan
refuses 2 "--steps 1x: " --steps 1x
refuses 2 "--window: its value is missing" --window
refuses 2 "--precision fp8: " --precision fp8
refuses 2 "song.mid" song.mid

# Bad data: no folder, an empty file, text, a cut file, a token that is none, no windows.
refuses 1 "nowhere" --data nowhere --out two
mkdir bad
refuses 1 "bad/train.safetensors: is missing" --data bad --out two
cp data/test.safetensors bad
: >bad/train.safetensors
refuses 1 "bad/train.safetensors: " --data bad --out two
echo "once upon a time there was no music" >bad/train.safetensors
refuses 1 "bad/train.safetensors: " --data bad --out two
head -c 5000 data/train.safetensors >bad/train.safetensors
refuses 1 "bad/train.safetensors: " --data bad --out two
dataset() { # LAST_TOKEN_IN_OCTAL: pieces [0, 32], 32 tokens
    header='{"__metadata__":{"format":"music-tokens/1","names":"a"},'
    header=$header'"pieces":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},'
    header=$header'"tokens":{"dtype":"U8","shape":[32],"data_offsets":[16,48]}} '
    printf '%b\0\0\0\0\0\0\0%s' "\\0$(printf %o ${#header})" "$header"
    printf '\0\0\0\0\0\0\0\0\040\0\0\0\0\0\0\0'
    printf '1234567890123456789012345678901%b' "\\0$1"
}
dataset 231 >bad/train.safetensors # 153
refuses 1 "bad/train.safetensors: " --data bad --out two
check "the sentence names the token" grep -q 153 last_line
dataset 230 >bad/train.safetensors # 152
refuses 1 "bad/train.safetensors: none of its 1 pieces" --data bad --out two
check "bad data have made no --out" test ! -e two
run 0 $tiny --data bad --batch 4 --steps 1 --out 152

# ---- each model

for model in gpt lstm; do
    choose $model
    out=$model/one
    run 0 $tiny --epochs 1 --out $out
    check "an epoch's line" grep -q -E "^epoch 1  train [0-9.]+  test [0-9.]+  lr $lr  steps [0-9]+  [0-9.]+ s\$" stdout
    check "the parameters were counted" grep -q -E "^$model, [0-9]+,[0-9]+ parameters:.* layers 2" stdout
    for file in model.safetensors last.safetensors log.csv loss.svg; do
        check "$file is there" test -s $out/$file
    done
    check "log.csv has its head" grep -q '^epoch,step,train_loss,test_loss,lr,steps,seconds$' $out/log.csv

    run 0 --help
    all="data out recipe batch window epoch-size epochs patience steps lr lr-decay lr-min warmup weight-decay
        average dropout transpose seed eval-stride init resume eval dump bench precision threads help version
        $(echo "$sizes" | sed 's/[-0-9]//g')"
    for flag in $all; do
        check "--help names --$flag" grep -q -e "^  --$flag " stdout
    done
    check "--help names no other flags" test "$(grep -c '^  --' stdout)" -eq "$(echo $all | wc -w)"
    run 0 --version
    check "--version" grep -q "^$(basename "$trainer") [0-9]" stdout

    # Sizes that cannot be.
    refuses 2 "--layers 0: it must be a whole number from 1" --layers 0
    refuses 2 "--width 16.5: " --width 16.5
    refuses 2 "more than 2^30 tokens a step" --batch 65536 --window 65536
    case $model in
    gpt)
        refuses 2 "--width 256 is not a multiple of --heads 7" --heads 7
        refuses 2 "--embed: there is no such flag" --embed 64
        ;;
    lstm)
        refuses 2 "--embed 0: it must be a whole number from 1" --embed 0
        refuses 2 "--heads: there is no such flag" --heads 16
        ;;
    esac

    # Bad models.
    cp $out/model.safetensors model
    before=$(cat $out/* | cksum)
    refuses 1 "nothing: " --eval --init nothing
    refuses 1 "data/test.safetensors: tensor 'emb.weight' [any, any] is missing" --eval --init data/test.safetensors
    head -c 9000 model >'cut'
    refuses 1 "cut: " --eval --init cut
    sed '/^"emb.weight"/s/\[153,12\]/[1836]  /; /^"emb.weight"/s/\[153,16\]/[2448]  /' model >flat
    refuses 1 "flat: tensor 'emb.weight' has the shape [" --eval --init flat
    case $model in
    gpt)
        head='head' key=layers.1.attn.qkv.weight shape='[48, 16]'
        sed 's/"layers.1.ln1.bias"/"layers.99999.bias"/' model >many
        ;;
    lstm)
        head=head.9 key=lstm.weight_hh_l1 shape='[64, 16]'
        sed 's/"lstm.bias_hh_l1"/"lstm.bia_l99999"/' model >many
        sed '/^"lstm.weight_ih_l1"/s/\[64,16\]/[16,64]/' model >misshaped
        refuses 1 "misshaped: tensor 'lstm.weight_ih_l1' has the shape [16, 64] instead of [64, 16]" \
            --eval --init misshaped
        ;;
    esac
    refuses 1 "many: its tensors name 100000 layers; a model has at most 1000" --eval --init many
    sed "s/\"$key\"/\"$(echo $key | sed s/weight/wright/)\"/" model >missing
    refuses 1 "missing: tensor '$key' $shape is missing" --eval --init missing
    sed "s/\"$head.bias\"/\"$head.bios\"/" model >missing
    refuses 1 "missing: tensor '$head.bias' [153] is missing" --eval --init missing
    sed "/^\"$head.weight\"/s/\[153,16\]/[16,153]/" model >misshaped
    refuses 1 "misshaped: tensor '$head.weight' has the shape [16, 153] instead of [153, 16]" --eval --init misshaped
    refuses 2 "--layers 3: model has 2" --eval --init model --layers 3

    # A small file that names a large model is refused before there is memory for it; limits are named.
    zero='"dtype":"F16","data_offsets"'
    case $model in
    gpt)
        header="{\"emb.weight\":{$zero:[0,8192],\"shape\":[1,4096]},\"layers.0.attn.rel\":{$zero:[8192,8194],"
        header="$header\"shape\":[1,1]},\"layers.0.fc1.weight\":{$zero:[8194,8196],\"shape\":[1,1]}}"
        ;;
    lstm)
        header="{\"emb.weight\":{$zero:[0,0],\"shape\":[0,64]},"
        header="$header\"lstm.weight_hh_l0\":{$zero:[0,0],\"shape\":[0,4096]}}"
        ;;
    esac
    tensors_file "$header" >small
    test $model = lstm || printf '%08196d' 0 >>small
    limited "small: tensor 'emb.weight' has the shape [" --init small
    limited "and ulimit -v grants 0.41 GB in all; take a smaller --batch, --window or model" --width 4096

    # As PyTorch saves what it has wrapped.
    wrapped module._orig_mod. model >from_torch
    run 0 --eval --init model --eval-stride 5000
    tail -n 1 stdout >whole_line
    run 0 --eval --init from_torch --eval-stride 5000
    ends_with "a wrapped model has the same loss" "^$(cat whole_line)\$"

    # --eval, --bench, --dump.
    run 0 --eval --out $out --eval-stride 5000 --batch 2
    ends_with "the last line of --eval" '^eval loss=[0-9]\.[0-9]{6} windows=[0-9]+ tokens=[0-9]+ stride=5000$'
    test_loss=$(sed -n '2s/^[^,]*,[^,]*,[^,]*,\([^,]*\),.*/\1/p' $out/log.csv | cut -c 1-6)
    ends_with "--eval finds the logged test loss $test_loss" "loss=$test_loss"
    run 0 $tiny --bench 3
    words="^bench model=$model device=[a-z]+ precision=[a-z0-9]+ batch=2"
    ends_with "the last line of --bench" "$words ms_per_step=[0-9.e+-]+ tokens_per_s=[0-9]+ gflop_per_s=[0-9.e+-]+$"
    run 0 $tiny --dump dump
    ends_with "the last line of --dump" '^step 0, loss [0-9.]+: dump$'
    case $model in
    gpt)
        activations="act.emb "
        for layer in 0 1; do
            for name in attn fc1 ln1 ln2 qkv; do activations="${activations}act.layers.$layer.$name "; done
        done
        ;;
    lstm) activations="act.c_l0 act.c_l1 act.h_l0 act.h_l1 act.head.3 act.head.7 " ;;
    esac
    check "the dump's activations: $(tensors dump act)" test "$(tensors dump act)" = "$activations"
    for kind in param grad new; do
        check "the dump has $kind. of every tensor" \
            test "$(tensors dump $kind | sed "s/$kind\.//g")" = "$(tensors model)"
    done
    check "the dump's other tensors" \
        test "$(tensors dump '[ilt]')$(tensors dump lo)" = "input target logits loss logits loss "
    check "looking has changed nothing" test "$(cat $out/* | cksum)" = "$before"

    # The published learning rates, an epoch of one step each.
    case $model in
    gpt) rates="0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001 " ;;
    lstm)
        rates="0.0005 0.0004 0.00032 0.000256 0.0002048 0.00016384 0.000131072 0.0001048576 8.388608e-05 6.7108864e-05 "
        rates="${rates}5.36870912e-05 5e-05 5e-05 5e-05 "
        ;;
    esac
    run 0 $tiny --epoch-size 1e-9 --epochs 14 --patience 14 --out $model/schedule
    check "the schedule" test "$(sed 1d $model/schedule/log.csv | cut -d, -f5 | tr '\n' ' ')" = "$rates"
    check "epochs of one step" \
        test "$(sed 1d $model/schedule/log.csv | awk -F, '$1 == NR && $2 == NR && $6 == 1' | wc -l)" -eq 14

    # Any number of threads, stopping by --steps, SIGTERM and SIGKILL: always the same bytes.
    flags="$tiny --epoch-size 0.005 --epochs 3"
    whole=$model/whole
    run 0 $flags --out $whole
    run 0 $flags --steps 300 --out $model/parts
    run 0 $flags --steps 200 --threads 2 --out $model/threads
    run 0 $flags --steps 300 --resume --out $model/threads
    same $model/parts/model.safetensors $model/threads/model.safetensors
    same $model/parts/last.safetensors $model/threads/last.safetensors
    run 0 $flags --resume --out $model/parts
    same $whole/model.safetensors $model/parts/model.safetensors
    same $whole/last.safetensors $model/parts/last.safetensors
    same $whole/loss.svg $model/parts/loss.svg
    same_log parts
    for signal in TERM KILL; do
        killed=$model/$signal
        "$trainer" $flags --out $killed >stdout 2>stderr &
        process=$!
        tries=0
        while test ! -s $killed/log.csv && test $tries -lt 100; do # until it can be resumed
            sleep 0.05
            tries=$((tries + 1))
        done
        kill -$signal $process 2>/dev/null
        wait $process 2>/dev/null
        status=$?
        if test $signal = TERM && test $status -ne 0; then # it came before the end
            check "SIGTERM ends with $status" test $status -eq 1
            check "the command that goes on is printed" grep -q -e " --resume$" stderr
            command=$(tail -n 1 stderr)
            refuses 1 "its run has not ended; go on with --resume, or give another --out" $flags --out $killed
            eval "$command" >stdout 2>stderr
            check "the command that is printed goes on" test $? -eq 0
        else
            run 0 $flags --resume --out $killed
        fi
        same $whole/model.safetensors $killed/model.safetensors
        same $whole/last.safetensors $killed/last.safetensors
        same_log $signal
    done

    # A learning rate that blows the model up: a sentence, and the earlier run in the folder is still there.
    before=$(cat $out/* | cksum)
    refuses 1 "no longer finite" $tiny --lr 1e38 --out $out
    check "the sentence names a tensor" grep -q "is the first tensor that is not finite" last_line
    refuses 1 "finite" $tiny --lr 1e30 --out $out
    check "the earlier run is as it was" test "$(cat $out/* | cksum)" = "$before"
done

# The other model's files.
choose gpt
refuses 1 "lstm/one/model.safetensors: it holds an LSTM" --eval --init lstm/one/model.safetensors
refuses 1 "lstm/one/last.safetensors: it holds an LSTM" --init lstm/one/last.safetensors
refuses 1 "lstm/one/last.safetensors: it is the state of a model 'lstm', and this trains 'gpt'" --resume --out lstm/one
choose lstm
refuses 1 "gpt/one/model.safetensors: it holds a Transformer" --eval --init gpt/one/model.safetensors
refuses 1 "gpt/one/last.safetensors: it holds a Transformer" --init gpt/one/last.safetensors
refuses 1 "gpt/one/last.safetensors: it is the state of a model 'gpt', and this trains 'lstm'" --resume --out gpt/one

# ---- again, whatever the model is

choose gpt
before=$(cat first/* | cksum)

# A full disk.
(ulimit -f 8 && exec "$trainer" $tiny --out first >stdout 2>stderr)
check "a full disk is an error" test $? -eq 1
tail -n 1 stderr >last_line
says "last.safetensors: cannot be written"
check "a full disk has changed the folder" test "$(cat first/* | cksum)" = "$before"
refuses 1 "data/train.safetensors is a file, not a folder" $tiny --out data/train.safetensors/deeper
check "no word before that" test ! -s stdout

# What --resume refuses.
refuses 2 "--batch 3: the run in first has 2" --resume --out first --batch 3
refuses 2 "--seed 2: the run in first has 1" --resume --out first --seed 2
refuses 2 "start anew from its weights, by --init first/last.safetensors, in another --out" --resume --out first --lr 1
refuses 1 "there is no run to go on with" --resume --out void
refuses 1 "data/train.safetensors" --resume --out 152 --data data

# Weights that are not numbers.
size=$(wc -c <first/model.safetensors)
{
    head -c $((size - 4)) first/model.safetensors
    printf '\0\0\300\177'
} >nan
refuses 1 "' has a number that is not finite" --eval --init nan
check "nothing like nan is printed" sh -c '! grep -q nan stdout'
refuses 1 "nan: tensor '" $tiny --init nan --out first
check "the earlier run is as it was" test "$(cat first/* | cksum)" = "$before"

# A new run in a used folder keeps the best model.
cp first/model.safetensors kept
run 0 $tiny --epochs 1 --seed 9 --out first
same kept first/model.prev.safetensors

report cli
