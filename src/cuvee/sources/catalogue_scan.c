/* What experts change in a run of elements, in one look: how many elements, the largest and all products of changes,
   and how often each magnitude stands; and how large the base is there.

   The reference is `Reference` in catalogue_look.py. Magnitudes are the bits of the float32 difference without a sign.
   Those whose lower 16 bits are 0 are counted by the others; next to these, by the upper 20, those whose lower 12 bits
   are 0, from 2^-30 to 4; what is left, in a hash table that grows, so that it is near as long as it can be. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { BFLOAT16, FLOAT16, FLOAT32, TILE = 512, LANES = 32, WIDTH = 8, TOGETHER = 3, AHEAD = 8 };
enum { EARLY = 8192, NEARLY = 7168 }; /* a large tensor is given up if of its first ones so many are far and differ */
enum { PLAIN = 1 << 15, NEAR = 1 << 16, FIRST = (127 - 30) << 11, SLOTS = PLAIN + NEAR, GROUP = 64 };
#define ALIGNED __attribute__((aligned(64))) /* a vector of 512 bits lies in one line of the cache */
#define INLINE static inline __attribute__((always_inline)) /* once for every type, which is a constant there */

typedef double Vector __attribute__((vector_size(8 * WIDTH)));
typedef float Narrow __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    uint32_t key; /* 0: free (0 itself is counted in a slot) */
    uint32_t count;
} Entry;

typedef struct {
    uint32_t *slots; /* SLOTS */
    Entry *entries;  /* two times the most room; a table of some room begins at the place of that number */
    int64_t room;    /* a power of 2 */
    int64_t widest;  /* the most room */
    int64_t narrowest;
    int64_t used;    /* above `most`: given up */
    int64_t most;
    int64_t seen;    /* elements */
    int64_t large;   /* whether they may be too many to be told apart */
} Table;

typedef struct {
    const void *bits;
    Table *table;
    int64_t moved;
    uint32_t largest;
    int32_t idle; /* in this tile */
} Expert;

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float half(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, rest = bits & 1023u;
    uint32_t infinite = sign | 0x7F800000u | rest << 13, normal = sign | (exponent + 112) << 23 | rest << 13;
    uint32_t small = sign | bits_of((float)(int32_t)rest * 0x1p-24f);
    return of_bits(exponent == 31 ? infinite : exponent ? normal : small);
}

/* The bits of a tile; those of the last one are filled up with zeros in `room`. */
INLINE const void *whole(const void *bits, int64_t first, int64_t here, int kind, void *room) {
    size_t size = kind == FLOAT32 ? 4 : 2;
    const char *from = (const char *)bits + size * (size_t)first;
    if (here == TILE) return from;
    memset(room, 0, size * TILE);
    return memcpy(room, from, size * (size_t)here);
}

INLINE void widened(const void *from, int kind, float *out) {
    if (kind == FLOAT32) {
        memcpy(out, from, 4 * TILE);
    } else if (kind == BFLOAT16) {
        const uint16_t *bits = from;
        for (int i = 0; i < TILE; i++) out[i] = of_bits((uint32_t)bits[i] << 16);
    } else {
        const uint16_t *bits = from;
#ifdef __AVX512F__
        for (int i = 0; i < TILE; i += 16)
            _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(bits + i))));
#else
        for (int i = 0; i < TILE; i++) out[i] = half(bits[i]);
#endif
    }
}

static inline uint32_t home(const Table *table, uint32_t key) {
    return (key * 2654435761u) >> 7 & ((uint32_t)table->room - 1);
}

static Entry *found(Table *table, uint32_t key) {
    Entry *entries = table->entries + table->room;
    uint32_t mask = (uint32_t)table->room - 1, place = home(table, key);
    while (entries[place].key && entries[place].key != key) place = (place + 1) & mask;
    return entries + place;
}

