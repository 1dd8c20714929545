/* Rows thinned by the ranks of their magnitudes, as tiles come by. Included once, by cuvee_kernels.c. */
#ifndef CUVEE_RANKS_H
#define CUVEE_RANKS_H

/* Ranks of a row by magnitude, equal ones in order: a radix sort of (magnitude, place) by the upper 22 bits, after which
 * little is out of order; where much is, by all bits. */
static void scatter(const u64 *from, u64 *to, u32 *places, int shift, int64_t n) {
    u32 sum = 0;
    for (int j = 0; j < 2048; j++) { u32 c = places[j]; places[j] = sum; sum += c; }
    for (int64_t i = 0; i < n; i++) to[places[from[i] >> shift & 2047]++] = from[i];
}
static int inserted(u64 *x, int64_t n) {
    int64_t moves = 8 * n;
    for (int64_t i = 1; i < n; i++) {
        u64 own = x[i];
        int64_t j = i;
        while (j > 0 && x[j - 1] > own) { x[j] = x[j - 1]; j--; }
        x[j] = own;
        if ((moves -= i - j) < 0) return 0;
    }
    return 1;
}
/* Rows of up to 8192: 17 bits of the magnitude, from 32 octaves below the largest on, and 13 of the place in one word,
 * sorted in two steps; what those bits leave out of order is put right. Returns 0 where that is much. Lower digits are
 * mostly equal, and a count waits for the one before it: each quarter of the row has counts of its own. */
enum { SHORT = 8192 };
#define LOWER(word) ((word) >> 13 & 255)
#define UPPER(word) ((word) >> 21)
static int short_ranks(const float *x, int n, u32 *ranks, u32 *from) {
    u32 low[4][256] = {{0}}, high[2][512] = {{0}}, *to = from + n, largest = 0, at_low = 0, at_high = 0;
    FREE_LOOP for (int i = 0; i < n; i++) {
        u32 key = bits_of(x[i]) & 0x7fffffffu;
        largest = key > largest ? key : largest;
    }
    u32 floor = largest > 0x0fffffffu ? largest - 0x0fffffffu : 0;
    FREE_LOOP for (int i = 0; i < n; i++) {
        u32 key = bits_of(x[i]) & 0x7fffffffu, above = key > floor ? key - floor : 0;
        to[i] = (above >> 11) << 13 | (u32)i;
    }
    const int part = n / 4;
    const u32 *second = to + part, *third = second + part, *last = third + part;
    int i;
    for (i = 0; i < part; i++) {
        low[0][LOWER(to[i])]++; low[1][LOWER(second[i])]++; low[2][LOWER(third[i])]++; low[3][LOWER(last[i])]++;
        high[0][UPPER(to[i])]++; high[1][UPPER(second[i])]++; high[0][UPPER(third[i])]++; high[1][UPPER(last[i])]++;
    }
    for (; last + i < to + n; i++) { low[3][LOWER(last[i])]++; high[1][UPPER(last[i])]++; }
    for (int j = 0; j < 256; j++)
        for (int k = 0; k < 4; k++) { u32 own = low[k][j]; low[k][j] = at_low; at_low += own; }
    for (int j = 0; j < 512; j++) { u32 own = high[0][j] + high[1][j]; high[0][j] = at_high; at_high += own; }
    for (i = 0; i < part; i++) {
        from[low[0][LOWER(to[i])]++] = to[i]; from[low[1][LOWER(second[i])]++] = second[i];
        from[low[2][LOWER(third[i])]++] = third[i]; from[low[3][LOWER(last[i])]++] = last[i];
    }
    for (; last + i < to + n; i++) from[low[3][LOWER(last[i])]++] = last[i];
    for (i = 0; i < n; i++) to[high[0][UPPER(from[i])]++] = from[i];
    u32 before = 0;
    int64_t moves = 2 * (int64_t)n;
    for (i = 0; i < n; i++) {
        u32 place = to[i] & (SHORT - 1), key = bits_of(x[place]) & 0x7fffffffu;
        int j = i;
        if (key < before) {
            for (; j > 0 && (bits_of(x[to[j - 1] & (SHORT - 1)]) & 0x7fffffffu) > key; j--) {
                to[j] = to[j - 1];
                ranks[to[j] & (SHORT - 1)] = (u32)j;
            }
            to[j] = place;
            if ((moves -= i - j) < 0) return 0;
        } else before = key;
        ranks[place] = (u32)j;
    }
    return 1;
}
static void rank(const float *x, int64_t n, u32 *ranks, u64 *from) {
    if (n <= SHORT && short_ranks(x, (int)n, ranks, (u32 *)from)) return;
    u32 counts[3][2048] = {{0}};
    u64 *to = from + n;
    for (int64_t i = 0; i < n; i++) {
        u32 key = bits_of(x[i]) & 0x7fffffffu;
        from[i] = (u64)key << 32 | (u64)i;
        counts[1][key >> 9 & 2047]++; counts[2][key >> 20]++;
    }
    scatter(from, to, counts[1], 41, n);
    scatter(to, from, counts[2], 52, n);
    if (!inserted(from, n)) {
        memset(counts, 0, sizeof counts);
        for (int64_t i = 0; i < n; i++) {
            u32 key = bits_of(x[i]) & 0x7fffffffu;
            to[i] = (u64)key << 32 | (u64)i;
            counts[0][key & 2047]++; counts[1][key >> 11 & 2047]++; counts[2][key >> 22]++;
        }
        scatter(to, from, counts[0], 32, n);
        scatter(from, to, counts[1], 43, n);
        scatter(to, from, counts[2], 54, n);
    }
    for (int64_t i = 0; i < n; i++) ranks[(u32)from[i]] = (u32)i;
}

