#!/bin/sh
# Other processors and another C library, as far as compilers for them and QEMU are here (in Debian the packages
# gcc-aarch64-linux-gnu and the like, musl-tools, qemu-user): the programs are built without a warning, small tests run,
# and a corpus, its data set, the first weights of both models and the windows of a step are the same bytes as here. On
# 32 bits a batch that needs more than addresses reach is refused in a sentence.
. "$(dirname "$0")/check.sh"
programs="data_prep/compose_music data_prep/prepare_music build/train_gpt_music_cpu build/train_lstm_music_cpu"
# shellcheck disable=SC2046,SC2086 # names of programs
needs machines $(printf " $root/%s" $programs) "$root/dev/tools/compare_tensors"

# quietly COMMAND...: what it says is shown where it fails
quietly() { "$@" >stderr 2>&1; }

# make_files CHECKOUT RUN...: a corpus, its data set and a step of each model, by the checkout's programs
make_files() {
    checkout=$1
    shift
    small="--data data --layers 2 --window 32 --batch 5 --seed 7 --dropout 0.1"
    # shellcheck disable=SC2086 # $small is flags
    {
        "$@" "$checkout/data_prep/compose_music" --out midi &&
            "$@" "$checkout/data_prep/prepare_music" --out data midi/train midi/test &&
            "$@" "$checkout/build/train_gpt_music_cpu" $small --width 32 --heads 2 --hidden 40 --dump gpt &&
            "$@" "$checkout/build/train_lstm_music_cpu" $small --embed 24 --width 40 --dump lstm
    } >stdout 2>stderr
}

# same_step MODEL: the same bytes of weights and windows, and nearly the same of what follows from them. The sign of a
# gradient that is almost zero decides where its weight goes.
same_step() {
    "$root/dev/tools/compare_tensors" compare "here/$1" "$1" --quiet --rtol 1e-3 --rtol 'new.*=0.1' \
        --rtol 'param.*=0' --rtol input=0 --rtol target=0 --require 'param.*' --require 'grad.*' --require input \
        >stdout 2>stderr
}

refused() { # MODEL RUN...: the batch, in a sentence
    trainer=build/train_$1_music_cpu
    shift
    "$@" "$trainer" --bench 1 --batch 200 >stdout 2>stderr
    test $? -eq 1 && grep -q 'would take [0-9.]* GB, and addresses reach 2.15 GB' stderr
}

# machine NAME COMPILER CFLAGS BITS RUN...
machine() {
    model=$1 compiler=$2 flags=$3 bits=$4
    shift 4
    for program in "$compiler" "$@"; do
        command -v "$program" >/dev/null && continue
        echo "skipped: $model, there is no $program"
        return
    done
    mkdir "$model"
    cd "$model" || exit 1
    (cd "$root" && tar cf - Makefile ./*.c ./*.h ./*.cu data_prep/*.c test dev) | tar xf -
    tests="philox data midi safetensors flags vector matmul"
    # shellcheck disable=SC2046,SC2086 # several targets
    check "the programs" quietly env MAKEFLAGS= make -s -j2 CC="$compiler" DEVICE=cpu OPENMP=no NATIVE= \
        CFLAGS="-O1 -Werror $flags" LDFLAGS=-static $programs sample_music $(printf ' build/test_%s' $tests)
    slower=1
    test $# -eq 0 || slower=10 # QEMU translates the program
    for test in $tests; do check "test_$test" quietly env TEST_SLOWER=$slower "$@" "build/test_$test"; done
    ln -s ../here .
    check "its files" make_files "$PWD" "$@"
    check "the same corpus" diff -r midi here/midi
    check "the same data set" diff -r data here/data
    for step in gpt lstm; do
        check "the same weights and windows of the $step" same_step $step
        test "$bits" -eq 64 || check "a batch of the $step that is too large" refused $step "$@"
    done
    cd .. && rm -rf "$model"
}

mkdir here
cd here || exit 1
check "the files here" make_files "$root"
cd ..
intel=qemu-i386
test "$(uname -m)" != x86_64 || intel=
machine aarch64 aarch64-linux-gnu-gcc "" 64 qemu-aarch64
# x87 would round to other widths
# shellcheck disable=SC2086 # it may be none
machine i686 i686-linux-gnu-gcc "-msse2 -mfpmath=sse" 32 $intel
machine armhf arm-linux-gnueabihf-gcc "" 32 qemu-arm
machine riscv64 riscv64-linux-gnu-gcc "" 64 qemu-riscv64
machine ppc64le powerpc64le-linux-gnu-gcc "" 64 qemu-ppc64le
machine musl musl-gcc "" 64
report machines
