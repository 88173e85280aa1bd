#!/bin/sh
# Tests of prepare_music: what it prints, what it writes, what it leaves alone. PREPARE_MUSIC names the program.
. "$(dirname "$0")/check.sh"
program=${PREPARE_MUSIC:-$root/data_prep/prepare_music}
needs prepare "$program"

limit=
command -v timeout >/dev/null && limit='timeout 60'
run() { # the program's output and exit status; a hang is a failure
    $limit "$program" "$@" >out.txt 2>err.txt
    status=$?
}

sentence() { [ "$(wc -l <err.txt)" -eq 1 ] && grep -q "^prepare_music: .*$1" err.txt; } # stderr is one, with $1 in it
said() { grep -q -- "$1" out.txt; }
tokens_in() { sed -n "s/^$1: .* pieces, \([0-9]*\) tokens.*/\1/p" out.txt; }
holds() { grep -a -q -F -- "$2" "$1"; }

# midi FILE KEY: one quarter note. long FILE KEY: 200 of them, more than a window.
header='MThd\000\000\000\006\000\000\000\001\001\340MTrk\000\000'
midi() { printf "$header"'\000\014\000\220%b\120\203\140%b\000\000\377\057\000' "\\0$2" "\\0$2" >"$1"; }
long() {
    { # 200 * 7 + 5 bytes
        printf "$header"'\005\175\000\220%b\120\203\140%b\000' "\\0$2" "\\0$2"
        i=1
        while [ $i -lt 200 ]; do
            printf '\000%b\120\203\140%b\000' "\\0$2" "\\0$2"
            i=$((i + 1))
        done
        printf '\000\377\057\000'
    } >"$1"
}

# smf FILE TRACKS TRACK...: so many tracks are announced; the events of each are octal, without their end.
smf() {
    file=$1
    announced=$2
    shift 2
    printf 'MThd\000\000\000\006\000\001\000%b\001\340' "\\0$announced" >"$file"
    for track in "$@"; do
        # shellcheck disable=SC2059 # the events are a format
        printf "$track"'\000\377\057\000' >track
        printf 'MTrk\000\000\000%b' "$(printf '\\0%03o' "$(wc -c <track)")" >>"$file"
        cat track >>"$file"
    done
}
note='\000\220\074\120\203\140\074\000'  # a quarter
short='\000\220\074\120\001\074\000'      # a tick of it
high='\000\220\177\120\203\140\177\000'  # on no piano
drum='\000\231\043\120\203\140\043\000'  # on channel 10
pedal='\000\260\100\177\000\260\100\000' # down and up
tempo='\000\377\121\003\007\241\040'

# The tokens of a file
midi one.mid 074
run --tokens one.mid
check "--tokens prints the ids" [ "$status $(tr '\n' ' ' <out.txt)" = "0 1 72 124 " ]
printf 'Hello, this is no MIDI file' >text.mid
: >empty.mid
for text in RIFF 'no midi' 'thirteen byte'; do
    printf '%s' "$text" >short.mid
    run --tokens short.mid
    check "'$text' is not MIDI" sentence 'short.mid: not a MIDI file'
done
printf 'MThd\000\000' >short.mid
run --tokens short.mid
check "half a header is too short" sentence 'short.mid: too short'
for file in text.mid empty.mid missing.mid . /dev/null; do
    run --tokens $file
    check "--tokens $file fails with a sentence" [ "$status" -eq 1 ]
    check "--tokens $file names the file" sentence "$file: "
    check "--tokens $file prints no ids" [ ! -s out.txt ]
done
head -c 30 one.mid >cut.mid
run --tokens cut.mid
check "a truncated file says where" sentence "byte"

