"""Programs that search indexes: agents with a tool for that, and stages of pipelines; answers from what they find."""

from __future__ import annotations

import pytest

from bridge import Client, errors

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
TEXTS = [
    "Mozart was born in Salzburg in 1756.",
    "The Louvre is a museum in Paris.",
    "Bees make honey.",
    "Berlin is the capital of Germany.",
]


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        client.call("create_index", {"index_id": "facts", "texts": TEXTS})
        yield client


@pytest.fixture
def session(client, request):
    """Return a function session(command, **args) that calls a command in a session of its own."""
    return lambda command, **args: client.call(command, args, session_id=request.node.name)


def step(tool, **args):
    return {"next_thought": "hm", "next_tool_name": tool, "next_tool_args": args}


ANSWER = {"reasoning": "because", "answer": "42"}


def agent(session, **more):
    args = {"id": "agent", "signature": SIGNATURE, "program_type": "react", "indexes": ["facts"], **more}
    return session("create_program", **args)


def events_of(client, session_id):
    args = {"program_id": "agent", "inputs": {"question": "Where was Mozart born?"}}
    with client.stream("execute_program", args, session_id=session_id) as stream:
        found = [(event, data) for event, data in stream if event in ("tool_call", "tool_result")]
        return found, stream.result()["outputs"]


def test_an_agent_answers_from_an_index(client):
    """The built-in model, the built-in embedder, and no tool of the host."""
    client.call("configure_lm", {"provider": "offline"}, session_id="rag")
    args = {"id": "agent", "signature": SIGNATURE, "program_type": "react", "indexes": ["facts"], "max_iters": 3}
    client.call("create_program", args, session_id="rag")
    events, outputs = events_of(client, "rag")
    assert outputs["answer"] == "Salzburg"
    assert events[0] == ("tool_call", {"name": "search_facts", "args": {"query": "Where was Mozart born?"}})
    assert events[1][1]["result"][0] == TEXTS[0]


def test_arguments_of_the_tool(client, session, request):
    """The model chooses how many texts it gets; wrong arguments are explained to it."""
    steps = [
        step("search_facts", query="honey", k=1),
        step("search_facts", query="honey", k=0),
        step("search_facts", q="honey"),
        step("search_facts"),
        step("finish"),
        ANSWER,
    ]
    session("configure_lm", provider="scripted", answers=steps, history=10)
    agent(session)
    events, _ = events_of(client, request.node.name)
    assert events == [
        ("tool_call", {"name": "search_facts", "args": {"query": "honey", "k": 1}}),
        ("tool_result", {"name": "search_facts", "result": ["Bees make honey."]}),
    ]
    seen = session("get_history", limit=1)["history"][0]["messages"][-1]["content"]
    assert "error: search_facts cannot take k" in seen
    assert "error: search_facts has no argument q" in seen
    assert "error: search_facts needs the argument query" in seen


def test_the_index_is_searched_as_it_is_then(client, session, request):
    """A session's own index comes before that of the default session; a deleted one is an error for the model."""
    steps = [step("search_facts", query="mine", k=1), step("search_own", query="x"), step("finish"), ANSWER]
    session("configure_lm", provider="scripted", answers=steps)
    session("create_index", index_id="own", texts=["of this session"])
    agent(session, indexes=["facts", "own"])
    session("create_index", index_id="facts", texts=["mine and only mine"])
    session("delete_index", index_id="own")
    events, outputs = events_of(client, request.node.name)
    results = [data["result"] for event, data in events if event == "tool_result"]
    assert results == [["mine and only mine"], "error: args.index_id: there is no index 'own'"]
    assert outputs["answer"] == "42"


def test_tools_of_the_host_beside_it(client, session, request):
    session("register_tools", tools=[{"name": "look", "args": {}}])
    session(
        "configure_lm", provider="scripted", answers=[step("look"), step("search_facts", query="bees", k=1), ANSWER]
    )
    agent(session, max_iters=2)
    events, _ = events_of(client, request.node.name)
    assert [data["name"] for event, data in events if event == "tool_call"] == ["look", "search_facts"]


