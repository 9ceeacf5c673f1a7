"""What the code of the packages may not do, beyond what ruff and bandit look for: rules over the syntax tree.

`findings` gives one line for each place. The rules are about input that becomes code, processes that are forked, limits
that are taken off, and an aborted call whose code goes on.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

IMPORTS = {
    "pickle": "runs what it reads", "cPickle": "runs what it reads", "dill": "runs what it reads",
    "cloudpickle": "runs what it reads", "marshal": "crashes on what it reads", "shelve": "is pickle",
    "yaml": "makes any object", "jsonpickle": "makes any object", "multiprocessing": "forks after gRPC has begun",
    "subprocess": "runs programs", "pty": "forks", "google.protobuf.json_format": "recurses over what it reads",
    "google.protobuf.text_format": "recurses over what it reads",
}  # fmt: skip
"""Modules, and what is wrong with them."""

CALLS = {
    "eval": "runs what it reads", "exec": "runs what it reads", "compile": "runs what it reads",
    "__import__": "imports what it reads", "torch.load": "is pickle", "torch.jit.load": "runs what it reads",
    "joblib.load": "is pickle", "os.system": "runs programs", "os.popen": "runs programs",
    "os.fork": "forks after gRPC has begun", "os.forkpty": "forks after gRPC has begun",
    "asyncio.create_subprocess_shell": "runs programs through a shell",
    "asyncio.create_subprocess_exec": "runs programs",
}  # fmt: skip
"""Functions, and what is wrong with them."""

ALLOWED = {("processes/child.py", "asyncio.create_subprocess_exec")}
"""The supervisor starts its workers, whose command is its own."""


def findings(source: str, path: str) -> list[str]:
    """What breaks a rule in a file, as `path:line: what`."""
    tree = ast.parse(source)
    return [
        f"{path}:{line}: {what}"
        for rule in RULES
        for line, what, name in rule(tree)
        if not any(path.endswith(place) and name == allowed for place, allowed in ALLOWED)
    ]


Found = Iterator[tuple[int, str, str]]


def _imports(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
        for name in names:
            for module in {name, name.partition(".")[0]} & IMPORTS.keys():
                yield node.lineno, f"{module} {IMPORTS[module]}", module


def _calls(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                yield node.lineno, f"{name} {CALLS[name]}", name
            if name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
                yield node.lineno, f"{name} runs programs", name


def _numpy_load(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("allow_pickle") != "False":
                yield node.lineno, "numpy.load without allow_pickle=False", "numpy.load"


def _unlimited(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            name, value = map(ast.unparse, node.elts)
            if name.startswith("'grpc.max_") and name.endswith("_length'") and value == "-1":
                yield node.lineno, f"{name} without a limit", name


def _swallowed_abort(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(map(_is_broad, node.handlers)):
            calls = (call for statement in node.body for call in ast.walk(statement) if isinstance(call, ast.Call))
            if any(isinstance(call.func, ast.Attribute) and call.func.attr in {"abort", "_abort"} for call in calls):
                yield node.lineno, "a broad except around abort swallows its exception", "abort"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    names = ast.unparse(handler.type) if handler.type is not None else "BaseException"
    ends = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return any(name in {"Exception", "BaseException"} for name in names.strip("()").split(", ")) and not ends


RULES: tuple[Callable[[ast.Module], Found], ...] = (_imports, _calls, _numpy_load, _unlimited, _swallowed_abort)
