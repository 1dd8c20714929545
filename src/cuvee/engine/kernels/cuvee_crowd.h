/* Weighted sums and elections over all experts in one operation: a change is made, trimmed, weighed and counted while it
 * is in a register of the processor, not in cache between one operation and the next. The same sums, products and roundings
 * in the same order as those operations. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_CROWD_H
#define CUVEE_CROWD_H

#define WIDTH 16
typedef float Lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(64), aligned(4)));
typedef u32 Words __attribute__((vector_size(64), aligned(4)));
typedef u16 Halves __attribute__((vector_size(32), aligned(2)));

/* An expert: an input, bfloat16 or `wide` (float32); where it is TRIMMED, the least magnitude kept and how many equal to it
 * are; where it is DROPPED, below which random words of `key` it is kept, to be divided then; where it is MARKED, `key` is the
 * address of a bit for each element, and what is kept is multiplied by `divisor`; where it is BANDED, it is TRIMMED, too, but for
 * what is larger than `roof` and the first `over` of those equal to it. `delta` is a register for those words, or for tiles that
 * need more care. */
typedef struct {
    int32_t input, delta, wide, how;
    float weight, share;
    u32 cut;
    float divisor;
    int64_t ties;
    u64 key;
    int64_t over;
    u32 roof, unused;
} Expert;
/* `base`: register of what is subtracted from every expert, or -1. `first`: the sum begins with the first product, not 0.
 * `made`: what is made of those that agree. */
typedef struct { int32_t count, base, first, made; float tied, unused; Expert each[]; } Crowd;
enum { CROWD = 64, TRIMMED = 1, DROPPED = 2, MARKED = 4, BANDED = 8 };
enum { TOTAL, MEAN, GREATEST };
#define ALL_TIES ((int64_t)1 << 40)

/* 16 values where their bit is set, else 0. */
static inline __attribute__((always_inline)) Lanes where(Lanes x, u32 bits) {
    const Whole each = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (Lanes)((Whole)x & ((each & (int32_t)bits) != 0));
}

/* A tile that ends early, or in which ties run out, by the way of single operations. */
static u32 carefully(Expert *e, const float *base, const void *in, int64_t s, int64_t line, int m, float *to) {
    u32 bad;
    if (e->wide) { const float *p = (const float *)in + s; SOME to[i] = p[i]; bad = bad32(to, m); }
    else { const u16 *p = (const u16 *)in + s; SOME to[i] = from_bf16(p[i]); bad = bad16(p, m, 0x7f80); }
    if (base) { SOME to[i] = to[i] - base[i]; }
    for (int i = m; i < TILE; i++) to[i] = 0.0f;
    if (e->how == DROPPED) {
        u32 words[TILE], below = e->cut;
        float divisor = e->divisor;
        philox(words, (u64)line, e->key);
        EACH { float kept = words[i] < below ? to[i] : 0.0f; to[i] = kept / divisor; }
    }
    if (e->how == MARKED) {
        const uint8_t *bits = (const uint8_t *)e->key + line * (TILE / 8);
        for (int i = 0; i < m; i++) to[i] = bits[i / 8] >> (i & 7) & 1 ? to[i] * e->divisor : 0.0f;
    }
    if (e->how == TRIMMED) {
        Op op = {.bits = e->cut, .count = e->ties};
        trim(&op, to, to, to, m);
        if (e->ties < ALL_TIES) e->ties = op.count;
    }
    if (e->how == BANDED) {
        float own[TILE], large[TILE];
        Op least = {.bits = e->cut, .count = e->ties}, most = {.bits = e->roof, .count = e->over, .c = 1};
        memcpy(own, to, sizeof own);
        trim(&least, large, own, own, m);
        trim(&most, to, own, large, m);
        if (e->ties < ALL_TIES) e->ties = least.count;
        e->over = most.count;
    }
    return bad;
}

#ifdef __AVX512F__
#define WIDENED(p) ((Words)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#else
#define WIDENED(p) (__builtin_convertvector(*(const Halves *)(p), Words) << 16)
#endif

