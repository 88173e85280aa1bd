# What the test scripts share; each sources it first. It names the checkout $root, goes to a scratch folder that ends
# with the script, as does the program $process in the background, and counts what held.
# shellcheck shell=sh
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
scratch=$(mktemp -d "${TMPDIR:-/tmp}/music_test.XXXXXX") || exit 1
process=
trap 'test -z "$process" || kill -KILL $process 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
cd "$scratch" || exit 1
LC_ALL=C
export LC_ALL
# shellcheck disable=SC3045 # where there is no such limit, planted mistakes may leave core files
ulimit -c 0 2>/dev/null
passed=0
failed=0
model=

# check DESCRIPTION COMMAND...: the command succeeds; if not, the end of the file stderr is shown. $model, where a
# script sets it, is the model that it is about.
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

# emulated NAME: ./plain, ./sanitized and ./race are what the Makefile has made of test/NAME.cu through the emulator.
emulated() {
    for build in _emu _emu_sanitized _emu_race; do needs "$1" "$root/build/test/$1$build"; done
    ln -s "$root/build/test/$1_emu" plain
    ln -s "$root/build/test/$1_emu_sanitized" sanitized
    ln -s "$root/build/test/$1_emu_race" race
}

# octal NUMBER: bytes for printf, the two lowest of a number, the lower one first
octal() { printf '\\%03o\\%03o' $(($1 % 256)) $(($1 / 256 % 256)); }

# tensors_file HEADER: the head of a safetensors file, with a header of less than 64 KB
tensors_file() { printf "$(octal ${#1})\\0\\0\\0\\0\\0\\0%s" "$1"; }

# wrapped PREFIX FILE: a model with this before the names of its tensors
wrapped() {
    size=$(($(od -An -tu4 -N4 "$2")))
    tensors_file "$(tail -c +9 "$2" | head -c $size | sed "s/^\"\([^\"]*\":{\"dtype\"\)/\"$1\1/")"
    tail -c +$((9 + size)) "$2"
}

# kernels_of FILE...: the kernels that CUDA sources define, a name a line. ran FILE: those that ran, by what
# CUDA_EMU_KERNELS left in the file, without template arguments.
kernels_of() {
    sed 's|//.*||' "$@" | tr '\n' ' ' | sed 's/__launch_bounds__(\([^()]*([^()]*)\)*[^()]*)//g' |
        grep -o '__global__ *void *[A-Za-z0-9_]*' | sed 's/.* //' | sort -u
}
ran() { sed 's/<.*//' "$1" | sort -u; }

# unchecked FILE...: the launches in CUDA sources that no LAUNCHED() of the same kernel follows
unchecked() {
    kernel='[A-Za-z_][A-Za-z0-9_]*\(<[^<>;(){}]*>\)\{0,1\}'
    sed 's|//.*||' "$@" | tr '\n' ' ' | tr -s ' ' |
        grep -o -e "$kernel<<<[^;]*; *[^;]*;" -e "cudaLaunch[A-Za-z]*Kernel[A-Za-z]*([^;]*; *[^;]*;" |
        grep -v -e "^\($kernel\)<<<[^;]*; *LAUNCHED(\1);" -e "Kernel(\($kernel\),[^;]*; *LAUNCHED(\1);" \
            -e "KernelEx([^,]*, \($kernel\),[^;]*; *LAUNCHED(\1);"
}

# report NAME: the closing line, and the exit status
report() {
    echo "$1: $passed passed, $failed failed"
    test "$failed" -eq 0 && test "$passed" -gt 0
}
