/* Starting Python: concurrent opens, forks, side effects on the process, and unusable interpreters. */

#include "support.h"

static void *open_and_close(void *unused) {
    bridge *handle = with_echo();
    (void)unused;
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
    return NULL;
}

/* Handles opened at the same time, and after the thread that started Python has ended. */
void many_opens(void) {
    pthread_t threads[8];
    int i;
    for (i = 0; i < 8; i++) pthread_create(&threads[i], NULL, open_and_close, NULL);
    for (i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < 20; i++) open_and_close(NULL);
}

void forks(void) {
    bridge *handle = with_echo();
    bridge_request request = {"{}", 2, count_release, &releases};
    bridge_bytes reply, kept;
    int status;
    pid_t child;
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), -1, &kept) == 0);
    child = fork();
    if (child == 0) {
        CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_FORKED && releases == 1);
        CHECK(bridge_submit(handle, request, collect, NULL, NULL) == BRIDGE_FORKED);
        CHECK(bridge_cancel(handle, 1) == BRIDGE_FORKED);
        CHECK(bridge_open(NULL, "{}") == NULL && bridge_error_code() == BRIDGE_FORKED);
        CHECK(bridge_close(handle) == BRIDGE_FORKED);
        bridge_free(&kept);
        exit(0); /* with all exit hooks */
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    bridge_free(&kept);
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* A fork at any moment of the first open: every call in the child returns. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

void forks_while_python_starts(void) {
#ifdef __SANITIZE_THREAD__
    return; /* the sanitizer's runtime sometimes waits for a thread that the child does not have */
#endif
    pthread_t opener;
    pid_t children[20];
    int i, status;
    pthread_create(&opener, NULL, open_and_close, NULL);
    for (i = 0; i < 20; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            alarm(SECONDS_TO_WAIT);
            CHECK(bridge_open(NULL, "{\"adapter\": \"echo\"}") ||
                  bridge_error_code() == BRIDGE_FORKED);
            _exit(0);
        }
        usleep(2000);
    }
    pthread_join(opener, NULL);
    for (i = 0; i < 20; i++) {
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
}

static int signal_handlers(void) {
    int number, count = 0;
    for (number = 1; number < 32; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0) count += action.sa_handler != SIG_DFL;
    }
    return count;
}

void side_effects(void) {
    char cwd[4096], now[4096], locale[200], *printed;
    int pipe_[2], before = threads(), handlers, saved = dup(1);
    ssize_t size;
    char bytes[100];
    bridge *handle;
    setlocale(LC_ALL, "C");
    snprintf(locale, sizeof locale, "%s", setlocale(LC_ALL, NULL));
    CHECK(getcwd(cwd, sizeof cwd) && pipe(pipe_) == 0);
    handlers = signal_handlers();
    dup2(pipe_[1], 1);
    dup2(pipe_[0], 0);
    CHECK(write(pipe_[1], "mine", 4) == 4);
    handle = with_commands("");
    CHECK(says(handle, "{\"id\": 1, \"command\": \"print\"}", "\"success\":true"));
    CHECK(bridge_close(handle) == BRIDGE_OK);
    size = read(0, bytes, sizeof bytes);
    CHECK(size == 4 && !memcmp(bytes, "mine", 4));
    dup2(saved, 1);
    CHECK(signal_handlers() == handlers);
    CHECK(!strcmp(setlocale(LC_ALL, NULL), locale));
    CHECK(getcwd(now, sizeof now) && !strcmp(cwd, now));
    CHECK(drops_to(threads, before));
    printed = getenv("BRIDGE_TEST");
    CHECK(printed && !strcmp(printed, "1"));
}

static void fails_to_open(const char *python, const char *why) {
    CHECK(bridge_open(python, "{\"adapter\": \"echo\"}") == NULL);
    CHECK(bridge_error_code() == BRIDGE_PYTHON);
    CHECK(strstr(bridge_error(), why) != NULL);
}

static void put(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    fputs(text, file);
    fclose(file);
}

/* A path that is recognised as not a Python does not prevent a later start. */
void no_python(void) {
    char directory[] = "/tmp/bridge-XXXXXX", path[4200];
    bridge *handle;
    CHECK(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/pyvenv.cfg", directory);
    put(path, "home = /usr/bin\nversion = 3.2.1\n");
    fails_to_open(directory, "is Python 3.2");
    put(path, "home = /usr/bin\n");
    fails_to_open(directory, "no bin/python");
    fails_to_open("/no/such/python", "no Python at /no/such/python");
    fails_to_open("/etc/passwd", "is not executable");
    fails_to_open("/tmp", "is not a home of Python");
    handle = with_echo();
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* An environment without the package, with a .pth file that runs code at the start. */
void no_package(void) {
    const char *folders[] = {"lib", "lib/" PYTHON, "lib/" PYTHON "/site-packages"};
    char directory[] = "/tmp/bridge-XXXXXX", path[4200], text[4200];
    int handlers = signal_handlers();
    size_t i;
    CHECK(mkdtemp(directory));
    for (i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, folders[i]);
        CHECK(mkdir(path, 0700) == 0);
    }
    snprintf(path, sizeof path, "%s/lib/" PYTHON "/site-packages/start.pth", directory);
    put(path, "import signal, os; os.environ['BRIDGE_TEST'] = '2'\n");
    snprintf(path, sizeof path, "%s/bin", directory);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/bin/python", directory);
    CHECK(symlink(BASE_PYTHON, path) == 0);
    snprintf(path, sizeof path, "%s/pyvenv.cfg", directory);
    snprintf(text, sizeof text, "home = %.*s\n", (int)(strrchr(BASE_PYTHON, '/') - BASE_PYTHON),
             BASE_PYTHON);
    put(path, text);
    fails_to_open(directory, "cannot import the package bridge");
    CHECK(strstr(bridge_error(), "No module named 'bridge'"));
    CHECK(getenv("BRIDGE_TEST") && !strcmp(getenv("BRIDGE_TEST"), "2"));
    CHECK(signal_handlers() == handlers);
    fails_to_open(NULL, "No module named 'bridge'");
}

/* A home whose standard library is an empty directory. */
void broken_python(void) {
    char directory[] = "/tmp/bridge-XXXXXX", path[4200];
    const char *part, *parts[] = {"lib", "lib/" PYTHON, "lib/" PYTHON "/encodings"};
    size_t i;
    CHECK(mkdtemp(directory));
    for (i = 0; i < 3; i++) {
        part = parts[i];
        snprintf(path, sizeof path, "%s/%s", directory, part);
        CHECK(mkdir(path, 0700) == 0);
    }
    fails_to_open(directory, "does not start");
    fails_to_open(NULL, "restart this process");
}
