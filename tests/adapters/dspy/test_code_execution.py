"""Programs that run code which a model writes, in a sandbox, through a worker over a pipe."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dspy_worker import QA, DspyWorker

TYPED = {"inputs": [{"name": "text"}], "outputs": [{"name": "count", "type": "integer"}]}
FLAGS = ("--allow-code-execution",)
RLM = {"signature": TYPED, "program_type": "rlm"}


def step(code):
    return {"reasoning": "r", "code": f"```python\n{code}\n```"}


def steps(worker, *codes, **options):
    """Create a program `p` whose model writes these steps."""
    worker.script(*[step(code) for code in codes])
    worker.create("rlm", TYPED, **options)


def run(worker, text="a b c", **args):
    return worker.ask("execute_program", program_id="p", inputs={"text": text}, **args)


class TestRlm:
    def test_steps_keep_their_variables_and_are_events(self, worker):
        steps(worker, "words = text.split()\nprint(len(words))", "SUBMIT(count=len(words))")
        assert run(worker)["outputs"] == {"count": 3}
        assert worker.named("code")[0] == {"step": 1, "code": "words = text.split()\nprint(len(words))"}
        assert worker.named("code_result") == [
            {"step": 1, "output": "3", "is_error": False},
            {"step": 2, "output": "{'count': 3}", "is_error": False},
        ]
        assert [each["predictor"] for each in worker.named("status")] == ["generate_action"] * 2

    def test_the_trajectory_is_included_when_asked_for(self, worker):
        steps(worker, "print(1)", "SUBMIT(2)")
        trajectory = run(worker, include=["trajectory"])["trajectory"]
        assert trajectory == [
            {"reasoning": "r", "code": "print(1)", "output": "1"},
            {"reasoning": "r", "code": "SUBMIT(2)", "output": "FINAL: {'count': 2}"},
        ]

    def test_code_calls_the_model(self, worker):
        """Each call counts as any other."""
        worker.script(step("answers = llm_query_batched(['x', 'y'])\nSUBMIT(len(answers))"), "one", "two")
        worker.create("rlm", TYPED)
        assert run(worker)["outputs"] == {"count": 2}
        assert len(worker.named("status")) == 3

    def test_code_calls_the_hosts_tools(self, worker):
        worker.ask(
            "register_tools", tools=[{"name": "add", "args": {"a": {"type": "integer"}, "b": {"type": "integer"}}}]
        )
        worker.answers["call_tool"] = lambda args: args["args"]["a"] + args["args"]["b"]
        steps(worker, "SUBMIT(add(1, b=2) + add(a=3, b=4))")
        assert run(worker)["outputs"] == {"count": 10}

    def test_an_output_of_another_type_is_an_error_of_the_code(self, worker):
        """The model reads it, and may submit again."""
        steps(worker, "SUBMIT('many')", "SUBMIT(3)")
        result = run(worker, include=["trajectory"])
        assert result["outputs"] == {"count": 3}
        assert "Type Error" in result["trajectory"][0]["output"]

    def test_an_exception_of_the_code_is_a_result(self, worker):
        steps(worker, "1 / 0", "SUBMIT(3)")
        assert run(worker)["outputs"] == {"count": 3}
        assert worker.named("code_result")[0] == {
            "step": 1,
            "output": "ZeroDivisionError: division by zero",
            "is_error": True,
        }

    def test_after_the_last_step_the_model_answers_without_code(self, worker):
        worker.script(step("print(1)"), {"count": "7"})
        worker.create("rlm", TYPED, max_iters=1)
        assert run(worker)["outputs"] == {"count": 7}


class TestLimits:
    def test_the_time_of_a_step(self, worker):
        steps(worker, "while True:\n    pass", "SUBMIT(3)", max_step_seconds=0.05)
        assert run(worker)["outputs"] == {"count": 3}
        assert "time limit" in worker.named("code_result")[0]["output"]

    def test_the_calls_of_the_model(self, worker):
        steps(worker, "llm_query_batched(['x', 'y'])", "SUBMIT(3)", max_llm_calls=1)
        assert run(worker)["outputs"] == {"count": 3}
        assert "limit exceeded" in worker.named("code_result")[0]["output"]

    def test_the_output_of_a_step(self, worker):
        steps(worker, "for _ in range(1000):\n    print('x' * 1000)", "SUBMIT(3)", max_output_chars=100)
        run(worker)
        assert len(worker.named("code_result")[0]["output"]) < 200

    def test_the_memory_of_a_step(self, worker):
        steps(worker, "x = 'x' * (1 << 30)", "SUBMIT(3)")
        run(worker)
        assert "MemoryError" in worker.named("code_result")[0]["output"]

    @pytest.mark.parametrize(
        "code", ["x = [0]\nwhile True:\n    x = x + x", "x = str(7**5000000)"], ids=["memory", "time"]
    )
    def test_a_step_whose_process_was_killed_is_an_error_of_the_code(self, worker, code):
        """The next step has a process of its own, without the variables of the last one."""
        steps(worker, code, "x", "SUBMIT(3)", max_step_seconds=0.5)
        assert run(worker)["outputs"] == {"count": 3}
        first, second, _ = worker.named("code_result")
        # Monty itself may notice the memory first.
        assert "the sandbox was reset" in first["output"] or "MemoryError" in first["output"]
        assert "NameError" in second["output"] or "MemoryError" in first["output"]

    @pytest.mark.parametrize("code", ["'x' * 10**6", "raise ValueError('x' * 10**6)", "SUBMIT(int('1' * 4000))"])
    def test_the_length_of_events(self, worker, code):
        """Values and errors are cut like what is printed."""
        steps(worker, code, "SUBMIT(3)", max_output_chars=100)
        run(worker)
        assert len(worker.named("code_result")[0]["output"]) < 200

    @pytest.mark.parametrize("name", ["max_iters", "max_llm_calls", "max_output_chars", "max_step_seconds"])
    def test_limits_have_limits(self, worker, name):
        assert worker.refused("create_program", **RLM, **{name: 10**9})[2] == f"args.{name}"

    def test_code_reaches_neither_files_nor_the_environment(self, worker):
        steps(worker, "open('/etc/passwd')", "import os\nprint(os.environ)", "import dspy", "SUBMIT(3)")
        run(worker)
        assert all(each["is_error"] for each in worker.named("code_result")[:3])

    def test_a_cancelled_call_ends_its_code(self, worker):
        """The sandbox is killed, whatever exceptions the code handles."""
        code = "try:\n    llm_query('x')\nexcept BaseException:\n    pass\nwhile True:\n    pass"
        steps(worker, code, max_step_seconds=60)
        reply = worker.call(
            "execute_program",
            program_id="p",
            inputs={"text": "?"},
            during=lambda id: worker.peer.send({"id": "c", "command": "cancel", "args": {"id": id}}),
        )
        assert reply["code"] == "cancelled"
        assert worker.ask("ping")["status"] == "ok"


def test_the_operator_has_to_allow_it(worker):
    """Otherwise no such program is created or imported, and none runs."""
    worker.create("rlm")
    for _ in range(2):
        worker.create("pipeline", stages=[{"name": "a", "program": "p"}])
    document = worker.ask("export_program", program_id="p")["document"]
    worker = DspyWorker()
    try:
        for program_type in ("rlm", "flex"):
            code, error, _ = worker.refused("create_program", signature=QA, program_type=program_type)
            assert code == "not_allowed"
            assert "--allow-code-execution" in error
        stages = [{"name": "a", "signature": QA, "program_type": "rlm"}]
        refused = worker.refused("create_program", signature=QA, program_type="pipeline", stages=stages)
        assert refused[0] == "not_allowed"
        assert worker.refused("import_program", document=document)[0] == "not_allowed"
    finally:
        worker.peer.finish()


def test_the_flag_names_a_sandbox():
    command = [sys.executable, "-m", "bridge", "worker", "--allow-code-execution", "docker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "monty" in done.stderr


def test_code_needs_names_that_it_can_call(worker):
    """A tool whose name is not that of a function is refused."""
    worker.ask("register_tools", tools=[{"name": "my tool", "args": {}}])
    assert worker.refused("create_program", **RLM)[2] == "args.tools"
    worker.ask("create_program", **RLM, tools=[])


SOURCE = """
import dspy


