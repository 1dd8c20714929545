/* What is looked for among many numbers at once: an order statistic, how unevenly they lie, and their sum without a rounding.
 * Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_COUNTS_H
#define CUVEE_COUNTS_H
#include <stdlib.h>

enum { BINS = 4096 };

/* The value at position `goal` of the sorted keys; found = {key, less, equal}; -1 when there is none. Of what a table of
 * bins leaves, the few in the right one are looked at again. */
int cuvee_select(const u32 *keys, int64_t n, int64_t goal, int64_t *found) {
    int64_t less = 0, equal = 0, left = n;
    const u32 *from = keys;
    u32 *few = 0, low = 0xffffffffu, high = 0;
    if (goal < 0 || goal >= n) return -1;
    for (int64_t i = 0; i < n; i++) { low = keys[i] < low ? keys[i] : low; high = keys[i] > high ? keys[i] : high; }
    for (int shift = 32; shift > 0;) {
        u32 table[BINS + 1] = {0}, range = high - low, bin = 0;
        for (shift = 0; (range >> shift) > BINS - 1;) shift++;
        for (int64_t i = 0; i < left; i++) table[from[i] - low <= range ? (from[i] - low) >> shift : BINS]++;
        for (; goal >= less + table[bin]; bin++) less += table[bin];
        equal = table[bin];
        low += bin << shift;
        high = low + ((1u << shift) - 1u);
        if (shift > 0 && !few && (few = malloc(((size_t)equal + 1) * sizeof *few))) {
            int64_t next = 0; /* whatever comes after them is written over, and once behind the last */
            for (int64_t i = 0; i < left; i++) { few[next] = from[i]; next += from[i] - low <= high - low; }
            from = few;
            left = next;
        }
    }
    free(few);
    found[0] = low; found[1] = less; found[2] = equal;
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
