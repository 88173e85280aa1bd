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

# emulate FLAGS SOURCE.cu...: makes C++ of these files of the checkout and of dev/cuda, where the compiler looks before it
# looks in the checkout, and with FLAGS makes of the first the programs ./plain (-O1, no -g), ./sanitized and ./race.
# shellcheck disable=SC2086
emulate() {
    flags=$1 file=${2%.cu}.cpp
    shift
    mkdir -p dev/cuda test
    for cuda in "$@" $(cd "$root" && echo dev/cuda/*.cuh); do
        { echo "#line 1 \"$cuda\"" && sed -f "$root/dev/emu/cuda2cpp.sed" "$root/$cuda"; } >"$cuda" || exit 1
    done
    mv "$1" "$file"
    case ${CC:-cc} in *clang*) CXX=${CXX:-clang++} ;; *) CXX=${CXX:-g++} ;; esac
    openmp=
    echo 'int main() {}' | $CXX -fopenmp -x c++ - -o probe 2>/dev/null && openmp=-fopenmp
    check "plain build" compile $flags -g0 -O1 $openmp "$file" -o plain
    check "build with sanitizers" compile $flags $openmp -fsanitize=address,undefined -fno-sanitize-recover=all \
        "$file" -o sanitized
    check "build for the race check" compile $flags -fsanitize=thread -c "$file" -o race.o
    check "the race check itself" compile -O1 race.o "$root/dev/emu/cuda_emu_race.cpp" -o race
}
# shellcheck disable=SC2086
compile() { nice $CXX -std=c++17 -Wall -Wextra -Werror -I. -Idev -I"$root" -I"$root/dev" -I"$root/test" "$@" >stdout 2>stderr; }

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
        grep -o -e "$kernel<<<[^;]*; *[^;]*;" -e "cudaLaunchCooperativeKernel([^;]*; *[^;]*;" |
        grep -v -e "^\($kernel\)<<<[^;]*; *LAUNCHED(\1);" -e "Kernel(\($kernel\),[^;]*; *LAUNCHED(\1);"
}

# report NAME: the closing line, and the exit status
report() {
    echo "$1: $passed passed, $failed failed"
    test "$failed" -eq 0 && test "$passed" -gt 0
}
