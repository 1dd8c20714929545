/* What coordinates do that are selected by how much the experts vary there: the variance itself, the energies of what is
 * selected, and the vote of SCE over it, each in one operation in which a change is made once and stays in a register of the
 * processor. The same sums, products and roundings in the same order as single operations. Included once, by
 * cuvee_kernels.c.
 */
#ifndef CUVEE_VARYING_H
#define CUVEE_VARYING_H

/* An expert: an input, bfloat16 or `wide` (float32); `delta` is a register for tiles that need more care; `energies`
 * says how many bytes behind the head a sum for each tile goes. */
typedef struct { int32_t input, delta, wide; float weight; int64_t energies; } Varied;
/* `base`: register of what is subtracted from every expert. Selected is what varies more than the float of bits `cut`, and the
 * first `ties` of what varies as much; all, where it does not `select`; or what `marks`, a bit for each element so many bytes
 * behind the head, say (0: there are none). The divisor of a vote is at least `least`. */
typedef struct { int32_t count, base, selects; float least; int64_t ties; u32 cut, unused; int64_t marks; Varied each[]; } Varying;
enum { SPREAD, ENERGIES, SURE };
typedef float Eight __attribute__((vector_size(32), aligned(4)));
typedef double Doubles __attribute__((vector_size(64), aligned(8)));
/* Vectors stay in memory behind this, from where they are widened in half the steps. */
#define IN_MEMORY(x) __asm__ volatile("" : "+m"(x))

static inline __attribute__((always_inline)) Doubles doubled(const float *from) {
#ifdef __AVX512F__
    return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#else
    return __builtin_convertvector(*(const Eight *)from, Doubles);
#endif
}

/* sum + a * b, where the product of two widened floats is exact: rounded once, however it is made. */
static inline __attribute__((always_inline)) Doubles plus_product(Doubles sum, Doubles a, Doubles b) {
#ifdef __AVX512F__
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#else
    return sum + a * b;
#endif
}

/* The rest of the tree of sums, once a tile is a quarter. */
#define FOLD(half) for (int i = 0; i < half; i++) v[i] += v[i + half]
static inline __attribute__((always_inline)) double folded(Doubles *v) {
    FOLD(16); FOLD(8); FOLD(4); FOLD(2);
    Doubles last = v[0] + v[1];
    double w[4];
    for (int i = 0; i < 4; i++) w[i] = last[i] + last[i + 4];
    return (w[0] + w[2]) + (w[1] + w[3]);
}

/* A value where its bit is set, else 0. */
static inline __attribute__((always_inline)) Lanes marked(Lanes x, u16 bits) {
#ifdef __AVX512F__
    return (Lanes)_mm512_maskz_mov_ps(bits, (__m512)x);
#else
    return where(x, bits);
#endif
}
static inline const u16 *marks_of(const Varying *all, int64_t line) {
    return (const u16 *)((const char *)all + all->marks) + line * (TILE / 16);
}

static inline Lanes masked(Lanes x, Whole kept) { return (Lanes)((Whole)x & kept); }

/* The population variance of changes, of differences to the first. */
static inline __attribute__((always_inline)) Lanes spread(const Lanes *d, int n, float count, float inverse) {
    Lanes mean = {0}, found = {0};
    for (int k = 0; k < n; k++) mean += d[k] - d[0];
    mean = over(mean, count, inverse);
    for (int k = 0; k < n; k++) { Lanes apart = (d[k] - d[0]) - mean, square = apart * apart; found += square; }
    return over(found, count, inverse);
}

/* The mean of those changes that agree in sign with the sum of all, where 0 counts as above it. */
static inline __attribute__((always_inline)) Lanes sure(const Varying *all, const Lanes *d, int n, Words *bad) {
    const Lanes none = {0};
    Lanes vote = none, total = none, share = none;
    for (int k = 0; k < n; k++) vote += d[k];
    *bad |= (Words)(vote != vote); /* infinities that cancel: whose sign, the generic path says */
    Whole turn = (Whole)(vote < none) & (int32_t)0x80000000u;
    for (int k = 0; k < n; k++) {
        float weight = all->each[k].weight;
        Whole agrees = (Lanes)((Whole)d[k] ^ turn) > none;
        total += masked(d[k] * weight, agrees);
        share += masked((Lanes){0} + weight, agrees);
    }
    if (all->least > 0) { Whole low = share < (Lanes){0} + all->least; share = masked((Lanes){0} + all->least, low) + masked(share, ~low); }
    Whole empty = share == none;
    return total / (Lanes)(((Whole)share & ~empty) | ((Whole)((Lanes){0} + 1.0f) & empty));
}

/* A tile, in four vectors at a time that are a quarter of it apart, as the tree of sums wants them. Where it is not `stored`,
 * changes lie in registers, selected. */
