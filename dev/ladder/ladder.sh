#!/bin/sh
# make ladder: runs the rungs in the emulator and prints what a GPU would do for each, counted by
# dev/emu/cuda_emu_count.cpp; where make built them for a GPU, also their times there, in the published sizes.
#   dev/ladder/ladder.sh [RUNG...]     a rung by the name of its file, without .cu [all]
# Exit status 1: a rung's results are not those of the plain model.
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
cd "$root" || exit 1
scratch=$(mktemp -d "${TMPDIR:-/tmp}/ladder.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
# shellcheck disable=SC2046 # no rung's name has a space
test $# -gt 0 || set -- $(for rung in dev/ladder/*_[0-9]_*.cu; do basename "$rung" .cu; done)
status=0
row='%-15s %7s %8s %7s %6s %7s %6s %7s %6s %6s %6s %8s %6s %4s %7s\n'
# shellcheck disable=SC2059 # the format is a variable
head() { printf "$row" "$@"; }
cat <<'END'
All counts are of one run of all launches of a rung. checked: the error, as a part of the tolerance. threads: of the
largest launch. x least: over the least, each input loaded once, each output stored once. wavefronts: of shared memory;
x least: if no banks conflicted. products: of tensor cores, 16 x 8 x 16. barriers that a block meets, and all blocks.
END
ladder=
for rung in "$@"; do
    if [ "$ladder" != "${rung%%_*}" ]; then
        ladder=${rung%%_*}
        echo
        head '' '' '' '' 1000 KB x KB x 1000 x 1000 of of us
        head "$ladder" checked launches threads loads loaded least stored least fronts least products blocks grid GPU
    fi
    if ! CUDA_EMU_COUNTS=$scratch/counts CUDA_EMU_MULTIPROCESSORS=132 "build/dev/ladder/${rung}_emu_count" \
        >"$scratch/said" 2>&1; then
        printf '%-15s %s\n' "${rung#*_}" "$(tail -n 1 "$scratch/said")"
        status=1
        continue
    fi
    us=-
    if [ -x "build/dev/ladder/${rung}_cuda" ]; then
        us=$("build/dev/ladder/${rung}_cuda" 2>&1) || status=1
        case $us in right:*) us=$(echo "$us" | sed 's/.* \([0-9.]*\) us$/\1/') ;; esac
    fi
    awk -v rung="${rung#*_}" -v us="$us" -v row="$row" '
        function ratio(used, least) { return least ? sprintf("%.2f", used / least) : "-" }
        $1 == "right:" { checked = $2; inputs = $7; outputs = $10 }
        $1 == "graph" { nodes = $2 }
        $1 == "kernel" {
            launches += $3
            if ($5 * $6 > threads) threads = $5 * $6
            loads += $8
            loaded += 32 * $9
            stored += 32 * $13
            fronts += $17
            least += $18
            products += $19
            blocks += $20 / $5
            grids += $22
        }
        END {
            printf row, rung, checked, nodes ? "1 of " nodes : launches, threads, sprintf("%.1f", loads / 1000),
                sprintf("%.0f", loaded / 1024), ratio(loaded, inputs), sprintf("%.0f", stored / 1024),
                ratio(stored, outputs), sprintf("%.1f", fronts / 1000), ratio(fronts, least),
                sprintf("%.1f", products / 1000), sprintf("%.0f", blocks), grids, us
        }' "$scratch/said" "$scratch/counts"
done
exit $status
