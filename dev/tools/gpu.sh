#!/bin/sh
# Everything that wants a real GPU, in one command of at most eight minutes, what decides first: builds the CUDA
# trainers for the GPU at hand, compares them with the CPU reference, looks for wrong accesses, times them beside
# PyTorch; then trains, looks for races, measures the card's own limits and corrects the model of `make count`.
#
#   dev/tools/gpu.sh [--data DIR] [--out DIR] [PART...]
#   PART: build compare memcheck time train sanitize limits, and profile where there is ncu [all that are not done yet]
#
#   build      the programs; each kernel's registers and spills (a spill is a failure), tensor-core instructions
#   compare    dev/tools/compare.sh: every activation, gradient and update of whole steps, against the CPU reference
#   memcheck   of compute-sanitizer: short runs, fp32 and bf16, small odd sizes and the paper's widths
#   time       steps in bf16 and fp32, before and after every mode of dev/tools/torch_music.py, if PyTorch is here
#   train      both recipes until the Transformer's test loss is below 1.30 (LSTM: 1.50), at most 10 epochs; and one
#              short run twice, which must end with the same bytes
#   sanitize   racecheck, initcheck and synccheck of the runs of memcheck
#   limits     what the card can do at most: copies, products, graph nodes, barriers (dev/tools/gpu_limits.cu)
#   profile    each kernel's time and memory traffic in a step, by ncu, beside the time that `make count` expects
#
# DIR of --data holds MIDI files, or the folders train and test of them, or a prepared dataset [the starter corpus].
# Into --out [out/gpu] go, after each part, the table gpu.txt, gpu.json with the command behind each figure, and
# parts/PART/log with all that the programs said. A part that fails or takes too long is a line of the table; the
# others run, and the exit status is 1. Called again it does what is left: parts that this code has passed on this GPU
# are done again only if they are named. From the environment:
#   GPU_SECONDS   for all parts together [480]       GPU_BATCHES   for time and profile [8 64 512]
#   GPU_EPOCHS    at most, for train [10]            GPU_MODES     of dev/tools/torch_music.py [all of them]
#   CLUSTERS=1    the kernels of dev/cuda/cluster.cuh too (best with another --out, to compare)      [none]
#   GPU_FLAGS     for both trainers, and GPU_TORCH_FLAGS for dev/tools/torch_music.py, to try this script in small
#                 [none]
# shellcheck disable=SC2086  # flags are split into words
set -u
here=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
LC_ALL=C
PATH=$PATH:/usr/local/cuda/bin
PYTHONUNBUFFERED=1
export LC_ALL PATH PYTHONUNBUFFERED
batches=${GPU_BATCHES:-8 64 512} flags=${GPU_FLAGS:-} modes=${GPU_MODES:-eager,tf32,amp,graph,compiled,split,tuned}
tab=$(printf '\t')

refuse() { # STATUS SENTENCE
    echo "gpu.sh: $2" >&2
    exit "$1"
}

# ---- what the parts share. They run in the checkout, each as a program of its own under a time limit, and know:
#   $scratch   a folder for the time being   $kept   the part's folder in --out   $out, $data   of --out and --data
#   $deadline  in seconds since 1970

left() { echo $((deadline - $(date +%s))); }

# figure NAME VALUE UNIT COMMAND: a row of the table
figure() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$kept/figures"; }

# Names of kernels without mangling, without the types of their arguments
readable() {
    { if command -v c++filt >/dev/null; then c++filt; else cat; fi; } 2>/dev/null |
        sed 's/ void / /; s/\((int)\|(bool)\)//g; s/(.*//'
}

models() { # those that have a CUDA source
    for model in gpt lstm; do
        [ ! -e "train_${model}_music.cu" ] || echo $model
    done
}

tools="data_prep/prepare_music data_prep/compose_music dev/tools/compare_tensors sample_music"

trainers() { # builds what there is not; a trainer for another device lies under the same name
    needed=$tools
    for model in $(models); do
        on_cuda $model || rm -f "train_${model}_music"
        needed="$needed train_${model}_music build/train_${model}_music_cpu"
    done
    make -j "$(nproc)" DEVICE=cuda $needed || return 1
    for model in $(models); do
        on_cuda $model || { echo "train_${model}_music does not run on this GPU" && return 1; }
    done
}

