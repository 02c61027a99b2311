"""Valid requests for every command, which frames.py mutates. The objects that they name are created by other requests.

`conversations` are requests that belong together; most of them are those that doubles of workers are tested with.
"""

from __future__ import annotations

import json
from typing import Any

import mock_conversations
import mock_dspy_conversations

Request = dict[str, Any]

QA = {
    "name": "QA",
    "inputs": [{"name": "question", "type": "string", "description": "what is asked"}],
    "outputs": [{"name": "answer"}, {"name": "score", "type": "optional<float>"}],
}
PLAIN = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
TOOL = {"name": "clock", "description": "The time.", "args": {"zone": {"type": "string"}}}
LISTED = {  # a tool as a server of the Model Context Protocol lists it
    "name": "look-up",
    "title": "Look up",
    "inputSchema": {
        "type": "object",
        "properties": {"key": {"$ref": "#/$defs/Key"}, "self": {"anyOf": [{}, {"type": "null"}]}},
        "required": ["key"],
        "$defs": {"Key": {"type": ["string", "integer"]}},
    },
}
MAPS = {
    "inputs": {"day": {"type": "date"}, "rows": {"type": "list<dict<enum<1,2>, any>>"}},
    "outputs": {"out": {"type": "union<decimal|dict<string, list<integer>>>"}},
}
SCHEMAS = {
    "inputs": {"question": {"prefix": "Q:", "default": "Who?"}, "at": {"type": "optional<datetime>"}},
    "outputs": {
        "answer": {"type": "string", "constraints": {"max_length": 80, "pattern": "^[a-z]+(x|y)*$"}},
        "item": {
            "json_schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "format": "uuid"},
                    "count": {"type": "integer", "maximum": 9},
                },
                "required": ["name"],
            }
        },
    },
}
ASKED = {"question": "Who?"}
UUID = "12345678-1234-5678-1234-567812345678"
BUFFER = {"$buffer": 0}
TENSOR = {"$tensor": {"type": "u8", "shape": [2], "data": BUFFER}}
ROWS = [{"inputs": {"question": f"Who {number}?"}, "outputs": {"answer": "noon"}} for number in range(3)]
FLEX = "class F(dspy.Module):\n    def forward(self, question):\n        return dspy.Prediction(answer=question)"
# The answers of a model, to the program with tools and to all others.
STEPS = {
    "next_tool_name": {
        "next_thought": "I look it up.",
        "next_tool_name": "clock",
        "next_tool_args": {"zone": "UTC"},
    },
    "variables_info": {"reasoning": "so", "code": "SUBMIT('noon')"},
    "proposed_prefix": {"proposed_instruction": "Answer.", "proposed_prefix_for_output_field": "A:"},
    "rationale": {"rationale": "so", "answer": "noon"},
    "tool_calls": {"next_thought": "so", "tool_calls": [{"name": "submit", "args": {"answer": "noon"}}]},
    "natural_language_rules": {"reasoning": "so", "natural_language_rules": "Be brief."},
    "": {"answer": "noon", "score": "0.5", "reasoning": "so", "out": "0.10", "proposed_instruction": "Answer."},
}
SCRIPTED = {"provider": "scripted", "answers": STEPS}


def request(command: str, session_id: str | None = None, /, **args: Any) -> Request:
    return {"command": command, "args": args, **({} if session_id is None else {"session_id": session_id})}


def optimize(optimizer: str, **options: Any) -> Request:
    args = {"program_id": "o", "trainset": ROWS, "metric": "exact_match", "save_as": "o2", "replace": True}
    return {**request("optimize", optimizer=optimizer, options=options, **args), "timeout_ms": 10_000}


