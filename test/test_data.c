// dev/base/data.h: datasets written and read, what is refused, windows against a plain list of them, epochs, and names.
#include "base/data.h"

#include "check.h"

static char folder[256], error[ERROR_SIZE], path[512];

// A dataset by hand, so that everything in it can be wrong. NULL leaves a part out.
typedef struct {
    const char *format, *names;
    StType token_type, piece_type;
    int64_t n_tokens, n_starts;
    const void *tokens, *starts;
} Parts;

static bool write_parts(const Parts *parts) {
    StTensor tensors[2];
    StMeta meta[2];
    int n = 0, n_meta = 0;
    memset(tensors, 0, sizeof tensors);
    if (parts->tokens) {
        tensors[n].name = "tokens";
        tensors[n].type = parts->token_type;
        tensors[n].rank = 1;
        tensors[n].shape[0] = parts->n_tokens;
        tensors[n++].data = parts->tokens;
    }
    if (parts->starts) {
        tensors[n].name = "pieces";
        tensors[n].type = parts->piece_type;
        tensors[n].rank = 1;
        tensors[n].shape[0] = parts->n_starts;
        tensors[n++].data = parts->starts;
    }
    if (parts->format) {
        meta[n_meta].key = "format";
        meta[n_meta++].value = parts->format;
    }
    if (parts->names) {
        meta[n_meta].key = "names";
        meta[n_meta++].value = parts->names;
    }
    return st_write(path, tensors, n, meta, n_meta, error);
}

static void refuse(const Parts *parts, const char *sentence) {
    Dataset data;
    bool written = write_parts(parts);
    CHECK(written, "%s", error);
    bool ok = dataset_open(&data, path, 4, error);
    CHECK(!ok && strstr(error, path) == error && strstr(error, sentence), "expected '%s', got '%s'", sentence,
          ok ? "no error" : error);
    CHECK(ok || (!data.owned && !data.file.bytes), "a refused dataset must be empty");
    if (ok) dataset_close(&data);
}

static void test_refusals(void) {
    uint8_t tokens[10] = {1, 33, 121, 1, 0, 1, 34, 122, 1, 0};
    int64_t starts[3] = {0, 6, 10};
    int64_t words[10] = {0};
    const Parts good = {DATA_FORMAT, "a.mid\nb.mid", ST_U8, ST_I64, 10, 3, tokens, starts};
    Dataset data;
    bool ok = write_parts(&good) && dataset_open(&data, path, 4, error);
    CHECK(ok, "%s", error);
    if (ok) dataset_close(&data);

    Parts bad = good;
    bad.format = NULL;
    refuse(&bad, "its format is missing instead of 'music-tokens/1'");
    bad.format = "music-tokens/2";
    refuse(&bad, "its format is 'music-tokens/2' instead of 'music-tokens/1'");
    bad = good;
    bad.tokens = NULL;
    refuse(&bad, "it needs a tensor 'tokens' of type U8");
    bad.tokens = words;
    bad.token_type = ST_I64;
    refuse(&bad, "it needs a tensor 'tokens' of type U8");
    bad = good;
    bad.starts = NULL;
    refuse(&bad, "it needs a tensor 'pieces' of type I64");
    bad.starts = words;
    bad.piece_type = ST_F64;
    refuse(&bad, "it needs a tensor 'pieces' of type I64");
    bad = good;
    bad.n_starts = 0;
    refuse(&bad, "it needs a tensor 'pieces' of type I64");
    bad = good;
    bad.names = "a.mid";
    refuse(&bad, "it names 1 pieces and has 2");
    bad.names = "a.mid\nb.mid\nc.mid\n";
    refuse(&bad, "it names 3 pieces and has 2");
    tokens[7] = 153;
    refuse(&good, "the token at position 7 is 153; tokens are 0 to 152");
    tokens[7] = 255;
    refuse(&good, "the token at position 7 is 255");
    tokens[7] = 152;
    starts[0] = 1;
    refuse(&good, "go from token 1 to 10; they must go from 0 to its end at 10");
    starts[0] = 0;
    starts[2] = 9;
    refuse(&good, "go from token 0 to 9");
    starts[2] = 11;
    refuse(&good, "go from token 0 to 11");
    starts[2] = 10;
    starts[1] = 11;
    refuse(&good, "piece 0 goes from token 0 to 11");
    starts[1] = -1;
    refuse(&good, "piece 0 goes from token 0 to -1");
    starts[1] = INT64_MIN;
    refuse(&good, "piece 0 goes from token 0 to -9223372036854775808");
    starts[1] = INT64_MAX;
    refuse(&good, "piece 0 goes from token 0 to 9223372036854775807");

    write_file_atomically(path, "", 0, error);
    CHECK(!dataset_open(&data, path, 4, error) && strstr(error, "not a safetensors file"), "%s", error);
    write_file_atomically(path, "Once upon a time there was a text file", 38, error);
    CHECK(!dataset_open(&data, path, 4, error) && strstr(error, "not a safetensors file"), "%s", error);
    CHECK(!dataset_open(&data, folder, 4, error) && strstr(error, "is a folder"), "%s", error);
}