on_cuda() { "./train_$1_music" --bench 1 --batch 1 --window 1 2>/dev/null | grep -q device=cuda; } # MODEL

build() {
    make -j "$(nproc)" DEVICE=cuda $tools || return 1
    for model in $(models); do # at the same time
        rm -f "train_${model}_music" "$scratch/built.$model"
        (
            NVCC_APPEND_FLAGS=-Xptxas=-v make DEVICE=cuda "train_${model}_music" >"$scratch/build.$model" 2>&1 &&
                : >"$scratch/built.$model"
        ) &
    done
    wait
    for model in $(models); do
        trainer=train_${model}_music report=$scratch/build.$model
        [ -e "$scratch/built.$model" ] || { cat "$report" && return 1; }
        # ptxas tells of each kernel: Compiling entry function 'NAME', .. spill stores, Used .. registers
        grep -v 'ptxas info' "$report" | grep -v 'bytes stack frame'
        awk -F "'" '/Compiling entry function/ { name = $2 }
            /bytes spill/ {
                n = split($0, w, /[ ,]+/)
                for (i = 3; i <= n; i++) if (w[i] == "spill") spills[name] += w[i - 2]
            }
            /Used [0-9]+ registers/ { sub(/.*Used /, ""); print $0 + 0, spills[name] + 0, name }' "$report" |
            readable >"$scratch/registers"
        echo "$trainer: registers and bytes of spills of each kernel"
        cat "$scratch/registers"
        command="NVCC_APPEND_FLAGS=-Xptxas=-v make DEVICE=cuda $trainer"
        figure "$trainer, kernels" "$(wc -l <"$scratch/registers" | tr -d ' ')" "" "$command"
        most=$(sort -n "$scratch/registers" | awk 'END { print $1 }')
        figure "$trainer, most registers of one" "$most" "" "$command"
        spills=$(awk '{ n += $2 } END { print n + 0 }' "$scratch/registers")
        figure "$trainer, spills" "$spills" bytes "$command"
        [ "$spills" -eq 0 ] || { echo "$trainer: some kernel spills registers" && return 1; }
        if command -v cuobjdump >/dev/null; then
            echo "$trainer: tensor-core instructions of each kernel"
            cuobjdump -sass "$trainer" |
                awk '/Function :/ { name = $3 } /H?G?MMA\./ { n[name]++ } END { for (k in n) print n[k], k }' |
                readable | sort -k 2 | tee "$scratch/mma"
            figure "$trainer, tensor-core instructions" "$(awk '{ n += $1 } END { print n + 0 }' "$scratch/mma")" "" \
                "cuobjdump -sass $trainer | grep -c MMA"
            [ -s "$scratch/mma" ] || { echo "$trainer: the tensor cores are not used" && return 1; }
        else
            echo "there is no cuobjdump: tensor-core instructions are not counted"
        fi
    done
    trainers
}