/* A stage that thins rows of `length` by rank. Rows are gathered from tiles with the random words of `key`; of each that is
 * whole, an entry is kept where its word is not above that of its rank in `most`, which rises. What is kept is noted in `bits`
 * (zeros before), or written to `out`, divided by the divisor of its rank where there are divisors. With `before`, sums of
 * magnitudes go there and to `after`. `values` and `words` hold a row and two tiles, `scratch` 20 bytes for each of a row,
 * and 64. */
typedef struct {
    int64_t length, rows, held; /* rows that were done, values that are gathered */
    u64 key;
    const u32 *most;
    const float *divisors;
    u64 *bits;
    float *out;
    double *before, *after;
    float *values;
    u32 *words;
    u64 *scratch;
    float at, by, off, unused;
} Ranked;

/* How words rise with ranks, in steps of 65536: that of rank r is less than `off` from at + by * r. */
static void rise(Ranked *all) {
    const u32 *most = all->most;
    const int64_t n = all->length;
    double at = (double)most[0], by = n > 1 ? ((double)most[n - 1] - at) / (double)(n - 1) : 0.0, off = 0.0;
    FREE_LOOP for (int64_t r = 0; r < n; r++) {
        double apart = (double)most[r] - (at + by * (double)r), size = apart < 0.0 ? -apart : apart;
        off = size > off ? size : off;
    }
    all->at = (float)(at / 65536.0); all->by = (float)(by / 65536.0); all->off = (float)(off / 65536.0) + 0.1f; /* and roundings */
}

/* Which entries of a row are kept, a bit for each. Entries are counted in narrow bins of magnitudes, 16 octaves of them; the
 * bin tells the rank well enough for most words; of the others it is counted. Whether +0 is kept does not matter. Returns
 * 0 where too much is unsure. */
enum { NARROW = 2048, UNSURE = 48, COUNTED = 65535 };
#define SIZE(i) (bits_of(x[i]) & 0x7fffffffu)
/* How many magnitudes of a row are less than one; a bit in `equal` for each that is the same. */
static inline u16 compared(const float *x, int n, u32 key, u32 *less) {
    u32 below = 0, same = 0;
    for (int k = 0; k < n; k++) {
        below += SIZE(k) < key;
        same |= (u32)(SIZE(k) == key) << k;
    }
    *less += below;
    return (u16)same;
}
static u32 below(const float *x, int64_t n, u32 key, u16 *equal) {
    int64_t i = 0;
    u32 less = 0;
#ifdef __AVX512F__
    const __m512i own = _mm512_set1_epi32((int)key), sizes = _mm512_set1_epi32(0x7fffffff);
    for (; i + 16 <= n; i += 16) {
        __m512i size = _mm512_and_si512(_mm512_loadu_si512(x + i), sizes);
        less += (u32)__builtin_popcount(_mm512_cmplt_epi32_mask(size, own));
        equal[i / 16] = (u16)_mm512_cmpeq_epi32_mask(size, own);
    }
#endif
    for (; i + 16 <= n; i += 16) equal[i / 16] = compared(x + i, 16, key, &less);
    if (i < n) equal[i / 16] = compared(x + i, (int)(n - i), key, &less);
    return less;
}
/* Settles open entries, `count` of them in rising order: those of one magnitude share one look at the row, since the rank of
 * each is what is less and what is equal and before. */
