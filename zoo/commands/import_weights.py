"""`zoo import`: a weight file of another project as a checkpoint of ours."""

import argparse

from zoo.commands import start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help=".safetensors, .pt, .pth, .th, .h5 or .keras")
    add(
        "--as",
        metavar="NAME",
        dest="target",
        help="the known set it is (torchvision:resnet50), or its model (resnet50)",
    )
    add("-o", "--output", metavar="FOLDER", help="where to write it (default, of a known set: the user's cache)")
    add("--set", metavar="FIELD=VALUE", action="append", default=[], help="a field of the model")
    add("--classes", metavar="FILE", help="the classes' names, one a line")


def run(options: argparse.Namespace) -> int:
    start_jax()
    from pathlib import Path

    from zoo import models
    from zoo.checkpoint import CARD
    from zoo.data.dataset import require_distinct_names
    from zoo.pretrained import weights
    from zoo.training.settings import parse_model_field

    fields = {}
    for assignment in options.set:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set {assignment}: write it as field=value")
        if options.target is None or ":" in options.target:
            raise ValueError(f"--set {assignment}: needs the model, --as MODEL")
        known = models.defining_fields(models.create(options.target))
        if name not in known:
            models.create(options.target, **{name: text})  # says the nearest field
            raise ValueError(f"--set {assignment}: says how a model is run, which no checkpoint holds")
        fields[name] = parse_model_field(f"--set {name}", text, known[name])
    if options.output and (Path(options.output) / CARD).exists():
        raise ValueError(f"{options.output}: is a checkpoint already; choose another name, or remove it first")
    classes = None
    if options.classes:
        try:
            classes = tuple(Path(options.classes).read_text(encoding="utf-8").rstrip().splitlines())
        except UnicodeDecodeError:
            raise ValueError(f"{options.classes}: is not text in UTF-8") from None
        require_distinct_names(classes, options.classes)
    imported = weights.import_file(options.file, options.target, fields, classes)
    for note in imported.notes:
        print(f"note: {note}")
    if options.output:
        folder, use = Path(options.output), options.output
    elif known_set := weights.find_set(imported.card):
        folder, use = weights.cached_folder(known_set), known_set.name
    else:
        raise ValueError(f"{options.file}: say where to write the checkpoint: -o FOLDER")
    card = weights.keep(imported, folder)
    print(f"{folder}: {card.model}, {len(card.leaves)} leaves, {len(card.classes)} classes")
    print(f"use it: zoo predict {use} IMAGE, zoo train --init {use} --data FOLDER, or zoo.load({use!r})")
    return 0
