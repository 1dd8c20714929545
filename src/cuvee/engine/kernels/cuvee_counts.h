/* What is looked for among many numbers at once: an order statistic, how unevenly they lie, and their sum without a rounding.
 * Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_COUNTS_H
#define CUVEE_COUNTS_H
#include <stdlib.h>

enum { BINS = 4096 };

/* Counts of keys, all from `low` to `low + range`, in bins of 2^shift; returns the shift. Neighbours go to different tables: equal
 * keys would wait for each other. */
static int tabled(const u32 *keys, int64_t n, u32 low, u32 range, u32 *table) {
    u32 odd[BINS] = {0};
    int shift = 0;
    int64_t i = 0;
    while ((range >> shift) > BINS - 1) shift++;
    memset(table, 0, BINS * sizeof *table);
    for (; i + 1 < n; i += 2) { table[(keys[i] - low) >> shift]++; odd[(keys[i + 1] - low) >> shift]++; }
    if (i < n) table[(keys[i] - low) >> shift]++;
    for (int bin = 0; bin < BINS; bin++) table[bin] += odd[bin];
    return shift;
}

/* Those from `low` to `low + range`, in order; there is room for 16 more, and `to` may be where they lie. */
static int64_t filtered(const u32 *keys, int64_t n, u32 low, u32 range, u32 *to) {
    int64_t next = 0, i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) {
        __m512i key = _mm512_loadu_si512(keys + i);
        __mmask16 here = _mm512_cmple_epu32_mask(_mm512_sub_epi32(key, _mm512_set1_epi32((int)low)), _mm512_set1_epi32((int)range));
        _mm512_storeu_si512(to + next, _mm512_maskz_compress_epi32(here, key));
        next += __builtin_popcount(here);
    }
#endif
    for (; i < n; i++) { u32 key = keys[i]; to[next] = key; next += key - low <= range; }
    return next;
}

/* The bin of a table where position `goal` lies; `less` grows by what lies in those before it. */
static u32 bin_of(const u32 *table, int64_t goal, int64_t *less) {
    u32 bin = 0;
    for (; goal >= *less + table[bin]; bin++) *less += table[bin];
    return bin;
}

/* For each of some positions the key that stands there when keys are sorted: found = {key, less, equal}, or {-1} where there is
 * none. Of what a table of bins leaves, the few in the right one are looked at again. -1 when there is no memory for them. */
int cuvee_select(const u32 *keys, int64_t n, const int64_t *goals, int32_t many, int64_t *found) {
    u32 first[BINS], low = 0xffffffffu, high = 0;
    for (int64_t i = 0; i < n; i++) { low = keys[i] < low ? keys[i] : low; high = keys[i] > high ? keys[i] : high; }
    const int shift = n > 0 ? tabled(keys, n, low, high - low, first) : 0;
    for (int32_t g = 0; g < many; g++, found += 3) {
        if (goals[g] < 0 || goals[g] >= n) { found[0] = -1; continue; }
        int64_t less = 0;
        u32 table[BINS], bin = bin_of(first, goals[g], &less), from = low + (bin << shift), equal = first[bin], *few = 0;
        int64_t held = n;
        for (int left = shift; left > 0;) {
            u32 range = (1u << left) - 1u;
            const u32 *at = few ? few : keys;
            if (!few && !(few = malloc(((size_t)equal + 16) * sizeof *few))) return -1;
            held = filtered(at, held, from, range, few);
            left = tabled(few, held, from, range, table);
            bin = bin_of(table, goals[g], &less);
            from += bin << left;
            equal = table[bin];
        }
        free(few);
        found[0] = from; found[1] = less; found[2] = equal;
    }
    return 0;
}

/* How many of each run of `length` keys are less than `key`: found = {their sum, that of their squares}. A run that is not whole does
 * not count. */
void cuvee_less(const u32 *keys, int64_t n, int64_t length, u32 key, int64_t *found) {
    found[0] = found[1] = 0;
    for (int64_t s = 0; s + length <= n; s += length) {
        u32 less = 0;
        for (int64_t i = s; i < s + length; i++) less += keys[i] < key;
        found[0] += less;
        found[1] += (int64_t)less * less;
    }
}

/* Add `n` (less than 2^31) numbers to a sum of 67 digits of 32 bits, each signed, the first worth 2^-1074; -1 where one is NaN or
 * infinite. */
int cuvee_exact(const double *x, int64_t n, int64_t *digits) {
    for (int64_t i = 0; i < n; i++) {
        u64 bits;
        memcpy(&bits, x + i, 8);
        u32 exponent = (u32)(bits >> 52) & 0x7ffu;
        if (exponent == 0x7ffu) return -1;
        u64 whole = (bits & 0xfffffffffffffu) | (u64)(exponent > 0) << 52;
        u32 at = exponent > 0 ? exponent - 1 : 0;
        unsigned __int128 moved = (unsigned __int128)whole << (at & 31);
        int64_t *to = digits + at / 32, sign = bits >> 63 ? -1 : 1;
        to[0] += sign * (int64_t)(u32)moved;
        to[1] += sign * (int64_t)(u32)(moved >> 32);
        to[2] += sign * (int64_t)(u32)(moved >> 64);
    }
    return 0;
}

#endif
