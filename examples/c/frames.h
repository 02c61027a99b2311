/* Frames of JSON on two descriptors, which may be one socket: what the example hosts in C without a
   library have in common. */

#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "conversation.h"

static int to_worker, from_worker;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void transfer(ssize_t (*step)(int, void *, size_t), int fd, void *data, size_t size) {
    char *at = data;
    while (size) {
        ssize_t done = step(fd, at, size);
        if (done <= 0) fail("the worker");
        at += done;
        size -= (size_t)done;
    }
}

static ssize_t write_some(int fd, void *data, size_t size) { return write(fd, data, size); }

/* A frame is the length of the payload in four bytes, big-endian, and the payload. */
static void send_frame(const char *text) {
    size_t size = strlen(text);
    unsigned char header[4] = {(unsigned char)(size >> 24), (unsigned char)(size >> 16),
                               (unsigned char)(size >> 8), (unsigned char)size};
    transfer(write_some, to_worker, header, sizeof header);
    transfer(write_some, to_worker, (void *)text, size);
}

static char *receive_frame(size_t *size) {
    unsigned char header[4];
    char *data;
    transfer(read, from_worker, header, sizeof header);
    *size = (size_t)header[0] << 24 | (size_t)header[1] << 16 | (size_t)header[2] << 8 | header[3];
    data = malloc(*size + 1);
    if (data == NULL) fail("memory");
    transfer(read, from_worker, data, *size);
    data[*size] = 0;
    return data;
}

/* Send a request and print all messages up to its reply. Return whether the reply is the answer. */
static int ask(const char *request) {
    char answer[256], *message;
    size_t size;
    int is_reply = 0, has_answer = 0;
    send_frame(request);
    while (!is_reply) {
        message = receive_frame(&size);
        print_message(message, size);
        is_reply = strstr(message, "\"success\":") != NULL;
        if (strstr(message, "\"command\":\"call_tool\"")) {
            answer_tool(message, size, answer, sizeof answer);
            send_frame(answer);
        }
        has_answer = is_reply && is_answered(message, size);
        free(message);
    }
    return has_answer;
}

#endif