# A file that gives no tokens: why
silent() { # silent WORDS: --tokens of silent.mid prints nothing, and these words in a sentence
    run --tokens silent.mid
    check "no tokens is no failure ($1)" [ "$status" -eq 0 -a ! -s out.txt ]
    check "the reason is '$1'" sentence "silent.mid: $1\$"
}
smf silent.mid 1 "$tempo"
silent 'holds no notes'
smf silent.mid 1 "$short$short"
silent 'none of its notes can be used: 2 too short for the grid of 16ths'
smf silent.mid 1 "$high$short"
silent "none of its notes can be used: 1 too short for the grid of 16ths, 1 outside the piano's keys"
smf silent.mid 1 "" "$note" "$note"
silent 'holds no notes: 2 of its tracks not read, because the header announces fewer'
smf silent.mid 2 ""
silent 'holds no notes: 1 of the tracks that the header announces missing'
smf kept.mid 1 "$short$drum$note"
run --tokens kept.mid --keep-short --no-drums
check "--tokens takes what changes notes" [ "$status $(tr '\n' ' ' <out.txt)" = "0 1 72 121 5 72 124 " ]

# Two folders: order, depth, letter case, and files that are none
mkdir -p train/sub.mid/deep test
long train/b.MID 074
long train/a.midi 075
midi train/sub.mid/deep/c.Kar 076
midi train/B.rmi 077
cp text.mid train/text.mid
cp empty.mid train/empty.mid
head -c 20 train/b.MID >train/cut.mid
echo notes >train/readme.txt
midi train/noextension 074
midi train/high.mid 177
midi train/wrong.mid.bak 074
midi test/t.mid 074
run --out sets train test
check "two folders: exit status 0" [ "$status" -eq 0 ]
check "two folders: nothing on stderr" [ ! -s err.txt ]
check "text.mid skipped" said '^skipped text.mid: not a MIDI file'
check "empty.mid skipped" said '^skipped empty.mid: the file is empty'
check "cut.mid skipped" said '^skipped cut.mid: .*byte'
check "high.mid skipped" said "^skipped high.mid: none of its notes can be used: 1 outside the piano's keys"
check "no time signature is a change" said '^changed b.MID: no time signature, read as 4/4'
check "the summary" said '^train: 11 files, 4 kept (4 of them changed), 4 skipped, 3 of other kinds'
# a long piece: 200 notes in 50 bars, so 200 * 3 + 49 * 2 tokens, 698 - 256 windows
check "the training set" said '^train: 4 pieces, 1402 tokens, 884 windows of 257 tokens (pieces too short for one: 2)'
check "the test set" said '^test: 1 pieces, 3 tokens, 0 windows'
check "pieces in byte order" holds sets/train.safetensors 'B.rmi\na.midi\nb.MID\nsub.mid/deep/c.Kar'
check "the format" holds sets/train.safetensors music-tokens/1
check "no other files" [ "$(echo sets/*)" = "sets/test.safetensors sets/train.safetensors" ]
cp -R sets before

# The same files, made in another order
mkdir -p again/sub.mid/deep
for file in b.MID a.midi B.rmi sub.mid/deep/c.Kar; do cp train/$file again/$file; done
run --out sets2 again test
check "same files, same bytes" cmp -s sets/train.safetensors sets2/train.safetensors

# Names that would disturb a terminal or the list of names; links, pipes, loops
mkdir odd
midi "odd/new
line.mid" 074
midi "odd/$(printf 'esc\033[31m.mid')" 074
midi "odd/$(printf 'bad\377.mid')" 074
midi "odd/$(printf 'csi\302\2331m.mid')" 074
midi "odd/100%.mid" 074
ln -s . odd/loop
ln -s ../train odd/folder.mid
ln -s self.mid odd/self.mid
ln -s nowhere odd/broken.mid
ln -s ../one.mid odd/link.mid
mkfifo odd/pipe.mid
run --out sets3 --keep-copies odd test
check "odd names: exit status 0" [ "$status" -eq 0 ]
check "odd names: six pieces" said '^train: 6 pieces, 18 tokens'
check "a newline is escaped in the set" holds sets3/train.safetensors 'new%0Aline.mid'
check "a percent sign too" holds sets3/train.safetensors '100%25.mid'
check "and a byte that is not UTF-8" holds sets3/train.safetensors 'bad%FF.mid'
check "no control characters are printed" [ -z "$(tr -d '\n -~' <out.txt)" ]
check "an escape is not shown" said '^changed esc?\[31m.mid'
check "nor a C1 control" said '^changed csi??1m.mid'
check "a loop of folders is not followed" said '^skipped loop: a link to a folder'
check "a link to a folder is not followed" said '^skipped folder.mid: a link to a folder'
check "a loop of links is skipped" said '^skipped self.mid: '
check "a broken link is skipped" said '^skipped broken.mid: '
check "a pipe is skipped" said '^skipped pipe.mid: is not a regular file'

