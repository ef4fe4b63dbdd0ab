"""The site: examples of the Python reference run, error messages are in the code, and the pages are complete.

`sphinx-build -W docs site` itself is a step of .ci/run; tests/test_site.py looks at the result in a browser.
"""

import ast
import doctest
import json
import re
from pathlib import Path

import pytest

import zoo
from zoo.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def constant_texts():
    """Return the text of every string in the package, with … for the parts that are filled in; no docstrings."""
    texts = []
    for path in (ROOT / "zoo").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append(node.value)
    return texts


def test_messages_that_are_explained_are_in_the_code():
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(messages) >= 20
    texts = constant_texts()
    for message in messages:
        pattern = re.compile(".{0,99}".join(map(re.escape, message.split("…"))))
        assert any(pattern.search(text) for text in texts), message


@pytest.mark.slow  # .ci/run has a step for it
def test_examples_of_the_python_reference_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_REPORT", "0")
    (tmp_path / "docs").symlink_to(DOCS)
    page = DOCS / "reference" / "api.md"
    text = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert len(test.examples) >= 15
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_python_reference_has_every_public_name():
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    assert set(re.findall(r":: zoo\.(\w+)$", text, re.MULTILINE)) == set(zoo.__all__)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_reference_is_made_of_the_parsers(command, monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import command_line

    lines = command_line.markdown(command, "text")
    parser = command_line.parser_of(command)
    options = [flag for action in parser._actions for flag in action.option_strings if action.dest != "help"]
    assert all(any(flag in line for line in lines) for flag in options)


def test_every_page_is_in_the_menu():
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            listed |= {
                (page.parent / line).relative_to(DOCS).as_posix()
                for line in block.splitlines() if line and not line.startswith(":")
            }  # fmt: skip
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert pages - {"index"} == listed


def test_the_page_on_a_few_images_shows_the_results():
    from benchmarks import transfer

    results = json.loads(transfer.RESULTS.read_text(encoding="utf-8"))
    assert transfer.PAGE.read_text(encoding="utf-8") == transfer.page(results)
    assert all(len(row["methods"]) == len(transfer.METHODS) for row in results.values())
