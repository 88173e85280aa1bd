#!/bin/sh
# `make paper` from outside, with two very small models: what it writes and whether the figures in it are those of the
# logs, interruptions, a second time, other settings, bad data. The programs must have been built.
# shellcheck disable=SC2086 # flags are split into words
. "$(dirname "$0")/check.sh"
made="train_gpt_music train_lstm_music sample_music dev/tools/paper dev/tools/music_stats data_prep/prepare_music
    data_prep/compose_music"
old='' # for make: the programs stay as they are
for program in $made; do
    needs paper "$root/$program"
    old="$old -o $program"
done
OMP_NUM_THREADS=1
SONGS=3
export OMP_NUM_THREADS SONGS
unset DATA RECIPES PAPER_OUT PAPER_FLAGS GPT_FLAGS LSTM_FLAGS TRAIN_GPT_MUSIC TRAIN_LSTM_MUSIC SAMPLE_MUSIC

equal() { # WHAT A B
    check "$1: '$2' instead of '$3'" test "$2" = "$3"
}

paper() { # STATUS VARIABLE=VALUE...: dev/tools/paper.sh ends with this status
    wanted=$1
    shift
    env "$@" "$root/dev/tools/paper.sh" >stdout 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}

refuses() { # WORDS VARIABLE=VALUE...: fails with one sentence that has these words
    words=$1
    shift
    paper 1 "$@"
    check "stderr should be one sentence with: $words" grep -q -F -e "$words" stderr
    equal "lines on stderr" "$(wc -l <stderr | tr -d ' ')" 1
}

# Elements are closed in the order in which they were opened, attributes are quoted, & begins an entity.
well_formed() {
    awk 'BEGIN { RS = "<" }
        NR == 1 { next }
        { tag = $0; sub(/>.*/, "", tag); text = $0; sub(/^[^>]*>/, "", text); name = tag; sub(/[ \t\n\/].*/, "", name) }
        index($0, ">") == 0 || gsub(/"/, "\"", tag) % 2 { bad = 1 }
        { gsub(/&(amp|lt|gt|quot);/, "", text); if (text ~ /&/) bad = 1 }
        tag ~ /^\// { if (open[depth--] != substr(tag, 2)) bad = 1; next }
        tag !~ /\/$/ { open[++depth] = name; elements++ }
        END { exit bad || depth || !elements }' "$1"
}

"$root/data_prep/compose_music" --out music --pieces 12 >/dev/null || exit 1
tiny="--window 24 --batch 4 --epoch-size 0.02 --epochs 6 --eval-stride 40 --lr 3e-3"
gpt="--layers 1 --width 16 --heads 2 --hidden 24 --rel 12 --epoch-size 0.1" # long enough to be interrupted
lstm="--layers 1 --embed 8 --width 12"

# Bad data: one sentence, and no folder is left behind.
mkdir empty half half/train half/test
echo "no music" >half/train/a.mid
cp half/train/a.mid half/test
refuses "DATA=nowhere: there is no such folder" DATA=nowhere
refuses "DATA=empty: has no folders train and test" DATA=empty
paper 1 DATA=half PAPER_OUT=half.out
check "prepare_music says what is wrong" grep -q "half/train" stderr
check "bad data have left no folders" test ! -e out -a ! -e half.out

# The whole, by make.
env DATA= make -C "$root" $old paper DATA="$scratch/music" PAPER_OUT="$scratch/whole" PAPER_FLAGS="$tiny" \
    GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm" >stdout 2>stderr
check "make paper ends with $?" test $? -eq 0
for file in paper.md table.csv losses.svg settings.txt statistics.md prime-1.mid prime-2.mid; do
    check "$file is there" test -s whole/$file
done
check "losses.svg is well-formed" well_formed whole/losses.svg
for words in "Transformer test" "Transformer train" "LSTM test" "LSTM published 1.425" "Transformer published 1.237"; do
    check "losses.svg has: $words" grep -q -F "$words" whole/losses.svg
