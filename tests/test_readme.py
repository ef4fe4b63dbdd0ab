"""README.md and docs/: every snippet of the README runs as printed; commands, options and links in the pages are valid.

The snippets run in order, in a copy of the repository and without a network. `pip` is replaced by a program that checks
its arguments, since the package is installed already, and PYTEST_ADDOPTS lets the test command collect one file only.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from zoo import cli
from zoo.pretrained.registry import DEFAULTS, WEIGHTS

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), ROOT / "checkpoints" / "README.md", *(ROOT / "docs").rglob("*.md")]
PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in sorted(PAGES)]

#: Settings of tests/conftest.py that make compiling faster and steps slower.
FOR_TESTS_ONLY = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page):
    """Return (language, text) of each fenced block."""
    return FENCE.findall(page.read_text("utf-8"))


def commands(page):
    """Return the words of each `zoo …` and `python train.py …` command, in snippets and in the text."""
    lines = [
        line for language, text in snippets(page) if language not in ("python", "text")
        for line in text.replace("\\\n", " ").splitlines()
    ]  # fmt: skip
    lines += re.findall(r"`((?:zoo|python train\.py) [^`]+)`", FENCE.sub("", page.read_text("utf-8")))
    words = []
    for line in lines:
        line = re.sub(r" … \d+| FIELDS\b", "", line)  # "--seed 0 … 4" stands for five commands
        line = line.replace("2>&1", "")
        if command := re.search(r'(?:^|\s)(?:zoo|python (train)\.py)\s(.*?)(?:&&|[|"]|$)', line):
            words.append([*filter(None, [command[1]]), *shlex.split(command[2], comments=True)])
    return words


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a copy of the repository, with programs named pip, python and zoo in `bin`."""
    folder = tmp_path_factory.mktemp("readme") / "copy"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".git", "runs", ".venv", "__pycache__", ".*_cache", "*.egg-info")
    )
    programs = {
        "pip": 'case "$1 $2 $3" in "install -e ."*) exit 0;; *) echo "pip: $*" >&2; exit 1;; esac',
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
        "zoo": f'exec {shlex.quote(sys.executable)} -m zoo.cli "$@"',
    }
    (folder / "bin").mkdir()
    for name, command in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


README = snippets(ROOT / "README.md")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        # .ci/run runs the command to train itself, in an environment of its own.
        pytest.param(
            language, text, id=text.strip().splitlines()[-1][:50],
            marks=[pytest.mark.slow] if "python train.py" in text else [],
        )
        for language, text in README
    ],
)  # fmt: skip
def test_snippets_of_the_readme_run_as_printed(copy, language, text):
    assert language in ("sh", "python")
    command = ["sh", "-ec", text] if language == "sh" else [sys.executable, "-c", text]
    environment = {name: value for name, value in os.environ.items() if name not in FOR_TESTS_ONLY} | {
        "PATH": f"{copy / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copy),
        "PYTEST_ADDOPTS": "--collect-only tests/test_files.py",
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9"),
    }
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    claimed = [int(percent) for percent in re.findall(r"# (\d+) %", text)]
    printed = [round(float(percent)) for percent in re.findall(r"accuracy \(top-1\)\s+([\d.]+) %", done.stdout)]
    assert printed == claimed


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_pages_use(page, monkeypatch, capsys):
    for module, _ in cli.COMMANDS.values():
        monkeypatch.setattr(importlib.import_module(f"zoo.commands.{module}"), "run", lambda options: 0)
    monkeypatch.setattr(cli, "KEEPING_MEMORY", (), raising=False)
    for words in commands(page):
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 0 or "arguments are required" in error, f"zoo {shlex.join(words)}: {error}"
        for name in words:
            if re.match(r"(torchvision|timm|keras|akamaster):\w", name):
                assert name in WEIGHTS or name in DEFAULTS, name


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_compiles(page):
    for language, text in snippets(page):
        if language == "python":
            compile(text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_extras_are_declared(page):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:'\.|jax-model-zoo)\[([\w,-]+)\]", page.read_text("utf-8")):
        assert set(extras.split(",")) <= set(declared)


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_pages_name_exist(page):
    for name in re.findall(r"`([\w.]+/[\w./]+\.py)`", page.read_text("utf-8")):
        assert any((ROOT / folder / name).exists() for folder in ("", "zoo")), name


def named_tests(text):
    """Return the (file, function) of each test that a text names, and assert that it exists."""
    names = re.findall(r"`(tests/\S+\.py)::(\w+)`", text)
    for file, function in names:
        assert f"\ndef {function}(" in (ROOT / file).read_text("utf-8"), (file, function)
    return names


def test_every_promise_names_its_test():
    section = (ROOT / "README.md").read_text("utf-8").split("## What a run survives")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    promises = (ROOT / "SECURITY.md").read_text("utf-8").split("## What is promised")[1].split("\n## ")[0]
    bullets = promises.split("\n- **")[1:]
    assert len(rows) >= 8 and len(bullets) >= 6
    for promise in (*(row[-1] for row in rows), *bullets):
        assert named_tests(promise), promise
