#!/bin/sh
# The pages of dev/doc that are read in order, NN-name.md: their parts, links and drawings are there, each leads to the
# next, the functions and files that they name exist, and what they quote of a program is what it prints.
. "$(dirname "$0")/check.sh"
needs doc "$root/data_prep/compose_music" "$root/data_prep/prepare_music" "$root/dev/plain/plain_gpt"
cd "$root" || exit 1
errors=$scratch/errors

# none DESCRIPTION: the check wrote no errors; else they are listed
none() {
    check "$1" test ! -s "$errors"
    sed 's/^/    /' "$errors"
}

# prose PAGE: its text as one line, without blocks of code. blocks PAGE: those that are indented.
prose() {
    awk '/^```/ { code = !code; next } !code && !/^    / { printf "%s ", $0 }' "$1"
}
blocks() { awk '/^```/ { code = !code; next } !code && /^    / { print substr($0, 5) }' "$1"; }

# A page's headings come in this order, under a title with its number; others may stand between them.
parts() {
    number=$(basename "$1" | sed 's/^0\{0,1\}\([0-9]*\)-.*/\1/')
    head -n 1 "$1" | grep -q "^# $number\. [A-Z]" || echo "the first line must be '# $number. Title'"
    for part in Formula Backward Code 'Checked by' Exercise; do
        found=$(grep -n "^## $part\$" "$1" | head -n 1 | sed 's/:.*//')
        test "${found:-0}" -gt "${last:=0}" || echo "## $part is not there, or not in its place"
        last=${found:-$last}
    done
}

# The last line of a page leads to the next one, by its title. That of the last page is free.
leads_on() {
    test -z "$2" && return
    next="Next: [$(sed -n '1s/^# //p' "$2")]($(basename "$2"))"
    test "$(tail -n 1 "$1")" = "$next" || echo "the last line must be '$next'"
}

# links FILE: what it links to and is no address on the web, from its own folder
links() {
    grep -o '](\([^)]*\))' "$1" | sed 's/^](//; s/)$//; s/#.*//' | grep -v -e '^[a-z]*://' -e '^$' |
        while read -r link; do
            test -e "$(dirname "$1")/$link" || echo "there is no $link"
        done
}

# What a page names in backticks: a function is called or defined in some source; a file lies in the tree, or is a
# program with a source, or is made by a program (in build, data or out); a subject of tests has a test.
find . \( -path ./build -o -path ./dev/doc -o -path ./data -o -path ./out \) -prune -o -type f \( -name '*.[ch]' -o \
    -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.sh' -o -name '*.py' \) -print >"$scratch/sources"
xargs cat <"$scratch/sources" | grep -o '[A-Za-z_][A-Za-z0-9_]*[(<]' | tr -d '(<' | sort -u >"$scratch/functions"
names() {
    # shellcheck disable=SC2016 # backticks are meant
    prose "$1" | grep -o '`[^`]*`' | tr -d '`' >"$scratch/spans"
    grep '^[A-Za-z_][A-Za-z0-9_]*()$' "$scratch/spans" | tr -d '()' | sort -u >"$scratch/named"
    comm -23 "$scratch/named" "$scratch/functions" | sed 's/.*/there is no function &/'
    grep -E -x '[a-z.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)+/?|[A-Za-z0-9_-]+\.(c|h|cu|cuh|sh)' "$scratch/spans" |
        sort -u | while read -r path; do
        test -e "$path" || test -e "$path.c" || test -e "$path.cu" && continue
        case $path in
        build/* | data/* | out/*) ;;
        */*) echo "there is no file $path" ;;
        *) grep -q "/$path\$" "$scratch/sources" || echo "there is no file $path" ;;
        esac
    done
    { cat "$scratch/spans" && blocks "$1"; } | grep -o 'make check T=[a-z_0-9]*' | sed 's/.*=//' | sort -u |
        while read -r subject; do
            set -- test/test_"$subject"[._]*
            test -e "$1" || echo "make check T=$subject: there is no such test"
        done
}

