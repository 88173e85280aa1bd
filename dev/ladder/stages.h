// What the rungs are checked by: stages of the plain models, on arrays in place of tensors. stages_gpt.c and
// stages_lstm.c, beside this file, call the functions of dev/plain of the same names.
//
// C11 and C++17.
#ifndef STAGES_H
#define STAGES_H

#ifdef __cplusplus
extern "C" {
#endif

// y = x w^T + b; x [R,C], w [OC,C], b [OC], y [R,OC]
void stage_linear(double *y, const double *x, const double *w, const double *b, int R, int C, int OC);

// h, c [T*B,H] of an LSTM layer of H units, row t * B + b for position t of window b, from zeros before position 0.
// tokens [T*B]; table [V,4H] has what each token's input says to the gates, biases included; w_hh [4H,H]
void stage_recurrence(double *h, double *c, const double *table, const double *tokens, const double *w_hh, int B, int T,
                      int H);

// y = LN(x + dropout(branch)) w + b and its backward: dx, dbranch and dw, db from dy. All [R,C], but w, b, dw, db [C].
// Dropout with probability 1/2 is that of windows of T rows, in the step and place of the model that are named here.
// The gradients but dy come as zeros.
typedef struct {
    double *y, *dx, *dbranch, *dw, *db;
    const double *x, *branch, *w, *b, *dy;
    int R, C, T;
} StageNorm;
enum { STAGE_SEED = 1, STAGE_STEP = 7, STAGE_SITE = 3 };
void stage_layernorm(const StageNorm *s);

// Attention: out [T,C] and scores [NH,T,T] of one window, from qkv [T,3C], the relative table rel [D,C/NH] and the
// scores of the layer below, [NH,T,T]. Only scores [t][j] with j <= t are read and written.
void stage_attention(double *out, double *scores, const double *below, const double *qkv, const double *rel, int T,
                     int C, int NH, int D);

#ifdef __cplusplus
}
#endif
#endif
