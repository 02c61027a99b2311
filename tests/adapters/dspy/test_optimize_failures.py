"""What ends an optimization: a metric that fails, a model that fails, a cancel, a deadline."""

from __future__ import annotations

import importlib.util
import logging
import math
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge import Client, errors
from learner import ROWS, SIGNATURE, Learner
from model_server import KEY, ModelServer, OpenAI

OPTIMIZERS = ["bootstrap_few_shot", "bootstrap_random_search", "copro", "simba", "infer_rules", "gepa", "mipro_v2"]


class Score:
    """A metric of the host. After `good` calls it returns `result`, or calls it."""

    def __init__(self):
        self.reset(0, 1.0)

    def reset(self, good, result):
        self.good, self.result, self.calls = good, result, 0
        self.hangs, self.go_on = threading.Event(), threading.Event()

    def __call__(self, inputs, expected, outputs):
        self.calls += 1
        if self.calls <= self.good:
            return float(self.calls % 2)
        return self.result() if callable(self.result) else self.result

    def hang(self):
        self.hangs.set()
        self.go_on.wait(60)
        return 1.0


@pytest.fixture(scope="module")
def score():
    return Score()


@pytest.fixture(scope="module")
def client(score):
    with Client.start() as client:
        client.register(metrics={"score": score})
        yield client


@pytest.fixture(scope="module")
def learner(client):
    with Learner() as learner:
        client.call("configure_lm", learner.settings())
        client.call("create_program", {"id": "qa", "signature": SIGNATURE})
        yield learner


def args(optimizer, **more):
    return {"program_id": "qa", "optimizer": optimizer, "trainset": ROWS, "metric": {"host": "score"}, **more}


def fail():
    raise RuntimeError("no dictionary")


@pytest.mark.parametrize(
    ("result", "message"),
    [(fail, "no dictionary"), ("good", "'good'"), (math.nan, "nan"), (2, "from 0 to 1"), (None, "None")],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_metric_that_fails_ends_the_optimization(client, learner, score, optimizer, result, message):
    """DSPy would go on with a score of 0. It fails after the scores of the program as it is."""
    score.reset(len(ROWS) + 1, result)
    with pytest.raises(errors.HandlerError, match=message):
        client.call("optimize", args(optimizer, options={"threads": 1}), timeout=60)
    assert score.calls == len(ROWS) + 2
    assert client.call("list_programs")["total_count"] == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_metric_that_hangs_is_ended_by_the_deadline(client, learner, score, optimizer):
    score.reset(len(ROWS) + 1, score.hang)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("optimize", args(optimizer, options={"threads": 1}), timeout=2)
    score.go_on.set()
    assert client.call("execute_program", {"program_id": "qa", "inputs": ROWS[0]["inputs"]})["outputs"]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_cancel_ends_it_between_two_calls_of_the_model(client, learner, score, threads):
    score.reset(len(ROWS), score.hang)
    before = _threads(client)
    call = client.submit("optimize", args("bootstrap_random_search", options={"threads": threads}))
    assert score.hangs.wait(60)
    asked = len(learner.requests)
    assert call.cancel()
    score.go_on.set()
    client.call("execute_program", {"program_id": "qa", "inputs": ROWS[0]["inputs"]})
    assert len(learner.requests) <= asked + threads
    assert client.call("list_programs")["total_count"] == 1
    end = time.monotonic() + 30
    while _threads(client) > before + 1:  # that of the call
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_model_that_refuses_the_key_ends_it_after_the_first_rows(client):
    with ModelServer(lambda body: (401, {}, {"error": {"message": "wrong key"}})) as server:
        session = "refused"
        settings = {"model": OpenAI.model, "api_base": f"{server.url}/v1", "api_key": KEY}
        client.call("configure_lm", settings, session_id=session)
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, session_id=session)
        with pytest.raises(errors.LMError, match="wrong key"):
            client.call("optimize", args("copro", metric="exact_match"), session_id=session, timeout=60)
        assert len(server.requests) <= len(ROWS)


