/* Elections over entries that were kept before: the few of each expert that a threshold or a draw left, gathered once and
 * laid close together, so that a vote with other weights reads those alone. The same sums, products and roundings in the
 * same order as over all entries: what is not there adds +0 there, which changes no bit of a sum that began with +0.
 * Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_KEPT_H
#define CUVEE_KEPT_H

/* Entries of one expert: a bit for each element of the tensor, and for each tile and the end the number of entries before; the
 * entries are the expert's elements as stored (`size` bytes; `half`: float16, not bfloat16; of all experts alike). 64 bytes may be read after
 * the last one. Differences from the base are divided by `divisor`. */
typedef struct {
    const u64 *bits;
    const int64_t *before;
    const char *entries;
    int32_t size, half;
    float weight, share, divisor, unused;
} Kept;
/* `base`: register; `made` and `tied` as of a Crowd; `divided`: whether any divisor is not 1; `narrow`: the base's values are those of
 * bfloat16. */
typedef struct { int32_t count, base, made, divided; float tied; int32_t narrow; Kept each[]; } Ballot;
/* Where entries of size `size` go; there is room for a tile after the `used` ones. */
typedef struct { u64 *bits; int64_t *before; char *entries; int64_t used; int32_t size, unused; } Gathered;
enum { MARKS = TILE / 64 };

/* Note which of `m` thinned values are not 0, and lay the stored elements they came from behind those of other tiles. */
static void gather(Gathered *to, const float *thinned, const char *stored, int64_t line, int m) {
    u64 *bits = to->bits + line * MARKS;
    to->before[line] = to->used;
    for (int word = 0; word < MARKS; word++) {
        u64 found = 0;
        for (int i = 64 * word; i < 64 * word + 64 && i < m; i++) found |= (u64)(thinned[i] != 0.0f) << (i & 63);
        bits[word] = found;
        for (; found; found &= found - 1, to->used++) {
            int i = 64 * word + __builtin_ctzll(found);
            memcpy(to->entries + to->used * to->size, stored + (int64_t)i * to->size, (size_t)to->size);
        }
    }
    to->before[line + 1] = to->used;
}

/* A vector of VOTED: what is kept of each expert there, the vote, and what is made of those that agree. */
#ifdef __AVX512F__
static inline __attribute__((always_inline)) __m512 placed(const char *at, __mmask16 here, int wide, int half) {
    if (wide) return _mm512_maskz_expand_ps(here, _mm512_loadu_ps(at));
    __m256i next = _mm256_loadu_si256((const __m256i *)at);
    if (half) return _mm512_maskz_expand_ps(here, _mm512_cvtph_ps(next));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_maskz_expand_epi32(here, _mm512_cvtepu16_epi32(next)), 16));
}

static inline __attribute__((always_inline)) u32 vote(const Ballot *all, int64_t line, float *to, const float *base, int made,
                                                      int wide, int half, int divided) {
    const __m512 none = _mm512_setzero_ps();
    const int size = wide ? 4 : 2;
    const char *at[CROWD];
    const uint16_t *bits[CROWD];
    __mmask16 bad = 0;
    for (int k = 0; k < all->count; k++) {
        at[k] = all->each[k].entries + all->each[k].before[line] * size;
        bits[k] = (const uint16_t *)(all->each[k].bits + line * MARKS);
    }
    for (int j = 0; j < TILE / 16; j += 2) { /* two at a time, since one waits for itself */
        __m512 value[2][CROWD], sum[2] = {none, none};
        __m512 low = _mm512_loadu_ps(base + 16 * j), high = _mm512_loadu_ps(base + 16 * j + 16);
        for (int k = 0; k < all->count; k++) {
            const Kept *e = all->each + k;
            const __m512 weight = _mm512_set1_ps(e->weight);
            const __mmask16 here = bits[k][j], next = bits[k][j + 1];
            const char *after = at[k] + __builtin_popcount(here) * size;
            __m512 a = _mm512_sub_ps(placed(at[k], here, wide, half), low);
            __m512 b = _mm512_sub_ps(placed(after, next, wide, half), high);
            if (divided) a = _mm512_div_ps(a, _mm512_set1_ps(e->divisor)), b = _mm512_div_ps(b, _mm512_set1_ps(e->divisor));
            at[k] = after + __builtin_popcount(next) * size;
            value[0][k] = a = _mm512_maskz_mul_ps(here, a, weight);
            value[1][k] = b = _mm512_maskz_mul_ps(next, b, weight);
            sum[0] = _mm512_add_ps(sum[0], a);
            sum[1] = _mm512_add_ps(sum[1], b);
        }
        for (int h = 0; h < 2; h++)
            _mm512_storeu_ps(to + 16 * (j + h), agreed(value[h], sum[h], &all->each->share, sizeof(Kept), all->tied, made, all->count, &bad));
    }
    return bad != 0;
}
#else
static u32 vote(const Ballot *all, int64_t line, float *to, const float *base, int made, int wide, int half, int divided) {
    float own[TILE], sum[TILE] = {0}, share[TILE] = {0}, won[TILE], delta[TILE];
    u32 bad = 0;
    memcpy(own, base, sizeof own); /* `to` may be the same register */
    EACH to[i] = 0.0f;
    for (int k = 0; k < 2 * all->count; k++) { /* all add up before any is asked whether it agrees */
        const Kept *e = all->each + k % all->count;
        const char *at = e->entries + e->before[line] * e->size;
        const float weight = e->weight, part = e->share, divisor = e->divisor;
        if (k == all->count) EACH { bad |= sum[i] != sum[i]; won[i] = sum[i] == 0.0f ? all->tied : sum[i] > 0.0f ? 1.0f : -1.0f; }
        EACH delta[i] = 0.0f;
        for (int word = 0; word < MARKS; word++)
            for (u64 left = e->bits[line * MARKS + word]; left; left &= left - 1, at += e->size) {
                int i = 64 * word + __builtin_ctzll(left);
                float x;
                u16 narrow;
                if (wide) memcpy(&x, at, 4);
                else { memcpy(&narrow, at, 2); if (half) widen_f16(&x, &narrow, 1); else x = from_bf16(narrow); }
                delta[i] = x - own[i];
            }
        if (divided) EACH delta[i] = delta[i] / divisor;
        if (k < all->count) EACH { float v = delta[i] * weight; sum[i] += v; }
        else if (made == GREATEST) EACH { float v = delta[i] * weight * won[i]; to[i] = v > to[i] ? v : to[i]; }
        else EACH {
            float v = delta[i] * weight;
            int agrees = v * won[i] > 0.0f;
            to[i] += agrees ? v : 0.0f;
            share[i] += agrees ? part : 0.0f;
        }
    }
    if (made == GREATEST) EACH to[i] *= won[i];
    if (made == MEAN) EACH to[i] /= share[i] == 0.0f ? 1.0f : share[i];
    return bad != 0;
}
#endif

