// Pages of piano rolls: the notes, the bars, the file and the texts are read back from them; hostile texts stay texts.
// `test_player FOLDER A.mid B.mid ...` instead writes pages for test_player.sh: one.html of the first file, all.html of
// all, odd.html with texts as bad as they come and an empty song.
#define MIDI_IMPLEMENTATION
#define MIDI_STATIC
#include "sample/player.h"

#include "check.h"
#include <math.h>

static char error[ERROR_SIZE];

// What a title may not do: end the script, end a string, be half a character.
static const char odd_title[] =
    "</script><script>alert(1)</script> <!-- & \" ' \\ \xff\xc3 \xf0\x9f\x8e\xb9 \x01\r\n\x7f end";
static const char odd_seen[] = // as JSON
    "\"\\u003c/script\\u003e\\u003cscript\\u003ealert(1)\\u003c/script\\u003e \\u003c!-- \\u0026 \\u0022 ' \\u005c "
    "\\ufffd\\ufffd \xf0\x9f\x8e\xb9 \\u0001\\u000d\\u000a\\u007f end\"";

static const TempoMap *one_tempo(double tick) { // ticks of so many seconds; every 16th one is the same
    static TempoSpan spans[16];
    static TempoMap maps[16];
    static int n;
    const int k = n++ % 16;
    spans[k] = (TempoSpan){0, tick, 0};
    maps[k] = (TempoMap){&spans[k], 1};
    return &maps[k];
}