REQUESTS: list[Request] = [
    request("ping", health_check=True),
    request("hello", offers={"buffers": False, "logs": False, "tools": True}),
    request("hello", offers={"buffers": True, "logs": True, "tools": True}),
    request("describe"),
    request("get_stats", include=["commands", "sessions", "worker"], limit=3),
    request("set_log_level", level="ERROR", logger="dspy"),
    request("set_log_level", level="DEBUG"),
    request("cancel", id=5),
    request("pause", id="none"),
    request("resume", id="none"),
    request("create_session", session_id="s1", ttl_s=60, quota={"bytes": 9}),
    request("create_session", session_id="d1", durable=True, quota={"programs": 9}),
    request("get_session", session_id="s1"),
    request("list_sessions", limit=10),
    request("update_session_data", session_id="s1", key="k", value=[1, {}]),
    request("update_session_data", operation="merge", value={"a": b"\xff"}),
    request("update_session_data", "d1", operation="merge", key="m", value={"a": {"b": [1, 2.5]}}),
    request("update_session_data", operation="delete", key="k"),
    request("update_session_data", key="k", value=TENSOR),
    request("update_session_data", key="k", value=[BUFFER, {"x": BUFFER}]),
    request("get_session_data", "s1", key="k"),
    request("get_session_data", "d1"),
    request("cleanup_session", session_id="s1"),
    request("cleanup"),
    request("reset_state"),
    request("configure_lm", provider="offline"),
    request("configure_lm", "s1", provider="scripted", answers=[{"answer": "x"}], temperature=0.5),
    request("create_program", id="p", signature=QA, if_exists="replace"),
    request("create_program", id="r", signature=QA, program_type="react", max_iters=2),
    request("create_program", id="c", signature=MAPS, program_type="chain_of_thought"),
    request(
        "create_program",
        id="j",
        signature=SCHEMAS,
        demos=[{"inputs": ASKED, "outputs": {"answer": "x", "item": {"name": UUID}}}],
    ),
    request("create_gemini_program", id="g", model="offline/reader"),
    request("register_tools", tools=[TOOL]),
    request("register_tools", tools=[LISTED], replace=True),
    request("configure_lm", **SCRIPTED, cache=9, history=3),
    {**request("execute_program", program_id="r", inputs=ASKED), "stream": True},
    request("execute_program", program_id="r", inputs=ASKED),
    request("execute_program", program_id="c", inputs={"day": "2024-02-29", "rows": [{"1": []}]}),
    request("execute_program", program_id="p", inputs=ASKED),
    {
        "command": "execute_program",
        "stream": True,
        "timeout_ms": 5000,
        "args": {
            "program_id": "p",
            "inputs": {"question": ["a", {"b": 1}]},
            "options": {"temperature": 0.1},
            "program_data": {"signature": QA, "signature_def": {}},
        },
    },
    request("execute_gemini_program", program_id="g", inputs={}),
    request("list_programs"),
    request("get_program_info", program_id="p"),
    request("delete_program", program_id="p"),
]

