/* Magnitudes of a change gathered between two others, the change made from its stored input in the same step. The same counts and
 * keys as PICK of a difference. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_PICKS_H
#define CUVEE_PICKS_H

/* A whole tile of input `in` (bfloat16, or `wide`: float32) less `base`; there is room for all of it. */
#ifdef __AVX512F__
static inline __attribute__((always_inline)) u32 pick_tile(const Op *op, const void *in, int64_t s, const float *base, int wide) {
    Picked *to = op->data;
    u32 *next = to->keys + to->picked;
    const __m512i exponent = _mm512_set1_epi32(0x7f800000), sizes = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    const __m512i low = _mm512_set1_epi32((int)op->bits), high = _mm512_set1_epi32((int)(u32)op->key);
    const __m512i after = _mm512_add_epi32(low, one), apart = _mm512_sub_epi32(high, after); /* between: key - after < apart */
    const __mmask16 any = op->bits < (u32)op->key ? 0xffff : 0;
    __m512i less = _mm512_setzero_si512(), at_low = less, at_high = less;
    __mmask16 bad = 0;
    for (int i = 0; i < TILE; i += 16) {
        __m512i bits = wide ? _mm512_loadu_si512((const float *)in + s + i) : (__m512i)WIDENED((const u16 *)in + s + i);
        bad |= _mm512_cmpge_epu32_mask(_mm512_and_si512(bits, exponent), exponent);
        __m512 change = _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_loadu_ps(base + i));
        __m512i key = _mm512_and_si512(_mm512_castps_si512(change), sizes);
        less = _mm512_mask_add_epi32(less, _mm512_cmplt_epu32_mask(key, low), less, one);
        at_low = _mm512_mask_add_epi32(at_low, _mm512_cmpeq_epu32_mask(key, low), at_low, one);
        at_high = _mm512_mask_add_epi32(at_high, _mm512_cmpeq_epu32_mask(key, high), at_high, one);
        __mmask16 within = _mm512_mask_cmplt_epu32_mask(any, _mm512_sub_epi32(key, after), apart);
        _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(within, key)); /* none, too: a branch would cost more */
        next += __builtin_popcount(within);
    }
    to->less += _mm512_reduce_add_epi32(less); to->low += _mm512_reduce_add_epi32(at_low); to->high += _mm512_reduce_add_epi32(at_high);
    to->picked = next - to->keys;
    return bad != 0;
}
#endif

static u32 pick_change(const Op *op, const void *in, int64_t s, int64_t line, int m, const float *base, float *own) {
    Expert plain = {.wide = op->c};
    const Picked *to = op->data;
    u32 bad;
#ifdef __AVX512F__
    if (m == TILE && to->picked >= 0 && op->count - to->picked >= TILE)
        return op->c ? pick_tile(op, in, s, base, 1) : pick_tile(op, in, s, base, 0);
#endif
    bad = carefully(&plain, base, in, s, line, m, own);
    if (to->picked >= 0) pick(op, own, m);
    return bad;
}

#endif