// Pieces shorter than, as long as and longer than a window, and empty ones at both ends, for several T.
static void test_windows(void) {
    const int64_t lengths[] = {0, 3, 4, 5, 6, 0, 0, 12, 1, 5, 0}, n_pieces = 11;
    int64_t starts[12] = {0}, expected[64];
    uint8_t tokens[64];
    for (int p = 0; p < n_pieces; p++) starts[p + 1] = starts[p] + lengths[p];
    int64_t n = starts[n_pieces];
    for (int64_t i = 0; i < n; i++) tokens[i] = (uint8_t)(i * 7 % 153);
    bool saved = dataset_save(path, tokens, n, starts, n_pieces, "", error);
    CHECK(saved, "%s", error);
    for (int T = 1; T <= 13; T++) {
        Dataset data;
        bool ok = dataset_open(&data, path, T, error);
        CHECK(ok, "%s", error);
        if (!ok) return;
        int64_t count = 0, wrong = 0;
        for (int64_t p = 0; p < n_pieces; p++) {
            for (int64_t i = starts[p]; i + T + 1 <= starts[p + 1]; i++) expected[count++] = i;
        }
        for (int64_t w = 0; w < count && w < data.n_windows; w++) wrong += dataset_window(&data, w) != expected[w];
        CHECK(data.n_windows == count && wrong == 0, "T = %d: %lld windows of %lld, %lld wrong", T,
              (long long)data.n_windows, (long long)count, (long long)wrong);
        CHECK(data.n_tokens == n && data.n_pieces == n_pieces && !memcmp(data.tokens, tokens, (size_t)n) &&
                  !memcmp(data.pieces, starts, sizeof starts),
              "the dataset changed on the way");
        dataset_close(&data);
    }
    const int64_t none = 0;
    Dataset data;
    bool ok = dataset_save(path, NULL, 0, &none, 0, "", error) && dataset_open(&data, path, 256, error);
    CHECK(ok && data.n_windows == 0 && data.n_pieces == 0, "a dataset of no piece: %s", error);
    if (ok) dataset_close(&data);
}

