#!/bin/sh
# dev/tools/sweep.sh from outside, with a very small model: its table is that of the logs, what is done is not done
# again, a time limit leaves runs out, and bad lists are refused. The programs must have been built.
. "$(dirname "$0")/check.sh"
for program in train_gpt_music train_lstm_music data_prep/prepare_music data_prep/compose_music; do
    needs sweep "$root/$program"
done
mkdir bin && printf '#!/bin/sh\n' >bin/make && chmod +x bin/make # the programs stay as they are
PATH=$PWD/bin:$PATH OMP_NUM_THREADS=1
export PATH OMP_NUM_THREADS
"$root/data_prep/compose_music" --out music --pieces 8 >/dev/null &&
    "$root/data_prep/prepare_music" --out data music/train music/test >/dev/null || exit 1
cat >list <<END
# NAME MODEL FLAGS
plain gpt --width 16 --heads 2 --hidden 24 --rel 12

shifted lstm --embed 8 --width 12 --transpose -5,6
END

sweep() { # STATUS VARIABLE=VALUE...: the sweep of the list ends with this status
    wanted=$1
    shift
    env OUT="$PWD/out" SEEDS="1 7" "$@" FLAGS="--data $PWD/data --layers 1 --window 24 --batch 4 --epochs 1 \
        --epoch-size 0.01 --eval-stride 40 --lr 3e-3" "$root/dev/tools/sweep.sh" "$PWD/list" >table 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}

sweep 0 LIMIT=0
check "nothing was begun without time" test ! -e out/plain-1
check "and the table is empty" test "$(wc -l <table)" -eq 2

sweep 0
for name in plain shifted; do
    for seed in 1 7; do
        cut -d, -f4 out/$name-$seed/log.csv | sed 1d | sort -g | head -n 1
    done | awk -v name=$name '{ if (NR == 1) a = $1; b = $1 }
        END { d = a - b; printf "| %s | 2 | %.4f | %.4f |\n", name, (a + b) / 2, d < 0 ? -d : d }' >wanted
    check "mean and spread of $name: $(cat wanted)" grep -q -F -f wanted table
    check "loss per kind of token" test "$(grep "^| $name " table | awk -F'|' '{ print NF }')" -eq 12
done
check "seeds differ" test "$(cut -d' ' -f1 out/plain-1.row)" != "$(cut -d' ' -f1 out/plain-7.row)"
check "flags of a line were used" grep -q '"transpose":"-5,6"' out/shifted-1/last.safetensors

# Again: the same table, and no run is trained anew. A run that was interrupted goes on.
cp table before
touch -d '2001-01-01' out/plain-1/model.safetensors
sweep 0 LIMIT=0
check "the same table" cmp -s table before
check "a run that is over stays" test out/plain-1/model.safetensors -ot before

printf 'wrong gpt --no-such-flag\n' >list
sweep 1
check "a trainer's complaint is shown" grep -q "no-such-flag" stderr
"$root/dev/tools/sweep.sh" nowhere 2>stderr
check "no list" test $? -eq 2
report sweep
