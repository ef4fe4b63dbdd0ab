"""`zoo predict`: classify images with a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.commands import count, one_line, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder or name")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", metavar="N", type=count, default=5, help="how many classes to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line")
    parser.add_argument("-o", "--output", metavar="FILE.csv", help="write a table")


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")


def run(options: argparse.Namespace) -> int:
    start_jax()
    import csv
    import json

    from zoo import api
    from zoo.data.images import read_image

    if options.output and not options.output.lower().endswith(".csv"):
        raise ValueError(f"-o {options.output}: writes a table; the name should end in .csv")
    if options.top < 1:
        raise ValueError("--top must be at least 1")
    loaded = api.load(options.checkpoint)
    files = image_files(options.images)
    rows, problems = [], []
    for start in range(0, len(files), 64):
        group, pixels = [], []
        for file in files[start : start + 64]:
            try:
                pixels.append(read_image(file))
                group.append(file)
            except (ValueError, OSError) as error:
                problems.append(one_line(error))
        predictions = loaded.predict(pixels, options.top) if pixels else []
        for file, prediction in zip(group, predictions, strict=True):
            rows.append((str(file), prediction))
            print(json.dumps({"file": str(file), "top": [list(pair) for pair in prediction.top]})
                  if options.json else _line(str(file), prediction), flush=True)  # fmt: skip
    if options.output:
        with open(options.output, "w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            width = min(options.top, len(loaded.card.classes))
            writer.writerow(["file", *(f"{what}{i}" for i in range(1, width + 1) for what in ("class", "probability"))])
            for name, prediction in rows:
                writer.writerow([name, *(cell for pair in prediction.top for cell in pair)])
    for problem in problems:
        print(f"zoo predict: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _line(name: str, prediction: Any) -> str:
    return f"{name}  " + "  ".join(f"{label} {100 * probability:.1f} %" for label, probability in prediction.top)


def image_files(names: Sequence[str]) -> list[Path]:
    """The files named, and the images in the folders named, sorted. FileNotFoundError, ValueError for none."""
    files = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{path}: has no images ({' '.join(IMAGE_SUFFIXES)})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    return files