static void test_epochs(void) {
    static const struct {
        double F;
        int64_t windows, steps;
        int B;
    } cases[] = {{0.02, 639257, 1598, 8}, {0.02, 70224, 175, 8}, {1, 17, 2, 8},        {1, 16, 2, 8},   {0.5, 17, 1, 8},
                 {0.02, 9, 1, 8},         {0.02, 8, 1, 8},       {0.02, 7, 0, 8},      {0.02, 0, 0, 8}, {100, 70, 8, 8},
                 {1e-300, 100, 1, 1},     {1, 100, 100, 1},      {1e300, 100, 100, 1}, {0.1, 30, 3, 1}, {NAN, 7, 0, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t steps = epoch_steps(cases[i].F, cases[i].windows, cases[i].B);
        CHECK(steps == cases[i].steps, "%g of %lld windows by %d: %lld steps, expected %lld", cases[i].F,
              (long long)cases[i].windows, cases[i].B, (long long)steps, (long long)cases[i].steps);
    }

    // An epoch over everything takes each window once; the next epoch and another seed take them in other orders.
    enum { T = 4, B = 8, N = 1000 };
    Dataset data;
    bool ok = dataset_random(&data, N + T, T, 1, error);
    CHECK(ok && data.n_windows == N, "%lld windows", (long long)data.n_windows);
    if (!ok) return;
    static int64_t starts[3][N];
    int times[N] = {0}, same_epoch = 0, same_seed = 0, once = 0;
    for (int step = 0; step < N / B; step++) {
        epoch_batch(&data, 7, 0, step, B, starts[0] + step * B);
        epoch_batch(&data, 7, 1, step, B, starts[1] + step * B);
        epoch_batch(&data, 8, 0, step, B, starts[2] + step * B);
    }
    for (int i = 0; i < N; i++) {
        if (starts[0][i] >= 0 && starts[0][i] < N) times[starts[0][i]]++;
        same_epoch += starts[0][i] == starts[1][i];
        same_seed += starts[0][i] == starts[2][i];
    }
    for (int i = 0; i < N; i++) once += times[i] == 1;
    CHECK(once == N, "%d of %d windows come once in an epoch", once, N);
    CHECK(same_epoch < 10 && same_seed < 10, "%d, %d windows at the same place in other orders", same_epoch, same_seed);
    uint64_t w = philox_permute(philox_key(7, PHILOX_WINDOWS, 1), N, 3 * B + 5);
    CHECK(starts[1][3 * B + 5] == dataset_window(&data, (int64_t)w), "row 5 of step 3 is not what it is defined to be");
    int64_t rows[2];
    epoch_batch(&data, 7, 0, 6, 2, rows);
    CHECK(rows[0] == starts[0][12] && rows[1] == starts[0][13], "another batch size changes the order of the windows");
    dataset_close(&data);
}

// Windows are transposed by any number of semitones that keeps them on the piano, each as often as the others, whatever
// the batch; which numbers these are depends on the seed and the epoch.
static void test_transposed(void) {
    enum { T = 3, B = 5, N = 6000, LOW = -5, HIGH = 6 };
    static uint8_t tokens[N + T];
    static int shifts[2][N], counts[3][HIGH - LOW + 1];
    const int range[] = {LOW, HIGH}, none[] = {0, 0};
    int64_t starts[N];
    Dataset data = {.tokens = tokens, .T = T};
    // A third of the windows are at the lower end, a third at the upper one, and a third without pitches.
    for (int i = 0; i < N + T; i++) {
        const int third = i / (N / 3), low = TOKEN_PITCH + 2, high = TOKEN_DURATION - 1 - 4;
        tokens[i] = (uint8_t)(third == 0 ? low : third == 1 ? high : i % 4 ? 0 : TOKEN_DURATION);
        if (i % 4 == 3 && third < 2) tokens[i] = (uint8_t)(third == 0 ? low + 30 : high - 30);
    }
    for (int i = 0; i < N; i++) starts[i] = i;
    for (int step = 0; step < N / B; step++)
        epoch_shifts(&data, 7, 2, step, B, starts + step * B, range, &shifts[0][step * B]);
    epoch_shifts(&data, 7, 2, 0, N, starts, range, shifts[1]);
    CHECK(!memcmp(shifts[0], shifts[1], sizeof shifts[0]), "another batch size changes the transpositions");
    int wrong = 0, same_epoch = 0, same_seed = 0;
    for (int i = 0; i < N; i++) {
        for (int t = 0; t <= T; t++) {
            const int now = transposed(tokens[i + t], shifts[0][i]);
            wrong += token_kind(now) != token_kind(tokens[i + t]);
            wrong += now != tokens[i + t] + (token_kind(now) == 2 ? shifts[0][i] : 0);
        }
        counts[i / (N / 3)][shifts[0][i] - LOW]++;
    }
    CHECK(wrong == 0, "%d tokens are transposed wrongly", wrong);
    for (int third = 0; third < 3; third++) {
        const int least = third == 0 ? -2 : LOW, most = third == 1 ? 4 : HIGH, each = N / 3 / (most - least + 1);
        for (int s = LOW; s <= HIGH; s++) {
            const int count = counts[third][s - LOW], tail = 2 * T; // some windows have tokens of the next third
            if (s < least || s > most) CHECK(count <= tail, "%d in third %d: %d times", s, third, count);
            if (s >= least && s <= most)
                CHECK(abs(count - each) < each / 2, "%d in third %d: %d times, expected %d", s, third, count, each);
        }
    }
    epoch_shifts(&data, 7, 3, 0, N, starts, range, shifts[1]);
    for (int i = 0; i < N; i++) same_epoch += shifts[0][i] == shifts[1][i];
    epoch_shifts(&data, 8, 2, 0, N, starts, range, shifts[1]);
    for (int i = 0; i < N; i++) same_seed += shifts[0][i] == shifts[1][i];
    CHECK(same_epoch < N / 5 && same_seed < N / 5, "%d, %d of %d are the same", same_epoch, same_seed, N);
    epoch_shifts(&data, 7, 2, 0, N, starts, none, shifts[1]);
    for (int i = 0; i < N; i++) wrong += shifts[1][i] != 0;
    CHECK(wrong == 0, "%d windows are transposed by none of 0,0", wrong);
}

static void test_random(void) {
    Dataset a, b;
    if (!dataset_random(&a, 153000, 256, 1, error) || !dataset_random(&b, 153000, 256, 1, error)) {
        CHECK(false, "%s", error);
        return;
    }
    int counts[256] = {0}, least = 153000, most = 0;
    for (int64_t i = 0; i < a.n_tokens; i++) counts[a.tokens[i]]++;
    for (int i = 0; i < 153; i++) {
        least = counts[i] < least ? counts[i] : least;
        most = counts[i] > most ? counts[i] : most;
    }
    CHECK(!memcmp(a.tokens, b.tokens, (size_t)a.n_tokens), "the same seed gives other tokens");
    CHECK(least > 800 && most < 1200, "tokens come %d to %d times, expected about 1000", least, most);
    int wrong = 0;
    for (int64_t i = 0; i < a.n_tokens; i++) wrong += a.tokens[i] >= DATA_TOKENS;
    CHECK(wrong == 0 && a.n_windows == 153000 - 256, "%d tokens are none, %lld windows", wrong, (long long)a.n_windows);
    dataset_close(&a);
    dataset_close(&b);
}

static void test_names(void) {
    static const char *cases[][2] = {{"Bach/Prélude 1.mid", "Bach/Prélude 1.mid"},
                                     {"100%.mid", "100%25.mid"},
                                     {"two\nlines", "two%0Alines"},
                                     {"%0A", "%250A"},
                                     {"bad\xff\xc3.mid", "bad%FF%C3.mid"},
                                     {"\xed\xa0\x80", "%ED%A0%80"},
                                     {"tab\t\r\x01 stays", "tab\t\r\x01 stays"},
                                     {"", ""}};
    char escaped[200], back[200];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t length = name_escape(cases[i][0], escaped);
        CHECK(!strcmp(escaped, cases[i][1]) && length == strlen(escaped) && utf8_valid(escaped), "case %zu: '%s'", i,
              escaped);
        length = name_unescape(escaped, back);
        CHECK(!strcmp(back, cases[i][0]) && length == strlen(back), "case %zu came back as '%s'", i, back);
    }
    // Every string of two bytes survives, and stays on one line.
    int wrong = 0;
    for (int i = 1; i < 65536; i++) {
        char name[3] = {(char)(i & 255), (char)(i >> 8), 0};
        if (!name[0]) continue;
        name_escape(name, escaped);
        name_unescape(escaped, back);
        wrong += strcmp(name, back) || strchr(escaped, '\n') || !utf8_valid(escaped);
    }
    CHECK(wrong == 0, "%d names of two bytes do not survive", wrong);
    name_unescape("a%2", back);
    CHECK(!strcmp(back, "a%2"), "a cut escape became '%s'", back);
    name_unescape("%zz%00%e9\nnext", back);
    CHECK(!strcmp(back, "%zz%00\xe9"), "wrong escapes became '%s'", back);

    const uint8_t tokens[3] = {1, 33, 121};
    const int64_t starts[4] = {0, 1, 2, 3};
    const char *forms[] = {"one\ntwo%0A\nthree", "one\ntwo%0A\nthree\n"};
    for (int i = 0; i < 2; i++) {
        Dataset data;
        bool ok = dataset_save(path, tokens, 3, starts, 3, forms[i], error) && dataset_open(&data, path, 1, error);
        CHECK(ok, "%s", error);
        if (!ok) continue;
        name_unescape(dataset_name(&data, 0), back);
        CHECK(!strcmp(back, "one"), "the first name is '%s'", back);
        name_unescape(dataset_name(&data, 1), back);
        CHECK(!strcmp(back, "two\n"), "the second name is '%s'", back);
        name_unescape(dataset_name(&data, 2), back);
        CHECK(!strcmp(back, "three"), "the third name is '%s'", back);
        dataset_close(&data);
    }
}

