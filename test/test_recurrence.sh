#!/bin/sh
# The LSTM's recurrence in the emulator, test_recurrence.cu: plain, with sanitizers and with the race check, to the same
# bytes in any order of threads; the published width in cooperative launches; with clusters and without.
#   test_recurrence.sh [all]     all: all sizes and orders
# shellcheck disable=SC2046 # a run is split into words
. "$(dirname "$0")/check.sh"
emulated test_recurrence

# run BUILD ORDER SIZES fast|clusters: all checks hold, these kernels were used, and the bytes of all results are those
# of the build's first run of the same
run() {
    test "$4" = clusters && clusters=1 || clusters=0
    CUDA_EMU_ORDER=$2 CUDA_EMU_CLUSTERS=$clusters CUDA_EMU_MULTIPROCESSORS=64 nice ./"$1" "$3" >stdout 2>stderr ||
        { grep FAIL stdout; false; } || return 1
    test "$(sed -n 's/^bf16 \([cf][a-z]*\).*/\1/p' stdout | sort -u)" = "$4" || return 1
    grep '^bytes' stdout >bytes.txt && { test -f "$1.$3.$4" || cp bytes.txt "$1.$3.$4"; } && cmp bytes.txt "$1.$3.$4"
}
runs="plain:fwd:some plain:rev:some plain:rand:some plain:rand:large sanitized:rev:quick race:fwd:quick race:rand:quick"
test "$1" = all && runs="$runs plain:fwd:all plain:rev:large sanitized:fwd:some race:rev:some race:rand:some"
for run in $runs; do
    for kernels in fast clusters; do
        check "$run:$kernels" run $(echo "$run:$kernels" | tr : ' ')
    done
done
line=$(grep -n 'here: past' "$root/test/test_recurrence.cu" | sed 's/:.*//')
past() {
    ! ./sanitized past >stdout 2>stderr && grep -q use-after-poison stderr &&
        grep -q "test_recurrence.cu:$line" stderr
}
check "a store past a piece of the model's memory is found" past
report recurrence
