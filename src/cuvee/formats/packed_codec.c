/* Integer differences of ordered floats, entropy coded: one chunk at a time.

   The format is described in packed_codec.py, which holds the reference. Nothing here trusts a body: whatever it
   holds, nothing is written outside `out`, and nothing is read beyond 128 bytes after its end. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 1
#endif

enum { SCALE = 11, SLOTS = 1 << SCALE, CONTEXTS = 32, TOKENS = 128, DIRECT = 16, MOST = 32, FEW = 4, LONG = 16384, BLOCK = 4096 };
#define LOWEST 65536u

typedef struct {
    int32_t size;  /* bytes of an element: 2 or 4 */
    int32_t shift; /* bits below the exponent */
    int32_t mask;  /* of the exponent, shifted down */
    int32_t top;   /* exponent of context 0 */
} Kind;

static inline uint32_t ordered(uint32_t bits, uint32_t sign) {
    return bits & sign ? ~bits & (sign | (sign - 1)) : bits | sign;
}

static inline uint32_t disordered(uint32_t rank, uint32_t sign) {
    return rank & sign ? rank ^ sign : ~rank & (sign | (sign - 1));
}

static inline uint32_t context_of(uint32_t bits, const Kind *kind) {
    int32_t found = kind->top - (int32_t)((bits >> kind->shift) & (uint32_t)kind->mask);
    return (uint32_t)(found < 0 ? 0 : found >= CONTEXTS ? CONTEXTS - 1 : found);
}

static inline uint32_t folded16(uint32_t base, uint32_t tuned) {
    int32_t d = (int16_t)(ordered(tuned, 0x8000u) - ordered(base, 0x8000u));
    return ((uint32_t)d << 1) ^ (uint32_t)(d >> 31);
}

static inline uint32_t folded32(uint32_t base, uint32_t tuned) {
    int32_t d = (int32_t)(ordered(tuned, 0x80000000u) - ordered(base, 0x80000000u));
    return ((uint32_t)d << 1) ^ (uint32_t)(d >> 31);
}

static inline uint32_t token_of(uint32_t folded) {
    if (folded < DIRECT) return folded;
    int top = 31 - __builtin_clz(folded);
    return DIRECT + 4u * (uint32_t)(top - 4) + ((folded >> (top - 2)) & 3u);
}

static inline uint32_t extra_of(uint32_t token) { return token < DIRECT ? 0 : 2 + ((token - DIRECT) >> 2); }

static inline void element(const void *base, const void *tuned, int64_t i, const Kind *kind, uint32_t *context,
                           uint32_t *folded) {
    if (kind->size == 2) {
        uint32_t b = ((const uint16_t *)base)[i], t = ((const uint16_t *)tuned)[i];
        *context = context_of(b, kind);
        *folded = folded16(b, t);
    } else {
        uint32_t b = ((const uint32_t *)base)[i], t = ((const uint32_t *)tuned)[i];
        *context = context_of(b, kind);
        *folded = folded32(b, t);
    }
}

/* Add a chunk to counts[CONTEXTS][TOKENS]. */
void cuvee_packed_count(const void *base, const void *tuned, int64_t count, const Kind *kind, uint64_t *counts) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t context, folded;
        element(base, tuned, i, kind, &context, &folded);
        counts[context * TOKENS + token_of(folded)]++;
    }
}

/* Code a chunk; its bytes, or -1 where they would be more than `room` or a token has no place in `coding`
   (frequency, and start << 16). `scratch` holds 8 bytes an element. */
