/* The baseline: the cost of pipes and two processes. All whole frames that one read(2) returns are
   sent back in one write(2). A frame is a 4-byte big-endian length and the payload.

   echo [BYTES]   with BYTES, replies with a payload of that size to each frame instead. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER = 4, INITIAL_SIZE = 1 << 16 }; /* bytes */

static size_t frame_size(const unsigned char *p) {
    return HEADER + ((size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3]);
}

/* Returns the bytes of the whole frames at the start of `data`; *next: the size of the frame after them. */
static size_t whole_frames(const unsigned char *data, size_t size, size_t *next) {
    size_t whole = 0;
    *next = HEADER;
    while (size - whole >= HEADER && (*next = frame_size(data + whole)) <= size - whole) {
        whole += *next;
        *next = HEADER;
    }
    return whole;
}

static void write_all(const unsigned char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = write(1, data, size);
        if (sent < 0) exit(1);
        data += sent;
        size -= sent;
    }
}

/* Sends `answer` for each whole frame. */
static void answer_all(const unsigned char *data, size_t whole, const unsigned char *answer) {
    for (size_t done = 0; done < whole; done += frame_size(data + done))
        write_all(answer, frame_size(answer));
}

static unsigned char *answer_of(size_t size) {
    unsigned char *answer = malloc(HEADER + size);
    if (!answer) exit(1);
    memset(answer, 1, HEADER + size); /* pages that were never written all share one page of zeros */
    for (int i = 0; i < HEADER; i++) answer[i] = size >> 8 * (HEADER - 1 - i);
    return answer;
}

int main(int count, char **arguments) {
    unsigned char *answer = count > 1 ? answer_of(strtoul(arguments[1], NULL, 10)) : NULL;
    size_t capacity = INITIAL_SIZE, have = 0, whole, next;
    unsigned char *data = malloc(capacity);
    for (;;) {
        ssize_t got = data ? read(0, data + have, capacity - have) : -1;
        if (got <= 0) return got < 0;
        have += got;
        whole = whole_frames(data, have, &next);
        if (answer) answer_all(data, whole, answer);
        else if (whole) write_all(data, whole);
        have -= whole;
        if (whole && have) memmove(data, data + whole, have);
        if (next > capacity) data = realloc(data, capacity = next);
    }
}
