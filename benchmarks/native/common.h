/* What the mock upstream and the load client share: the clock, the file limit, the chunked decoder.
 *
 * Both run on one machine and read CLOCK_MONOTONIC, so a stamp written by one can be subtracted by the
 * other without any agreement between them.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <time.h>

typedef unsigned long long u64;

static const u64 NS_PER_S = 1000000000ull;

static inline u64 now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

static inline struct timespec timespec_of_ns(u64 ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    return t;
}

static inline void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Incremental decoder of the chunked transfer coding (RFC 9112 section 7.1). All zero is the start. */
typedef struct {
    enum { SIZE_LINE, EXTENSION, CHUNK_DATA, AFTER_DATA, TRAILER } at;
    unsigned line_length; /* digits of the size line, or characters of the trailer line */
    u64 left;             /* bytes of the current chunk still to come */
} chunked;

typedef enum { CHUNKED_MORE, CHUNKED_DATA, CHUNKED_END, CHUNKED_BAD } chunked_result;

/* Reads on from *p. DATA: a piece of the body lies at *data, *length. MORE: all bytes used. */
static inline chunked_result chunked_next(chunked *c, const char **p, const char *end,
                                          const char **data, size_t *length) {
    while (*p < end) {
        if (c->at == CHUNK_DATA) {
            size_t n = (size_t)(end - *p);
            if (n > c->left) n = (size_t)c->left;
            *data = *p;
            *length = n;
            *p += n;
            c->left -= n;
            if (c->left == 0) c->at = AFTER_DATA;
            return CHUNKED_DATA;
        }
        char ch = *(*p)++;
        int digit;
        switch (c->at) {
        case SIZE_LINE:
            digit = hex_value(ch);
            if (digit >= 0) {
                if (++c->line_length > 16) return CHUNKED_BAD;
                c->left = c->left * 16 + (u64)digit;
                break;
            }
            if (c->line_length == 0 || (ch != '\r' && ch != '\n' && ch != ';' && ch != ' ' && ch != '\t'))
                return CHUNKED_BAD;
            c->at = EXTENSION;
            /* fall through */
        case EXTENSION:
            if (ch == '\n') {
                c->line_length = 0;
                c->at = c->left ? CHUNK_DATA : TRAILER;
            }
            break;
        case AFTER_DATA:
            if (ch == '\n')
                c->at = SIZE_LINE;
            else if (ch != '\r')
                return CHUNKED_BAD;
            break;
        case TRAILER:
            if (ch == '\n') {
                if (c->line_length == 0) {
                    c->at = SIZE_LINE;
                    return CHUNKED_END;
                }
                c->line_length = 0;
            } else if (ch != '\r') {
                c->line_length++;
            }
            break;
        case CHUNK_DATA:
            break; /* taken above */
        }
    }
    return CHUNKED_MORE;
}

#endif
