"""A pool on a Ray cluster of two node processes. They take seconds to start, so the tests share one."""

from __future__ import annotations

import collections
import os
import pickle
import re
import signal
import subprocess
import sys
import threading

import numpy
import pytest

import bridge
from bridge import errors
from client_uses import SUPPORT_PATH
from data_sets import Model, numbered, results, start_map, write_program, write_rows
from peer import is_running, wait_until

pytestmark = pytest.mark.timeout(300)  # the first test waits for the cluster

SECRET = "sk-not-to-be-shown-4711"
OPTIONS = {"adapter": "node_workers:adapter", "env": {**SUPPORT_PATH, "A_KEY": SECRET}, "timeout": 60.0}
JOIN = 60.0  # seconds for an actor to start, on a machine with little time


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The path of a store that the workers of all nodes share."""
    return tmp_path_factory.mktemp("store") / "sessions.db"


@pytest.fixture(scope="module")
def pool(cluster, store):
    """A pool on both nodes, with one worker on each."""
    flags = ["--store", f"sqlite:{store}"]
    with bridge.RayPool(1, address=cluster.address, flags=flags, **OPTIONS) as pool:
        yield pool


def ready(pool, count=2):
    """Wait until so many nodes take calls, and return their slots by node."""
    wait_until(lambda: len(pool._slots.ready) == count, JOIN)
    return {slot["node"]: slot for slot in pool.status()["slots"] if slot["state"] == "ready"}


def sessions_by_node(pool, names):
    """Begin sessions, and return the names by the id of their node."""
    nodes = collections.defaultdict(list)
    for name in names:
        pool.call("create_session", {}, session_id=name)
        nodes[pool.session_info(name)["node"]].append(name)
    return nodes


def test_calls_futures_and_casts(pool):
    """They have the results and the errors of a pool's."""
    assert pool.call("ping")["status"] == "ok"
    assert [future.result(30) for future in [pool.submit("length", {"text": "x" * n}) for n in range(50)]] == [
        *range(50)
    ]
    assert len({pool.call("pid") for _ in range(64)}) == 2
    pool.cast("work_once", {"seconds": 0})
    with pytest.raises(errors.UnknownCommand):
        pool.call("nonsense")
    with pytest.raises(errors.NotEncodable):
        pool.call("length", {"text": object()})
    with pytest.raises(errors.LMError, match="busy") as caught:
        pool.call("fail", {"text": "busy"})
    assert (caught.value.category, caught.value.recovery) == ("python", "backoff_retry")
    assert caught.value.details == {"status": 429, "retry_after": 2.5}