static TextBuffer page_of(const PlayerSong *songs, int n) { // with a NUL behind its last byte
    TextBuffer out = {NULL, 0, 0, false};
    strcpy(error, "no sentence");
    player_open(&out);
    for (int i = 0; i < n; i++) CHECK(player_song(&out, &songs[i], i == 0, error), "%s", error);
    player_close(&out);
    text_add(&out, "", 1);
    out.size--;
    return out;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

static void test_page(void) {
    static const midi_note notes[] = {
        {0, 500000, 60, 80, 0, 0}, {125000, 458333, 108, 1, 0, 0}, {1234567890, 1234567890, 21, 127, 0, 0}};
    static const bool from_prime[] = {true, false, false};
    static const int64_t bars[] = {0, 2000000, 1234500000};
    static const midi_pedal pedals[] = {{62500, 2000000, 0, 0}, {2062500, 1234500000, 0, 0}};
    uint8_t mid[256];
    for (int i = 0; i < 256; i++) mid[i] = (uint8_t)(255 - i);
    for (size_t size = 252; size <= 256; size++) {
        const PlayerSong songs[2] = {{odd_title, "seed 7\nmodel a", mid, size, notes, from_prime, 3, bars, 3,
                                      one_tempo(1e-6), 0.125, 1240, 117.5, pedals, 2},
                                     {.title = "", .settings = "", .bpm = 60}}; // no notes, no file
        TextBuffer page = page_of(songs, 2), again = page_of(songs, 2);
        const char *data = strstr(page.bytes, "type=\"application/json\">"),
                   *at = data ? strstr(data, "\"notes\":[\n") : NULL;
        CHECK(page.size == again.size && !memcmp(page.bytes, again.bytes, page.size), "the same bytes again");
        CHECK(strlen(page.bytes) == page.size, "no NUL in the page");
        CHECK(data && count(page.bytes, "<script") == count(player_page, "<script"), "the page has a script too many");
        CHECK(count(page.bytes, "</script") == count(player_page, "</script"), "the end of a script too many");
        CHECK(!strstr(page.bytes, "An example"), "the example is still there");
        CHECK(data && strstr(data, odd_seen), "the title is not what it should be");
        CHECK(data &&
                  strstr(data, "\"settings\":\"seed 7\\u000amodel a\",\"bpm\":117.5,\"prime\":0.125,\"seconds\":1240,\n"
                               "\"bars\":[0,2,1234.5],\n"),
              "settings, numbers and bars");
        CHECK(data &&
                  strstr(data, "{\"title\":\"\",\"settings\":\"\",\"bpm\":60,\"prime\":0,\"seconds\":0,\n\"bars\":[],\n"
                               "\"notes\":[\n],\n\"pedals\":[],\n\"mid\":\"\"}]\n</script>"),
              "the empty song");
        CHECK(data && strstr(data, "\n],\n\"pedals\":[[0.0625,2],[2.0625,1234.5]],\n\"mid\":\""), "pedals");
        at += strlen("\"notes\":[\n");
        for (int i = 0; i < 3; i++) {
            double start, seconds;
            int key, velocity, taken = 0;
            CHECK(sscanf(at, "[%lf,%lf,%d,%d%n", &start, &seconds, &key, &velocity, &taken) == 4, "note %d: %.40s", i,
                  at);
            CHECK(fabs(start - (double)notes[i].start * 1e-6) < 1e-5, "note %d: %.40s", i, at);
            CHECK(fabs(seconds - (double)(notes[i].end - notes[i].start) * 1e-6) < 1e-9, "note %d: %.40s", i, at);
            CHECK(key == notes[i].key && velocity == notes[i].velocity, "note %d: %.40s", i, at);
            CHECK(!strncmp(at + taken, from_prime[i] ? ",1]" : "]", from_prime[i] ? 3 : 1), "note %d: %.40s", i, at);
            at = strchr(at, '\n') + 1;
        }
        at = strstr(at, "\"mid\":\"") + strlen("\"mid\":\"");
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        size_t length = strcspn(at, "\""), n = 0;
        bool same = true;
        uint32_t bits = 0;
        for (size_t i = 0; i < length && at[i] != '='; i++) {
            const char *digit = strchr(digits, at[i]);
            same = same && digit;
            bits = bits << 6 | (uint32_t)(digit ? digit - digits : 0);
            if (i % 4) same = same && n < size && (bits >> (6 - 2 * (i % 4)) & 255) == mid[n], n++;
        }
        CHECK(same && n == size && length % 4 == 0, "%zu bytes came back as %zu", size, n);
        free(page.bytes);
        free(again.bytes);
    }
}

// Nothing in the page asks for anything outside of it.
static void test_alone(void) {
    static const char *const words[] = {"http:",
                                        "https:",
                                        "//cdn",
                                        " src=",
                                        "@import",
                                        "url(",
                                        "fetch(",
                                        "XMLHttpRequest",
                                        "WebSocket",
                                        "eval(",
                                        "import(",
                                        "localStorage",
                                        "<link rel=\"stylesheet"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        CHECK(!strstr(player_page, words[i]), "the page has '%s'", words[i]);
    }
    CHECK(strstr(player_page, "default-src 'none'"), "the page forbids itself the network");
    for (const char *at = player_page; *at; at++) {
        if (((unsigned char)*at < 32 && *at != '\n') || *at == 127) CHECK(false, "the page has a byte %d", *at);
    }
}

static void refuses(PlayerSong song, const char *words) {
    TextBuffer out = {NULL, 0, 0, false};
    strcpy(error, "no sentence");
    CHECK(!player_song(&out, &song, true, error), "should be refused: %s", words);
    CHECK(strstr(error, words), "'%s' should have: %s", error, words);
    free(out.bytes);
}

static void test_errors(void) {
    midi_note note = {0, 1, 60, 80, 0, 0};
    int64_t bars[2] = {0, 2};
    const bool prime = false;
    const PlayerSong good = {"Song", "", NULL, 0, &note, &prime, 1, bars, 2, one_tempo(1), 0, 4, 120, NULL, 0};
    PlayerSong song = good;
    TextBuffer out = page_of(&good, 1);
    free(out.bytes);
    refuses((song.bpm = 0, song), "0 bpm");
    song = good;
    refuses((song.seconds = NAN, song), "nan s");
    refuses((song.seconds = -1, song), "-1 s");
    song = good;
    refuses((song.prime_seconds = INFINITY, song), "inf s");
    bars[1] = -1;
    refuses(good, "bar 2 begins at -1 s");
    bars[1] = 2;
    song = good;
    refuses((song.tempo = one_tempo(NAN), song), "bar 1 begins at nan s");
    const midi_note bad[] = {{-1, 1, 60, 80, 0, 0},        {0, -1, 60, 80, 0, 0}, {0, 10000000, 60, 80, 0, 0},
                             {INT64_MAX, 0, 60, 80, 0, 0}, {0, 1, 128, 80, 0, 0}, {0, 1, 60, 128, 0, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        note = bad[i];
        refuses(good, "note 1");
    }
}

// ---- pages for the browser

typedef struct {
    char title[200], settings[400];
    void *mid;
    midi_song file, grid; // as it is, and as tokens have it
    bool *from_prime;
    int64_t *bars;
    midi_pedal *pedals; // from a while behind each bar line to the next
    PlayerSong song;
} Piece;

static void piece_read(Piece *piece, const char *path, int seed) { // or the end
    midi_song *song = &piece->file, *grid = &piece->grid;
    midi_error problem = {0, 0, "its file"};
    midi_report report;
    uint8_t *tokens;
    size_t size, n;
    if (!read_file(path, &piece->mid, &size, error) || !midi_read(song, piece->mid, size, &problem) ||
        !midi_encode(song, &tokens, &n, &report, &problem) || !midi_decode(tokens, n, grid, &problem)) {
        printf("%s: %s\n", path, problem.text);
        exit(1);
    }
    double quarter = 1e-6 * (song->n_tempos ? song->tempos[0].us_per_quarter : 500000), tick = quarter / song->division;
    PlayerSong *out = &piece->song;
    piece->from_prime = (bool *)calloc(song->n_notes + 1, sizeof *piece->from_prime);
    piece->bars = (int64_t *)calloc(grid->n_bars + 1, sizeof *piece->bars);
    for (size_t i = 0; i < song->n_notes; i++) out->seconds = fmax(out->seconds, (double)song->notes[i].end * tick);
    size_t n_bars = 1; // the first begins with the song
    for (size_t i = 0; i < grid->n_bars; i++) {
        if (grid->bars[i] > 0) piece->bars[n_bars++] = grid->bars[i] * song->division / grid->division;
    }
    piece->pedals = (midi_pedal *)calloc(n_bars, sizeof *piece->pedals);
    for (size_t i = 0; i + 1 < n_bars; i++) {
        const int64_t start = piece->bars[i], end = piece->bars[i + 1];
        piece->pedals[i] = (midi_pedal){start + (end - start) / 16, end, 0, 0};
    }
    const int64_t prime_end = n_bars > 4 ? piece->bars[4] : 0;
    for (size_t i = 0; i < song->n_notes; i++) piece->from_prime[i] = song->notes[i].start < prime_end;
    out->prime_seconds = (double)prime_end * tick;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    snprintf(piece->title, sizeof piece->title, "%.*s", (int)strcspn(name, "."), name);
    snprintf(piece->settings, sizeof piece->settings,
             "seed %d, tokens 1024, temperature 0.95, top-p 0.98, context 1024, bpm %.4g, prime %.60s (256 tokens)\n"
             "sample_music 1.0, model out/gpt/model.safetensors (gpt, epoch 6, test loss 1.237)",
             seed, 60 / quarter, name);
    out->title = piece->title;
    out->settings = piece->settings;
    out->mid = (const uint8_t *)piece->mid;
    out->mid_size = size;
    out->notes = song->notes;
    out->from_prime = piece->from_prime;
    out->n_notes = song->n_notes;
    out->bars = piece->bars;
    out->n_bars = n_bars;
    out->pedals = piece->pedals;
    out->n_pedals = n_bars - 1;
    out->tempo = one_tempo(tick);
    out->bpm = 60 / quarter;
    MIDI_FREE(tokens);
}

static int write_page(const char *folder, const char *name, const PlayerSong *songs, int n) {
    TextBuffer page = page_of(songs, n);
    bool ok = write_file_atomically(path_join(folder, name).text, page.bytes, page.size, error);
    if (!ok) printf("%s\n", error);
    free(page.bytes);
    return !ok;
}

static int write_pages(const char *folder, char **paths, int n) {
    static Piece pieces[16];
    PlayerSong songs[16] = {{0}}, odd[2] = {{.title = odd_title, .settings = odd_title, .bpm = 120}};
    n = n < 16 ? n : 16;
    for (int i = 0; i < n; i++) {
        piece_read(&pieces[i], paths[i], i + 1);
        songs[i] = pieces[i].song;
    }
    odd[1] = songs[0];
    odd[1].title = odd_title;
    int status = write_page(folder, "one.html", songs, 1) || write_page(folder, "all.html", songs, n) ||
                 write_page(folder, "odd.html", odd, 2);
    for (int i = 0; i < n; i++) {
        free(pieces[i].mid);
        midi_free(&pieces[i].file);
        midi_free(&pieces[i].grid);
        free(pieces[i].from_prime);
        free(pieces[i].bars);
    }
    return status;
}

int main(int argc, char **argv) {
    if (argc > 2) return write_pages(argv[1], argv + 2, argc - 2);
    test_page();
    test_alone();
    test_errors();
    return check_report("player");
}
