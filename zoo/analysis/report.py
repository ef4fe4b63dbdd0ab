"""`zoo report`: one self-contained page about a run or a checkpoint, which opens from disk without a network.

What a page needs is imported when one is written: a training imports this module when it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import loading
from zoo.arguments import check_types
from zoo.data.dataset import Dataset
from zoo.data.sources import open_dataset
from zoo.data.sources.arrays import evaluation_split
from zoo.data.sources.names import canonical_split
from zoo.files import require_writable, write_atomically
from zoo.inference.predict import Checkpoint, require_head
from zoo.training.report import PAGE, PageWriter
from zoo.training.run import BEST, CONFIG

if TYPE_CHECKING:
    from zoo.analysis.page.collect import PageData
    from zoo.analysis.page.html import Markup


def run_folder_of(source: str | Path) -> Path | None:
    """Return the folder of the run that `source`, a run or its best checkpoint, belongs to; None for others.

    Runs in object stores have none: their curves are in the report.html of the run.
    """
    folder = Path(source).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    return folder.parent if folder.name == BEST and (folder.parent / CONFIG).is_file() else None


@check_types()
def report(
    source: str | Path | Checkpoint,
    data: str | Path | Dataset | tuple,
    output: str | Path = PAGE,
    *,
    split: str = "",
    data_dir: str | Path | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> Path:
    """Evaluate a checkpoint and write a page about it: curves, confusions, mistakes with Grad-CAM, calibration, data.

    Args:
        source: the folder of a run, or a checkpoint: its folder, its name or a Checkpoint.
        data: a data set, its name or folder, or arrays (images, labels), as in `evaluate`; classes are matched by name.
        output: the page to write.
        split: the split to evaluate; by default test, or validation, or the last one.
        data_dir: folder of TensorFlow Datasets.
        on_batch: called with the number of images evaluated.

    Returns:
        The page.

    Raises:
        ValueError: for a checkpoint without a head, NaN as outputs, an unfinished run, and data without this split.

    Example:
        >>> zoo.report("runs/…", "photos/")
    """
    from zoo.analysis.page.collect import collect, read_run

    in_memory = isinstance(source, Checkpoint)
    require_writable(Path(output), ".html")
    loaded = loading.open_checkpoint(source, "report", data)
    require_head(loaded.card)
    if isinstance(data, tuple):
        dataset = evaluation_split(data, loaded.card.classes, loaded.card.preprocess.white)
    else:
        dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    folder = loaded.workdir if isinstance(source, Checkpoint) else run_folder_of(source)
    name = f"{loaded.card.model} on {dataset.name}" if in_memory else str(source)
    facts = None if folder is None else read_run(folder)
    chosen = choose_split(dataset, split)
    page = collect(loaded, dataset, title=name, split=chosen, run=facts, on_batch=on_batch)
    write_atomically(Path(output), render(page))
    return Path(output)


def choose_split(dataset: Dataset, name: str = "") -> str:
    """Return the split of this name; by default test, or validation, or the last one.

    Raises:
        ValueError: if there is no such split.
    """
    if not name:
        return next((part for part in ("test", "validation") if part in dataset.splits), list(dataset.splits)[-1])
    split = canonical_split(name) or name
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name}: no split {name!r}; choose from {', '.join(dataset.splits)}")
    return split


def write_run_page(folder: Path, checkpoint: Checkpoint, dataset: Dataset) -> Path:
    """Write report.html into the folder of a finished run."""
    from zoo.analysis.page.collect import collect, read_run

    page = collect(checkpoint, dataset, title=folder.name, split=choose_split(dataset), run=read_run(folder))
    write_atomically(folder / PAGE, render(page))
    return folder / PAGE


def render(data: PageData) -> str:
    """Return the page as HTML."""
    from zoo.analysis.page.html import document, element
    from zoo.analysis.page.sections import SECTIONS
    from zoo.analysis.page.style import STYLE

    sections: list[Markup] = []
    links: list[Markup] = []
    for key, title, function in SECTIONS:
        content = function(data)
        if content is None:
            continue
        sections.append(
            element("section", element("h2", title, id=f"{key}-title"), content, id=key,
                    aria_labelledby=f"{key}-title")
        )  # fmt: skip
        links.append(element("li", element("a", title, href=f"#{key}")))
    about = f"Report of a JAX functional model zoo; {data.evaluation.result.examples:,} images"
    return document(
        f"{data.title}: report",
        STYLE,
        element("a", "Skip to the results", href="#summary", class_="skip"),
        element("header", element("h1", data.title), element("p", about, class_="soft")),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", sections),
        element("footer", element("p", "Everything on this page is in this file; it loads nothing from elsewhere.")),
    )


def page_writer() -> PageWriter | None:
    """Return the function that writes the page of a run; None if ZOO_REPORT is 0 in the environment."""
    return None if os.environ.get("ZOO_REPORT") == "0" else write_run_page