@pytest.mark.parametrize("size", [0, 90_000, 3_000_000])
def test_args_and_results_of_any_size(pool, size):
    """Arrays keep their type; args above 100 KB take several calls of Ray."""
    assert pool.call("length", {"text": "x" * size}) == size
    tensor = numpy.arange(size // 8, dtype="int64")
    found = pool.call("echo_array", {"array": tensor})
    assert found.dtype == tensor.dtype
    assert (found == tensor).all()


def test_a_request_that_cannot_be_read_fails_alone(pool):
    """The connection to the node goes on."""
    other = pool.submit("work_once", {"seconds": 0.5})
    with pytest.raises(errors.FrameTooLarge, match="values"):
        pool.call("work", {"seconds": 0, "marker": [0] * 1_100_000})
    with pytest.raises(errors.FrameTooLarge):
        pool.call("length", {"text": "x" * (65 << 20)})
    with pytest.raises(errors.InvalidRequest, match="not a request"):
        pool.call("length", {"text": "x"}, session_id=5)
    with pytest.raises(errors.InvalidArgs, match="id"):
        pool.call("pause", [1])
    assert pool.call("cancel", {"id": 1}) == {"id": 1, "cancelled": False}
    assert other.result(30)


def test_events_arrive_in_order_and_wait_for_their_reader(pool):
    """Of a stream, and of a future; a stream that is left early ends its call."""
    stream = pool.stream("count", {"count": 5000})
    assert [data for _, data in stream] == list(range(5000))
    assert stream.result() == 5000
    seen = []
    assert pool.submit("count", {"count": 10}, on_event=lambda _, data: seen.append(data)).result(30) == 10
    assert seen == list(range(10))
    for _, data in pool.stream("count", {"count": 1_000_000}):
        if data == 3:
            break
    wait_until(lambda: pool.status()["in_flight"] == 0)
    wait_until(lambda: all(slot["in_flight"] == 0 for node in pool.status()["slots"] for slot in node["workers"]), 30)


def test_a_cancelled_call_ends_in_its_worker(pool):
    """At once for the caller, and soon there, also if it has not been started."""
    call = pool.submit("wait", {})
    assert call.cancel()
    with pytest.raises(errors.Cancelled):
        call.result()
    wait_until(lambda: all(slot["in_flight"] == 0 for node in pool.status()["slots"] for slot in node["workers"]), 30)


def test_a_call_ends_at_its_deadline(pool):
    with pytest.raises(errors.DeadlineExceeded):
        pool.call("work_once", {"seconds": 5}, timeout=0.2)
    with pytest.raises(errors.DeadlineExceeded):
        pool.submit("work_once", {"seconds": 5}, timeout=0.2).result()


def test_calls_of_a_session_are_made_in_their_order_on_one_node(pool):
    """Also if nobody waits for the replies in between."""
    for name in ("ann", "bob"):
        calls = [pool.submit("add_name", {"name": str(n)}, session_id=name) for n in range(100)]
        assert calls[-1].result(30) == [str(n) for n in range(100)]
        assert len({pool.call("names", session_id=name)[0] for _ in range(5)}) == 1
        assert pool.end_session(name)["status"] == "cleaned"
        with pytest.raises(errors.SessionNotFound):
            pool.session_info(name)


def test_functions_run_in_the_process_of_the_pool(pool):
    """Tools, metrics, and models that stream their reply, whose errors keep their code."""
    pids = []

    def add(a: int, b: int) -> int:
        pids.append(os.getpid())
        return a + b

    def model(messages):
        yield "a"
        yield "b"
        yield {"usage": {"output_tokens": 2}}

    def endless(messages):
        try:
            while True:
                yield "a"
        finally:
            ended.set()

    def refuse(outputs):
        raise errors.LMError("no", retry_after=1.5)

    ended = threading.Event()
    pool.register_tools([add])
    pool.register(models={"mine": model, "endless": endless}, rewards={"no": refuse})
    assert pool.call("ask_host", {"kind": "tool", "name": "add", "args": {"a": 1, "b": 2}}) == 3
    assert pids == [os.getpid()]
    stream = pool.stream("ask_host", {"kind": "model", "name": "mine", "args": {"messages": [], "stream": True}})
    assert [data for _, data in stream] == ["a", "b"]
    assert stream.result() == {"text": "ab", "usage": {"output_tokens": 2}}
    for _ in pool.stream("ask_host", {"kind": "model", "name": "endless", "args": {"messages": [], "stream": True}}):
        break
    assert ended.wait(30), "nobody needs the reply anymore"
    with pytest.raises(errors.LMError) as caught:
        pool.call("ask_host", {"kind": "reward", "name": "no", "args": {"outputs": {}}})
    assert caught.value.details["retry_after"] == 1.5
    with pytest.raises(errors.UnknownCommand):
        pool.call("ask_host", {"kind": "tool", "name": "unknown"})


def test_the_reports_are_about_all_nodes(pool):
    status = pool.status()
    assert (status["nodes"], status["workers"]) == ({"ready": 2}, {"ready": 2})
    assert len({slot["node"] for slot in status["slots"]}) == 2
    health = pool.health_check(10.0)
    assert health["status"] == "healthy"
    assert [len(node["workers"]) for node in health["slots"]] == [1, 1]
    before = pool.stats()
    pool.call("work", {"seconds": 0})
    after = pool.stats()
    assert after["commands"]["work"]["calls"] == before["commands"].get("work", {"calls": 0})["calls"] + 1
    assert len(after["workers"]) == 2


def test_a_fork_and_a_pickle_are_refused(pool):
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(pool)
    pid = os.fork()
    if not pid:
        try:
            pool.call("ping")
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.call("ping")["status"] == "ok"


def test_an_actor_that_is_killed_is_started_again(pool):
    """With what all nodes share. Durable sessions go on, others are lost, with one error each."""
    pool.call("update_session_data", {"key": "shared", "value": 1})
    nodes = sessions_by_node(pool, [f"session {n}" for n in range(20)])
    node, slot = next(iter(ready(pool).items()))
    lost, kept = nodes[node][:2]
    pool.call("create_session", {"durable": True}, session_id=f"durable {kept}")
    other = next(each for each in nodes if each != node)
    os.kill(slot["pid"], signal.SIGKILL)
    wait_until(lambda: not is_running(slot["pid"]))
    wait_until(lambda: node in ready(pool) and ready(pool)[node]["pid"] != slot["pid"], JOIN)
    assert [each.ask("get_session_data", {}, 30)["data"]["shared"] for each in pool._slots.ready] == [1, 1]
    with pytest.raises(errors.SessionLost):
        pool.call("get_session_data", session_id=lost)
    assert pool.call("get_session_data", session_id=lost)["data"] == {}
    assert pool.session_info(nodes[other][0])["live"]


def test_a_node_that_hangs_is_noticed(pool):
    """The deadlines of its calls hold; the others are answered once it has been ended."""
    slot = next(iter(ready(pool).values()))
    os.kill(slot["pid"], signal.SIGSTOP)
    calls = [pool.submit("work_once", {"seconds": 0}, timeout=1.0) for _ in range(20)]
    outcomes = collections.Counter(type(call.exception(30)).__name__ for call in calls)
    assert set(outcomes) == {"DeadlineExceeded", "NoneType"}
    idempotent = [pool.submit("work", {"seconds": 0}) for _ in range(20)]
    assert len({call.result(90) for call in idempotent}) == 1
    os.kill(slot["pid"], signal.SIGKILL)  # Ray does that, too, but after a while
    ready(pool)


def test_a_node_is_killed_under_load_and_another_one_joins(pool, cluster, tmp_path):
    """Each call has one answer, only idempotent ones are made twice, and durable sessions go on."""
    names = [f"durable {n}" for n in range(10)]
    for name in names:
        pool.call("create_session", {"durable": True}, session_id=name)
        pool.call("update_session_data", {"key": "name", "value": name}, session_id=name)
    answers, done = collections.Counter(), threading.Event()
    runs = tmp_path / "runs"
    runs.touch()

    def load(command):
        number = 0
        while not done.is_set():
            number += 1
            line = f"{command} {threading.get_ident()} {number}"
            try:
                pool.call(command, {"path": str(runs), "line": line}, timeout=60)
                answers[command, "ok"] += 1
            except errors.WorkerCrashed:
                answers[command, "crashed"] += 1

    threads = [threading.Thread(target=load, args=(f"note{kind}",)) for kind in ("", "_once") for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(answers.values()) > 100, JOIN)
    gone = cluster.worker_nodes.copy().pop()
    cluster.remove_node(gone, allow_graceful=False)
    wait_until(lambda: len(pool._slots.all) == 1, JOIN)
    count = sum(answers.values())
    wait_until(lambda: sum(answers.values()) > count + 100, JOIN)
    cluster.add_node()
    ready(pool)
    done.set()
    for thread in threads:
        thread.join(JOIN)
    lines = collections.Counter(runs.read_text().splitlines())
    assert not [line for line, times in lines.items() if times > 1 and line.startswith("note_once")]
    assert answers["note", "crashed"] == 0
    assert sum(answers[command, "ok"] for command in ("note", "note_once")) <= len(lines)
    assert [pool.call("get_session_data", session_id=name)["data"]["name"] for name in names] == names


def test_no_secret_is_in_the_logs_of_ray(pool, cluster):
    """Neither args nor variables of the environment nor what a failing call carries."""
    with pytest.raises(errors.BridgeError):
        pool.call("nonsense", {"api_key": SECRET})
    pool.call("length", {"text": SECRET})
    folder = cluster.head_node.get_logs_dir_path()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, errors="replace") as file:
                assert SECRET not in file.read(), name


