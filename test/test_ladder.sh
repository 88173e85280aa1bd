#!/bin/sh
# The ladders of kernels, dev/ladder: rungs give the plain model's results and are counted; a wrong one is told; no file
# of a rung has more than 150 lines, and none is missing in the README. With TEST_LONG: all of make ladder, and where
# there is nvcc, it takes every rung for two architectures without a warning.
. "$(dirname "$0")/check.sh"
ladder=${root:?}/dev/ladder
rungs='matmul_2_tiles attention_4_production layernorm_4_production lstm_4_production'
test -z "$TEST_LONG" || rungs=$(cd "$ladder" && echo *_[0-9]_*.cu | sed 's/\.cu//g')
for rung in $rungs; do needs ladder "$root/build/dev/ladder/${rung}_emu_count"; done

# A rung's row: its numbers, and whether they can be. No rung loads or stores less than the least, or is off by more
# than the tolerance.
table() {
    # shellcheck disable=SC2086 # several rungs
    "$ladder/ladder.sh" $1 >table 2>stderr
}
sound() { # N: that many rows
    awk -v n="$1" '/^[0-9]_/ { rows++
            if (!($2 > 0 && $2 <= 1) || $(NF - 8) < .99 || $(NF - 6) < .99 || NF < 15) print "wrong: " $0 > "stderr" }
        END { exit rows != n }' table && test ! -s stderr
}
# shellcheck disable=SC2086 # the rungs
set -- $rungs
check "the rungs are right" table "$rungs"
check "their counts can be" sound $#

# A wrong rung: one line planted in tiles of shared memory
sed 's/x_tile\[i\]\[j\] = x\[(r0 + i)/x_tile[i][j] = x[(r0 + i + (c0 == 32 \&\& i == 5))/' "$ladder/matmul_2_tiles.cu" |
    sed -f "$root/dev/emu/cuda2cpp.sed" >wrong.cpp
check "the mistake is planted" grep -q 'c0 == 32' wrong.cpp
mkdir -p dev/ladder build/dev/ladder
build_wrong() {
    # shellcheck disable=SC2086 # CXX may have flags
    ${CXX:-c++} -std=c++20 -O0 -w -I"$root/build/emu" -I"$root/build/emu/dev" -I"$root" -I"$root/dev" \
        -o build/dev/ladder/matmul_2_tiles_emu_count wrong.cpp "$root"/build/dev/ladder/stages_*.o -lm 2>stderr
}
check "a wrong rung is built" build_wrong
cp "$ladder/ladder.sh" dev/ladder
check "a wrong rung fails" [ "$(dev/ladder/ladder.sh matmul_2_tiles >table 2>&1; echo $?)" = 1 ]
check "it is told what is wrong" grep -q '^2_tiles  *FAIL y\[[0-9]*\] is .*, should be ' table

for file in "$ladder"/*_[0-9]_*.cu; do
    rung=$(basename "$file" .cu)
    check "$rung has at most 150 lines" [ "$(wc -l <"$file")" -le 150 ]
    check "$rung is in the README" grep -q "($rung\.cu)" "$ladder/README.md"
done

if [ -n "$TEST_LONG" ] && command -v nvcc >/dev/null; then
    compile_cuda() {
        nice nvcc -std=c++20 -O3 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas -I"$root" \
            -I"$root/dev" -cubin -o cubin "$@" >stdout 2>stderr
    }
    for file in "$ladder"/*_[0-9]_*.cu; do
        for arch in 80 90; do
            check "nvcc takes $(basename "$file") for sm_$arch" compile_cuda -arch=sm_$arch "$file"
        done
    done
fi
report ladder
