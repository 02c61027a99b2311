"""A demonstration: start a worker, ask a DSPy program questions over a pipe, and improve another one with an optimizer.

If the environment has no provider's key, the language model is the embedded offline reader, which
finds its answers in the passages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from importlib import resources
from typing import Any

from bridge.errors import BridgeError
from bridge.host.client import Client

# The first provider whose key is in the environment is used.
PROVIDERS = {
    "OPENAI_API_KEY": "openai/gpt-4o-mini",
    "ANTHROPIC_API_KEY": "anthropic/claude-3-5-haiku-latest",
    "GEMINI_API_KEY": "gemini/gemini-2.0-flash",
    "GROQ_API_KEY": "groq/llama-3.1-8b-instant",
    "OPENROUTER_API_KEY": "openrouter/openai/gpt-4o-mini",
}
SIGNATURE = {
    "name": "PassageQuestion",
    "description": "Answer the question from the passage, as briefly as possible.",
    "inputs": [
        {"name": "question", "type": "string", "description": "what is asked"},
        {"name": "passage", "type": "string", "description": "contains the answer"},
    ],
    "outputs": [
        {"name": "answer", "type": "string", "description": "a few words of the passage"},
        {"name": "score", "type": "confidence_score", "description": "confidence, 0 to 1"},
    ],
}
KINDS = ("date", "number", "person", "place", "reason", "thing", "yes or no")
KIND_OF_ANSWER = {
    "name": "KindOfAnswer",
    "description": "Say what kind of answer the question asks for.",
    "inputs": [{"name": "question"}],
    "outputs": [{"name": "kind", "type": f"enum{json.dumps(KINDS)}"}],
}


def main(arguments: argparse.Namespace) -> int:
    """Run the demonstration. Return the exit status: 0, or 1 after a line on stderr."""
    try:
        _run(_language_model(arguments))
    except BridgeError as error:
        print(f"demo: {error.code}: {error}", file=sys.stderr)
        return 1
    return 0


def _language_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the args of configure_lm. The worker takes the provider's key from its environment."""
    model = arguments.model or next((model for key, model in PROVIDERS.items() if os.environ.get(key)), None)
    if model is None and arguments.api_base is None:
        return {"provider": "offline"}
    settings = {"model": model or "openai/default", "temperature": 0.0}
    if arguments.api_base:
        key = os.environ.get("OPENAI_API_KEY", "none")  # a local server may accept any key
        settings.update(api_base=arguments.api_base, api_key=key)
    return settings


def _run(language_model: dict[str, Any]) -> None:
    questions = json.loads(resources.files(__name__).joinpath("questions.json").read_text())
    started = time.perf_counter()
    with Client.start() as client:
        _report(started, f"worker {client.pid} answers on its pipe")
        configured = client.call("configure_lm", language_model, timeout=60)
        _report(started, f"language model: {configured['provider']}, {configured['model']}")
        create = {"id": "qa", "signature": SIGNATURE, "program_type": "predict"}
        client.call("create_program", create, timeout=60)
        _report(started, "program 'qa' created from its signature\n")
        matches = sum(_ask(client, entry) for entry in questions)
        print(f"{matches} of {len(questions)} as expected\n")
        _improve(client, questions)
        _show_statistics(client.stats())


def _report(started: float, text: str) -> None:
    print(f"{(time.perf_counter() - started) * 1000:7.0f} ms  {text}")


def _ask(client: Client, entry: dict[str, str]) -> bool:
    """Ask one question, print the answer, and return whether it is the expected one."""
    inputs = {"question": entry["question"], "passage": entry["passage"]}
    started = time.perf_counter()
    result = client.call("execute_program", {"program_id": "qa", "inputs": inputs}, timeout=120)
    elapsed = (time.perf_counter() - started) * 1000
    outputs = result["outputs"]
    expected = entry["expected"].lower() in str(outputs["answer"]).lower()
    print(f"  Q  {entry['question']}")
    answer = textwrap.shorten(str(outputs["answer"]), 72)
    print(f"  A  {answer}   [{result['model']}, score {outputs['score']:.2f}, {elapsed:.1f} ms]")
    if not expected:
        print(f"     (expected: {entry['expected']})")
    return expected


def _improve(client: Client, questions: list[dict[str, str]]) -> None:
    """Optimize a program on every second question, and evaluate it on the others before and after."""
    examples = [{"inputs": {"question": each["question"]}, "outputs": {"kind": each["kind"]}} for each in questions]
    trainset, devset = examples[::2], examples[1::2]
    client.call("create_program", {"id": "kind", "signature": KIND_OF_ANSWER}, timeout=60)
    print(f"program 'kind' says what kind of answer a question asks for: {', '.join(KINDS)}")
    before = _evaluate(client, "kind", devset, "before")
    optimize = {
        "program_id": "kind",
        "optimizer": "bootstrap_few_shot",
        "trainset": trainset,
        "valset": devset,
        "metric": "exact_match",
        "options": {"max_labeled_demos": len(trainset)},
        "save_as": "kind, optimized",
    }
    started = time.perf_counter()
    optimized = client.call("optimize", optimize, timeout=600)
    demos = sum(len(each["demos"]) for each in optimized["changes"])
    elapsed = time.perf_counter() - started
    print(f"  optimized on the {len(trainset)} others: {demos} demos in the prompt   [{elapsed:.1f} s]")
    after = _evaluate(client, "kind, optimized", devset, "after")
    print(f"gain: {100 * (after - before):+.0f} percentage points\n")


def _evaluate(client: Client, program_id: str, devset: list[dict[str, Any]], when: str) -> float:
    args = {"program_id": program_id, "devset": devset, "metric": "exact_match"}
    score: float = client.call("evaluate", args, timeout=600)["score"]
    print(f"  {when:<6}  {'#' * round(20 * score):<20} {score:4.0%} of {len(devset)} questions right")
    return score


def _show_statistics(stats: dict[str, Any]) -> None:
    print(f"{'command':<18}{'calls':>6}{'errors':>8}{'p50 µs':>11}{'p99 µs':>11}{'max µs':>11}")
    for name, row in stats["commands"].items():
        latency = row["latency_us"]
        times = "".join(f"{latency[key]:11.0f}" for key in ("p50", "p99", "max"))
        print(f"{name:<18}{row['calls']:>6}{row['errors']:>8}{times}")
    memory = stats["memory_usage"]["rss"] / 2**20
    print(f"\nworker: {memory:.0f} MiB, up {stats['uptime']:.1f} s")
