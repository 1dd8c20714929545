/* Integer differences of ordered floats, entropy coded: one chunk at a time.

   The format is described in packed_codec.py, which holds the reference. Nothing here trusts a body: whatever it
   holds, nothing is written outside `out`, and nothing is read beyond 128 bytes after its end. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 1
#endif

enum { SCALE = 11, SLOTS = 1 << SCALE, CONTEXTS = 32, TOKENS = 128, DIRECT = 16, MOST = 32, FEW = 4, LONG = 16384, BLOCK = 4096, SPARE = 32 };
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

/* What is left of a body to decode, and a block of it. */
typedef struct {
    const uint8_t *word, *end, *raw;
    uint64_t bit, bits;
    uint32_t states[MOST];
    uint8_t contexts[BLOCK + SPARE], tokens[BLOCK + SPARE];
} Body;

#ifdef WIDE
/* The next `whole` tokens of one or two bodies: lines of a body wait for one another, those of two do not. */
static inline __attribute__((always_inline)) int wide_tokens(Body *const *bodies, int many, int64_t whole, const uint32_t *table) {
    const __m512i slots = _mm512_set1_epi32(SLOTS - 1), lowest = _mm512_set1_epi32(LOWEST), names = _mm512_set1_epi32(TOKENS - 1);
    const __m512i shares = _mm512_set1_epi32(4095);
    __m512i x[4];
    const uint8_t *word[2];
    for (int b = 0; b < many; b++) {
        word[b] = bodies[b]->word;
        for (int half = 0; half < 2; half++) x[2 * b + half] = _mm512_loadu_si512(bodies[b]->states + 16 * half);
    }
    for (int64_t i = 0; i < whole; i += 32) {
        for (int v = 0; v < 2 * many; v++) {
            Body *body = bodies[v / 2];
            int64_t at = i + 16 * (v % 2);
            __m512i context = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(body->contexts + at)));
            __m512i slot = _mm512_or_si512(_mm512_slli_epi32(context, SCALE), _mm512_and_si512(x[v], slots));
            __m512i entry = _mm512_i32gather_epi32(slot, table, 4);
            _mm_storeu_si128((__m128i *)(body->tokens + at), _mm512_cvtepi32_epi8(_mm512_and_si512(entry, names)));
            __m512i share = _mm512_and_si512(_mm512_srli_epi32(entry, 7), shares);
            x[v] = _mm512_add_epi32(_mm512_mullo_epi32(share, _mm512_srli_epi32(x[v], SCALE)), _mm512_srli_epi32(entry, 19));
        }
        for (int v = 0; v < 2 * many; v++) {
            __mmask16 low = _mm512_cmplt_epu32_mask(x[v], lowest);
            __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)word[v / 2]));
            x[v] = _mm512_mask_or_epi32(x[v], low, _mm512_slli_epi32(x[v], 16), _mm512_maskz_expand_epi32(low, next));
            word[v / 2] += 2 * __builtin_popcount(low);
        }
        for (int b = 0; b < many; b++) if (word[b] > bodies[b]->end) return 0;
    }
    for (int b = 0; b < many; b++) {
        bodies[b]->word = word[b];
        for (int half = 0; half < 2; half++) _mm512_storeu_si512(bodies[b]->states + 16 * half, x[2 * b + half]);
    }
    return 1;
}
#endif

static inline uint32_t wider(uint32_t token, const uint8_t *raw, uint64_t bit) {
    uint32_t extra = extra_of(token);
    uint64_t window;
    memcpy(&window, raw + (bit >> 3), 8);
    return (4u + ((token - DIRECT) & 3u)) << extra | (uint32_t)((window >> (bit & 7)) & ((1u << extra) - 1));
}

/* Where tokens that need stored bits stand in a block; there is room for 16 more of both. */
static int64_t places_of(const uint8_t *tokens, int64_t count, uint32_t *places) {
    int64_t found = 0;
#ifdef WIDE
    const __m512i step = _mm512_set1_epi32(16), least = _mm512_set1_epi32(DIRECT);
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < count; i += 16) {
        __m512i token = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(tokens + i)));
        __mmask16 wide = _mm512_cmpge_epu32_mask(token, least);
        _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(wide, place));
        found += __builtin_popcount(wide);
        place = _mm512_add_epi32(place, step);
    }
#else
    for (int64_t i = 0; i < count; i++) {
        places[found] = (uint32_t)i;
        found += tokens[i] >= DIRECT;
    }
#endif
    return found;
}

