#!/bin/sh
# The sampler from outside: what goes to stdout and what to stderr, --live and how it ends, what Ctrl-C leaves, guards,
# several models, primes of all sorts, what is drawn, and what it says about bad input. SAMPLE_MUSIC, TRAIN_GPT_MUSIC
# and TRAIN_LSTM_MUSIC are the programs; compose_music and prepare_music must have been built.
# shellcheck disable=SC2016,SC2086 # flags are split into words, and sh -c has arguments of its own
. "$(dirname "$0")/check.sh"
sample=${SAMPLE_MUSIC:-$root/sample_music}
gpt=${TRAIN_GPT_MUSIC:-$root/train_gpt_music}
lstm=${TRAIN_LSTM_MUSIC:-$root/train_lstm_music}
needs sampler "$sample" "$gpt" "$lstm" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"

# run STATUS FLAGS...: the sampler ends with this status; its words are in stdout and stderr
run() {
    wanted=$1
    shift
    "$sample" "$@" >stdout 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}

refuses() { # STATUS WORDS FLAGS...: in one sentence that begins with the program's name, and writes nothing
    wanted=$1
    words=$2
    shift 2
    run "$wanted" "$@" -o refused.mid
    check "stderr should say: $words" grep -q -F -e "sample_music: $words" stderr
    check "it should be one sentence: $*" test "$(wc -l <stderr)" -eq 1
    check "nothing is written: $*" test ! -e refused.mid
}

prints() { # a line of stdout is this extended expression
    check "stdout has no line: $1" grep -q -E -e "$1" stdout
}

is_midi() { # FILE: whole
    check "$1 is a MIDI file" sh -c 'test "$(head -c 4 "$0")" = MThd &&
        test "$(tail -c 3 "$0" | od -An -tx1 | tr -d " ")" = ff2f00' "$1"
}

same() {
    check "$1 is empty" test -s "$1"
    check "$1 and $2 differ" cmp -s "$1" "$2"
}

tiny="--layers 2 --width 16 --threads 1 --window 24 --batch 2 --steps 1 --eval-stride 9999"
"$gpt" $tiny --heads 2 --hidden 24 --rel 12 --out gpt >stdout 2>stderr
check "a Transformer was made" test -s gpt/model.safetensors
"$lstm" $tiny --embed 12 --out lstm >stdout 2>stderr
check "an LSTM was made" test -s lstm/model.safetensors
prime=$(find data/starter/test -name '*.mid' | sort | head -n 1)

# ---- one report line, and what it says
run 0 gpt/model.safetensors --seed 5 --tokens 300 -o a.mid
key='[A-G]#?[0-9]'
like='repeats [0-9]+ notes?  nll [0-9.]+'
prints "^a\\.mid   [0-9]+ notes  [0-9]+ bars?  [0-9.]+ s  $key-$key  $like  seed 5  [0-9]+ tokens/s\$"
check "and nothing else" test "$(wc -l <stdout)" -eq 1 -a ! -s stderr
is_midi a.mid
run 0 gpt/model.safetensors --seed 5 --tokens 300 -o A.MID -o A.Svg -o A.HTML
same a.mid A.MID
check "suffixes may be capitals" test -s A.Svg -a -s A.HTML
run 0 gpt/model.safetensors --seed 5 --tokens 300 -n 2 -o A.MID
same a.mid A-1.MID
run 0 gpt/model.safetensors --seed 1 --tokens 3 -o one.svg
prints '^one\.svg   1 note  1 bar  .*  repeats 0 notes  '
check "its title says so too" grep -q ">1 note, 1 bar, [0-9]* s<" one.svg
# Of notes of one key that begin together one is written and counts: a prime of 16 quarters, each thrice.
{
    printf 'MThd\0\0\0\006\0\0\0\001\0\140MTrk\0\0\001\204'
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        printf '\0\220\100\100\0\221\100\100\0\222\100\100\140\200\100\0\0\201\100\0\0\202\100\0'
    done
    printf '\0\377\057\0'
} >thrice.mid
run 0 gpt/model.safetensors --seed 1 --tokens 1 --prime thrice.mid -o a.svg
prints '^a\.svg   .*  repeats 8 notes  '
run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime thrice.mid --no-prime -o a.svg
prints '^a\.svg   .*  repeats [0-4] notes?  '

