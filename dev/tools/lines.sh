#!/bin/sh
# Lines of code, without comments and blank lines, of C and CUDA: dev/tools/lines.sh [FILE...]. Without files, of every
# room; of what a reader must open to follow a training step, from the plain models to the GPU; and how many flags the
# programs have, where they were built. Shell, Python and HTML are not counted.
cd "$(dirname "$0")/../.." || exit 1

# files FOLDER...: the sources that lie right in them
files() {
    for folder in "$@"; do
        for file in "${folder%/}"/*.c "${folder%/}"/*.h "${folder%/}"/*.cu "${folder%/}"/*.cuh "${folder%/}"/*.cpp; do
            [ ! -f "$file" ] || echo "$file"
        done
    done
}

# count FILE...: their lines of code. A // or /* within a string is none.
count() {
    cat -- "$@" /dev/null | awk '
        function code_of(line, code) {
            while (line != "") {
                if (block) {
                    if (!(end = index(line, "*/"))) break
                    line = substr(line, end + 2)
                    block = 0
                } else if (line ~ /^\/\//) break
                else if (line ~ /^\/\*/) { block = 1; line = substr(line, 3) }
                else {
                    if (!match(line, /^("([^"\\]|\\.)*"|\047([^\047\\]|\\.)*\047|[^"\047\/]+)/)) RLENGTH = 1
                    code = code substr(line, 1, RLENGTH)
                    line = substr(line, RLENGTH + 1)
                }
            }
            return code
        }
        { if ((block || /\/[\/*]/ ? code_of($0) : $0) ~ /[^ \t]/) n++ }
        END { print n + 0 }'
}

# row NAME FILE...: a line of the table
row() {
    name=$1
    shift
    printf '%-16s %7d   %2d files\n' "$name" "$(count "$@")" $#
}

if [ $# -gt 0 ]; then
    count "$@"
    exit
fi
# shellcheck disable=SC2046,SC2086 # no name here has a space
{
    echo "rooms"
    row "top level" $(files .)
    row data_prep $(files data_prep)
    row dev $(files dev)
    for room in dev/*/; do
        [ "$room" = dev/ladder/ ] || [ -z "$(files "$room")" ] || row "${room%/}" $(files "$room")
    done
    row "all of these" $(files . data_prep dev dev/*/ | grep -v '^dev/ladder/')
    row dev/ladder $(files dev/ladder)
    row test $(files test)
    echo
    echo "to follow a training step"
    row "plain models" dev/plain/plain*.[ch]
    for model in gpt lstm; do
        interface="dev/models/$model.h dev/recipe/model.h dev/base/params.h"
        row "$model, CPU" "dev/train_${model}_music.c" $(files dev/cpu) $interface
        row "$model, GPU" "train_${model}_music.cu" $(files dev/cuda) $interface
    done
    echo
    echo "flags"
    for program in train_gpt_music train_lstm_music sample_music; do
        [ ! -x $program ] || printf '%-16s %7d\n' $program "$("./$program" --help | grep -c '^  -')"
    done
}
