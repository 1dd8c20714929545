/* A small machine that runs the arithmetic of a merge on tiles of 1024 float32 elements, which stay in cache.
 *
 * A program is a list of operations on registers; a register is one tile. Each operation is one torch operation of
 * the generic path, with the same roundings: + - * / and comparisons in float32, multiply then add (never fused),
 * one rounding to nearest even where a value is stored. Build with -O3 -ffp-contract=off, never with fast-math.
 * Tiles begin at multiples of 1024 elements of the tensor, so that results do not depend on blocks or threads.
 * Knows no methods, no Python; files only by numbers, in cuvee_stream.h.
 */
#include "cuvee_tiles.h"
#include "cuvee_balance.h"

typedef struct {
    int32_t code, to, a, b, c, d; /* registers; for loads `a` is an input */
    float x;
    u32 bits;
    u64 key;
    int64_t count; /* TRIM: ties still to be kept; PICK: how many may be gathered */
    void *data;
} Op;

enum {
    LOAD_BF16, LOAD_F16, LOAD_F32, STORE_BF16, STORE_F16, STORE_F32, ROUND_BF16, ROUND_F16,
    FILL, ADD, SUB, MUL, SCALE, SHRINK, MULTIPLY_ADD, ABS, SIGN, ELECT, CLAMP,
    TRIM, KEEP, AGREE, LARGEST, QUOTIENT, HIGH, LOW, TIED, SUM, DOT, PICK,
    MOVED, BOOST, UNIQUE, LARGER, OUTWEIGHS, REACHED, AT_LEAST,
    RANKED, VARIANCE, LOAD_E4M3, LOAD_E5M2, SCORES, BALANCED, ORDERED, MIXED, ELECTED, GATHER, VOTED,
    ABOVE, REACHES, EQUALS, CHOOSE, GREATER, DIVIDE, MARK, SPREADS, ENERGY, DECIDED, GRAM, PICK_CHANGE, STAYING, RECALL, NORMS, MOVERS, SIFT, CODES
};
enum { BAD_INPUT = 1, BAD_OUTPUT = 2, BAD_CODE = 4 };

/* The kept magnitudes: all whose bits exceed op->bits, and the first op->count of those equal to it. */
static void trim(Op *op, float *to, const float *by, const float *value, int m) {
    u32 cut = op->bits, invert = (u32)op->c, least = op->count > 0 ? cut : cut + 1;
    int32_t ties = 0;
    SOME {
        u32 key = bits_of(by[i]) & 0x7fffffffu;
        ties += key == cut;
        to[i] = ((key >= least) ^ invert) ? value[i] : 0.0f;
    }
    if (op->count > 0 && ties > op->count) { /* they run out within this tile */
        int64_t left = op->count;
        for (int i = 0; i < m; i++) {
            u32 key = bits_of(by[i]) & 0x7fffffffu;
            u32 kept = key > cut || (key == cut && left-- > 0);
            to[i] = (kept ^ invert) ? value[i] : 0.0f;
        }
    }
    op->count = op->count > ties ? op->count - ties : 0;
}