def test_a_pool_ends_with_its_stop(cluster, caplog):
    """Its actors, templates and workers do. The logs of this one's workers are records in this process."""
    caplog.set_level("DEBUG", "bridge.worker")
    options = {**OPTIONS, "logs": "logging", "flags": ["--log-level", "DEBUG"]}
    with bridge.RayPool(1, address=cluster.address, **options) as pool:
        pool.call("create_session", session_id="ann")
        wait_until(lambda: any(getattr(record, "session_id", None) == "ann" for record in caplog.records))
        pids = [slot["pid"] for slot in pool.status()["slots"]]
        pids += [worker["pid"] for slot in pool.status()["slots"] for worker in slot["workers"]]
        assert len(pids) == 4
        assert pool.drain(5.0)
    wait_until(lambda: not any(map(is_running, pids)), JOIN)
    with pytest.raises(errors.WorkerCrashed):
        pool.call("ping")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"address": "ray://localhost:1"}, "Ray Client"),
        ({"address": "127.0.0.1:1"}, "connected to the Ray cluster"),
        ({"workers": 0}, "at least 1"),
        ({"affinity": "loose"}, "affinity"),
        ({"format": "yaml"}, "format"),
        ({"env": {"A_KEY": 1}}, "string"),
        ({"flags": "--threads"}, "strings"),
        ({"max_rss": "1G"}, "max_rss"),
        ({"adapter": 3}, "adapter"),
    ],
)
def test_wrong_options_are_refused(pool, options, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        bridge.RayPool(**{"adapter": "echo", **options})


def test_the_example_of_the_documents(cluster, repository):
    """In a process of its own, which Ray tells nothing about itself and which writes nothing else."""
    [example] = re.findall(r"^```py\n(.*?)^```", (repository / "docs" / "pool.md").read_text(), re.M | re.S)
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4950\nTrue\n", "")


def test_each_row_of_a_data_set_has_one_result_though_a_node_is_killed(cluster, tmp_path):
    """With `dspex-bridge map`. Rows that were open on the killed one are asked again."""
    rows, out = write_rows(tmp_path / "rows.jsonl", numbered(600)), tmp_path / "out.jsonl"
    many, may_go_on = threading.Event(), threading.Event()
    asked = []

    def answer(number):
        asked.append(number)
        if len(asked) >= 200:  # the nodes are full
            many.set()
            may_go_on.wait(60)

    victim = cluster.add_node()
    with Model(answer) as model:
        program = write_program(tmp_path / "program.json", models=[model.settings()])
        arguments = (program, rows, "--out", out, "--ordered", "--ray", cluster.address)
        with start_map(*arguments, "--concurrency", "30") as process:
            assert many.wait(120), process.communicate()
            cluster.remove_node(victim, allow_graceful=False)
            may_go_on.set()
            output, error = process.communicate(timeout=120)
    assert (process.returncode, output, error.splitlines()[-1]) == (0, "", "map: 600 rows, 0 failed")
    assert list(results(out).items()) == [(n, {"outputs": {"answer": f"answer {n}"}}) for n in range(600)]
    assert 600 < sum(model.asked.values()) <= 630


def test_the_calls_of_a_process_that_dies_are_cancelled(cluster, tmp_path):
    """Its actors and workers end."""
    program = """
from bridge import RayPool
pool = RayPool(1, adapter="echo")
pool.submit("sleep", {"seconds": 600})
print(*[slot["pid"] for node in pool.status()["slots"] for slot in [node, *node["workers"]]], flush=True)
input()
"""
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 4
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_running, pids)), JOIN)


def test_a_process_that_has_shut_ray_down_is_not_connected_again(cluster):
    """Ray itself would connect it to some cluster, or start one."""
    program = """
import ray
from ray.exceptions import RayError
from bridge.ray import cluster
cluster.connect(None, 60)
print(len(cluster.nodes() or ()) > 0)
ray.shutdown()
try: cluster.call(None)
except RayError as error: print(error)
print(cluster.nodes(), ray.is_initialized())
"""
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout == "True\nSystem error: this process has ended its connection to the cluster\n[] False\n", (
        done.stderr
    )
