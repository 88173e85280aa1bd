#!/bin/sh
# The page of dev/tools/show_window: its losses are those of the trainers' --eval of the same window, wrong arguments
# and files end in a sentence, and the page appears whole or not at all. In Chromium without a window, hands choose
# tokens, heads and units; without Chromium (CHROMIUM=program names another) that is not tried.
. "$(dirname "$0")/check.sh"
# shellcheck source=browser.sh
. "$root/test/browser.sh"
show=$root/dev/tools/show_window
needs show "$show" "$root/data_prep/compose_music" "$root/data_prep/prepare_music" "$root/build/train_gpt_music_cpu" \
    "$root/build/train_lstm_music_cpu"
"$root/data_prep/compose_music" --out music --pieces 12 >stdout || exit 1
set -- music/test/*.mid
cp "$1" piece.mid
mkdir one
cp piece.mid one
"$root/data_prep/prepare_music" music/train one >stdout || exit 1 # windows of the test set are this piece's
"$root/data_prep/prepare_music" --tokens piece.mid >tokens || exit 1

train() { # MODEL FLAG...
    model=$1
    shift
    "$root/build/train_${model}_music_cpu" --out "$model" --threads 1 --eval-stride 1000000 "$@" >stdout 2>stderr
}
gpt_sizes="--layers 2 --width 24 --heads 3 --hidden 32 --rel 50" lstm_sizes="--embed 8 --width 20 --layers 2"
# shellcheck disable=SC2086
check "a Transformer" train gpt $gpt_sizes --batch 1 --lr 1e-2 --steps 40
# shellcheck disable=SC2086
check "an LSTM" train lstm $lstm_sizes --batch 1 --lr 1e-2 --steps 40
model=

run() { # STATUS ARGUMENTS...
    wanted=$1
    shift
    "$show" "$@" >stdout 2>stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test "$status" -eq "$wanted"
}
refuses() { # STATUS WORDS ARGUMENTS...: with one sentence that has these words, and no page
    wanted=$1 words=$2
    shift 2
    run "$wanted" "$@"
    check "stderr should be one sentence with: $words" grep -q -e "^show_window: $words" stderr
    check "it is one line" test "$(wc -l <stderr)" -eq 1 -a ! -s stdout -a ! -e show.html
}

# losses PAGE: those of the tokens, model after model. mean: of the first column.
losses() { sed -n '/"rows":\[$/,/"inside"/s/^\[\([^],]*\),.*/\1/p' "$1"; }
mean() { awk '{ sum += $1 } END { printf "%.9f\n", sum / NR }'; }
eval_loss() { # MODEL STRIDE N: the trainer's mean over the N windows 0, STRIDE, ... of the piece
    "$root/build/train_${1}_music_cpu" --data data --init "$1/model.safetensors" --eval --eval-stride "$2" \
        --out unused --threads 1 | sed -n 's/^eval loss=\([^ ]*\) windows='"$3"' .*/\1/p'
}
near() { # A B
    echo "$1, the trainer's is $2" >stderr
    awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && b > 0 && (a - b) ^ 2 < 1e-8) }'
}

