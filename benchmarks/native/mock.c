/* Mock LLM provider: HTTP/1.1 with keep-alive, JSON and SSE answers. One thread, epoll, no library.
 *
 *     mock PORT            listens on 127.0.0.1
 *
 * The shape of the answer follows the path:
 *     .../messages...      Anthropic        ...enerateContent...   Gemini
 *     /raw                 plain octets     /health                "ok"
 *     /stats               {"conns": accepted so far, "reqs": so far, "open": now, "streaming": now}
 *     everything else      OpenAI chat
 * It streams when the body says "stream":true (looked for in its first 4 KiB and last 256 bytes), when
 * the path has streamGenerateContent, or with the knob s=1.
 *
 * Knobs travel in the message text, so that they pass a proxy that rewrites bodies:
 * BENCH:n=200,i=50000; in the first 4 KiB of the body, or after the ? of the target.
 *     n  events in a stream (20)          i  microseconds between them (0: as fast as it goes)
 *     b  bytes of filler in the answer    d  microseconds before the first byte       s=1  stream
 *
 * Every event is one write(). Its text begins with @ and 19 digits: CLOCK_MONOTONIC in nanoseconds just
 * before that write, which is what the load client measures the added delay of an event from.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

enum { MAX_HEAD = 65536, BODY_START = 4096, BODY_END = 256, STAMP_DIGITS = 19 };
/* Streams due within this time of each other share one wake-up: the mock must not be what is measured. */
static const u64 SHORTEST_SLEEP_NS = 200000;

typedef enum { OPENAI, ANTHROPIC, GEMINI, RAW, HEALTH, STATS } shape;

typedef struct {
    char *bytes;
    size_t length, capacity;
} buffer;

typedef struct conn {
    int fd;
    enum { READ_HEAD, READ_LENGTH, READ_CHUNKS, ANSWER } state;
    bool closes;  /* the connection ends with this answer */
    bool blocked; /* the socket is full: EPOLLOUT is awaited */
    buffer held;  /* bytes that arrived and are not used yet */

    char target[512];
    u64 body_left;
    chunked chunks;
    char body_start[BODY_START], body_end[BODY_END];
    size_t body_start_length, body_end_length;

    shape shape;
    buffer out; /* bytes the socket did not take */
    size_t out_sent;
    u64 filler;         /* filler bytes still to send, after `out` */
    const char *ending; /* sent after the filler */
    size_t ending_left;

    bool streams, head_sent;
    u64 events, events_sent, interval_ns, due_ns;
    int timed_place; /* index in `timed`, -1: not in it */
    struct conn *next_closed;
} conn;

static int poller;
static u64 accepted, requests, open_now;
static conn **timed; /* connections that wait for a point in time, in no order */
static int timed_count, timed_capacity;
static conn *closed; /* freed when the batch of events that may name them is over */
static char filler[1 << 18], input[1 << 18];

/* ---- answers ---- */

typedef struct {
    char *bytes;
    size_t length;
    char *stamp; /* where the digits go, NULL: no stamp */
} event;

#define STAMP "@0000000000000000000"
#define OPENAI_CHUNK(delta, finish)                                                                    \
    "data: {\"id\":\"chatcmpl-bench01\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"  \
    "\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{" delta "},\"finish_reason\":" finish   \
    "}]}\n\n"

static const char OPENAI_FIRST[] = OPENAI_CHUNK("\"role\":\"assistant\",\"content\":\"" STAMP " \"", "null");
static const char OPENAI_NEXT[] = OPENAI_CHUNK("\"content\":\"" STAMP " \"", "null");
static const char OPENAI_LAST[] = OPENAI_CHUNK("", "\"stop\"")
    "data: {\"id\":\"chatcmpl-bench01\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
    "\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":200,"
    "\"total_tokens\":224}}\n\n"
    "data: [DONE]\n\n";
