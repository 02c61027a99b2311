// Run a DSPy program in this process, with a tool in C++ and a streamed answer.

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

    std::promise<bool> done;  // true if the reply is the answer
    worker.submit(question, [&](bridge_kind kind, libbridge::Bytes bytes) {
        print(bytes);
        if (kind == BRIDGE_HOST_CALL) {
            char answer[256];
            answer_tool(bytes.view().data(), bytes.view().size(), answer, sizeof answer);
            worker.call(answer);
        } else if (kind == BRIDGE_REPLY) {
            done.set_value(is_answered(bytes.view().data(), bytes.view().size()));
        }
    });
    const bool has_answer = done.get_future().get();
    worker.close();
    return !has_answer;
} catch (const std::exception &error) {
    std::cerr << "bridge: " << error.what() << '\n';
    return 1;
}
