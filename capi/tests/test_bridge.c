#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bridge.h"
int main(void) {
    bridge *b = bridge_open(NULL, "{\"adapter\": \"echo\"}");
    bridge_bytes r;
    if (!b) { fprintf(stderr, "%d %s\n", bridge_error_code(), bridge_error()); return 1; }
    if (bridge_call(b, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), -1, &r)) { fprintf(stderr, "%s\n", bridge_error()); return 1; }
    printf("%.*s\n", (int)r.size, (const char *)r.data);
    bridge_free(&r);
    if (bridge_call(b, bridge_text("{\"id\": 1, \"command\": \"sleep\", \"args\":{\"seconds\":0.1}}"), -1, &r)) { fprintf(stderr, "%s\n", bridge_error()); return 1; }
    printf("%.*s\n", (int)r.size, (const char *)r.data);
    bridge_free(&r);
    if (bridge_call(b, bridge_text("{\"id\": 1, \"command\": \"sleep\", \"args\":{\"seconds\":1}}"), 10, &r)) { fprintf(stderr, "%s\n", bridge_error()); return 1; }
    printf("%.*s\n", (int)r.size, (const char *)r.data);
    bridge_free(&r);
    int c = bridge_close(b);
    printf("close %d %s; then %d\n", c, c ? bridge_error() : "", bridge_close(b));
    return 0;
}
