/* The scores of PCB merging and what they combine, for all experts of a tile at once, in float64.
 * Exponentials are those of `methods/exponentials.py`, operation by operation. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_BALANCE_H
#define CUVEE_BALANCE_H

/* An expert: the registers of its change and of its score; between which magnitudes, and between which scores, counts.
 * How much a score is less than `floor` does not matter. */
typedef struct { int32_t delta, score; float weight, floor; double low, high, width, least, most, range; } Voter;
typedef struct { int32_t count, vision; Voter each[]; } Balance;

static inline u64 bits_of_double(double x) { u64 b; memcpy(&b, &x, 8); return b; }
static inline double double_of(u64 b) { double x; memcpy(&x, &b, 8); return x; }

/* e^x = scale · (1 + rest) */
static inline double exponent(double x, double *scale) {
    double shifted = x * 1.4426950408889634 + 6755399441055744.0, whole = shifted - 6755399441055744.0;
    double r = (x - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0; p = p * r + 1.0 / 39916800.0; p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0; p = p * r + 1.0 / 40320.0; p = p * r + 1.0 / 5040.0; p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0; p = p * r + 1.0 / 24.0; p = p * r + 1.0 / 6.0; p = p * r + 0.5;
    *scale = double_of((bits_of_double(shifted) + 1023) << 52);
    return r + (r * r) * p;
}
static inline double exponential(double x) { /* x at most 0 */
    double scale, rest = exponent(x < -700.0 ? -700.0 : x, &scale);
    return scale * (rest + 1.0);
}
static inline double hyperbolic_tangent(double x) {
    double size = double_of(bits_of_double(x) & 0x7fffffffffffffffu), scale;
    double rest = exponent((size > 20.0 ? 20.0 : size) * -2.0, &scale);
    double e = scale * rest + (scale - 1.0);
    u64 found = bits_of_double(e / (-2.0 - e)) & 0x7fffffffffffffffu;
    return double_of(found | (bits_of_double(x) & 0x8000000000000000u));
}
static inline double within(double x, double low, double high) {
    double raised = x < low ? low : x;
    return raised > high ? high : raised;
}

/* The elements of a tile whose flag is 1; there is room for 16 more. */
static int listed_places(const u32 *flags, u32 *found) {
    int many = 0, i = 0;
#ifdef __AVX512F__
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i < TILE; i += 16, places = _mm512_add_epi32(places, _mm512_set1_epi32(16))) {
        __m512i flag = _mm512_loadu_si512(flags + i);
        __mmask16 here = _mm512_test_epi32_mask(flag, flag);
        _mm512_storeu_si512(found + many, _mm512_maskz_compress_epi32(here, places));
        many += __builtin_popcount(here);
    }
#endif
    for (; i < TILE; i++) { found[many] = (u32)i; many += (int)flags[i]; }
    return many;
}
static int all_places(u32 *found) {
    EACH found[i] = (u32)i;
    return TILE;
}

/* What every expert must agree with, in float32: it and how far off it may be, for all elements of a tile. */
static void roughly(const Balance *all, const float *regs, float *other, float *doubt) {
    const float error = (float)(all->count + 8) * 1.2e-7f;
    EACH { other[i] = 0.0f; doubt[i] = 0.0f; }
    for (int k = 0; k < all->count; k++) {
        const Voter v = all->each[k];
        const float *delta = regs + v.delta * TILE, low = (float)v.low, high = (float)v.high, inverse = (float)(1.0 / v.width);
        if (!all->vision) { EACH { other[i] += delta[i]; doubt[i] += size_of(delta[i]); } }
        else EACH {
            float size = size_of(delta[i]), raised = size < low ? low : size, norm = ((raised > high ? high : raised) - low) * inverse;
            other[i] += sign_of(delta[i]) * norm;
            doubt[i] += norm;
        }
    }
    EACH doubt[i] *= error;
}

/* The elements whose score may reach the expert's floor; of all others it is surely less, by an upper bound in float32. With
 * roundings, the exponential's bound is less than 1 + 1e-5 + 3e-6 * count times too small, and tanh z <= min(z, 1). */
