/* All products of a few inputs with each other, summed in float64, in one operation: each value is widened once, not once for
 * each product. The same products and sums in the same order as single ones. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_GRAM_H
#define CUVEE_GRAM_H

/* An input, bfloat16 or `wide` (float32); `own` is a register for tiles that need more care. */
typedef struct { int32_t input, own, wide, unused; } Factor;
/* `base`: register of what is subtracted from every input, or -1. `sums` bytes behind the head lies a sum for each tile of the
 * first input's product with itself, and those of every next product `lines` numbers behind. */
typedef struct { int32_t count, base; int64_t sums, lines; Factor each[]; } Gram;
enum { FACTORS = 4, PRODUCTS = FACTORS * (FACTORS + 1) / 2 };

/* A tile, in four vectors at a time that are a quarter of it apart, as the tree of sums wants them. What is not finite is told by
 * sums of squares, which finite values cannot make infinite. */
static inline __attribute__((always_inline)) u32 multiplied(Gram *all, const void **in, int64_t s, int64_t line, const float *regs,
                                                            int n, int stored, int subtracts) {
    const float *base = subtracts ? regs + all->base * TILE : 0;
    Doubles v[PRODUCTS][TILE / 4 / 8];
    double *sums = (double *)((char *)all + all->sums);
    u32 bad = 0;
    for (int j = 0; j < TILE / 4; j += WIDTH) {
        Lanes x[FACTORS][4];
        for (int q = 0; q < 4; q++) {
            const int i = j + q * (TILE / 4);
            for (int k = 0; k < n; k++) {
                const Factor *e = all->each + k;
                if (!stored) { x[k][q] = *(const Lanes *)(regs + e->own * TILE + i); continue; }
                const u16 *half = (const u16 *)in[e->input] + s + i;
                Words bits = e->wide ? *(const Words *)((const float *)in[e->input] + s + i) : WIDENED(half);
                x[k][q] = subtracts ? (Lanes)bits - *(const Lanes *)(base + i) : (Lanes)bits;
            }
        }
        IN_MEMORY(x);
        for (int h = 0; h < 2; h++) {
            Doubles w[FACTORS][4];
            for (int k = 0; k < n; k++)
                for (int q = 0; q < 4; q++) w[k][q] = doubled((const float *)&x[k][q] + 8 * h);
            for (int a = 0, pair = 0; a < n; a++)
                for (int b = a; b < n; b++, pair++)
                    v[pair][j / 8 + h] = plus_product(w[a][0] * w[b][0], w[a][2], w[b][2]) +
                                         plus_product(w[a][1] * w[b][1], w[a][3], w[b][3]);
        }
    }
    for (int a = 0, pair = 0; a < n; a++)
        for (int b = a; b < n; b++, pair++) {
            double found = sums[pair * all->lines + line] = folded(v[pair]);
            if (a == b) bad |= !(found - found == 0.0);
        }
    return bad;
}

#define MULTIPLIED(...) multiplied(all, in, s, line, regs, __VA_ARGS__)
static u32 gram(Gram *all, const void **in, int64_t s, int64_t line, int m, float *regs) {
    const float *base = all->base < 0 ? 0 : regs + all->base * TILE;
    const int n = all->count;
    u32 bad = 0;
    if (n > FACTORS) return 1;
    for (int k = 0; k < n; k++) {
        Expert plain = {.wide = all->each[k].wide};
        ahead(in[all->each[k].input], s + TILE, plain.wide);
        if (m < TILE) bad |= carefully(&plain, base, in[all->each[k].input], s, line, m, regs + all->each[k].own * TILE);
    }
    if (m < TILE) return bad | MULTIPLIED(n, 0, 0);
    if (n == 2 && base) return MULTIPLIED(2, 1, 1);
    if (n == 3 && base) return MULTIPLIED(3, 1, 1);
    if (n == 2) return MULTIPLIED(2, 1, 0);
    if (n == 3) return MULTIPLIED(3, 1, 0);
    return base ? MULTIPLIED(n, 1, 1) : MULTIPLIED(n, 1, 0);
}

#endif
