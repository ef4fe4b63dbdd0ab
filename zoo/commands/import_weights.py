"""`zoo import`: convert a weight file of another project to a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from zoo.addresses import is_address
from zoo.commands import add_allow_nonfinite, require_new_checkpoint, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="Weight file: .safetensors, .pt, .pth, .ckpt, .bin, .h5 or .keras, or the index of its shards.",
    )
    add(
        "--as",
        metavar="NAME",
        dest="target",
        help="Published weights (torchvision:resnet50) or a model (resnet50); by default recognised from the tensors.",
    )
    add(
        "-o",
        "--output",
        metavar="FOLDER",
        help="Checkpoint to write (default for published weights: the user's cache).",
    )
    add("--set", metavar="FIELD=VALUE", action="append", default=[], help="Set a field of the model.")
    add(
        "--classes",
        metavar="FILE|FOLDER",
        help="Class names, one per line, or the training folder, whose class folders are sorted as in torchvision.",
    )
    add("--weights", metavar="NAME", help="Set of weights to read if the file holds several, such as state_dict_ema.")
    add("--mean", metavar="NUMBERS", help="Mean per channel of pixels in [0, 1]: 0.485,0.456,0.406 (or one number).")
    add("--std", metavar="NUMBERS", help="Standard deviation per channel of pixels in [0, 1].")
    add("--size", metavar="PIXELS", help="Input size of the network, 224 or HEIGHTxWIDTH.")
    add("--resize", metavar="PIXELS", help="Size to which images are resized before the crop to --size.")
    add("--resize-mode", metavar="MODE", help="Resize rule: crop, pad or squash (ignore the aspect ratio).")
    add("--interpolation", metavar="NAME", help="Interpolation: nearest, bilinear, bicubic, lanczos or box.")
    add("--channels", metavar="ORDER", help="Channel order: L (grey), RGB or BGR.")
    add_allow_nonfinite(parser)


def run(options: argparse.Namespace) -> int:
    start_jax()
    from zoo.checkpoint import CARD
    from zoo.pretrained import weights
    from zoo.pretrained.names import cached_folder

    fields = _model_fields(options)
    if options.output and (is_address(options.output) or (Path(options.output) / CARD).exists()):
        require_new_checkpoint(options.output)
    classes = read_classes(Path(options.classes)) if options.classes else None
    with weights.on_disk(options.file) as file:
        imported = weights.import_file(
            file, options.target, fields, classes, preprocess=_preprocess_changes(options), weights=options.weights
        )
    for note in imported.notes:
        print(f"note: {note}")
    if options.output:
        folder, name = options.output, options.output
    elif published := weights.find_set(imported.card):
        folder, name = cached_folder(published), published.name
    else:
        count = len(imported.card.classes)
        raise ValueError(
            f"{options.file}: is a {imported.card.model} with {count} classes; write it as a checkpoint: -o FOLDER"
        )
    card = weights.save_imported(imported, folder, options.allow_nonfinite)
    print(f"{folder}: {card.model}, {len(card.leaves)} leaves, {len(card.classes)} classes")
    first = f"zoo predict {name} IMAGE" if card.classes else f"zoo features {name} --data FOLDER"
    print(f"use it: {first}, zoo train --init {name} --data FOLDER, or zoo.load({name!r})")
    return 0


def _model_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of --set, parsed by the types of the model's fields."""
    from zoo import models
    from zoo.training.settings import parse_assignment, parse_model_field

    fields = {}
    for assignment in options.set:
        option, name, text = parse_assignment(assignment)
        if options.target is not None and ":" in options.target:
            raise ValueError(
                f"--set {assignment}: published weights have fixed fields; give the model alone: --as MODEL"
            )
        if options.target is None:
            # Any model may be recognised; the only fields that all of them share are the head's.
            known = {"num_classes": None, "aux_heads": True}
            if name not in known:
                raise ValueError(f"--set {assignment}: needs the model, --as MODEL")
        else:
            known = models.defining_fields(models.create(options.target))
            if name not in known:
                models.create(options.target, **{name: text})  # raises, naming similar fields
                raise ValueError(f"--set {assignment}: sets how a model is run, which no checkpoint stores")
        fields[name] = parse_model_field(option, text, known[name])
    return fields


def read_classes(path: Path) -> tuple[str, ...]:
    """Return class names: the lines of a file, or the folders in a training folder, sorted as text.

    Raises:
        ValueError: naming the path, if it is not text, has no class folders, or repeats a name.
    """
    from zoo.data.dataset import require_distinct_names
    from zoo.files import read_text

    if path.is_dir():
        # The order of torchvision.datasets.ImageFolder: 0, 1, 10, 11, 2, …
        names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] not in ".@$"))
        if "train" in names and set(names) <= {"train", "val", "valid", "validation", "test"}:
            return read_classes(path / "train")
        if not names:
            raise ValueError(f"{path}: has no class folders")
        return names
    names = tuple(line.strip() for line in read_text(path, encoding="utf-8-sig").rstrip().splitlines())
    require_distinct_names(names, str(path))
    return names


def _preprocess_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of Preprocess given as options."""
    changes: dict[str, Any] = {}
    for name in ("mean", "std"):
        if (text := getattr(options, name)) is not None:
            changes[name] = _numbers(f"--{name}", text)
    for name in ("size", "resize"):
        if (text := getattr(options, name)) is not None:
            changes[name] = _pixels(f"--{name}", text)
    for name in ("resize_mode", "interpolation", "channels"):
        if (text := getattr(options, name)) is not None:
            changes[name] = text
    return changes


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise ValueError(f"{option} {text!r}: give one number, or three separated by commas: 0.485,0.456,0.406")
    if max(numbers) > 2:
        scaled = ",".join(f"{number / 255:.4g}" for number in numbers)
        raise ValueError(f"{option} {text!r}: is for pixels in [0, 1]; for pixels in 0..255 write {option} {scaled}")
    return numbers


def _pixels(option: str, text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{option} {text!r}: give a number of pixels, 224, or HEIGHTxWIDTH, 224x192")
    return int(sides[0]), int(sides[-1])