static void grown(Table *table) {
    Entry *before = table->entries + table->room;
    int64_t room = table->room;
    table->room *= 2;
    for (int64_t i = 0; i < room; i++)
        if (before[i].key) *found(table, before[i].key) = before[i];
    memset(before, 0, (size_t)room * sizeof *before);
}

static void counted(Table *table, uint32_t key) {
    if (table->used > table->most) return;
    Entry *entry = found(table, key);
    if (!entry->key) {
        entry->key = key;
        table->used++;
    }
    entry->count++;
    if (2 * table->used > table->room && table->room < table->widest) grown(table);
}

/* How many magnitudes were counted, or -1 where they are more than can be told apart; they go to `told`, unless that is
   NULL, each above its count, in no order. */
int64_t cuvee_told(Table *table, uint64_t *told) {
    uint32_t *slots = table->slots;
    Entry *entries = table->entries + table->room;
    int64_t many = 0, plain = 0, lost = table->used > table->most;
    for (int first = 0; first < SLOTS && !lost; first += GROUP) {
        uint32_t any = 0;
        if (first == PLAIN) plain = many;
        for (int i = first; i < first + GROUP; i++) any += slots[i] != 0;
        for (int i = first; told && any && i < first + GROUP; i++) {
            uint64_t key = i < PLAIN ? (uint64_t)i << 16 : (uint64_t)(i - PLAIN + FIRST) << 12;
            if (slots[i]) *told++ = key << 32 | slots[i];
        }
        many += any;
    }
    lost |= many - plain + table->used > table->most;
    for (int64_t i = 0; told && i < table->room && table->used && !lost; i++)
        if (entries[i].key) *told++ = (uint64_t)entries[i].key << 32 | entries[i].count;
    return lost ? -1 : many + table->used;
}

/* Nothing is counted any longer. */
void cuvee_emptied(Table *table) {
    memset(table->slots, 0, SLOTS * sizeof *table->slots);
    if (table->used) memset(table->entries + table->room, 0, (size_t)table->room * sizeof *table->entries);
    table->used = 0;
    table->room = table->narrowest;
}

/* Where the magnitudes of a tile are counted: places among the slots, and what has none of these. No change has none
   of both. */
static int32_t placed(const uint32_t *keys, uint32_t *slots, uint32_t *far, int32_t *distant) {
    int32_t many = 0, others = 0;
#ifdef __AVX512F__
    const __m512i all = _mm512_set1_epi32(0xFFFF), low = _mm512_set1_epi32(0xFFF), first = _mm512_set1_epi32(FIRST);
    const __m512i near_to = _mm512_set1_epi32(NEAR), shift = _mm512_set1_epi32(PLAIN);
    for (int i = 0; i < TILE; i += 16) {
        __m512i key = _mm512_loadu_si512(keys + i), near = _mm512_sub_epi32(_mm512_srli_epi32(key, 12), first);
        __mmask16 some = _mm512_test_epi32_mask(key, key), fine = _mm512_test_epi32_mask(key, all);
        __mmask16 inside = _mm512_mask_testn_epi32_mask(_mm512_cmplt_epu32_mask(near, near_to), key, low);
        __mmask16 counted_here = some & (inside | (__mmask16)~fine), away = fine & (__mmask16)~inside;
        __m512i slot = _mm512_mask_add_epi32(_mm512_srli_epi32(key, 16), fine, near, shift);
        _mm512_storeu_si512(slots + many, _mm512_maskz_compress_epi32(counted_here, slot));
        many += __builtin_popcount(counted_here);
        if (!away) continue;
        _mm512_storeu_si512(far + others, _mm512_maskz_compress_epi32(away, key));
        others += __builtin_popcount(away);
    }
#else
    for (int i = 0; i < TILE; i++) {
        uint32_t key = keys[i], near = (key >> 12) - FIRST, plain = (key & 0xFFFFu) == 0;
        uint32_t inside = (uint32_t)((key & 0xFFFu) == 0) & (uint32_t)(near < NEAR);
        slots[many] = plain ? key >> 16 : PLAIN + near;
        far[others] = key;
        many += (int32_t)((plain | inside) & (uint32_t)(key != 0));
        others += (int32_t)(1u ^ (plain | inside));
    }
#endif
    *distant = others;
    return many;
}