/* `ties` are counted, for each expert those equal to `cut`, and CROWD places behind these those equal to `roof`. */
static inline __attribute__((always_inline)) u32 together(const Crowd *all, const void **in, int64_t s, int64_t line,
                                                          const int *careful, Whole *ties, float *out, float *regs, int subtracts, int trims,
                                                          int drops, int bands, int elects, int made, int n) {
    const Words exponent = (Words){0} + 0x7f800000u;
    const Whole sizes = (Whole){0} + 0x7fffffff;
    const Lanes none = {0};
    const float *base = subtracts ? regs + all->base * TILE : 0;
    const int count = n ? n : all->count; /* known where the program is made */
    Words bad = {0};
    for (int j = 0; j < TILE; j += WIDTH) {
        Lanes value[CROWD], sum = none, b = subtracts ? *(const Lanes *)(base + j) : none;
        for (int k = 0; k < count; k++) {
            const Expert *e = all->each + k;
            Lanes d;
            if (careful[k]) d = *(const Lanes *)(regs + e->delta * TILE + j);
            else {
                const u16 *narrow = (const u16 *)in[e->input] + s + j;
                Words bits = e->wide ? *(const Words *)((const float *)in[e->input] + s + j)
                                     : WIDENED(narrow);
                bad |= (Words)((bits & exponent) == exponent);
                d = (Lanes)bits;
                if (subtracts) d = d - b;
                if (drops && e->how == DROPPED) {
                    Words word = *(const Words *)(regs + e->delta * TILE + j);
                    if (e->divisor != 1.0f) d = d / e->divisor;
                    d = (Lanes)((Whole)d & (Whole)(word < e->cut));
                }
                if (drops && e->how == MARKED) {
                    u16 bits;
                    memcpy(&bits, (const uint8_t *)e->key + (line * TILE + j) / 8, 2);
                    d = where(d * e->divisor, bits);
                }
                if (trims && e->how == TRIMMED) {
                    Whole key = (Whole)d & sizes;
                    ties[k] -= key == (int32_t)e->cut;
                    d = (Lanes)((Whole)d & (key >= (int32_t)(e->ties > 0 ? e->cut : e->cut + 1)));
                }
                if (bands && e->how == BANDED) {
                    Whole key = (Whole)d & sizes;
                    ties[k] -= key == (int32_t)e->cut;
                    ties[k + CROWD] -= key == (int32_t)e->roof;
                    d = (Lanes)((Whole)d & (key >= (int32_t)(e->ties > 0 ? e->cut : e->cut + 1)) &
                                (key < (int32_t)(e->over > 0 ? e->roof : e->roof + 1)));
                }
            }
            Lanes v = d * e->weight;
            if (elects) value[k] = v;
            sum = k == 0 && all->first ? v : sum + v;
        }
        if (!elects) { *(Lanes *)(out + j) = sum; continue; }
        bad |= (Words)(sum != sum); /* infinities that cancel: whose sign, the generic path says */
        Whole none_won = sum == none;
        Whole sign = ((Whole)((Lanes){0} + 1.0f)) | ((Whole)sum & ~sizes); /* 1 with the sign of the sum */
        Lanes won = (Lanes)((none_won & (Whole)((Lanes){0} + all->tied)) | (~none_won & sign));
        Lanes total = none, share = none;
        if (made == GREATEST) {
            for (int k = 0; k < count; k++) {
                Lanes entry = (Lanes)((Whole)value[k] & sizes & (Whole)(value[k] * won > none));
                Whole greater = entry > total;
                total = (Lanes)(((Whole)entry & greater) | ((Whole)total & ~greater));
            }
            *(Lanes *)(out + j) = total * won;
            continue;
        }
        for (int k = 0; k < count; k++) {
            Whole agrees = value[k] * won > none;
            total += (Lanes)((Whole)value[k] & agrees);
            share += (Lanes)((Whole)((Lanes){0} + all->each[k].share) & agrees);
        }
        if (all->made == MEAN) {
            Whole empty = share == none;
            total = total / (Lanes)(((Whole)share & ~empty) | ((Whole)((Lanes){0} + 1.0f) & empty));
        }
        *(Lanes *)(out + j) = total;
    }
    u32 found = 0;
    for (int i = 0; i < WIDTH; i++) found |= bad[i];
    return found != 0;
}