compare() {
    trainers || return 1
    good=0
    for model in $(models); do
        command="dev/tools/compare.sh build/train_${model}_music_cpu ./train_${model}_music $flags"
        $command >"$scratch/compared" 2>&1 || good=1
        cat "$scratch/compared"
        for precision in fp32 bf16; do # the last line of each comparison tells how much of the tolerance was used
            used=$(awk -v p="$precision," '$2 == "after" { on = $1 == p }
                on && /^compare tensors=/ { sub(/.* used=/, ""); n++; if ($1 + 0 > u + 0) u = $1 }
                END { if (n) print u }' "$scratch/compared")
            [ -z "$used" ] ||
                figure "$model $precision, largest difference from the CPU" "$used" "of the tolerance" "$command"
        done
        grep ' FAIL' "$scratch/compared"
    done
    return $good
}

sanitize_with() { # TOOL...
    command -v compute-sanitizer >/dev/null ||
        { echo "there is no compute-sanitizer here; nothing was checked" && return 1; }
    trainers || return 1
    music=$scratch/few bad=0
    data_prep/compose_music --pieces 6 --out "$music" &&
        data_prep/prepare_music --out "$music" "$music/train" "$music/test" || return 1
    for tool in "$@"; do
        check="compute-sanitizer --tool $tool --error-exitcode 9" runs=''
        for model in $(models); do
            case $model in # odd sizes that no tile divides, then the published widths
                gpt)
                    odd="--layers 2 --width 20 --heads 4 --hidden 28 --rel 9 --window 65 --batch 3"
                    paper="--layers 2 --window 64 --batch 2"
                    ;;
                lstm) odd="--embed 20 --width 36 --window 17 --batch 3" paper="--window 32 --batch 2" ;;
            esac
            for precision in fp32 bf16; do
                number=0
                for sizes in "$odd" "$paper"; do # at the same time: they mostly wait
                    number=$((number + 1)) run=$tool.$model.$precision.$number
                    runs="$runs $run"
                    (
                        $check "./train_${model}_music" --data "$music" --precision $precision $sizes --steps 3 \
                            --eval-stride 9999 --out "$scratch/$run" >"$scratch/$run.log" 2>&1
                        echo "$? --precision $precision $sizes" >"$scratch/$run.status"
                    ) &
                done
            done
        done
        wait
        found=0
        for run in $runs; do
            read -r status what <"$scratch/$run.status"
            echo "$run: exit status $status: $what"
            [ "$status" -eq 0 ] || { found=$((found + 1)) && tail -n 25 "$scratch/$run.log"; }
            if grep -q -i 'device not supported\|not supported on this' "$scratch/$run.log"; then
                echo "compute-sanitizer refuses this device; nothing was checked" && return 1
            fi
        done
        figure "$tool, runs with errors" "$found" "of $(echo $runs | wc -w | tr -d ' ')" \
            "$check ./train_MODEL_music ... --steps 3"
        [ $found -eq 0 ] || bad=1
    done
    return $bad
}

dataset() { # of --data, prepared as dev/doc/BENCHMARKS.md says
    music=$scratch/music
    if [ -n "$data" ] && [ -e "$data/train.safetensors" ]; then
        music=$data
    elif [ -n "$data" ] && [ -d "$data/train" ] && [ -d "$data/test" ]; then
        data_prep/prepare_music --out "$music" "$data/train" "$data/test"
    elif [ -n "$data" ]; then
        data_prep/prepare_music --out "$music" --test 0.1122 --seed 1 "$data"
    else
        data_prep/compose_music --out "$music" && data_prep/prepare_music --out "$music" "$music/train" "$music/test"
    fi >"$scratch/prepared" 2>&1 || { cat "$scratch/prepared" && return 1; }
}

below() { awk -v loss="$loss" -v goal="$1" 'BEGIN { exit !(loss != "" && loss < goal) }'; } # GOAL: whether $loss is

train() {
    trainers && dataset || return 1
    bad=0
    for recipe in published tuned; do
        for model in $(models); do
            trainer="./train_${model}_music --recipe $recipe" epoch=0 resume='' losses='' seconds='' loss=''
            run=$scratch/$model.$recipe
            case $model in gpt) goal=1.30 ;; *) goal=1.50 ;; esac
            while [ $epoch -lt "${GPU_EPOCHS:-10}" ]; do
                epoch=$((epoch + 1))
                $trainer --data "$music" --out "$run" $flags --epochs $epoch $resume >"$scratch/trained" 2>&1 ||
                    { cat "$scratch/trained" && return 1; }
                resume=--resume
                line=$(grep "^epoch $epoch " "$scratch/trained" | tail -n 1)
                echo "$model, $recipe: $line"
                loss=$(echo "$line" | sed -n 's/.* test \([0-9.]*\) .*/\1/p')
                losses="$losses $loss" seconds="$seconds $(echo "$line" | sed -n 's/.* \([0-9.]*\) s$/\1/p')"
                if [ -z "$loss" ] || below $goal; then break; fi
            done
            command="$trainer --data ${data:-STARTER} $flags --epochs $epoch"
            figure "$model $recipe, test loss after each epoch" "${losses# }" "" "$command"
            figure "$model $recipe, seconds of each epoch" "${seconds# }" "s" "$command"
            below $goal || { echo "$model, $recipe: the test loss did not fall below $goal" && bad=1; }
            for twice in first second; do
                $trainer --data "$music" --out "$run.$twice" --eval-stride 9999 --steps 100 --seed 7 $flags \
                    >"$scratch/trained" 2>&1 || { cat "$scratch/trained" && return 1; }
            done
            same=same
            cmp "$run.first/model.safetensors" "$run.second/model.safetensors" || same=DIFFERENT bad=1
            figure "$model $recipe, 100 steps twice" $same bytes \
                "$trainer --data ${data:-STARTER} --steps 100 --seed 7 $flags"
        done
    done
    return $bad
}