# A model whose names PyTorch has put others before is the same.
mkdir a b
cp lstm/model.safetensors a/m
wrapped _orig_mod.module. a/m >b/m
run 0 a/m --seed 5 --tokens 30 -o a.mid
run 0 b/m --seed 5 --tokens 30 -o b.mid
same a.mid b.mid
# shellcheck disable=SC3045
(ulimit -v 40000 && exec "$sample" gpt/model.safetensors -n 2 --threads 1 --tokens 70000 --context 65536 2>stderr)
check "what does not fit into a limit is an error" test $? -eq 1
words="the state of the songs would take 0.0[0-9]* GB, and ulimit -v grants 0.041 GB in all; take a smaller --context"
check "it is said, and by which limit" grep -q "^sample_music: $words\$" stderr
run 0 gpt/model.safetensors --seed 5 --tokens 300 -o a.mid

# ---- the standard output
run 0 gpt/model.safetensors --seed 5 --tokens 300 -o -
same stdout a.mid
check "the report goes to stderr" grep -q "  seed 5  " stderr
run 0 gpt/model.safetensors --seed 5 --tokens 300 -o - -o both.svg --prime "$prime"
is_midi stdout
check "the prime is told on stderr" grep -q "^prime .* tokens" stderr
check "-o - beside a file" test -s both.svg
refuses 2 "-o -: the standard output takes one song" gpt/model.safetensors -n 2 -o -
refuses 2 "-o -: the standard output takes one song" gpt/model.safetensors lstm/model.safetensors -o -
refuses 2 "-o -: it was given twice" gpt/model.safetensors -o - -o -
if test -w /dev/full; then
    "$sample" gpt/model.safetensors -o - >/dev/full 2>stderr
    check "a full stdout is an error" test $? -eq 1
    check "and says so" grep -q "the standard output cannot be written" stderr
fi

# ---- live: lines as time goes by
run 0 gpt/model.safetensors --seed 5 --tokens 60 --bpm 1000 --live -o live.mid
same_as=$(grep -c '  note  ' stdout)
event="(note  $key  ? *[0-9]+  [0-9]+\.[0-9]{3}|bar   [0-9]+|end)"
check "each line is an event" test "$(grep -c -E "^ *[0-9]+\.[0-9]{3}  $event\$" stdout)" -eq "$(wc -l <stdout)"
check "the end is that of the last note" awk '/  note  / && $1 + $5 > end { end = $1 + $5 }
    /  bar  / && $1 > end { end = $1 } /  end$/ { ends++; at = $1 }
    END { exit !(ends == 1 && at - end < 0.0015 && end - at < 0.0015 && $2 == "end") }' stdout
check "the report goes to stderr" grep -q "^live.mid " stderr
run 0 gpt/model.safetensors --seed 5 --tokens 60 --bpm 1000 -o still.mid -o still.svg
same live.mid still.mid
check "live has all $same_as notes" test "$same_as" -ge "$(grep -c data-note still.svg)"
awk '/data-note/ { match($0, /data-note="[^"]*/); split(substr($0, RSTART + 11, RLENGTH - 11), n, " ")
    printf "%9.3f  note  %3d\n", n[2] / 480 * 60 / 1000, n[1] }' still.svg | sort -u >drawn
"$sample" gpt/model.safetensors --seed 5 --tokens 60 --bpm 1000 --live -o live.mid 2>stderr |
    awk '/  note  / { printf "%9.3f  note  %3d\n", $1, $4 }' | sort -u >heard
