#!/bin/sh
# test/fuzz/run.sh FOLDER TARGET [OPTION...]: runs build/fuzz_TARGET with these options of libFuzzer, which must say how
# long (-max_total_time=SECONDS or -runs=N). It starts from the seeds that test/fuzz/seeds.sh has made, from inputs that
# failed once (test/fuzz/seeds/TARGET), and from what an earlier run has left in FOLDER/TARGET; what reaches new code is
# kept there. A line tells how it went, FOLDER/TARGET.log everything. Where a promise is broken, memory misused or
# leaked, more than 512 MB taken, or an input not done within 20 seconds, that input stays in build/fuzz, and the exit
# status is 1.
cd "$(dirname "$0")/../.." || exit 1
folder=$1 target=$2
shift 2
mkdir -p build/fuzz "$folder/$target" || exit 1
log=$folder/$target.log
FUZZ_FOLDER=$(mktemp -d /dev/shm/music_fuzz.XXXXXX 2>/dev/null || mktemp -d) || exit 1
trap 'rm -rf "$FUZZ_FOLDER"' EXIT
trap 'exit 1' INT TERM
export FUZZ_FOLDER
case $target in
trainer | sampler) longest=300 ;;
midi | prime | writers) longest=500 ;;
safetensors | dataset) longest=1000 ;;
*) longest=12000 ;; # models have embeddings of 153 tokens
esac
set -- "build/fuzz_$target" -max_len=$longest -timeout=20 -malloc_limit_mb=256 -rss_limit_mb=512 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$target-" "$@" "$folder/$target" "build/fuzz/seeds/$target"
[ ! -d "test/fuzz/seeds/$target" ] || set -- "$@" "test/fuzz/seeds/$target"
"$@" >"$log" 2>&1 </dev/null
status=$?
LC_ALL=C awk -v target="$target" '/^#.* cov: / { coverage = $4; features = $6 }
    /^stat::number_of_executed_units/ { runs = $2 }
    /^stat::average_exec/ { rate = $2 }
    /^stat::peak_rss/ { memory = $2 }
    END {
        printf "%-12s %10d inputs, %6d a second, ", target, runs, rate
        printf "coverage %d, features %d, %d MB\n", coverage, features, memory
    }' "$log"
[ $status -eq 0 ] && exit
grep -a -m 1 -e 'broken promise' -e 'runtime error' -e '^==[0-9]*==* *ERROR' "$log"
kept=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
if [ -n "$kept" ]; then
    echo "$target: the input is $kept; once the fault is mended, keep it as test/fuzz/seeds/$target/WHAT_IT_SHOWS"
else
    tail -n 3 "$log"
fi
exit 1
