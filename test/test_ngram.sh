#!/bin/sh
# The n-gram on the starter corpus: it prints what its page says, and writes a song that can be read. What is missing
# is said in one sentence.
. "$(dirname "$0")/check.sh"
ngram=$root/dev/plain/ngram
needs ngram "$ngram" "$root/data_prep/compose_music" "$root/data_prep/prepare_music"
run() { "$@" >stdout 2>stderr; }
refused() { # PATTERN: a sentence on stderr, and no song
    run "$ngram"
    test $? -eq 1 && test "$(wc -l <stderr)" -eq 1 && grep -q "$1" stderr && test ! -e ngram.mid
}

check "no music yet" refused '^ngram: data/train.safetensors: .*; make some with data_prep/compose_music && '
ln -s "$root/data_prep" data_prep
check "the command that it names" run sh -c "$(sed 's/.*make some with //' stderr)"
mv data/test.safetensors test.safetensors
check "no music for tests" refused '^ngram: data/test.safetensors: .*; make some with '
mv test.safetensors data
mkdir ngram.mid
run "$ngram"
check "a folder where the song should be" test $? -eq 1 -a "$(grep -c '^ngram: ngram.mid' stderr)" -eq 1
rmdir ngram.mid
check "it runs" run "$ngram"
check "it prints what the page says" grep -F -q "    $(cat stdout)" "$root/dev/doc/00-models.md"
check "a song" run "$root/data_prep/prepare_music" --tokens ngram.mid
check "of some 340 notes" test "$(wc -l <stdout)" -gt 900
cp ngram.mid first.mid && run "$ngram"
check "the same again" cmp ngram.mid first.mid
report ngram