#ifdef __AVX512F__
/* Of 16 coordinates the sum, the mean or the greatest of those values that agree in sign with their `sum`. `share`: what each adds to the
 * divisor of a mean, `apart` bytes from that of the one before. */
static inline __attribute__((always_inline)) __m512 agreed(const __m512 *value, __m512 sum, const float *share, int apart,
                                                           float tied, int made, int n, __mmask16 *bad) {
    const __m512i sign = _mm512_set1_epi32((int)0x80000000u);
    const __m512 none = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    __m512 total = none, divisor = none;
    *bad |= _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q); /* infinities that cancel: whose sign, the generic path says */
    sum = _mm512_mask_mov_ps(sum, _mm512_cmp_ps_mask(sum, none, _CMP_EQ_OQ), _mm512_set1_ps(tied));
    const __m512i turn = _mm512_and_si512(_mm512_castps_si512(sum), sign);
    for (int k = 0; k < n; k++) {
        __m512 turned = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(value[k]), turn));
        __mmask16 agrees = _mm512_cmp_ps_mask(turned, none, _CMP_GT_OQ);
        float part = *(const float *)((const char *)share + k * apart);
        if (made == GREATEST) total = _mm512_mask_max_ps(total, agrees, total, turned);
        else total = _mm512_mask_add_ps(total, agrees, total, value[k]);
        if (made == MEAN) divisor = _mm512_mask_add_ps(divisor, agrees, divisor, _mm512_set1_ps(part));
    }
    if (made == MEAN) {
        __mmask16 empty = _mm512_cmp_ps_mask(divisor, none, _CMP_EQ_OQ);
        total = _mm512_div_ps(total, _mm512_mask_mov_ps(divisor, empty, one));
    }
    if (made == GREATEST) total = _mm512_mul_ps(total, _mm512_castsi512_ps(_mm512_or_si512(turn, _mm512_castps_si512(one))));
    return total;
}

/* An election as `together` has it; what is not kept of an expert adds +0. `counts`: ties, since they may run out. */
static inline __attribute__((always_inline)) u32 election(const Crowd *all, const void **in, int64_t s, int64_t line,
                                                          const int *careful, Whole *ties, float *out, const float *regs,
                                                          int counts, int drops, int made, int n) {
    const __m512i sizes = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    const float *base = regs + all->base * TILE;
    __m512i largest = _mm512_setzero_si512();
    __mmask16 bad = 0;
    n = n ? n : all->count;
    for (int j = 0; j < TILE; j += WIDTH) {
        __m512 value[CROWD], sum = _mm512_setzero_ps();
        const __m512 b = _mm512_loadu_ps(base + j);
        for (int k = 0; k < n; k++) {
            const Expert *e = all->each + k;
            const __m512 weight = _mm512_set1_ps(e->weight);
            if (careful[k]) value[k] = _mm512_mul_ps(_mm512_loadu_ps(regs + e->delta * TILE + j), weight);
            else {
                const u16 *narrow = (const u16 *)in[e->input] + s + j;
                const __m512i bits = (__m512i)(e->wide ? *(const Words *)((const float *)in[e->input] + s + j) : WIDENED(narrow));
                __m512 d = _mm512_sub_ps(_mm512_castsi512_ps(bits), b);
                __mmask16 kept = 0xffff;
                largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, sizes));
                if (drops && e->how == DROPPED) {
                    kept = _mm512_cmplt_epu32_mask(_mm512_loadu_si512(regs + e->delta * TILE + j), _mm512_set1_epi32((int)e->cut));
                    if (e->divisor != 1.0f) d = _mm512_div_ps(d, _mm512_set1_ps(e->divisor));
                }
                if (drops && e->how == MARKED) {
                    memcpy(&kept, (const uint8_t *)e->key + (line * TILE + j) / 8, 2);
                    d = _mm512_mul_ps(d, _mm512_set1_ps(e->divisor));
                }
                if (e->how == TRIMMED) {
                    const __m512i key = _mm512_and_si512(_mm512_castps_si512(d), sizes), cut = _mm512_set1_epi32((int)e->cut);
                    kept = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)(e->ties > 0 ? e->cut : e->cut + 1)));
                    const __mmask16 tied = counts ? _mm512_cmpeq_epi32_mask(key, cut) : 0;
                    if (counts) ties[k] = (Whole)_mm512_mask_add_epi32((__m512i)ties[k], tied, (__m512i)ties[k], one);
                }
                value[k] = _mm512_maskz_mul_ps(kept, d, weight);
            }
            sum = _mm512_add_ps(sum, value[k]);
        }
        _mm512_storeu_ps(out + j, agreed(value, sum, &all->each[0].share, sizeof(Expert), all->tied, made, n, &bad));
    }
    return bad != 0 || _mm512_cmpge_epi32_mask(largest, _mm512_set1_epi32(0x7f800000)) != 0;
}
#define ELECTION(...) (all->count == 3 ? election(all, in, s, line, careful, ties, to, regs, __VA_ARGS__, 3) \
                                       : election(all, in, s, line, careful, ties, to, regs, __VA_ARGS__, 0))