same drawn heard
primed="--seed 5 --prime-tokens 30 --tokens 30 --bpm 1000 --live"
# shellcheck disable=SC2086
"$sample" gpt/model.safetensors $primed --prime "$prime" -o live.mid >stdout 2>stderr
check "the prime is marked" grep -q "  prime$" stdout
# shellcheck disable=SC2086
"$sample" gpt/model.safetensors $primed --prime "$prime" --no-prime -o live.mid >stdout 2>stderr
check "or left out" sh -c '! grep -q prime stdout && grep -q -E "^    0\.[0-9]{3}  note" stdout'

# Ctrl-C ends it at once, with whole files and status 0; so does a reader that goes away.
started() { # FILE: $process writes it
    tries=0
    while test ! -s "$1" -a $tries -lt 200; do
        sleep 0.1
        tries=$((tries + 1))
    done
    check "$1 is not written" test -s "$1"
}
rm -f stdout
"$sample" gpt/model.safetensors --seed 6 --bpm 60 --live -o stopped.mid -o stopped.svg >stdout 2>stderr &
process=$!
started stdout
kill -INT $process
wait $process
check "stopped with status 0" test $? -eq 0
process=
is_midi stopped.mid
check "the .svg is whole" sh -c 'tail -n 1 stopped.svg | grep -q "^</svg>$"'
check "without an end" sh -c '! grep -q "  end$" stdout'
check "it says where it stopped" grep -q "interrupted after [0-9]* new token" stderr
check "and so does the file" grep -q ", interrupted after [0-9]* new token" stopped.svg
{ "$sample" gpt/model.safetensors --seed 5 --bpm 400 --live -o piped.mid 2>stderr; echo $? >status; } | head -n 2 >two
check "two lines came through the pipe" test "$(wc -l <two)" -eq 2
check "a reader that goes away is no error" test "$(cat status)" -eq 0
is_midi piped.mid

# ---- Ctrl-C without --live: songs end at their last bar line, and what was made is written
notes() { sed -n 's/.*data-note="\([^"]*\)".*/\1/p' "$1"; }
for seconds in 0.1 0.5 2 8 32; do # until the moment of the signal there should be a bar
    "$sample" gpt/model.safetensors --seed 5 --tokens 1000000 -o - -o cut.svg -o cut.wav -o cut.html >cut.mid 2>stderr &
    process=$!
    sleep $seconds
    kill -TERM $process
    wait $process
    status=$?
    process=
    new=$(sed -n 's/.*interrupted after \([0-9]*\) new tokens$/\1/p' stderr)
    test "${new:-0}" -gt 500 && break
done
check "a song that is interrupted ends with 130, not $status" test $status -eq 130
is_midi cut.mid
check "its other files are there" test -s cut.wav -a -s cut.html
for file in cut.mid cut.svg cut.html; do
    check "$file says so" grep -a -q ", interrupted after $new new tokens" $file
done
run 0 gpt/model.safetensors --seed 5 --bars "$(sed -n 's/.* \([0-9]*\) bars.*/\1/p' stderr)" -o bars.svg
notes cut.svg >cut.notes
notes bars.svg >bars.notes
same cut.notes bars.notes
run 0 gpt/model.safetensors --seed 5 --tokens "${new:-1}" -o new.svg
notes new.svg >new.notes
same cut.notes new.notes

# Many songs: those that were made are whole files, in one page too; the rest is counted.
many() { # SIGNAL...: songs are made until these come together; n-1.mid is whole by then
    rm -f n-*.mid n.html
    "$sample" gpt/model.safetensors --seed 5 -n 256 --threads 1 --tokens 4000 -o n.mid -o n.html >stdout 2>stderr &
    process=$!
    started n-1.mid
    kill -STOP $process
    for signal in "$@"; do kill -"$signal" $process; done
    kill -CONT $process
    wait $process 2>/dev/null
    status=$?
    process=
}
many INT
check "songs that are interrupted end with 130, not $status" test $status -eq 130
made=$(find . -name 'n-*.mid' | wc -l)
prints "^$made songs  [0-9]* tokens  .*  interrupted\$"
prints "^n\.html  $made songs\$"
prints "^interrupted before [0-9]+ of 256 songs began\$"
check "all of $made songs are in the page" test "$(grep -c '^],$' n.html)" -eq "$made"
for file in n-*.mid; do is_midi "$file"; done
check "nothing else is left" test -z "$(find . -name '*.tmp*')"
run 0 gpt/model.safetensors --seed 5 --tokens 4000 -o whole.mid
same n-1.mid whole.mid
many INT TERM
check "a second signal kills: $status" test $status -gt 128
check "at once" test ! -e n.html

