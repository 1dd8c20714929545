/* What experts change in a run of elements, in one look: how many elements, the largest and all products of changes,
   and how often each magnitude stands; and how large the base is there.

   The reference is `Reference` in catalogue_look.py. Magnitudes are the bits of the float32 difference without a sign.
   Those whose lower 16 bits are 0 are counted by the others; next to these, by the upper 20, those whose lower 12 bits
   are 0, from 2^-30 to 4; what is left, in a hash table that grows, so that it is near as long as it can be. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BFLOAT16, FLOAT16, FLOAT32, TILE = 512, LANES = 32 };
enum { EARLY = 8192, NEARLY = 7168 }; /* a large tensor is given up if of its first ones so many are far and differ */
enum { PLAIN = 1 << 15, NEAR = 1 << 16, FIRST = (127 - 30) << 11, APART = 16, GROUP = 64 };
enum { ZERO = PLAIN + NEAR, FAR = ZERO + APART, SLOTS = FAR + APART };

typedef struct {
    uint32_t key; /* 0: free (0 itself is counted in a slot) */
    uint32_t count;
} Entry;

typedef struct {
    uint32_t *slots; /* two times SLOTS: counts of neighbours that are equal do not wait for each other */
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
    int32_t idle;  /* in this tile */
    double energy; /* of this tile */
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

static void widened(const void *from, int64_t first, int64_t count, int32_t kind, float *out) {
    if (kind == FLOAT32) {
        memcpy(out, (const float *)from + first, 4 * (size_t)count);
    } else if (kind == BFLOAT16) {
        const uint16_t *bits = (const uint16_t *)from + first;
        for (int64_t i = 0; i < count; i++) out[i] = of_bits((uint32_t)bits[i] << 16);
    } else {
        const uint16_t *bits = (const uint16_t *)from + first;
        for (int64_t i = 0; i < count; i++) out[i] = half(bits[i]);
    }
}

static Entry *found(Table *table, uint32_t key) {
    Entry *entries = table->entries + table->room;
    uint32_t mask = (uint32_t)table->room - 1, place = (key * 2654435761u) >> 7 & mask;
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

/* What was counted goes to `keys` and `counts`; how many, or -1 where they are more than can be told apart. The table
   is empty then. */
int64_t cuvee_told(Table *table, uint32_t *keys, uint32_t *counts) {
    uint32_t *even = table->slots, *odd = table->slots + SLOTS, zero = 0;
    int64_t many = 0, plain = 0, lost = table->used > table->most;
    for (int i = ZERO; i < SLOTS; i++) zero += i < FAR ? even[i] + odd[i] : 0;
    even[0] += zero;
    for (int first = 0; first < ZERO && !lost; first += GROUP) {
        uint32_t any = 0;
        if (first == PLAIN) plain = many;
        for (int i = first; i < first + GROUP; i++) any |= even[i] | odd[i];
        for (int i = first; any && i < first + GROUP; i++) {
            if (!(even[i] | odd[i])) continue;
            keys[many] = i < PLAIN ? (uint32_t)i << 16 : (uint32_t)(i - PLAIN + FIRST) << 12;
            counts[many++] = even[i] + odd[i];
        }
    }
    lost |= many - plain + table->used > table->most;
    Entry *entries = table->entries + table->room;
    for (int64_t i = 0; i < table->room && table->used && !lost; i++)
        if (entries[i].key) {
            keys[many] = entries[i].key;
            counts[many++] = entries[i].count;
        }
    memset(table->slots, 0, 2 * SLOTS * sizeof *table->slots);
    if (table->used) memset(entries, 0, (size_t)table->room * sizeof *entries);
    table->used = 0;
    table->room = table->narrowest;
    return lost ? -1 : many;
}

/* Count the magnitudes of a tile, of which elements from `here` on are none and have no change. */
static void tallied(Table *table, const uint32_t *keys, int64_t here) {
    uint32_t slots[TILE];
    uint8_t far[TILE];
    for (uint32_t i = 0; i < TILE; i++) { /* masks: the loop has no branches, so that it has vectors */
        uint32_t key = keys[i], near = (key >> 12) - FIRST, apart = i & (APART - 1);
        uint32_t inside = -(uint32_t)((key & 0xFFFu) == 0) & -(uint32_t)(near < NEAR);
        uint32_t plain = -(uint32_t)((key & 0xFFFFu) == 0), zero = -(uint32_t)(key == 0);
        uint32_t other = (inside & (PLAIN + near)) | (~inside & (FAR + apart));
        uint32_t slot = (plain & key >> 16) | (~plain & other);
        slots[i] = (zero & (ZERO + apart)) | (~zero & slot); /* zeros do not wait for each other either */
    }
    uint32_t *even = table->slots, *odd = table->slots + SLOTS;
    for (int i = 0; i < TILE; i += 2) {
        even[slots[i]]++;
        odd[slots[i + 1]]++;
    }
    even[ZERO] -= (uint32_t)(TILE - here); /* the sum of all that stands for zero is right, modulo 2^32 */
    for (int i = 0; i < TILE; i++) far[i] = slots[i] >= FAR;
    for (int first = 0; first < TILE; first += 8) {
        uint64_t some;
        memcpy(&some, far + first, sizeof some);
        for (; some; some &= some - 1) counted(table, keys[first + __builtin_ctzll(some) / 8]);
    }
}

/* The differences of a tile that is filled up with elements of no change, and how many elements have other bits. */
static void compared(const float *b, const float *t, uint32_t *keys, double *row, Expert *own) {
    uint32_t most = own->largest;
    for (int i = 0; i < TILE; i++) {
        keys[i] = bits_of(t[i] - b[i]) & 0x7FFFFFFFu;
        row[i] = (double)t[i] - (double)b[i];
    }
    for (int i = 0; i < TILE; i++) most = keys[i] > most ? keys[i] : most;
    own->largest = most;
}

static int64_t differing(const void *base, const void *tuned, int64_t first, int64_t count, int32_t kind) {
    int32_t moved = 0;
    if (kind == FLOAT32) {
        const uint32_t *a = (const uint32_t *)base + first, *b = (const uint32_t *)tuned + first;
        for (int64_t i = 0; i < count; i++) moved += a[i] != b[i];
    } else {
        const uint16_t *a = (const uint16_t *)base + first, *b = (const uint16_t *)tuned + first;
        for (int64_t i = 0; i < count; i++) moved += a[i] != b[i];
    }
    return moved;
}

static double product(const double *a, const double *b) {
    double sums[LANES] = {0}, total = 0;
    for (int k = 0; k < TILE; k += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += a[k + l] * b[k + l];
    for (int l = 0; l < LANES; l++) total += sums[l];
    return total;
}

/* The sum of squares of a tile and the largest magnitude so far. */
static double squared(const float *b, uint32_t *most) {
    double sums[LANES] = {0}, total = 0;
    uint32_t largest = *most;
    for (int k = 0; k < TILE; k += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += (double)b[k + l] * (double)b[k + l];
    for (int l = 0; l < LANES; l++) total += sums[l];
    for (int k = 0; k < TILE; k++) {
        uint32_t bits = bits_of(b[k]) & 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    *most = largest;
    return total;
}

/* One tile of one expert; `finite`: the base is. The row stays as it was where nothing differs. */
static void looked(Expert *own, const void *base, int64_t first, int64_t here, int32_t kind, const float *b, int finite,
                   double *row) {
    float t[TILE];
    uint32_t keys[TILE];
    size_t size = kind == FLOAT32 ? 4 : 2;
    const char *mine = (const char *)own->bits + size * (size_t)first;
    own->idle = finite && !memcmp((const char *)base + size * (size_t)first, mine, size * (size_t)here);
    own->table->seen += here;
    if (own->idle) {
        own->table->slots[ZERO] += (uint32_t)here;
        return;
    }
    memset(t, 0, sizeof t);
    widened(own->bits, first, here, kind, t);
    own->moved += differing(base, own->bits, first, here, kind);
    compared(b, t, keys, row, own);
    if (own->table->used > own->table->most) return;
    tallied(own->table, keys, here);
    int early = own->table->seen == EARLY && own->table->large;
    if (early && own->table->used > NEARLY) own->table->used = own->table->most + 1;
}

/* Add the products of a tile's rows; a row that nothing differs in is not looked at, and counts as zeros. */
static void multiplied(Expert *experts, int32_t count, const double *rows, double *products) {
    for (int32_t i = 0; i < count; i++) {
        Expert *own = experts + i;
        own->energy = own->idle ? 0 : product(rows + i * TILE, rows + i * TILE);
        products[i * count + i] += own->energy;
        for (int32_t j = 0; j < i; j++) {
            int32_t idle = own->idle || experts[j].idle;
            double none = 0 * (own->energy + experts[j].energy); /* NaN where the other is not finite */
            double found = idle ? none : product(rows + i * TILE, rows + j * TILE);
            products[i * count + j] += found;
            products[j * count + i] += found;
        }
    }
}

/* `rows` has room for TILE elements of every expert. `products` (experts by experts) is added to; the base's sum of
   squares is added to size[0], and its largest magnitude, where that is larger, goes to size[1]. */
void cuvee_look(const void *base, Expert *experts, int32_t count, int64_t elements, int32_t kind, double *rows,
                double *products, double *size) {
    float b[TILE];
    uint32_t most = bits_of((float)size[1]);
    for (int64_t first = 0; first < elements; first += TILE) {
        int64_t here = elements - first < TILE ? elements - first : TILE;
        uint32_t tile = 0;
        memset(b, 0, sizeof b);
        widened(base, first, here, kind, b);
        size[0] += squared(b, &tile);
        most = tile > most ? tile : most;
        for (int32_t e = 0; e < count; e++)
            looked(experts + e, base, first, here, kind, b, tile < 0x7F800000u, rows + e * TILE);
        multiplied(experts, count, rows, products);
    }
    size[1] = (double)of_bits(most);
}
