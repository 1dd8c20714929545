/* Programs over inputs that lie in files: a small run of every input is read into reused memory, which stays in cache,
 * and computed at once; one call does many runs, so that Python is not asked between them. Included once, by
 * cuvee_kernels.c. Positional reads of open files only.
 */
#ifndef CUVEE_STREAM_H
#define CUVEE_STREAM_H
#include <errno.h>
#include <time.h>
#include <unistd.h>

enum { BAD_FILE = 8 };

/* An input of `size` bytes an element: from `offset` on in an open file, with memory for a run of it; or, where `file` is
 * below 0, in memory as a whole. Where it `stays`, memory takes all of the file's bytes, run by run; those of every tile whose number is
 * a multiple of `seen` (where that is not 0) are there. */
typedef struct { int32_t file, size; int64_t offset; char *memory; int32_t stays, seen; } Input;

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int filled(const Input *input, char *to, int64_t first, int64_t n) {
    int64_t left = n * input->size, offset = input->offset + first * input->size;
    while (left > 0) {
        ssize_t got = pread(input->file, to, (size_t)left, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        to += got; offset += got; left -= got;
    }
    return 1;
}

/* Elements [first, first + n), brought to where they stay; nothing is read that is there. */
static int brought(const Input *input, int64_t first, int64_t n) {
    int64_t end = first + n, apart = (int64_t)input->seen * TILE;
    if (!apart) return filled(input, input->memory + first * input->size, first, n);
    while (first < end) {
        int64_t next = first / apart * apart;
        if (first < next + TILE) { first = next + TILE; continue; }
        next = next + apart < end ? next + apart : end;
        if (!filled(input, input->memory + first * input->size, first, next - first)) return 0;
        first = next;
    }
    return 1;
}

/* As cuvee_run, for elements [first, first + n), in runs of `step`; with `every` above 1 runs are single tiles. `out` is
 * where element `first` goes, `size` the bytes of one; `spent` takes nanoseconds of reading. */
int cuvee_stream(Op *ops, int32_t count, const Input *inputs, int32_t many, char *out, int64_t size, int64_t first,
                 int64_t n, int64_t step, int64_t every, float *regs, int64_t *spent) {
    const void *at[256];
    int found = 0;
    if (many > 256) return BAD_FILE;
    if (every > 1) step = TILE;
    for (int64_t s = 0; s < n; s += step * every) {
        int64_t m = n - s < step ? n - s : step, began = nanoseconds();
        for (int i = 0; i < many; i++) {
            const Input *input = inputs + i;
            at[i] = input->file < 0 || input->stays ? input->memory + (first + s) * input->size : input->memory;
            if (input->file < 0) continue;
            if (!(input->stays ? brought(input, first + s, m) : filled(input, input->memory, first + s, m))) return found | BAD_FILE;
        }
        *spent += nanoseconds() - began;
        found |= cuvee_run(ops, count, at, out + s * size, first + s, m, 1, regs);
        if (found) break;
    }
    return found;
}

#endif