# Without a new note there is no song, and what was there stays.
echo old >old.mid
rm -f stdout
"$sample" gpt/model.safetensors --prime "$prime" --bpm 10 --live -o old.mid -o none.html >stdout 2>stderr &
process=$!
started stdout
kill -TERM $process
wait $process
process=
check "it says that it has no note" grep -q "^song 1  not written: it was interrupted before its first new note$" stderr
check "nothing is written" test "$(cat old.mid)" = old -a ! -e none.html

# What cannot be written is said before the song is made.
refuses 1 "missing/late.html: cannot be written: No such file or directory; its folder must exist" \
    gpt/model.safetensors --tokens 30 -o early.mid -o missing/late.html
check "nothing was made" test ! -e early.mid

refuses 2 "--live: it follows one song" gpt/model.safetensors --live -n 2
refuses 2 "--live: it writes to the standard output" gpt/model.safetensors --live -o -

# ---- songs in a batch, models side by side
for weights in float32 bf16 int8; do
    run 0 gpt/model.safetensors --seed 9 -n 5 --tokens 90 --weights $weights -o n.mid
    prints '^5 songs  450 tokens  [0-9.]+ s  [0-9]+ tokens/s$'
    run 0 gpt/model.safetensors --seed 11 --tokens 90 --weights $weights -o one.mid
    same n-3.mid one.mid
done
run 0 gpt/model.safetensors lstm/model.safetensors --seed 4 --tokens 90 -o cmp.html -o cmp.mid -o cmp.wav
prints '^cmp-1\.mid cmp-1\.wav   .*  gpt/model\.safetensors$'
prints '^cmp-2\.mid cmp-2\.wav   .*  lstm/model\.safetensors$'
prints '^cmp\.html  2 songs$'
run 0 lstm/model.safetensors --seed 4 --tokens 90 -o one.mid
same cmp-2.mid one.mid
check "the page has both" sh -c 'grep -q "gpt, seed 4" cmp.html && grep -q "lstm, seed 4" cmp.html'
check "its texts have the seed once" sh -c 'test "$(grep -c "\"settings\":\"tokens 90, " cmp.html)" -eq 2'
check "the .wav is one" test "$(head -c 4 cmp-1.wav)" = RIFF

# ---- guards
run 0 gpt/model.safetensors --seed 4 --tokens 900 --scale D-dorian --lowest C4 --highest 83 -o guard.svg
check "no key outside the scale and the range" sh -c '
    sed -n "s/.*data-note=\"\([0-9]*\) .*/\1/p" guard.svg >keys
    test -s keys &&
        awk "{ if (\$1 < 60 || \$1 > 83 || index(\" 0 2 4 5 7 9 11 \", \" \" \$1 % 12 \" \") == 0) exit 1 }" keys'
refuses 2 "--scale C-mayor: it must be a note and a scale" gpt/model.safetensors --scale C-mayor
refuses 2 "--lowest C0: it must be a key of the piano" gpt/model.safetensors --lowest C0
refuses 2 "--highest 200: it must be a key of the piano" gpt/model.safetensors --highest 200
refuses 2 "--lowest: no key of the piano lies from C5 to C4, because it is above --highest; swap the two" \
    gpt/model.safetensors --lowest C5 --highest C4