int64_t cuvee_packed_encode(const void *base, const void *tuned, int64_t count, const Kind *kind,
                            const uint32_t *coding, uint8_t *out, int64_t room, uint32_t *scratch) {
    int lanes = count >= LONG ? MOST : FEW;
    uint32_t states[MOST];
    uint32_t *places = scratch;
    uint16_t *words = (uint16_t *)(scratch + count) + 2 * count; /* filled from the end */
    uint16_t *first = words;
    uint64_t pending = 0, bits = 0;
    int64_t need = 4 + 4 * lanes, at = 0;
    uint8_t *raw = out; /* extra bits go to the front of `out` first */
    for (int64_t i = 0; i < count; i++) {
        uint32_t context, folded;
        element(base, tuned, i, kind, &context, &folded);
        uint32_t token = token_of(folded), extra = extra_of(token);
        places[i] = coding[context * TOKENS + token];
        if (!(places[i] & 0xFFFFu)) return -1;
        if (extra) {
            pending |= (uint64_t)(folded & ((1u << extra) - 1)) << bits;
            bits += extra;
            while (bits >= 8) {
                if (at >= room) return -1;
                raw[at++] = (uint8_t)pending;
                pending >>= 8;
                bits -= 8;
            }
        }
    }
    if (bits) {
        if (at >= room) return -1;
        raw[at++] = (uint8_t)pending;
    }
    for (int l = 0; l < lanes; l++) states[l] = LOWEST;
    for (int64_t i = count - 1; i >= 0; i--) {
        uint32_t *state = &states[i % lanes], frequency = places[i] & 0xFFFFu, start = places[i] >> 16;
        if (*state >= (uint64_t)frequency << (32 - SCALE)) {
            *--first = (uint16_t)*state;
            *state >>= 16;
        }
        *state = ((*state / frequency) << SCALE) + *state % frequency + start;
    }
    uint32_t number = (uint32_t)(words - first);
    need += 2 * (int64_t)number;
    if (need + at > room) return -1;
    memmove(out + need, out, (size_t)at);
    memcpy(out, &number, 4);
    memcpy(out + 4, states, (size_t)(4 * lanes));
    memcpy(out + 4 + 4 * lanes, first, 2 * (size_t)number);
    return need + at;
}

/* One line of tokens: `lanes` states, entries of `table` are token, frequency << 7, slot - start << 19. */
static const uint8_t *tokens_of(const uint8_t *word, const uint8_t *end, uint32_t *states, int lanes,
                                const uint8_t *contexts, int64_t from, int64_t to, const uint32_t *table,
                                uint8_t *tokens) {
    for (int64_t i = from; i < to; i++) {
        uint32_t *state = &states[i % lanes], entry = table[contexts[i] * SLOTS + (*state & (SLOTS - 1))];
        tokens[i] = entry & (TOKENS - 1);
        *state = ((entry >> 7) & 4095u) * (*state >> SCALE) + (entry >> 19);
        if (*state < LOWEST) {
            uint16_t next;
            if (end - word < 2) return 0;
            memcpy(&next, word, 2);
            word += 2;
            *state = *state << 16 | next;
        }
    }
    return word;
}

#ifdef WIDE
static const uint8_t *wide_tokens(const uint8_t *word, const uint8_t *end, uint32_t *states,
                                  const uint8_t *contexts, int64_t whole, const uint32_t *table, uint8_t *tokens) {
    __m512i x[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
    const __m512i slots = _mm512_set1_epi32(SLOTS - 1), lowest = _mm512_set1_epi32(LOWEST);
    for (int64_t i = 0; i < whole; i += 32) {
        for (int half = 0; half < 2; half++) {
            __m512i context = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(contexts + i + 16 * half)));
            __m512i slot = _mm512_or_si512(_mm512_slli_epi32(context, SCALE), _mm512_and_si512(x[half], slots));
            __m512i entry = _mm512_i32gather_epi32(slot, table, 4);
            _mm_storeu_si128((__m128i *)(tokens + i + 16 * half),
                             _mm512_cvtepi32_epi8(_mm512_and_si512(entry, _mm512_set1_epi32(TOKENS - 1))));
            __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(entry, 7), _mm512_set1_epi32(4095));
            x[half] = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(x[half], SCALE)),
                                       _mm512_srli_epi32(entry, 19));
        }
        for (int half = 0; half < 2; half++) {
            __mmask16 low = _mm512_cmplt_epu32_mask(x[half], lowest);
            __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)word));
            x[half] = _mm512_mask_or_epi32(x[half], low, _mm512_slli_epi32(x[half], 16),
                                           _mm512_maskz_expand_epi32(low, next));
            word += 2 * __builtin_popcount(low);
        }
        if (word > end) return 0;
    }
    _mm512_storeu_si512(states, x[0]);
    _mm512_storeu_si512(states + 16, x[1]);
    return word;
}
#endif

