/* What the machine's operations are made of: tiles, conversions between float types, random words, sums of a tile.
 * Included once, by cuvee_kernels.c. Knows no programs.
 */
#ifndef CUVEE_TILES_H
#define CUVEE_TILES_H
#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define TILE 1024
#ifdef __clang__
#define FREE_LOOP _Pragma("clang loop vectorize(assume_safety)")
#else
#define FREE_LOOP _Pragma("GCC ivdep") /* a register may be read and written at the same element */
#endif
#define EACH FREE_LOOP for (int i = 0; i < TILE; i++)
#define SOME FREE_LOOP for (int i = 0; i < m; i++)

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline u32 bits_of(float f) { u32 b; memcpy(&b, &f, 4); return b; }
static inline float float_of(u32 b) { float f; memcpy(&f, &b, 4); return f; }
static inline float from_bf16(u16 x) { return float_of((u32)x << 16); }
static inline u16 to_bf16(float f) {
    u32 b = bits_of(f), r = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return (b & 0x7fffffffu) > 0x7f800000u ? (u16)0x7fc0 : (u16)r;
}
static inline float size_of(float f) { return float_of(bits_of(f) & 0x7fffffffu); }
static inline float sign_of(float f) { return (float)((f > 0.0f) - (f < 0.0f)); }

static void widen_f16(float *to, const u16 *from, int m) {
    int i = 0;
#ifdef __F16C__
    for (; i + 8 <= m; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < m; i++) { _Float16 h; memcpy(&h, from + i, 2); to[i] = (float)h; }
}
static void narrow_f16(u16 *to, const float *from, int m) {
    int i = 0;
#ifdef __F16C__
    for (; i + 8 <= m; i += 8) _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < m; i++) { _Float16 h = (_Float16)from[i]; memcpy(to + i, &h, 2); }
}

/* The tile that comes next is fetched from memory while this one is worked on. */
static inline void fetch(const void *next, int64_t nbytes) {
    for (int64_t at = 0; at < nbytes; at += 64) __builtin_prefetch((const char *)next + at);
}

/* An 8-bit float is the front of a 16-bit one; with 4 bits of exponent it is 2^8 times that. */
static void widen_f8(float *to, const uint8_t *from, int m, int e4m3) {
    u16 half[TILE];
    float factor = e4m3 ? 256.0f : 1.0f;
    if (e4m3) SOME half[i] = (u16)((from[i] & 0x80) << 8 | (from[i] & 0x7f) << 7);
    else SOME half[i] = (u16)(from[i] << 8);
    widen_f16(to, half, m);
    SOME to[i] *= factor;
}

static u32 bad8(const uint8_t *x, int m, uint8_t exponent) {
    uint8_t found = 0;
    SOME found |= (uint8_t)((x[i] & exponent) == exponent);
    return found;
}
static u32 bad16(const u16 *x, int m, u16 exponent) {
    u16 found = 0;
    SOME found |= (u16)((x[i] & exponent) == exponent);
    return found;
}
static u32 bad32(const float *x, int m) {
    u32 found = 0;
    SOME found |= (u32)((bits_of(x[i]) & 0x7f800000u) == 0x7f800000u);
    return found;
}

/* Philox4x32-10: element e takes word (e >> 8) & 3 of counter (e >> 10) * 256 + (e & 255). */
#if defined(__AVX512F__) || defined(__AVX2__)
#ifdef __AVX512F__
typedef __m512i wide;
#define LANES 8
#define WIDE(name) _mm512_##name
#define _mm512_set1_epi64x _mm512_set1_epi64
#define XOR3(x, y, z) _mm512_ternarylogic_epi64(x, y, z, 0x96)
#define ODD_OVER_EVEN(even, odd) _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))
#define PUT(to, x) _mm512_storeu_si512(to, x)
#define BELOW(to, x, limit) do { u16 less = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32((int)(limit))); memcpy(to, &less, 2); } while (0)
#else
typedef __m256i wide;
#define LANES 4
#define WIDE(name) _mm256_##name
#define XOR3(x, y, z) _mm256_xor_si256(_mm256_xor_si256(x, y), z)
#define ODD_OVER_EVEN(even, odd) _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa)
#define PUT(to, x) _mm256_storeu_si256((__m256i *)(to), x)
#define TURNED(x) _mm256_xor_si256(x, _mm256_set1_epi32((int)0x80000000)) /* compared without a sign */
#define BELOW(to, x, limit) \
    *(to) = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(TURNED(_mm256_set1_epi32((int)(limit))), TURNED(x))))
#endif
/* Words lie in the lower halves of 64-bit lanes (a multiplication looks at nothing else), what is above is rubbish;
 * even counters are in `e`, odd ones in `o`. They are put where `words` are, or else compared with `below`: a bit for each. */