static const char ANTHROPIC_START[] =
    "event: message_start\n"
    "data: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_bench01\",\"type\":\"message\","
    "\"role\":\"assistant\",\"model\":\"claude-sonnet-4-6\",\"content\":[],\"stop_reason\":null,"
    "\"stop_sequence\":null,\"usage\":{\"input_tokens\":24,\"cache_creation_input_tokens\":0,"
    "\"cache_read_input_tokens\":0,\"output_tokens\":1}}}\n\n"
    "event: content_block_start\n"
    "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
static const char ANTHROPIC_NEXT[] =
    "event: content_block_delta\n"
    "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\","
    "\"text\":\"" STAMP " and some more text here\"}}\n\n";
static const char ANTHROPIC_LAST[] =
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
    "event: message_delta\n"
    "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
    "\"usage\":{\"output_tokens\":200}}\n\n"
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
static const char GEMINI_NEXT[] =
    "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"" STAMP " \"}],\"role\":\"model\"},"
    "\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":24,\"totalTokenCount\":24},"
    "\"modelVersion\":\"gemini-2.5-flash\"}\r\n\r\n";
static const char GEMINI_LAST[] =
    "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"}],\"role\":\"model\"},"
    "\"finishReason\":\"STOP\",\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":24,"
    "\"candidatesTokenCount\":200,\"totalTokenCount\":224},\"modelVersion\":\"gemini-2.5-flash\"}\r\n\r\n";

/* The JSON answers in two halves: filler goes between them, into the text of the message. */
static const char *const JSON_START[] = {
    [OPENAI] = "{\"id\":\"chatcmpl-bench00000000000000000000001\",\"object\":\"chat.completion\","
               "\"created\":1700000000,\"model\":\"gpt-4o-2024-08-06\",\"choices\":[{\"index\":0,"
               "\"message\":{\"role\":\"assistant\",\"content\":\"",
    [ANTHROPIC] = "{\"id\":\"msg_bench0000000000000001\",\"type\":\"message\",\"role\":\"assistant\","
                  "\"model\":\"claude-sonnet-4-6\",\"content\":[{\"type\":\"text\",\"text\":\"",
    [GEMINI] = "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"",
};
#define SENTENCE                                                                                       \
    "The capital of France is Paris, which has been the seat of government for most of the time "      \
    "since the tenth century."
static const char *const JSON_END[] = {
    [OPENAI] = SENTENCE "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
               "\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":26,\"total_tokens\":50,"
               "\"prompt_tokens_details\":{\"cached_tokens\":0},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":0}},"
               "\"system_fingerprint\":\"fp_bench00000\"}",
    [ANTHROPIC] = SENTENCE "\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,"
                  "\"usage\":{\"input_tokens\":24,\"cache_creation_input_tokens\":0,"
                  "\"cache_read_input_tokens\":0,\"output_tokens\":26}}",
    [GEMINI] = "The capital of France is Paris.\"}],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],"
               "\"usageMetadata\":{\"promptTokenCount\":24,\"candidatesTokenCount\":26,"
               "\"totalTokenCount\":50},\"modelVersion\":\"gemini-2.5-flash\"}",
};

static event first_event[3], next_event[3], last_event[3], anthropic_start;

/* The event as one chunk, framed once at start; `end` adds the last chunk to it. */
static event framed(const char *text, const char *end) {
    event e;
    int n = asprintf(&e.bytes, "%zx\r\n%s\r\n%s", strlen(text), text, end);
    if (n < 0) abort();
    e.length = (size_t)n;
    char *at = strchr(e.bytes, '@');
    e.stamp = at ? at + 1 : NULL;
    return e;
}

