"""Run the pages of the tour and the tutorial as notebooks, and write what they print and draw into the pages.

    python -m benchmarks.tour                          # every page
    python -m benchmarks.tour xor learning-rates       # some of them
    python -m benchmarks.tour --check                  # run them and compare with what the pages hold; writes nothing
    python -m benchmarks.tour --notebooks FOLDER       # write them as notebooks, with a cell to install

A page is Markdown. Its `python` and `sh` blocks are cells, run in order in a folder of their own; the results stand
after each cell between two comments, the first of which holds a digest of this and all earlier cells. A comment in a
cell, `# figure: …`, describes the picture that the cell draws. Needs the extra `docs`.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = "pictures"

#: A cell with its results, if there are any.
CELL = re.compile(
    r"^```(?P<language>python|sh)\n(?P<code>.*?)^```\n"
    r"(?P<results>\n?<!-- results (?P<digest>\w+) -->\n(?P<shown>.*?)<!-- end -->\n)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
#: Numbers that depend on the machine and its load, and are not compared.
UNCOMPARED = re.compile(r"\d[\d.,]*\s?(?:s|ms|µs|min|MiB|GiB|images/s|m\d+s)\b|\d+:\d\d")
#: A printed number agrees with the page within 5 % or within 0.05, whichever is more; accuracies in per cent within 5.
RELATIVE, ABSOLUTE, PERCENT = 0.05, 0.05, 5.0

INSTALL = """# Installs the package where it is missing, for example in Colab.
import importlib.util

if importlib.util.find_spec("zoo") is None:
    %pip install --quiet jax-model-zoo"""


@dataclass(frozen=True)
class Cell:
    """One cell of a page.

    Attributes:
        language: "python" or "sh".
        code: the text of the cell.
        digest: digest of this and all earlier cells of the page.
        recorded: the digest beside the results that the page holds; "" without results.
        shown: those results, as Markdown.
        span: where cell and results stand in the page.
    """

    language: str
    code: str
    digest: str
    recorded: str
    shown: str
    span: tuple[int, int]


def pages() -> list[Path]:
    """Return the pages that are run."""
    return [DOCS / "tutorial.md", *(page for page in sorted((DOCS / "tour").glob("*.md")) if page.stem != "index")]


def cells_of(text: str) -> list[Cell]:
    """Return the cells of a page."""
    cells, digest = [], hashlib.sha256()
    for match in CELL.finditer(text):
        digest.update(f"{match['language']}\n{match['code']}\n".encode())
        cells.append(
            Cell(
                match["language"], match["code"], digest.hexdigest()[:12], match["digest"] or "", match["shown"] or "",
                match.span(),
            )
        )  # fmt: skip
    return cells


def notebook_of(text: str, *, install: bool = False) -> Any:
    """Return a page as a notebook without results."""
    import nbformat
    from nbformat import v4

    parts, start = [], 0
    for cell in cells_of(text):
        if before := text[start : cell.span[0]].strip():
            parts.append(v4.new_markdown_cell(before))
        code = cell.code.rstrip("\n")
        parts.append(v4.new_code_cell(code if cell.language == "python" else f"%%sh\n{code}"))
        start = cell.span[1]
    if rest := text[start:].strip():
        parts.append(v4.new_markdown_cell(rest))
    if install:
        parts.insert(1, v4.new_code_cell(INSTALL))
    for number, part in enumerate(parts):
        part["id"] = f"cell-{number}"  # the same in every build
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=parts, metadata=kernel)
    nbformat.validate(notebook)
    return notebook


def run_notebook(notebook: Any, folder: Path, *, report: bool = False) -> None:
    """Run a notebook in `folder`; its cells then have their results.

    Args:
        notebook: the notebook.
        folder: an empty folder.
        report: end each training with its report page, as for a user; it takes seconds that the tour does without.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    programs = folder / ".programs"
    programs.mkdir()
    script = programs / "zoo"
    script.write_text(
        f'#!/bin/sh\nunset FORCE_COLOR CLICOLOR_FORCE\nexec {shlex.quote(sys.executable)} -m zoo.cli "$@"\n'
    )
    script.chmod(0o755)
    (folder / "docs").symlink_to(DOCS)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "MATPLOTLIBRC": str(DOCS / "tour" / "matplotlibrc"),
        "JAX_PLATFORMS": "cpu",
        "ZOO_REPORT": str(int(report)),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=place)
    client.extra_arguments = ["--IPKernelApp.log_level=ERROR"]  # no remark on every kernel's connection
    client.execute(env=environment)


