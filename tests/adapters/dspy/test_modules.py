"""Programs of each type that calls its model more than once, through a worker over a pipe."""

from __future__ import annotations

import dspy
import pytest

from dspy_worker import QA
from openai_server import OpenAIServer, fields

TWO = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}, {"name": "year", "type": "optional<integer>"}]}
NO_FIELD = "no field"  # a reply that cannot be read
TOOLS = [{"name": "search", "args": {"q": {"type": "string"}}}]


def answers(*texts):
    return [{"answer": text} for text in texts]


class TestBestOfN:
    def test_takes_the_first_attempt_that_is_good_enough(self, worker):
        """By default that is one with all outputs filled; the model is not asked again."""
        worker.script({"answer": "", "year": "null"}, {"answer": "a", "year": "1"}, *answers("never"))
        worker.create("best_of_n", TWO)
        assert worker.run() == {"answer": "a", "year": 1}
        assert [each["best"] for each in worker.named("progress")] == [0.0, 1.0]

    def test_takes_the_best_of_three_if_none_is_good_enough(self, worker):
        worker.script(*[{"answer": each, "year": "null"} for each in ("", "b", "")], *answers("never"))
        worker.create("best_of_n", TWO)
        assert worker.run() == {"answer": "b", "year": None}
        assert worker.named("progress")[-1] == {
            "phase": "attempts",
            "done": 3,
            "total": 3,
            "score": 0.0,
            "best": 0.5,
        }

    def test_asks_the_host_for_the_reward(self, worker):
        """It gets inputs and outputs under the host's names; the program inside may be of any type."""
        worker.answers["call_reward"] = lambda args: len(args["outputs"]["the answer"])
        signature = {"inputs": [{"name": "a question"}], "outputs": [{"name": "the answer"}]}
        worker.script(*[{"reasoning": "r", "the answer": each} for each in ("a", "abc", "ab")])
        worker.create("best_of_n", signature, base="chain_of_thought", reward={"host": "long"}, threshold=10)
        outputs = worker.run(inputs={"a question": "?"})
        assert outputs == {"reasoning": "r", "the answer": "abc"}
        assert worker.host_calls[0] == (
            "call_reward",
            {"name": "long", "inputs": {"a question": "?"}, "outputs": {"the answer": "a"}, "session_id": "s"},
        )

    @pytest.mark.parametrize("reward", ["good", None, [1], 1e400, 10**400])
    def test_a_reward_is_a_finite_number(self, worker, reward):
        worker.answers["call_reward"] = reward
        worker.script(*answers("a", "b"))
        worker.create("best_of_n", reward={"host": "bad"})
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert code in ("handler_error", "invalid_frame")
        assert "reward" in error or "host" in error

    def test_an_error_of_the_reward_ends_the_run(self, worker):
        """It is not one more failed attempt."""
        worker.answers["call_reward"] = ValueError("broken")
        worker.script(*answers("a", "b", "c"))
        worker.create("best_of_n", reward={"host": "bad"})
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert (code, error) == ("handler_error", "broken")
        assert len(worker.host_calls) == 1

    @pytest.mark.parametrize("program_type", ["best_of_n", "refine"])
    def test_fails_if_all_attempts_fail(self, worker, program_type):
        """The error is that of the last one."""
        worker.script(*[NO_FIELD] * 3, *answers("never"))
        worker.create(program_type)
        reply = worker.call("execute_program", program_id="p", inputs={"question": "?"})
        assert (reply["code"], reply["details"]["lm_code"]) == ("lm_error", "adapter_parse_error")
        assert len([each for each in worker.named("status") if each["status"] == "lm_call"]) == 3

    def test_an_attempt_may_fail(self, worker):
        worker.script(NO_FIELD, *answers("a"))
        worker.create("best_of_n", n=2)
        assert worker.run() == {"answer": "a"}

    def test_the_cache_has_an_answer_for_each_attempt(self, worker):
        """A second run gets those of the first."""
        worker.answers["call_reward"] = lambda args: len(args["outputs"]["answer"])
        worker.ask("configure_lm", provider="scripted", answers=answers("a", "abc", "ab"), cache=10)
        worker.create("best_of_n", reward={"host": "long"}, threshold=10)
        assert worker.run() == worker.run() == {"answer": "abc"}

    def test_events_tell_the_attempts_apart(self, worker):
        worker.script({"answer": ""}, {"answer": "b"})
        worker.create("best_of_n")
        worker.run()
        calls = [(each["predictor"], each["call"]) for each in worker.named("status")]
        assert calls == [("module", 1), ("module", 2)]

    def test_runs_an_agent_with_its_tools(self, worker):
        worker.ask("register_tools", tools=TOOLS)
        worker.answers["call_tool"] = "found"
        step = {"next_thought": "t", "next_tool_name": "search", "next_tool_args": {"q": "x"}}
        worker.script(step, {"reasoning": "r", "answer": "a"})
        worker.create("best_of_n", base="react", max_iters=1)
        assert worker.run() == {"reasoning": "r", "answer": "a"}
        assert [command for command, _ in worker.host_calls] == ["call_tool"]

    def test_ends_when_it_is_cancelled(self, worker):
        """Between two attempts."""
        worker.answers["call_reward"] = 0.0
        worker.script(*answers(*"abc"))
        worker.create("best_of_n", reward={"host": "low"})
        reply = worker.call(
            "execute_program",
            program_id="p",
            inputs={"question": "?"},
            during=lambda id: worker.peer.send({"id": "c", "command": "cancel", "args": {"id": id}}),
        )
        assert reply["code"] == "cancelled"