/* Count the magnitudes of a tile that has so many elements; the others have no change. */
static void tallied(Table *table, const uint32_t *keys, int64_t here) {
    uint32_t slots[TILE + 16] ALIGNED, far[TILE + 16] ALIGNED;
    int32_t others, many = placed(keys, slots, far, &others);
    for (int32_t i = 0; i < many; i++) table->slots[slots[i]]++;
    table->slots[0] += (uint32_t)(here - many - others);
    for (int32_t i = 0; i < others; i++) {
        if (i + AHEAD < others) __builtin_prefetch(table->entries + table->room + home(table, far[i + AHEAD]));
        counted(table, far[i]);
    }
}

/* How many elements of a tile have other bits. */
INLINE int32_t differing(const void *base, const void *tuned, int kind) {
    if (kind == FLOAT32) {
        const uint32_t *a = base, *b = tuned;
        int32_t moved = 0;
        for (int i = 0; i < TILE; i++) moved += a[i] != b[i];
        return moved;
    }
    const uint16_t *a = base, *b = tuned;
    uint16_t moved = 0; /* as wide as the elements, so that vectors of them add up */
    for (int i = 0; i < TILE; i++) moved = (uint16_t)(moved + (a[i] != b[i]));
    return moved;
}

INLINE Vector wide(const float *from) {
#ifdef __AVX512F__
    return (Vector)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#endif
    Narrow part;
    memcpy(&part, from, sizeof part);
    return __builtin_convertvector(part, Vector);
}

/* The magnitudes of differences of a tile, the largest so far, and the differences in double. */
static uint32_t compared(const float *b, const float *t, uint32_t most, uint32_t *keys, double *row) {
    for (int i = 0; i < TILE; i++) {
        uint32_t key = bits_of(t[i] - b[i]) & 0x7FFFFFFFu;
        keys[i] = key;
        most = key > most ? key : most;
    }
    for (int i = 0; i < TILE; i += WIDTH) {
        Vector change = wide(t + i) - wide(b + i);
        memcpy(row + i, &change, sizeof change);
    }
    return most;
}

/* The products of a row with some others; all are summed in one order, whichever stand together. */
INLINE void together(const double *row, const double *const *others, int many, double *totals) {
    Vector sums[TOGETHER][LANES / WIDTH] = {0};
    double lanes[TOGETHER][LANES] ALIGNED;
    for (int k = 0; k < TILE; k += LANES)
        for (int q = 0; q < LANES / WIDTH; q++) {
            Vector own, other;
            memcpy(&own, row + k + q * WIDTH, sizeof own);
            for (int j = 0; j < many; j++) {
                memcpy(&other, others[j] + k + q * WIDTH, sizeof other);
                sums[j][q] += own * other;
            }
        }
    memcpy(lanes, sums, sizeof lanes);
    for (int j = 0; j < many; j++) totals[j] = 0;
    for (int l = 0; l < LANES; l++)
        for (int j = 0; j < many; j++) totals[j] += lanes[j][l];
}

static void multiplied(const double *row, const double *const *others, int many, double *totals) {
    if (many == 1) together(row, others, 1, totals);
    if (many == 2) together(row, others, 2, totals);
    if (many == 3) together(row, others, 3, totals);
}

