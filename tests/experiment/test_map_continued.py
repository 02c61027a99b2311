"""The command map: runs that end early, and are continued."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import threading
import time

import pytest

from data_sets import Model, command, numbered, results, run_map, start_map, write_program, write_rows


@pytest.fixture
def model():
    with Model() as model:
        yield model


@pytest.fixture
def job(tmp_path, model):
    """Return the arguments of a run on 60 rows."""
    program = write_program(tmp_path / "program.json", models=[model.settings()])
    rows = write_rows(tmp_path / "rows.jsonl", numbered(60))
    return program, rows, "--out", tmp_path / "out.jsonl", "--concurrency", "4"


def wait_for_lines(path, count):
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def expected(count):
    return {number: {"outputs": {"answer": f"answer {number}"}} for number in range(count)}


def test_a_killed_run_is_continued(job, model, tmp_path):
    """kill -9 while rows are open. Rows that have a result are not asked again; an incomplete line is removed."""
    out, go_on = tmp_path / "out.jsonl", threading.Event()
    model.refuse = lambda number: go_on.wait(60) and None if number >= 20 else None
    with start_map(*job) as process:
        wait_for_lines(out, 20)
        process.kill()
    go_on.set()
    before = set(results(out))
    assert before == set(range(20))
    with out.open("a") as file:
        file.write('{"row":20,"outputs":{"ans')
    done = run_map(*job)
    assert (done.returncode, done.stderr) == (0, "map: 60 rows, 0 failed\n")
    assert results(out) == expected(60)
    assert all(model.asked[number] == 1 for number in before)
    assert sum(model.asked.values()) <= 64  # 4 were open


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_when_open_rows_have_their_results(job, model, tmp_path, number):
    out, go_on, stuck = tmp_path / "out.jsonl", threading.Event(), threading.Semaphore(0)

    def wait(number):
        if number >= 20:
            stuck.release()
            go_on.wait(60)

    model.refuse = wait
    with start_map(*job) as process:
        wait_for_lines(out, 20)
        for _ in range(4):
            assert stuck.acquire(timeout=60)
        os.killpg(process.pid, number)
        time.sleep(0.1)
        go_on.set()
        output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + number, "")
    name = signal.Signals(number).name
    assert error == (
        f"map: stopped by {name}\nmap: 24 of 60 rows have a result in {out}; the same command goes on with the others\n"
    )
    assert results(out) == expected(24)
    assert run_map(*job).returncode == 0
    assert results(out) == expected(60)
    assert set(model.asked.values()) == {1}


def test_a_second_signal_ends_the_run_at_once(job, model, tmp_path):
    go_on = threading.Event()
    model.refuse = lambda number: go_on.wait(60) and None if number >= 20 else None
    with start_map(*job, "--grace", "1000") as process:
        wait_for_lines(tmp_path / "out.jsonl", 20)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    go_on.set()
    assert results(tmp_path / "out.jsonl") == expected(20)


def test_a_run_that_is_done_asks_nothing(job, model, tmp_path):
    """Rows that were added to the file are asked; the order can be put right later."""
    program, rows, *others = job
    assert run_map(*job).returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert run_map(*job).stderr == "map: 60 rows, 0 failed\n"
    assert (tmp_path / "out.jsonl").read_bytes() == before
    write_rows(rows, numbered(70))
    assert run_map(program, rows, *others, "--ordered").stderr == "map: 70 rows, 0 failed\n"
    assert list(results(tmp_path / "out.jsonl").items()) == list(expected(70).items())
    assert set(model.asked.values()) == {1}


def test_results_of_something_else_are_not_touched(job, model, tmp_path):
    program, rows, _, out, *_ = job
    assert run_map(*job).returncode == 0
    before = out.read_bytes()

    def refused(message, **changes):
        done = run_map(*job, **changes)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert out.read_bytes() == before

    write_rows(rows, numbered(60, start=1))
    refused("does not have results of these rows")
    write_rows(rows, numbered(59))
    refused("does not have results of these rows")
    write_rows(rows, numbered(60))
    write_program(program, models=[model.settings(model="openai/other")])
    refused("does not have results of this program and these models")
    write_program(program, models=[model.settings(api_key="sk-other", timeout=20)])
    assert run_map(*job).returncode == 0
    whole = before
    for good, bad in (
        (b'{"row":59,', b'{"row":-1,'),
        (b'{"row":59,', b'{"\xff":1,"row":59,'),
        (b'{"row":59,', b'{"row":59,"other":"\xff",'),
        (b'{"row":59,', b'{"row":59,"other":' + b"[" * 100_000),
    ):
        before = whole.replace(good, bad)
        out.write_bytes(before)
        refused("this is not the result of one more row")
    out_job = tmp_path / "out.jsonl.job"
    for bad_job in (b"", b'{"command":"\xff"}', b"[" * 100_000):
        out_job.write_bytes(bad_job)
        refused("out.jsonl.job does not say what")
    out_job.unlink()
    refused("there is no out.jsonl.job")


def test_what_is_said_about_earlier_results_is_forgotten_with_them(job, tmp_path):
    """Results of rows from a pipe are not taken for those of the rows before."""
    program, _, *others = job
    out, rows = tmp_path / "out.jsonl", "".join(json.dumps(row) + "\n" for row in numbered(5, start=100))
    assert run_map(*job).returncode == 0
    out.unlink()
    assert run_map(program, "-", *others, input=rows).returncode == 0
    done = run_map(*job)
    assert (done.returncode, len(results(out))) == (2, 5)
    assert "there is no out.jsonl.job" in done.stderr


def test_a_file_of_the_user_is_not_replaced(job, tmp_path):
    program, rows, *_ = job
    mine = tmp_path / "rows.job"
    rows.rename(mine)
    before = mine.read_bytes()
    done = run_map(program, mine, "--out", tmp_path / "rows")
    assert (done.returncode, done.stdout) == (2, "")
    assert "rows.job does not say what" in done.stderr
    assert mine.read_bytes() == before


def test_rows_that_are_gone_when_they_are_read_again_are_an_error(job, model, tmp_path):
    program, rows, *others = job
    rows.write_text("".join(json.dumps({**row, "passage": "x" * 50_000}) + "\n" for row in numbered(60)))
    model.refuse = lambda number: number == 0 and rows.write_text("")  # the answer is the usual one
    done = run_map(program, rows, *others)
    assert (done.returncode, done.stdout) == (2, "")
    assert "of 60 rows were left when they were read again" in done.stderr
    assert 0 < len(results(tmp_path / "out.jsonl")) < 60


def test_rows_that_are_added_meanwhile_are_of_the_next_run(job, model, tmp_path):
    rows = job[1]
    model.refuse = lambda number: number == 0 and write_rows(rows, numbered(70)) and None
    assert run_map(*job).stderr == "map: 60 rows, 0 failed\n"
    assert run_map(*job).stderr == "map: 70 rows, 0 failed\n"
    assert results(tmp_path / "out.jsonl") == expected(70)


def test_rows_that_failed_are_asked_again_if_the_user_wants_it(job, model, tmp_path):
    out = tmp_path / "out.jsonl"
    model.refuse = lambda number: (400, {}, {"error": {"message": "too long"}}) if number % 10 == 3 else None
    done = run_map(*job)
    assert (done.returncode, done.stderr) == (3, "map: 60 rows, 6 failed\n")
    assert "too long" in results(out)[13]["error"]["message"]
    model.refuse = lambda number: None
    assert run_map(*job).returncode == 3
    assert set(model.asked.values()) == {1}
    done = run_map(*job, "--retry-errors", "--ordered")
    assert (done.returncode, done.stderr) == (0, "map: 60 rows, 0 failed\n")
    assert list(results(out).items()) == list(expected(60).items())
    assert sum(model.asked.values()) == 66


def test_a_wrong_key_ends_the_run_without_results(job, model, tmp_path):
    model.refuse = lambda number: (401, {}, {"error": {"message": "wrong key"}})
    done = run_map(*job)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("map: lm_error: ")
    assert "wrong key" in first
    assert second.startswith("map: 0 of 60 rows have a result")
    assert sum(model.asked.values()) <= 4
    model.refuse = lambda number: None
    assert run_map(*job).returncode == 0
    assert results(tmp_path / "out.jsonl") == expected(60)


def test_a_missing_key_ends_the_run_without_results(job, model, tmp_path):
    program, *others = job
    write_program(program, models=[{"model": "openai/x"}])
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = run_map(program, *others, env=environment)
    assert done.returncode == 1
    assert "no API key found" in done.stderr
    assert results(tmp_path / "out.jsonl") == {}


def test_a_closed_terminal_is_like_ctrl_c(job, model, tmp_path):
    """Nothing can be shown any more then."""
    model.refuse = lambda number: go_on.wait(60) and None if number >= 20 else None
    go_on = threading.Event()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command(*job))
    wait_for_lines(tmp_path / "out.jsonl", 20)
    os.close(terminal)
    time.sleep(0.2)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert results(tmp_path / "out.jsonl") == expected(24)


def test_an_outage_of_the_provider_fails_no_row(job, model, tmp_path):
    """Rate limits and failures of the server; one more would open the circuit of the pool for a minute."""
    left = iter([(429, {"Retry-After": "1"}, {"error": {"message": "slow down"}})] * 2 + [(503, {}, b"")] * 2)
    model.refuse = lambda number: next(left, None) if number >= 30 else None
    done = run_map(*job)
    assert (done.returncode, done.stderr) == (0, "map: 60 rows, 0 failed\n")
    assert results(tmp_path / "out.jsonl") == expected(60)
    assert sum(model.asked.values()) == 64


def test_two_runs_do_not_write_the_same_file(job, model, tmp_path):
    go_on = threading.Event()
    model.refuse = lambda number: go_on.wait(60) and None if number >= 20 else None
    with start_map(*job) as process:
        wait_for_lines(tmp_path / "out.jsonl", 20)
        done = run_map(*job)
        assert (done.returncode, done.stderr) == (2, f"map: {tmp_path}/out.jsonl: another process is writing it\n")
        go_on.set()
        assert process.wait(60) == 0
    assert results(tmp_path / "out.jsonl") == expected(60)


def test_what_a_job_is_of_is_written_without_keys(job, tmp_path):
    assert run_map(*job).returncode == 0
    assert json.loads((tmp_path / "out.jsonl.job").read_text()).keys() == {
        "command",
        "program",
        "metric",
        "rows",
        "digest",
    }