# One folder, split
mkdir many
i=100
while [ $i -lt 140 ]; do
    midi many/$i.mid "$(printf %03o $((i - 67)))"
    i=$((i + 1))
done
run --out split1 many
check "a tenth is for testing" [ "$status $(tokens_in train) $(tokens_in test)" = "0 108 12" ]
run --out split2 --seed 1 --test 0.1 many
check "the defaults" cmp -s split1/test.safetensors split2/test.safetensors
run --out split3 --seed 2 many
check "another seed, another split" [ "$status $(tokens_in test)" = "0 12" ]
check "other pieces" sh -c '! cmp -s split1/test.safetensors split3/test.safetensors'
run --out split4 --test 0.001 many
check "one piece at least to test" [ "$status $(tokens_in train) $(tokens_in test)" = "0 117 3" ]
run --out split5 --test 0.999 many
check "one piece at least to train" [ "$status $(tokens_in train) $(tokens_in test)" = "0 3 117" ]

# Recordings and arrangements: short notes, drums, pedal
mkdir band
smf band/a.mid 1 "$short$short$short$note"
smf band/b.mid 1 "$pedal$drum$drum$note$pedal"
smf band/c.mid 1 "$short$high"
smf band/d.mid 1 "$drum"
smf band/e.mid 1 "$note$note" "$note"
run --out band.1 band
check "short notes are counted" said '^changed a.mid: .*notes too short for the grid dropped: 3 of 4'
check "drums are counted" said '^changed b.mid: .*drum notes played as keys: 2 of 3'
check "a file of short notes is skipped" said '^skipped c.mid: none of its notes can be used: 1 too short'
check "tracks that are not read" said '^changed e.mid: .*tracks not announced and not read: 1'
check "all short notes" said '^band: 12 notes; .*too short for the grid dropped (--keep-short keeps them): 4 of 12'
check "all drums" said '^band: .*drum notes played as keys (--no-drums drops them): 3 of 12'
check "the pedal" said '^band: .*files whose sustain pedal is ignored: 1'
run --out band.2 --keep-short --no-drums band
check "short notes are kept" said '^changed a.mid: .*notes too short for the grid made a 16th long: 3 of 4'
check "drums are dropped" said '^changed b.mid: .*drum notes dropped: 2 of 3'
check "a file of short notes is a piece" said "^changed c.mid: .*made a 16th long: 1 of 2"
check "a file of drums is skipped" said '^skipped d.mid: none of its notes can be used: 1 dropped with the drums'
check "the pieces" [ "$status $(tokens_in train) $(tokens_in test)" = "0 21 3" ] # a: 4 notes, b, c: 1, e: 2

# Bar lines without end: a note, then bars of 1/16 for 2^28 ticks
mkdir bars
bars='\000\377\130\004\001\004\030\010\377\377\377\177\377\121\003\007\241\040'
smf bars/bars.mid 1 "$bars"
smf bars/noted.mid 1 "$note$bars"
midi bars/one.mid 075
run --out sets.bars bars test
check "bar lines are no piece" said '^skipped bars.mid: holds no notes'
check "nor beside a note" said '^skipped noted.mid: its 22369[0-9]* bar lines alone take more than 1000000 tokens'
check "the rest is" said '^train: 1 pieces, 3 tokens'

