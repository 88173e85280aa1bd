#!/bin/sh
# The fast trainers against the plain models (dev/plain): whole training steps with dropout, every activation, gradient
# and updated parameter, on the CPU (also with the sanitizers, also with the narrowest vectors) and through the
# emulator. The table at the end names the tensor that came closest to its tolerance. Before that, the plain programs.
. "$(dirname "$0")/check.sh"
build=$root/build compare=$root/dev/tools/compare_tensors
needs plain "$compare" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"
for model in gpt lstm; do
    needs plain "$build/plain_step_$model" "$root/dev/plain/plain_$model"
    for device in cpu cpu_sanitized cpu_narrow emu; do needs plain "$build/train_${model}_music_$device"; done
done
OMP_WAIT_POLICY=passive
CUDA_EMU_MULTIPROCESSORS=64 # enough for the LSTM's published width in one launch
export OMP_WAIT_POLICY CUDA_EMU_MULTIPROCESSORS
run() { "$@" >stdout 2>stderr; }

# Without music a plain program names the command that makes some, in one sentence, and that command does.
names_command() {
    run "$root/dev/plain/plain_$model"
    test $? -eq 1 && test ! -s stdout && test "$(wc -l <stderr)" -eq 1 &&
        grep -q 'data/train.safetensors: .*; make some with data_prep/compose_music && ' stderr
}
for model in gpt lstm; do check "no music yet" names_command; done
ln -s "$root/data_prep" data_prep
check "the command that it names" run sh -c "$(sed 's/.*make some with //' stderr)"

# The functions that both files have are the same text, as are the comments right above them.
functions() { # FILE FOLDER: each to a file of its name
    mkdir "$2" && awk -v RS= -v folder="$2" 'match($0, /(^|\n)static [^\n(]*\(/) {
        name = substr($0, RSTART, RLENGTH - 1)
        sub(/.*[ *]/, "", name)
        print >(folder "/" name)
    }' "$1"
}
copies() {
    functions "$root/dev/plain/plain_gpt.c" gpt && functions "$root/dev/plain/plain_lstm.c" lstm || return 1
    both=0
    for file in gpt/*; do
        test -f "lstm/${file#gpt/}" || continue
        both=$((both + 1))
        cmp "$file" "lstm/${file#gpt/}" >stderr || return 1
    done
    test $both -ge 1
}
model=
check "what both models have is one text" copies

# How far the numbers of a program may be from the plain model's doubles, as ||a - b|| / ||b||. In float a sum of K
# products is off by about sqrt(K) 2^-24. A step is a chain of stages, 10 for each layer and for the LSTM's head,
# forward and backward, whose errors add up like a random walk: sqrt(K) sqrt(stages) 2^-24. In bf16 a stage rounds up to
# four numbers by about 2^-9, its operands and what it hands on: sqrt(4) sqrt(stages) 2^-9. Where a ReLU's input is zero
# but for that, it may be open in one program only; compare_tensors allows the gradients what follows from their number.
# The update is made of the same gradients on both sides, in float, by a chain of eight roundings: 8 * 2^-24. Where
# there is one relative distance, its vector moves all scores of a query alike, which changes no softmax: the gradient
# is zero but for rounding, and measured by a thousandth of the largest one. dev/tools/compare.sh has more about these.
tolerances() { # PRECISION FLAGS...
    precision=$1
    shift
    layers=$(echo "--layers 2 $*" | sed 's/.*--layers \([0-9]*\).*/\1/')
    case $model in
    gpt) stages=$((10 * layers)) products=1100 more='--relu act.layers.*.fc1' ;;
    lstm) stages=$((10 * layers + 10)) products=2048 more='--relu act.head.3 --relu act.head.7' ;;
    esac
    case " $* " in *' --rel 1 '*) more="$more --rtol grad.layers.*.attn.rel=1e-4" ;; esac
    awk -v p="$precision" -v s="$stages" -v k="$products" -v more="$more" 'BEGIN {
        print "--rtol", p == "fp32" ? sqrt(k * s) * 2 ^ -24 : sqrt(4 * s) * 2 ^ -9, "--rtol new.=" 8 * 2 ^ -24, more }'
}

