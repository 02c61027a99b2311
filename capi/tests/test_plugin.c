/* A host that loads the library with RTLD_LOCAL, as plugins are loaded: Python's extension modules must
   still find Python's symbols. Argument: the library. */

#include <dlfcn.h>
#include <stdio.h>

#include "bridge.h"

int main(int count, char **arguments) {
    void *library = dlopen(count > 1 ? arguments[1] : "", RTLD_NOW | RTLD_LOCAL);
    union {
        void *address;
        bridge *(*open)(const char *, const char *);
        int (*close)(bridge *);
        const char *(*error)(void);
    } symbol;
    bridge *handle;
    if (library == NULL) return fprintf(stderr, "%s\n", dlerror());
    symbol.address = dlsym(library, "bridge_open");
    handle = symbol.open(NULL, "{\"adapter\": \"echo\"}");
    if (handle == NULL) {
        symbol.address = dlsym(library, "bridge_error");
        return fprintf(stderr, "%s\n", symbol.error());
    }
    symbol.address = dlsym(library, "bridge_close");
    if (symbol.close(handle)) return 1;
    return dlclose(library); /* its code stays mapped: threads may still end in it */
}