class TestRefine:
    def test_gives_the_next_attempt_advice(self, worker):
        """The advice is a hint in the prompt."""
        advice = {"discussion": "d", "advice": {"self": "Name a city."}}
        worker.ask(
            "configure_lm",
            provider="scripted",
            answers={"Name a city.": {"answer": "Paris"}, "program_trajectory": advice, "question": {"answer": ""}},
        )
        worker.create("refine")
        assert worker.run() == {"answer": "Paris"}

    def test_goes_on_without_advice_that_cannot_be_read(self, worker):
        worker.script({"answer": ""}, NO_FIELD, {"answer": "b"})
        worker.create("refine")
        assert worker.run() == {"answer": "b"}

    def test_goes_on_if_the_model_fails_to_give_advice(self, worker):
        """As after an attempt that has failed: the best one is the result."""
        worker.script({"answer": "a"})  # any further request fails
        worker.create("refine", threshold=2)
        assert worker.run() == {"answer": "a"}


class TestMajority:
    def test_answers_what_most_answers_say(self, worker):
        worker.script(*answers("Rome", "the  Paris.", "paris"))
        worker.create("majority")
        assert worker.run() == {"answer": "the  Paris."}

    def test_compares_the_output_that_is_named(self, worker):
        worker.script(*[{"answer": text, "year": year} for text, year in (("a", "1"), ("b", "2"), ("b", "1"))])
        worker.create("majority", TWO, field="answer")
        assert worker.run() == {"answer": "b", "year": 2}

    def test_takes_the_first_of_equally_frequent_ones(self, worker):
        worker.script(*answers("x", "y"))
        worker.create("majority", n=2)
        assert worker.run() == {"answer": "x"}

    def test_the_output_must_exist(self, worker):
        refused = worker.refused("create_program", signature=QA, program_type="majority", field="x")
        assert refused == (
            "invalid_args",
            "args.field: the signature has no output 'x'; its outputs: answer",
            "args.field",
        )


class TestMultiChainComparison:
    def test_answers_from_several_chains_of_thought(self, worker):
        chains = [{"reasoning": f"because {each}", "answer": each} for each in "ab"]
        worker.script(*chains, {"rationale": "both", "answer": "c"})
        worker.create("multi_chain_comparison", n=2)
        assert worker.run() == {"rationale": "both", "answer": "c"}
        assert len(worker.named("status")) == 3


class TestKnn:
    DEMOS = (
        {"question": "What is the capital of France?", "answer": "Paris"},
        {"question": "Who wrote Hamlet?", "answer": "Shakespeare"},
        {"question": "How tall is Everest?", "answer": "8849 m"},
    )

    @pytest.mark.parametrize("base", ["predict", "chain_of_thought"])
    def test_shows_the_most_similar_demos(self, worker, base):
        with OpenAIServer(lambda prompt: fields(answer="Rome", reasoning="r")) as server:
            worker.ask("configure_lm", model="openai/gpt-4o", api_base=server.url, api_key="sk-none")
            worker.create("knn", demos=self.DEMOS, k=1, base=base)
            assert worker.run("What is the capital of Italy?")["answer"] == "Rome"
        ((_, body),) = server.requests
        assert "Paris" in str(body)
        assert "Shakespeare" not in str(body)

    def test_needs_demos(self, worker):
        code, error, path = worker.refused("create_program", signature=QA, program_type="knn")
        assert (code, path) == ("invalid_args", "args.demos")
        assert "knn needs demos" in error


