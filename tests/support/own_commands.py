"""An adapter that has the commands of DSPy, and commands of its own that run modules."""

from __future__ import annotations

import dspy
import msgspec

from bridge import Context
from bridge.adapters.dspy import adapter as dspy_adapter
from bridge.adapters.dspy import current_context, host_tools, run_module
from own_modules import Stages, Stubborn, Tools

adapter = dspy_adapter.extended("own")
stages, stubborn, tools = Stages(), Stubborn(), Tools()


class Question(msgspec.Struct):
    question: str
    temperature: float | None = None


class Where(dspy.Module):
    """Returns the context that it runs in."""

    def forward(self):
        return current_context()


@adapter.command("answer", Question)
def answer(args: Question, context: Context):
    """Answer a question in two stages."""
    config = None if args.temperature is None else {"temperature": args.temperature}
    assert run_module(Where(), {}, context) is context
    result = run_module(stages, {"question": args.question}, context, config)
    return {"answer": result.answer}


@adapter.command("ask_tools", Question)
def ask_tools(args: Question, context: Context):
    """Answer a question by a tool."""
    return {"result": run_module(tools, {"question": args.question}, context).result}


@adapter.command("persist", lane="session")
def persist(args: None, context: Context):
    """Go on until the call is over."""
    return {"number": run_module(stubborn, {"way": "tool"}, context).number}


@adapter.command("without_session", lane="worker")
def without_session(args: None, context: Context):
    """Run a module where there is no session."""
    return run_module(stages, {"question": "?"}, context)


@adapter.command("outside")
def outside(args: None, context: Context):
    """Ask for tools outside of a run."""
    return host_tools()
