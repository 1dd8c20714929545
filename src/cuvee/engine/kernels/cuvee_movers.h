/* The mean of those changes that are larger than a bound, at each coordinate, in one operation in which a change is made once and
 * stays in a register of the processor. The same sums, products and roundings in the same order as MOVED, BOOST and QUOTIENT.
 * Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_MOVERS_H
#define CUVEE_MOVERS_H

/* An expert: an input, bfloat16 or `wide` (float32), what it moved alone times `boost`; `delta` is a register for tiles that need
 * more care. */
typedef struct { int32_t input, delta, wide; float boost; } Mover;
/* `base`: register of what is subtracted from every expert; what is larger than `least` counts. */
typedef struct { int32_t count, base; float least; int32_t boosts; Mover each[]; } Movers;

/* As `over`, by numbers up to 15 that differ; `inverses` are those of 1 (for 0, too) to 15. */
static inline __attribute__((always_inline)) Lanes shared(Lanes x, Whole counts, Lanes inverses, int few) {
    Lanes by = __builtin_convertvector(counts - (counts == 0), Lanes);
#ifdef __AVX512F__
    __m512i size = _mm512_and_si512((__m512i)x, _mm512_set1_epi32(0x7fffffff));
    size = _mm512_sub_epi32(size, _mm512_set1_epi32(0x10000000));
    __mmask16 plain = _mm512_cmplt_epu32_mask(size, _mm512_set1_epi32(0x60000000));
    if (few && (plain | _mm512_testn_epi32_mask((__m512i)x, (__m512i)x)) == 0xffff) {
        __m512 inverse = _mm512_permutexvar_ps((__m512i)counts, (__m512)inverses), near = _mm512_mul_ps((__m512)x, inverse);
        return (Lanes)_mm512_fmadd_ps(_mm512_fnmadd_ps(near, (__m512)by, (__m512)x), inverse, near);
    }
#endif
    return x / by;
}

static inline __attribute__((always_inline)) u32 averaged(const Movers *all, const void **in, int64_t s, float *to,
                                                          const float *regs, int n, int stored, int boosts) {
    const Words exponent = (Words){0} + 0x7f800000u;
    const Whole sizes = (Whole){0} + 0x7fffffff;
    const float *base = regs + all->base * TILE;
    const Lanes one = (Lanes){0} + 1.0f;
    Lanes inverses = one;
    for (int k = 1; k < 16; k++) inverses[k] = 1.0f / (float)k;
    Words bad = {0};
    for (int j = 0; j < TILE; j += WIDTH) {
        Lanes d[CROWD], total = {0};
        Whole own[CROWD], counts = {0};
        for (int k = 0; k < n; k++) {
            const Mover *e = all->each + k;
            if (!stored) d[k] = *(const Lanes *)(regs + e->delta * TILE + j);
            else {
                const u16 *half = (const u16 *)in[e->input] + s + j;
                Words word = e->wide ? *(const Words *)((const float *)in[e->input] + s + j) : WIDENED(half);
                bad |= (Words)((word & exponent) == exponent);
                d[k] = (Lanes)word - *(const Lanes *)(base + j);
            }
            own[k] = (Lanes)((Whole)d[k] & sizes) > all->least;
            counts -= own[k];
        }
        Whole alone = counts == 1;
        for (int k = 0; k < n; k++) {
            Lanes factor = boosts ? masked((Lanes){0} + all->each[k].boost, alone) + masked(one, ~alone) : one;
            total += masked(boosts ? d[k] * factor : d[k], own[k]);
        }
        *(Lanes *)(to + j) = shared(total, counts, inverses, n < 16);
    }
    u32 found = 0;
    for (int i = 0; i < WIDTH; i++) found |= bad[i];
    return found != 0;
}

#define AVERAGED(...) averaged(all, in, s, to, regs, __VA_ARGS__)
static u32 movers(const Movers *all, const void **in, int64_t s, int64_t line, int m, float *to, float *regs) {
    const int n = all->count;
    u32 bad = 0;
    if (n > CROWD) return 1;
    for (int k = 0; k < n; k++) {
        const Mover *e = all->each + k;
        Expert plain = {.wide = e->wide};
        ahead(in[e->input], s + TILE, e->wide);
        if (m < TILE) bad |= carefully(&plain, regs + all->base * TILE, in[e->input], s, line, m, regs + e->delta * TILE);
    }
    if (m < TILE) return bad | AVERAGED(n, 0, 1);
    if (all->boosts) return AVERAGED(n, 1, 1);
    if (n == 3) return AVERAGED(3, 1, 0);
    return AVERAGED(n, 1, 0);
}

#endif
