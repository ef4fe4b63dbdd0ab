"""`zoo predict`: classify images with a checkpoint."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.commands import add_allow_nonfinite, count, json_text, probability, start_jax
from zoo.files import require_writable
from zoo.text import counted, escape, first_few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="Image files or folders of images.")
    parser.add_argument("--top", metavar="N", type=count, default=5, help="Number of classes to show (default: 5).")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image and line.")
    parser.add_argument("-o", "--output", metavar="FILE.csv", help="Also write a table to this file.")
    parser.add_argument(
        "--tta", metavar="VIEWS", default="", help="Average over views: flip, five-crop, ten-crop, multi-scale, shift."
    )
    parser.add_argument(
        "--min-probability",
        metavar="P",
        type=probability,
        default=0.0,
        help="Answer unsure if the most probable class has a lower probability, such as 0.8.",
    )
    add_allow_nonfinite(parser)


def run(options: argparse.Namespace) -> int:
    start_jax()
    from zoo import loading
    from zoo.data.images.tta import check_views
    from zoo.inference.files import image_files, predict_files

    if options.output:
        require_writable(Path(options.output), ".csv")
    if options.top < 1:
        raise ValueError("--top must be at least 1")
    try:
        loaded = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite)
    except (ValueError, OSError):
        require_checkpoint_first([options.checkpoint, *options.images])
        raise
    if options.tta:
        check_views(options.tta, loaded.card.preprocess)
    files, problems, others = image_files(options.images)
    rows = []
    for file, prediction in predict_files(loaded, files, options.top, options.tta, problems):
        rows.append((str(file), prediction))
        flags = _flags(prediction, options.min_probability)
        print(json_text({"file": str(file), "top": [list(pair) for pair in prediction.top], **flags}, indent=None)
              if options.json else _line(str(file), prediction, flags), flush=True)  # fmt: skip
    if options.output:
        width = min(options.top, len(loaded.card.classes))
        write_table(Path(options.output), rows, width, options.min_probability)
    if others:
        names = first_few([escape(str(file)) for file in others], 3)
        noun = counted(len(others), "file that is not an image", "files that are not images")
        print(f"zoo predict: not used: {noun} ({names})", file=sys.stderr)
    for problem in problems:
        print(f"zoo predict: {problem}", file=sys.stderr)
    if problems and len(rows) + len(problems) > 1:
        print(
            f"zoo predict: {len(problems):,} of {len(rows) + len(problems):,} files could not be read", file=sys.stderr
        )
    return 2 if problems else 0


def require_checkpoint_first(words: Sequence[str]) -> None:
    """Raise ValueError if the first word is an image or a folder of images and another one is a checkpoint."""
    from zoo.pretrained.file_kinds import file_kind
    from zoo.pretrained.names import names_checkpoint
    from zoo.training.run import CONFIG

    path = Path(words[0]).expanduser()
    is_image = path.is_file() and file_kind(path).startswith("an image")
    if not is_image and (not path.is_dir() or (path / CONFIG).is_file() or names_checkpoint(words[0])):
        return
    if checkpoint := next(filter(names_checkpoint, words[1:]), ""):
        images = [word for word in words if word != checkpoint]
        line = shlex.join(["zoo", "predict", checkpoint, *images[:2]]) + " …" * (len(images) > 2)
        raise ValueError(
            f"{words[0]}: is {'an image' if is_image else 'not a checkpoint'}; the checkpoint comes first: {line}"
        )


def write_table(path: Path, rows: Sequence[tuple[str, Any]], width: int, min_probability: float = 0.0) -> None:
    """Write a CSV file with a row for every file: class and probability of the `width` best classes, and the flags."""
    from zoo.inference.examples import write_csv

    flags = [_flags(prediction, min_probability) for _, prediction in rows]
    names = list(flags[0]) if flags else []
    header = ["file", *(f"{column}{i}" for i in range(1, width + 1) for column in ("class", "probability")), *names]
    cells = [
        [name, *(cell for pair in prediction.top for cell in pair), *(str(flag[key]).lower() for key in names)]
        for (name, prediction), flag in zip(rows, flags, strict=True)
    ]
    write_csv(path, header, cells)


def _flags(prediction: Any, min_probability: float) -> dict[str, bool]:
    """Return what is known about how far a prediction can be trusted."""
    flags = {} if not min_probability else {"unsure": prediction.probability < min_probability}
    if prediction.unlike_training is not None:
        flags["unlike_training"] = prediction.unlike_training
    return flags


def _line(name: str, prediction: Any, flags: Mapping[str, bool]) -> str:
    parts = [f"{escape(label)} {100 * probability:.1f} %" for label, probability in prediction.top]
    if flags.get("unsure"):
        parts.insert(0, "unsure:")
    if flags.get("unlike_training"):
        parts.append("(unlike the training images)")
    return f"{escape(name)}  {'  '.join(parts)}"
