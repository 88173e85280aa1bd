#!/bin/sh
# The page of piano rolls in a real browser, Chromium without a window: a click plays, notes sound when they should, the
# cursor moves, keys, mouse and fingers do what they should, at the sizes of a desktop and of a phone. A script behind
# the page sends it the events of hands and writes PASS and FAIL to the console, where nothing else may appear.
# build/test_player writes the pages; without Chromium (CHROMIUM=program names another) they are not tried.
. "$(dirname "$0")/check.sh"
# shellcheck source=browser.sh
. "$root/test/browser.sh"
needs player_page "$root/build/test_player" "$root/data_prep/compose_music"
"$root/data_prep/compose_music" --out music --pieces 8 --seed 3 >/dev/null || exit 1
check "pages are written" "$root/build/test_player" . music/train/*.mid >stdout 2>stderr
find_chromium player_page

cat >driver.js <<'END'
const strikes = []; // {note, when, until, asked}: what the page hands to the audio clock, and when
const trueStrike = strike;
window.strike = (piano, note, when, until) => {
    strikes.push({note, when, until, asked: piano.audio.currentTime});
    trueStrike(piano, note, when, until);
};
let analyser = null;
function loud() { // of the last 46 ms
    if (!analyser) {
        analyser = new AnalyserNode(piano.audio, {fftSize: 2048});
        piano.volume.connect(analyser);
    }
    const samples = new Float32Array(2048);
    analyser.getFloatTimeDomainData(samples);
    return Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / 2048);
}
function cursorAt() { // the x in pixels where the cursor is drawn, or -1
    const dots = devicePixelRatio, line = pixels(Math.round((height - 3) * dots), 1);
    const wanted = [1, 3, 5].map(i => parseInt(ink.cursor.slice(i, i + 2), 16));
    let best = 60, found = -1;
    for (let x = Math.ceil(keyboard * dots); x < roll.width; x++) {
        const off = wanted.reduce((sum, part, i) => sum + Math.abs(part - line[4 * x + i]), 0);
        if (off < best) best = off, found = x / dots;
    }
    return found;
}
function colours() { // of the roll: how many dots have each
    const data = pixels(0, roll.height), seen = new Map();
    for (let i = 0; i < data.length; i += 4) {
        const colour = `rgb(${data.slice(i, i + 3).join()})`;
        seen.set(colour, (seen.get(colour) || 0) + 1);
    }
    return seen;
}

function inTime(list, speed) { // each note where its start says, relative to the first, until the pedal is lifted
    const [first] = list;
    const until = note => (song.pedals.find(([down, up]) => down < note.end && note.end <= up) || [0, note.end])[1];
    return list.every(s => near(s.when - first.when, (s.note.start - first.note.start) / speed, 1e-3) &&
        near(s.until - s.when, (until(s.note) - s.note.start) / speed, 1e-3));
}

async function looks(phone) {
    await frame();
    const page = document.documentElement;
    expect(page.scrollWidth <= innerWidth && page.scrollHeight <= innerHeight,
        "fits the window", page.scrollWidth, page.scrollHeight, innerWidth, innerHeight);
    expect(height > 200 && width > 300, "the roll has room", width, height);
    for (const button of document.querySelectorAll("button, a, input")) {
        const box = button.getBoundingClientRect();
        const named = button.ariaLabel || button.labels?.length || button.textContent.trim();
        if (!box.width || button.closest("dialog")) continue;
        expect(named, "has a name", button.outerHTML.slice(0, 80));
        if (button.matches("button, a")) {
            const least = Math.min(box.height, box.width);
            expect(least >= (phone ? 44 : 36), "is large enough", button.id, least);
        }
        expect(box.left >= 0 && (box.right <= innerWidth || button.closest("fieldset")) && box.bottom <= innerHeight,
            "is in the window", button.id, box.right, box.bottom);
    }
    const seen = colours();
    expect(song.notes.some(note => note.prime && seen.get(ink.shades[1][note.velocity]) > 20),
        "the prime is grey", seen.size);
    expect(phone || song.notes.some(note => !note.prime && seen.get(ink.shades[0][note.velocity]) > 20),
        "what is new is not", seen.size);
}

async function plays() {
    expect(!playing && !piano && $("play").ariaLabel === "Play", "silent at first", playing);
    click("play");
    expect(await until(5, () => position() > 0.8), "a click plays", position());
    expect($("play").ariaLabel === "Pause", "the button says so", $("play").ariaLabel);
    const clock = piano.audio.currentTime, before = position();
    let most = 0;
    await until(1.5, () => { most = Math.max(most, loud()); return false; });
    const passed = piano.audio.currentTime - clock;
    expect(passed > 0.7 && near(position() - before, passed, 0.1),
        "the cursor is in time", position() - before, passed);
    expect(most > 0.01 && most < 1, "notes sound", most);
    expect(await until(3, () => near(cursorAt(), xOf(position()), 8)),
        "the cursor is drawn there", cursorAt(), xOf(position()));
    expect(strikes.length > 5 && inTime(strikes, 1), "notes are struck in time", strikes.length);
    expect(strikes.every(s => s.when >= s.asked), "none is late", strikes.length);
    expect(strikes.some(s => s.when > s.asked + 1), "they are planned ahead", strikes.length);
    for (const end = performance.now() + 1700; performance.now() < end;); // a page that is busy
    await sleep(0.4);
    expect(strikes.every(s => s.when >= s.asked) && inTime(strikes, 1), "nor when the page was busy", strikes.length);
    expect(new Set(strikes.map(s => s.note)).size === strikes.length, "each once", strikes.length);
    const last = strikes.at(-1).note.start;
    expect(song.notes.every(note => note.start >= last || strikes.some(s => s.note === note)),
        "none is missing", strikes.length);
}

async function silent(how) {
    const at = position(), struck = strikes.length;
    expect(!playing, how + " pauses", playing);
    expect(await until(4, () => loud() < 1e-3), "silence follows", loud());
    expect(position() === at && strikes.length === struck, "the cursor stays", at, position());
}

async function desktop() {
    expect([$("title").textContent, document.title].every(title => title === song.title), "the title", document.title);
    expect($("settings").textContent === song.settings, "the settings", $("title").textContent);
    await looks(false);
    await plays();
    const played = song.left;
    key(" ");
    await silent("the space bar");

    tap(xOf(song.bars[3]), height / 2);
    expect(near(position(), song.bars[3], 0.02), "a click seeks", position(), song.bars[3]);
    strikes.length = 0;
    key(" ");
    expect(await until(5, () => position() > song.bars[3] + 0.5 && loud() > 0.005),
        "the space bar plays from there", position(), loud());
    expect(strikes[0].note.start >= song.bars[3] - 0.03 && inTime(strikes, 1),
        "with the notes from there", strikes[0].note.start);
    strikes.length = 0;
    tap(strip.clientWidth / 2, 10, $("overview"));
    expect(near(position(), song.seconds / 2, 0.2), "a click in the overview seeks", position());
    expect(await until(3, () => position() > song.seconds / 2 + 0.3), "and goes on", position());
    expect(strikes.length && strikes[0].note.start >= song.seconds / 2 - 0.5, "there", strikes.length);
    expect(xOf(position()) > keyboard && xOf(position()) < width && song.left > played,
        "the roll follows", xOf(position()));
    strikes.length = 0;
    slide("tempo", 200);
    const fast = position(), clock = piano.audio.currentTime;
    await sleep(1);
    expect(near((position() - fast) / (piano.audio.currentTime - clock), 2, 0.25),
        "twice the tempo", position() - fast);
    expect(strikes.length > 3 && inTime(strikes, 2), "for the notes too", strikes.length);
    expect($("tempo-value").textContent === Math.round(song.bpm * 2) + " bpm",
        "and in words", $("tempo-value").textContent);
    key(" ");

    key("Home");
    await frame();
    expect(position() === 0 && song.left === 0, "Home", position(), song.left);
    const from = song.bars[1];
    const cut = (note, time) => note.start > from && note.start < time - 0.05 && note.end > time + 0.05;
    const to = song.beats.find(beat => beat > from + 1 && song.notes.some(note => cut(note, beat))); // in a note
    drag(xOf(from) + 3, 10, xOf(to) - 3, 12);
    expect(song.range && near(song.range.from, from, 1e-6) && near(song.range.to, to, 1e-6),
        "a drag in the bar numbers chooses a range", JSON.stringify(song.range), from, to);
    expect(looping && $("loop").ariaPressed === "true", "and loops", $("loop").ariaPressed);
    strikes.length = 0;
    click("start");
    key(" ");
    const first = song.notes.find(note => note.start >= from - 1e-6);
    const times = () => strikes.filter(s => s.note === first).map(s => s.when);
    let low = 1e9, high = 0;
    await until(12, () => {
        low = Math.min(low, position());
        high = Math.max(high, position());
        return piano.audio.currentTime > times()[2];
    });
    expect(times().length >= 3, "the loop comes round", times().length);
    expect(near(times()[1] - times()[0], (to - from) / 2, 1e-3), "in time", times()[1] - times()[0]);
    expect(low >= song.range.from - 1e-6 && high <= song.range.to + 1e-6 && high - low > 0.5,
        "and stays inside", low, high);
    expect(strikes.every(s => s.note.start >= song.range.from - 1e-6 && s.note.start < song.range.to),
        "with its notes only", strikes.length);
    expect(strikes.every(s => s.until <= s.when + (to - s.note.start) / 2 + 1e-3), "which end with it", strikes.length);
    click("loop");
    expect(!looping && await until(6, () => position() > to + 0.3), "without the loop it goes on", position());
    key(" ");
    slide("tempo", 100);
    key("Escape");
    expect(!song.range, "Esc forgets the range", song.range);

    let old = scale;
    click("zoom-in");
    expect(near(scale, old * 1.4, 1e-6), "zoom in", scale / old);
    key("-");
    expect(near(scale, old, 1e-6), "zoom out by a key", scale / old);
    const under = timeAt(400);
    const clientX = roll.getBoundingClientRect().left + 400;
    roll.dispatchEvent(new WheelEvent("wheel", {...real, deltaY: -200, clientX, clientY: 300}));
    expect(scale > old * 1.2 && near(timeAt(400), under, 0.01),
        "the wheel zooms about the mouse", scale / old, timeAt(400) - under);
    for (let i = 0; i < 30; i++) click("zoom-out");
    await frame();
    expect(near((width - keyboard) / scale, song.seconds, song.seconds * 0.05),
        "far out, all can be seen", (width - keyboard) / scale, song.seconds);
    for (let i = 0; i < 60; i++) click("zoom-in");
    await frame();
    expect(scale <= 901, "there is an end to zooming in", scale);
    key("End");
    await frame();
    expect(position() === song.seconds && xOf(position()) <= width, "End", position());
    key("ArrowLeft", {shiftKey: true});
    expect(song.bars.some(bar => near(bar, position(), 1e-6)), "a bar back", position());
    key("ArrowRight");
    expect(song.beats.some(beat => near(beat, position(), 1e-6)) || position() === song.seconds,
        "a beat on", position());

    seek(song.seconds - 0.7);
    key(" ");
    expect(await until(6, () => !playing), "it stops at the end", playing);
    expect(near(position(), song.seconds, 1e-6), "exactly", position(), song.seconds);
    strikes.length = 0;
    key(" ");
    expect(await until(3, () => playing && position() > 0.1 && position() < 2), "and begins anew", position());

    const [one, two] = songs, cards = $("songs-list").querySelectorAll("label");
    expect(cards.length === songs.length && songs.length > 2 && !$("songs-list").hidden,
        "a card for each song", cards.length);
    strikes.length = 0;
    cards[1].click();
    expect(song === two && $("title").textContent === two.title && one.title !== two.title,
        "another song", $("title").textContent);
    expect(await until(3, () => playing && position() > 0.2 && loud() > 0.003), "plays on with it", position());
    expect(strikes.length && strikes.every(s => two.notes.includes(s.note)), "its notes", strikes.length);
    key("3");
    expect(song === songs[2] && cards[2].querySelector("input").checked, "by its number", $("title").textContent);
    key("ArrowUp");
    expect(song === two, "the one before", $("title").textContent);
    slide("volume", 0);
    expect(await until(2, () => loud() < 1e-4) && playing, "no volume, no sound", loud());
    slide("volume", 100);
    expect(await until(3, () => loud() > 0.003), "some volume, some sound", loud());
    click("play");
    await silent("the button");
    expect(document.activeElement !== $("play"), "and leaves the space bar free", document.activeElement.id);
    key("?");
    expect($("help").open, "help", $("help").open);
    $("help").querySelector("form button").click();
    expect(!$("help").open, "closed", $("help").open);

    for (const song of songs) {
        choose(songs.indexOf(song));
        const [kind, data] = $("save").href.split(","), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        expect(kind === "data:audio/midi;base64" && $("save").download === song.title + ".mid",
            "the download", kind, $("save").download);
        console.log(`MIDI ${song.title} ${[...bytes].map(byte => byte.toString(16).padStart(2, "0")).join("")}`);
    }
    await sounds();
}

// The piano alone, in a context without a clock.
async function sounds() {
    const render = async (seconds, notes) => {
        const audio = new OfflineAudioContext(2, RATE * seconds, RATE), piano = makePiano(audio);
        for (const [key, velocity, start, end] of notes) trueStrike(piano, {key, velocity}, start, end);
        const buffer = await audio.startRendering();
        return [0, 1].map(side => buffer.getChannelData(side));
    };
    const strength = (samples, from, frequency) => { // Goertzel's algorithm, over 0.2 s
        let a = 0, b = 0;
        const turn = 2 * Math.cos(2 * Math.PI * frequency / RATE), at = Math.round(from * RATE);
        for (let i = 0; i < 0.2 * RATE; i++) {
            const bell = 0.5 - 0.5 * Math.cos(2 * Math.PI * i / (0.2 * RATE));
            [a, b] = [samples[at + i] * bell + turn * a - b, a];
        }
        return Math.sqrt(a * a + b * b - turn * a * b) / (0.1 * RATE);
    };
    const power = (samples, from, to) =>
        Math.sqrt(samples.slice(from * RATE, to * RATE).reduce((sum, x) => sum + x * x, 0) / ((to - from) * RATE));
    for (const key of [33, 57, 69, 88, 105]) {
        const [left] = await render(3, [[key, 80, 0.5, 1.5]]), level = power(left, 0.51, 0.8);
        const pitch = 440 * 2 ** ((key - 69) / 12);
        expect(power(left, 0, 0.5) < 1e-6, "silence before the note", key, power(left, 0, 0.5));
        expect(level > 0.02 && level < 0.2, "its level", key, level);
        expect(power(left, 1.2, 1.5) < level, "it decays", key, power(left, 1.2, 1.5));
        expect(power(left, 2.5, 3) < 0.02 * level, "and ends", key, power(left, 2.5, 3));
        expect(strength(left, 0.55, pitch) > 3 * strength(left, 0.55, pitch * 2 ** (2.5 / 12)),
            "its pitch", key, strength(left, 0.55, pitch));
        let click = 0;
        for (let i = 0.5 * RATE; i < 0.5 * RATE + 300; i++) click = Math.max(click, Math.abs(left[i] - left[i - 1]));
        expect(click < 0.08, "no click where it begins", key, click);
    }
    const soft = await render(1, [[60, 30, 0, 1]]), hard = await render(1, [[60, 120, 0, 1]]);
    const bright = samples => strength(samples, 0.1, 262 * 5) / strength(samples, 0.1, 262);
    expect(power(hard[0], 0, 1) > 3 * power(soft[0], 0, 1), "velocity is loudness", power(hard[0], 0, 1));
    expect(bright(hard[0]) > 1.1 * bright(soft[0]), "and brightness", bright(hard[0]), bright(soft[0]));
    const low = await render(1, [[30, 80, 0, 1]]), high = await render(1, [[96, 80, 0, 1]]);
    expect(power(low[0], 0, 1) > power(low[1], 0, 1) && power(high[0], 0, 1) < power(high[1], 0, 1),
        "low keys to the left, high ones to the right", power(low[0], 0, 1));
    const many = Array.from({length: 40}, (_, i) => [30 + 2 * (i % 20), 127, 0.1 * Math.floor(i / 20), 2]);
    const sides = await render(3, many);
    expect(sides.every(side => side.every(x => Math.abs(x) <= 1)),
        "twenty keys with all force do not clip", Math.max(...sides[0].slice(0, RATE)));
}

async function phone() {
    finger = true;
    expect(innerWidth === 360 && matchMedia("(prefers-color-scheme: dark)").matches && stillness.matches,
        "a small dark still phone", innerWidth);
    expect(parseInt(ink.page.slice(1, 3), 16) < 60, "dark colours", ink.page);
    expect(getComputedStyle(roll).touchAction === "none",
        "fingers belong to the roll", getComputedStyle(roll).touchAction);
    expect($("songs-list").hidden, "one song needs no list", $("songs-list").hidden);
    const {scrollHeight, clientHeight} = $("settings");
    expect(scrollHeight <= clientHeight && clientHeight > 60, "all settings are seen", scrollHeight, clientHeight);
    await looks(true);
    await plays();
    click("play");
    await silent("a tap");
    key("Home");
    await frame();
    tap(xOf(song.beats[4]), height / 3);
    expect(near(position(), song.beats[4], 0.02), "a tap seeks", position());
    drag(300, 200, 80, 210);
    expect(song.left > 2 && near(position(), song.beats[4], 0.02),
        "a finger moves the roll, not the cursor", song.left);
    await frame();
    expect(!$("back").hidden, "a way back to the cursor", $("back").hidden);
    click("back");
    await frame();
    expect($("back").hidden && xOf(position()) > keyboard, "goes back", xOf(position()));
    const old = scale, middle = timeAt(200);
    point("down", 180, 200, 1);
    point("down", 220, 200, 2);
    for (let i = 1; i <= 8; i++) point("move", 180 - 5 * i, 200, 1), point("move", 220 + 5 * i, 200, 2);
    point("up", 140, 200, 1);
    point("up", 260, 200, 2);
    expect(near(scale / old, 3, 0.1) && near(timeAt(200), middle, 0.05),
        "two fingers zoom", scale / old, timeAt(200) - middle);
    expect(near(position(), song.beats[4], 0.02), "and do not seek", position());
    for (let i = 0; i < 4; i++) click("zoom-out");
    key("Home");
    await frame();
    drag(xOf(song.bars[0]) + 4, 12, xOf(song.beats[2]), 12);
    expect(looping && song.range && near(song.range.to, song.beats[2], 1e-6),
        "a finger chooses a loop", JSON.stringify(song.range));
    key("Escape");
    slide("tempo", 200);
    click("play");
    const lefts = new Set();
    await until(5, () => { lefts.add(song.left); return false; });
    expect(playing && lefts.size > 1 && lefts.size <= 4, "turns pages where motion is not wanted", lefts.size);
    click("play");
    click("help-button");
    await frame();
    const box = $("help").getBoundingClientRect();
    expect($("help").open && box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight,
        "help fits", box.right, box.bottom);
}

async function odd() {
    const title = "<\/script><script>alert(1)<\/script> <!-- & \" ' \\ \ufffd\ufffd \u{1f3b9} \u0001\r\n\u007f end";
    expect(songs.length === 2 && songs.every(song => song.title === title),
        "the very text", JSON.stringify(songs[0].title));
    expect($("title").textContent === title && $("settings").textContent === title,
        "and seen as text", $("title").textContent.length);
    expect(document.querySelectorAll("script").length === 3,
        "no script came of it", document.querySelectorAll("script").length);
    expect(/^[^\u0000-\u001f"*/:<>?\\|]+\.mid$/.test($("save").download),
        "a good name for the file", $("save").download);
    click("play");
    expect(!playing, "an empty song does not play", playing);
    const empty = $("empty").getBoundingClientRect(), middle = roll.getBoundingClientRect();
    expect($("empty").textContent === "no notes" && empty.width > 50 && near(empty.y, middle.y, 3),
        "says that it has no notes", empty.width);
    expect(roll.ariaLabel.endsWith(": no notes"), "also to those who cannot see it", roll.ariaLabel);
    key("End");
    key("ArrowLeft");
    key("[");
    expect(position() === 0, "and goes nowhere", position());
    choose(1);
    expect($("empty").hidden, "the other one has some", $("empty").hidden);
    click("play");
    expect(await until(5, () => position() > 0.5 && loud() > 0.003), "the other one plays", position());
    key(" ");
}
END

for page in one all odd; do drive $page.html driver.js >drive_$page.html; done
echo '<!doctype html><iframe src="drive_one.html#phone" width="360" height="740" style="border:0"></iframe>' >phone.html

browse desktop 1280 800 drive_all.html#desktop
songs=0
for file in music/train/*.mid; do
    title=$(basename "$file" .mid)
    od -An -v -tx1 "$title.mid" | tr -d ' \n' >hex
    sed -n "s/^MIDI $title //p" desktop.log | tr -d '\n' >downloaded
    check "the download of $title is the file" cmp -s hex downloaded
    songs=$((songs + 1))
done
check "several songs were downloaded: $songs" test "$songs" -gt 2
browse phone 800 800 phone.html --force-prefers-reduced-motion --blink-settings=preferredColorScheme=0
browse odd 1280 800 drive_odd.html#odd
report player_page
