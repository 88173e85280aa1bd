#!/bin/sh
# Code lines, comments and blank lines not counted, by room, and what three kinds of readers have before them:
# dev/tools/lines.sh, or make lines. C, C++ and CUDA only; a line that holds code and a comment counts.
cd "$(dirname "$0")/../.." || exit 1

# lines FILE...: their code lines in all
lines() {
    [ $# -eq 0 ] && { echo 0 && return; }
    cat "$@" | awk '
        { code = ""
          text = $0
          gsub(/\\./, "", text) # what a string or a character holds is no comment
          gsub(/"[^"]*"/, "S", text)
          while (text != "") {
              if (inside) {
                  at = index(text, "*/")
                  if (!at) break
                  text = substr(text, at + 2)
                  inside = 0
                  continue
              }
              line = index(text, "//"); block = index(text, "/*")
              if (line && (!block || line < block)) { code = code substr(text, 1, line - 1); break }
              if (!block) { code = code text; break }
              code = code substr(text, 1, block - 1)
              text = substr(text, block + 2)
              inside = 1
          }
          gsub(/[ \t]/, "", code)
          n += code != "" }
        END { print n + 0 }'
}
# of FOLDER: the sources right in it
of() { find "$1" -maxdepth 1 -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' \) | sort; }
row() { printf '%-34s %6d\n' "$1" "$2"; }

all=0
for room in . data_prep dev dev/plain dev/models dev/base dev/cpu dev/cuda dev/emu dev/recipe dev/sample dev/tools dev/ladder; do
    [ -d "$room" ] || continue
    # shellcheck disable=SC2046
    n=$(lines $(of "$room"))
    all=$((all + n))
    row "$room" "$n"
done
row "all but test" $all
# shellcheck disable=SC2046
row test "$(lines $(of test))"
echo
row "plain: plain_gpt.c" "$(lines dev/plain/plain_gpt.c)"
row "plain: plain_lstm.c" "$(lines dev/plain/plain_lstm.c)"
for model in gpt lstm; do
    cpu=dev/train_${model}_music.c gpu=train_${model}_music.cu
    shared="dev/models/$model.h dev/recipe/model.h dev/base/params.h"
    row "CPU: $cpu" "$(lines "$cpu")"
    # shellcheck disable=SC2046,SC2086
    row "    with cpu/ and its interface" "$(lines "$cpu" $(of dev/cpu) $shared)"
    row "GPU: $gpu" "$(lines "$gpu")"
    # shellcheck disable=SC2046,SC2086
    row "    with cuda/ and its interface" "$(lines "$gpu" $(of dev/cuda) $shared)"
done
if [ -x train_gpt_music ] && [ -x sample_music ]; then
    echo
    row "flags of a trainer" "$(./train_gpt_music --help | grep -c '^  --*[a-z]')"
    row "flags of the sampler" "$(./sample_music --help | grep -c '^  --*[a-z]')"
fi