# ours MODEL ROUND: into $kept/ours: model, precision, batch, round, ms, GFLOP/s
ours() {
    for batch in $batches; do
        for precision in bf16 fp32; do
            command="./train_$1_music --bench $((20 + 1440 / batch)) --batch $batch --precision $precision $flags"
            timeout --foreground -k 5 60 $command >"$scratch/bench" 2>&1 || bad=1
            tail -n 4 "$scratch/bench"
            nodes=$(grep -o '[0-9][0-9]* \(graph \)\{0,1\}nodes' "$scratch/bench" | head -n 1)
            [ -z "$nodes" ] || [ "$2" -ne 1 ] ||
                figure "$1 $precision, batch $batch, a step's graph" "${nodes%% *}" nodes "$command"
            sed -n 's/^bench .* ms_per_step=\([^ ]*\) .*gflop_per_s=\(.*\)/\1 \2/p' "$scratch/bench" |
                while read -r ms rate; do
                    figure "$1 $precision, batch $batch, round $2" "$ms" ms "$command"
                    echo "$1 $precision $batch $2 $ms $rate" >>"$kept/ours"
                done
        done
    done
}

time_steps() {
    trainers || return 1
    bad=0 torch=yes n=$(models | wc -l)
    python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
        [ -n "${GPU_TORCH_FLAGS:-}" ] || torch=''
    [ -n "$torch" ] || echo "there is no PyTorch that sees the GPU: nothing to compare with"
    for model in $(models); do
        begun=$(date +%s)
        ours "$model" 1
        took=$(($(date +%s) - begun + 3))
        # PyTorch has what time is left beside our own rounds. Its rows come one by one, the slow modes last.
        if [ -n "$torch" ]; then
            command="python3 dev/tools/torch_music.py --model $model --modes $modes --batch $(echo $batches | tr ' ' ,)"
            command="$command ${GPU_TORCH_FLAGS:-}"
            limit=$(($(left) - took * (2 * n - 1)))
            limit=$((limit > 5 * n ? limit / n : 5))
            timeout --foreground -k 5 $limit $command --json "$scratch/torch.json" \
                >"$scratch/torch" 2>"$scratch/torch.err"
            status=$?
            cat "$scratch/torch"
            case $status in
                0) ;;
                124 | 137) echo "torch_music.py: stopped after $limit s; the modes above were measured" ;;
                *) tail -n 5 "$scratch/torch.err" && bad=1 ;;
            esac
            sed -n "s/.*'bf16_TFLOP_s': \([0-9.]*\).*'fp32_TFLOP_s': \([0-9.]*\).*/\1 \2/p" "$scratch/torch" \
                >"$kept/torch.limits"
            awk -v model="$model" '$1 == model && $4 + 0 > 0 { print $2, $3, $4 }' "$scratch/torch" |
                while read -r mode batch ms; do
                    figure "$model PyTorch $mode, batch $batch" "$ms" ms "$command"
                    echo "$model $mode $batch $ms" >>"$kept/theirs"
                done
            awk -v model="$model" '$1 == model && $4 == "failed:"' "$scratch/torch" |
                while read -r _ mode batch why; do
                    figure "$model PyTorch $mode, batch $batch" "${why:-failed}" "" "$command"
                done
        fi
        n=$((n - 1))
        ours "$model" 2
    done
    return $bad
}

