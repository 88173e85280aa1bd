#!/bin/sh
# The fuzz targets (test/fuzz): each keeps its promises on its seeds, on the inputs that failed once and on some
# thousand new ones, always the same. Each finds a read beyond memory that is planted where only inputs come that got as
# far as they can: the twentieth of them, which is none of the seeds. TEST_LONG=yes takes twenty times as long.
. "$(dirname "$0")/check.sh"
set -- "$root"/test/fuzz/fuzz_*.c
if test ! -x "$root/build/fuzz_midi"; then
    echo "skipped: fuzzing, there is no clang with its fuzzer (make fuzz)"
    check "there are fuzz targets" test $# -gt 7
    report fuzz
    exit
fi
runs=8000 seconds=1
test -z "$TEST_LONG" || runs=400000 seconds=20

# planted TARGET: its fault is found
planted() {
    (cd "$root" && FUZZ_FOLDER=$scratch FUZZ_PLANTED=20 "build/fuzz_$1" -seed=1 -runs=100000 -max_len=12000 \
        -artifact_prefix="$scratch/" "build/fuzz/seeds/$1") >stdout 2>stderr
    grep -q 'AddressSanitizer: heap-buffer-overflow' stderr
}

for source; do
    target=$(basename "$source" .c)
    target=${target#fuzz_}
    check "$target keeps its promises" "$root/test/fuzz/run.sh" "$scratch" "$target" -seed=1 \
        -runs=$runs -max_total_time=$seconds -timeout=100
    check "$target finds a planted fault" planted "$target"
done
report fuzz
