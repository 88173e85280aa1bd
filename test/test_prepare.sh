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
check "high.mid skipped" said '^skipped high.mid: gives no tokens (.*notes outside'
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
run --out sets3 odd test
check "odd names: exit status 0" [ "$status" -eq 0 ]
check "odd names: six pieces" said '^train: 6 pieces, 18 tokens'
check "a newline is escaped in the set" holds sets3/train.safetensors 'new%0Aline.mid'
check "a percent sign too" holds sets3/train.safetensors '100%25.mid'
check "and a byte that is not UTF-8" holds sets3/train.safetensors 'bad%FF.mid'
check "no control characters are printed" [ -z "$(tr -d '\n -~' <out.txt)" ]
check "an escape is shown" said '^changed esc%1B\[31m.mid'
check "a C1 control is shown" said '^changed csi%C2%9B1m.mid'
check "a loop of folders is not followed" said '^skipped loop: a link to a folder'
check "a link to a folder is not followed" said '^skipped folder.mid: a link to a folder'
check "a loop of links is skipped" said '^skipped self.mid: '
check "a broken link is skipped" said '^skipped broken.mid: '
check "a pipe is skipped" said '^skipped pipe.mid: is not a regular file'

# One folder, split
mkdir many
i=100
while [ $i -lt 140 ]; do
    midi many/$i.mid 074
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
check "and leaves no folders" [ ! -e new ]
mkdir mine
(
    ulimit -f 1
    trap '' XFSZ
    exec "$program" --out mine/deep train test >out.txt 2>err.txt
)
check "but those that were there" [ -d mine -a ! -e mine/deep ]
if [ -w /dev/full ]; then
    "$program" --tokens one.mid >/dev/full 2>err.txt
    check "a full disk exits 1" [ $? -eq 1 ]
    check "and says so" sentence 'output'
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
misused '--tokens: its value is missing' --tokens
run --help
check "--help" [ "$status" -eq 0 -a -s out.txt ]
run --version
check "--version" [ "$status" -eq 0 -a -s out.txt ]

report prepare_music