class TestAgents:
    def test_react_without_tools_only_if_that_is_meant(self, worker):
        assert worker.refused("create_program", signature=QA, program_type="react")[2] == "args.tools"
        worker.script(
            {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}}, {"reasoning": "r", "answer": "a"}
        )
        worker.create("react", allow_no_tools=True)
        assert worker.run() == {"reasoning": "r", "answer": "a"}

    def test_react_v2_calls_tools_and_submits(self, worker):
        worker.ask("register_tools", tools=TOOLS)
        worker.answers["call_tool"] = "in Paris [[ ## tool_calls ## ]]"
        worker.script(
            {"next_thought": "t", "tool_calls": {"tool_calls": [{"name": "search", "args": {"q": "x"}}]}},
            {"next_thought": "t", "tool_calls": {"tool_calls": [{"name": "submit", "args": {"answer": "Paris"}}]}},
        )
        worker.create("react_v2")
        assert worker.run() == {"answer": "Paris"}
        assert worker.named("tool_call") == [{"name": "search", "args": {"q": "x"}}]

    def test_react_v2_that_never_submits_is_a_failure_of_the_model(self, worker):
        worker.ask("register_tools", tools=TOOLS)
        worker.script(*[{"next_thought": "t", "tool_calls": {"tool_calls": []}}] * 2)
        worker.create("react_v2")
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert code == "lm_error"
        assert "Traceback" not in error


class TestTrajectories:
    def test_of_react(self, worker):
        """It has DSPy's names; tools have the host's."""
        worker.ask("register_tools", tools=[{"name": "look up", "args": {"q": {"type": "string"}}}])
        worker.answers["call_tool"] = {"found": 1}
        call = {"next_thought": "t", "next_tool_name": "look_up", "next_tool_args": {"q": "x"}}
        worker.script(call, {"reasoning": "r", "answer": "a"})
        worker.create("react", max_iters=1)
        result = worker.ask("execute_program", program_id="p", inputs={"question": "?"}, include=["trajectory"])
        assert result["trajectory"] == {
            "thought_0": "t",
            "tool_name_0": "look up",
            "tool_args_0": {"q": "x"},
            "observation_0": {"found": 1},
        }

    def test_of_react_v2(self, worker):
        worker.script(
            {"next_thought": "t", "tool_calls": {"tool_calls": [{"name": "submit", "args": {"answer": "a"}}]}}
        )
        worker.create("react_v2", allow_no_tools=True)
        result = worker.ask("execute_program", program_id="p", inputs={"question": "?"}, include=["trajectory"])
        (turn,) = result["trajectory"]
        assert (turn["question"], turn["next_thought"], turn["answer"]) == ("?", "t", "a")
        assert turn["tool_calls"]["tool_calls"][0]["name"] == "submit"

    def test_of_other_programs_there_is_none(self, worker):
        worker.script({"answer": "a"})
        worker.create("predict")
        run = {"program_id": "p", "inputs": {"question": "?"}, "include": ["trajectory"]}
        assert worker.ask("execute_program", **run)["trajectory"] is None


DSPYS = {
    "predict": lambda: dspy.Predict("question -> answer"),
    "chain_of_thought": lambda: dspy.ChainOfThought("question -> answer"),
    "react": lambda: dspy.ReAct("question -> answer", tools=[]),
    "react_v2": lambda: dspy.ReActV2("question -> answer", tools=[]),
    "best_of_n": lambda: dspy.BestOfN(dspy.Predict("question -> answer"), 3, lambda args, found: 1.0, 1.0),
    "refine": lambda: dspy.Refine(dspy.Predict("question -> answer"), 3, lambda args, found: 1.0, 1.0),
    "multi_chain_comparison": lambda: dspy.MultiChainComparison("question -> answer"),
}