static inline uint32_t wider(uint32_t token, const uint8_t *raw, uint64_t bit) {
    uint32_t extra = extra_of(token);
    uint64_t window;
    memcpy(&window, raw + (bit >> 3), 8);
    return (4u + ((token - DIRECT) & 3u)) << extra | (uint32_t)((window >> (bit & 7)) & ((1u << extra) - 1));
}

/* Elements of one block from its tokens; the stored bits they took are added to `bit`. 0 where these are not there. */
static int restored(const uint8_t *tokens, int64_t count, const uint8_t *raw, uint64_t *bit, uint64_t bits,
                    const void *base, int32_t size, void *out) {
    uint32_t folded[BLOCK];
    for (int64_t i = 0; i < count; i++) folded[i] = tokens[i];
    for (int64_t i = 0; i < count; i += 8) {
        uint64_t eight;
        memcpy(&eight, tokens + i, 8); /* there is room after the last one */
        if (!(eight & 0x7070707070707070u)) continue;
        for (int64_t j = i; j < i + 8 && j < count; j++)
            if (tokens[j] >= DIRECT) {
                uint32_t extra = extra_of(tokens[j]);
                if (*bit + extra > bits) return 0;
                folded[j] = wider(tokens[j], raw, *bit);
                *bit += extra;
            }
    }
    if (size == 2) {
        const uint16_t *b = base;
        uint16_t *o = out;
        for (int64_t i = 0; i < count; i++) {
            uint32_t d = folded[i] >> 1 ^ (0u - (folded[i] & 1u));
            o[i] = (uint16_t)disordered((ordered(b[i], 0x8000u) + d) & 0xFFFFu, 0x8000u);
        }
    } else {
        const uint32_t *b = base;
        uint32_t *o = out;
        for (int64_t i = 0; i < count; i++) {
            uint32_t d = folded[i] >> 1 ^ (0u - (folded[i] & 1u));
            o[i] = disordered(ordered(b[i], 0x80000000u) + d, 0x80000000u);
        }
    }
    return 1;
}

/* Decode a body of `nbytes` against `base`; 0, or what is wrong with it. Blocks stay in the first-level cache. */
int32_t cuvee_packed_decode(const uint8_t *body, int64_t nbytes, const void *base, int64_t count, const Kind *kind,
                            const uint32_t *table, void *out) {
    int lanes = count >= LONG ? MOST : FEW;
    uint32_t number, states[MOST];
    uint8_t contexts[BLOCK + 8], tokens[BLOCK + 8];
    if (nbytes < 4 + 4 * lanes) return 1;
    memcpy(&number, body, 4);
    memcpy(states, body + 4, (size_t)(4 * lanes));
    const uint8_t *word = body + 4 + 4 * lanes, *stop = body + nbytes;
    if (2 * (int64_t)number > stop - word) return 1;
    const uint8_t *end = word + 2 * (int64_t)number;
    uint64_t bit = 0, bits = 8 * (uint64_t)(stop - end);
    Kind own = *kind;
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK, done = 0;
        const void *from = (const uint8_t *)base + first * own.size;
        if (own.size == 2)
            for (int64_t i = 0; i < here; i++) contexts[i] = (uint8_t)context_of(((const uint16_t *)from)[i], &own);
        else
            for (int64_t i = 0; i < here; i++) contexts[i] = (uint8_t)context_of(((const uint32_t *)from)[i], &own);
#ifdef WIDE
        if (lanes == MOST) {
            done = here / MOST * MOST;
            word = wide_tokens(word, end, states, contexts, done, table, tokens);
        }
#endif
        if (word) word = tokens_of(word, end, states, lanes, contexts, done, here, table, tokens);
        if (!word) return 2;
        memset(tokens + here, 0, 8);
        if (!restored(tokens, here, end, &bit, bits, from, own.size, (uint8_t *)out + first * own.size)) return 3;
    }
    if (word != end) return 2;
    for (int l = 0; l < lanes; l++)
        if (states[l] != LOWEST) return 2;
    return (bit + 7) / 8 * 8 == bits ? 0 : 3;
}
