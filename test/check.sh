# What the test scripts share; each sources it first. It names the checkout $root, goes to a scratch folder that ends with the
# script, as does the program $process in the background, and counts what held.
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
scratch=$(mktemp -d "${TMPDIR:-/tmp}/music_test.XXXXXX") || exit 1
process=
trap 'test -z "$process" || kill -KILL $process 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
cd "$scratch" || exit 1
LC_ALL=C
export LC_ALL
passed=0
failed=0
model=

# check DESCRIPTION COMMAND...: the command succeeds; if not, the end of the file stderr is shown. $model, where a script
# sets it, is the model that it is about.
check() {
    description=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL ${model:+$model: }$description"
        test ! -s stderr || tail -n 5 stderr | sed 's/^/    /'
    fi
}

# needs NAME PROGRAM...: ends the test called NAME where one of these was not built
needs() {
    name=$1
    shift
    for program in "$@"; do
        test -x "$program" && continue
        echo "FAIL $program is not there; build it with make"
        echo "$name: 0 passed, 1 failed"
        exit 1
    done
}

# report NAME: the closing line, and the exit status
report() {
    echo "$1: $passed passed, $failed failed"
    test "$failed" -eq 0 && test "$passed" -gt 0
}
