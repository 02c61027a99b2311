"""ETF against the real thing: a BEAM's random terms through Python, and Python's through a BEAM."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.wire import _etf

SUPPORT = Path(__file__).parent.parent / "support"
TERMS = 60_000  # each way

elixir = shutil.which("elixir")
pytestmark = pytest.mark.skipif(elixir is None, reason="Elixir is not installed")

PING = """
[python] = System.argv()
port = Port.open({:spawn_executable, python}, [:binary, :exit_status, :nouse_stdio, {:packet, 4},
  {:args, ["-P", "-m", "bridge", "worker", "--adapter", "echo", "--fds", "3,4"]}])
ask = fn request, options ->
  Port.command(port, :erlang.term_to_binary(request, options))
  receive do {^port, {:data, reply}} -> :erlang.binary_to_term(reply, [:safe]) end
end
%{"id" => 1, "success" => true} = ask.(%{"id" => 1, "command" => "ping"}, [])
%{"id" => "x", "success" => true} = ask.(%{id: "x", command: :ping, args: nil}, [])
here = self()
text = String.duplicate("ü", 999)
args = %{"here" => here, "tuple" => {1, 2.5}, "bytes" => <<255>>, "text" => text}
for options <- [[], [:compressed], [minor_version: 2], [minor_version: 0]] do
  %{"result" => ^args} = ask.(%{"id" => 2, "command" => "echo", "args" => args}, options)
  %{"result" => ^args} = ask.(%{"id" => 3, "command" => "echo_decoded", "args" => args}, options)
end
IO.puts("answered")
"""


def run(*arguments: object) -> list[str]:
    result = subprocess.run([elixir, *map(str, arguments)], capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout.splitlines()


def test_random_terms_there_and_back():
    """Terms of the BEAM, in all its forms, come back `===`, and to the byte those of
    `minor_version: 2`, which are written as Python writes them. Python's terms are decoded with
    `:safe` and come back as the same values and, since their maps are sorted and small, bytes."""
    exact, theirs = run(SUPPORT / "etf_terms.exs", sys.executable, SUPPORT / "etf_peer.py", TERMS, 20)
    assert exact.startswith(f"{TERMS} terms of the BEAM")
    assert theirs == f"{TERMS} terms of Python"


def test_a_worker_answers_terms(tmp_path):
    """Keys may be binaries or atoms; terms without a Python value come back unchanged."""
    script = tmp_path / "ping.exs"
    script.write_text(PING)
    assert run(script, sys.executable) == ["answered"]


def test_terms_as_this_beam_encodes_them(tmp_path):
    """One term of each kind, with the options that change its encoding."""
    script = tmp_path / "write.exs"
    script.write_text(
        "for options <- [[], [minor_version: 0], [minor_version: 2], [:compressed]],"
        "  term <- [1, -1, 256, 2 ** 80, 1.5, :ok, :ü, nil, true, {1}, [1], [300], %{1 => 2},"
        '           <<255>>, String.duplicate("x", 400)],'
        "  do: term |> :erlang.term_to_binary(options) |> Base.encode16() |> IO.puts()"
    )
    expected = [1, -1, 256, 2**80, 1.5, "ok", "ü", None, True, (1,), [1], [300], {1: 2}]
    expected += [b"\xff", "x" * 400]
    assert [_etf.decode(bytes.fromhex(line)) for line in run(script)] == expected * 4
