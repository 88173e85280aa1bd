// Pages of piano rolls: the notes, the bars, the file and the texts are read back from them; hostile texts stay texts.
// `test_player FOLDER A.mid B.mid ...` instead writes pages for test_player.sh: one.html of the first file, all.html of
// all, odd.html with texts as bad as they come and an empty song; and the files that are in the pages, A.mid and so on.
#include "sample/player.h" // first: it chooses the system's interfaces

#include "check.h"

#define MIDI_IMPLEMENTATION
#define MIDI_STATIC
#include "midi.h"

static char error[ERROR_SIZE];

// What a title may not do: end the script, end a string, be half a character.
static const char odd_title[] =
    "</script><script>alert(1)</script> <!-- & \" ' \\ \xff\xc3 \xf0\x9f\x8e\xb9 \x01\r\n\x7f end";
static const char odd_seen[] = // as JSON
    "\"\\u003c/script\\u003e\\u003cscript\\u003ealert(1)\\u003c/script\\u003e \\u003c!-- \\u0026 \\\" ' \\\\ "
    "\\ufffd\\ufffd \xf0\x9f\x8e\xb9 \\u0001\\u000d\\n\\u007f end\"";

typedef struct {
    Song song;
    const char *title, *settings;
} Shown;

static Song empty_song(double tick) { // of ticks of so many seconds
    Song song = {.midi = {.division = QUARTER}};
    tempo_add(&song.tempo, 0, tick);
    return song;
}

static TextBuffer page_of(const Shown *shown, int n) { // with a NUL behind its last byte
    TextBuffer out = {NULL, 0, 0, false};
    strcpy(error, "no sentence");
    player_open(&out);
    for (int i = 0; i < n; i++) {
        const Shown *s = &shown[i];
        CHECK(player_song(&out, &s->song, s->title, s->settings, i == 0, error), "%s", error);
    }
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

// How many bytes the text is in base64, of which these are the first ones; -1: it is something else.
static int64_t base64_size(const char *text, size_t length, const uint8_t *bytes, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < length && text[i] != '='; i++) {
        const char *digit = strchr(digits, text[i]);
        if (!digit) return -1;
        bits = bits << 6 | (uint32_t)(digit - digits);
        if (i % 4 && (n == size || (bits >> (6 - 2 * (i % 4)) & 255) != bytes[n++])) return -1;
    }
    return length % 4 ? -1 : (int64_t)n;
}

static void test_base64(void) {
    uint8_t bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)(255 - i);
    for (size_t size = 252; size <= 256; size++) {
        TextBuffer out = {NULL, 0, 0, false};
        player_base64(&out, bytes, size);
        const int64_t back = base64_size(out.bytes, out.size, bytes, size);
        CHECK(back == (int64_t)size, "%zu bytes came back as %lld", size, (long long)back);
        free(out.bytes);
    }
}

