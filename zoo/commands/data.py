"""`zoo data`: inspect a data set before training on it.

Contact sheets are drawn in the user's cache folder unless a file is named, so that inspecting data leaves no files in
the current folder.
"""

import argparse
import hashlib
import re
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands import count, write_extra
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
    if options.augmented is None and (options.augment is not None or options.recipe or options.image_size):
        raise ValueError("--augment, --recipe and --image-size need --augmented, the sheet that they change")
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
    default = _default_name(options.data, "contact-sheet.png")
    draw = partial(contact_sheet, dataset)
    if sheet := write_extra(draw, options.sheet, default, "contact sheet", "--sheet FILE.png"):
        files["contact_sheet"] = str(sheet)
        lines.append(f"contact sheet: {sheet}")
    if options.augmented is not None:
        operations = _augmentation(options, dataset, figures)
        default = _default_name(options.data, "augmented.png")
        draw = partial(_draw_augmented, options, dataset, figures, operations)
        if sheet := write_extra(draw, options.augmented, default, "augmented", "--augmented FILE.png"):
            files["augmented"] = str(sheet)
            lines.append(f"augmented: {sheet} ({'; '.join(operations) or 'the recipe does not augment'})")
    return files, lines


def _find_suspects(options: argparse.Namespace, dataset: Any) -> tuple[dict[str, str], list[str]]:
    """Find suspects, and write their sheet and table; return the files by name, and lines on them."""
    from zoo.commands import counter, start_jax

    start_jax()
    from zoo.analysis.suspects import describe, find_suspects

    suspects = find_suspects(options.suspects, dataset, on_batch=counter("features of images"))
    sheet = write_extra(
        suspects.draw, options.suspects_sheet, _default_name(options.data, "suspects.png"), "sheet of suspects",
        "--suspects-sheet FILE.png",
    )  # fmt: skip
    table = write_extra(
        suspects.write_csv, options.suspects_csv, _default_name(options.data, "suspects.csv"), "table of suspects",
        "--suspects-csv FILE.csv",
    )  # fmt: skip
    files = {key: str(file) for key, file in (("suspects_sheet", sheet), ("suspects_csv", table)) if file}
    return files, [*describe(suspects), *([f"suspects: {', '.join(files.values())}"] if files else [])]


def _default_name(data: str, ending: str) -> str:
    """Return the name of a file about these data in the cache folder."""
    path = Path(data).expanduser()
    digest = hashlib.sha256(str(path.resolve() if path.exists() else data).encode("utf-8", "replace")).hexdigest()[:8]
    word = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-") or "data"
    return f"{word[:60]}-{digest}-{ending}"


def _augmentation(options: argparse.Namespace, dataset: Any, figures: Any) -> tuple[str, ...]:
    """Return the operations of the augmented sheet."""
    from zoo.commands import start_jax

    start_jax()
    from zoo.training.recipe import parse_field

    if "train" not in dataset.splits:
        raise ValueError(f"{options.data}: --augmented needs a train split; it has {', '.join(dataset.splits)}")
    suggestion = figures["suggestion"]
    operations = options.augment
    if operations is None and not options.recipe:
        operations = suggestion.get("--augment")
    if operations is not None:
        return tuple(parse_field("augment", operations))
    return _recipe(options.recipe, suggestion, options.data).augment


def _draw_augmented(
    options: argparse.Namespace, dataset: Any, figures: Any, operations: tuple[str, ...], file: Path
) -> None:
    """Draw the augmented sheet."""
    from zoo.data.images.measure import preprocess_for
    from zoo.data.inspect.contact_sheet import augmented_sheet

    median = figures["sizes"].get("median", [224, 224])
    side = options.image_size or min(224, *median)
    try:
        augmented_sheet(dataset, preprocess_for(dataset, (side, side)), operations, file)
    except ValueError as error:
        raise ValueError(f"--augmented: {error_line(error)}") from None


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