def test_an_index_without_an_embedder(client, session, request):
    """It cannot be searched for texts: the model is told so."""
    session("create_index", index_id="facts", texts=["a"], vectors=[[1.0]])
    session("configure_lm", provider="scripted", answers=[step("search_facts", query="a"), step("finish"), ANSWER])
    agent(session)
    events, _ = events_of(client, request.node.name)
    assert "without an embedder" in events[1][1]["result"]


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"indexes": ["nothing"]}, "args.indexes[0]"),
        ({"indexes": ["facts", "nothing"]}, "args.indexes[1]"),
        ({"indexes": "facts"}, "args.indexes"),
        ({"indexes": [1]}, "args.indexes[0]"),
        ({"indexes": ["facts"] * 65}, "args.indexes"),
        ({"indexes": []}, "args.tools"),
        ({"indexes": ["facts"], "program_type": "predict"}, "args.indexes"),
    ],
)
def test_wrong_indexes(session, args, path):
    """Unknown ones, and those of a program without tools."""
    with pytest.raises(errors.InvalidArgs) as caught:
        agent(session, **args)
    assert caught.value.details["path"] == path


FIND = {"inputs": [{"name": "question"}], "outputs": [{"name": "passages", "type": "list<string>"}]}


def test_a_program_that_only_searches(session):
    """Its one output is a list of texts, or one text."""
    session("configure_lm", provider="offline")
    for kind, found in (("list<string>", [TEXTS[2]]), ("string", TEXTS[2])):
        signature = {**FIND, "outputs": [{"name": "passages", "type": kind}]}
        args = {"program_type": "retrieve", "index": "facts", "k": 1, "if_exists": "replace"}
        session("create_program", id="find", signature=signature, **args)
        assert session("execute_program", program_id="find", inputs={"question": "honey"})["outputs"] == {
            "passages": found
        }
    rows = session("execute_batch", program_id="find", inputs=[{"question": "honey"}, {"question": "Berlin"}])
    assert [row["outputs"]["passages"] for row in rows["results"]] == [TEXTS[2], TEXTS[3]]


def test_a_pipeline_answers_from_an_index(session):
    """One stage finds passages, the next one reads them: on the built-in model and embedder."""
    session("configure_lm", provider="offline")
    read = {
        "inputs": [{"name": "question"}, {"name": "passages", "type": "list<string>"}],
        "outputs": [{"name": "answer"}],
    }
    stages = [
        {"name": "find", "program_type": "retrieve", "index": "facts", "k": 2, "signature": FIND},
        {"name": "read", "signature": read, "inputs": {"passages": "find.passages"}},
    ]
    session("create_program", id="rag", signature=SIGNATURE, program_type="pipeline", stages=stages)
    for question, answer in (("Where was Mozart born?", "Salzburg"), ("What is the capital of Germany?", "Berlin")):
        result = session("execute_program", program_id="rag", inputs={"question": question}, include=["usage"])
        assert (result["outputs"]["answer"], len(result["usage"])) == (answer, 1)
    stages[0]["index"] = "nothing"
    with pytest.raises(errors.InvalidArgs) as caught:
        session("create_program", id="other", signature=SIGNATURE, program_type="pipeline", stages=stages)
    assert caught.value.details["path"] == "args.stages[0].index"


def test_an_index_that_is_deleted_before_the_run(session):
    session("configure_lm", provider="offline")
    session("create_index", index_id="own", texts=TEXTS)
    session("create_program", id="find", signature=FIND, program_type="retrieve", index="own")
    session("delete_index", index_id="own")
    with pytest.raises(errors.InvalidArgs, match="no index 'own'"):
        session("execute_program", program_id="find", inputs={"question": "honey"})


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"index": None}, "args.index"),
        ({"index": "nothing"}, "args.index"),
        ({"index": 1}, "args.index"),
        ({"k": 0}, "args.k"),
        ({"k": 101}, "args.k"),
        ({"indexes": ["facts"]}, "args.indexes"),
        ({"tools": []}, "args.tools"),
        ({"demos": [{"inputs": {"question": "a"}, "outputs": {"passages": []}}]}, "args.demos"),
        ({"signature": {**FIND, "outputs": FIND["outputs"] * 2}}, "args.signature"),
        ({"signature": {**FIND, "outputs": [{"name": "n", "type": "integer"}]}}, "args.signature"),
        ({"signature": {**FIND, "inputs": [{"name": "n", "type": "list<string>"}]}}, "args.signature"),
        ({"signature": {**FIND, "inputs": [{"name": "a"}, {"name": "b"}]}}, "args.signature"),
    ],
)
def test_wrong_searching_programs(session, args, path):
    with pytest.raises(errors.InvalidArgs) as caught:
        session("create_program", **{"signature": FIND, "program_type": "retrieve", "index": "facts", **args})
    assert caught.value.details["path"].startswith(path)
