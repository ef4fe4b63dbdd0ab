"""Comparison of runs: the options in which they differ, what came of them, and their curves in one picture."""

import base64
import html
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.addresses import require_local
from zoo.checkpoint.format import CARD, read_card
from zoo.inference.examples import write_csv
from zoo.suggest import nearest_path
from zoo.training import run as runs
from zoo.training.plots import draw_runs

MAX_CELL = 60  # characters


@dataclass(frozen=True)
class Run:
    """A run as it is on disk.

    Attributes:
        folder: its folder.
        name: a short name, unique among those compared.
        options: its configuration, flat: {"recipe.epochs": 20.0, …}.
        history: rows of metrics.jsonl.
        results: content of results.json; None if the run is not finished.
        seconds: time that it took; None if unknown.
        parameters: number of parameters; None without a checkpoint.
    """

    folder: Path
    name: str
    options: dict[str, Any]
    history: list[dict[str, Any]]
    results: dict[str, Any] | None
    seconds: float | None
    parameters: int | None


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs in these folders.

    Raises:
        FileNotFoundError: if a folder is not a run.
        ValueError: if there are none, or a file of a run is damaged.
    """
    for folder in folders:
        require_local(folder)
    named = [Path(folder) for folder in folders]
    named = [path.parent if path.name == runs.BEST and (path.parent / runs.CONFIG).exists() else path for path in named]
    paths = list(dict.fromkeys(named))
    if not paths:
        raise ValueError("name the folders of the runs to compare, such as runs/*")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.exists():
        near = nearest_path(folder)
        raise FileNotFoundError(f"{folder}: no such folder" + (f"; did you mean {near}?" if near else ""))
    if not (folder / runs.CONFIG).exists():
        hint = f"; name those in it: {folder}/*" if any(folder.glob(f"*/{runs.CONFIG}")) else ""
        raise FileNotFoundError(f"{folder}: is not the folder of a run (no {runs.CONFIG}){hint}")
    config = runs.read_config(folder)
    options = {**config.identity(), **({"init": config.init} if config.init else {})}
    try:
        history = runs.read_history(folder) if (folder / runs.METRICS).exists() else []
        results = runs.read_results(folder) if runs.is_finished(folder) else None
        rows = runs.read_timing(folder)
        leaves = read_card(folder / runs.BEST).leaves if (folder / runs.BEST / CARD).exists() else None
    except ValueError as error:
        raise ValueError(f"{folder}: a file of the run is damaged ({error})") from None
    seconds = sum(row["seconds"] for row in rows) if rows else None
    parameters = None if leaves is None else sum(_size(leaf) for leaf in leaves if leaf["path"].startswith("params/"))
    return Run(folder, name, options, history, results, seconds, parameters)


def _size(leaf: dict[str, Any]) -> int:
    size = 1
    for side in leaf["shape"]:
        size *= side
    return size


def differing_options(compared: Sequence[Run]) -> list[str]:
    """Return the keys of the options that are not the same in all runs, without hashes that nobody reads."""
    keys = dict.fromkeys(key for run in compared for key in run.options)
    absent = object()
    return [
        key for key in keys
        if key != "data.fingerprint"
        and any(run.options.get(key, absent) != compared[0].options.get(key, absent) for run in compared)
    ]  # fmt: skip


def table(compared: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: name, differing options, and results of each run. Missing values are None.

    The validation columns are those of the best checkpoint, or of the best row so far.
    """
    keys = differing_options(compared)
    header = ["run", *(_short(key, keys) for key in keys), *RESULTS]
    return header, [[run.name, *(run.options.get(key) for key in keys), *_results(run)] for run in compared]


RESULTS = (
    "parameters", "epochs done", "best step", "validation accuracy", "validation loss", "test accuracy", "seconds",
    "state",
)  # fmt: skip


def _short(key: str, keys: Sequence[str]) -> str:
    """Return a key without its prefix, if it is then still unique."""
    short = key.rpartition(".")[2]
    return short if sum(other.rpartition(".")[2] == short for other in keys) == 1 else key


def _results(run: Run) -> list[Any]:
    best = next((row for row in reversed(run.history) if row.get("best")), None)
    results = run.results or {}
    validation = results.get("validation") or {}
    accuracy = validation.get("accuracy", best and best.get("validation_accuracy"))
    loss = best and best.get("validation_loss")  # of metrics.jsonl in all runs: results.json has the calibrated one
    state = results.get("stopped") or "not finished"
    return [
        run.parameters,
        run.history[-1].get("epoch") if run.history else None,
        results.get("best_step", best and best.get("step")),
        accuracy,
        loss,
        (results.get("test") or {}).get("accuracy"),
        run.seconds,
        state,
    ]


def format_value(column: str, value: Any) -> str:
    """Format a cell of the table for people."""
    if value is None:
        return "-"
    if column.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    if column.endswith("loss") and not isinstance(value, str):  # "loss" is also an option, such as "softmax"
        return f"{value:.4f}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if column in RESULTS else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format the table as text: a column per run if there are few runs, so that names stay readable."""
    cells = [[format_value(column, value) for column, value in zip(header, row, strict=True)] for row in rows]
    columns = [list(header), *cells] if len(rows) <= 4 else None
    lines = [list(line) for line in zip(*columns, strict=True)] if columns else [list(header), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_table(path: Path, compared: Sequence[Run]) -> None:
    """Write the table as CSV."""
    header, rows = table(compared)
    write_csv(path, header, [[json.dumps(v) if isinstance(v, list) else v for v in row] for row in rows])


def draw(compared: Sequence[Run], path: Path) -> None:
    """Draw the validation curves of all runs, labelled with the options in which they differ."""
    draw_runs([(_label(run, compared), run.history) for run in compared], path)


def _label(run: Run, compared: Sequence[Run]) -> str:
    keys = [key for key in differing_options(compared) if key in run.options]
    parts = [f"{_short(key, keys)}={format_value(key, run.options[key])}" for key in keys]
    return ", ".join(parts) if 0 < len(parts) <= 3 else run.name


def write_page(path: Path, compared: Sequence[Run], picture: Path | None = None) -> None:
    """Write table and curves as one HTML page that needs no other file and no network.

    Args:
        path: the page to write.
        compared: the runs.
        picture: the file that `draw` wrote; None to draw the curves for the page alone.
    """
    from zoo.files import write_atomically

    if picture is None:
        with tempfile.TemporaryDirectory() as folder:
            draw(compared, Path(folder) / "curves.png")
            write_page(path, compared, Path(folder) / "curves.png")
        return

    header, rows = table(compared)
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in header)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<{tag}>{html.escape(format_value(column, value))}</{tag.split()[0]}>"
            for column, value, tag in zip(header, row, ['th scope="row"', *["td"] * (len(row) - 1)], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    image = base64.b64encode(picture.read_bytes()).decode("ascii")
    names = html.escape(", ".join(run.name for run in compared))
    write_atomically(path, PAGE.format(count=len(compared), head=head, body=body, image=image, names=names))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{count} runs compared</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886; white-space: nowrap; }}
img {{ width: 100%; min-width: 44rem; max-width: 75rem; height: auto; background: white; display: block; }}
</style>
</head>
<body>
<h1>{count} runs compared</h1>
<div class="scroll" tabindex="0" role="region" aria-label="Table of the runs">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<h2>Validation curves</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Validation curves">
<img src="data:image/png;base64,{image}" alt="Validation loss and accuracy over the epochs of {names}">
</div>
</body>
</html>
"""
