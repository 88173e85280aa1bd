#!/bin/sh
# How the sources look: C and CUDA are formatted by clang-format 14, shell scripts pass shellcheck, no line has more
# than 120 columns, and no line of a comment has a word or two alone after a long one.
. "$(dirname "$0")/check.sh"
cd "$root" || exit 1
found=$scratch/found

# files PATTERN...: the files of the checkout with such names; where git cannot tell, all but what make
# and programs write
files() {
    git ls-files -- "$@" 2>/dev/null && return
    for pattern in "$@"; do
        find . \( -name build -o -name data -o -name out \) -prune -o -type f -path "./*${pattern#\*}" -print
    done
}

# none DESCRIPTION: nothing was found, else it is listed
none() {
    check "$1" test ! -s "$found"
    sed 's/^/    /' "$found"
}

code=$(files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')
scripts=$(files '*.sh' test/run .ci/run)
others=$(files Makefile '*.py' '*.sed' '*.awk')
pages=$(files '*.md')
# shellcheck disable=SC2086 # no name here has a space
set -- $code
check "there are sources" test $# -gt 40

format=$(command -v clang-format-14 || command -v clang-format)
case $format,$($format --version 2>/dev/null) in
*version\ 14.*)
    $format --dry-run -Werror "$@" 2>&1 | sed -n 's/^\([^:]*:[0-9]*\):.*error: .*/\1/p' >"$found"
    none "clang-format would change these lines (make format):"
    ;;
,*) echo "skipped: formatting, there is no clang-format 14" ;;
*) echo "skipped: formatting, $format is not version 14" ;;
esac

# shellcheck disable=SC2086 # here neither
if command -v shellcheck >/dev/null; then
    shellcheck -x -P SCRIPTDIR -f gcc $scripts >"$found"
    none "shellcheck says:"
else
    echo "skipped: shell scripts, there is no shellcheck"
fi

for file in $code $scripts $others $pages; do
    case $file in *.sed) continue ;; esac # its expressions cannot be cut
    expand "$file" | LC_ALL=C.UTF-8 grep -n '^.\{121,\}' | sed "s|:.*||; s|^|$file:|"
done >"$found"
none "lines over 120 columns:"

# shellcheck disable=SC2086
awk 'FNR == 1 { before = 0 }
    !match($0, /^[ \t]*(\/\/|#) [^ ]/) { before = 0; next }
    { words = split(substr($0, RLENGTH), word) }
    before > 70 && words <= 2 && RLENGTH == margin && word[1] !~ /^(clang-format|shellcheck)$/ {
        print FILENAME ":" FNR ": " substr($0, RLENGTH) }
    { before = length($0); margin = RLENGTH }' $code $scripts $others >"$found"
none "one or two words alone on a line of a comment:"

# The C++ compiler of a C compiler, by its name.
while IFS='>' read -r cc cxx; do
    got=$(MAKEFLAGS="" make -C "${root:?}" -pn CC="$cc" help 2>/dev/null | sed -n 's/^CXX := //p')
    check "CC=$cc has CXX=$got" test "$got" = "$cxx"
done <<'END'
cc>c++
gcc-13>g++-13
clang-14>clang++-14
aarch64-linux-gnu-gcc-12>aarch64-linux-gnu-g++-12
ccache gcc -I/opt/gcc/x>ccache g++ -I/opt/gcc/x
/opt/clang+llvm/bin/clang>/opt/clang+llvm/bin/clang++
END
report style