refuses 2 "--seconds 0: " gpt/model.safetensors --seconds 0
refuses 2 "--weights int4: this build knows float32|bf16|int8" gpt/model.safetensors --weights int4
refuses 2 "-o x.mp3: the name should end in .mid, .wav, .html or .svg" gpt/model.safetensors -o x.mp3

# ---- what is drawn
run 0 gpt/model.safetensors --seed 4 --tokens 1500 --bpm 100 -o drawn.svg
check "the drawing has a name" \
    grep -q '^<title>gpt, seed 4: piano roll of [0-9]* notes, [0-9]* bars, [0-9]* s</title>$' drawn.svg
check "and is an image" sh -c 'head -n 1 drawn.svg | grep -q " role=\"img\" "'
seconds=$(sed -n 's/.*  \([0-9.]*\) s  .*/\1/p' stdout)
check "its seconds go on evenly to $seconds" awk -F '[<> ]' '
    /class="time"/ { for (i = 1; i < NF; i++) if ($i == "s") at[n++] = $(i - 1) }
    END { for (i = 0; i < n; i++) if (at[i] != i * at[1]) exit 1
        exit !(n > 5 && at[n - 1] <= '"$seconds"' + 0.1 && at[n - 1] + at[1] > '"$seconds"') }' drawn.svg
check "no row goes on behind its end" awk -F '"' '/class="c"/ { split($4, line, "h"); grid = line[2] + 0 }
    /class="frame"/ { width = $4 + 0; wrong += grid != width; rows++; most = 0 }
    /class="(new|prime)"/ && $4 + $8 > most { most = $4 + $8 }
    END { exit !(rows > 1 && !wrong && width < 900 && most > 0 && most <= width) }' drawn.svg
run 0 gpt/model.safetensors --tokens 1 -o drawn.svg
check "an empty song says so" grep -q ">no notes, 0 bars, 0 s<" drawn.svg
check "its labels lie apart" awk -F '"' '/>bar</ { bar = $6 }
    />C[0-9]</ { for (i = 1; i < NF; i++) if ($i == " y=" && (!n++ || $(i + 1) < top)) top = $(i + 1) }
    END { exit !(n && top - bar > 11) }' drawn.svg

# ---- help
run 0 --help
check "lines of --help have at most 100 columns" awk 'length > 100 { exit 1 }' stdout

# ---- primes: what is dropped or changed is said
run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime "$prime" -o p.mid
prints '^prime .*: the first 256 of [0-9]+ tokens, at [0-9.]+ quarters a minute'
# format 0, 96 ticks: tempo 100; on a grid key 60 loud, key 20 that no piano has, a short key 62, a drum off the grid
{
    printf 'MThd\0\0\0\006\0\0\0\001\0\140MTrk\0\0\0\063\0\377\121\003\011\047\300\0\220\074\144\0\220\024\144'
    printf '\140\200\074\0\0\200\024\0\0\220\076\100\005\200\076\0\012\231\100\100\100\211\100\0'
    printf '\060\220\077\144\140\200\077\0\0\377\057\0'
} >odd.mid
run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime odd.mid -o p.mid -o p.svg
for words in "at 100 quarters a minute" "1 of 5 notes outside the piano's range dropped" \
    "1 of 5 notes too short for 16ths dropped" "2 of 5 notes moved to the grid of 16ths" \
    "1 of 5 notes of drums played as keys" "no time signature, read as 4/4"; do
    check "the prime's line lacks: $words" grep -q -F -e "$words" stdout
done
check "the prime's tempo is the song's" grep -q "bpm 100" p.svg
run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime odd.mid --bpm 77 -o p.svg
check "but for --bpm" grep -q "bpm 77" p.svg
for choice in keep-short no-drums; do
    run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime odd.mid --$choice -o p.svg
    check "--$choice is told" grep -q "prime odd.mid ([0-9]* tokens, $choice)" p.svg
    refuses 2 "--$choice: it goes with --prime FILE" gpt/model.safetensors --$choice