done
equal "diamonds in losses.svg, also beyond the last epoch" "$(grep -c 'l5 5-5 5-5-5z"' whole/losses.svg)" 2
equal "best points in losses.svg" "$(grep -c 'r="6.5"' whole/losses.svg)" 2
for model in gpt lstm; do
    folder=whole/$model
    row=$(grep "^$model," whole/table.csv)
    field() { echo "$row" | cut -d , -f "$1"; }
    counted=$(sed -n "s/^$model, \([0-9,]*\) parameters.*/\1/p" stdout | tr -d ,)
    equal "$model, parameters" "$(field 2)" "$counted"
    equal "$model, test loss" "loss=$(field 3)" "$(tail -n 1 $folder/eval.txt | cut -d ' ' -f 2)"
    check "every window was evaluated" grep -q "windows=$(field 10) .*stride=1$" $folder/eval.txt
    best=$(sed 1d $folder/log.csv | sort -t , -k 4,4g | head -n 1)
    equal "$model, the best test loss of its log" "$(field 4)" "$(echo "$best" | cut -d , -f 4)"
    equal "$model, the best epoch of its log" "$(field 5)" "$(echo "$best" | cut -d , -f 1)"
    equal "$model, epochs" "$(field 6)" 6
    equal "$model, losses by kind" "$(field 12) $(field 14) $(field 16) $(field 18)" \
        "$(sed -n 's/^[a-z]* *loss \([0-9.]*\) over .*/\1/p' $folder/eval.txt | paste -s -d ' ' -)"
    case $model in gpt) name=Transformer ;; lstm) name=LSTM ;; esac
    loss=$(printf %.4f "$(field 3)")
    check "paper.md has $name's loss" grep -q "^| $name .* $loss .* after [69] epochs |$" whole/paper.md
    check "$folder/loss.svg is well-formed" well_formed $folder/loss.svg
    for i in 1 2; do
        for what in sample continued; do
            figure=whole/$model-$what-$i
            equal "the first bytes of $figure.mid" "$(head -c 4 $figure.mid)" MThd
            check "$figure.svg is well-formed" well_formed $figure.svg
            check "$figure.svg has new notes" grep -q '<rect class="new" .*data-note' $figure.svg
            check "paper.md shows $figure.svg" grep -q -F "($model-$what-$i.svg)" whole/paper.md
        done
        check "$figure.svg has notes of the prime" grep -q '<rect class="prime" .*data-note' "$figure.svg"
        check "whole/$model-sample-$i.svg has no prime" sh -c "! grep -q 'class=\"prime\"' whole/$model-sample-$i.svg"
        check "$figure.svg says how long the prime is" grep -q "tokens 768, .*prime-$i.mid (256 tokens)" "$figure.svg"
    done
done
model=
piece=1
for file in music/test/*.mid; do # of two test pieces both are taken
    "$root/data_prep/prepare_music" --tokens "$file" | head -n 256 >wanted
    "$root/data_prep/prepare_music" --tokens whole/prime-$piece.mid | head -n 256 >tokens
    check "prime-$piece.mid begins as $file" cmp -s wanted tokens
    piece=$((piece + 1))
done
equal "test pieces" $piece 3
equal "primes of the statistics" "$(cksum <whole/primes/prime-2.mid)" "$(cksum <whole/prime-2.mid)"
for row in "real, test" "real, train" "Transformer, free" "Transformer, primed" "LSTM, free" "LSTM, primed" \
    "Transformer, primed, memory" "LSTM, free, memory"; do
    check "paper.md has a row of $row" grep -q "^| $row  .*|  .*|  .*|$" whole/paper.md
done
for name in gpt:Transformer lstm:LSTM; do
    model=${name%:*} name=${name#*:}
    songs=whole/$model/songs
    equal "songs" "$(cd $songs/3-primed && echo *.mid) $(cd $songs/3-free && echo *.mid)" \
        "prime-1-1.mid prime-1-2.mid prime-2.mid song-1.mid song-2.mid song-3.mid"
    check "memory makes other songs" test "$(cksum <$songs/3-free/song-1.mid)" != \
        "$(cksum <$songs/3-free-memory/song-1.mid)"
    "$root/dev/tools/music_stats" --train whole/data $songs/3-primed | sed -n '3s/^[^|]*|[^|]*//p' >wanted
    sed -n "s/^| $name, primed  *\(|.*\)/\1/p" whole/statistics.md | cmp -s - wanted
    check "the row of $name, primed, is that of its songs" test $? -eq 0 -a -s wanted
done
model=

# Once more: nothing is trained, evaluated or sampled, and the tables are the same.
sum=$(cat whole/paper.md whole/table.csv whole/losses.svg | cksum)
rm whole/lstm/songs/3-primed/prime-2.mid
mv whole/lstm/songs/3-primed whole/lstm/songs/3-primed.part # as a sampler that was stopped leaves it
paper 0 DATA=music PAPER_OUT=whole PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
equal "the tables of songs that were stopped" "$(cat whole/paper.md whole/table.csv whole/losses.svg | cksum)" "$sum"
touch marker
sleep 1
paper 0 DATA=music PAPER_OUT=whole PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
equal "the tables" "$(cat whole/paper.md whole/table.csv whole/losses.svg | cksum)" "$sum"
equal "what a second run has written" \
    "$(find whole -type f -newer marker | sed 's/.*\///' | sort | paste -s -d ' ' -)" \
    "losses.svg paper.md statistics.md table.csv"