static int doubtful(const Balance *all, const Voter *own, const float *delta, const float *other, const float *doubt, u32 *found) {
    const float count = (float)all->count, scaled = count * 1.44269504f, floor = own->floor;
    const float low = (float)own->low, high = (float)own->high, inverse = (float)(1.0 / own->width);
    const float margin = 1.0001f + count * 1e-5f;
    u32 may[TILE];
    if (!(floor > 1e-30f)) return all_places(found); /* roundings of tiny numbers are not looked at */
    EACH {
        float size = size_of(delta[i]), raised = size < low ? low : size, norm = ((raised > high ? high : raised) - low) * inverse;
        float x = scaled * (norm * norm - 1.0f), above = x < -126.0f ? -126.0f : x;
        float shifted = above + 12582912.0f, r = above - (shifted - 12582912.0f);
        float p = ((((1.3333558e-3f * r + 9.6181291e-3f) * r + 5.5504109e-2f) * r + 2.4022651e-1f) * r + 6.9314718e-1f) * r + 1.0f;
        float power = p * float_of((bits_of(shifted) + 127) << 23);
        float agrees = delta[i] * other[i] + size * doubt[i], most = agrees > 1.0f ? 1.0f : agrees;
        may[i] = !(power * most * margin + 1e-37f < floor);
    }
    return listed_places(may, found);
}

/* The scores of an expert at `many` places. */
static void scored(const Balance *all, const Voter *own, const float *regs, const u32 *places, int many, float *to) {
    double other[TILE], count = (double)all->count;
    float at[TILE];
    FREE_LOOP for (int j = 0; j < many; j++) other[j] = 0.0;
    for (int k = 0; k < all->count; k++) {
        const Voter v = all->each[k];
        const float *delta = regs + v.delta * TILE;
        if (!all->vision) { FREE_LOOP for (int j = 0; j < many; j++) other[j] += (double)delta[places[j]]; }
        else FREE_LOOP for (int j = 0; j < many; j++) {
            float d = delta[places[j]];
            double norm = (within((double)size_of(d), v.low, v.high) - v.low) / v.width;
            other[j] += (double)sign_of(d) * norm;
        }
    }
    const Voter v = *own;
    const float *delta = regs + v.delta * TILE;
    FREE_LOOP for (int j = 0; j < many; j++) {
        float d = delta[places[j]];
        double norm = (within((double)size_of(d), v.low, v.high) - v.low) / v.width;
        at[j] = (float)(exponential(count * (norm * norm - 1.0)) * hyperbolic_tangent((double)d * other[j]));
    }
    for (int j = 0; j < many; j++) to[places[j]] = at[j];
}

/* Scores that are surely less than their expert's floor are told as -1. */
static void scores(const Balance *all, float *regs) {
    float other[TILE], doubt[TILE];
    u32 places[TILE + 16];
    roughly(all, regs, other, doubt);
    for (int k = 0; k < all->count; k++) {
        const Voter *own = all->each + k;
        float *to = regs + own->score * TILE;
        int many = doubtful(all, own, regs + own->delta * TILE, other, doubt, places);
        if (many < TILE) EACH to[i] = -1.0f;
        scored(all, own, regs, places, many, to);
    }
}

/* The elements where any expert counts; all where a part may be infinite, which times no share is not 0. */
static int counting(const Balance *all, const float *regs, u32 *found) {
    u32 counts[TILE] = {0};
    for (int k = 0; k < all->count; k++) {
        const Voter v = all->each[k];
        const float *score = regs + v.score * TILE, least = (float)v.least, largest = (float)v.high * v.weight;
        if (!(size_of(largest) < 3e38f)) return all_places(found);
        EACH counts[i] |= !(score[i] <= least);
    }
    return listed_places(counts, found);
}

static void balanced(const Balance *all, float *to, float *regs) {
    double total[TILE], share[TILE];
    u32 places[TILE + 16];
    int many = counting(all, regs, places);
    FREE_LOOP for (int j = 0; j < many; j++) { total[j] = 0.0; share[j] = 0.0; }
    for (int k = 0; k < all->count; k++) {
        const Voter v = all->each[k];
        const float *delta = regs + v.delta * TILE, *score = regs + v.score * TILE, low = (float)v.low, high = (float)v.high;
        FREE_LOOP for (int j = 0; j < many; j++) {
            float d = delta[places[j]], size = size_of(d), raised = size < low ? low : size, kept = raised > high ? high : raised;
            double scale = (within((double)score[places[j]], v.least, v.most) - v.least) / v.range;
            float clamped = sign_of(d) * kept, part = clamped * v.weight;
            total[j] += (double)part * scale;
            share[j] += scale;
        }
    }
    float made[TILE];
    FREE_LOOP for (int j = 0; j < many; j++) made[j] = (float)(total[j] / (share[j] < 1e-12 ? 1e-12 : share[j]));
    if (many < TILE) memset(to, 0, 4 * TILE);
    for (int j = 0; j < many; j++) to[places[j]] = made[j];
}

/* Magnitudes that are sorted as the values themselves, which lie between -1 and 1. */
static void ordered(float *to, const float *a) {
    EACH {
        u32 size = bits_of(a[i]) & 0x7fffffffu;
        to[i] = float_of(a[i] < 0.0f ? 0x3f800000u - size : 0x3f800000u + size);
    }
}

#endif
