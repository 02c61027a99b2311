/* Run a DSPy program in a worker process, with a tool in C and a streamed answer. Talks to the worker
   over two pipes and needs no library. The interpreter is $BRIDGE_PYTHON, or python3. */

#include <sys/wait.h>

#include "frames.h"

int main(void) {
    const char *python = getenv("BRIDGE_PYTHON") ? getenv("BRIDGE_PYTHON") : "python3";
    int input[2], output[2];
    pid_t worker;
    int i, status, has_answer;
    if (pipe(input) < 0 || pipe(output) < 0) fail("pipe");
    worker = fork();
    if (worker < 0) fail("fork");
    if (worker == 0) {
        dup2(input[0], 0);
        dup2(output[1], 1);
        for (i = 0; i < 2; i++) close(input[i]), close(output[i]);
        execlp(python, python, "-P", "-m", "bridge", "worker", (char *)NULL);
        fail(python);
    }
    close(input[0]);
    close(output[1]);
    to_worker = input[1];
    from_worker = output[0];
    for (i = 0; i < PREPARATIONS; i++) ask(preparations[i]);
    has_answer = ask(question);
    close(to_worker); /* ends the worker */
    if (waitpid(worker, &status, 0) != worker || status) fail("the worker's end");
    return !has_answer;
}