# quotes PAGE: each command of its blocks, `$ command`, is run from here and prints the lines that follow it
quotes() {
    rm -rf "$scratch/quotes" && mkdir "$scratch/quotes"
    awk -v folder="$scratch/quotes" '/^    \$ / {
            n++
            file = folder "/" n
            print substr($0, 7) >(file ".command")
            printf "" >(file ".expected")
            inside = 1
            next
        }
        !/^    / { inside = 0 }
        inside { print substr($0, 5) >(file ".expected") }' "$1"
    n=1
    while test -f "$scratch/quotes/$n.command"; do
        sh "$scratch/quotes/$n.command" >"$scratch/quotes/printed" 2>&1
        if ! cmp -s "$scratch/quotes/printed" "$scratch/quotes/$n.expected"; then
            printf "\$ %s\n" "$(cat "$scratch/quotes/$n.command")"
            diff "$scratch/quotes/$n.expected" "$scratch/quotes/printed" | grep '^[<>]'
        fi
        n=$((n + 1))
    done
}

# drawings PAGE: it has one at least, and each of them can be read on a dark page, too
drawings() {
    grep -q '^!\[..*](figures/.*\.svg)' "$1" || echo "there is no drawing"
    for svg in $(grep -o '(figures/[^)]*\.svg)' "$1" | tr -d '()'); do
        svg=dev/doc/$svg
        test -e "$svg" || continue # which is for links()
        head -n 1 "$svg" | grep -q '^<svg [^>]*viewBox=' || echo "$svg has no viewBox in its first line"
        grep -q 'prefers-color-scheme: dark' "$svg" || echo "$svg has no colours for a dark page"
        test "$(wc -l <"$svg")" -le 200 || echo "$svg has more than 200 lines"
        well_formed "$svg"
    done
}

# well_formed FILE: each element of an XML file ends where it must, attributes are quoted, no & or < stands alone
well_formed() {
    tr '\n' ' ' <"$1" | sed 's/<!--[^-]*-->//g; s/</\n</g' | awk -v file="$1" '
        function wrong(what) { print file ": " what " in " substr($0, 1, 60); bad = 1 }
        $0 == "" || bad { next }
        !match($0, /^<\/?[A-Za-z]+( +[a-zA-Z:-]+="[^"<]*")* *\/?>/) { wrong("no element"); next }
        {
            tag = substr($0, 1, RLENGTH)
            rest = $0
            gsub(/&(amp|lt|gt|quot|apos|#[0-9]+|#x[0-9A-Fa-f]+);/, "", rest)
            if (rest ~ /&/) wrong("a bare &")
            name = tag
            gsub(/^<\/?|[ \/>].*/, "", name)
            if (tag ~ /^<\//) {
                if (depth < 1 || open[depth--] != name) wrong("an end without its beginning")
            } else if (tag !~ /\/>$/) open[++depth] = name
            elements++
        }
        END { if (!bad && (depth || !elements)) print file ": " (depth ? open[depth] " does not end" : "no element") }'
}

pages=$(echo dev/doc/[0-9]*.md)
check "there are pages" test -f "${pages%% *}"
check "the README leads to the first page" grep -q "](${pages%% *})" README.md
# shellcheck disable=SC2086 # no name here has a space
set -- $pages
while test $# -gt 0; do
    page=$(basename "$1" .md)
    last=
    parts "$1" >"$errors"
    none "$page: its parts"
    leads_on "$1" "$2" >"$errors"
    none "$page leads to the next"
    links "$1" >"$errors"
    none "$page: its links"
    names "$1" >"$errors"
    none "$page: what it names"
    drawings "$1" >"$errors"
    none "$page: its drawings"
    quotes "$1" >"$errors"
    none "$page: what it quotes"
    shift
done
for svg in dev/doc/figures/[0-9]*.svg; do
    cat dev/doc/[0-9]*.md | grep -q "(figures/$(basename "$svg"))" || echo "no page shows $svg"
done >"$errors"
none "drawings"
report doc
