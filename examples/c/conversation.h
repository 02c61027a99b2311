/* The messages of the example hosts in C and C++: a program of type react that calls a tool of the
   host, and whose answer is streamed. Each host prints every message that it receives. */

#ifndef CONVERSATION_H
#define CONVERSATION_H

#include <stdio.h>
#include <string.h>

static const char *const preparations[] = {
    "{\"id\": 1, \"command\": \"hello\", \"args\": {\"offers\": {\"tools\": true}}}",
    "{\"id\": 2, \"command\": \"configure_lm\", \"args\": {\"provider\": \"offline\"}}",
    "{\"id\": 3, \"command\": \"register_tools\", \"args\": {\"tools\": [{\"name\": \"temperature\","
    " \"description\": \"The temperature in a city.\", \"args\": {\"city\": {\"type\": \"string\"}}}]}}",
    "{\"id\": 4, \"command\": \"create_program\", \"args\": {\"id\": \"weather\", \"program_type\":"
    " \"react\", \"signature\": {\"inputs\": [{\"name\": \"question\"}],"
    " \"outputs\": [{\"name\": \"answer\"}]}}}",
};
enum { PREPARATIONS = sizeof preparations / sizeof *preparations };

static const char question[] =
    "{\"id\": 5, \"command\": \"execute_program\", \"stream\": true, \"args\": {\"program_id\":"
    " \"weather\", \"inputs\": {\"question\": \"What is the temperature in Graz?\"}}}";

static void print_message(const void *data, size_t size) {
    printf("%.*s\n", (int)size, (const char *)data);
    fflush(stdout);
}

/* Return whether a reply contains the result of the tool. */
static int is_answered(const void *data, size_t size) {
    char message[4096];
    snprintf(message, sizeof message, "%.*s", (int)size, (const char *)data);
    return strstr(message, "21 degrees\"}") != NULL;
}

/* Copy the string that follows "name":" in a message. Your own host should use a JSON library. */
static void find_string(const void *data, size_t size, const char *name, char *text, size_t text_size) {
    char message[4096], key[64];
    const char *start;
    size_t length;
    snprintf(message, sizeof message, "%.*s", (int)size, (const char *)data);
    snprintf(key, sizeof key, "\"%s\":\"", name);
    start = strstr(message, key);
    start = start ? start + strlen(key) : "";
    length = strcspn(start, "\"");
    snprintf(text, text_size, "%.*s", (int)length, start);
}

/* Run the tool, and write the answer to a call into the host. */
static void answer_tool(const void *data, size_t size, char *answer, size_t answer_size) {
    char id[64], city[64];
    find_string(data, size, "id", id, sizeof id);
    find_string(data, size, "city", city, sizeof city);
    snprintf(answer, answer_size,
             "{\"id\": \"%s\", \"success\": true, \"result\": \"It is 21 degrees in %s.\"}", id, city);
}

#endif
