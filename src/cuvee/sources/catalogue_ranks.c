/* Magnitudes of float32 differences, counted in bins; and in some of these bins one by one.

   The reference is `Reference` in catalogue_bins.py. A bin holds 512 magnitudes, from 2^-40 to 256; 0, what is too small
   and what is too large have one each. */

#include <stdint.h>
#include <string.h>

enum { TILE = 512, FINE = 9, LEAST = (127 - 40) << 14, BINS = 48 << 14 };
#define ALIGNED __attribute__((aligned(64)))

static inline uint32_t bin_of(uint32_t key) {
    uint32_t bin = key >> FINE;
    bin = bin < LEAST ? LEAST - 1 : bin;
    bin = bin > LEAST + BINS ? LEAST + BINS : bin;
    return key ? bin - LEAST + 2 : 0;
}

/* Magnitudes of a tile, and their bins; returns how many elements it has. */
static int64_t tile_of(const float *base, const float *tuned, int64_t first, int64_t elements, uint32_t *keys,
                       uint32_t *bins) {
    int64_t here = elements - first < TILE ? elements - first : TILE;
    float apart[TILE] ALIGNED;
    if (here == TILE)
        for (int i = 0; i < TILE; i++) apart[i] = tuned[first + i] - base[first + i];
    else
        for (int64_t i = 0; i < here; i++) apart[i] = tuned[first + i] - base[first + i];
    memcpy(keys, apart, (size_t)here * sizeof *keys);
    for (int64_t i = 0; i < here; i++) keys[i] &= 0x7FFFFFFFu;
    for (int64_t i = 0; i < here; i++) bins[i] = bin_of(keys[i]);
    return here;
}

void cuvee_binned(const float *base, const float *tuned, int64_t elements, uint32_t *counts) {
    uint32_t keys[TILE] ALIGNED, bins[TILE] ALIGNED;
    for (int64_t first = 0; first < elements; first += TILE) {
        int64_t here = tile_of(base, tuned, first, elements, keys, bins);
        for (int64_t i = 0; i < here; i++) counts[bins[i]]++;
    }
}

/* `rows`: of each bin the row of `counts` where its magnitudes are counted by their lower bits, or -1. */
void cuvee_refined(const float *base, const float *tuned, int64_t elements, const int16_t *rows, uint32_t *counts) {
    uint32_t keys[TILE] ALIGNED, bins[TILE] ALIGNED;
    for (int64_t first = 0; first < elements; first += TILE) {
        int64_t here = tile_of(base, tuned, first, elements, keys, bins);
        for (int64_t i = 0; i < here; i++) {
            int32_t row = rows[bins[i]];
            if (row >= 0) counts[row << FINE | (keys[i] & ((1u << FINE) - 1))]++;
        }
    }
}