def test_a_result_that_fails_for_all_rows_is_an_error(client):
    """The model refuses the key once the program as it is has been scored: nothing is stored."""
    with Learner() as learner:
        answer, session = learner.respond, "refused later"

        def respond(body):
            is_late = len(learner.requests) > len(ROWS)
            return (401, {}, {"error": {"message": "wrong key"}}) if is_late else answer(body)

        learner.respond = respond
        client.call("configure_lm", learner.settings(), session_id=session)
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, session_id=session)
        with pytest.raises(errors.LMError, match="wrong key"):
            client.call("optimize", args("bootstrap_few_shot", metric="exact_match"), session_id=session, timeout=60)
        assert client.call("list_programs", session_id=session)["total_count"] == 1


def _threads(client):
    return len(list(Path(f"/proc/{client.pid}/task").iterdir()))


def test_an_id_that_was_taken_meanwhile_is_not_overwritten(client, learner, score):
    """Other calls of the session need not wait for the optimizer."""
    score.reset(1, score.hang)
    call = client.submit("optimize", args("labeled_few_shot", save_as="better"))
    assert score.hangs.wait(60)
    client.call("create_program", {"id": "better", "signature": SIGNATURE})
    score.go_on.set()
    program_id = call.result(60)["program_id"]
    assert program_id != "better"
    for name in (program_id, "better"):
        client.call("delete_program", {"program_id": name})


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "ensemble", "better_together", "knn_few_shot"])
def test_nothing_is_printed_and_no_thread_is_left(ask, capfd, optimizer):
    """DSPy's optimizers print, and draw bars for which tqdm starts a thread. This runs in the process of the test."""
    ask("configure_lm", provider="offline")
    ask("create_program", id="qa", signature=SIGNATURE)
    before = {thread.name for thread in threading.enumerate()}
    ask("optimize", **args(optimizer, metric="exact_match"))
    assert capfd.readouterr().out == ""
    assert {name for name in {each.name for each in threading.enumerate()} - before if "bridge" not in name} == set()


@pytest.mark.parametrize("optimizer", ["mipro_v2", "better_together"])
def test_logs_have_no_warnings_about_inputs_of_the_optimizer_itself(client, learner, caplog, ask, optimizer):
    """Nor colours of a terminal."""
    caplog.set_level("INFO", "dspy")
    ask("configure_lm", **learner.settings())
    ask("create_program", id="qa", signature=SIGNATURE)
    with _propagating("dspy"):
        ask("optimize", **args(optimizer, metric="exact_match"))
    assert [each.getMessage() for each in caplog.records if each.levelname != "INFO"] == []
    assert caplog.records
    assert not any("\x1b" in each.getMessage() for each in caplog.records)


def test_rows_that_fail_are_not_logged(caplog, ask):
    """The program as it is answers one question only, so that a row fails while demos are made."""
    with Learner() as learner:
        answer = learner.respond
        learner.respond = lambda body: answer(body) if "Tate" in str(body) else (400, {}, {"error": {"message": "no"}})
        ask("configure_lm", **learner.settings())
        ask("create_program", id="qa", signature=SIGNATURE)
        with _propagating("dspy"):
            ask("optimize", **args("bootstrap_few_shot", metric="exact_match"))
    assert not any("Louvre" in each.getMessage() for each in caplog.records)


@contextmanager
def _propagating(name):
    """Let the records of a logger reach the handlers of the root logger."""
    logger = logging.getLogger(name)
    before, logger.propagate = logger.propagate, True
    try:
        yield
    finally:
        logger.propagate = before


def test_a_library_that_is_missing_is_named(ask, call, monkeypatch):
    ask("create_program", id="qa", signature=SIGNATURE)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else find_spec(name))
    reply = call("optimize", **args("mipro_v2", metric="exact_match"))
    assert reply["code"] == "not_allowed"
    assert reply["error"].endswith("needs optuna, which is not installed: pip install 'dspex-bridge[optimize]'")
    assert reply["details"] == {"optimizer": "mipro_v2", "missing": "optuna"}
