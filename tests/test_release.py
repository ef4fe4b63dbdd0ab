"""What a release states about itself agrees: versions and licence. `.ci/run` looks into wheel and sdist."""

import re
import tomllib
from pathlib import Path

import zoo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert zoo.__version__ == PROJECT["version"] == re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1]
    assert re.search(r"^license: (\S+)$", citation, re.MULTILINE)[1] == PROJECT["license"]
    assert f"## {zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_supported_versions_of_python_agree():
    stated = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    lowest = min(stated, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["requires-python"] == f">={lowest}"
    readme, page, contributing = (
        (ROOT / path).read_text("utf-8") for path in ("README.md", "docs/install.md", "docs/contributing.md")
    )
    assert f"Python {lowest} or newer" in readme and f"Python {lowest} or newer" in page
    assert all(version in page for version in stated)
    tested = list(dict.fromkeys(re.findall(r"^\| (3\.\d+)\.\d+ \|", contributing, re.MULTILINE)))
    assert f"tested with {' and '.join(tested)} (" in page and set(tested) <= stated
