/* Run a DSPy program in a worker process, with a tool in C and a streamed answer. Talks to the worker
   over two pipes and needs no library. The interpreter is $BRIDGE_PYTHON, or python3. */

#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "conversation.h"

static int to_worker[2], from_worker[2];

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
    transfer(write_some, to_worker[1], header, sizeof header);
    transfer(write_some, to_worker[1], (void *)text, size);
}

static char *receive_frame(size_t *size) {
    unsigned char header[4];
    char *data;
    transfer(read, from_worker[0], header, sizeof header);
    *size = (size_t)header[0] << 24 | (size_t)header[1] << 16 | (size_t)header[2] << 8 | header[3];
    data = malloc(*size + 1);
    if (data == NULL) fail("memory");
    transfer(read, from_worker[0], data, *size);
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

int main(void) {
    const char *python = getenv("BRIDGE_PYTHON") ? getenv("BRIDGE_PYTHON") : "python3";
    pid_t worker;
    int i, status, has_answer;
    if (pipe(to_worker) < 0 || pipe(from_worker) < 0) fail("pipe");
    worker = fork();
    if (worker < 0) fail("fork");
    if (worker == 0) {
        dup2(to_worker[0], 0);
        dup2(from_worker[1], 1);
        for (i = 0; i < 2; i++) close(to_worker[i]), close(from_worker[i]);
        execlp(python, python, "-P", "-m", "bridge", "worker", (char *)NULL);
        fail(python);
    }
    close(to_worker[0]);
    close(from_worker[1]);
    for (i = 0; i < PREPARATIONS; i++) ask(preparations[i]);
    has_answer = ask(question);
    close(to_worker[1]); /* ends the worker */
    if (waitpid(worker, &status, 0) != worker || status) fail("the worker's end");
    return !has_answer;
}
