/* What a pass that looks for a threshold knows already, kept for those after it: a bit for each element that is surely among the
 * largest, a bit for each that may be, and the magnitudes of these in the order of their bits. Once the threshold is known
 * the second ones are settled, and nobody has to make again what was judged by. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_SIFTED_H
#define CUVEE_SIFTED_H

/* Bits of a tile are set, `key` bytes behind the data in `sure`, and in `open` behind the `d` tiles of those; open is what lies from `low` (at least 1) to `high`. Counted are magnitudes below
 * `low` (`less`) and zeros (`low` of Picked). Whether all are numbers is returned. */
static u32 sift(const Op *op, const float *a, int64_t line, int m) {
    Picked *to = op->data;
    u16 *sure = (u16 *)((char *)op->data + (int64_t)op->key) + line * (TILE / 16), *open = sure + (int64_t)op->d * (TILE / 16);
    const int32_t low = (int32_t)op->bits, high = op->c;
    int64_t zeros = 0, less = 0;
    int32_t largest = 0;
    if (op->count - to->picked < TILE) to->picked = -1; /* too many, or nearly so */
    const int keeps = to->picked >= 0;
    u32 *next = to->keys + (keeps ? to->picked : 0);
    if (m < TILE) { memset(sure, 0, TILE / 8); memset(open, 0, TILE / 8); }
#ifdef __AVX512F__
    const __m512i sizes = _mm512_set1_epi32(0x7fffffff), first = _mm512_set1_epi32(low), roof = _mm512_set1_epi32(high);
    const __m512i apart = _mm512_set1_epi32(high - low);
    __m512i most = _mm512_setzero_si512(), below = most, none = most;
    for (int i = 0; i < m; i += 16) {
        const __mmask16 there = m - i < 16 ? (__mmask16)((1u << (m - i)) - 1) : 0xffff;
        const __m512i key = _mm512_and_si512(_mm512_maskz_loadu_epi32(there, a + i), sizes), above = _mm512_sub_epi32(key, first);
        const __mmask16 within = _mm512_cmple_epu32_mask(above, apart), over = _mm512_cmpgt_epi32_mask(key, roof);
        most = _mm512_max_epi32(most, key);
        below = _mm512_add_epi32(below, _mm512_srai_epi32(above, 31)); /* -1 where it is less */
        none = _mm512_add_epi32(none, _mm512_srai_epi32(_mm512_sub_epi32(key, _mm512_set1_epi32(1)), 31));
        memcpy(sure + i / 16, &over, 2);
        memcpy(open + i / 16, &within, 2);
        if (keeps) _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(within, key));
        next += __builtin_popcount(within);
    }
    const int rest = -m & 15; /* zeros that stand for what is not there */
    largest = _mm512_reduce_max_epi32(most);
    less = -(int64_t)_mm512_reduce_add_epi32(below) - rest;
    zeros = -(int64_t)_mm512_reduce_add_epi32(none) - rest;
#else
    for (int i = 0; i < m; i += 16) {
        u32 over = 0, within = 0;
        for (int j = 0; j < 16 && i + j < m; j++) {
            const int32_t key = (int32_t)(bits_of(a[i + j]) & 0x7fffffffu);
            largest = key > largest ? key : largest;
            less += key < low;
            zeros += key == 0;
            over |= (u32)(key > high) << j;
            if (key >= low && key <= high) { within |= 1u << j; if (keeps) *next = (u32)key; next++; }
        }
        sure[i / 16] = (u16)over;
        open[i / 16] = (u16)within;
    }
#endif
    to->less += less;
    to->low += zeros;
    if (keeps) to->picked = next - to->keys;
    return largest > 0x7f800000;
}

/* Of `words` times 64 elements those that are open become sure where their magnitude is above `cut`, and the first `ties` of those
 * that have it. */
void cuvee_settle(u64 *sure, const u64 *open, int64_t words, const u32 *keys, u32 cut, int64_t ties) {
    for (int64_t w = 0; w < words; w++)
        for (u64 left = open[w]; left; left &= left - 1) {
            const u32 key = *keys++;
            const u64 kept = key > cut || (key == cut && ties-- > 0);
            sure[w] |= kept ? left & -left : 0;
        }
}

#endif