#endif

#define TOGETHER(...)                                                                                                  \
    (all->count == 3 ? together(all, in, s, line, careful, ties, to, regs, __VA_ARGS__, 3)                                   \
                     : together(all, in, s, line, careful, ties, to, regs, __VA_ARGS__, 0))
static u32 attempt(const Crowd *all, const void **in, int64_t s, int64_t line, const int *careful, Whole *ties, float *to, float *regs,
                   int how, int elects) {
#ifdef __AVX512F__
    int counts = 0; /* ties, where they may run out */
    for (int k = 0; k < all->count; k++) counts |= all->each[k].ties > 0 && all->each[k].ties < ALL_TIES;
    if (elects && all->made == GREATEST) return ELECTION(1, 1, GREATEST);
    if (elects && how & (DROPPED | MARKED)) return all->made == MEAN ? ELECTION(1, 1, MEAN) : ELECTION(1, 1, TOTAL);
    if (elects && counts) return all->made == MEAN ? ELECTION(1, 0, MEAN) : ELECTION(1, 0, TOTAL);
    if (elects) return all->made == MEAN ? ELECTION(0, 0, MEAN) : ELECTION(0, 0, TOTAL);
#endif
    if (elects && all->made == GREATEST) return how ? TOGETHER(1, 1, 1, 0, 1, GREATEST) : TOGETHER(1, 0, 0, 0, 1, GREATEST);
    if (elects && how & (DROPPED | MARKED)) return TOGETHER(1, 1, 1, 0, 1, TOTAL);
    if (elects && how) return TOGETHER(1, 1, 0, 0, 1, TOTAL);
    if (elects) return TOGETHER(1, 0, 0, 0, 1, TOTAL);
    if (how & (TRIMMED | BANDED)) return TOGETHER(1, 1, 1, 1, 0, TOTAL);
    if (how) return TOGETHER(1, 0, 1, 0, 0, TOTAL);
    if (all->base >= 0) return TOGETHER(1, 0, 0, 0, 0, TOTAL);
    return TOGETHER(0, 0, 0, 0, 0, TOTAL);
}

/* Divided by a whole number up to 64. A product with the inverse is at most one step off, and the remainder says so, for
 * every float whose remainder can be told (tried with all significands); tiny and huge values are divided, and -0. */