static void settle(const Ranked *all, const float *x, int64_t n, const u32 *words, u16 *open, int count, u16 *kept) {
    u16 equal[(COUNTED + 1) / 16];
    while (count) {
        const u32 key = SIZE(open[0]);
        u32 rank = below(x, n, key, equal);
        int64_t seen = 0;
        int left = 0;
        for (int j = 0; j < count; j++) {
            const int64_t at = open[j];
            if (SIZE(at) != key) { open[left++] = (u16)at; continue; }
            for (; seen < at / 16; seen++) rank += (u32)__builtin_popcount(equal[seen]);
            const u32 before = (u32)__builtin_popcount(equal[seen] & ((1u << (at & 15)) - 1));
            kept[at / 16] |= (u16)((u32)(words[at] <= all->most[rank + before]) << (at & 15));
        }
        count = left;
    }
}
/* For each bin the words that surely keep are below the lower half, those that surely do not above the upper one. */
static void bounds(const Ranked *all, u16 counts[4][NARROW], int many, u32 *table) {
    u32 firsts[NARROW], before = 0;
    FREE_LOOP for (int j = 0; j < many; j++) table[j] = (u32)counts[0][j] + counts[1][j] + counts[2][j] + counts[3][j];
    for (int j = 0; j < many; j += 4) {
        u32 one = table[j], two = one + table[j + 1], three = two + table[j + 2];
        firsts[j] = before; firsts[j + 1] = before + one; firsts[j + 2] = before + two; firsts[j + 3] = before + three;
        before += three + table[j + 3];
    }
    FREE_LOOP for (int j = 0; j < many; j++) {
        float first = (float)(int32_t)firsts[j], low = all->at + all->by * first - all->off;
        float high = all->at + all->by * (first + (float)(int32_t)table[j]) + all->off;
        low = low < 0.0f ? 0.0f : low > 65535.0f ? 65535.0f : low;
        table[j] = (u32)(int32_t)low | (u32)(int32_t)(high > 65535.0f ? 65535.0f : high) << 16;
    }
}
/* A bit for each entry whose word surely keeps it; and for each that is open. */
static void told(const float *x, int64_t n, const u32 *words, const u16 *bins, const u32 *table, u16 *kept, u16 *open) {
    int64_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) {
        __m512i both = _mm512_i32gather_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(bins + i))), table, 4);
        __m512i value = _mm512_loadu_si512(x + i), word = _mm512_srli_epi32(_mm512_loadu_si512(words + i), 16);
        __mmask16 below = _mm512_cmplt_epu32_mask(word, _mm512_and_si512(both, _mm512_set1_epi32(0xffff)));
        __mmask16 unless = _mm512_mask_cmple_epu32_mask(_mm512_test_epi32_mask(value, value), word, _mm512_srli_epi32(both, 16));
        kept[i / 16] = (u16)below;
        open[i / 16] = (u16)(unless & ~below);
    }
#endif
    for (; i < n; i += 16) {
        u32 below = 0, unless = 0;
        for (int k = 0; k < 16 && i + k < n; k++) {
            const u32 both = table[bins[i + k]], word = words[i + k] >> 16;
            below |= (u32)(word < (both & 0xffffu)) << k;
            unless |= (u32)(word <= both >> 16 && bits_of(x[i + k]) != 0) << k;
        }
        kept[i / 16] = (u16)below;
        open[i / 16] = (u16)(unless & ~below);
    }
}
static int drawn(const Ranked *all, const float *x, const u32 *words, u16 *bins, u16 *kept) {
    u16 counts[4][NARROW];
    u32 table[NARROW], largest = 0;
    const int64_t n = all->length;
    const int many = n > 4096 ? NARROW : NARROW / 4, shift = n > 4096 ? 16 : 18;
    if (n > COUNTED) return 0;
    for (int k = 0; k < 4; k++) memset(counts[k], 0, sizeof(u16) * (size_t)many);
    FREE_LOOP for (int64_t i = 0; i < n; i++) largest = SIZE(i) > largest ? SIZE(i) : largest;
    const u32 floor = largest > 0x07ffffffu ? largest - 0x07ffffffu : 0;
    FREE_LOOP for (int64_t i = 0; i < n; i++) bins[i] = (u16)((SIZE(i) > floor ? SIZE(i) - floor : 0) >> shift);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        u64 four;
        memcpy(&four, bins + i, 8);
        counts[0][four & 0xffff]++; counts[1][four >> 16 & 0xffff]++; counts[2][four >> 32 & 0xffff]++; counts[3][four >> 48]++;
    }
    for (; i < n; i++) counts[0][bins[i]]++;
    bounds(all, counts, many, table);
    u16 *open = kept + (n + 63) / 64 * 4;
    memset(open + (n - 1) / 64 * 4, 0, 8);
    told(x, n, words, bins, table, kept, open);
    u16 unsure[UNSURE];
    int count = 0;
    for (i = 0; i < n; i += 64) {
        u64 these;
        memcpy(&these, open + i / 16, 8);
        for (; these; these &= these - 1) {
            if (count == UNSURE) return 0;
            unsure[count++] = (u16)(i + __builtin_ctzll(these));
        }
    }
    settle(all, x, n, words, unsure, count, kept);
    return 1;
}

