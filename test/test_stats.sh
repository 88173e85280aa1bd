#!/bin/sh
# The program dev/tools/music_stats from outside: composed pieces have the values that another program gave them, and
# every wrong argument or file ends in one sentence. test_stats.c counts by hand.
. "$(dirname "$0")/check.sh"
stats=$root/dev/tools/music_stats
needs stats "$stats" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"
"$root/data_prep/compose_music" --out music --pieces 12 >stdout || exit 1
"$root/data_prep/prepare_music" music/train music/test >stdout || exit 1

run() { # STATUS ARGUMENTS...
    wanted=$1
    shift
    "$stats" "$@" >stdout 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}

refuses() { # STATUS WORDS ARGUMENTS...: with one sentence that has these words, and no table
    wanted=$1 words=$2
    shift 2
    run "$wanted" "$@"
    check "stderr should be one sentence with: $words" grep -q -e "^music_stats: $words" stderr
    check "it is one line" test "$(wc -l <stderr)" -eq 1 -a ! -s stdout
}

row() { # NAME EXCERPTS NUMBERS...: the table has this row
    printf '| %-34s | %8s |' "$1" "$2" >row
    name=$1
    shift 2
    printf ' %6s |' "$@" >>row
    echo >>row
    check "the row of $name: $(tr -s ' ' <row)" grep -q -x -F -f row stdout
}

# The means that a plain program in Python gives, which compares bars as sets, and all pairs of them.
train=data/train.safetensors test=data/test.safetensors
run 0 --length 700 --train $train test=$test train=$train mid=music/test
row test 10 1.861 2.640 0.816 0.986 24.120 3.780 51.000 29.400 0.312 0.222 0.150 0.005
row mid 10 1.861 2.640 0.816 0.986 24.120 3.780 51.000 29.400 0.312 0.222 0.150 0.005
row overlap "" 1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000
row train 40 1.853 2.630 0.820 0.956 18.649 3.775 51.325 30.825 0.307 0.204 0.090 -
check "the table is Markdown" sh -c "awk -F '|' 'NF != 16 { exit 1 }' stdout"
run 0 music/test/012*.mid --train data
check "a file is measured" grep -q "^| music/test/012.*mid *| *[1-9] |" stdout
run 0 --length 16384 short=$test
row short "" - - - - - - - - - - - -

run 0 --help
for word in --train --length H1 groove copied; do
    check "--help names $word" grep -q -e "^  $word " stdout
done
run 0 --version

mkdir empty
echo "no music" >text.mid
cp text.mid text.safetensors
refuses 2 "give datasets, folders of .mid files or .mid files"
refuses 2 "--length 7: it must be a whole number from 8" --length 7 $test
refuses 2 "--tain: there is no such flag" --tain data $test
refuses 1 "nowhere: cannot be opened: No such file" nowhere
refuses 1 "nowhere.mid: .*No such file" $test a=nowhere.mid
refuses 1 "empty: this folder has no .mid files" empty
refuses 1 "text.mid: .*not a MIDI file" text.mid
refuses 1 "text.safetensors: not a safetensors file" text.safetensors
refuses 1 "empty/train.safetensors: cannot be opened: No such file" --train empty $test
refuses 1 "text.mid: not a safetensors file" --train text.mid $test
cat data/test.safetensors music/test/012*.mid >torn.safetensors
refuses 1 "torn.safetensors: .* the file is damaged" torn.safetensors
"$stats" $test >/dev/full 2>stderr
check "a full stdout is an error" grep -q "^music_stats: the standard output cannot be written" stderr
report stats