// A dataset of an odd number of tokens before the pieces, as another program may write it: nothing is aligned.
static void test_unaligned(void) {
    static const char header[] = "{\"__metadata__\":{\"format\":\"music-tokens/1\"},"
                                 "\"tokens\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]},"
                                 "\"pieces\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[5,29]}}";
    const uint8_t tokens[5] = {1, 33, 121, 1, 0};
    const int64_t starts[3] = {0, 3, 5};
    char bytes[8 + sizeof header - 1 + 29];
    uint64_t length = sizeof header - 1;
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, sizeof header - 1);
    memcpy(bytes + 8 + sizeof header - 1, tokens, 5);
    memcpy(bytes + 8 + sizeof header - 1 + 5, starts, 24);
    Dataset data;
    bool ok = write_file_atomically(path, bytes, sizeof bytes, error) && dataset_open(&data, path, 2, error);
    CHECK(ok, "%s", error);
    if (!ok) return;
    CHECK(data.n_pieces == 2 && data.pieces[1] == 3 && data.n_windows == 1 && dataset_window(&data, 0) == 0,
          "%lld pieces, %lld windows", (long long)data.n_pieces, (long long)data.n_windows);
    dataset_close(&data);
}

// No command to a terminal, and nothing that XML forbids, is left of a text; all else is.
static void test_shown(void) {
    static const char *const cases[][2] = {
        {"a\nb\033[1m\177", "a?b?[1m?"},
        {"caf\xC3\xA9 \xC2\xA0\xF0\x9F\x8E\xB9", "caf\xC3\xA9 \xC2\xA0\xF0\x9F\x8E\xB9"},
        {"\xC2\x80\xC2\x9B\xC2\x9F", "??????"},
        {"\x9B\xE9 \xED\xA0\x80", "?? ???"},
        {"\xEF\xBF\xBD\xEF\xBF\xBE\xEF\xBF\xBF", "\xEF\xBF\xBD??????"},
        {"cut \xF0\x9F\x8E", "cut ???"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64];
        fail(error, "%s", cases[i][0]);
        CHECK(!strcmp(error, cases[i][1]), "case %zu of an error: %s", i, error);
        strcpy(text, cases[i][0]);
        clean_text(text, strlen(text));
        CHECK(!strcmp(text, cases[i][1]), "case %zu of a text: %s", i, text);
    }
    FILE *file = tmpfile();
    char line[64] = "";
    if (!file) return;
    print_line(file, "%s\n%s", "a\xC2\x9B", "b");
    rewind(file);
    CHECK(fread(line, 1, sizeof line - 1, file) == 6 && !strcmp(line, "a???b\n"), "%s", line);
    fclose(file);
}

int main(void) {
    check_folder(folder);
    snprintf(path, sizeof path, "%s/test.safetensors", folder);
    test_refusals();
    test_windows();
    test_epochs();
    test_transposed();
    test_random();
    test_names();
    test_unaligned();
    test_shown();
    CHECK(!remove(path) && !rmdir(folder), "the scratch folder stays, perhaps with a temporary file");
    return check_report("data");
}