/* A bit for each of `m` values that is not 0; bits after the last are 0. */
static void mark(uint8_t *to, const float *a, int m) {
    int i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= m; i += 16) {
        u16 bits = (u16)_mm512_cmp_ps_mask(_mm512_loadu_ps(a + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        memcpy(to + i / 8, &bits, 2);
    }
#endif
    for (; i < m; i += 8) {
        unsigned bits = 0;
        for (int j = 0; j < 8 && i + j < m; j++) bits |= (unsigned)(a[i + j] != 0.0f) << j;
        to[i / 8] = (uint8_t)bits;
    }
}

static void high(const Op *op, const float *a, int m) {
    u32 *even = op->data, *odd = even + 32768;
    int i = 0;
    for (; i + 1 < m; i += 2) { even[(bits_of(a[i]) >> 16) & 0x7fffu]++; odd[(bits_of(a[i + 1]) >> 16) & 0x7fffu]++; }
    if (i < m) even[(bits_of(a[i]) >> 16) & 0x7fffu]++;
}
static void low(const Op *op, const float *a, int m) {
    u32 *table = op->data, prefix = op->bits;
    u16 hit[TILE];
    SOME hit[i] = (u16)(((bits_of(a[i]) >> 16) & 0x7fffu) == prefix);
    for (int i = 0; i < m; i += 4) { /* four flags at a time: most are none */
        u64 four = 0;
        memcpy(&four, hit + i, m - i < 4 ? (size_t)(m - i) * 2 : 8);
        if (four)
            for (int j = i; j < i + 4 && j < m; j++) if (hit[j]) table[bits_of(a[j]) & 0xffffu]++;
    }
}

/* Magnitudes between two others, of which the lower may be -1: how many are less than `low`, equal to it, equal to `high`, and those in between.
 * `picked` is -1 once they were more than op->count; there are 16 places more than that. */
typedef struct { int64_t less, low, high, picked; u32 keys[]; } Picked;
static void pick(const Op *op, const float *a, int m) {
    Picked *to = op->data;
    int32_t low = (int32_t)op->bits, high = (int32_t)op->key;
    int64_t room = op->count - to->picked;
    if (to->picked < 0) return;
    u32 *next = to->keys + to->picked, less = 0, at_low = 0, at_high = 0, inner = 0;
    int i = 0;
#ifdef __AVX512F__
    __m512i floor = _mm512_set1_epi32(low), roof = _mm512_set1_epi32(high), sign = _mm512_set1_epi32(0x7fffffff);
    for (; i + 16 <= m; i += 16) {
        __m512i key = _mm512_and_si512(_mm512_loadu_si512(a + i), sign);
        __mmask16 near = _mm512_cmple_epi32_mask(key, roof), below = _mm512_cmplt_epi32_mask(key, floor);
        less += (u32)__builtin_popcount(below);
        if (!(near &= (__mmask16)~below)) continue;
        at_low += (u32)__builtin_popcount(_mm512_cmpeq_epu32_mask(key, floor));
        at_high += (u32)__builtin_popcount(_mm512_cmpeq_epu32_mask(key, roof));
        __mmask16 within = _mm512_mask_cmpgt_epi32_mask(_mm512_mask_cmplt_epi32_mask(near, key, roof), key, floor);
        if (within) {
            if (inner <= room) _mm512_storeu_si512(next + inner, _mm512_maskz_compress_epi32(within, key));
            inner += (u32)__builtin_popcount(within);
        }
    }
#endif
    u16 hit[TILE];
    FREE_LOOP for (int j = i; j < m; j++) {
        int32_t key = (int32_t)(bits_of(a[j]) & 0x7fffffffu);
        less += key < low; at_low += key == low; at_high += key == high;
        hit[j] = (key > low) & (key < high);
    }
    for (; i < m; i += 4) { /* four flags at a time: most are none */
        u64 four = 0;
        memcpy(&four, hit + i, m - i < 4 ? (size_t)(m - i) * 2 : 8);
        if (four)
            for (int j = i; j < i + 4 && j < m; j++)
                if (hit[j]) { if (inner < room) next[inner] = bits_of(a[j]) & 0x7fffffffu; inner++; }
    }
    to->less += less; to->low += at_low; to->high += at_high;
    to->picked = inner > room ? -1 : to->picked + inner;
}

#include "cuvee_crowd.h"
#include "cuvee_kept.h"
#include "cuvee_sifted.h"
#include "cuvee_varying.h"
#include "cuvee_gram.h"
#include "cuvee_picks.h"
#include "cuvee_norms.h"
#include "cuvee_movers.h"
#include "cuvee_ranks.h"

#define REG(n) (regs + (n) * TILE)

/* Run a program on `n` elements that begin at element `first` of the tensor (a multiple of 1024), or on every tile whose
 * number is a multiple of `every`. */
int cuvee_run(Op *ops, int32_t count, const void **in, void *out, int64_t first, int64_t n, int64_t every, float *regs) {
    u32 bad_in = 0, bad_out = 0;
    for (int64_t s = 0; s < n; s += TILE * every) {
        int m = n - s < TILE ? (int)(n - s) : TILE;
        int64_t line = (first + s) / TILE;
        for (Op *op = ops; op < ops + count; op++) {
            float *to = REG(op->to), x = op->x;
            const float *a = REG(op->a), *b = REG(op->b);
            switch (op->code) {
            case LOAD_BF16: {
                const u16 *p = (const u16 *)in[op->a] + s;
                if (s + TILE * every < n) fetch(p + TILE * every, 2 * TILE);
                SOME to[i] = from_bf16(p[i]);
                bad_in |= bad16(p, m, 0x7f80);
                break;
            }
            case LOAD_F16: {
                const u16 *p = (const u16 *)in[op->a] + s;
                widen_f16(to, p, m);
                bad_in |= bad16(p, m, 0x7c00);
                break;
            }
            case LOAD_F32:
                memcpy(to, (const float *)in[op->a] + s, (size_t)m * 4);
                bad_in |= bad32(to, m);
                break;
            case STORE_BF16: {
                u16 *p = (u16 *)out + s;
                SOME p[i] = to_bf16(a[i]);
                bad_out |= bad16(p, m, 0x7f80);
                break;
            }
            case STORE_F16: {
                u16 *p = (u16 *)out + s;
                narrow_f16(p, a, m);
                bad_out |= bad16(p, m, 0x7c00);
                break;
            }
            case STORE_F32:
                memcpy((float *)out + s, a, (size_t)m * 4);
                bad_out |= bad32(a, m);
                break;
            case ROUND_BF16: EACH to[i] = from_bf16(to_bf16(a[i])); break;
            case ROUND_F16: { u16 h[TILE]; narrow_f16(h, a, TILE); widen_f16(to, h, TILE); break; }
            case FILL: EACH to[i] = x; break;
            case ADD: EACH to[i] = a[i] + b[i]; break;
            case SUB: EACH to[i] = a[i] - b[i]; break;
            case MUL: EACH to[i] = a[i] * b[i]; break;
            case SCALE: EACH to[i] = a[i] * x; break;
            case SHRINK: shrink(to, a, x); break;
            case MULTIPLY_ADD: EACH { float product = b[i] * x; to[i] = a[i] + product; } break;
            case ABS: EACH to[i] = size_of(a[i]); break;
            case SIGN: EACH to[i] = sign_of(a[i]); break;
            case ELECT: EACH to[i] = a[i] == 0.0f ? x : sign_of(a[i]); break;
            case CLAMP: EACH { float v = a[i] < -x ? -x : a[i]; to[i] = v > x ? x : v; } break;
            case TRIM: trim(op, to, a, b, m); break;
            case KEEP: {
                u32 words[TILE];
                philox(words, (u64)line, op->key);
                u32 below = op->bits;
                EACH to[i] = words[i] < below ? a[i] : 0.0f;
                break;
            }
            case AGREE: { /* to: total, d: share, a: whose sign, b: elected, c: value */
                const float *value = REG(op->c);
                float *share = REG(op->d);
                EACH {
                    float sign = a[i] > 0.0f ? 1.0f : a[i] < 0.0f ? -1.0f : 0.0f;
                    float entry = sign == b[i] ? value[i] : 0.0f, part = sign == b[i] ? x : 0.0f;
                    to[i] += entry;
                    share[i] += part;
                }
                break;
            }
            case LARGEST: {
                const float *value = REG(op->c);
                EACH {
                    float entry = sign_of(a[i]) == b[i] ? size_of(value[i]) : 0.0f;
                    float largest = entry > to[i] ? entry : to[i];
                    to[i] = entry != entry ? entry : largest;
                }
                break;
            }
            case QUOTIENT: EACH to[i] = a[i] / (b[i] == 0.0f ? 1.0f : b[i]); break;
            case HIGH: high(op, a, m); break;
            case LOW: low(op, a, m); break;
            case TIED: {
                u32 cut = op->bits;
                int64_t ties = 0;
                SOME ties += (bits_of(a[i]) & 0x7fffffffu) == cut;
                *(int64_t *)op->data += ties;
                break;
            }
            case SUM: {
                float rest[TILE];
                ((double *)op->data)[line] = sum(ended(rest, a, m));
                break;
            }
            case DOT: {
                float rest[TILE], other[TILE];
                ((double *)op->data)[line] = dot(ended(rest, a, m), ended(other, b, m));
                break;
            }
            case PICK: pick(op, a, m); break;
            case MOVED: EACH to[i] += size_of(a[i]) > x ? 1.0f : 0.0f; break;
            case BOOST: {
                float boost = float_of(op->bits);
                EACH {
                    float value = a[i] * (b[i] == 1.0f ? boost : 1.0f);
                    to[i] += size_of(a[i]) > x ? value : 0.0f;
                }
                break;
            }
            case UNIQUE: {
                int32_t shared = 0, unique = 0;
                SOME {
                    int own = size_of(a[i]) > x;
                    shared += own & (b[i] > 1.0f);
                    unique += own & (b[i] == 1.0f);
                }
                ((int64_t *)op->data)[0] += shared;
                ((int64_t *)op->data)[1] += unique;
                break;
            }
            case LARGER: EACH to[i] = size_of(a[i]) >= size_of(b[i]) ? a[i] : b[i]; break;
            case OUTWEIGHS: EACH to[i] += size_of(a[i]) > size_of(b[i] - a[i]) * x ? 1.0f : 0.0f; break;
            case REACHED: EACH to[i] = b[i] >= x ? a[i] : 0.0f; break;
            case LOAD_E4M3: case LOAD_E5M2: {
                const uint8_t *p = (const uint8_t *)in[op->a] + s;
                widen_f8(to, p, m, op->code == LOAD_E4M3);
                bad_in |= bad8(p, m, op->code == LOAD_E4M3 ? 0x7f : 0x7c);
                break;
            }
            case RANKED: ranked(op->data, a, line, m); break;
            case VARIANCE: variance(op->data, to, regs); break;
            case AT_LEAST: EACH to[i] = a[i] < x ? x : a[i]; break;
            case SCORES: scores(op->data, regs); break;
            case BALANCED: balanced(op->data, to, regs); break;
            case MIXED: case ELECTED: bad_in |= crowd(op->data, in, s, line, m, to, regs, op->code == ELECTED); break;
            case ORDERED: ordered(to, a); break;
            case GATHER: gather(op->data, a, (const char *)in[op->b] + s * ((Gathered *)op->data)->size, line, m); break;
            case VOTED: bad_in |= voted(op->data, line, to, regs); break;
            case ABOVE: EACH to[i] = a[i] > b[i] ? 1.0f : 0.0f; break;
            case REACHES: EACH to[i] = a[i] >= b[i] ? 1.0f : 0.0f; break;
            case EQUALS: EACH to[i] = a[i] == b[i] ? 1.0f : 0.0f; break;
            case CHOOSE: { const float *c = REG(op->c); EACH to[i] = c[i] != 0.0f ? a[i] : b[i]; break; }
            case GREATER: EACH { float v = a[i] > b[i] ? a[i] : b[i]; to[i] = a[i] != a[i] ? a[i] : b[i] != b[i] ? b[i] : v; } break;
            case DIVIDE: EACH to[i] = a[i] / b[i]; break;
            case MARK: mark((uint8_t *)op->data + line * (TILE / 8), a, m); break;
            case SPREADS: bad_in |= varying(op->data, in, s, line, m, to, regs, SPREAD); break;
            case ENERGY: bad_in |= varying(op->data, in, s, line, m, to, regs, ENERGIES); break;
            case DECIDED: bad_in |= varying(op->data, in, s, line, m, to, regs, SURE); break;
            case GRAM: bad_in |= gram(op->data, in, s, line, m, regs); break;
            case PICK_CHANGE: bad_in |= pick_change(op, in[op->b], s, line, m, a, REG(op->d)); break;
            case STAYING: staying(to, a, op->data, line, m); break;
            case RECALL: memcpy(to, (const float *)op->data + line * TILE, (size_t)m * 4); break;
            case NORMS: bad_in |= norms(op->data, in, s, line, m, regs); break;
            case MOVERS: bad_in |= movers(op->data, in, s, line, m, to, regs); break;
            case SIFT: bad_in |= sift(op, a, line, m); break;
            default: return BAD_CODE;
            }
            if (m < TILE && (op->code <= LOAD_F32 || op->code == RECALL || op->code == LOAD_E4M3 || op->code == LOAD_E5M2)) memset(to + m, 0, (size_t)(TILE - m) * 4);
        }
    }
    return (bad_in ? BAD_INPUT : 0) | (bad_out ? BAD_OUTPUT : 0);
}

/* The bin where position `goal` of the sorted values lies; found = {bin, less, equal}; -1 when there is none. */
int cuvee_find(const u64 *table, int64_t bins, int64_t goal, int64_t *found) {
    int64_t less = 0;
    for (int64_t bin = 0; bin < bins; bin++) {
        if (goal < less + (int64_t)table[bin]) { found[0] = bin; found[1] = less; found[2] = (int64_t)table[bin]; return 0; }
        less += (int64_t)table[bin];
    }
    return -1;
}

#include "cuvee_counts.h"

int64_t cuvee_equal(const u32 *keys, int64_t n, u32 key) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) found += keys[i] == key;
    return found;
}

void cuvee_add(u64 *to, const u32 *from, int64_t n) { for (int64_t i = 0; i < n; i++) to[i] += from[i]; }

/* Whether a run of `n` elements of a stored type holds NaN or infinity: `mask` are the bits that are then all set. */
int cuvee_not_finite(const void *data, int64_t n, int32_t size, u64 mask) {
    u64 found = 0;
    if (size == 1) { const uint8_t *p = data; for (int64_t i = 0; i < n; i++) found |= (p[i] & mask) == mask; }
    else if (size == 2) { const u16 *p = data; u16 e = (u16)mask, f = 0; for (int64_t i = 0; i < n; i++) f |= (u16)((p[i] & e) == e); found = f; }
    else if (size == 4) { const u32 *p = data; u32 e = (u32)mask, f = 0; for (int64_t i = 0; i < n; i++) f |= (p[i] & e) == e; found = f; }
    else { const u64 *p = data; for (int64_t i = 0; i < n; i++) found |= (p[i] & mask) == mask; }
    return found != 0;
}

#include "cuvee_stream.h"