static void frame_events(void) {
    static const char END[] = "0\r\n\r\n";
    first_event[OPENAI] = framed(OPENAI_FIRST, "");
    next_event[OPENAI] = framed(OPENAI_NEXT, "");
    last_event[OPENAI] = framed(OPENAI_LAST, END);
    anthropic_start = framed(ANTHROPIC_START, "");
    first_event[ANTHROPIC] = next_event[ANTHROPIC] = framed(ANTHROPIC_NEXT, "");
    last_event[ANTHROPIC] = framed(ANTHROPIC_LAST, END);
    first_event[GEMINI] = next_event[GEMINI] = framed(GEMINI_NEXT, "");
    last_event[GEMINI] = framed(GEMINI_LAST, END);
}

static void write_stamp(char *at, u64 ns) {
    for (int i = STAMP_DIGITS - 1; i >= 0; i--) {
        at[i] = (char)('0' + ns % 10);
        ns /= 10;
    }
}

/* ---- connections ---- */

static void append(buffer *b, const char *bytes, size_t n) {
    if (b->length + n > b->capacity) {
        b->capacity = b->length + n + 4096;
        b->bytes = realloc(b->bytes, b->capacity);
        if (!b->bytes) abort();
    }
    memcpy(b->bytes + b->length, bytes, n);
    b->length += n;
}

static void watch(conn *c, bool writable) {
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
    c->blocked = writable;
}

static void timed_add(conn *c) {
    if (c->timed_place >= 0) return;
    if (timed_count == timed_capacity) {
        timed_capacity = timed_capacity ? timed_capacity * 2 : 256;
        timed = realloc(timed, (size_t)timed_capacity * sizeof *timed);
        if (!timed) abort();
    }
    c->timed_place = timed_count;
    timed[timed_count++] = c;
}

static void timed_remove(conn *c) {
    if (c->timed_place < 0) return;
    conn *last = timed[--timed_count];
    timed[c->timed_place] = last;
    last->timed_place = c->timed_place;
    c->timed_place = -1;
}

static void drop(conn *c) {
    timed_remove(c);
    close(c->fd);
    c->fd = -1;
    open_now--;
    c->next_closed = closed;
    closed = c;
}

/* write() with the three things that can happen to it: bytes taken, 0 for a full socket, -1 for gone. */
static ssize_t try_write(conn *c, const char *bytes, size_t n) {
    ssize_t taken = write(c->fd, bytes, n);
    if (taken >= 0) return taken;
    if (errno == EAGAIN) return 0;
    drop(c);
    return -1;
}

typedef enum { GONE = -1, SENT = 0, WAITING = 1 } sending;

/* Writes at once; what the socket does not take is kept and sent when it is writable. */
static sending send_bytes(conn *c, const char *bytes, size_t n) {
    if (c->out_sent == c->out.length) {
        c->out_sent = c->out.length = 0;
        ssize_t taken = try_write(c, bytes, n);
        if (taken < 0) return GONE;
        if ((size_t)taken == n) return SENT;
        bytes += taken;
        n -= (size_t)taken;
    }
    append(&c->out, bytes, n);
    if (!c->blocked) watch(c, true);
    return WAITING;
}

/* Sends what is left of the answer: kept bytes, filler, ending. */
static sending send_rest(conn *c) {
    for (;;) {
        ssize_t taken;
        if (c->out_sent < c->out.length) {
            taken = try_write(c, c->out.bytes + c->out_sent, c->out.length - c->out_sent);
            if (taken > 0) c->out_sent += (size_t)taken;
        } else if (c->filler) {
            taken = try_write(c, filler, c->filler < sizeof filler ? (size_t)c->filler : sizeof filler);
            if (taken > 0) c->filler -= (u64)taken;
        } else if (c->ending_left) {
            taken = try_write(c, c->ending, c->ending_left);
            if (taken > 0) {
                c->ending += taken;
                c->ending_left -= (size_t)taken;
            }
        } else {
            c->out_sent = c->out.length = 0;
            if (c->blocked) watch(c, false);
            return SENT;
        }
        if (taken < 0) return GONE;
        if (taken == 0) {
            if (!c->blocked) watch(c, true);
            return WAITING;
        }
    }
}

static void receive(conn *c, const char *bytes, size_t n);

