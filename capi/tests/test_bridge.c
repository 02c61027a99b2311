/* Tests the library through its header: `test_bridge NAME` runs one test. */

#include "support.h"

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
#define TEST(name) {#name, name},
#include "table.h"
};

static void *nothing(void *unused) { return unused; }

int main(int count, char **arguments) {
    pthread_t first;
    size_t i;
    pthread_create(&first, NULL, nothing, NULL); /* sanitizers start their own thread with the first */
    pthread_join(first, NULL);
    for (i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (count > 1 && !strcmp(arguments[1], tests[i].name)) {
            tests[i].run();
            return 0;
        }
    }
    fprintf(stderr, "no test %s\n", count > 1 ? arguments[1] : "is named");
    return 2;
}