limits() {
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    nvcc -O3 -std=c++20 "-arch=sm_$arch" -Idev dev/tools/gpu_limits.cu -o "$scratch/gpu_limits" || return 1
    command="nvcc -O3 -arch=sm_$arch -Idev dev/tools/gpu_limits.cu && ./a.out"
    "$scratch/gpu_limits" >"$scratch/limits" || return 1
    peer="python3 dev/tools/torch_music.py --limits"
    if $peer >"$scratch/torch" 2>/dev/null; then
        for name in bf16_TFLOP_s fp32_TFLOP_s; do
            sed -n "s/.*'$name': \([0-9.]*\).*/$name \1/p" "$scratch/torch" >>"$scratch/limits"
        done
    fi
    if ! grep -q bf16_TFLOP_s "$scratch/limits"; then
        if nvcc -O3 -std=c++20 "-arch=sm_$arch" -Idev -DCUBLAS dev/tools/gpu_limits.cu -o "$scratch/gpu_limits" \
            -lcublas; then
            "$scratch/gpu_limits" | grep TFLOP >>"$scratch/limits"
            peer="nvcc -O3 -arch=sm_$arch -Idev -DCUBLAS dev/tools/gpu_limits.cu -lcublas && ./a.out"
        else
            echo "neither PyTorch nor cuBLAS is here: the rate of matrix products is not measured"
        fi
    fi
    cat "$scratch/limits"
    grep -v '^#' "$scratch/limits" | while read -r name value; do
        case $name in
            copy_GB_s) figure "limit, copy on the card, read and written" "$value" GB/s "$command" ;;
            graph_node_us) figure "limit, an empty node of a graph" "$value" us "$command" ;;
            grid_sync_us) figure "limit, grid.sync()" "$value" us "$command" ;;
            barrier_us) figure "limit, a barrier of the whole GPU" "$value" us "$command" ;;
            bf16_*) figure "limit, product of 8192^3, bf16" "$value" TFLOP/s "$peer" ;;
            fp32_*) figure "limit, product of 8192^3, fp32" "$value" TFLOP/s "$peer" ;;
        esac
    done
}

# expected MODEL BATCH: microseconds of each kernel by `make count`, lines of: name blocks us
expected() {
    if ! make "build/train_${1}_music_emu_count" "build/nvcc/train_${1}_music.90" >"$scratch/counted" 2>&1 ||
        ! dev/tools/count.sh "$1" --batch "$2" $flags >"$scratch/counted" 2>&1; then
        tail -n 5 "$scratch/counted" >&2
        return 1
    fi
    awk '/^kernel .* us bound/ { on = 1; next } /^path of kernels/ { on = 0 }
        on { print $1, $3, $8 }' "$scratch/counted"
}

