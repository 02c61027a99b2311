"""Write the table of all public names of the installed DSPy into dspy.md: how each is supported, or why it is not.

    python docs/dspy_names.py [--check]

--check: write nothing; exit with status 1 if a name is missing here or gone from DSPy, or dspy.md is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dspy

PAGE = Path(__file__).with_name("dspy.md")
BEGIN, END = "<!-- names of DSPy -->\n", "<!-- end of the names -->\n"

# What a host has in place of names, and the file of its test. Names in one row have the same answer.
ROWS: dict[str, tuple[str, str]] = {
    # Modules
    "Predict": ("`predict`", "test_programs.py"),
    "ChainOfThought": ("`chain_of_thought`", "test_programs.py"),
    "ReAct": ("`react`", "test_tools.py"),
    "ReActV2": ("`react_v2`; experimental", "test_modules.py"),
    "MultiChainComparison": ("`multi_chain_comparison`", "test_modules.py"),
    "BestOfN": ("`best_of_n`", "test_modules.py"),
    "Refine": ("`refine`", "test_modules.py"),
    "majority": ("`majority`", "test_modules.py"),
    "KNN": ("`knn`", "test_modules.py"),
    "RLM": ("`rlm`, with `--allow-code-execution`; experimental", "test_code_execution.py"),
    "Flex": ("`flex`, with `--allow-code-execution`; experimental", "test_code_execution.py"),
    "ProgramOfThought CodeAct": ("no: DSPy removes them in 3.5; `rlm` instead", "test_modules.py"),
    "Module BaseModule": ("`pipeline`, and modules of the operator (`--program`)", "test_own_module_runs.py"),
    "Parallel": ("`execute_batch`; in modules of the operator as it is", "test_batch.py"),
    # Signatures, fields and types
    "Signature SignatureMeta make_signature ensure_signature": (
        "`signature` of `create_program`",
        "test_signatures.py",
    ),
    "InputField OutputField": ("`inputs` and `outputs` of a signature", "test_signatures.py"),
    "OldField OldInputField OldOutputField infer_prefix": (
        "no: DSPy itself no longer uses them; `prefix` of a field",
        "test_signatures.py",
    ),
    "Image Audio File": ("the types `image`, `audio` and `file`", "test_media.py"),
    "History": ("the type `history`", "test_media.py"),
    "Code": ("the type `code`", "test_media.py"),
    "Reasoning": ("`reasoning` of `chain_of_thought`", "test_programs.py"),
    "Type": ("no: types of your own are in modules of the operator; `json_schema` of a field", "test_json_schemas.py"),
    "Tool": ("`register_tools`", "test_tools.py"),
    "ToolCalls ToolCallResults": ("inside of `react_v2`", "test_modules.py"),
    # Examples and results
    "Example": ("`{inputs, outputs}` in demos, devsets and trainsets", "test_documents.py"),
    "Prediction": ("`outputs` of the result", "test_programs.py"),
    "Completions": ('`include: ["completions"]`', "test_include.py"),
    "load": ("`load_program`, `import_program`; never a pickle", "test_documents.py"),
    # Models
    "LM": ("`configure_lm`", "test_configure.py"),
    "BaseLM": ("`host/NAME`: a model of the host", "test_model_choice.py"),
    "lm15": ("the engine under `configure_lm`", "test_language_model.py"),
    "LMError LMAuthError LMBillingError LMCollectionLimitError LMConfigurationError LMInvalidRequestError"
    " LMLockTimeoutError LMNotConfiguredError LMProviderError LMRateLimitError LMServerError LMStreamAssemblyError"
    " LMTimeoutError LMTransportError LMUnexpectedError LMUnsupportedFeatureError LMUnsupportedModelError"
    " ContextWindowExceededError DSPyError": ("`lm_error` with `lm_code`", "test_language_model.py"),
    "is_retryable_lm_error": ("`retries` and fallbacks of `configure_lm`", "test_model_choice.py"),
    "Provider TrainingJob BootstrapFinetune": ("no: training of weights is not work for a worker", ""),
    "track_usage": ('`include: ["usage", "cost"]`', "test_include.py"),
    "inspect_history": ("`get_history` and `inspect_call`", "test_history.py"),
    "configure_cache": ("`configure_lm {cache}`", "test_answer_cache.py"),
    # Adapters
    "ChatAdapter JSONAdapter XMLAdapter TwoStepAdapter Adapter": (
        "`adapter`: `chat`, `json`, `xml`, `two_step`, `baml`",
        "test_formats.py",
    ),
    "AdapterParseError": ("`lm_error` with `lm_code` `adapter_parse_error`", "test_chat_format.py"),
    # Code
    "PythonInterpreter CodeInterpreter resolve_interpreter_factory": (
        "the sandbox of `--allow-code-execution`",
        "test_code_execution.py",
    ),
    "LocalInterpreter": ("no: it runs code with the worker's rights", ""),
    "CodeExecutionError CodeInterpreterError FinalOutput SandboxSerializable": (
        "inside `rlm` and `flex`",
        "test_code_execution.py",
    ),
    # Evaluation and optimizers
    "Evaluate evaluate": ("`evaluate`", "test_evaluation.py"),
    "LabeledFewShot": ("`optimize` with `labeled_few_shot`", "test_optimizers.py"),
    "BootstrapFewShot": ("`optimize` with `bootstrap_few_shot`", "test_optimizers.py"),
    "BootstrapFewShotWithRandomSearch BootstrapRS": ("`optimize` with `bootstrap_random_search`", "test_optimizers.py"),
    "KNNFewShot": ("`optimize` with `knn_few_shot`", "test_optimizers.py"),
    "COPRO": ("`optimize` with `copro`", "test_optimizers.py"),
    "MIPROv2": ("`optimize` with `mipro_v2` (extra `optimize`)", "test_optimizers.py"),
    "SIMBA": ("`optimize` with `simba`", "test_optimizers.py"),
    "InferRules": ("`optimize` with `infer_rules`", "test_optimizers.py"),
    "GEPA": ("`optimize` with `gepa`; experimental", "test_optimizers.py"),
    "Ensemble": ("`optimize` with `ensemble`, and the type `ensemble`", "test_optimizers.py"),
    "BetterTogether": ("`optimize` with `better_together`, without weights", "test_optimizers.py"),
    "BootstrapFewShotWithOptuna": ("no: `mipro_v2` and `bootstrap_random_search` do the same", ""),
    "AvatarOptimizer": ("no: it optimizes DSPy's class Avatar only, which is not exported", ""),
    "bootstrap_trace_data": ("`call_metric` with `trace`", "test_evaluation.py"),
    # Retrieval
    "Embedder": ("`configure_embedder` and `embed`", "test_embedders.py"),
    "Embeddings EmbeddingsWithScores": ("`create_index` and `search_index`", "test_indexes.py"),
    "Retrieve": ("the type `retrieve`, and tools that search indexes", "test_search_tool.py"),
    "ColBERTv2": ("no: its public server is gone; indexes, or a tool of the host", ""),
    # Running
    "streamify streaming": ("`stream: true` of a request", "test_programs.py"),
    "asyncify syncify": ("no need: clients of both kinds call the same worker", ""),
    "context settings": ("the settings of a session, a program and a run", "test_configure.py"),
    "configure": ("no: settings belong to a session, not to the worker", ""),
    "load_settings": ("no: it reads pickles", ""),
    "configure_dspy_loggers enable_logging disable_logging enable_litellm_logging disable_litellm_logging": (
        "`set_log_level`",
        "telemetry/test_logs.py",
    ),
    "adapters clients dsp predict primitives propose retrievers signatures teleprompt threading utils": (
        "a package; its public names are in this table",
        "",
    ),
}


def names() -> list[str]:
    """Return the public names of the installed DSPy."""
    return [name for name in dir(dspy) if not name.startswith("_")]


def path_of(test: str) -> str:
    """Return the path of a test: that of the adapter for DSPy, unless the row names another folder."""
    return f"tests/{test}" if "/" in test else f"tests/adapters/dspy/{test}"


def table() -> str:
    """Return the table as Markdown, with a row for each name."""
    lines = [f"| name in DSPy {dspy.__version__} | for a host | test |", "|---|---|---|"]
    for group, (how, test) in ROWS.items():
        for name in group.split():
            link = f"[{test.rpartition('/')[2]}](../{path_of(test)})" if test else ""
            lines.append(f"| `{name}` | {how} | {link} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def problems() -> list[str]:
    """Return what is wrong with the rows: names that are missing, gone or repeated, and tests that do not exist."""
    listed = [name for group in ROWS for name in group.split()]
    found = [f"{name} is missing" for name in names() if name not in listed]
    found += [f"{name} is gone from DSPy" for name in listed if name not in names()]
    found += [f"{name} is repeated" for name in set(listed) if listed.count(name) > 1]
    folder = PAGE.parent.parent
    tests = [test for _, test in ROWS.values() if test]
    return found + [f"{test} does not exist" for test in tests if not (folder / path_of(test)).exists()]


def main() -> int:
    wrong = problems()
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = before + BEGIN + table() + END + after
    if "--check" in sys.argv[1:]:
        wrong += [f"{PAGE.name} is out of date"] * (written != text)
    else:
        PAGE.write_text(written)
    for problem in wrong:
        print(problem, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
