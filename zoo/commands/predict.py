"""`zoo predict`: classify images with a checkpoint."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoo.commands import count, one_line, require_writable, start_jax
from zoo.text import csv_cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="folder or name of a checkpoint")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="image files or folders of images")
    parser.add_argument("--top", metavar="N", type=count, default=5, help="number of classes to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image and line")
    parser.add_argument("-o", "--output", metavar="FILE.csv", help="also write a table to this file")
    parser.add_argument(
        "--tta", metavar="VIEWS", default="", help="average over views: flip, five-crop, ten-crop or multi-scale"
    )


GROUP = 32  # images classified per batch of files


def run(options: argparse.Namespace) -> int:
    start_jax()
    import json

    from zoo import api
    from zoo.data.images.tta import check_views

    if options.output:
        require_writable(Path(options.output), ".csv")
    if options.top < 1:
        raise ValueError("--top must be at least 1")
    loaded = api.load(options.checkpoint)
    if options.tta:
        check_views(options.tta, loaded.card.preprocess)
    files, problems = image_files(options.images)
    rows = []
    for file, prediction in predictions(loaded, files, options.top, options.tta, problems):
        rows.append((str(file), prediction))
        print(json.dumps({"file": str(file), "top": [list(pair) for pair in prediction.top]})
              if options.json else _line(str(file), prediction), flush=True)  # fmt: skip
    if options.output:
        write_table(Path(options.output), rows, min(options.top, len(loaded.card.classes)))
    for problem in problems:
        print(f"zoo predict: {problem}", file=sys.stderr)
    if problems and len(files) + len(problems) > 1:
        print(
            f"zoo predict: {len(problems):,} of {len(rows) + len(problems):,} files could not be read", file=sys.stderr
        )
    return 2 if problems else 0


def predictions(loaded: Any, files: Sequence[Path], top: int, tta: str, problems: list[str]) -> Iterator[tuple]:
    """Yield (file, its Prediction) in order. Threads read ahead; unreadable files are appended to `problems`."""
    from zoo.data.images.decode import read_image
    from zoo.data.threads import prefetch
    from zoo.inference.evaluate import prediction_batch
    from zoo.inference.predict import classify, preprocess_image

    size = prediction_batch(len(files), GROUP)  # the same for all groups, so that one compilation serves them

    def read(file: Path, images: dict[Path, Any]) -> None:
        try:
            images[file] = preprocess_image(read_image(file), loaded.card.preprocess, tta)
        except (ValueError, OSError) as error:
            images[file] = one_line(error)

    def tasks() -> Iterator[tuple[dict[Path, Any], list[Callable[[], None]]]]:
        for start in range(0, len(files), GROUP):
            images: dict[Path, Any] = {}
            yield images, [partial(read, file, images) for file in files[start : start + GROUP]]

    for number, images in enumerate(prefetch(tasks(), None)):
        group = files[number * GROUP : (number + 1) * GROUP]
        problems += [images[file] for file in group if isinstance(images[file], str)]
        readable = [file for file in group if not isinstance(images[file], str)]
        pixels = [images[file] for file in readable]
        answers = classify(loaded.model, loaded.variables, loaded.card, pixels, top, size)
        yield from zip(readable, answers, strict=True)


def write_table(path: Path, rows: Sequence[tuple[str, Any]], width: int) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as table:
        writer = csv.writer(table)
        writer.writerow(["file", *(f"{column}{i}" for i in range(1, width + 1) for column in ("class", "probability"))])
        for name, prediction in rows:
            writer.writerow([csv_cell(name), *(csv_cell(cell) for pair in prediction.top for cell in pair)])


def _line(name: str, prediction: Any) -> str:
    return f"{name}  " + "  ".join(f"{label} {100 * probability:.1f} %" for label, probability in prediction.top)


def image_files(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images among files and folders, in the order given, and a line for every unreadable folder.

    Raises:
        FileNotFoundError: for a name that does not exist.
        ValueError: for a folder without images.
    """
    from zoo.data.sources.folders import FolderWalk

    files: list[Path] = []
    problems: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            walk = FolderWalk(name)
            inside = [path / image for image in walk.images("")]
            if not inside and not walk.unreadable:
                raise ValueError(f"{path}: has no images")
            files += sorted(inside)
            problems += [f"{path}{os.sep}{fault}" for fault in walk.unreadable]
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(dict.fromkeys(files)), problems
