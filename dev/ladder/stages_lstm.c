// Stages of dev/plain/plain_lstm.c on arrays (stages.h).
#define main plain_lstm_main // which is called by nobody
#include "plain/plain_lstm.c"

#include "ladder/stages.h"

// Rows of the plain model are b * T + t.
void stage_recurrence(double *h, double *c, const double *table, const double *tokens, const double *w_hh, int B, int T,
                      int H) {
    enum { H_T, C_T, GATES, FROM_X, TABLE, WEIGHTS, BIAS, START, TENSORS };
    const int rows[TENSORS] = {B * T, B * T, B * T, B * T, V, 4 * H, 4 * H, H};
    const int columns[TENSORS] = {H, H, 4 * H, 4 * H, 4 * H, H, 1, 1};
    TensorList all = {0};
    Tensor t[TENSORS];
    int *token = must_have(malloc((size_t)(B * T) * sizeof *token));
    for (int i = 0; i < TENSORS; i++) tensor_add(&all, &t[i], rows[i], columns[i], "", 0);
    for (int i = 0; i < V * 4 * H; i++) t[TABLE].value[i] = table[i];
    for (int i = 0; i < 4 * H * H; i++) t[WEIGHTS].value[i] = w_hh[i];
    for (int r = 0; r < B * T; r++) token[r] = (int)tokens[r % T * B + r / T];
    embedding_forward(&t[FROM_X], &t[TABLE], token);
    recurrence_forward(&t[H_T], &t[C_T], &t[GATES], &t[FROM_X], &t[WEIGHTS], &t[BIAS], &t[START], T);
    for (int r = 0; r < B * T; r++) {
        for (int u = 0; u < H; u++) {
            const int to = (r % T * B + r / T) * H + u;
            h[to] = t[H_T].value[r * H + u];
            c[to] = t[C_T].value[r * H + u];
        }
    }
    tensors_free(&all);
    free(token);
}
