# What tests of pages in a browser share. A script sources it behind check.sh. Chromium shows a page without a window; a
# driver behind the page, JavaScript, sends it the events of hands and writes PASS and FAIL to the console.
# shellcheck shell=sh disable=SC2154 # check.sh assigns $scratch

# find_chromium NAME: where there is none (CHROMIUM=program names another) the test called NAME ends here.
find_chromium() {
    for chromium in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
        test -n "$chromium" && command -v "$chromium" >/dev/null && return
    done
    echo "skipped: the pages in a browser, there is no Chromium (apt-get install chromium)"
    report "$1"
    exit
}

# hands.js: what drivers use. The part of the page's address behind # names the driver's function that is run.
cat >hands.js <<'END'
const sleep = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
const frame = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
const expect = (holds, what, ...seen) => console.log(`${holds ? "PASS" : "FAIL"} ${what}: ${seen.join(", ")}`);
const near = (a, b, slack) => Math.abs(a - b) <= slack;
async function until(seconds, holds) {
    for (const end = performance.now() + 1000 * seconds; performance.now() < end && !holds();) await sleep(0.02);
    return holds();
}

let finger = false;
function point(type, x, y, pointerId = 1, on = roll) { // in pixels from the element's corner
    const {left, top} = on.getBoundingClientRect(), pointerType = finger ? "touch" : "mouse";
    on.dispatchEvent(new PointerEvent("pointer" + type,
        {...real, pointerId, pointerType, isPrimary: pointerId === 1, clientX: left + x, clientY: top + y}));
}
function drag(x0, y0, x1, y1) {
    point("down", x0, y0);
    for (let i = 1; i <= 8; i++) point("move", x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8);
    point("up", x1, y1);
}
const tap = (x, y, on) => { point("down", x, y, 1, on); point("up", x, y, 1, on); };
const real = {bubbles: true, cancelable: true};
const key = (key, more) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, ...real, ...more}));
function click(name) { // at its middle, whatever is seen there
    const box = $(name).getBoundingClientRect();
    const seen = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    seen.dispatchEvent(new MouseEvent("click", {...real, detail: 1}));
}
function slide(name, value) { $(name).value = value; $(name).dispatchEvent(new Event("input", {bubbles: true})); }
const copy = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function pixels(y, rows) { // of the roll, in its own dots
    Object.assign(copy.canvas, {width: roll.width, height: roll.height});
    copy.drawImage(roll, 0, 0);
    return copy.getImageData(0, y, roll.width, rows).data;
}

addEventListener("load", async () => {
    await sleep(0.3);
    try {
        await window[location.hash.slice(1)]();
    } catch (error) {
        expect(false, "the driver ends well", error.stack);
    }
    console.log("END");
});
END

# drive PAGE DRIVER: the page with its driver
drive() {
    cat "$1" && echo '<script>' && cat hands.js "$2" && echo '</script>'
}

# browse NAME WIDTH HEIGHT PAGE FLAG...: shows PAGE and the driver until that says END; its console goes to NAME.log.
browse() {
    name=$1 size=$2,$3 page=$4
    shift 4
    : >"$name.stderr"
    "$chromium" --headless=new --no-sandbox --disable-gpu --user-data-dir="$scratch/profile" --window-size="$size" \
        --autoplay-policy=no-user-gesture-required --enable-logging=stderr --no-first-run "$@" \
        "file://$scratch/$page" >stdout 2>"$name.stderr" &
    process=$!
    seconds=0
    until grep -q 'CONSOLE.*"\(END"\|Uncaught\)' "$name.stderr" || test $seconds -ge 120; do
        kill -0 $process 2>/dev/null || break
        sleep 1
        seconds=$((seconds + 1))
    done
    kill -KILL $process 2>/dev/null
    wait $process 2>/dev/null
    process=
    # [pid:tid:date/time:INFO:CONSOLE:line] "text", source: file (line)
    sed -n 's/^\[[^]]*CONSOLE[^]]*\] "//p' "$name.stderr" | sed 's/", source: .*$//' >"$name.log"
    passed=$((passed + $(grep -c '^PASS ' "$name.log")))
    failed=$((failed + $(grep -c '^FAIL ' "$name.log")))
    grep '^FAIL ' "$name.log" | sed "s/^FAIL /FAIL $name: /"
    check "$name: the driver reached its end" grep -q '^END$' "$name.log"
    grep -v -e '^PASS ' -e '^FAIL ' -e '^MIDI ' -e '^LOSS ' -e '^END$' "$name.log" >stderr
    check "$name: nothing else on the console" test ! -s stderr
}