# agree SIZES DEVICE PRECISION FLAGS...: a step of the trainer and of the plain model, from the first weights or, with
# --resume among the flags, from those of a run
agree() {
    sizes=$1 device=$2 precision=$3
    shift 3
    run "$build/train_${model}_music_$device" --data data --precision "$precision" "$@" --dump fast &&
        run "$build/plain_step_$model" fast plain || return 1
    required='--require act. --require logits --require loss --require grad. --require new.'
    case $* in *--resume*) ;; *) required="$required --require param. --rtol param.=0" ;; esac
    # shellcheck disable=SC2046,SC2086
    "$compare" compare fast plain --quiet $(tolerances "$precision" "$@") $required >result
    status=$?
    row="$model $device $precision $sizes"
    sed -n "\$s/compare tensors=\([0-9]*\) .* used=\([^ ]*\) worst=/$row \1 \2 /p" result >>table
    test $status -eq 0 || cp result stderr
    return $status
}

# Lines SIZES WHERE FLAGS: in both precisions (2) or in float (1); on the emulator too (e). Each step is the fourth of a
# run that the CPU has begun, so that no bias is zero, no LayerNorm weight one, and Adamax has averages.
# shellcheck disable=SC2086
cases() {
    while read -r sizes where flags; do
        for precision in fp32 bf16; do
            case $precision,$where in bf16,1*) continue ;; esac
            rm -rf run
            check "$sizes, $precision: three steps" run "$build/train_${model}_music_cpu" --data data --out run \
                --steps 3 --lr 5e-3 --eval-stride 1000000 --precision $precision $flags
            for device in cpu cpu_sanitized cpu_narrow emu; do
                case $device,$where in emu,*e | cpu*) ;; *) continue ;; esac
                check "$sizes, $precision, $device" agree "$sizes" $device $precision $flags --resume --out run
            done
        done
    done
}

# first_step FLAGS...: the sizes of the plain program. The first weights are the trainer's, and so is the first loss.
first_step() {
    for device in cpu cpu_sanitized cpu_narrow emu; do agree program $device fp32 "$@" || return 1; done
    loss=$("$root/dev/plain/plain_$model" | sed -n 's/^step   0  loss //p;q')
    trainer=$("$compare" show fast | awk '$1 == "loss" { print $4 }')
    echo "loss '$loss', the trainer's is '$trainer'" >stderr
    awk -v a="$loss" -v b="$trainer" 'BEGIN { exit !(a > 4 && a < 7 && (a - b) ^ 2 < 1e-8) }'
}

set -f # patterns are not files
decay="--weight-decay 8 --warmup 9"
model=gpt
check "the first step" first_step --batch 8 --window 128 --dropout 0.1 --layers 2 --width 32 --heads 4 --hidden 64 \
    --rel 96
cases <<END
published 2e --batch 1 --window 20 --layers 2
round 2 --batch 1 --window 50 --layers 2 --width 24 --heads 2 --hidden 20 --rel 30
odd 2e --batch 3 --window 35 --layers 3 --width 15 --heads 5 --hidden 11 --rel 4 --dropout 0.3 --average 0.7 $decay
one-distance 2 --batch 2 --window 17 --dropout 0 --layers 1 --width 64 --heads 2 --hidden 40 --rel 1
long 2 --batch 1 --window 1100 --layers 1 --width 18 --heads 3 --hidden 10 --rel 1050
END
model=lstm
check "the first step" first_step --batch 8 --window 128 --dropout 0.1 --embed 16 --width 32
cases <<END
published 2e --batch 1 --window 3
tiles 2 --batch 8 --window 20 --embed 20 --width 48
odd 2e --batch 9 --window 11 --embed 7 --width 33 --layers 3 --dropout 0.3 --average 0.7 $decay
one-layer 2 --batch 2 --window 17 --dropout 0 --embed 12 --width 5 --layers 1
smallest 1 --batch 1 --window 1 --embed 1 --width 1 --layers 1
blocks 2 --batch 3 --window 9 --embed 5 --width 257 --layers 1
long 1 --batch 1 --window 1100 --embed 3 --width 6
END
awk 'BEGIN {
        format = "%-5s  %-13s  %-9s  %-5s  %-7s  %-27s  %-12s  %s\n"
        printf format, "model", "device", "precision", "steps", "tensors", "worst tensor", "sizes", "of its tolerance"
    }
    {
        group = sprintf("%-5s  %-13s  %-9s", $1, $2, $3)
        if (!(group in steps)) order[++n] = group
        steps[group]++
        tensors[group] += $5
        if ($6 + 0 < used[group] + 0) next
        used[group] = $6
        worst[group] = $7
        sizes[group] = $4
    }
    END {
        for (i = 1; i <= n; i++) {
            group = order[i]
            split(group, is)
            printf format, is[1], is[2], is[3], steps[group], tensors[group], worst[group], sizes[group], used[group]
        }
    }' table
report plain
