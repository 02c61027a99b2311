"""Rewrites the source of a `dspy.Flex` for Monty, which has neither inheritance nor modules of its own.

Nothing is executed here. What the source means does not change: its class has no bases, `dspy` is a variable of the
sandbox, and tools are handed on by their names.
"""

from __future__ import annotations

import ast

from bridge.errors import text_of

# What `dspy` is in Monty. The functions with two underscores are the host's.
SHIM = """
class _DspyPrediction:
    def __init__(self, **fields):
        self._fields = fields
        for name in fields:
            setattr(self, name, fields[name])

    def __getitem__(self, name):
        return self._fields[name]


_dspy_handles = []


class _DspyPredictor:
    def __init__(self, kind, signature, options):
        self._made = [kind, signature, options]
        self._handle = None

    def __call__(self, **inputs):
        if self._handle is None:
            kind, signature, options = self._made
            name = 'p' + str(len(_dspy_handles))
            _dspy_handles.append(name)
            self._handle = __dspy_construct__(kind=kind, signature=signature, attr_name=name, kwargs=options)
        return _DspyPrediction(**__dspy_call__(handle=self._handle, inputs=inputs))


class _Dspy:
    def Predict(self, signature, **options):
        return _DspyPredictor('Predict', signature, options)

    def ChainOfThought(self, signature, **options):
        return _DspyPredictor('ChainOfThought', signature, options)

    def ReAct(self, signature, **options):
        return _DspyPredictor('ReAct', signature, options)

    def ReActV2(self, signature, **options):
        return _DspyPredictor('ReActV2', signature, options)

    def Signature(self, signature, instructions=None):
        return {'__dspy_sig__': True, 'signature': signature, 'instructions': instructions}

    def Prediction(self, **fields):
        return _DspyPrediction(**fields)


dspy = _Dspy()
"""


def check_source(source: str) -> None:
    """Raise ValueError if `source` is not Python, or has no class with a method `forward`."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(text_of(error) or "nested too deeply") from None
    for each in body:
        if isinstance(each, ast.ClassDef) and any(
            isinstance(part, ast.FunctionDef) and part.name == "forward" for part in each.body
        ):
            return
    raise ValueError("there is no class with a method `forward`")


def lowered(source: str) -> str:
    """Return `source` in the part of Python that Monty has; unchanged if it is not valid Python."""
    try:
        tree = ast.parse(source)
        return ast.unparse(ast.fix_missing_locations(_Lowering().visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # which Monty reports, too
        return source


class _Lowering(ast.NodeTransformer):
    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # ast's name
        node.bases = [each for each in node.bases if not _is_dspys(each, "Module")]
        return self._with_body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._with_body(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        is_init = isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"
        return None if is_init else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        node.names = [each for each in node.names if (each.name, each.asname) != ("dspy", None)]
        return node if node.names else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg == "tools" and isinstance(keyword.value, ast.List):
                keyword.value.elts = [_by_name(each) for each in keyword.value.elts]
        return node

    def _with_body(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _is_dspys(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name and ast.unparse(node.value) == "dspy"


def _by_name(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Name):
        return node
    return ast.Dict([ast.Constant("__dspy_tool__")], [ast.Constant(node.id)])
