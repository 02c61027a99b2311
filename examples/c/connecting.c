/* Run a DSPy program in a worker at the other end of a Unix socket, with a tool in C and a streamed
   answer. Needs no library. The socket is $BRIDGE_SOCKET, or /run/bridge/bridge.sock, where
   python -m bridge serve --listen unix:/run/bridge/bridge.sock
   listens. */

#include <sys/socket.h>
#include <sys/un.h>

#include "frames.h"

int main(void) {
    const char *path = getenv("BRIDGE_SOCKET") ? getenv("BRIDGE_SOCKET") : "/run/bridge/bridge.sock";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int i, has_answer;
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s: too long for a socket\n", path);
        return 1;
    }
    strcpy(address.sun_path, path);
    to_worker = from_worker = socket(AF_UNIX, SOCK_STREAM, 0);
    if (to_worker < 0 || connect(to_worker, (struct sockaddr *)&address, sizeof address) < 0) fail(path);
    for (i = 0; i < PREPARATIONS; i++) ask(preparations[i]);
    has_answer = ask(question);
    close(to_worker); /* ends the worker */
    return !has_answer;
}
