/* Rows thinned by the ranks of their magnitudes, and notes of what was kept. Included once, by cuvee_kernels.c. */
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

/* One bit for each element: whether it is anything but +0, which is what is left of those that are dropped. */
void cuvee_mark(const float *x, int64_t n, uint8_t *bits) {
    int64_t s = 0;
#ifdef __AVX512F__
    for (; s + 16 <= n; s += 16) {
        __m512i value = _mm512_loadu_si512(x + s);
        __mmask16 kept = _mm512_test_epi32_mask(value, value);
        memcpy(bits + s / 8, &kept, 2);
    }
#endif
    for (; s < n; s += 8) {
        u32 byte = 0;
        for (int k = 0; k < 8 && s + k < n; k++) byte |= (u32)(bits_of(x[s + k]) != 0) << k;
        bits[s / 8] = (uint8_t)byte;
    }
}
void cuvee_keep(float *x, int64_t n, const uint8_t *bits) {
    int64_t s = 0;
#ifdef __AVX512F__
    for (; s + 16 <= n; s += 16) {
        __mmask16 kept;
        memcpy(&kept, bits + s / 8, 2);
        _mm512_storeu_ps(x + s, _mm512_maskz_loadu_ps(kept, x + s));
    }
#endif
    for (; s + 8 <= n; s += 8) {
        u32 byte = bits[s / 8];
        for (int k = 0; k < 8; k++) x[s + k] = byte & 1u << k ? x[s + k] : 0.0f;
    }
    for (; s < n; s++) x[s] = bits[s / 8] >> (s & 7) & 1 ? x[s] : 0.0f;
}

/* How the limits of ranks rise, in steps of 65536: that of rank r is less than `off` from at + by * r. */
typedef struct { float at, by, off; } Rise;
static Rise rise_of(const u64 *limits, int64_t n) {
    double at = (double)limits[0], by = n > 1 ? ((double)limits[n - 1] - at) / (double)(n - 1) : 0.0, off = 0.0;
    FREE_LOOP for (int64_t r = 0; r < n; r++) {
        double apart = (double)limits[r] - (at + by * (double)r), size = apart < 0.0 ? -apart : apart;
        off = size > off ? size : off;
    }
    return (Rise){(float)(at / 65536.0), (float)(by / 65536.0), (float)(off / 65536.0) + 0.1f}; /* and roundings */
}

/* Which entries of a row a random word below the limit of their rank keeps. Entries are counted in narrow bins of magnitudes, 16
 * octaves of them; the bin tells the rank well enough for most words, and of the others it is counted. Whether +0 is kept does
 * not matter. Returns 0 where too much is unsure. */
enum { UNSURE = 48, NARROW = 2048 };
#define SIZE(i) (bits_of(x[i]) & 0x7fffffffu)
static int drawn(const float *x, int64_t n, const u32 *words, const u64 *limits, Rise rise, u16 *bins, uint8_t *kept) {
    u32 counts[2][NARROW], table[NARROW], largest = 0, before = 0;
    const int many = n > 4096 ? NARROW : NARROW / 4, shift = n > 4096 ? 16 : 18;
    for (int k = 0; k < 2; k++) memset(counts[k], 0, sizeof(u32) * (size_t)many);
    FREE_LOOP for (int64_t i = 0; i < n; i++) largest = SIZE(i) > largest ? SIZE(i) : largest;
    const u32 floor = largest > 0x07ffffffu ? largest - 0x07ffffffu : 0;
    FREE_LOOP for (int64_t i = 0; i < n; i++) bins[i] = (u16)((SIZE(i) > floor ? SIZE(i) - floor : 0) >> shift);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) { counts[0][bins[i]]++; counts[1][bins[i + 1]]++; counts[0][bins[i + 2]]++; counts[1][bins[i + 3]]++; }
    for (; i < n; i++) counts[0][bins[i]]++;
    FREE_LOOP for (int j = 0; j < many; j++) counts[0][j] += counts[1][j];
    for (int j = 0; j < many; j++) { counts[1][j] = before; before += counts[0][j]; }
    FREE_LOOP for (int j = 0; j < many; j++) {
        float first = (float)(int32_t)counts[1][j], low = rise.at + rise.by * first - rise.off;
        float high = rise.at + rise.by * (first + (float)(int32_t)counts[0][j]) + rise.off;
        low = low < 0.0f ? 0.0f : low > 65535.0f ? 65535.0f : low;
        table[j] = (u32)(int32_t)low | (u32)(int32_t)(high > 65535.0f ? 65535.0f : high) << 16;
    }
    i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) {
        __m512i both = _mm512_i32gather_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(bins + i))), table, 4);
        __m512i value = _mm512_loadu_si512(x + i);
        __m512i word = _mm512_srli_epi32(_mm512_loadu_si512(words + i), 16), least = _mm512_and_si512(both, _mm512_set1_epi32(0xffff));
        __mmask16 below = _mm512_cmplt_epu32_mask(word, least);
        __mmask16 open = _mm512_mask_cmple_epu32_mask(_mm512_test_epi32_mask(value, value), word, _mm512_srli_epi32(both, 16));
        __m512i told = _mm512_mask_mov_epi32(_mm512_maskz_set1_epi32(open, 2), below, _mm512_set1_epi32(1));
        _mm_storeu_si128((__m128i *)(kept + i), _mm512_cvtepi32_epi8(told));
    }
