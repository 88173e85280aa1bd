#!/bin/sh
# The exercises of dev/doc/exercises.md: each patch fits the tree, its solution fits on top, and each has its section.
# The slow tests also make each exercise, see its check fail, and with the solution pass with the line of the page.
. "$(dirname "$0")/check.sh"
exercises=$root/dev/doc/exercises
page=$root/dev/doc/exercises.md
if ! command -v patch >/dev/null; then
    echo "skipped: exercises, there is no patch"
    check "the page" test -s "$page"
    report exercises
    exit
fi
run() { "$@" >stdout 2>stderr; }
start() { TMPDIR='' run "$exercises/start.sh" "$@"; }
solve() { run patch -s -p1 -d "$1" <"$exercises/$n.solution.patch"; }
ends() { MAKEFLAGS='' run make -C "$scratch/$n" check T=exercise; } # its status is that of the check

start 9 none
check "exercise 9" test $? -eq 2 -a "$(wc -l <stderr)" -eq 1 -a ! -e none
for n in 1 2 3 4 5 6; do
    check "exercise $n" start $n "$scratch/$n"
    check "exercise $n: what is to do" grep -q "^## $n\. " stdout
    sed -n 's/^    \(exercise: [0-9]* passed, 0 failed\)$/\1/p' stdout >success.$n
    check "exercise $n: the line of success" test -s success.$n
    if test -n "$TEST_LONG"; then
        ends
        status=$?
        check "exercise $n fails unsolved" grep -q '^exercise: .* [1-9][0-9]* failed$' stdout
        check "exercise $n: its status" test $status -ne 0
    fi
    check "solution $n" solve "$scratch/$n"
    if test -n "$TEST_LONG"; then
        check "exercise $n passes solved" ends
        check "exercise $n: as the page says" grep -q -x -f success.$n stdout
    fi
done
start 1 "$scratch/1"
check "what is there is left alone" test $? -eq 1 -a "$(grep -c 'is there already' stderr)" -eq 1
report exercises