# A prepared folder of the same music is the same data.
paper 0 DATA=whole/data PAPER_OUT=whole PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
# The tuned recipe beside the published one, whose rows stay.
cp -r whole both
paper 0 DATA=music PAPER_OUT=both PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm" RECIPES="published tuned"
equal "models in table.csv" "$(cut -d , -f 1 both/table.csv | paste -s -d ' ' -)" "model gpt lstm gpt-tuned lstm-tuned"
check "the published rows are as before" sh -c "head -n 3 both/table.csv | cmp -s - whole/table.csv"
check "the tuned run is another" sh -c "! cmp -s both/gpt/model.safetensors both/gpt-tuned/model.safetensors"
equal "rows of paper.md" "$(grep -c '^| .* after [69] epochs |$' both/paper.md)" 4
check "losses.svg is well-formed" well_formed both/losses.svg
equal "best points in losses.svg" "$(grep -c 'r="6.5"' both/losses.svg)" 4
equal "diamonds in losses.svg" "$(grep -c 'l5 5-5 5-5-5z"' both/losses.svg)" 2
check "paper.md shows a tuned model's song" grep -q -F "(lstm-tuned-continued-2.svg)" both/paper.md
refuses "RECIPES='best': it may be" DATA=music PAPER_OUT=both RECIPES=best
refuses "SONGS='0': it must be a whole number" DATA=music PAPER_OUT=both SONGS=0
# Other settings or data, and a folder with something else.
refuses "'flags for the LSTM: $lstm', not 'flags for the LSTM: none'" \
    DATA=music PAPER_OUT=whole PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt"
mkdir other
cp -r music other/music
rm other/music/train/003*
refuses "DATA=other/music: is other music than whole was begun with" \
    DATA=other/music PAPER_OUT=whole PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
refuses "other: holds something else" DATA=music PAPER_OUT=other
# A missing part of the evidence.
cp -r whole torn
mv torn/lstm/log.csv torn/lstm/log
refuses "torn/lstm/log.csv: " DATA=music PAPER_OUT=torn PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
mv torn/lstm/log torn/lstm/log.csv
echo "eval loss=1.0" >torn/gpt/eval.txt
refuses "torn/gpt/eval.txt: " DATA=music PAPER_OUT=torn PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"

# Flags that no training takes bind nothing, nor do other data before a training has begun.
paper 1 DATA=music PAPER_OUT=typo PAPER_FLAGS=--bacth=4
check "the trainer says what is wrong" grep -q -e "--bacth: there is no such flag" stderr
paper 1 DATA=music PAPER_OUT=typo LSTM_FLAGS="--embed none"
check "the LSTM's flags are read before the Transformer is trained" grep -q -e "--embed none" stderr
check "wrong flags have left no folder" test ! -e typo
paper 1 DATA=other/music PAPER_OUT=parts PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt --width 17" LSTM_FLAGS="$lstm"
check "the trainer says what is wrong" grep -q -e "--width 17" stderr
refuses "GPT_FLAGS: leave out --out;" DATA=music PAPER_OUT=typo GPT_FLAGS="--layers 1 --out=typo"
refuses "PAPER_FLAGS: leave out --steps;" DATA=music PAPER_OUT=typo PAPER_FLAGS="--steps 9"