def _picture(data: str, file: Path) -> None:
    """Write a PNG of at most 256 colours: a quarter of the size, and flat colours stay as they are."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    file.parent.mkdir(exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def results_of(cell: Any, code: str, page: Path, number: int, written: list[Path]) -> str:
    """Return what a cell printed and drew as Markdown; its pictures are written and added to `written`."""
    text, shown = "", []
    for output in cell.outputs:
        if output.output_type == "stream":
            text += output.text
        elif "image/png" in output.get("data", {}):
            file = page.parent / PICTURES / f"{page.stem}-{number}.png"
            _picture(output.data["image/png"], file)
            written.append(file)
            title = re.search(r"^# figure: (.+)$", code, re.MULTILINE)
            if not title:
                raise ValueError(f"{page.name}: cell {number} draws a picture; describe it with a line '# figure: …'")
            shown.append(f"![{title[1]}]({PICTURES}/{file.name})\n")
        elif "text/plain" in output.get("data", {}):
            text += output.data["text/plain"] + "\n"
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().splitlines()]
    block = "```text\n" + "\n".join(lines) + "\n```\n" if lines else ""
    return "\n".join([*([block] if block else []), *shown])


def run_page(page: Path, write: bool = True) -> str:
    """Run a page and return its text with the new results; they are written unless `write` is false."""
    text = page.read_text("utf-8")
    notebook, cells = notebook_of(text), cells_of(text)
    with tempfile.TemporaryDirectory() as folder:
        run_notebook(notebook, Path(folder), report=page.stem == "tutorial")
        target = page if write else Path(folder) / page.name
        run, parts, start = [c for c in notebook.cells if c.cell_type == "code"], [], 0
        written: list[Path] = []
        for number, (cell, done) in enumerate(zip(cells, run, strict=True), 1):
            shown = results_of(done, cell.code, target, number, written)
            parts += [text[start : cell.span[0]], f"```{cell.language}\n{cell.code}```\n"]
            if shown:
                parts.append(f"\n<!-- results {cell.digest} -->\n{shown}<!-- end -->\n")
            start = cell.span[1]
        made = "".join([*parts, text[start:]])
        if write:
            page.write_text(made, "utf-8")
            for old in (page.parent / PICTURES).glob(f"{page.stem}-[0-9]*.png"):
                if old not in written:
                    old.unlink()
    return made


def differences(old: str, new: str) -> list[str]:
    """Return where the results of two versions of a page disagree by more than the tolerance."""
    lines = []
    for number, (a, b) in enumerate(zip(cells_of(old), cells_of(new), strict=True), 1):
        left, right = (UNCOMPARED.sub("T", re.sub(r"!\[.*", "", cell.shown)) for cell in (a, b))
        words = [NUMBER.sub("N", re.sub(r"\s+|-", "", side)) for side in (left, right)]
        if words[0] != words[1]:
            lines.append(f"cell {number}: printed other words:\n{left}\n---\n{right}")
            continue
        for m, n in zip(NUMBER.finditer(left), NUMBER.finditer(right), strict=True):
            x, y = (float(match[0].replace(",", "")) for match in (m, n))
            absolute = PERCENT if re.match(r"\s*%", left[m.end() :]) else ABSOLUTE
            if abs(x - y) > max(absolute, RELATIVE * abs(x)):
                lines.append(f"cell {number}: {x:g} in the page, {y:g} now")
    return lines


def _processor_time() -> float:
    """Return the processor time of all kernels that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tour", description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names of pages without .md; all by default")
    parser.add_argument("--check", action="store_true", help="compare with the results in the pages; write nothing")
    parser.add_argument("--notebooks", metavar="FOLDER", type=Path, help="write notebooks; run nothing")
    options = parser.parse_args(arguments)
    chosen = [page for page in pages() if not options.pages or page.stem in options.pages]
    if unknown := set(options.pages) - {page.stem for page in chosen}:
        parser.error(f"unknown pages: {', '.join(sorted(unknown))}; choose from {', '.join(p.stem for p in pages())}")
    if options.notebooks:
        import nbformat

        options.notebooks.mkdir(parents=True, exist_ok=True)
        for page in chosen:
            nbformat.write(notebook_of(page.read_text("utf-8"), install=True), options.notebooks / f"{page.stem}.ipynb")
        return 0
    failed = False
    for page in chosen:
        start, used, old = time.monotonic(), _processor_time(), page.read_text("utf-8")
        lines = differences(old, run_page(page, write=not options.check)) if options.check else []
        if not options.check:
            run_page(page)
        failed |= bool(lines)
        spent = f"{time.monotonic() - start:.0f} s, {_processor_time() - used:.0f} s of processor time"
        print(f"{page.stem}: {spent}" + "".join(f"\n  {line}" for line in lines), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