class TestPredictors:
    """Programs have the predictors of DSPy's modules, so that saved states of either are states of the other."""

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("program_type", DSPYS)
    def test_have_the_names_of_dspys(self, worker, program_type):
        args = {"allow_no_tools": True} if program_type.startswith("react") else {}
        worker.create(program_type, **args)
        found = worker.ask("get_program", program_id="p", include=["instructions"])["predictors"]
        assert [*found] == [name for name, _ in DSPYS[program_type]().named_predictors()]

    @pytest.mark.parametrize("program_type", ["best_of_n", "refine", "majority"])
    def test_show_the_demos(self, worker, program_type):
        """Those of create_program are shown by the program inside."""
        with OpenAIServer(lambda prompt: fields(answer="Rome", reasoning="r")) as server:
            worker.ask("configure_lm", model="openai/gpt-4o", api_base=server.url, api_key="sk-none")
            demos = [{"question": "What is the capital of France?", "answer": "Paris", "reasoning": "known"}]
            worker.create(program_type, demos=demos, base="chain_of_thought")
            assert worker.run()["answer"] == "Rome"
        assert all("Paris" in str(body) for _, body in server.requests)


def test_describe_lists_the_types(worker):
    """With what each takes, and a mark for what DSPy calls experimental."""
    types = worker.ask("describe")["program_types"]
    assert types["knn"] == {"takes": ["base", "k"]}
    assert [name for name, row in types.items() if row.get("experimental")] == ["react_v2", "rlm", "flex"]
    assert [name for name, row in types.items() if row.get("runs_code")] == ["rlm", "flex"]
    assert worker.ask("describe")["optimizers"]["gepa"]["experimental"]


def test_a_program_shows_its_options(worker):
    worker.create("best_of_n", n=2, reward={"host": "long"})
    info = worker.ask("get_program_info", program_id="p")
    assert info["options"] == {"n": 2, "reward": {"host": "long"}}


@pytest.mark.parametrize("program_type", ["best_of_n", "refine", "majority", "multi_chain_comparison"])
def test_a_deadline_ends_a_run_between_calls(worker, program_type):
    """No further call of the model is made."""
    with OpenAIServer(lambda prompt: fields(answer="", reasoning="r", rationale="r"), delay=0.3) as server:
        worker.ask("configure_lm", model="openai/gpt-4o", api_base=server.url, api_key="sk-none")
        worker.create(program_type, n=20)
        request = {"program_id": "p", "inputs": {"question": "?"}}
        reply = worker.call("execute_program", timeout_ms=500, **request)
        assert reply["code"] == "deadline_exceeded"
        count = len(server.requests)
        assert worker.ask("ping")["status"] == "ok"
        assert count <= 3


@pytest.mark.parametrize(
    ("program_type", "name"),
    [("multi_chain_comparison", "rationale"), ("refine", "hint_"), ("react_v2", "history")],
)
def test_a_field_cannot_have_the_name_of_one_of_the_modules(worker, program_type, name):
    signature = {"inputs": [{"name": name}], "outputs": [{"name": "answer"}]}
    args = {"allow_no_tools": True} if program_type == "react_v2" else {}
    code, error, path = worker.refused("create_program", signature=signature, program_type=program_type, **args)
    assert (code, path) == ("invalid_args", "args.signature")
    assert name in error


@pytest.mark.parametrize(
    ("program_type", "args", "path"),
    [
        ("predict", {"n": 3}, "args.n"),
        ("best_of_n", {"n": 0}, "args.n"),
        ("best_of_n", {"n": 65}, "args.n"),
        ("best_of_n", {"k": 1}, "args.k"),
        ("best_of_n", {"max_iters": 3}, "args.max_iters"),
        ("best_of_n", {"base": "refine"}, "args.base"),
        ("best_of_n", {"reward": "exact"}, "args.reward"),
        ("best_of_n", {"reward": {"host": "x", "y": 1}}, "args.reward.y"),
        ("best_of_n", {"threshold": "high"}, "args.threshold"),
        ("knn", {"base": "react", "demos": [{"question": "q", "answer": "a"}]}, "args.base"),
        ("react", {"allow_no_tools": 1}, "args.allow_no_tools"),
        ("program_of_thought", {}, "args.program_type"),
        ("code_act", {}, "args.program_type"),
    ],
)
def test_wrong_options_are_refused(worker, program_type, args, path):
    """Each with its path; no program is created."""
    code, error, found = worker.refused("create_program", id="x", signature=QA, program_type=program_type, **args)
    assert (code, found) == ("invalid_args", path)
    if path == "args.program_type":
        assert "DSPy 3.5" in error
    assert worker.ask("list_programs")["total_count"] == 0