# Interrupted as Ctrl-C does it, then killed, then left alone: what a run ends with that was never disturbed.
cat >disturbed <<END
#!/bin/sh
echo \$\$ >pid
exec "$root/train_gpt_music" "\$@"
END
chmod +x disturbed
rows() { if [ -e parts/gpt/log.csv ]; then wc -l <parts/gpt/log.csv; else echo 0; fi; }
for signal in INT KILL; do
    most=$(($(rows) + 1)) tries=0
    env DATA=music PAPER_OUT=parts PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="--width 9" \
        TRAIN_GPT_MUSIC=./disturbed "$root/dev/tools/paper.sh" >stdout 2>stderr &
    while [ "$(rows)" -le $most ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -$signal "$(cat pid)" 2>/dev/null
    wait $!
    check "a trainer that is stopped by $signal stops it all" test $? -eq 1
    check "it was stopped while training" test ! -e parts/gpt/eval.txt
done
refuses "not 'flags for the Transformer: --layers 1'" DATA=music PAPER_OUT=parts PAPER_FLAGS="$tiny" \
    GPT_FLAGS="--layers 1"
printf '#!/bin/sh\n"%s" "$@" --tokens 90 && exit 130\n' "$root/sample_music" >shortened # as Ctrl-C does it
chmod +x shortened
paper 1 DATA=music PAPER_OUT=parts PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm" \
    TRAIN_GPT_MUSIC=./disturbed SAMPLE_MUSIC=./shortened
check "it went on" grep -q "^going on from step" stdout
check "a sampler that is stopped stops it all" test -s parts/gpt-sample-1.mid -a ! -e parts/gpt-sample-1.svg
paper 0 DATA=music PAPER_OUT=parts PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm" TRAIN_GPT_MUSIC=./disturbed
for file in gpt/model.safetensors gpt-sample-1.mid gpt-sample-1.svg lstm-continued-2.svg losses.svg; do
    check "$file is as without the interruptions" cmp -s parts/$file whole/$file
done
cut -d , -f 1-6 whole/gpt/log.csv >wanted
cut -d , -f 1-6 parts/gpt/log.csv >rows
check "the log is as without the interruptions" cmp -s wanted rows

# Fewer epochs first: with more of them it goes on, and evaluates and samples the better models. Nothing else is needed.
paper 0 DATA=music PAPER_OUT=more PAPER_FLAGS="$tiny --epochs 2" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
check "fewer epochs are another model" sh -c "! cmp -s more/gpt/model.safetensors whole/gpt/model.safetensors"
paper 0 DATA=music PAPER_OUT=more PAPER_FLAGS="$tiny" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm"
for file in gpt/model.safetensors gpt-sample-1.svg lstm-continued-2.mid losses.svg; do
    check "$file is as if there had always been as many epochs" cmp -s more/$file whole/$file
done
equal "its evaluation" "$(tail -n 5 more/lstm/eval.txt)" "$(tail -n 5 whole/lstm/eval.txt)"
paper 0 DATA=music PAPER_OUT=more PAPER_FLAGS="$tiny --threads 1" GPT_FLAGS="$gpt" LSTM_FLAGS="$lstm --patience 9"
check "it looked whether there is more to do" grep -q "^nothing was left to do" stdout
check "the same models were not evaluated again" sh -c "! grep -q evaluating stdout"
check "settings.txt has the last limits" grep -q -e "--patience 9" more/settings.txt

# Whatever stops it, and whoever else that was sent to: the trainer hears of it once, and takes its time to save.
cat >slow <<'END'
#!/bin/sh
case " $* " in *" --help "*) exit ;; esac
signals=0 tenths=0
trap 'signals=$((signals + 1))' TERM
echo begun >"$PAPER_OUT.begun"
while [ $signals -eq 0 ] && [ $tenths -lt 200 ]; do
    sleep 0.1
    tenths=$((tenths + 1))
done
sleep 1
sleep 1
sleep 1
echo "signals: $signals" >"$PAPER_OUT.end"
exit 1
END
chmod +x slow
stops() { # NAME SIGNAL GROUP COMMAND...: GROUP is - for the whole group, or nothing
    name=$1 signal=$2 group=$3
    shift 3
    env DATA="$scratch/whole/data" PAPER_OUT="$scratch/$name" TRAIN_GPT_MUSIC="$scratch/slow" \
        "$root/dev/tools/paper" --alone "$@" >$name.stdout 2>$name.stderr &
    job=$! tries=0
    while [ ! -e $name.begun ] && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -"$signal" "$group$job"
    wait $job 2>/dev/null # bash tells of those killed
    echo $? >$name.status
    tries=0
    while [ ! -e $name.end ] && [ $tries -lt 60 ]; do # the script, if killed, has not waited for it
        sleep 0.1
        tries=$((tries + 1))
    done
}
stops term TERM "" "$root/dev/tools/paper.sh" &
stops group.term TERM - "$root/dev/tools/paper.sh" &
stops group.int INT - "$root/dev/tools/paper.sh" &
stops group.hup HUP - "$root/dev/tools/paper.sh" &
stops make.term TERM - make -C "$root" $old paper &
ways="term group.term group.int group.hup make.term"
if [ -e /proc/self/stat ]; then # only Linux tells a program of its parent's death
    stops kill KILL "" "$root/dev/tools/paper.sh" &
    ways="$ways kill"
else
    echo "skipped: the trainer of a script that was killed, for this is not Linux"
fi
wait
for name in $ways; do
    equal "$name, what the trainer heard" "$(cat $name.end)" "signals: 1"
    check "$name: it failed" test "$(cat $name.status)" -ne 0
    test $name = kill || check "$name: it says how to go on" grep -q "the same command goes on with" $name.stderr
done

# Without DATA: the starter corpus, in ./data.
printf '#!/bin/sh\ncase $* in *--out*) exit 1 ;; esac\nexec "%s" "$@"\n' "$root/train_gpt_music" >disturbed
paper 1 TRAIN_GPT_MUSIC=./disturbed PAPER_OUT=starter
check "the composing was announced" grep -q "composing the starter corpus" stderr
check "the starter corpus is there" test -s data/train.safetensors
check "so are the primes" test -s starter/prime-2.mid

report paper
