/* HTTP/1.1 and SSE load client. One thread, epoll, no library. Prints one JSON object on one line.
 *
 *     load --port P --path /openai/v1/chat/completions [options]
 *
 * --mode closed   --conns connections, each sends its next request when the last is answered (default)
 *        rate     open loop: --rate requests a second over --conns connections; a latency counts from the
 *                 moment the request was due, so a proxy that stalls cannot hide it
 *        hold     --conns streams are opened over --ramp seconds, watched for --duration, then left
 * --duration S    seconds that are measured, after --warm S (hold: after the ramp)
 * --stream 1      ask for SSE and read the stamps of its events
 * --knobs TEXT    what the mock is told inside the message text, as n=200,i=0
 * --body N        bytes of filler in the message         --shape openai|anthropic|gemini
 * --expect N      bytes of a right answer's body: any other length is an error
 * --pids 1,2      processes whose CPU time and memory are taken at both ends of the measured time
 * --timeout S     an answer that takes longer is an error
 *
 * Latencies are microseconds. "added" is the delay from the stamp in an event to its arrival here.
 * An error is anything but a whole 200 of the right length; the first one is quoted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
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

enum { STAMP_DIGITS = 19, MAX_HEAD = 8192, MAX_PIDS = 64, STATUSES = 600 };
/* A larger request is not sent again when its connection turns out closed: part of it may have been read. */
static const size_t MAX_RESENT = 65536;
static const double OPENING_PART = .8; /* of the ramp; the rest lets the last streams settle */

/* ---- histogram: 64 steps for each power of two, so a quantile is off by 1.6 % at most ---- */

enum { STEP_BITS = 6, STEPS = 1 << STEP_BITS };

typedef struct {
    u64 count, greatest;
    double sum;
    unsigned slots[64 * STEPS];
} histogram;

static unsigned slot_of(u64 v) {
    if (v < STEPS) return (unsigned)v;
    unsigned shift = 63 - (unsigned)__builtin_clzll(v) - STEP_BITS;
    return ((shift + 1) << STEP_BITS) + (unsigned)(v >> shift) - STEPS;
}

static double middle_of(unsigned slot) {
    if (slot < STEPS) return slot;
    unsigned shift = (slot >> STEP_BITS) - 1;
    return ((double)(STEPS + slot % STEPS) + .5) * (double)(1ull << shift);
}

static void record(histogram *h, u64 ns) {
    h->count++;
    h->sum += (double)ns;
    if (ns > h->greatest) h->greatest = ns;
    h->slots[slot_of(ns)]++;
}

static double quantile_us(const histogram *h, double q) {
    u64 seen = 0, wanted = (u64)((double)h->count * q);
    for (unsigned i = 0; i < 64 * STEPS; i++) {
        seen += h->slots[i];
        if (seen > wanted) return middle_of(i) / 1e3;
    }
    return (double)h->greatest / 1e3;
}

static void print_histogram(const char *name, const histogram *h) {
    printf(", \"%s\": {\"n\": %llu, \"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name,
           h->count, h->count ? h->sum / (double)h->count / 1e3 : 0, quantile_us(h, .5), quantile_us(h, .9),
           quantile_us(h, .99), (double)h->greatest / 1e3);
}

/* ---- options ---- */

typedef enum { CLOSED, RATE, HOLD } modes;

static struct {
    modes mode;
    int port, conns;
    bool stream;
    double duration, warm, ramp, rate, timeout;
    long filler, expected;
    const char *mode_name, *path, *knobs, *shape, *model;
    pid_t pids[MAX_PIDS];
    int pid_count;
} option = {.mode_name = "closed", .port = 8080, .conns = 1, .duration = 3, .warm = .5, .ramp = 1, .timeout = 30,
            .expected = -1, .path = "/v1/chat/completions", .knobs = "", .shape = "openai", .model = "gpt-4o"};