profile() {
    command -v ncu >/dev/null || { echo "there is no ncu here" && return 1; }
    trainers || return 1
    bad=0 steps=4 # --bench 1 takes three to warm up
    for model in $(models); do
        for batch in $batches; do
            [ "$batch" != 64 ] || continue
            file=$out/profile-$model-$batch.csv
            # The caches stay as a step leaves them; the clocks stay as they are.
            metrics=gpu__time_duration.sum,dram__bytes.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed
            command="ncu --csv --print-units base --clock-control none --cache-control none --metrics $metrics"
            command="$command ./train_${model}_music --bench 1 --batch $batch --precision bf16 $flags"
            timeout --foreground -k 5 "$(left)" $command >"$file" 2>"$scratch/ncu" ||
                { bad=1 && tail -n 5 "$file" "$scratch/ncu" && continue; }
            : >"$scratch/expected" # batch 8 alone: counting takes time that grows with the batch
            [ "$batch" != 8 ] || expected "$model" "$batch" >"$scratch/expected" || bad=1
            table=$scratch/profile
            # A row for each kernel and metric: "ID",...,"Kernel Name",...,"Metric Name","Metric Unit","Metric Value"
            awk -v steps=$steps -v sort="sort -k 2,2nr" 'FILENAME ~ /expected$/ { expected[$1 " " $2] = $3; next }
                { n = split($0, field, "\",\"") }
                /"ID"/ { for (i = 1; i <= n; i++) { name = field[i]; gsub(/"/, "", name); column[name] = i } next }
                !column["Kernel Name"] { next }
                { kernel = field[column["Kernel Name"]]
                  gsub(/void |\(int\)|__nv_| /, "", kernel); gsub(/loat16/, "16", kernel)
                  gsub(/\(bool\)0/, "false", kernel); gsub(/\(bool\)1/, "true", kernel); sub(/\(.*/, "", kernel)
                  split(field[column["Grid Size"]], grid, /[(), ]+/); kernel = kernel " " grid[2] * grid[3] * grid[4]
                  value = field[column["Metric Value"]]; gsub(/[",]/, "", value)
                  metric = field[column["Metric Name"]] }
                metric ~ /time_duration/ { us[kernel] += value / 1e3; count[kernel]++; all += value / 1e3 }
                metric ~ /dram__bytes/ { bytes[kernel] += value }
                metric ~ /sm__throughput/ { busy[kernel] += value; rows[kernel]++ }
                END {
                    printf "%8s %10s %7s %10s %8s %6s %9s %9s  kernel and its blocks, per step\n",
                        "launches", "us", "share", "MB", "GB/s", "SM %", "us each", "expected"
                    for (k in us)
                        printf "%8.2f %10.2f %6.1f%% %10.2f %8.0f %6.1f %9.2f %9s  %s\n", count[k] / steps,
                            us[k] / steps, 100 * us[k] / all, bytes[k] / steps / 1e6, bytes[k] / us[k] / 1e3,
                            rows[k] ? busy[k] / rows[k] : 0, us[k] / count[k],
                            k in expected ? expected[k] : "-", k | sort
                    close(sort)
                    printf "%8s %10.2f us of kernels in a step\n", "", all / steps
                }' "$scratch/expected" "$file" >"$table"
            { echo && echo "$model, batch $batch, bf16" && cat "$table"; } | tee -a "$kept/profiles"
            figure "$model, batch $batch, kernels of a step by ncu" \
                "$(awk '/us of kernels/ { print $1 }' "$table")" us "$command"
        done
    done
    return $bad
}

if [ "${1:-}" = --inside ]; then # a part, called by the script itself
    scratch=$2 deadline=$3 out=$4 data=$5 kept=$4/parts/$6
    cd "$here" || exit 1
    case $6 in
        build) build ;;
        compare) compare ;;
        memcheck) sanitize_with memcheck ;;
        sanitize) sanitize_with racecheck initcheck synccheck ;;
        train) train ;;
        time) time_steps ;;
        limits) limits ;;
        profile) profile ;;
    esac
    exit
fi

# ---- the command line

all='build compare memcheck time train sanitize limits profile' data='' out=out/gpu parts=''
while [ $# -gt 0 ]; do
    case $1 in
        --data | --out) [ $# -gt 1 ] || refuse 2 "$1 needs a folder" ;;
    esac
    case $1 in
        --data) data=$2 && shift ;;
        --out) out=$2 && shift ;;
        -h | --help) sed -n '2,/^# shellcheck/{/^# shellcheck/d; s/^# \{0,1\}//p;}' "$0" && exit ;;
        *)
            case " $all " in *" $1 "*) parts="$parts $1" ;; *)
                refuse 2 "$1: there is no such part or flag; the parts are $all"
                ;;
            esac
            ;;
    esac
    shift
done
[ -z "$data" ] || [ -d "$data" ] || refuse 1 "--data $data: there is no such folder"
about=name,memory.total,driver_version,compute_cap
gpu=$(nvidia-smi --query-gpu=$about --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || refuse 1 "there is no NVIDIA GPU here (nvidia-smi lists none);\
 elsewhere make compare runs the CUDA source in the emulator"
command -v nvcc >/dev/null ||
    refuse 1 "there is no nvcc here; install the CUDA toolkit, 12 or newer, or put its bin folder into PATH"
mkdir -p "$out/parts" && out=$(cd "$out" && pwd) || exit 1
[ -z "$data" ] || data=$(cd "$data" && pwd)
case "$out$data${TMPDIR:-}" in
    *[[:space:]]*) refuse 2 "spaces in the names of folders are too much for this script" ;;