static inline __attribute__((always_inline)) Lanes over(Lanes x, float count, float inverse) {
#ifdef __AVX512F__
    __m512i size = _mm512_and_si512((__m512i)x, _mm512_set1_epi32(0x7fffffff));
    size = _mm512_sub_epi32(size, _mm512_set1_epi32(0x10000000));
    __mmask16 plain = _mm512_cmplt_epu32_mask(size, _mm512_set1_epi32(0x60000000));
    if (count <= 64.0f && (plain | _mm512_testn_epi32_mask((__m512i)x, (__m512i)x)) == 0xffff) {
        __m512 near = _mm512_mul_ps((__m512)x, _mm512_set1_ps(inverse));
        __m512 rest = _mm512_fnmadd_ps(near, _mm512_set1_ps(count), (__m512)x);
        return (Lanes)_mm512_fmadd_ps(rest, _mm512_set1_ps(inverse), near);
    }
#endif
    return x / count;
}

static void shrink(float *to, const float *a, float x) {
    if (!(x >= 1.0f && x <= 64.0f) || x != (float)(int)x) { EACH to[i] = a[i] / x; return; }
    const float inverse = 1.0f / x;
    for (int j = 0; j < TILE; j += WIDTH) *(Lanes *)(to + j) = over(*(const Lanes *)(a + j), x, inverse);
}

/* The tile that begins at element `s` is fetched; where there is none, that does no harm. */
static inline void ahead(const void *in, int64_t s, int wide) { fetch((const char *)in + s * (wide ? 4 : 2), TILE * (wide ? 4 : 2)); }

/* Population variance over the experts in registers, of differences to the first. */
typedef struct { int32_t count, registers[]; } Listed;
static void variance(const Listed *all, float *to, const float *regs) {
    const float *first = regs + all->registers[0] * TILE;
    float count = (float)all->count, inverse = 1.0f / count;
    for (int j = 0; j < TILE; j += WIDTH) {
        Lanes origin = *(const Lanes *)(first + j), mean = {0}, spread = {0};
        for (int k = 0; k < all->count; k++) mean += *(const Lanes *)(regs + all->registers[k] * TILE + j) - origin;
        mean = over(mean, count, inverse);
        for (int k = 0; k < all->count; k++) {
            Lanes d = (*(const Lanes *)(regs + all->registers[k] * TILE + j) - origin) - mean, square = d * d;
            spread += square;
        }
        *(Lanes *)(to + j) = over(spread, count, inverse);
    }
}

static u32 crowd(Crowd *all, const void **in, int64_t s, int64_t line, int m, float *to, float *regs, int elects) {
    int careful[CROWD], how = 0, again = 0;
    int64_t found[2 * CROWD] = {0};
    Whole ties[2 * CROWD];
    u32 bad = 0;
    if (all->count > CROWD) return 1;
    const float *base = all->base < 0 ? 0 : regs + all->base * TILE;
    for (int k = 0; k < all->count; k++) {
        Expert *e = all->each + k;
        how |= e->how;
        ties[k] = ties[k + CROWD] = (Whole){0};
        ahead(in[e->input], s + TILE, e->wide);
        careful[k] = m < TILE;
        if (careful[k]) bad |= carefully(e, base, in[e->input], s, line, m, regs + e->delta * TILE);
        else if (e->how == DROPPED) philox((u32 *)(regs + e->delta * TILE), (u64)line, e->key);
    }
    bad |= attempt(all, in, s, line, careful, ties, to, regs, how, elects);
    for (int k = 0; k < all->count; k++) {
        Expert *e = all->each + k;
        for (int i = 0; i < WIDTH; i++) found[k] += ties[k][i], found[k + CROWD] += ties[k + CROWD][i];
        if ((found[k] <= e->ties || e->ties <= 0) && (found[k + CROWD] <= e->over || e->over <= 0)) continue;
        found[k] = found[k + CROWD] = 0, again = careful[k] = 1; /* they run out within this tile */
        bad |= carefully(e, base, in[e->input], s, line, m, regs + e->delta * TILE);
    }
    if (again) bad |= attempt(all, in, s, line, careful, ties, to, regs, how, elects);
    for (int k = 0; k < all->count; k++) {
        Expert *e = all->each + k;
        if (e->ties > 0 && e->ties < ALL_TIES) e->ties -= found[k];
        if (e->over > 0) e->over -= found[k + CROWD];
    }
    return bad;
}

#endif
