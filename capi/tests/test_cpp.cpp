// Tests bridge.hpp, and bridge.h with a C++ compiler.

#include "bridge.hpp"

#include <cstdlib>
#include <future>
#include <iostream>
#include <thread>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::cerr << __FILE__ << ':' << __LINE__ << ": failed: " #condition << '\n';  \
            std::_Exit(1);                                                                \
        }                                                                                 \
    } while (0)

static bool holds(const libbridge::Bytes &bytes, const char *text) {
    return bytes.view().find(text) != std::string_view::npos;
}

template <typename Function> static bridge_status failure_of(Function function) {
    try {
        function();
    } catch (const libbridge::Error &error) {
        CHECK(*error.what());
        return error.status;
    }
    return BRIDGE_OK;
}

static void errors() {
    CHECK(failure_of([] { libbridge::Bridge worker("{"); }) == BRIDGE_INVALID);
    CHECK(failure_of([] { libbridge::Bridge worker("{}", "/no/python"); }) == BRIDGE_INVALID);
    libbridge::Bridge worker(R"({"adapter": "echo"})");
    worker.close();
    CHECK(failure_of([&] { worker.call("{}"); }) == BRIDGE_CLOSED);
    CHECK(failure_of([&] { worker.submit("{}", [](bridge_kind, libbridge::Bytes) {}); }) ==
          BRIDGE_CLOSED);
    CHECK(failure_of([&] { worker.close(); }) == BRIDGE_CLOSED);
}

static void calls() {
    using namespace std::chrono_literals;
    libbridge::Bridge worker(R"({"adapter": "echo", "grace": 0.1})");
    libbridge::Bytes reply = worker.call(R"({"id": 1, "command": "ping"})");
    CHECK(holds(reply, "\"ok\""));
    reply = worker.call(R"({"id": 1, "command": "sleep", "args": {"seconds": 0.3}})", 10ms);
    CHECK(holds(reply, "\"deadline_exceeded\""));
    const std::string text(100'000, 'x');
    reply = worker.call(libbridge::Request::owning(
        R"({"id": 1, "command": "echo", "args": {"text": ")" + text + R"("}})"));
    CHECK(holds(reply, text.c_str()));
    libbridge::Request::owning("never sent");

    std::promise<libbridge::Bytes> replied;  // outlives its callback
    const auto number =
        worker.submit(R"({"id": 2, "command": "sleep", "args": {"seconds": 0.3}})",
                      [&](bridge_kind, libbridge::Bytes bytes) {
                          replied.set_value(std::move(bytes));
                      });
    worker.cancel(number);
    reply = replied.get_future().get();
    CHECK(holds(reply, "\"cancelled\""));
    worker.listen([](bridge_kind, libbridge::Bytes) {});
    worker.listen(nullptr);
    CHECK(failure_of([&] { worker.submit("{}", nullptr); }) == BRIDGE_INVALID);
}

// A listener's captures live as long as the listener runs, even if the handle is destroyed.
static void listener_that_outlives_its_handle() {
    std::promise<void> begun, over;
    std::thread calling;
    {
        libbridge::Bridge worker(R"({"adapter": "commands:adapter", "grace": 0.1, "path": [")" TESTS
                                 R"("]})");
        worker.listen([&, text = std::string(100, 'x')](bridge_kind, libbridge::Bytes) {
            begun.set_value();
            over.get_future().wait();
            CHECK(text == std::string(100, 'x'));
        });
        calling = std::thread([&] {
            worker.call(R"({"id": 1, "command": "count", "stream": true, "args": {"n": 1}})");
        });
        begun.get_future().wait();
        CHECK(failure_of([&] { worker.close(); }) == BRIDGE_BUSY);
    }
    over.set_value();
    calling.join();
}

int main(int count, char **) {
    if (count > 1) {
        listener_that_outlives_its_handle();
        return 0;
    }
    calls();
    errors();
}