esac
scratch=$(mktemp -d "${TMPDIR:-/tmp}/gpu.XXXXXX") || exit 1
commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git -C "$here" status --porcelain 2>/dev/null)" ] || commit="$commit and changes"
nvcc=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')

# Of a part, in --out/parts/PART: figures and tables as they come; status, when it has ended: ok or what else, seconds,
# and what it was done with.
with=$gpu,$nvcc,$data,${GPU_FLAGS:-},${CLUSTERS:-},
with=$with$(cd "$here" && cat Makefile ./*.cu dev/cuda/* dev/*.c dev/tools/gpu.sh | cksum)
done_before() { # PART
    [ "$(cut -f 1,3 "$out/parts/$1/status" 2>/dev/null)" = "ok$tab$with" ]
}
gather() { for each in $all; do cat "$out/parts/$each/$1" 2>/dev/null; done; } # FILE: of all parts
rate_of() { awk -F '\t' -v name="limit, product of 8192^3, $1" '$1 == name { print $2 }' "$scratch/figures"; } # fp32..

# gpu.txt and gpu.json, of all parts there are. The table of steps has the mean of our rounds, the best of PyTorch and
# the card's rate.
write_tables() {
    gather figures >"$scratch/figures"
    gather theirs >"$scratch/theirs"
    gather ours >"$scratch/ours"
    for each in $all; do
        [ ! -d "$out/parts/$each" ] || printf '%s\t%s\n' "$each" \
            "$(cut -f 1,2 "$out/parts/$each/status" 2>/dev/null || echo "INTERRUPTED$tab-")"
    done >"$scratch/parts"
    bf16=$(rate_of bf16) fp32=$(rate_of fp32)
    [ -n "$bf16" ] || read -r bf16 fp32 2>/dev/null <"$out/parts/time/torch.limits"
    awk -v bf16="${bf16:-0}" -v fp32="${fp32:-0}" -v tab="$tab" -v figures="$scratch/figures" '
        FILENAME ~ /theirs$/ {
            key = $1 " " $3
            if (!(key in best) || $4 < best[key]) { best[key] = $4; mode[key] = $2 }
            next
        }
        { key = $1 " " $2 " " $3; if (!(key in n)) order[++keys] = key
          n[key]++; ms[key] += $5; rate[key] += $6; rounds[key] = rounds[key] " " $5 }
        END {
            if (keys)
                printf "%-5s %-5s %6s %10s  %-22s %22s %8s %8s\n", "model", "", "batch", "ms/step", "its rounds",
                    "best of PyTorch, ms", "times", "of rate"
            for (i = 1; i <= keys; i++) {
                key = order[i]; split(key, word, " "); peer = word[1] " " word[3]
                card = word[2] == "bf16" ? bf16 : fp32
                mean = ms[key] / n[key]; share = card > 0 ? sprintf("%.1f %%", rate[key] / n[key] / card / 10) : "-"
                theirs = peer in best ? sprintf("%s %.4g", mode[peer], best[peer]) : "-"
                times = peer in best ? sprintf("%.2f", best[peer] / mean) : "-"
                printf "%-5s %-5s %6d %10.4g %-23s %22s %8s %8s\n", word[1], word[2], word[3], mean, rounds[key],
                    theirs, times, share
                name = word[1] " " word[2] ", batch " word[3]; why = "from the rounds above"
                print name tab mean tab "ms" tab why >>figures
                if (peer in best)
                    print name ", the best PyTorch mode (" mode[peer] ") takes" tab best[peer] / mean tab \
                        "times as long" tab why >>figures
                if (card > 0)
                    print name ", model FLOPs" tab rate[key] / n[key] / card / 1000 tab "of the measured matrix rate" \
                        tab why >>figures
                if (word[1] == "lstm")
                    print name ", a time step" tab 1000 * mean / 256 tab "us, forward and backward" tab why >>figures
            }
        }' "$scratch/theirs" "$scratch/ours" >"$scratch/steps"
    {
        echo "GPU      $gpu  (name, memory, driver, compute capability)"
        echo "nvcc     ${nvcc:-unknown}, commit $commit, $(date -u '+%Y-%m-%d %H:%M') UTC"
        echo
        awk -F '\t' '{ printf "%-9s %-26s %4d s\n", $1, $2, $3 }' "$scratch/parts"
        echo
        [ ! -s "$scratch/steps" ] || { cat "$scratch/steps" && echo; }
        awk -F '\t' '$1 !~ /, round [12]$/ && $4 != "from the rounds above" || $1 ~ /a time step/ {
            printf "%-50s %s %s\n", $1, $2, $3 }' "$scratch/figures"
        gather profiles
    } >"$out/gpu.txt"
    date=$(date -u +%Y-%m-%dT%H:%MZ)
    awk -F '\t' -v gpu="$gpu" -v nvcc="${nvcc:-unknown}" -v commit="$commit" -v date="$date" -v parts="$scratch/parts" '
        function text(s) {
            gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); gsub(/[[:cntrl:]]/, " ", s)
            return "\"" s "\""
        }
        function value(s) { return s ~ /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/ ? s : text(s) }
        BEGIN { split(gpu, g, ", ")
            printf "{\"gpu\": %s, \"memory\": %s, \"driver\": %s, \"compute_capability\": %s,\n", text(g[1]),
                text(g[2]), text(g[3]), text(g[4])
            printf " \"nvcc\": %s, \"commit\": %s, \"date\": %s,\n \"parts\": [", text(nvcc), text(commit), text(date)
            while ((getline line <parts) > 0) { split(line, f, "\t")
                printf "%s\n  {\"part\": %s, \"status\": %s, \"seconds\": %s}", comma, text(f[1]), text(f[2]),
                    value(f[3])
                comma = "," }
            printf "],\n \"figures\": ["; comma = "" }
        { printf "%s\n  {\"name\": %s, \"value\": %s, \"unit\": %s, \"command\": %s}", comma, text($1), value($2),
              text($3), text($4)
          comma = "," }
        END { print "]}" }' "$scratch/figures" >"$out/gpu.json"
}

child=''
trap 'write_tables; rm -rf "$scratch"' EXIT
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 1' HUP INT TERM

# ---- the parts, one after the other

if [ -z "$parts" ]; then
    for part in $all; do
        if done_before "$part"; then
            echo "gpu.sh: $part is done (gpu.sh $part does it again)"
        elif [ "$part" != profile ] || command -v ncu >/dev/null; then
            parts="$parts $part"
        fi
    done
fi
start=$(date +%s)
finish=$((start + ${GPU_SECONDS:-480})) failed=0
for part in $parts; do
    begun=$(date +%s) kept=$out/parts/$part
    limit=$((finish - begun))
    case $part in # seconds that it may take of those that are left
        build | time | train) most=110 ;;
        compare | memcheck | limits) most=60 ;;
        *) most=$limit ;;
    esac
    limit=$((most < limit ? most : limit))
    echo "gpu.sh: $part, at most $((limit > 0 ? limit : 0)) s; $((finish - begun)) s are left"
    if [ $limit -lt 1 ]; then
        echo "gpu.sh: no time was left for $part"
        failed=1
        continue
    fi
    rm -rf "$kept"
    mkdir "$kept"
    : >"$kept/figures"
    timeout -k 5 $limit "$here/dev/tools/gpu.sh" --inside "$scratch" $((begun + limit - 2)) "$out" "$data" "$part" \
        >"$kept/log" 2>&1 &
    child=$!
    wait $child
    code=$?
    child=''
    case $code in
        0) status=ok ;;
        124 | 137) status="OVERRAN its $limit s" ;;
        *) status=FAILED ;;
    esac
    if [ "$status" != ok ]; then
        failed=1
        tail -n 6 "$kept/log" | sed 's/^/    /'
    fi
    printf '%s\t%s\t%s\n' "$status" $(($(date +%s) - begun)) "$with" >"$kept/status"
    write_tables
done
echo
cat "$out/gpu.txt"
exit $failed