# Copies: the same notes under another name, in other bytes, in the other folder; in another key they are another piece
mkdir -p twice/more again.test
long twice/a.mid 074
cp twice/a.mid twice/b.mid
long twice/up.mid 075
long twice/more/b.mid 076
smf twice/c.mid 1 "$note"
smf twice/d.mid 1 "$tempo$note"
cp twice/a.mid again.test/x.mid
midi again.test/y.mid 100
run --out copies twice again.test
check "a copy is left out" said '^skipped b.mid: a copy of a.mid$'
check "by its tokens" said '^skipped d.mid: a copy of c.mid$'
check "in the test folder too" said '^skipped x.mid: a copy of the training folder.s a.mid$'
check "copies and other keys are counted" said '^twice: .*copies left out: 2; .*different key: 2 of 4'
check "the rest is kept" [ "$status $(tokens_in train) $(tokens_in test)" = "0 2097 3" ]
run --out copies --keep-copies twice again.test
check "--keep-copies" [ "$status $(tokens_in train) $(tokens_in test)" = "0 2798 701" ]
check "counts them" said '^twice: .*copies kept: 2; '
run --out copies twice twice
check "a test set of copies alone" sentence 'twice: none of its MIDI files can be used'

# What fails leaves the old sets as they were
mkdir none one
echo x >none/readme.txt
cp one.mid one/
cp text.mid none.mid
fails() { # fails WORDS ARGUMENTS...
    words=$1
    shift
    run --out sets "$@"
    check "'$*' exits 1" [ "$status" -eq 1 ]
    check "'$*' says '$words'" sentence "$words"
    check "'$*' leaves the old sets" diff -r sets before
}
fails 'none: holds no MIDI files' none test
fails 'none: holds no MIDI files' train none
fails 'none: holds no MIDI files' none
fails 'missing: ' missing test
fails 'is not a folder' one.mid test
fails 'only one piece' one
mkdir bad
cp text.mid bad/
fails 'bad: none of its MIDI files' train bad
run --out one.mid/sets train test
check "an impossible folder" sentence 'one.mid'
check "exits 1" [ "$status" -eq 1 ]
mkdir -p way/test.safetensors
run --out way train test
check "a folder in the way of a set" sentence 'test.safetensors'
check "nothing is written beside it" [ "$(ls way)" = test.safetensors ]
( # no room: files of half a KiB at most
    ulimit -f 1
    trap '' XFSZ
    exec "$program" --out new/deep/ train test >out.txt 2>err.txt
)
check "no room for a set exits 1" [ $? -eq 1 ]
check "and names the set" sentence 'new/deep//*train.safetensors: cannot be written'
check "and leaves nothing" [ -z "$(ls new/deep)" ]
if [ -w /dev/full ]; then
    "$program" --tokens one.mid >/dev/full 2>err.txt
    check "a full disk exits 1" [ $? -eq 1 ]
    check "and says so" sentence 'output'
fi

