#!/bin/sh
# Each header compiles alone, without a warning: as C11, and what CPU and GPU trainers share also as C++17. And each
# room includes only what it may.
. "$(dirname "$0")/check.sh"
CXX=${CXX:-c++}
headers=$(cd "${root:?}" && echo midi.h dev/base/*.h dev/plain/*.h dev/models/*.h dev/recipe/*.h dev/cpu/*.h \
    dev/sample/*.h dev/ladder/*.h)
test -s "$root/build/player_page.h" || echo "make build/player_page.h makes what dev/sample/player.h includes"
command -v "${CXX%% *}" >/dev/null || echo "skipped: headers as C++17, there is no $CXX"

# compile COMPILER FLAG...: the header compiles by itself
compile() {
    case $header in midi.h) set -- "$@" -DMIDI_IMPLEMENTATION ;; esac
    "$@" -Wall -Wextra -Werror -Wno-unknown-pragmas -fsyntax-only -I"$root" -I"$root/dev" -include "$header" \
        /dev/null >stdout 2>stderr
}
for header in $headers; do
    # shellcheck disable=SC2086 # CC may have flags
    check "$header as C11" compile ${CC:-cc} -std=c11 -x c
    case $header in dev/cpu/vector.h | dev/cpu/matmul.h)
        # shellcheck disable=SC2086
        check "$header reads as words what is words" compile ${CC:-cc} -std=c11 -O2 -Wstrict-aliasing=1 -x c
        ;;
    esac
    case $header in
    midi.h | dev/base/* | dev/models/* | dev/recipe/*) ;;
    *) grep -q 'C++17' "$root/$header" || continue ;; # its head promises it
    esac
    # shellcheck disable=SC2086
    ! command -v "${CXX%% *}" >/dev/null || check "$header as C++17" compile $CXX -std=c++17 -x c++
done

# only ALLOWED PATTERN: what files with such names include of ours begins with this extended expression
only() {
    # shellcheck disable=SC2086 # several files
    (cd "$root" && grep -E '^ *# *include +"' /dev/null $2) | grep -v -E "\"($1)" >stderr
    check "$2 include only $1" test ! -s stderr
}
only 'base/' 'dev/base/*'
only 'base/|models/' 'dev/models/*'
only 'base/|cpu/' 'dev/cpu/*'
only 'base/|cuda/|emu/cuda_emu_tensor_core\.h' 'dev/cuda/*' # that header has the same instructions in C++
only 'base/|emu/' 'dev/emu/*'
only 'base/|models/|recipe/' 'dev/recipe/*'
only 'base/|models/|sample/|cpu/vector\.h|midi\.h|build/player_page\.h' 'dev/sample/*.[ch]'
only 'base/|plain/|midi\.h' 'dev/plain/*.[ch]'
only 'base/|cuda/|plain/|ladder/|train_[a-z]*_music\.cu' 'dev/ladder/*.[ch]*'
for programs in '*.[ch]*' 'dev/*.[ch]*' 'data_prep/*.c' 'dev/tools/*.c*'; do
    only 'base/|models/|cpu/|cuda/|recipe/|sample/|midi\.h|build/window_page\.h' "$programs"
done
report headers