static void test_page(void) {
    midi_note notes[] = {{0, 50000, 60, 80, 0, 0}, {12500, 45833, 108, 1, 0, 0}, {123456789, 123456789, 21, 127, 0, 0}};
    bool from_prime[] = {true, false, false};
    int64_t lines[] = {0, 200000, 123450000};
    midi_pedal pedals[] = {{6250, 200000, 0, 0}, {206250, 123450000, 0, 0}};
    Shown songs[2] = {{empty_song(1e-5), odd_title, "seed 7\nmodel a"}, {empty_song(1.0 / QUARTER), "", ""}};
    Song *song = &songs[0].song;
    song->midi.notes = notes;
    song->midi.n_notes = 3;
    song->midi.pedals = pedals;
    song->midi.n_pedals = 2;
    song->from_prime = from_prime;
    song->lines = lines;
    song->n_lines = 3;
    song->prime_end = 12500;
    song->end = 124000000;
    TextBuffer page = page_of(songs, 2), again = page_of(songs, 2);
    const char *data = strstr(page.bytes, "type=\"application/json\">"),
               *at = data ? strstr(data, "\"notes\":[\n") : NULL;
    CHECK(page.size == again.size && !memcmp(page.bytes, again.bytes, page.size), "the same bytes again");
    CHECK(strlen(page.bytes) == page.size, "no NUL in the page");
    CHECK(data && count(page.bytes, "<script") == count(player_page, "<script"), "the page has a script too many");
    CHECK(count(page.bytes, "</script") == count(player_page, "</script"), "the end of a script too many");
    CHECK(!strstr(page.bytes, "An example"), "the example is still there");
    CHECK(data && strstr(data, odd_seen), "the title is not what it should be");
    CHECK(data && strstr(data, "\"settings\":\"seed 7\\nmodel a\",\"bpm\":12500,\"prime\":0.125,\"seconds\":1240,\n"
                               "\"bars\":[0,2,1234.5],\n"),
          "settings, numbers and bars");
    CHECK(data && strstr(data, "{\"title\":\"\",\"settings\":\"\",\"bpm\":60,\"prime\":0,\"seconds\":0,\n\"bars\":[],\n"
                               "\"notes\":[\n],\n\"pedals\":[],\n\"mid\":\"TVRoZ"),
          "the empty song");
    CHECK(data && strstr(data, "\n],\n\"pedals\":[[0.0625,2],[2.0625,1234.5]],\n\"mid\":\""), "pedals");
    at += strlen("\"notes\":[\n");
    for (int i = 0; i < 3; i++) {
        double start, seconds;
        int key, velocity, taken = 0;
        CHECK(sscanf(at, "[%lf,%lf,%d,%d%n", &start, &seconds, &key, &velocity, &taken) == 4, "note %d: %.40s", i, at);
        CHECK(fabs(start - (double)notes[i].start * 1e-5) < 1e-5, "note %d: %.40s", i, at);
        CHECK(fabs(seconds - (double)(notes[i].end - notes[i].start) * 1e-5) < 1e-9, "note %d: %.40s", i, at);
        CHECK(key == notes[i].key && velocity == notes[i].velocity, "note %d: %.40s", i, at);
        CHECK(!strncmp(at + taken, from_prime[i] ? ",1]" : "]", from_prime[i] ? 3 : 1), "note %d: %.40s", i, at);
        at = strchr(at, '\n') + 1;
    }
    at = strstr(at, "\"mid\":\"") + strlen("\"mid\":\"");
    uint8_t *mid;
    size_t size;
    CHECK(midi_write(&song->midi, &mid, &size, NULL) && base64_size(at, strcspn(at, "\""), mid, size) == (int64_t)size,
          "the file is not that of the song");
    MIDI_FREE(mid);
    free(page.bytes);
    free(again.bytes);
    for (int i = 0; i < 2; i++) free(songs[i].song.tempo.spans);
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

static void refuses(const Song *song, const char *words) {
    TextBuffer out = {NULL, 0, 0, false};
    strcpy(error, "no sentence");
    CHECK(!player_song(&out, song, "Song", "", true, error), "should be refused: %s", words);
    CHECK(strstr(error, words), "'%s' should have: %s", error, words);
    free(out.bytes);
}

static void test_errors(void) {
    midi_note note = {0, 1, 60, 80, 0, 0};
    bool prime = false;
    Shown good = {empty_song(1), "Song", ""};
    good.song.midi.notes = &note;
    good.song.midi.n_notes = 1;
    good.song.from_prime = &prime;
    good.song.end = 9999999;
    TextBuffer out = page_of(&good, 1);
    free(out.bytes);
    good.song.end++;
    refuses(&good.song, "song 'Song': its 1e+07 seconds cannot be shown");
    good.song.end = 1;
    note.velocity = 128;
    refuses(&good.song, "note 0 ");
    free(good.song.tempo.spans);
}

// ---- pages for the browser

typedef struct {
    char title[200], settings[400];
    Song
        song; // its notes as the file has them, its bar lines as tokens have them, and a pedal from behind each line on
} Piece;

static void piece_read(Piece *piece, const char *path, int seed) { // or the end
    Song *song = &piece->song;
    midi_song *midi = &song->midi, grid;
    midi_error problem = {0, 0, "its file"};
    midi_report report;
    uint8_t *tokens;
    size_t n;
    if (!midi_read_file(midi, path, 1 << 20, &problem) || !midi_encode(midi, &tokens, &n, &report, &problem) ||
        !midi_decode(tokens, n, &grid, &problem)) {
        printf("%s: %s\n", path, problem.text);
        exit(1);
    }
    const double quarter = 1e-6 * (midi->n_tempos ? midi->tempos[0].us_per_quarter : 500000);
    tempo_add(&song->tempo, 0, quarter / midi->division);
    song->from_prime = (bool *)calloc(midi->n_notes + 1, sizeof *song->from_prime);
    song->lines = (int64_t *)calloc(grid.n_bars + 1, sizeof *song->lines);
    song->n_lines = 1; // the first begins with the song
    for (size_t i = 0; i < grid.n_bars; i++) {
        if (grid.bars[i] > 0) song->lines[song->n_lines++] = grid.bars[i] * midi->division / grid.division;
    }
    for (int i = 0; i + 1 < song->n_lines; i++) {
        const int64_t start = song->lines[i], end = song->lines[i + 1];
        midi_add_pedal(midi, start + (end - start) / 16, end, 0, 0);
    }
    song->prime_end = song->n_lines > 4 ? song->lines[4] : 0;
    for (size_t i = 0; i < midi->n_notes; i++) {
        if (midi->notes[i].end > song->end) song->end = midi->notes[i].end;
        song->from_prime[i] = midi->notes[i].start < song->prime_end;
    }
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    snprintf(piece->title, sizeof piece->title, "%.*s", (int)strcspn(name, "."), name);
    snprintf(piece->settings, sizeof piece->settings,
             "seed %d, tokens 1024, temperature 0.95, top-p 0.98, context 1024, bpm %.4g, prime %.60s (256 tokens)\n"
             "sample_music 1.0, model out/gpt/model.safetensors (gpt, epoch 6, test loss 1.237)",
             seed, 60 / quarter, name);
    midi_free(&grid);
    MIDI_FREE(tokens);
}

static int write_page(const char *folder, const char *name, const Shown *shown, int n) {
    TextBuffer page = page_of(shown, n);
    bool ok = write_file_atomically(path_join(folder, name).text, page.bytes, page.size, error);
    if (!ok) printf("%s\n", error);
    free(page.bytes);
    return !ok;
}

static int write_pages(const char *folder, char **paths, int n) {
    static Piece pieces[16];
    static Shown songs[16];
    Shown odd[2] = {{empty_song(1), odd_title, odd_title}};
    int status = 0;
    n = n < 16 ? n : 16;
    for (int i = 0; i < n; i++) {
        Piece *piece = &pieces[i];
        uint8_t *mid;
        size_t size;
        piece_read(piece, paths[i], i + 1);
        songs[i] = (Shown){piece->song, piece->title, piece->settings};
        const Path path = path_print("%s/%s.mid", folder, piece->title);
        status |=
            !midi_write(&piece->song.midi, &mid, &size, NULL) || !write_file_atomically(path.text, mid, size, error);
        MIDI_FREE(mid);
    }
    odd[1] = songs[0];
    odd[1].title = odd_title;
    status = status || write_page(folder, "one.html", songs, 1) || write_page(folder, "all.html", songs, n) ||
             write_page(folder, "odd.html", odd, 2);
    for (int i = 0; i < n; i++) song_free(&pieces[i].song);
    free(odd[0].song.tempo.spans);
    return status;
}

int main(int argc, char **argv) {
    if (argc > 2) return write_pages(argv[1], argv + 2, argc - 2);
    test_base64();
    test_page();
    test_alone();
    test_errors();
    return check_report("player");
}