static void read_options(int argc, char **argv) {
    enum { PORT, PATH, MODE, CONNS, DURATION, WARM, RAMP, RATE_, TIMEOUT, STREAM, KNOBS, BODY, SHAPE, MODEL, EXPECT, PIDS };
    static const struct option known[] = {
        {"port", 1, 0, PORT},       {"path", 1, 0, PATH},     {"mode", 1, 0, MODE},   {"conns", 1, 0, CONNS},
        {"duration", 1, 0, DURATION}, {"warm", 1, 0, WARM},   {"ramp", 1, 0, RAMP},   {"rate", 1, 0, RATE_},
        {"timeout", 1, 0, TIMEOUT}, {"stream", 1, 0, STREAM}, {"knobs", 1, 0, KNOBS}, {"body", 1, 0, BODY},
        {"shape", 1, 0, SHAPE},     {"model", 1, 0, MODEL},   {"expect", 1, 0, EXPECT}, {"pids", 1, 0, PIDS},
        {0, 0, 0, 0}};
    int which;
    while ((which = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (which) {
        case PORT: option.port = atoi(optarg); break;
        case PATH: option.path = optarg; break;
        case MODE: option.mode_name = optarg; break;
        case CONNS: option.conns = atoi(optarg); break;
        case DURATION: option.duration = atof(optarg); break;
        case WARM: option.warm = atof(optarg); break;
        case RAMP: option.ramp = atof(optarg); break;
        case RATE_: option.rate = atof(optarg); break;
        case TIMEOUT: option.timeout = atof(optarg); break;
        case STREAM: option.stream = atoi(optarg) != 0; break;
        case KNOBS: option.knobs = optarg; break;
        case BODY: option.filler = atol(optarg); break;
        case SHAPE: option.shape = optarg; break;
        case MODEL: option.model = optarg; break;
        case EXPECT: option.expected = atol(optarg); break;
        case PIDS:
            for (char *p = strtok(optarg, ","); p && option.pid_count < MAX_PIDS; p = strtok(NULL, ","))
                option.pids[option.pid_count++] = (pid_t)atoi(p);
            break;
        default: exit(2);
        }
    }
    option.mode = !strcmp(option.mode_name, "rate") ? RATE : !strcmp(option.mode_name, "hold") ? HOLD : CLOSED;
    if (option.conns < 1 || (option.mode == RATE && option.rate <= 0)) {
        fprintf(stderr, "load: --conns and --rate must be above 0\n");
        exit(2);
    }
    if (option.mode == HOLD) option.warm = option.ramp;
}

/* ---- the request: built once, sent by every connection ---- */

static char *request;
static size_t request_length;

static void build_request(void) {
    static const char QUESTION[] =
        "You are a helpful assistant. What is the capital of France, and for how long has it been the seat of "
        "government? Answer in one sentence, please.";
    char *filler = malloc((size_t)option.filler + 1), *body, *stream = "";
    if (!filler) abort();
    for (long i = 0; i < option.filler; i++) filler[i] = "abcdef "[i % 7];
    filler[option.filler] = 0;
    int n;
    if (!strcmp(option.shape, "gemini")) {
        n = asprintf(&body,
                     "{\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"BENCH:%s; %s %s\"}]}],"
                     "\"generationConfig\":{\"maxOutputTokens\":256,\"temperature\":0.7}}",
                     option.knobs, QUESTION, filler);
    } else {
        if (option.stream)
            stream = !strcmp(option.shape, "anthropic") ? "\"stream\":true,"
                                                        : "\"stream\":true,\"stream_options\":{\"include_usage\":true},";
        n = asprintf(&body,
                     "{\"model\":\"%s\",\"max_tokens\":256,\"temperature\":0.7,%s\"messages\":[{\"role\":\"user\","
                     "\"content\":\"BENCH:%s; %s %s\"}]}",
                     option.model, stream, option.knobs, QUESTION, filler);
    }
    if (n < 0) abort();
    n = asprintf(&request,
                 "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
                 "Content-Type: application/json\r\nAuthorization: Bearer sk-bench0000000000000000000000000000\r\n"
                 "Content-Length: %d\r\n\r\n%s",
                 option.path, option.port, n, body);
    if (n < 0) abort();
    request_length = (size_t)n;
    free(body);
    free(filler);
}

/* ---- what is counted ---- */

static bool measuring;
static histogram latency, first_byte, added;
static u64 answered, errors, cut, timed_out, reconnects, late, events, body_bytes;
static unsigned by_status[STATUSES];
static char first_error[256];

static u64 cpu_ns(void) { /* of the watched processes, all their threads, living and ended */
    u64 sum = 0;
    for (int i = 0; i < option.pid_count; i++) {
        clockid_t clock;
        struct timespec t;
        if (clock_getcpuclockid(option.pids[i], &clock) == 0 && clock_gettime(clock, &t) == 0)
            sum += (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
    }
    return sum;
}

static long rss_kib(void) {
    long sum = 0;
    for (int i = 0; i < option.pid_count; i++) {
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%d/status", option.pids[i]);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        while (fgets(line, sizeof line, f))
            if (!strncmp(line, "VmRSS:", 6)) sum += atol(line + 6);
        fclose(f);
    }
    return sum;
}

/* ---- connections ---- */

typedef struct conn {
    int fd; /* -1: none */
    enum { IDLE, CONNECTING, SENDING, RECEIVING } phase;
    bool reused; /* it has answered before, so finding it closed is no error of this request */
    size_t sent;
    u64 start, deadline;
    /* the answer */
    bool in_head, is_chunked, has_length, closes, got_byte;
    int status;
    chunked chunks;
    u64 length_left, body_length;
    size_t head_length;
    char head[MAX_HEAD];
    /* the stamp being read: 0 none, 1 after the @, up to 1 + STAMP_DIGITS */
    int stamp_at;
    u64 stamp;
} conn;

static int poller;
static conn **idle; /* rate mode: connections without a request */
static int idle_count;

static void watch(conn *c, int operation, unsigned events_wanted) {
    struct epoll_event e = {.events = events_wanted, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &e);
}

static void hang_up(conn *c) {
    close(c->fd);
    c->fd = -1;
}

static void dial(conn *c) {
    static const int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("load: socket");
        exit(2);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)option.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connect(c->fd, (struct sockaddr *)&address, sizeof address); /* its outcome is told by epoll */
    c->phase = CONNECTING;
    c->reused = false;
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void send_on(conn *c) {
    ssize_t taken = write(c->fd, request + c->sent, request_length - c->sent);
    if (taken < 0) {
        if (errno != EAGAIN) return; /* the read that follows says what happened */
        taken = 0;
    }
    c->sent += (size_t)taken;
    bool whole = c->sent == request_length;
    /* A request that fits the socket at once leaves the registration as it was: for reading. */
    if (c->phase == SENDING && whole)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    else if (c->phase != SENDING && !whole)
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    c->phase = whole ? RECEIVING : SENDING;
}

static void begin(conn *c, u64 start) {
    c->start = start;
    c->deadline = now_ns() + (u64)(option.timeout * 1e9);
    c->sent = 0;
    c->in_head = true;
    c->is_chunked = c->has_length = c->closes = c->got_byte = false;
    c->status = 0;
    c->chunks = (chunked){0};
    c->length_left = c->body_length = 0;
    c->head_length = 0;
    c->stamp_at = 0;
    if (c->fd < 0) {
        dial(c);
    } else {
        c->phase = RECEIVING;
        send_on(c);
    }
}

static void next(conn *c) {
    c->phase = IDLE;
    if (option.mode == RATE)
        idle[idle_count++] = c;
    else
        begin(c, now_ns());
}

static void note_error(const conn *c, const char *what) {
    if (measuring || option.mode == HOLD) errors++;
    if (!first_error[0]) snprintf(first_error, sizeof first_error, "%s (status %d)", what, c->status);
}

static void fail(conn *c, const char *what) {
    note_error(c, what);
    hang_up(c);
    next(c);
}

/* The answer is whole. `more`: bytes followed it that nobody asked for. */
static void complete(conn *c, u64 now, bool more) {
    if (measuring && c->status > 0 && c->status < STATUSES) by_status[c->status]++;
    if (more) {
        fail(c, "bytes after the end of the answer");
        return;
    }
    if (c->status != 200) {
        note_error(c, "not a 200");
    } else if (option.expected >= 0 && c->body_length != (u64)option.expected) {
        char what[96];
        snprintf(what, sizeof what, "body of %llu bytes, not %ld", c->body_length, option.expected);
        note_error(c, what);
    } else if (measuring) {
        answered++;
        record(&latency, now - c->start);
    }
    c->reused = true;
    if (c->closes || c->sent < request_length) {
        hang_up(c);
        if (measuring) reconnects++;
    }
    next(c);
}

/* Looks for stamps. An event may be split anywhere, so the place in a stamp lives in the connection. */
static void read_stamps(conn *c, const char *p, const char *end, u64 now) {
    while (p < end) {
        if (!c->stamp_at) {
            p = memchr(p, '@', (size_t)(end - p));
            if (!p) return;
            p++;
            c->stamp_at = 1;
            c->stamp = 0;
            continue;
        }
        while (p < end && c->stamp_at <= STAMP_DIGITS) {
            if (*p < '0' || *p > '9') {
                c->stamp_at = 0;
                break;
            }
            c->stamp = c->stamp * 10 + (u64)(*p++ - '0');
            c->stamp_at++;
        }
        if (c->stamp_at > STAMP_DIGITS) {
            c->stamp_at = 0;
            if (measuring) {
                events++;
                record(&added, now > c->stamp ? now - c->stamp : 0);
            }
        }
    }
}

static void body(conn *c, const char *p, size_t n, u64 now) {
    c->body_length += n;
    if (measuring) body_bytes += n;
    if (!c->got_byte) {
        c->got_byte = true;
        if (measuring || option.mode == HOLD) record(&first_byte, now - c->start);
    }
    if (option.stream) read_stamps(c, p, p + n, now);
}

static bool field_is(const char *line, const char *name) { return !strncasecmp(line, name, strlen(name)); }

static void read_fields(conn *c) {
    c->status = atoi(c->head + 9);
    c->closes = !strncmp(c->head, "HTTP/1.0", 8);
    for (char *line = c->head; (line = strstr(line, "\r\n"));) {
        line += 2;
        if (field_is(line, "content-length:")) {
            c->has_length = true;
            c->length_left = strtoull(line + 15, NULL, 10);
        } else if (field_is(line, "transfer-encoding:")) {
            c->is_chunked = true;
        } else if (field_is(line, "connection:")) {
            line[strcspn(line, "\r")] = 0; /* ends the search in this line */
            if (strcasestr(line, "close")) c->closes = true;
            line[strlen(line)] = '\r';
        }
    }
}

static void receive(conn *c, const char *p, size_t n) {
    const char *end = p + n;
    u64 now = now_ns();
    while (p < end) {
        size_t here = (size_t)(end - p);
        if (c->in_head) {
            size_t before = c->head_length, take = sizeof c->head - 1 - before;
            if (take > here) take = here;
            memcpy(c->head + before, p, take);
            c->head_length += take;
            char *blank = memmem(c->head, c->head_length, "\r\n\r\n", 4);
            if (!blank) {
                if (c->head_length == sizeof c->head - 1) fail(c, "head over 8 KiB");
                return;
            }
            p += (size_t)(blank - c->head) + 4 - before;
            blank[2] = 0;
            read_fields(c);
            if (c->status >= 100 && c->status < 200) { /* interim: the answer comes after it */
                c->head_length = 0;
                c->has_length = c->is_chunked = c->closes = false;
                continue;
            }
            c->in_head = false;
            if (!c->is_chunked && c->has_length && c->length_left == 0) {
                complete(c, now, p < end);
                return;
            }
        } else if (c->is_chunked) {
            const char *data;
            size_t length;
            switch (chunked_next(&c->chunks, &p, end, &data, &length)) {
            case CHUNKED_DATA: body(c, data, length, now); break;
            case CHUNKED_END: complete(c, now, p < end); return;
            case CHUNKED_BAD: fail(c, "broken chunked framing"); return;
            case CHUNKED_MORE: return;
            }
        } else if (c->has_length) {
            size_t take = here < c->length_left ? here : (size_t)c->length_left;
            body(c, p, take, now);
            p += take;
            c->length_left -= take;
            if (c->length_left == 0) {
                complete(c, now, p < end);
                return;
            }
        } else { /* ends with the connection */
            body(c, p, here, now);
            return;
        }
    }
}

static void on_closed(conn *c) {
    if (c->phase == IDLE) {
        hang_up(c);
    } else if (!c->in_head && !c->is_chunked && !c->has_length) {
        c->closes = true;
        complete(c, now_ns(), false);
    } else if (c->in_head && c->head_length == 0 && c->reused && request_length <= MAX_RESENT) {
        hang_up(c); /* closed between two requests: as any client, try a new connection */
        if (measuring) reconnects++;
        begin(c, c->start);
    } else {
        if (measuring || option.mode == HOLD) cut++;
        fail(c, "connection closed before the end of the answer");
    }
}

static void on_event(conn *c, unsigned happened) {
    static char input[1 << 18];
    if (c->phase == CONNECTING && (happened & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int problem = 0;
        socklen_t size = sizeof problem;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
        if (problem) {
            char what[96];
            snprintf(what, sizeof what, "connect: %s", strerror(problem));
            fail(c, what);
            usleep(1000); /* a refused connection is tried again, not in a spin */
            return;
        }
        c->phase = SENDING;
        send_on(c);
        return;
    }
    if (c->phase == SENDING && (happened & EPOLLOUT)) send_on(c);
    if (happened & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        ssize_t n = read(c->fd, input, sizeof input);
        if (n > 0 && c->phase == IDLE)
            hang_up(c); /* bytes nobody asked for: never used again */
        else if (n > 0)
            receive(c, input, (size_t)n);
        else if (n == 0 || errno != EAGAIN)
            on_closed(c);
    }
}

/* ---- the run ---- */

typedef struct {
    double seconds, cpu_s;
    long rss_before_kib, rss_after_kib;
    int open, live;
} outcome;

static void print_result(const outcome *o) {
    double ok = (double)answered;
    printf("{\"mode\": \"%s\", \"conns\": %d, \"secs\": %.3f, \"ok\": %llu, \"rps\": %.1f, \"errors\": %llu, "
           "\"cut\": %llu, \"timeouts\": %llu, \"reconnects\": %llu, \"late\": %llu",
           option.mode_name, option.conns, o->seconds, answered, ok / o->seconds, errors, cut, timed_out, reconnects, late);
    printf(", \"mb_s\": %.2f, \"events\": %llu, \"events_s\": %.1f, \"open\": %d, \"live\": %d", (double)body_bytes / 1e6 / o->seconds,
           events, (double)events / o->seconds, o->open, o->live);
    printf(", \"cpu_s\": %.4f, \"cpu_util\": %.4f", o->cpu_s, o->cpu_s / o->seconds);
    if (answered) printf(", \"cpu_s_per_1k\": %.6f", o->cpu_s * 1e3 / ok);
    if (events) printf(", \"cpu_us_per_event\": %.4f", o->cpu_s * 1e6 / (double)events);
    if (body_bytes) printf(", \"cpu_s_per_gb\": %.4f", o->cpu_s * 1e9 / (double)body_bytes);
    printf(", \"rss0_kib\": %ld, \"rss1_kib\": %ld", o->rss_before_kib, o->rss_after_kib);
    print_histogram("latency_us", &latency);
    print_histogram("ttft_us", &first_byte);
    print_histogram("added_us", &added);
    printf(", \"status\": {");
    const char *comma = "";
    for (int i = 0; i < STATUSES; i++)
        if (by_status[i]) {
            printf("%s\"%d\": %u", comma, i, by_status[i]);
            comma = ", ";
        }
    for (char *p = first_error; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = ' ';
    printf("}, \"first_error\": \"%s\"}\n", first_error);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    raise_file_limit();
    build_request();
    poller = epoll_create1(0);
    conn *conns = calloc((size_t)option.conns, sizeof *conns);
    idle = calloc((size_t)option.conns, sizeof *idle);
    if (!conns || !idle) abort();

    outcome o = {.rss_before_kib = rss_kib()};
    u64 start = now_ns(), measure_at = start + (u64)(option.warm * 1e9);
    u64 end_at = measure_at + (u64)(option.duration * 1e9), measured_from = 0, cpu_before = 0;
    u64 looked_at = start, due = start, sent = 0;
    int opened = 0;
    for (int i = 0; i < option.conns; i++) {
        conns[i].fd = -1;
        if (option.mode == RATE)
            idle[idle_count++] = &conns[i];
        else if (option.mode == CLOSED)
            begin(&conns[opened++], now_ns());
    }

    for (;;) {
        u64 now = now_ns();
        if (!measuring && now >= measure_at) {
            measuring = true;
            cpu_before = cpu_ns();
            measured_from = now = now_ns();
        }
        if (now >= end_at) break;
        u64 wake = measuring ? end_at : measure_at;
        if (option.mode == HOLD) {
            while (opened < option.conns) {
                due = start + (u64)(option.ramp * 1e9 * OPENING_PART * opened / option.conns);
                if (now < due) {
                    if (due < wake) wake = due;
                    break;
                }
                begin(&conns[opened++], now);
            }
        } else if (option.mode == RATE) {
            while (now >= due && idle_count) {
                begin(idle[--idle_count], due);
                due = start + (u64)((double)++sent * 1e9 / option.rate);
            }
            if (now >= due)
                late++;
            else if (due < wake)
                wake = due;
        }
        if (option.mode != HOLD && now - looked_at > NS_PER_S) {
            looked_at = now;
            for (int i = 0; i < option.conns; i++)
                if (conns[i].phase != IDLE && conns[i].fd >= 0 && now > conns[i].deadline) {
                    timed_out++;
                    fail(&conns[i], "no answer in time");
                }
        }
        u64 sleep = wake > now ? wake - now : 0;
        if (sleep > NS_PER_S / 2) sleep = NS_PER_S / 2; /* so that deadlines are looked at */
        struct timespec limit = timespec_of_ns(sleep);
        static struct epoll_event happened[1024];
        int n = epoll_pwait2(poller, happened, 1024, &limit, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = happened[i].data.ptr;
            if (c->fd >= 0) on_event(c, happened[i].events);
        }
    }
    o.cpu_s = (double)(cpu_ns() - cpu_before) / 1e9;
    o.seconds = (double)(now_ns() - measured_from) / 1e9;
    o.rss_after_kib = rss_kib();
    for (int i = 0; i < option.conns; i++) {
        o.open += conns[i].fd >= 0;
        o.live += conns[i].fd >= 0 && conns[i].got_byte && conns[i].status == 200;
    }
    print_result(&o);
    return 0;
}
