// The same as examples/c/embedded.c with the C++ header.

#include <exception>
#include <future>
#include <iostream>

#include "bridge.hpp"
#include "conversation.h"

static void print(const libbridge::Bytes &bytes) {
    print_message(bytes.view().data(), bytes.view().size());
}

int main() try {
    libbridge::Bridge worker(R"({"adapter": "dspy"})");
    for (const char *request : preparations) print(worker.call(request));

    std::promise<void> done;
    worker.submit(question, [&](bridge_kind kind, libbridge::Bytes bytes) {
        print(bytes);
        if (kind == BRIDGE_HOST_CALL) {
            char answer[256];
            answer_tool(bytes.view().data(), bytes.view().size(), answer, sizeof answer);
            worker.call(answer);
        } else if (kind == BRIDGE_REPLY) {
            done.set_value();
        }
    });
    done.get_future().wait();
    worker.close();
} catch (const std::exception &error) {
    std::cerr << "bridge: " << error.what() << '\n';
    return 1;
}
