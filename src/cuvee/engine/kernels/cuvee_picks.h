/* Magnitudes of a change gathered between two others, the change made from its stored input in the same step. The same counts and
 * keys as PICK of a difference. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_PICKS_H
#define CUVEE_PICKS_H

/* A whole tile of input `in` (bfloat16, or `wide`: float32) less `base`; there is room for all of it, and the bounds are in order. */
#ifdef __AVX512F__
static inline __attribute__((always_inline)) u32 pick_tile(const Op *op, const void *in, int64_t s, const float *base, int wide) {
    Picked *to = op->data;
    u32 *next = to->keys + to->picked;
    const __m512i sizes = _mm512_set1_epi32(0x7fffffff);
    const __m512i low = _mm512_set1_epi32((int)op->bits), high = _mm512_set1_epi32((int)op->key);
    const int from_zero = op->bits == 0 && op->key > 0; /* often many: counted, not gathered with what equals a bound */
    const __m512i first = from_zero ? _mm512_set1_epi32(1) : low, apart = _mm512_sub_epi32(high, first);
    __m512i largest = _mm512_setzero_si512(), below = largest;
    u32 *last = next;
    for (int i = 0; i < TILE; i += 16) {
        __m512i bits = wide ? _mm512_loadu_si512((const float *)in + s + i) : (__m512i)WIDENED((const u16 *)in + s + i);
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, sizes));
        __m512 change = _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_loadu_ps(base + i));
        __m512i key = _mm512_and_si512(_mm512_castps_si512(change), sizes), above = _mm512_sub_epi32(key, first);
        __mmask16 near = _mm512_cmple_epu32_mask(above, apart);
        below = _mm512_add_epi32(below, _mm512_srai_epi32(above, 31)); /* -1 where the key is before the first */
        _mm512_storeu_si512(last, _mm512_maskz_compress_epi32(near, key)); /* none, too: a branch would cost more */
        last += __builtin_popcount(near);
    }
    for (u32 *at = next; at < last; at += 16) { /* those that equal a bound are counted, no more */
        const __mmask16 there = last - at < 16 ? (__mmask16)((1u << (last - at)) - 1) : 0xffff;
        const __m512i key = _mm512_loadu_si512(at);
        const __mmask16 at_low = _mm512_mask_cmpeq_epi32_mask(there, key, low), at_high = _mm512_mask_cmpeq_epi32_mask(there, key, high);
        const __mmask16 inner = there & (__mmask16)~(at_low | at_high);
        to->low += __builtin_popcount(at_low); to->high += __builtin_popcount(at_high);
        _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(inner, key));
        next += __builtin_popcount(inner);
    }
    if (next < last) memset(next, 0, 4 * (size_t)(last - next)); /* nothing is left behind the keys */
    *(from_zero ? &to->low : &to->less) -= _mm512_reduce_add_epi32(below);
    to->picked = next - to->keys;
    return _mm512_cmpge_epi32_mask(largest, _mm512_set1_epi32(0x7f800000)) != 0;
}
#endif

static u32 pick_change(const Op *op, const void *in, int64_t s, int64_t line, int m, const float *base, float *own) {
    Expert plain = {.wide = op->c};
    const Picked *to = op->data;
    u32 bad;
#ifdef __AVX512F__
    if (m == TILE && to->picked >= 0 && op->count - to->picked >= TILE && (int32_t)op->bits <= (int32_t)op->key)
        return op->c ? pick_tile(op, in, s, base, 1) : pick_tile(op, in, s, base, 0);
#endif
    bad = carefully(&plain, base, in, s, line, m, own);
    if (to->picked >= 0) pick(op, own, m);
    return bad;
}

#endif