# A file that the system fails to give is not skipped, and of two sets both appear or none
cat >fault.c <<'end'
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// FAULT=open,CODE,PART: fopen and opendir fail where PART is in the path.
// FAULT=rename,CODE,N: the Nth rename fails, or with the code 0 the program is killed there.
static int fault(const char *what, const char *path) {
    static int count;
    const char *fault = getenv("FAULT");
    if (!fault || strncmp(fault, what, strlen(what))) return 0;
    int code = atoi(strchr(fault, ',') + 1);
    const char *which = strrchr(fault, ',') + 1;
    if (path ? !strstr(path, which) : ++count != atoi(which)) return 0;
    if (!code) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

FILE *fopen(const char *path, const char *mode) {
    FILE *(*next)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    return fault("open", path) ? NULL : next(path, mode);
}

DIR *opendir(const char *path) {
    DIR *(*next)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    return fault("open", path) ? NULL : next(path);
}

int rename(const char *from, const char *to) {
    int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return fault("rename", NULL) ? -1 : next(from, to);
}
end
# shellcheck disable=SC2086 # CC may have flags
if [ "$(uname)" = Linux ] && ${CC:-cc} -D_FILE_OFFSET_BITS=64 -shared -fPIC -o fault.so fault.c -ldl 2>stderr; then
    faulty() { # faulty FAULT ARGUMENTS...
        FAULT=$1
        shift
        FAULT=$FAULT LD_PRELOAD=$PWD/fault.so "$program" "$@" >out.txt 2>err.txt
        status=$?
    }
    head -c 33000000 /dev/zero >bars/large.mid
    ( # no memory: 30 MB at most
        # shellcheck disable=SC3045 # Linux has it
        ulimit -v 30000
        exec "$program" --out sets bars test >out.txt 2>err.txt
    )
    check "no memory for a file exits 1" [ $? -eq 1 ]
    check "and says so" sentence 'bars/large.mid: out of memory'
    for code in 5 12 24; do # EIO, ENOMEM, EMFILE
        faulty open,$code,b.MID --out sets train test
        check "error $code of a file exits 1" [ "$status" -eq 1 ]
        check "names it" sentence 'train/b.MID: cannot be read: '
        check "and leaves the old sets" diff -r sets before
    done
    faulty open,24,deep --out sets train test
    check "a folder that the system fails to give" sentence 'deep: this folder cannot be searched: Too many open files'
    faulty open,13,b.MID --out sets.13 train test
    check "a forbidden file is skipped" [ "$status" -eq 0 ]
    check "with the reason" said '^skipped b.MID: cannot be read: Permission denied'
    run --out sets.new many
    for n in 1 2 3 4 5 6; do # two of the temporary files, two of the old sets, two of the new ones
        rm -rf sets.n
        cp -R sets sets.n
        faulty rename,5,$n --out sets.n many
        check "a failed rename exits 1 ($n)" [ "$status" -eq 1 ]
        check "says so ($n)" sentence 'sets.n/t[a-z]*.safetensors: cannot be [a-z]*: Input/output error'
        check "and leaves the old sets alone ($n)" diff -r sets.n before
        rm -rf sets.n
        faulty rename,5,$n --out sets.n many
        case $n in 3 | 4) continue ;; esac # there is nothing to step aside, which is another error
        check "and nothing where there was nothing ($n)" [ "$status" -eq 1 -a -z "$(ls sets.n)" ]
    done
    for n in 1 2 3 4 5 6; do
        rm -rf sets.n
        cp -R sets sets.n
        faulty rename,0,$n --out sets.n many
        check "killed at a rename ($n)" [ "$status" -gt 128 ]
        old=0 new=0
        for set in train.safetensors test.safetensors; do
            cmp -s sets.n/$set before/$set && old=$((old + 1))
            cmp -s sets.n/$set sets.new/$set && new=$((new + 1))
        done
        check "no old set beside a new one ($n)" [ $((old * new)) -eq 0 ]
        run --out sets.n many
        check "another run makes it good ($n)" diff -r sets.n sets.new
    done
else
    echo "skipped: failing system calls, which need Linux and a compiler"
fi

# Wrong usage
misused() { # misused WORDS ARGUMENTS...
    words=$1
    shift
    run "$@"
    check "'$*' exits 2" [ "$status" -eq 2 ]
    check "'$*' says '$words'" sentence "$words"
}
misused 'give a folder'
misused '--nonsense: there is no such flag; --help' --nonsense train
misused 'one: it is one DIR too many' train test one
misused '--out: its value is missing' --out
for part in 0 1 nan x; do misused "--test $part: it must be a number above 0 and below 1" --test $part many; done
for seed in -1 1x 99999999999999999999; do misused "--seed $seed: it must be a whole number" --seed $seed many; done
misused 'only one folder can be split' --seed 2 train test
misused '--tokens one.mid: it goes with nothing else' --tokens one.mid train
misused '--tokens one.mid: it goes with nothing else' --tokens one.mid --keep-copies
misused '--tokens: its value is missing' --tokens
run --help
check "--help" [ "$status" -eq 0 -a -s out.txt ]
run --version
check "--version" [ "$status" -eq 0 -a -s out.txt ]

report prepare_music
