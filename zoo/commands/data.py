"""`zoo data`: inspect a data set before training on it.

Contact sheets are drawn in the user's cache folder unless a file is named, so that inspecting data leaves no files in
the current folder.
"""

import argparse
import hashlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands import count, default_file
from zoo.files import require_writable
from zoo.text import error_line

if TYPE_CHECKING:
    from zoo.training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "data", metavar="DATA", help="Folder of class folders, table, tar shards, tfds:NAME, …, as in zoo train --data."
    )
    add("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    add("--sheet", metavar="FILE.png", help="Contact sheet of each class (default: a file in the cache folder).")
    add("--augmented", metavar="FILE.png", nargs="?", const="", help="Also draw augmented training images.")
    add("--augment", metavar="OPS", help="With --augmented: operations, as in zoo train (default: the recipe's).")
    add("--recipe", metavar="NAME", help="With --augmented: recipe (default: chosen by model and data).")
    add("--image-size", metavar="PIXELS", type=count, default=0,
        help="With --augmented: side of the input; 0: the median image, at most 224.")  # fmt: skip
    add("--suspects", metavar="CKPT",
        help="Find wrong labels, and near-duplicates across splits, by the features of this checkpoint.")  # fmt: skip
    add("--suspects-sheet", metavar="FILE.png", help="Sheet of the suspects (default: a file in the cache folder).")
    add("--suspects-csv", metavar="FILE.csv", help="Table of the suspects (default: a file in the cache folder).")
    add("--workers", metavar="N", type=count, default=None, help="Threads that decode images (default: one per core).")
    add("--json", action="store_true", help="Print all figures and files as JSON.")


def run(options: argparse.Namespace) -> int:
    import json

    from zoo.data.inspect import survey
    from zoo.data.sources.listing import Listing, describe_left_out, open_listing
    from zoo.data.sources.open import open_source

    for path in filter(None, (options.sheet, options.augmented, options.suspects_sheet)):
        require_writable(Path(path), ".png")
    if options.suspects_csv:
        require_writable(Path(options.suspects_csv), ".csv")
    if not options.suspects and (options.suspects_sheet or options.suspects_csv):
        raise ValueError("--suspects-sheet and --suspects-csv need --suspects CKPT, the checkpoint that gives features")
    source = open_source(options.data, options.data_dir)
    if isinstance(source, Listing):
        scanned = source.scan(options.workers)
        dataset = open_listing(source, scanned)
        figures = survey.survey(dataset, source, scanned)
    else:
        dataset = source
        figures = survey.survey(dataset)
    if options.data_dir:
        figures["command"] += f" --data-dir {shlex.quote(options.data_dir)}"
    if not options.json:
        print("\n".join([*survey.describe(figures), *describe_left_out(dataset)]))
    sheets, lines = _draw_sheets(options, dataset, figures)
    if options.suspects:
        files, found = _find_suspects(options, dataset)
        sheets, lines = {**sheets, **files}, [*lines, *found]
    if options.json:
        print(json.dumps({**figures, **sheets}, indent=1))
    else:
        print("\n".join([*lines, f"try: {figures['command']}"]))
    return 0


def _draw_sheets(options: argparse.Namespace, dataset: Any, figures: Any) -> tuple[dict[str, str], list[str]]:
    """Draw the contact sheet and, if requested, the augmented one; return their files by name, and lines on them."""
    from zoo.data.inspect.contact_sheet import contact_sheet

    files: dict[str, str] = {}
    lines = []
    try:
        sheet = _sheet_file(options.sheet, options.data, "contact-sheet")
        contact_sheet(dataset, sheet)
        files["contact_sheet"] = str(sheet)
        lines.append(f"contact sheet: {sheet}")
    except OSError as error:  # the default sheet is optional: the cache folder may not be writable
        if options.sheet:
            raise
        lines.append(f"contact sheet: not drawn ({error_line(error)}); name a file with --sheet FILE.png")
    if options.augmented is not None:
        sheet = _sheet_file(options.augmented, options.data, "augmented")
        lines.append(f"augmented: {sheet} ({_draw_augmented(options, dataset, figures, sheet)})")
        files["augmented"] = str(sheet)
    return files, lines


def _find_suspects(options: argparse.Namespace, dataset: Any) -> tuple[dict[str, str], list[str]]:
    """Find suspects, and write their sheet and table; return the files by name, and lines on them."""
    from zoo.commands import counter, start_jax

    start_jax()
    from zoo.analysis.suspects import describe, find_suspects

    suspects = find_suspects(options.suspects, dataset, on_batch=counter("features of images"))
    sheet = _sheet_file(options.suspects_sheet, options.data, "suspects")
    table = _sheet_file(options.suspects_csv, options.data, "suspects", ".csv")
    suspects.draw(sheet)
    suspects.write_csv(table)
    lines = [*describe(suspects), f"suspects: {sheet}, {table}"]
    return {"suspects_sheet": str(sheet), "suspects_csv": str(table)}, lines


def _sheet_file(requested: str | None, data: str, kind: str, suffix: str = ".png") -> Path:
    """Return the requested file, or else one for these data in the cache folder."""
    if requested:
        return Path(requested)
    path = Path(data).expanduser()
    digest = hashlib.sha256(str(path.resolve() if path.exists() else data).encode("utf-8", "replace")).hexdigest()[:8]
    word = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-") or "data"
    return default_file(f"{word[:60]}-{digest}-{kind}{suffix}")


def _draw_augmented(options: argparse.Namespace, dataset: Any, figures: Any, file: Path) -> str:
    """Draw the augmented sheet and return the names of the operations."""
    from zoo.commands import start_jax

    start_jax()
    from zoo.data.images.measure import preprocess_for
    from zoo.data.inspect.contact_sheet import augmented_sheet
    from zoo.training.recipe import parse_field

    if "train" not in dataset.splits:
        raise ValueError(f"{options.data}: --augmented needs a train split; it has {', '.join(dataset.splits)}")
    suggestion = figures["suggestion"]
    operations = options.augment
    if operations is None and not options.recipe:
        operations = suggestion.get("--augment")
    if operations is not None:
        augment = parse_field("augment", operations)
    else:
        augment = _recipe(options.recipe, suggestion, options.data).augment
    median = figures["sizes"].get("median", [224, 224])
    side = options.image_size or min(224, *median)
    try:
        augmented_sheet(dataset, preprocess_for(dataset, (side, side)), augment, file)
    except ValueError as error:
        raise ValueError(f"--augmented: {error_line(error)}") from None
    return "; ".join(augment) or "the recipe does not augment"


def _recipe(name: str | None, suggestion: Mapping[str, str], data: str) -> "Recipe":
    """Return the recipe of this name, or the one with which the suggested command trains."""
    from zoo import loading
    from zoo.pretrained.names import shipped
    from zoo.training import finetune
    from zoo.training.recipes import default_recipe, find_recipe

    if name:
        return find_recipe(name)
    if "--model" in suggestion:
        return find_recipe(default_recipe(suggestion["--model"], data))
    init = suggestion.get("--init")
    if init in shipped():
        return finetune.resolve_recipe(None, loading.open_init(init), "", data)
    return find_recipe("fine-tune")
