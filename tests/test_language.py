"""Names, help texts, messages and docstrings follow the rules of docs/contributing.md that a program can check."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Files and folders that do not follow the rules yet. This list only shrinks.
UNFINISHED = ()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SOURCES = [path for pattern in ("train.py", "zoo/**/*.py", "benchmarks/*.py") for path in sorted(ROOT.glob(pattern))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FINISHED = [path for path in SOURCES if not relative(path).startswith(UNFINISHED)]

#: First words of fragments such as "Where the data lies" or "Of every image".
FRAGMENTS = re.compile(r"(Of|What|Whether|Where|Who|Whose|Whoever|How|Those|As|When|That|Why|Which)\b", re.IGNORECASE)

#: Names of earlier versions that no identifier may have.
OLD_NAMES = {
    "at_once", "by_first", "CompiledAhead", "DamagedCheckpoint", "dearest_step", "decay_all", "Diverged", "FIT_ONCE",
    "final_rate", "freed_memory", "Interrupted", "is_first", "keep_freed_memory", "Layout", "_layout", "made_ahead",
    "make_way", "moved_average", "Pieces", "Refused", "restarted", "second_moment", "Stretch", "TooLarge", "Wrong",
}  # fmt: skip
#: The same for functions, classes, attributes and imports; common words, which local variables may have.
OLD_DEFINITIONS = {
    "accumulated", "agree", "drain", "drop", "fits", "joined", "needed", "on_device", "pending", "placed",
    "scaled", "seen", "settle", "several", "spread", "stale", "tried",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def definitions(module: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node


def text_of(node: ast.AST) -> str:
    """Return the text of a string or the constant beginning of an f-string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr) and node.values:
        return text_of(node.values[0])
    if isinstance(node, ast.BinOp):
        return text_of(node.left)
    return ""


def texts(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring, help text and message of an exception."""
    for node in [module, *definitions(module)]:
        if docstring := ast.get_docstring(node):
            yield getattr(node, "lineno", 1), docstring
    for node in ast.walk(module):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield node.lineno, text_of(node.exc.args[0])
        if isinstance(node, ast.keyword) and node.arg in ("help", "description", "epilog"):
            yield node.value.lineno, text_of(node.value)


def old_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every identifier that has an old name."""
    for node in ast.walk(module):
        defined: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined = [node.name]
        elif isinstance(node, ast.Attribute):
            defined = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined = [node.target.id]
        names = [node.id] if isinstance(node, ast.Name) else [node.arg] if isinstance(node, ast.arg) else defined
        old = (OLD_NAMES & set(names)) | (OLD_DEFINITIONS & set(defined))
        yield from ((node.lineno, name) for name in sorted(old))


@pytest.mark.parametrize("path", FINISHED, ids=relative)
def test_no_text_begins_with_a_fragment(path):
    found = [f"{relative(path)}:{line}: {text[:70]!r}" for line, text in texts(tree(path)) if FRAGMENTS.match(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [*FINISHED, *TESTS], ids=relative)
def test_no_identifier_has_an_old_name(path):
    found = [f"{relative(path)}:{line}: {name}" for line, name in old_names(tree(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FINISHED, ids=relative)
def test_exceptions_end_in_error(path):
    for node in definitions(tree(path)):
        if isinstance(node, ast.ClassDef) and node.bases:
            bases = [ast.unparse(base) for base in node.bases]
            if any(base == "Exception" or base.endswith(("Error", "Exception")) for base in bases):
                assert node.name.endswith("Error"), f"{relative(path)}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("path", FINISHED, ids=relative)
def test_metavars_say_what_to_type(path):
    found = [
        f"{relative(path)}:{node.value.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.keyword) and node.arg == "metavar" and text_of(node.value) in ("X", "Y", "VALUE")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [path for path in FINISHED if relative(path).startswith("zoo/")], ids=relative)
def test_public_functions_and_classes_have_docstrings(path):
    """Each command defines `add_arguments` and `run`, which zoo/commands/__init__.py describes."""
    module = tree(path)
    missing = [
        f"{relative(path)}:{node.lineno}: {node.name}"
        for node in module.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not (relative(path).startswith("zoo/commands/") and node.name in ("add_arguments", "run"))
        and not ast.get_docstring(node)
    ]
    assert not missing, "\n".join(missing)
