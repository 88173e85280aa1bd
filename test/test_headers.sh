#!/bin/sh
# The shared headers compile as C11 and as C++17, each alone, without a warning.
. "$(dirname "$0")/check.sh"
cd "$root" || exit 1
strict='-Wall -Wextra -Werror -fsyntax-only'
case ${CC:-cc} in *clang*) CXX=clang++ ;; *) CXX=g++ ;; esac
for header in midi.h dev/base/*.h dev/recipe/*.h dev/models/*.h dev/cpu/host_model.h \
    dev/sample/roll.h dev/sample/player.h; do
    include="-I. -Idev -include $header -DMIDI_IMPLEMENTATION -Wno-unknown-pragmas"
    # shellcheck disable=SC2086
    check "$header as C11" ${CC:-cc} -std=c11 $strict $include -x c /dev/null
    if command -v $CXX >/dev/null; then
        # shellcheck disable=SC2086
        check "$header as C++17" $CXX -std=c++17 $strict $include -x c++ /dev/null
    else
        echo "skipped: $header as C++17, there is no $CXX"
    fi
done
report headers