done
refuses 1 "--prime nothing.mid: " gpt/model.safetensors --prime nothing.mid
refuses 1 "--prime gpt/log.csv: " gpt/model.safetensors --prime gpt/log.csv
refuses 2 "--no-prime: it goes with --prime FILE" gpt/model.safetensors --no-prime

# ---- what is copied from a training set
run 0 gpt/model.safetensors --seed 5 --tokens 60 --data data -o a.mid
prints "^a\\.mid .*$like  seed 5  copied 0 notes  [0-9]+ tokens/s\$"
mkdir songs
cp a.mid songs/mine.mid
"$root/data_prep/prepare_music" --out mine songs data/starter/test >stdout
for where in mine mine/train.safetensors; do
    run 0 gpt/model.safetensors --seed 5 --tokens 60 --data $where -n 2 -o b.mid
    prints '^b-1\.mid .*  copied ([89]|[1-9][0-9]+) notes \(mine\.mid\)$'
    prints '^b-2\.mid .*  copied 0 notes$'
done
run 0 gpt/model.safetensors --seed 1 --tokens 30 --prime "$prime" --data data/test.safetensors -o p.mid
prints '  copied 0 notes  ' # those of the prime do not count
refuses 1 "nowhere: cannot be opened: No such file" gpt/model.safetensors --data nowhere
refuses 1 "songs/train.safetensors: cannot be opened: No such file" gpt/model.safetensors --data songs
refuses 1 "a.mid: not a safetensors file" gpt/model.safetensors --data a.mid

# ---- the loss, as the trainer finds it
for model in gpt lstm; do
    case $model in gpt) trainer=$gpt ;; lstm) trainer=$lstm ;; esac
    "$trainer" --eval --init $model/model.safetensors --window 256 --batch 8 --eval-stride 20000 >stdout 2>stderr
    loss=$(sed -n 's/^eval loss=\([0-9.]*\) .*/\1/p' stdout)
    run 0 $model/model.safetensors --eval data/test.safetensors --eval-stride 20000
    ours=$(sed -n 's/^eval loss=\([0-9.]*\) .*/\1/p' stdout)
    check "--eval says $ours, the trainer $loss" awk "BEGIN { exit !($loss > 1 && ($ours - $loss) ^ 2 < 1e-10) }"
done
# What the metadata say of a model's precision need not be known here, and no name is a command to a terminal.
esc=$(printf 'a\033[31m\302\2331m')
LC_ALL=C sed 's/"precision":"fp32"/"precision":"fp99"/' gpt/model.safetensors >"$esc"
"$gpt" --eval --init "$esc" --eval-stride 20000 >stdout 2>stderr
check "an --eval that is done: $?" grep -q "^eval loss=" stdout
check "prints no error" test -z "$(grep -v "built without OpenMP" stderr)"
check "and no command to a terminal" test -z "$(LC_ALL=C tr -d '\n -~' <stdout)"
refuses 1 "gpt/model.safetensors: not a dataset" gpt/model.safetensors --eval gpt/model.safetensors
refuses 2 "--bench and --eval exclude each other" gpt/model.safetensors --bench --eval data/test.safetensors
refuses 2 "-n 17: --bench takes at most 16 songs" gpt/model.safetensors --bench -n 17
refuses 1 "nothing: " nothing
refuses 1 "nothing: " gpt/model.safetensors nothing

# ---- the model that comes along, where none is trained: small, and good at the starter corpus
starter=data_prep/starter_model.safetensors
check "it is small" test "$(wc -c <"$root/$starter")" -le 1500000
mkdir untrained
cd untrained || exit 1
run 0 --tokens 60 -o song.mid
prints "^$root/$starter: used, a small model that comes along, because none is trained yet"
is_midi song.mid
run 0 --eval ../data/test.safetensors --eval-stride 1600
loss=$(sed -n 's/^eval loss=\([0-9.]*\) .*/\1/p' stdout)
check "the loss of it is $loss" awk "BEGIN { exit !($loss > 0.5 && $loss < 0.8) }"
report sampler