class Twice(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question: str -> draft: str")
        self.second = dspy.ChainOfThought(dspy.Signature("draft: str -> answer: str", "Improve it."))

    def forward(self, question):
        draft = self.first(question=question).draft
        return dspy.Prediction(answer=self.second(draft=draft.upper()).answer + "!")
"""


class TestFlex:
    def test_is_a_predictor_without_a_source(self, worker):
        worker.script({"answer": "a"})
        worker.create("flex")
        assert worker.run() == {"answer": "a"}

    def test_runs_its_source_in_the_sandbox(self, worker):
        worker.script({"draft": "d"}, {"reasoning": "r", "answer": "a"})
        worker.create("flex", source=SOURCE)
        assert worker.run() == {"answer": "a!"}
        assert len(worker.named("status")) == 2

    def test_signatures_of_its_source_import_nothing(self, worker):
        """DSPy would import a module whose name it finds as a type."""
        source = SOURCE.replace("draft: str", "draft: this")
        worker.script({"draft": "d"})
        worker.create("flex", source=source)
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert code == "handler_error"
        assert "unknown type: 'this'" in error

    def test_calls_the_hosts_tools(self, worker):
        worker.ask("register_tools", tools=[{"name": "find", "args": {"q": {"type": "string"}}}])
        worker.answers["call_tool"] = "found"
        body = "return dspy.Prediction(answer=find(q=question))"
        worker.script()
        worker.create("flex", source=f"class F(dspy.Module):\n    def forward(self, question):\n        {body}")
        assert worker.run() == {"answer": "found"}

    @pytest.mark.parametrize("source", ["x = 1", "class A(:", "\0", "(" * 10_000])
    def test_a_source_without_a_module_is_refused(self, worker, source):
        refused = worker.refused("create_program", signature=QA, program_type="flex", source=source)
        assert (refused[0], refused[2]) == ("invalid_args", "args.source")

    def test_limits_the_calls_of_the_model(self, worker):
        worker.script({"draft": "d"})
        worker.create("flex", source=SOURCE, max_llm_calls=1)
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert (code, "budget" in error) == ("handler_error", True)

    def test_an_error_of_the_model_is_one(self, worker):
        worker.script("no field")
        worker.create("flex", source=SOURCE)
        code, error, _ = worker.refused("execute_program", program_id="p", inputs={"question": "?"})
        assert (code, "has no field draft" in error) == ("lm_error", True)

    def test_its_source_may_handle_an_error_of_the_model(self, worker):
        worker.script("no field", {"reasoning": "r", "answer": "a"})
        draft = "draft = self.first(question=question).draft"
        handled = f"try:\n            {draft}\n        except Exception:\n            draft = ''"
        worker.create("flex", source=SOURCE.replace(draft, handled))
        assert worker.run() == {"answer": "a!"}