#endif
    for (; i < n; i++) {
        u32 both = table[bins[i]], word = words[i] >> 16, least = both & 0xffffu;
        kept[i] = word < least ? 1 : word > both >> 16 || bits_of(x[i]) == 0 ? 0 : 2;
    }
    int unsure = 0;
    for (int64_t from = 0; from < n; from += 8) { /* eight at a time: most are none */
        u64 eight = 0;
        memcpy(&eight, kept + from, n - from < 8 ? (size_t)(n - from) : 8);
        if (!(eight &= 0x0202020202020202u)) continue;
        for (; eight; eight &= eight - 1) {
            const int64_t at = from + __builtin_ctzll(eight) / 8;
            u32 rank = 0, key = SIZE(at);
            if (++unsure > UNSURE) return 0;
            for (int64_t j = 0; j < at; j++) rank += SIZE(j) <= key;
            for (int64_t j = at; j < n; j++) rank += SIZE(j) < key;
            kept[at] = words[at] < limits[rank];
        }
    }
    return 1;
}

/* As cuvee_prune, of values that are not divided: ranks are looked for only where they matter. */
static void draw(float *x, int64_t rows, int64_t n, int64_t first, u64 key, const u64 *limits, double *before, double *after,
                 u64 *scratch) {
    u32 *words = (u32 *)(scratch + 2 * n), *ranks = words + rows * n, last[TILE];
    uint8_t *kept = (uint8_t *)scratch + 2 * n;
    const Rise rise = rise_of(limits, n);
    int64_t made = 0;
    for (int64_t row = 0; row < rows; row++, x += n) {
        for (; made < (row + 1) * n; made += TILE) {
            int whole = rows * n - made >= TILE;
            philox(whole ? words + made : last, (u64)(first + made) / TILE, key);
            if (!whole) memcpy(words + made, last, (size_t)(rows * n - made) * sizeof(u32));
        }
        const u32 *own = words + row * n;
        if (before) before = row_sums(x, n, before);
        if (!drawn(x, n, own, limits, rise, (u16 *)scratch, kept)) {
            rank(x, n, ranks, scratch);
            FREE_LOOP for (int64_t i = 0; i < n; i++) kept[i] = own[i] < limits[ranks[i]];
        }
        FREE_LOOP for (int64_t i = 0; i < n; i++) x[i] = kept[i] ? x[i] : 0.0f;
        if (before) after = row_sums(x, n, after);
    }
}

/* Rows of `n` elements, the first of which is element `first` of its tensor (a multiple of 1024): keep what a random word
 * below the limit of its rank keeps, divided by the divisor of its rank. With `before`, sums of magnitudes are made, too. */
void cuvee_prune(float *x, int64_t rows, int64_t n, int64_t first, u64 key, const u64 *limits, const float *divisors,
                 double *before, double *after, u64 *scratch) {
    if (!divisors && n > 0 && limits[0] <= limits[n - 1]) {
        draw(x, rows, n, first, key, limits, before, after, scratch);
        return;
    }
    u32 *ranks = (u32 *)(scratch + 2 * n), words[TILE];
    for (int64_t row = 0; row < rows; row++) rank(x + row * n, n, ranks + row * n, scratch);
    if (before) for (int64_t row = 0; row < rows; row++) before = row_sums(x + row * n, n, before);
    u32 *most = (u32 *)scratch; /* the largest word that keeps; halves of the limits' size are gathered faster */
    int none = 0;
    for (int64_t i = 0; i < n; i++) {
        most[i] = limits[i] > 0xffffffffu ? 0xffffffffu : (u32)limits[i] - 1;
        none |= limits[i] == 0;
    }
    for (int64_t s = 0; s < rows * n; s += TILE) {
        int m = rows * n - s < TILE ? (int)(rows * n - s) : TILE;
        philox(words, (u64)(first + s) / TILE, key);
        float *value = x + s;
        const u32 *place = ranks + s;
        if (none) { SOME value[i] = words[i] < limits[place[i]] ? value[i] : 0.0f; }
        else { SOME value[i] = words[i] <= most[place[i]] ? value[i] : 0.0f; }
        if (divisors) { SOME value[i] = value[i] / divisors[place[i]]; }
    }
    if (before) for (int64_t row = 0; row < rows; row++) after = row_sums(x + row * n, n, after);
}

#endif