static inline __attribute__((always_inline)) void philox_rounds(u32 *words, uint8_t *bits, u32 below, u64 tile, u64 key) {
    const wide m0 = WIDE(set1_epi64x)(0xD2511F53), m1 = WIDE(set1_epi64x)(0xCD9E8D57), none = WIDE(set1_epi64x)(0);
    u64 begin[LANES];
    for (int j = 0; j < LANES; j++) begin[j] = tile * 256 + 2 * (u64)j;
    wide even, odd, one = WIDE(set1_epi64x)(1), step = WIDE(set1_epi64x)(2 * LANES);
    memcpy(&even, begin, sizeof even);
    for (int j = 0; j < 256; j += 2 * LANES, even = WIDE(add_epi64)(even, step)) {
        odd = WIDE(add_epi64)(even, one);
        u32 k0 = (u32)key, k1 = (u32)(key >> 32);
        wide ea = even, eb = WIDE(srli_epi64)(even, 32), ec = none, ed = none;
        wide oa = odd, ob = WIDE(srli_epi64)(odd, 32), oc = none, od = none;
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            wide ka = WIDE(set1_epi64x)((long long)k0), kc = WIDE(set1_epi64x)((long long)k1);
            wide ep = WIDE(mul_epu32)(ea, m0), eq = WIDE(mul_epu32)(ec, m1);
            wide op = WIDE(mul_epu32)(oa, m0), oq = WIDE(mul_epu32)(oc, m1);
            ea = XOR3(WIDE(srli_epi64)(eq, 32), eb, ka); ec = XOR3(WIDE(srli_epi64)(ep, 32), ed, kc); eb = eq; ed = ep;
            oa = XOR3(WIDE(srli_epi64)(oq, 32), ob, ka); oc = XOR3(WIDE(srli_epi64)(op, 32), od, kc); ob = oq; od = op;
        }
        wide found[4] = {ODD_OVER_EVEN(ea, oa), ODD_OVER_EVEN(eb, ob), ODD_OVER_EVEN(ec, oc), ODD_OVER_EVEN(ed, od)};
        for (int q = 0; q < 4; q++) {
            if (words) PUT(words + 256 * q + j, found[q]);
            else BELOW(bits + (256 * q + j) / 8, found[q], below);
        }
    }
}
static void philox(u32 *words, u64 tile, u64 key) { philox_rounds(words, 0, 0, tile, key); }
static void draw_bits(uint8_t *bits, u64 tile, u64 key, u32 below) { philox_rounds(0, bits, below, tile, key); }
#else
static void philox(u32 *words, u64 tile, u64 key) {
    u32 *a = words, *b = words + 256, *c = words + 512, *d = words + 768, k0 = (u32)key, k1 = (u32)(key >> 32);
    for (int j = 0; j < 256; j++) { u64 n = tile * 256 + (u64)j; a[j] = (u32)n; b[j] = (u32)(n >> 32); c[j] = d[j] = 0; }
    for (int round = 0; round < 10; round++) {
        FREE_LOOP for (int j = 0; j < 256; j++) {
            u64 p = (u64)0xD2511F53u * a[j], q = (u64)0xCD9E8D57u * c[j];
            a[j] = (u32)(q >> 32) ^ b[j] ^ k0; c[j] = (u32)(p >> 32) ^ d[j] ^ k1;
            b[j] = (u32)q; d[j] = (u32)p;
        }
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
}
static void draw_bits(uint8_t *bits, u64 tile, u64 key, u32 below) {
    u32 words[TILE];
    philox(words, tile, key);
    for (int i = 0; i < TILE; i += 8) {
        unsigned found = 0;
        for (int j = 0; j < 8; j++) found |= (unsigned)(words[i + j] < below) << j;
        bits[i / 8] = (uint8_t)found;
    }
}
#endif

/* Halves are added until one is left: the fixed tree of `summaries`. The first two steps are done while the values are
 * made, so that a tile needs little memory; `entry` is an expression in `i`. */
#define TREE(entry)                                                                                                  \
    double v[TILE / 4];                                                                                              \
    FREE_LOOP for (int j = 0; j < TILE / 4; j++) {                                                                   \
        double q[4];                                                                                                 \
        for (int k = 0; k < 4; k++) { int i = j + k * (TILE / 4); q[k] = entry; }                                    \
        v[j] = (q[0] + q[2]) + (q[1] + q[3]);                                                                        \
    }                                                                                                                \
    for (int half = TILE / 8; half > 0; half /= 2) { FREE_LOOP for (int i = 0; i < half; i++) v[i] += v[i + half]; } \
    return v[0];
static double sum(const float *a) { TREE((double)a[i]) }
static double sum_of_sizes(const float *a) { TREE((double)size_of(a[i])) }
static double dot(const float *a, const float *b) { TREE((double)a[i] * (double)b[i]) }

/* A tile that ends early, with zeros after its end. */
static const float *ended(float *copy, const float *a, int m) {
    if (m == TILE) return a;
    memcpy(copy, a, (size_t)m * 4);
    memset(copy + m, 0, (size_t)(TILE - m) * 4);
    return copy;
}

/* float64 sums of magnitudes of each row, in lines of 1024 or of the next power of two where rows are shorter. */
static double *row_sums(const float *x, int64_t n, double *sums) {
    int64_t line = TILE;
    while (n < line && line / 2 >= n && line > 1) line /= 2;
    for (int64_t s = 0; s < n; s += line) {
        float rest[TILE];
        if (line == TILE) { *sums++ = sum_of_sizes(ended(rest, x + s, n - s < TILE ? (int)(n - s) : TILE)); continue; }
        double v[TILE];
        for (int64_t i = 0; i < line; i++) v[i] = s + i < n ? (double)size_of(x[s + i]) : 0.0;
        for (int64_t half = line / 2; half > 0; half /= 2) { FREE_LOOP for (int64_t i = 0; i < half; i++) v[i] += v[i + half]; }
        *sums++ = v[0];
    }
    return sums;
}

#endif