/* Elements of one block from its tokens; the stored bits they took are added to `bit`. 0 where these are not there. */
static int restored(const uint8_t *tokens, int64_t count, const uint8_t *raw, uint64_t *bit, uint64_t bits,
                    const void *base, int32_t size, void *out) {
    uint32_t places[BLOCK + SPARE], values[BLOCK + SPARE];
    int64_t many = places_of(tokens, count, places);
    uint64_t at = *bit;
    for (int64_t i = 0; i < many; i++) {
        uint32_t token = tokens[places[i]];
        values[i] = wider(token, raw, at < bits ? at : bits); /* nothing is read behind the end */
        at += extra_of(token);
    }
    if (at > bits) return 0;
    *bit = at;
    if (size == 2) {
        uint16_t steps[BLOCK];
        const uint16_t *b = base;
        uint16_t *o = out;
        for (int64_t i = 0; i < count; i++) steps[i] = (uint16_t)(tokens[i] >> 1) ^ (uint16_t)-(tokens[i] & 1);
        for (int64_t i = 0; i < many; i++) steps[places[i]] = (uint16_t)(values[i] >> 1 ^ (0u - (values[i] & 1u)));
        for (int64_t i = 0; i < count; i++) {
            uint16_t rank = (uint16_t)((b[i] ^ (uint16_t)((int16_t)b[i] >> 15 | 0x8000)) + steps[i]);
            o[i] = rank ^ (uint16_t)(~((int16_t)rank >> 15) | 0x8000);
        }
    } else {
        uint32_t folded[BLOCK];
        const uint32_t *b = base;
        uint32_t *o = out;
        for (int64_t i = 0; i < count; i++) folded[i] = tokens[i];
        for (int64_t i = 0; i < many; i++) folded[places[i]] = values[i];
        for (int64_t i = 0; i < count; i++) {
            uint32_t d = folded[i] >> 1 ^ (0u - (folded[i] & 1u));
            o[i] = disordered(ordered(b[i], 0x80000000u) + d, 0x80000000u);
        }
    }
    return 1;
}

static void contexts_of(const void *base, int64_t count, const Kind *kind, uint8_t *contexts) {
    const Kind own = *kind;
    if (own.size == 2)
        for (int64_t i = 0; i < count; i++) { /* as context_of, in 16 bits */
            int16_t found = (int16_t)(own.top - (((const uint16_t *)base)[i] >> own.shift & own.mask));
            found = found < 0 ? 0 : found;
            contexts[i] = (uint8_t)(found < CONTEXTS ? found : CONTEXTS - 1);
        }
    else
        for (int64_t i = 0; i < count; i++) contexts[i] = (uint8_t)context_of(((const uint32_t *)base)[i], &own);
}

static int begun(Body *to, const uint8_t *body, int64_t nbytes, int lanes) {
    uint32_t number;
    if (nbytes < 4 + 4 * lanes) return 0;
    memcpy(&number, body, 4);
    memcpy(to->states, body + 4, (size_t)(4 * lanes));
    to->word = body + 4 + 4 * lanes;
    if (2 * (int64_t)number > body + nbytes - to->word) return 0;
    to->end = to->raw = to->word + 2 * (int64_t)number;
    to->bit = 0;
    to->bits = 8 * (uint64_t)(body + nbytes - to->raw);
    return 1;
}

static int ended(const Body *body, int lanes) {
    for (int l = 0; l < lanes; l++)
        if (body->states[l] != LOWEST) return 0;
    return body->word == body->end && (body->bit + 7) / 8 * 8 == body->bits;
}

/* Decode `many` (1 or 2) bodies of as many elements each against their bases; 0 where one of them is wrong. Blocks stay in
 * the first-level cache. */
int32_t cuvee_packed_decode(int32_t many, const uint8_t *const *bodies, const int64_t *nbytes, const void *const *bases,
                            int64_t count, const Kind *kind, const uint32_t *table, void *const *outs) {
    int lanes = count >= LONG ? MOST : FEW;
    Body held[2], *each[2] = {held, held + 1};
    for (int b = 0; b < many; b++) if (!begun(each[b], bodies[b], nbytes[b], lanes)) return 0;
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK, done = 0, at = first * kind->size;
        for (int b = 0; b < many; b++) contexts_of((const char *)bases[b] + at, here, kind, each[b]->contexts);
#ifdef WIDE
        if (lanes == MOST) {
            done = here / MOST * MOST;
            if (!(many == 2 ? wide_tokens(each, 2, done, table) : wide_tokens(each, 1, done, table))) return 0;
        }
#endif
        for (int b = 0; b < many; b++) {
            Body *body = each[b];
            body->word = tokens_of(body->word, body->end, body->states, lanes, body->contexts, done, here, table, body->tokens);
            if (!body->word) return 0;
            memset(body->tokens + here, 0, SPARE);
            if (!restored(body->tokens, here, body->raw, &body->bit, body->bits, (const char *)bases[b] + at, kind->size, (char *)outs[b] + at)) return 0;
        }
    }
    for (int b = 0; b < many; b++) if (!ended(each[b], lanes)) return 0;
    return 1;
}