/* The sum of squares of a tile and its largest magnitude. */
static double squared(const float *b, uint32_t *most) {
    Vector sums[LANES / WIDTH] = {0};
    double lanes[LANES] ALIGNED, total = 0;
    uint32_t largest = 0;
    for (int k = 0; k < TILE; k += LANES)
        for (int q = 0; q < LANES / WIDTH; q++) {
            Vector own = wide(b + k + q * WIDTH);
            sums[q] += own * own;
        }
    memcpy(lanes, sums, sizeof lanes);
    for (int l = 0; l < LANES; l++) total += lanes[l];
    for (int k = 0; k < TILE; k++) {
        uint32_t bits = bits_of(b[k]) & 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    *most = largest;
    return total;
}

/* One tile of one expert; `finite`: the base is. The row stays as it was where nothing differs. */
INLINE void looked(Expert *own, const void *base, int64_t first, int64_t here, int kind, const float *b, int finite,
                   double *row) {
    uint32_t room[TILE] ALIGNED, keys[TILE] ALIGNED;
    float t[TILE] ALIGNED;
    const void *mine = whole(own->bits, first, here, kind, room);
    int32_t moved = differing(base, mine, kind);
    Table *table = own->table;
    own->idle = finite && !moved;
    table->seen += here;
    if (own->idle) {
        table->slots[0] += (uint32_t)here;
        return;
    }
    own->moved += moved;
    widened(mine, kind, t);
    own->largest = compared(b, t, own->largest, keys, row);
    if (table->used > table->most) return;
    tallied(table, keys, here);
    if (table->seen == EARLY && table->large && table->used > NEARLY) table->used = table->most + 1;
}

/* Add the products of a tile's rows; a row that nothing differs in is not looked at, and counts as zeros. */
static void added(const Expert *experts, int32_t count, const double *rows, double *energy, double *products) {
    for (int32_t i = 0; i < count; i++) {
        const double *others[TOGETHER];
        double totals[TOGETHER];
        int32_t places[TOGETHER], many = 0;
        energy[i] = 0;
        for (int32_t j = 0; j <= i && !experts[i].idle; j++) {
            if (!experts[j].idle) {
                places[many] = j;
                others[many++] = rows + (int64_t)j * TILE;
            }
            if (many < TOGETHER && j < i) continue;
            multiplied(rows + (int64_t)i * TILE, others, many, totals);
            for (int m = 0; m < many; m++) {
                products[i * count + places[m]] += totals[m];
                if (places[m] == i) energy[i] = totals[m];
                else products[places[m] * count + i] += totals[m];
            }
            many = 0;
        }
        for (int32_t j = 0; j < i; j++) {
            double none = 0 * (energy[i] + energy[j]); /* NaN where the other is not finite */
            if (!experts[i].idle && !experts[j].idle) continue;
            products[i * count + j] += none;
            products[j * count + i] += none;
        }
    }
}

INLINE void look(const void *base, Expert *experts, int32_t count, int64_t elements, int kind, double *rows,
                 double *products, double *size) {
    uint32_t room[TILE], most = bits_of((float)size[1]);
    float b[TILE] ALIGNED;
    rows = (double *)(((uintptr_t)rows + 63) & ~(uintptr_t)63);
    double *energy = rows + (int64_t)count * TILE;
    for (int64_t first = 0; first < elements; first += TILE) {
        int64_t here = elements - first < TILE ? elements - first : TILE;
        const void *own = whole(base, first, here, kind, room);
        uint32_t tile;
        widened(own, kind, b);
        size[0] += squared(b, &tile);
        most = tile > most ? tile : most;
        for (int32_t e = 0; e < count; e++)
            looked(experts + e, own, first, here, kind, b, tile < 0x7F800000u, rows + (int64_t)e * TILE);
        added(experts, count, rows, energy, products);
    }
    size[1] = (double)of_bits(most);
}

/* `rows` has room for TILE + 9 numbers of every expert. `products` (experts by experts) is added to; the base's sum of
   squares is added to size[0], and its largest magnitude, where that is larger, goes to size[1]. */
void cuvee_look(const void *base, Expert *experts, int32_t count, int64_t elements, int32_t kind, double *rows,
                double *products, double *size) {
    if (kind == BFLOAT16) look(base, experts, count, elements, BFLOAT16, rows, products, size);
    else if (kind == FLOAT16) look(base, experts, count, elements, FLOAT16, rows, products, size);
    else look(base, experts, count, elements, FLOAT32, rows, products, size);
}