# A bar in the second half of the piece's windows: with its first token as stride there are two windows, 0 and its own.
windows=$(($(wc -l <tokens) - 256))
from=$(awk -v n=$windows '$1 == 0 { bar++; if (NR >= n / 2 && NR < n) { print bar + 1, NR; exit } }' tokens)
later=${from#* } from=${from% *}
check "the piece is long enough: bar $from, token $later" test "${later:-0}" -gt 10
for model in gpt lstm; do
    run 0 $model/model.safetensors piece.mid
    check "256 losses" test "$(losses show.html | wc -l)" -eq 256
    mv show.html $model.html
    run 0 $model/model.safetensors piece.mid --from "$from" -o later.html
    first=$(losses $model.html | mean)
    eval_loss $model 1000000 1 >$model.loss
    check "the loss of the first window" near "$first" "$(cat "$model.loss")"
    both=$( (losses $model.html && losses later.html) | mean)
    check "the loss of bar $from and of the first window" near "$both" "$(eval_loss $model "$later" 2)"
done
model=
run 0 gpt/model.safetensors lstm/model.safetensors piece.mid -o both.html
check "both models beside each other" sh -c '(sed -n "/\"rows\"/,/inside/p" gpt.html lstm.html | grep "^\[") >a
    sed -n "/\"rows\"/,/inside/p" both.html | grep "^\[" | diff a - >stderr'
run 0 gpt/model.safetensors lstm/model.safetensors piece.mid
check "the same bytes again" cmp show.html both.html
rm show.html
bars=$(grep -c -x 0 tokens)
run 0 gpt/model.safetensors piece.mid --from "$bars" -o end.html
check "the last bar is shown as far as it goes" test "$(losses end.html | wc -l)" -lt 256

refuses 2 "give a model, or two, and then a .mid file"
refuses 2 "give a model, or two" piece.mid
refuses 2 "d.mid: it is one FILE too many" a.safetensors b.safetensors c.mid d.mid
refuses 2 "--from 0: it must be a whole number from 1" gpt/model.safetensors piece.mid --from 0
refuses 2 "--form: there is no such flag" gpt/model.safetensors piece.mid --form 2
refuses 1 "--from 999: the music of piece.mid ends in bar [0-9]*$" gpt/model.safetensors piece.mid --from 999
refuses 1 "nowhere.mid: .*No such file" gpt/model.safetensors nowhere.mid
refuses 1 "gpt/model.safetensors: .*not a MIDI file" piece.mid gpt/model.safetensors
refuses 1 "piece.mid: not a safetensors file" piece.mid piece.mid
refuses 1 "data/test.safetensors: has the tensors of neither" data/test.safetensors piece.mid
refuses 1 "nowhere/a.html" gpt/model.safetensors piece.mid -o nowhere/a.html
run 0 --help
check "--help names --from" grep -q -e '^  --from N' stdout
run 0 --version
echo old >old.html
(
    ulimit -f 1
    "$show" gpt/model.safetensors piece.mid -o old.html 2>stderr
)
check "a page that does not fit is an error" grep -q '^show_window: old.html' stderr
check "and leaves the old one, and no other file" test "$(cat old.html*)" = old
find_chromium show

cat >driver.js <<'END'
const cards = () => [...document.querySelectorAll("#models section")];
const said = () => $("token").querySelector("p").textContent;
const byHand = model => model.rows.reduce((sum, row) => sum + row[0], 0) / model.rows.length;

async function looks(least) {
    await frame();
    const page = document.documentElement;
    expect(page.scrollWidth <= innerWidth, "no wider than the window", page.scrollWidth, innerWidth);
    expect(height > 200 && width > 300, "the roll has room", width, height);
    for (const element of document.querySelectorAll("button, select, #models input")) {
        const box = element.getBoundingClientRect();
        const named = element.ariaLabel || element.labels?.length || element.textContent.trim();
        if (!box.width || element.closest("dialog")) continue;
        expect(named, "has a name", element.outerHTML.slice(0, 80));
        expect(box.left >= 0 && box.right <= innerWidth, "is in the window", element.outerHTML.slice(0, 80), box.right);
        if (element.matches("button, select"))
            expect(box.height >= least, "is large enough", element.outerHTML.slice(0, 80), box.height);
    }
}

function dot(x, y) { // the roll's colour there
    const dots = devicePixelRatio, at = 4 * Math.round(x * dots);
    return `rgb(${pixels(Math.round(y * dots), 1).slice(at, at + 3).join()})`;
}

async function tokens() {
    expect(places.length === 257 && places.every(place => place), "each token has a place", places.length);
    expect(song.notes.every(note => places.filter(place => place.key === note.key &&
        near(place.time, note.start, 1e-6)).length >= 3), "each note has three", song.notes.length);
    expect(chosen === 1 && said().startsWith("Token 1 of 256: "), "the first is chosen", said());
    key("ArrowRight");
    key("ArrowRight");
    key("ArrowLeft");
    await frame();
    expect(chosen === 2 && near(position(), places[2].time, 1e-6), "arrows step", chosen, position());
    const far = places.findIndex((place, k) => k > 150 && place.key !== null && place.part === 1);
    chooseToken(far);
    await frame();
    const box = boxOf(far);
    expect(box.x >= keyboard && box.x + box.w <= width, "a far token is seen", box.x, width);
    key("ArrowLeft");
    await frame();
    for (let i = 0; i < 4; i++) click("zoom-in"); // so that a token is wide enough for arcs beside it
    await frame();
    const other = places.findIndex((place, k) => k > 1 && place.key !== null && place.part === 0 && k !== chosen &&
        boxOf(k).x > keyboard + 10 && boxOf(k).x + boxOf(k).w < width);
    const {x, y, w, h} = boxOf(other);
    tap(x + w / 2, y + h / 2);
    await frame();
    expect(chosen === other && near(position(), places[other].time, 1e-6), "a tap chooses", chosen, other, said());
    const colours = new Set();
    for (let i = 1; i < w - 1; i++) colours.add(dot(x + i, y + h / 2));
    expect(colours.has(lossColour(shown.rows[other - 1][0])), "it has the colour of its loss", [...colours].join(" "));
    seek(song.beats[3]);
    await frame();
    await frame();
    const by = places.findLastIndex(place => place.time <= song.beats[3] + 1e-6);
    expect(chosen === by, "the cursor chooses the last token up to it", chosen, by);
    key("End");
    await frame();
    key("ArrowRight");
    key("ArrowRight");
    expect(chosen === last, "there is an end", chosen);
    key("Home");
    key(" ");
    expect(await until(5, () => playing && chosen > 3 && chosen < last), "tokens follow what plays", chosen);
    key(" ");
}

async function numbers() {
    for (const model of models) {
        const card = cards()[models.indexOf(model)], mean = byHand(model).toFixed(4);
        expect(card.textContent.includes(mean), "the mean loss is said", mean);
        console.log(`LOSS ${model.kind} ${byHand(model)}`);
        for (const k of [1, 2, 77, 256]) {
            chooseToken(k);
            const [loss, ...pairs] = model.rows[k - 1], items = [...card.querySelectorAll("li")];
            const chances = [0, 2, 4, 6, 8].map(i => pairs[i + 1]);
            expect(card.textContent.includes(loss.toFixed(3)), "a token's loss", loss);
            expect(items.length === 5 && items.every((item, i) => item.textContent.startsWith(named(pairs[2 * i]))),
                "five likeliest", items.map(item => item.textContent).join("; "));
            expect(chances.every((p, i) => p > 0 && p <= 1 && (!i || p <= chances[i - 1])), "in order", chances);
            const at = pairs.findIndex((token, i) => i % 2 === 0 && token === seen.tokens[k]);
            expect(at < 0 ? loss > -Math.log(pairs[9]) - 1e-3 : near(Math.exp(-loss), pairs[at + 1], 1e-3),
                "its loss is -log of its probability", loss, at);
            expect(card.querySelectorAll(".came").length === (at < 0 ? 0 : 1), "what came is marked", at);
        }
    }
}

async function attention() {
    const model = models.find(model => model.kind === "gpt"), card = cards()[models.indexOf(model)];
    expect(model.inside.length === Math.ceil(model.layers * model.units * 256 * 257 / 4), "all weights are there");
    for (const k of [1, 2, 3, 50, 255, 256]) {
        for (let layer = 0; layer < model.layers; layer++) for (let head = 0; head < model.units; head++) {
            let sum = 0, slack = 0;
            for (let j = 0; j < k; j++) {
                const weight = headWeight(model, k, layer, head, j);
                sum += weight;
                slack += Math.sqrt(weight) / 14 + 1 / 28 / 28;
            }
            expect(near(sum, 1, slack), "a head's weights have the sum 1, to rounding", k, layer, head, sum, slack);
        }
    }
    chooseToken(100);
    const [layer, unit] = card.querySelectorAll("select");
    expect(layer.options.length === model.layers && unit.options.length === model.units + 1, "choices");
    Object.assign(layer, {value: 0}).dispatchEvent(new Event("change"));
    Object.assign(unit, {value: 1}).dispatchEvent(new Event("change"));
    expect(model.layer === 0 && model.unit === 1, "a head is chosen", model.layer, model.unit);
    const weights = weightsOf(model, 100), most = weights.indexOf(Math.max(...weights));
    expect(card.textContent.includes(`token ${most}, ${named(seen.tokens[most])}`), "its largest weight is said", most);
    const box = model.map.getBoundingClientRect();
    const clientX = box.left + LEFT + (box.width - LEFT) * 2.5 / model.units, clientY = box.bottom - 4;
    model.map.dispatchEvent(new MouseEvent("click", {...real, clientX, clientY}));
    expect(model.layer === model.layers - 1 && model.unit === 2, "by a click", model.layer, model.unit);
    if (shown !== model) return;
    key("ArrowUp");
    expect(model.unit === 1 && unit.value === "1", "by a key", model.unit);
    redraw();
    await frame();
    const counted = () => {
        const data = pixels(0, roll.height), wanted = rgb(ink.arc);
        let n = 0;
        for (let i = 0; i < data.length; i += 4) n += wanted.every((part, c) => Math.abs(part - data[i + c]) < 60);
        return n;
    };
    const arcs = counted();
    shown = {...model, kind: "none"};
    redraw();
    await frame();
    expect(arcs > counted() + 30, "arcs are drawn", arcs, counted());
    shown = model;
}

async function gates() {
    const model = models.find(model => model.kind === "lstm"), card = cards()[models.indexOf(model)];
    const size = model.layers * 4 * model.units * 256 / 2;
    expect(model.inside.length === size, "all gates are there", model.inside.length);
    const all = [0, 1, 2, 3].map(gate => Array.from({length: model.units * 256}, (_, i) =>
        gateOf(model, 1 + Math.floor(i / model.units), 1, gate, i % model.units)));
    expect(all.every((list, gate) => list.every(x => x >= (gate === 2 ? -1 : 0) && x <= 1)), "gates are in range");
    expect(all.every(list => new Set(list).size > 4), "and differ", all.map(list => new Set(list).size));
    expect(all[2].some(x => x < -0.1) && all[2].some(x => x > 0.1), "g has both signs");
    chooseToken(60);
    const [, unit] = card.querySelectorAll("select");
    Object.assign(unit, {value: 7}).dispatchEvent(new Event("change"));
    const text = gateOf(model, 60, model.layer, 0, 7).toFixed(2);
    expect(card.textContent.includes(`Unit 8 here: i ${text}, f `), "a unit's gates are said", text);
    card.querySelector("input").click();
    await frame();
    expect(shown === model, "the roll shows it", shown.kind);
    key("ArrowDown");
    expect(model.unit === 8, "the next unit", model.unit);
}

async function desktop() {
    expect(models.length === 2 && cards().length === 2, "two models", models.length);
    const [a, b] = cards().map(card => card.getBoundingClientRect());
    expect(a.top === b.top && a.right < b.left, "side by side", a.right, b.left);
    await looks(36);
    await tokens();
    await numbers();
    await attention();
    await gates();
}

async function phone() {
    finger = true;
    expect(innerWidth === 390 && models.length === 1 && parseInt(ink.page.slice(1, 3), 16) < 60, "a dark phone");
    await looks(44);
    await tokens();
    await numbers();
}
END
for page in both gpt lstm; do drive $page.html driver.js >drive_$page.html; done
for page in gpt lstm; do
    echo "<!doctype html><iframe src='drive_$page.html#phone' width=390 height=844 style=border:0></iframe>" \
        >phone_$page.html
done
browse desktop 1280 900 drive_both.html#desktop
browse gpt 800 900 phone_gpt.html --blink-settings=preferredColorScheme=0
browse lstm 800 900 phone_lstm.html --blink-settings=preferredColorScheme=0
for model in gpt lstm; do
    for page in desktop "$model"; do
        loss=$(sed -n "s/^LOSS $model //p" "$page.log")
        check "the loss on the page $page" near "$loss" "$(cat "$model.loss")"
    done
done
model=
report show
