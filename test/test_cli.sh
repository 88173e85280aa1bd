#!/bin/sh
# The real trainer from outside, on a very small Transformer: the first run in an empty folder, wrong flags, bad data and
# models, a full disk, resuming, killing. TRAIN_GPT_MUSIC is the program; data_prep/compose_music and prepare_music must
# have been built beside it.
trainer=${TRAIN_GPT_MUSIC:-./train_gpt_music}
case $trainer in /*) ;; *) trainer=$PWD/$trainer ;; esac
if ! test -x "$trainer"; then
    echo "FAIL $trainer is not there; build it, or name it in TRAIN_GPT_MUSIC"
    echo "cli: 0 passed, 1 failed"
    exit 1
fi
scratch=$(mktemp -d "${TMPDIR:-/tmp}/test_cli.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
cd "$scratch" || exit 1
LC_ALL=C
export LC_ALL
passed=0
failed=0

# check DESCRIPTION COMMAND...: the command succeeds
check() {
    description=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $description"
        sed 's/^/    /' stderr | tail -n 5
    fi
}

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

same() {
    check "$1 is empty" test -s "$1"
    check "$1 and $2 differ" cmp -s "$1" "$2"
}

tiny="--threads 1 --layers 2 --width 16 --heads 2 --hidden 24 --rel 12 --window 24 --batch 2 --epoch-size 0.0004 --eval-stride 5000"

# The first run: no folder data, so the starter corpus is composed, said on stderr; stdout has the epoch's line.
run 0 $tiny --epochs 1 --out one
check "the composing was announced" grep -q "composing the starter corpus" stderr
check "an epoch's line" grep -q -E '^epoch 1  train [0-9.]+  test [0-9.]+  lr 0.001  steps [0-9]+  [0-9.]+ s$' stdout
check "the parameters were counted" grep -q -E '[0-9,]+ parameters' stdout
for file in one/model.safetensors one/last.safetensors one/log.csv one/loss.svg data/train.safetensors; do
    check "$file is there" test -s $file
done
check "log.csv has its head" grep -q '^epoch,step,train_loss,test_loss,lr,steps,seconds$' one/log.csv
run 0 --help
check "--help names every flag" test "$(grep -c -E '^  --(data|out|batch|window|epoch-size|epochs|patience|steps|lr|lr-decay|lr-min|dropout|seed|layers|width|heads|hidden|rel|eval-stride|init|resume|eval|dump|bench|precision|threads|help|version) ' stdout)" -eq 28
run 0 --version
"$trainer" --version >/dev/full 2>stderr
check "a full stdout is an error" test $? -eq 1

# Wrong usage.
refuses 2 "did you mean --batch?" --bach 4
refuses 2 "--batch 0: " --batch 0
refuses 2 "--lr nan: " --lr nan
refuses 2 "--steps 1x: " --steps 1x
refuses 2 "--window: its value is missing" --window
refuses 2 "--heads" --heads 7
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
    header='{"__metadata__":{"format":"music-tokens/1","names":"a"},"pieces":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"tokens":{"dtype":"U8","shape":[32],"data_offsets":[16,48]}} '
    printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
    printf '\0\0\0\0\0\0\0\0\040\0\0\0\0\0\0\0'
    printf "1234567890123456789012345678901\\$1"
}
dataset 231 >bad/train.safetensors # 153
refuses 1 "bad/train.safetensors: " --data bad --out two
check "the sentence names the token" grep -q 153 last_line
dataset 230 >bad/train.safetensors # 152
refuses 1 "bad/train.safetensors: none of its 1 pieces" --data bad --out two
check "bad data have made no --out" test ! -e two
run 0 $tiny --data bad --batch 4 --steps 1 --out 152

# Bad models.
cp one/model.safetensors model
before=$(cat one/* | cksum)
refuses 1 "nothing: " --eval --init nothing
refuses 1 "data/test.safetensors: " --eval --init data/test.safetensors
head -c 9000 model >cut
refuses 1 "cut: " --eval --init cut
sed 's/"head.bias"/"head.bios"/' model >missing
refuses 1 "missing: tensor 'head.bias' [153] is missing" --eval --init missing
sed 's/"head.weight":{"dtype":"F32","shape":\[153,16\]/"head.weight":{"dtype":"F32","shape":[16,153]/' model >misshaped
refuses 1 "misshaped: tensor 'head.weight' has the shape [16, 153] instead of [153, 16]" --eval --init misshaped
refuses 2 "--layers 3: model has 2" --eval --init model --layers 3

# --eval, --bench, --dump.
run 0 --eval --out one --eval-stride 5000 --batch 2
check "the last line of --eval" sh -c 'tail -n 1 stdout | grep -q -E "^eval loss=[0-9]\.[0-9]{6} windows=[0-9]+ tokens=[0-9]+ stride=5000$"'
test_loss=$(sed -n '2s/^[^,]*,[^,]*,[^,]*,\([^,]*\),.*/\1/p' one/log.csv | cut -c 1-6)
check "--eval finds the logged test loss $test_loss" sh -c "tail -n 1 stdout | grep -q 'loss=$test_loss'"
run 0 $tiny --bench 3
check "the last line of --bench" sh -c 'tail -n 1 stdout | grep -q -E "^bench model=gpt device=[a-z]+ precision=[a-z0-9]+ batch=2 ms_per_step=[0-9.e+-]+ tokens_per_s=[0-9]+ gflop_per_s=[0-9.e+-]+$"'
run 0 $tiny --dump dump
check "the dump has what it should" sh -c 'for name in input target logits loss param.emb.weight new.head.bias grad.layers.1.attn.rel act.layers.0.qkv; do head -c 20000 dump | grep -a -q -F "\"$name\"" || exit 1; done'
check "looking has changed nothing" test "$(cat one/* | cksum)" = "$before"

