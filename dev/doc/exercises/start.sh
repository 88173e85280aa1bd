#!/bin/sh
# start.sh N [FOLDER]: exercise N of dev/doc/exercises.md, in a copy of the tree with what the exercise breaks or adds
# [build/exercise/N]. N.patch makes it of the tree, N.solution.patch solves it.
tree=$(cd "$(dirname "$0")/../../.." && pwd) || exit 1
patches=$tree/dev/doc/exercises n=$1 copy=${2:-build/exercise/$1}
die() {
    echo "make exercise N=$n: $1" >&2
    exit "$2"
}
[ -f "$patches/$n.patch" ] || die "N must be one of $(cd "$patches" && echo [0-9].patch | sed 's/\.patch//g')" 2
command -v patch >/dev/null || die "there is no patch; install it" 1
[ -n "$2" ] || cd "$tree" || exit 1
[ ! -e "$copy" ] || die "$copy is there already, with your work; remove it to begin anew" 1
make_copy() {
    mkdir -p "$copy" && cp -R "$tree/Makefile" "$tree"/*.c "$tree"/*.h "$tree"/*.cu "$tree/data_prep" "$tree/dev" \
        "$tree/test" "$tree/.clang-format" "$copy" && patch -s -p1 -d "$copy" <"$patches/$n.patch" &&
        chmod +x "$copy"/test/test_*.sh
}
make_copy || die "$copy could not be made" 1
awk -v n="$n." '/^(## |Next: )/ { on = $2 == n } on' "$patches/../exercises.md"
echo "Your copy is $copy. Is it done? make -C $copy check T=exercise"
