/* Magnitudes of a change summed before and after dropping at random, in one operation that makes the change, too. The same words
 * and sums as those of single operations. Included once, by cuvee_kernels.c.
 */
#ifndef CUVEE_NORMS_H
#define CUVEE_NORMS_H

/* An input, bfloat16 or `wide` (float32), less the register `base`; `own` is a register for tiles that need more care. Kept is what
 * random words of `key` are `below` for. So many bytes behind the head lie sums for each tile, of all and of what is kept, and a
 * bit for each element (0: bits are not asked for). */
typedef struct { int32_t input, base, own, wide; u64 key; u32 below, unused; int64_t before, after, drawn; } Norms;

/* What is kept of 8 lanes by a bit for each, else 0. */
static inline __attribute__((always_inline)) Doubles kept_wide(Doubles x, uint8_t bits) {
#ifdef __AVX512F__
    return (Doubles)_mm512_maskz_mov_pd(bits, (__m512d)x);
#else
    typedef int64_t Eights __attribute__((vector_size(64)));
    const Eights each = {1, 2, 4, 8, 16, 32, 64, 128};
    return (Doubles)((Eights)x & ((((Eights){0} + bits) & each) != 0));
#endif
}

/* A tile, in four vectors at a time that are a quarter of it apart, as the tree of sums wants them. */
static inline __attribute__((always_inline)) u32 normed(Norms *all, const void *in, int64_t s, int64_t line, const float *regs,
                                                        const uint8_t *bits, int stored, int wide) {
    const Whole sizes = (Whole){0} + 0x7fffffff;
    const float *base = regs + all->base * TILE;
    Doubles before[TILE / 4 / 8], after[TILE / 4 / 8];
    for (int j = 0; j < TILE / 4; j += WIDTH) {
        Whole x[4];
        for (int q = 0; q < 4; q++) {
            const int i = j + q * (TILE / 4);
            const u16 *half = (const u16 *)in + s + i;
            if (!stored) { x[q] = *(const Whole *)(regs + all->own * TILE + i) & sizes; continue; }
            Words word = wide ? *(const Words *)((const float *)in + s + i) : WIDENED(half);
            x[q] = (Whole)((Lanes)word - *(const Lanes *)(base + i)) & sizes;
        }
        IN_MEMORY(x);
        for (int h = 0; h < 2; h++) {
            Doubles w[4], k[4];
            for (int q = 0; q < 4; q++) {
                w[q] = doubled((const float *)&x[q] + 8 * h);
                k[q] = kept_wide(w[q], bits[(j + q * (TILE / 4)) / 8 + h]);
            }
            before[j / 8 + h] = (w[0] + w[2]) + (w[1] + w[3]);
            after[j / 8 + h] = (k[0] + k[2]) + (k[1] + k[3]);
        }
    }
    double found = folded(before);
    ((double *)((char *)all + all->before))[line] = found;
    ((double *)((char *)all + all->after))[line] = folded(after);
    return !(found - found == 0.0); /* finite values do not make such a sum infinite */
}

static u32 norms(Norms *all, const void **in, int64_t s, int64_t line, int m, float *regs) {
    Expert plain = {.wide = all->wide};
    const void *from = in[all->input];
    uint8_t own[TILE / 8], *bits = all->drawn ? (uint8_t *)all + all->drawn + line * (TILE / 8) : own;
    draw_bits(bits, (u64)line, all->key, all->below);
    ahead(from, s + TILE, all->wide);
    if (m == TILE) return all->wide ? normed(all, from, s, line, regs, bits, 1, 1) : normed(all, from, s, line, regs, bits, 1, 0);
    u32 bad = carefully(&plain, regs + all->base * TILE, from, s, line, m, regs + all->own * TILE);
    return bad | normed(all, from, s, line, regs, bits, 0, 0);
}

#endif