/* `x` where its bit is set, else 0; bits are in words of 16. */
static void thinned(float *x, const u16 *kept, int64_t n) {
    int64_t whole = n & ~(int64_t)15;
    for (int64_t i = 0; i < whole; i += 16) *(Lanes *)(x + i) = where(*(const Lanes *)(x + i), kept[i / 16]);
    for (int k = 0; k < (int)(n & 15); k++) x[whole + k] = kept[whole / 16] >> k & 1 ? x[whole + k] : 0.0f;
}
/* Bits joined to others that end at bit `at`. */
static void noted(u64 *to, int64_t at, const u16 *kept, int64_t n) {
    to += at / 64;
    const int shift = (int)(at & 63);
    for (int64_t i = 0; i < n; i += 64, to++) {
        u64 own = 0;
        memcpy(&own, kept + i / 16, n - i < 64 ? (size_t)((n - i + 15) / 16) * 2 : 8);
        if (n - i < 64) own &= ((u64)1 << (n - i)) - 1;
        to[0] |= own << shift;
        if (shift && own >> (64 - shift)) to[1] |= own >> (64 - shift);
    }
}

static void row_done(Ranked *all, float *x, const u32 *words) {
    const int64_t n = all->length, row = all->rows++;
    u32 *ranks = (u32 *)(all->scratch + 2 * n);
    u16 *kept = (u16 *)ranks;
    if (all->before) all->before = row_sums(x, n, all->before);
    if (all->divisors) {
        float *out = all->out + row * n;
        rank(x, n, ranks, all->scratch);
        FREE_LOOP for (int64_t i = 0; i < n; i++) {
            float value = words[i] <= all->most[ranks[i]] ? x[i] : 0.0f;
            out[i] = value / all->divisors[ranks[i]];
        }
        return;
    }
    if (!drawn(all, x, words, (u16 *)all->scratch, kept)) {
        rank(x, n, ranks, all->scratch);
        kept = (u16 *)all->scratch;
        for (int64_t i = 0; i < n; i += 16) {
            u32 own = 0;
            for (int k = 0; k < 16 && i + k < n; k++) own |= (u32)(words[i + k] <= all->most[ranks[i + k]]) << k;
            kept[i / 16] = (u16)own;
        }
    }
    if (all->bits) noted(all->bits, row * n, kept, n);
    if (!all->before && !all->out) return;
    thinned(x, kept, n);
    if (all->before) all->after = row_sums(x, n, all->after);
    if (all->out) memcpy(all->out + row * n, x, (size_t)n * 4);
}

/* A tile more: the rows that it ends are done. */
static void ranked(Ranked *all, const float *a, int64_t line, int m) {
    int64_t done = 0;
    if (!all->rows && !all->held) rise(all);
    memcpy(all->values + all->held, a, (size_t)m * 4);
    philox(all->words + all->held, (u64)line, all->key);
    all->held += m;
    for (; all->held - done >= all->length; done += all->length) row_done(all, all->values + done, all->words + done);
    if (!done) return;
    all->held -= done;
    memmove(all->values, all->values + done, (size_t)all->held * 4);
    memmove(all->words, all->words + done, (size_t)all->held * 4);
}

/* `a` where a bit of the tensor is set, else 0; behind the `m` elements of a tile there need not be bits. */
static void staying(float *to, const float *a, const u16 *bits, int64_t line, int m) {
    int i = 0;
    bits += line * (TILE / 16);
    for (; i < m; i += 16) *(Lanes *)(to + i) = where(*(const Lanes *)(a + i), bits[i / 16]);
    memset(to + i, 0, (size_t)(TILE - i) * 4);
}

#endif
