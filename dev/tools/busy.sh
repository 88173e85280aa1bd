#!/bin/sh
# How much of their speed the trainers keep on a busy machine: dev/tools/busy.sh [ROUNDS]. A table of shares, of the
# best of ROUNDS [3], measured in turn with the speeds that they are shares of: those of threads that spin while they
# wait, as OpenMP libraries let them:
#     alone      two threads on two quiet cores, of two spinning threads
#     spinner    the same beside a program that never sleeps
#     pinned     on one core, of one thread
#     quota      two cores, but a control group grants the time of one, of one thread; where one can be made
# CC=clang measures its OpenMP. The trainers are built anew if need be.
cd "$(dirname "$0")/../.." || exit 1
rounds=${1:-3}
make -s DEVICE=cpu CC="${CC:-cc}" build/train_gpt_music_cpu build/train_lstm_music_cpu || exit 1
command -v taskset >/dev/null || { echo "busy.sh: there is no taskset" >&2 && exit 1; }

group=/sys/fs/cgroup/music_busy.$$
trap '[ ! -d "$group" ] || rmdir "$group"' EXIT
trap 'trap "" TERM; kill -TERM 0; exit 1' INT TERM # what spins, too
if ! { mkdir "$group" && echo "100000 100000" >"$group/cpu.max"; } 2>/dev/null; then
    echo "no quota can be set here"
    [ ! -d "$group" ] || rmdir "$group"
    group=
fi

spinning="env OMP_WAIT_POLICY=active GOMP_SPINCOUNT=300000 KMP_BLOCKTIME=200"
# ms COMMAND...: milliseconds a step
ms() { "$@" 2>/dev/null | sed -n 's/.*ms_per_step=\([^ ]*\).*/\1/p'; }
# spin COMMAND...: the same beside a program that never sleeps
spin() {
    while :; do :; done &
    ms "$@"
    kill $!
}
# within COMMAND...: in the control group
within() { sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"; }

# measure NAME COMMAND...: a row of the table
measure() {
    name=$1
    shift
    for _ in $(seq "$rounds"); do
        # shellcheck disable=SC2086 # $spinning is a command with arguments
        echo "$(ms $spinning taskset -c 0,1 "$@" --threads 2)" "$(ms $spinning taskset -c 0 "$@" --threads 1)" \
            "$(ms taskset -c 0,1 "$@")" "$(spin taskset -c 0,1 "$@")" "$(ms taskset -c 0 "$@")" \
            "$([ -z "$group" ] || ms within taskset -c 0,1 "$@")"
    done | awk -v name="$name" '
        { for (i = 1; i <= NF; i++) if (NR == 1 || $i < best[i]) best[i] = $i }
        END { printf "%-12s %8.2f %8.2f %8.2f %8s %9.1f ms of two spinning threads\n", name, best[1] / best[3],
            best[1] / best[4], best[2] / best[5], NF < 6 ? "-" : sprintf("%.2f", best[2] / best[6]), best[1] }'
}

printf '%-12s %8s %8s %8s %8s\n' share alone spinner pinned quota
measure "gpt, small" build/train_gpt_music_cpu --bench 200 --layers 2 --width 64 --heads 4 --hidden 128 --window 128
measure "lstm, small" build/train_lstm_music_cpu --bench 200 --layers 2 --embed 32 --width 64 --window 128
measure "gpt, full" build/train_gpt_music_cpu --bench 5
measure "lstm, full" build/train_lstm_music_cpu --bench 5