#ifdef __AVX512VBMI2__
/* As `vote`, where experts and base are bfloat16: 32 at a time, those in even places in one vector and those in odd places
 * in another. What is not kept of an expert is the base's own, so that it differs by +0. */
static inline __attribute__((always_inline)) u32 narrow_vote(const Ballot *all, int64_t line, float *to, const float *base,
                                                             int made) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    const __m512i front = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i rear = _mm512_add_epi32(front, _mm512_set1_epi32(8));
    const __m512 none = _mm512_setzero_ps();
    const u16 *at[CROWD];
    const u32 *bits[CROWD];
    u16 own[TILE];
    __mmask16 bad = 0;
    EACH own[i] = (u16)(bits_of(base[i]) >> 16);
    for (int k = 0; k < all->count; k++) {
        at[k] = (const u16 *)all->each[k].entries + all->each[k].before[line];
        bits[k] = (const u32 *)(all->each[k].bits + line * MARKS);
    }
    for (int j = 0; j < TILE / 32; j++) {
        __m512i stored = _mm512_loadu_si512(own + 32 * j);
        __m512 value[2][CROWD], sum[2] = {none, none}, total[2];
        __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(stored, 16));
        __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(stored, upper));
        for (int k = 0; k < all->count; k++) {
            const __m512 weight = _mm512_set1_ps(all->each[k].weight);
            const u32 here = bits[k][j];
            __m512i x = _mm512_mask_expand_epi16(stored, here, _mm512_loadu_si512(at[k]));
            at[k] += __builtin_popcount(here);
            value[0][k] = _mm512_mul_ps(_mm512_sub_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), even), weight);
            value[1][k] = _mm512_mul_ps(_mm512_sub_ps(_mm512_castsi512_ps(_mm512_and_si512(x, upper)), odd), weight);
            sum[0] = _mm512_add_ps(sum[0], value[0][k]);
            sum[1] = _mm512_add_ps(sum[1], value[1][k]);
        }
        for (int h = 0; h < 2; h++)
            total[h] = agreed(value[h], sum[h], &all->each->share, sizeof(Kept), all->tied, made, all->count, &bad);
        _mm512_storeu_ps(to + 32 * j, _mm512_permutex2var_ps(total[0], front, total[1]));
        _mm512_storeu_ps(to + 32 * j + 16, _mm512_permutex2var_ps(total[0], rear, total[1]));
    }
    return bad != 0;
}
#endif

static u32 voted(const Ballot *all, int64_t line, float *to, const float *regs) {
    const float *base = regs + all->base * TILE;
    const int wide = all->each->size == 4, half = all->each->half, divided = all->divided;
    for (int k = 0; k < all->count; k++) {
        const Kept *e = all->each + k;
        const char *next = e->entries + e->before[line + 1] * e->size;
        fetch(e->bits + (line + 1) * MARKS, 8 * MARKS);
        fetch(next, next - (e->entries + e->before[line] * e->size)); /* about as many as here */
    }
    if (wide || half || divided || all->made == GREATEST) return vote(all, line, to, base, all->made, wide, half, divided);
#ifdef __AVX512VBMI2__
    if (all->narrow && all->made == MEAN) return narrow_vote(all, line, to, base, MEAN);
    if (all->narrow) return narrow_vote(all, line, to, base, TOTAL);
#endif
    if (all->made == MEAN) return vote(all, line, to, base, MEAN, 0, 0, 0);
    return vote(all, line, to, base, TOTAL, 0, 0, 0);
}

#endif