static inline __attribute__((always_inline)) u32 vary(Varying *all, const void **in, int64_t s, int64_t line, float *to,
                                                      const float *regs, int64_t *ties, int how, int n, int stored, int narrow, int marks) {
    const Words exponent = (Words){0} + 0x7f800000u;
    const int32_t cut = (int32_t)all->cut, least = all->ties > 0 ? cut : cut + 1, selects = stored && !marks && all->selects;
    const u16 *bits = marks ? marks_of(all, line) : 0;
    const float *base = regs + all->base * TILE, count = (float)n, inverse = 1.0f / count;
    Doubles v[CROWD][TILE / 4 / 8];
    Words bad = {0};
    Whole tied = {0};
    for (int j = 0; j < TILE / 4; j += WIDTH) {
        Lanes x[CROWD][4];
        for (int q = 0; q < 4; q++) {
            const int i = j + q * (TILE / 4);
            const Lanes b = *(const Lanes *)(base + i);
            Lanes d[CROWD];
            for (int k = 0; k < n; k++) {
                const Varied *e = all->each + k;
                if (!stored) { d[k] = *(const Lanes *)(regs + e->delta * TILE + i); continue; }
                const u16 *half = (const u16 *)in[e->input] + s + i;
                Words value = !narrow && e->wide ? *(const Words *)((const float *)in[e->input] + s + i) : WIDENED(half);
                bad |= (Words)((value & exponent) == exponent);
                d[k] = (Lanes)value - b;
                if (marks) d[k] = marked(d[k], bits[i / 16]);
            }
            if (how == SPREAD) { *(Lanes *)(to + i) = spread(d, n, count, inverse); continue; }
            if (selects) {
                Whole key = (Whole)spread(d, n, count, inverse) & 0x7fffffff, kept = key >= least; /* NaN is the largest */
                tied -= key == cut;
                for (int k = 0; k < n; k++) d[k] = masked(d[k], kept);
            }
            if (how == SURE) { *(Lanes *)(to + i) = sure(all, d, n, &bad); continue; }
            for (int k = 0; k < n; k++) x[k][q] = d[k];
        }
        if (how != ENERGIES) continue;
        IN_MEMORY(x);
        for (int k = 0; k < n; k++)
            for (int h = 0; h < 2; h++) {
                Doubles w[4];
                for (int q = 0; q < 4; q++) w[q] = doubled((const float *)&x[k][q] + 8 * h);
                v[k][j / 8 + h] = plus_product(w[0] * w[0], w[2], w[2]) + plus_product(w[1] * w[1], w[3], w[3]);
            }
    }
    for (int k = 0; k < n && how == ENERGIES; k++) ((double *)((char *)all + all->each[k].energies))[line] = folded(v[k]);
    u32 found = 0;
    for (int i = 0; i < WIDTH; i++) { found |= bad[i]; *ties += tied[i]; }
    return found != 0;
}

#define VARY(how, ...) vary(all, in, s, line, to, regs, &ties, how, __VA_ARGS__)
#define VARY_BY(...) (how == SPREAD ? VARY(SPREAD, __VA_ARGS__) : how == ENERGIES ? VARY(ENERGIES, __VA_ARGS__) : VARY(SURE, __VA_ARGS__))
#define MARKED_BY(how) (wide || all->count > 3 || all->count < 2 ? VARY(how, all->count, 1, 0, 1) : all->count == 2 ? VARY(how, 2, 1, 1, 1) : VARY(how, 3, 1, 1, 1))

/* A tile that ends early, or in which ties run out, by the way of single operations. */
static u32 vary_carefully(Varying *all, const void **in, int64_t s, int64_t line, int m, float *to, float *regs, int how) {
    struct { int32_t count, registers[CROWD]; } listed = {all->count, {0}};
    const float *base = regs + all->base * TILE;
    float by[TILE];
    int64_t ties = 0;
    u32 bad = 0;
    for (int k = 0; k < all->count; k++) {
        Expert plain = {.wide = all->each[k].wide};
        listed.registers[k] = all->each[k].delta;
        bad |= carefully(&plain, base, in[all->each[k].input], s, line, m, regs + all->each[k].delta * TILE);
    }
    variance((const Listed *)&listed, by, regs);
    if (how == SPREAD) { memcpy(to, by, sizeof by); return bad; }
    Op op = {.bits = all->cut};
    const u16 *bits = marks_of(all, line);
    for (int k = 0; k < all->count && all->selects; k++) {
        float *delta = regs + all->each[k].delta * TILE;
        op.count = all->ties;
        if (all->marks) { SOME delta[i] = bits[i / 16] >> (i & 15) & 1 ? delta[i] : 0.0f; }
        else trim(&op, delta, by, delta, m);
    }
    if (all->selects && !all->marks) all->ties = op.count;
    return bad | (how == ENERGIES ? VARY(ENERGIES, all->count, 0, 0, 0) : VARY(SURE, all->count, 0, 0, 0));
}

static u32 varying(Varying *all, const void **in, int64_t s, int64_t line, int m, float *to, float *regs, int how) {
    int64_t ties = 0;
    int wide = 0;
    u32 bad;
    if (all->count > CROWD) return 1;
    if (m < TILE) return vary_carefully(all, in, s, line, m, to, regs, how);
    for (int k = 0; k < all->count; k++) {
        const Varied *e = all->each + k;
        wide |= e->wide;
        ahead(in[e->input], s + TILE, e->wide);
    }
    if (all->marks && how == ENERGIES) return MARKED_BY(ENERGIES);
    if (all->marks && how == SURE) return MARKED_BY(SURE);
    if (!wide && all->count == 2) bad = VARY_BY(2, 1, 1, 0);
    else if (!wide && all->count == 3) bad = VARY_BY(3, 1, 1, 0);
    else bad = VARY_BY(all->count, 1, 0, 0);
    if (ties > all->ties && all->ties > 0) return bad | vary_carefully(all, in, s, line, m, to, regs, how);
    all->ties -= ties < all->ties ? ties : all->ties;
    return bad;
}

#endif