_SETUP = [
    request("hello", offers={"tools": True, "buffers": True}),
    request("configure_lm", **SCRIPTED, history=5),
    request("create_program", id="o", signature=PLAIN, if_exists="replace"),
]
_STAGES = [
    {
        "name": "find",
        "program_type": "retrieve",
        "index": "i",
        "k": 2,
        "signature": {"inputs": [{"name": "question"}], "outputs": [{"name": "context", "type": "list<string>"}]},
    },
    {
        "name": "read",
        "signature": {
            "inputs": [{"name": "context", "type": "list<string>"}, *PLAIN["inputs"]],
            "outputs": PLAIN["outputs"],
        },
    },
]
CONVERSATIONS: list[list[Request]] = [
    [
        *_SETUP,
        request("execute_batch", program_id="o", inputs=[ASKED, {}, ASKED], threads=2, include=["usage"]),
        {**request("evaluate", program_id="o", devset=ROWS, metric={"name": "f1", "field": "answer"}), "stream": True},
        request("evaluate", program_id="o", devset=ROWS, metric={"host": "good", "trace": True}, others=ROWS),
        request("evaluate", program_id="o", devset=ROWS, metric={"name": "semantic_f1", "question": "question"}),
        request("get_history", limit=2),
        request("inspect_call", id=1),
    ],
    [
        *_SETUP,
        optimize("labeled_few_shot", k=1),
        optimize("bootstrap_few_shot", max_bootstrapped_demos=1, metric_threshold=0.1, teacher="host/mine"),
        optimize("bootstrap_random_search", num_candidates=1, max_rounds=1, stop_at_score=0.9),
        optimize("knn_few_shot", k=1),
        optimize("copro", breadth=2, depth=1),
        optimize("mipro_v2", num_candidates=2, num_trials=1, minibatch_size=2),
        optimize("simba", bsize=2, num_candidates=2, max_steps=1),
        optimize("infer_rules", num_candidates=1, num_rules=1),
        optimize("gepa", max_metric_calls=4),
        optimize("ensemble", size=2, of={"optimizer": "bootstrap_random_search", "options": {"num_candidates": 1}}),
        optimize("better_together", steps=[{"optimizer": "copro", "options": {"breadth": 2, "depth": 1}}]),
        request("get_program", program_id="o2", include=["demos", "instructions"]),
        request("export_program", program_id="o2"),
    ],
    [
        *_SETUP,
        request("create_index", index_id="i", texts=["a b", "noon", "c"], embedder="offline", if_exists="replace"),
        request("create_index", index_id="v", texts=["a", "b"], vectors=[[0.5, 1], [1, -2]], if_exists="replace"),
        request("create_index", index_id="t", texts=["a"], vectors={"$tensor": {**TENSOR["$tensor"], "shape": [1, 2]}}),
        request("add_to_index", index_id="v", texts=["c"], vectors=[[0, 1e-9]]),
        request("search_index", index_id="i", queries=["noon", "a"], k=2),
        request("search_index", index_id="v", vector=[1, 0.5], k=2, tensors=True),
        request("search_index", index_id="v", vectors=[[1, 0.5]]),
        request("create_program", id="rag", signature=PLAIN, program_type="pipeline", stages=_STAGES),
        request("execute_program", program_id="rag", inputs=ASKED, include=["prompt"]),
        request("configure_embedder", model="host/small", name="small", batch_size=2),
        request("embed", texts=["a", "b"], embedder="small"),
        request("list_indexes"),
        request("delete_index", index_id="i"),
    ],
    [
        *_SETUP,
        *(
            request("create_program", id=kind, signature=PLAIN, program_type=kind, if_exists="replace", **options)
            for kind, options in {
                "react_v2": {"max_iters": 2, "allow_no_tools": True},
                "best_of_n": {"n": 2, "reward": {"host": "good"}, "threshold": 0.5},
                "refine": {"n": 2, "base": "chain_of_thought"},
                "majority": {"n": 2, "field": "answer"},
                "ensemble": {"n": 2},
                "multi_chain_comparison": {"n": 2},
                "knn": {"k": 1, "demos": ROWS},
                "rlm": {
                    "tools": [],
                    "max_iters": 2,
                    "max_llm_calls": 2,
                    "max_output_chars": 200,
                    "max_step_seconds": 1,
                },
                "flex": {"tools": [], "source": FLEX, "max_step_seconds": 1},
            }.items()
        ),
        *(
            request("execute_program", program_id=kind, inputs=ASKED, include=["trajectory", "usage"])
            for kind in ("react_v2", "best_of_n", "refine", "majority", "ensemble", "multi_chain_comparison", "knn")
        ),
        request("execute_program", program_id="rlm", inputs=ASKED),
        request("execute_program", program_id="flex", inputs=ASKED),
    ],
    [
        *_SETUP,
        request("save_program", program_id="o", path="o.json"),
        request("load_program", program_id="o3", path="o.json", if_exists="replace"),
        request("import_program", program_id="o4", document=mock_dspy_conversations.DOCUMENT, if_exists="replace"),
        request(
            "import_program",
            program_id="o",
            document={**mock_dspy_conversations.PREDICTOR, "metadata": {"dependency_versions": {}}},
        ),
    ],
    [
        *_SETUP,
        request(
            "configure_lm",
            name="mine",
            model="host/mine",
            retries=0,
            stop=["x"],
            response_format={"type": "json_object"},
        ),
        request(
            "execute_program", program_id="o", inputs=ASKED, model={"models": ["mine", "host/other"]}, adapter="json"
        ),
        {**request("execute_program", program_id="o", inputs=ASKED, model="mine", adapter="xml"), "stream": True},
        request("execute_program", program_id="shout", inputs=ASKED),
    ],
]


def conversations() -> list[list[Request]]:
    """Return these conversations and those of the doubles, without requests that name a provider on the network."""
    doubles = [*mock_conversations.CONVERSATIONS.values(), *mock_dspy_conversations.CONVERSATIONS.values()]
    shared = [
        [{"command": each[0], "args": each[1], "session_id": (*each, None)[2]} for each in one] for one in doubles
    ]
    return CONVERSATIONS + [[each for each in one if not _names_provider(each)] for one in shared]


def _names_provider(request: Request) -> bool:
    text = json.dumps(request, default=repr)
    return any(name in text for name in ("openai", "gemini-"))
