"""`zoo data`: look at a data set before training on it.

Drawings for which no file is named go to the user's cache folder: looking at data writes nothing where people work.
"""

import argparse
import hashlib
import re
from pathlib import Path
from typing import Any

from zoo.commands import count, one_line, require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="what `zoo train --data` takes: a folder, a table, tar shards, tfds:NAME, …")
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets and datasets keep their data")
    add("--sheet", metavar="FILE.png", help="images of each class (default: a file in the cache, whose name is shown)")
    add("--augmented", metavar="FILE.png", nargs="?", const="", help="draw what augmentation makes of some images")
    add("--augment", metavar="X", help="with --augmented: operations, as for `zoo train` (default: the recipe's)")
    add("--recipe", metavar="NAME", help="with --augmented: the recipe (default: the one that suits)")
    add("--image-size", metavar="N", type=count, default=0, help="with --augmented: side in pixels; 0: the images' own")
    add("--workers", metavar="N", type=count, default=None, help="threads that look (default: one per processor)")
    add("--json", action="store_true", help="every figure and every file, as JSON")


def run(options: argparse.Namespace) -> int:
    import json

    from zoo.data.inspect import survey
    from zoo.data.inspect.contact_sheet import contact_sheet
    from zoo.data.sources.listing import Listing, describe_left_out, open_listing
    from zoo.data.sources.open import open_source

    for path in filter(None, (options.sheet, options.augmented)):
        require_writable(Path(path), ".png")
    source = open_source(options.data, options.data_dir)
    if isinstance(source, Listing):
        scanned = source.scan(options.workers)
        dataset = open_listing(source, scanned)
        figures = survey.survey(dataset, source, scanned)
    else:
        dataset = source
        figures = survey.survey(dataset)
    if not options.json:
        print("\n".join([*survey.describe(figures), *describe_left_out(dataset)]))
    drawn: dict[str, str] = {}
    lines = []
    try:
        sheet = _place(options.sheet, options.data, "contact-sheet")
        contact_sheet(dataset, sheet)
        drawn["contact_sheet"] = str(sheet)
        lines.append(f"contact sheet: {sheet}")
    except OSError as error:  # such as a home that cannot be written to: nobody asked for a sheet there
        if options.sheet:
            raise
        lines.append(f"contact sheet: not drawn ({one_line(error)}); --sheet FILE.png says where")
    if options.augmented is not None:
        made = _place(options.augmented, options.data, "augmented")
        lines.append(f"augmented: {made} ({_draw_augmented(options, dataset, figures, made)})")
        drawn["augmented"] = str(made)
    if options.json:
        print(json.dumps({**figures, **drawn}, indent=1))
    else:
        print("\n".join([*lines, f"try: {figures['command']}"]))
    return 0


def _place(asked: str | None, data: str, kind: str) -> Path:
    """The file to draw into: what was asked for, else one for these data in the cache folder. OSError for none."""
    from zoo.cache import cache_folder

    if asked:
        return Path(asked)
    path = Path(data).expanduser()
    digest = hashlib.sha256(str(path.resolve() if path.exists() else data).encode("utf-8", "replace")).hexdigest()[:8]
    word = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-") or "data"
    folder = cache_folder() / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{word[:60]}-{digest}-{kind}.png"


def _draw_augmented(options: argparse.Namespace, dataset: Any, figures: Any, file: Path) -> str:
    """Draw the second sheet; says what was done to the images."""
    from zoo.commands import start_jax

    start_jax()
    from zoo.data.images.measure import preprocess_for
    from zoo.data.inspect.contact_sheet import augmented_sheet
    from zoo.training.recipe import parse_field
    from zoo.training.recipes import default_recipe, find_recipe

    if "train" not in dataset.splits:
        raise ValueError(f"{options.data}: has no train split, so nothing of it is augmented")
    suits = figures["suggestion"]
    asked = options.augment if options.recipe or options.augment is not None else suits.get("--augment")
    if asked is not None:
        augment = parse_field("augment", asked)
    else:
        augment = find_recipe(options.recipe or default_recipe(suits["--model"], options.data)).augment
    median = figures["sizes"].get("median", [224, 224])
    side = options.image_size or min(224, *median)
    try:
        augmented_sheet(dataset, preprocess_for(dataset, (side, side)), augment, file)
    except ValueError as error:
        raise ValueError(f"--augmented: {one_line(error)}") from None
    return "; ".join(augment) or "the recipe does not augment"