# A full disk.
(
    ulimit -f 8 && "$trainer" $tiny --out one >stdout 2>stderr
    test $? -eq 1 && ulimit -f unlimited 2>/dev/null
    true
)
tail -n 1 stderr >last_line
says "last.safetensors: cannot be written"
rm -f one/model.prev.safetensors
check "a full disk has changed the folder" test "$(cat one/* | cksum)" = "$before"
refuses 1 "data/train.safetensors is a file, not a folder" $tiny --out data/train.safetensors/deeper
check "no word before that" test ! -s stdout

# Any number of threads, stopping by --steps, SIGTERM and SIGKILL: always the same bytes.
flags="$tiny --epoch-size 0.008 --epochs 3"
run 0 $flags --out whole
run 0 $flags --threads 2 --out threads
same whole/model.safetensors threads/model.safetensors
same whole/last.safetensors threads/last.safetensors
run 0 $flags --steps 5 --out parts
run 0 $flags --resume --out parts
same whole/model.safetensors parts/model.safetensors
same whole/last.safetensors parts/last.safetensors
same whole/loss.svg parts/loss.svg
cut -d, -f1-6 whole/log.csv >whole.log
cut -d, -f1-6 parts/log.csv >parts.log
same whole.log parts.log
refuses 2 "--batch 3: the run in parts has 2" --resume --out parts --batch 3
refuses 2 "--seed 2: the run in parts has 1" --resume --out parts --seed 2
refuses 1 "there is no run to go on with" --resume --out void
refuses 1 "data/train.safetensors" --resume --out 152 --data data

for signal in TERM KILL; do
    rm -rf killed
    "$trainer" $flags --out killed >stdout 2>stderr &
    process=$!
    tries=0
    while test ! -s killed/log.csv && test $tries -lt 100; do # until it can be resumed
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -$signal $process 2>/dev/null
    wait $process 2>/dev/null
    if test $signal = TERM && test -s stderr && grep -q -e --resume stderr; then
        # The command that it prints is the one that goes on.
        command=$(tail -n 1 stderr)
        eval "$command" >stdout 2>stderr
        check "the command that is printed goes on" test $? -eq 0
    else
        run 0 $flags --resume --out killed
    fi
    same whole/model.safetensors killed/model.safetensors
    same whole/last.safetensors killed/last.safetensors
    cut -d, -f1-6 killed/log.csv >killed.log
    same whole.log killed.log
done

# A new run in a used folder keeps the best model.
cp killed/model.safetensors kept
run 0 $tiny --epochs 1 --seed 9 --out killed
same kept killed/model.prev.safetensors

# A learning rate that blows the model up: a sentence, and the earlier run in the folder is still there.
before=$(cat killed/* | cksum)
refuses 1 "no longer finite" $tiny --lr 1e38 --out killed
check "the sentence names a tensor" grep -q "is the first tensor that is not finite" last_line
refuses 1 "finite" $tiny --lr 1e30 --out killed
check "the earlier run is as it was" test "$(cat killed/* | cksum)" = "$before"

# Weights that are not numbers.
size=$(wc -c <model)
{
    head -c $((size - 4)) model
    printf '\0\0\300\177'
} >nan
refuses 1 "' has a number that is not finite" --eval --init nan
check "nothing like nan is printed" sh -c '! grep -q nan stdout'
refuses 1 "nan: tensor '" $tiny --init nan --out killed
check "the earlier run is as it was" test "$(cat killed/* | cksum)" = "$before"

echo "cli: $passed passed, $failed failed"
test "$failed" -eq 0 && test "$passed" -gt 0