/* The answer is out: the connection is free for its next request, which may have arrived already. */
static void answered(conn *c) {
    if (c->closes) {
        drop(c);
        return;
    }
    timed_remove(c);
    c->state = READ_HEAD;
    if (c->blocked) watch(c, false);
    if (c->held.length) {
        buffer early = c->held;
        c->held = (buffer){0};
        receive(c, early.bytes, early.length);
        free(early.bytes);
    }
}

/* ---- answering ---- */

static void answer_whole(conn *c) {
    char head[2048], stats[160];
    const char *type = "application/json", *start = "", *end = "", *more_fields = "";
    u64 fill = c->filler;
    switch (c->shape) {
    case HEALTH:
        type = "text/plain";
        start = "ok\n";
        fill = 0;
        break;
    case STATS:
        snprintf(stats, sizeof stats, "{\"conns\":%llu,\"reqs\":%llu,\"open\":%llu,\"streaming\":%d}\n", accepted,
                 requests, open_now, timed_count);
        start = stats;
        fill = 0;
        break;
    case RAW:
        type = "application/octet-stream";
        break;
    default:
        start = JSON_START[c->shape];
        end = JSON_END[c->shape];
        more_fields = "x-request-id: req_bench\r\n";
    }
    /* Without filler the whole answer is one write. */
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%sContent-Length: %llu\r\n\r\n%s%s", type, more_fields,
                     (u64)(strlen(start) + strlen(end)) + fill, start, fill ? "" : end);
    c->filler = 0;
    sending s = send_bytes(c, head, (size_t)n);
    if (s == GONE) return;
    if (fill) {
        c->filler = fill;
        c->ending = end;
        c->ending_left = strlen(end);
        s = send_rest(c);
    }
    if (s == SENT) answered(c);
}

static sending send_event(conn *c, const event *e) {
    if (e->stamp) write_stamp(e->stamp, now_ns());
    return send_bytes(c, e->bytes, e->length);
}

/* One event of a stream that is due; the head goes before the first. */
static void stream_on(conn *c, u64 now) {
    static const char HEAD[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
        "x-request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n";
    if (!c->head_sent) {
        c->head_sent = true;
        if (send_bytes(c, HEAD, sizeof HEAD - 1) == GONE) return;
        if (c->shape == ANTHROPIC && send_event(c, &anthropic_start) == GONE) return;
    }
    if (c->events_sent < c->events) {
        const event *e = c->events_sent ? &next_event[c->shape] : &first_event[c->shape];
        c->events_sent++;
        c->due_ns = (c->due_ns ? c->due_ns : now) + c->interval_ns;
        send_event(c, e);
        return;
    }
    c->streams = false;
    sending s = send_event(c, &last_event[c->shape]);
    if (s == SENT)
        answered(c);
    else if (s == WAITING)
        timed_remove(c);
}

/* ---- requests ---- */

static u64 knob(const char *from, const char *end, char name, u64 otherwise) {
    for (const char *p = from; p + 1 < end && !strchr(";\" ", *p); p++)
        if (*p == name && p[1] == '=' && (p == from || !isalpha((unsigned char)p[-1]))) return strtoull(p + 2, NULL, 10);
    return otherwise;
}

static bool says_stream(const char *bytes, size_t n) {
    return memmem(bytes, n, "\"stream\":true", 13) || memmem(bytes, n, "\"stream\": true", 14);
}

static shape shape_of(const char *target) {
    if (strstr(target, "/messages")) return ANTHROPIC;
    if (strstr(target, "enerateContent")) return GEMINI;
    if (!strncmp(target, "/raw", 4)) return RAW;
    if (!strncmp(target, "/stats", 6)) return STATS;
    if (!strncmp(target, "/health", 7)) return HEALTH;
    return OPENAI;
}

static void answer(conn *c) {
    requests++;
    c->state = ANSWER;
    c->shape = shape_of(c->target);
    const char *from = memmem(c->body_start, c->body_start_length, "BENCH:", 6);
    const char *end = c->body_start + c->body_start_length;
    if (from) {
        from += 6;
    } else if ((from = strchr(c->target, '?'))) {
        from++;
        end = c->target + strlen(c->target);
    } else {
        from = end;
    }
    u64 delay_ns = knob(from, end, 'd', 0) * 1000;
    c->events = knob(from, end, 'n', 20);
    c->interval_ns = knob(from, end, 'i', 0) * 1000;
    c->filler = knob(from, end, 'b', 0);
    c->streams = c->shape < RAW && (knob(from, end, 's', 0) || strstr(c->target, "streamGenerate") ||
                                    says_stream(c->body_start, c->body_start_length) ||
                                    says_stream(c->body_end, c->body_end_length));
    c->events_sent = 0;
    c->head_sent = false;
    c->ending_left = 0;
    c->due_ns = delay_ns ? now_ns() + delay_ns : 0;
    if (c->streams) {
        c->filler = 0;
        timed_add(c);
        if (!delay_ns) stream_on(c, now_ns());
    } else if (delay_ns) {
        timed_add(c);
    } else {
        answer_whole(c);
    }
}

/* Of the body its start and its end are kept, no more: that is where knobs and "stream" are. */
static void keep_body(conn *c, const char *bytes, size_t n) {
    size_t start = BODY_START - c->body_start_length;
    if (start > n) start = n;
    memcpy(c->body_start + c->body_start_length, bytes, start);
    c->body_start_length += start;
    if (n >= BODY_END) {
        memcpy(c->body_end, bytes + n - BODY_END, BODY_END);
        c->body_end_length = BODY_END;
        return;
    }
    size_t keep = c->body_end_length;
    if (keep + n > BODY_END) keep = BODY_END - n;
    memmove(c->body_end, c->body_end + c->body_end_length - keep, keep);
    memcpy(c->body_end + keep, bytes, n);
    c->body_end_length = keep + n;
}

static bool starts_with(const char *line, const char *name) { return !strncasecmp(line, name, strlen(name)); }

/* Reads a whole head. False: the connection is gone. */
static bool take_head(conn *c, const char *head, size_t length) {
    const char *end = head + length;
    const char *target = memchr(head, ' ', length);
    const char *version = target ? memchr(target + 1, ' ', (size_t)(end - target - 1)) : NULL;
    if (!version) {
        drop(c);
        return false;
    }
    target++;
    size_t n = (size_t)(version - target);
    if (n >= sizeof c->target) n = sizeof c->target - 1;
    memcpy(c->target, target, n);
    c->target[n] = 0;
    bool is_chunked = false, expects = false;
    c->body_left = 0;
    c->closes = starts_with(version + 1, "HTTP/1.0");
    for (const char *line = memchr(head, '\n', length); line && ++line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        if (starts_with(line, "content-length:")) {
            c->body_left = strtoull(line + 15, NULL, 10);
        } else if (starts_with(line, "connection:")) {
            const char *value = line + 11 + strspn(line + 11, " ");
            if (starts_with(value, "close"))
                c->closes = true;
            else if (starts_with(value, "keep-alive"))
                c->closes = false;
        } else if (starts_with(line, "transfer-encoding:")) {
            is_chunked = true;
        } else if (starts_with(line, "expect:")) {
            expects = true;
        }
    }
    c->body_start_length = c->body_end_length = 0;
    if (expects && send_bytes(c, "HTTP/1.1 100 Continue\r\n\r\n", 25) == GONE) return false;
    if (is_chunked) {
        c->state = READ_CHUNKS;
        c->chunks = (chunked){0};
    } else if (c->body_left) {
        c->state = READ_LENGTH;
    } else {
        answer(c);
    }
    return true;
}

static void receive(conn *c, const char *p, size_t n) {
    const char *end = p + n;
    while (p < end && c->fd >= 0) {
        size_t here = (size_t)(end - p);
        if (c->state == ANSWER) { /* pipelined: its turn comes */
            append(&c->held, p, here);
            return;
        }
        if (c->state == READ_HEAD) {
            size_t before = c->held.length;
            const char *head = p;
            if (before) {
                append(&c->held, p, here);
                head = c->held.bytes;
            }
            const char *blank = memmem(head, before + here, "\r\n\r\n", 4);
            if (!blank) {
                if (!before) append(&c->held, p, here);
                if (c->held.length > MAX_HEAD) drop(c);
                return;
            }
            size_t length = (size_t)(blank - head) + 4;
            p += length - before;
            c->held.length = 0;
            if (!take_head(c, head, length)) return;
        } else if (c->state == READ_LENGTH) {
            size_t take = here < c->body_left ? here : (size_t)c->body_left;
            keep_body(c, p, take);
            p += take;
            c->body_left -= take;
            if (!c->body_left) answer(c);
        } else {
            const char *data;
            size_t length;
            switch (chunked_next(&c->chunks, &p, end, &data, &length)) {
            case CHUNKED_DATA:
                keep_body(c, data, length);
                break;
            case CHUNKED_END:
                answer(c);
                break;
            case CHUNKED_BAD:
                drop(c);
                break;
            case CHUNKED_MORE:
                break;
            }
        }
    }
}

/* ---- the loop ---- */

static void accept_all(int listener) {
    static const int on = 1;
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conn *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        c->timed_place = -1;
        accepted++;
        open_now++;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void on_event(conn *c, unsigned events) {
    if (events & EPOLLOUT) {
        sending s = send_rest(c);
        if (s == GONE) return;
        if (s == SENT && c->state == ANSWER && c->timed_place < 0) answered(c);
        if (c->fd < 0) return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t n = read(c->fd, input, sizeof input);
        if (n > 0)
            receive(c, input, (size_t)n);
        else if (n == 0 || errno != EAGAIN)
            drop(c);
    }
}

/* How long to sleep, in ns; false: until something arrives. */
static bool sleep_of(u64 *ns) {
    u64 first = ~0ull;
    for (int i = 0; i < timed_count; i++)
        if (!timed[i]->blocked && timed[i]->due_ns < first) first = timed[i]->due_ns;
    if (first == ~0ull) return false;
    u64 now = now_ns();
    *ns = first > now ? first - now : 0;
    if (*ns && *ns < SHORTEST_SLEEP_NS) *ns = SHORTEST_SLEEP_NS;
    return true;
}

static void run_due(void) {
    u64 now = now_ns();
    /* Backwards: the one that leaves is replaced by the last, which had its turn. */
    for (int i = timed_count - 1; i >= 0; i--) {
        if (i >= timed_count) continue;
        conn *c = timed[i];
        if (c->blocked || c->due_ns > now) continue;
        if (c->streams) {
            stream_on(c, now);
        } else {
            timed_remove(c);
            answer_whole(c);
        }
    }
}

int main(int argc, char **argv) {
    static const int on = 1;
    if (argc != 2) {
        fprintf(stderr, "usage: mock PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    raise_file_limit();
    frame_events();
    memset(filler, 'x', sizeof filler);
    for (size_t i = 0; i < sizeof filler; i += 61) filler[i] = ' ';

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        fprintf(stderr, "mock: port %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event own = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &own);

    for (;;) {
        static struct epoll_event events[1024];
        u64 ns;
        struct timespec wait, *limit = NULL;
        if (sleep_of(&ns)) {
            wait = timespec_of_ns(ns);
            limit = &wait;
        }
        int n = epoll_pwait2(poller, events, 1024, limit, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (c->fd >= 0)
                on_event(c, events[i].events);
        }
        run_due();
        while (closed) {
            conn *c = closed;
            closed = c->next_closed;
            free(c->held.bytes);
            free(c->out.bytes);
            free(c);
        }
    }
}
