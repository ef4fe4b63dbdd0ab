"""`zoo eval`: evaluate a checkpoint on a split of a data set."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from zoo.commands import add_allow_nonfinite, count, counter, json_text, start_jax
from zoo.files import require_writable
from zoo.host_memory import release_freed_memory
from zoo.text import error_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument("--data", metavar="DATA", help="Data set (default: the one it was trained on).")
    parser.add_argument("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    parser.add_argument(
        "--split", metavar="NAME", default="", help="Split: train, validation, test or all (default: test)."
    )
    parser.add_argument(
        "--limit", metavar="N", type=count, default=0, help="Use at most N records of each split; 0: all."
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=count,
        default=256,
        help="Images per batch (default: 256); affects speed and memory only.",
    )
    parser.add_argument(
        "--tta", metavar="VIEWS", default="", help="Average over views: flip, five-crop, ten-crop, multi-scale, shift."
    )
    parser.add_argument(
        "--image-size", metavar="PIXELS", type=count, default=0, help="Side of the input; 0: as trained."
    )
    parser.add_argument("--json", action="store_true", help="Print all metrics as JSON, with the confusion matrix.")
    parser.add_argument("--wrong", metavar="FILE.png", help="Draw the mistakes with the highest loss, at most 100.")
    parser.add_argument(
        "--csv", metavar="FILE.csv", help="Write file, truth, prediction, probability and loss of every image."
    )
    add_allow_nonfinite(parser)


def run(options: argparse.Namespace) -> int:
    for path, suffix in ((options.wrong, ".png"), (options.csv, ".csv")):
        if path:
            require_writable(Path(path), suffix)
    start_jax()
    from zoo import api, loading
    from zoo.data.dataset import with_classes
    from zoo.data.images.tta import check_views
    from zoo.inference import evidence, metrics
    from zoo.inference.predict import require_head
    from zoo.pretrained.names import names_checkpoint

    if options.data and names_checkpoint(options.data) and not names_checkpoint(options.checkpoint):
        line = shlex.join(["zoo", "eval", options.data, "--data", options.checkpoint])
        raise ValueError(f"{options.checkpoint}: is not a checkpoint, but --data is one; exchange them: {line}")
    loaded = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite)
    require_head(loaded.card)
    if is_unfinished(options.checkpoint):
        print(f"{options.checkpoint}: the run is not finished; this is its best checkpoint so far", file=sys.stderr)
    if options.batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    if options.tta:
        check_views(options.tta, loaded.card.preprocess)
    dataset = open_data_of(options.checkpoint, loaded.card, options.data, options.data_dir)
    notes_before, dataset = dataset.notes, with_classes(dataset, loaded.card.classes)
    for note in dataset.notes[len(notes_before) :]:
        print(note, file=sys.stderr)
    split = options.split or "test"
    if not options.split and split in dataset.splits:
        for note in dataset.notes:
            if note.kind == "held_out" and note.split == split:
                print(f"{note}; --split all counts every one", file=sys.stderr)
    show = counter("evaluated")

    def on_batch(done: int) -> None:
        if done <= options.batch_size:  # the first batch: memory that compilation needed
            release_freed_memory()
        show(done)

    result = api.evaluate(
        loaded, dataset, split, limit=options.limit, batch_size=options.batch_size,
        on_batch=on_batch, tta=options.tta, image_size=options.image_size,
        per_example=bool(options.wrong or options.csv),
    )  # fmt: skip
    lines = write_examples(options, result.per_example, dataset, split) if result.per_example else []
    if options.json:
        left_out = {"left_out": list(dataset.left_out)} if dataset.left_out else {}
        print(json_text({**result.to_json(), **left_out}))
    else:
        size = f" at {options.image_size}x{options.image_size}" if options.image_size else ""
        how = f"{options.tta} views, averaged" if options.tta else "single crop"
        print(f"{options.checkpoint} on {dataset.name}, {'every' if split == 'all' else split} split, {how}{size}")
        print(metrics.format_report(result))
    lines += evidence.describe_evidence(
        result, "`zoo train --folds 5` tests on every image once.",
        "Check with `zoo info` and `zoo data` that the data suit the checkpoint.",
    )  # fmt: skip
    for line in lines:
        print(line, file=sys.stderr if options.json else sys.stdout)
    return 0


def is_unfinished(checkpoint: str) -> bool:
    """Return True for the folder of a run without results, and for the best checkpoint in it."""
    from zoo.training import run as runs

    folder = Path(checkpoint).resolve()
    folder = folder.parent if folder.name == runs.BEST else folder
    return (folder / runs.CONFIG).exists() and not runs.is_finished(folder)


def write_examples(options: argparse.Namespace, examples: Any, dataset: Any, split: str) -> list[str]:
    """Write the files of --csv and --wrong, and return a line on each of them."""
    from zoo.analysis.mistakes import draw_mistakes
    from zoo.data.dataset import all_splits, limited
    from zoo.data.sources.names import canonical_split

    lines = []
    if options.csv:
        examples.write_csv(options.csv)
        lines.append(f"{options.csv}: {len(examples):,} images")
    if options.wrong:
        shown = limited(dataset, options.limit) if options.limit else dataset
        records = all_splits(shown) if split == "all" else shown.splits[canonical_split(split) or split]
        title = f"{options.checkpoint} on {dataset.name}, {'every' if split == 'all' else split} split"
        count = draw_mistakes(records, examples, title, Path(options.wrong))
        lines.append(f"{options.wrong}: {count} of {len(examples.mistakes()):,} mistakes, highest loss first")
    return lines


def open_data_of(checkpoint: str, card: Any, data: str | None, data_dir: str | None) -> Any:
    """Open the data set given by --data, or the one the checkpoint was trained on. Report unreadable files on stderr.

    Raises:
        ValueError: if there is neither, saying what to pass.
    """
    from zoo.data.sources.listing import describe_left_out

    dataset = _open(checkpoint, card, data, data_dir)
    for line in describe_left_out(dataset):
        print(line, file=sys.stderr)
    return dataset


def _open(checkpoint: str, card: Any, data: str | None, data_dir: str | None) -> Any:
    from zoo.data.folds import as_cross_validated
    from zoo.data.sources import open_dataset

    if data:
        return open_dataset(data, data_dir)
    source = (card.data or {}).get("source")
    if not source:
        raise ValueError(f"{checkpoint}: its card names no training data; pass --data")
    if source == "arrays":
        raise ValueError(f"{checkpoint} was trained on arrays in memory; pass --data, such as a folder or .npz file")
    try:
        return as_cross_validated(open_dataset(source, data_dir), card.data)
    except (ValueError, OSError) as error:
        reason = error_line(error)
        if ":" not in source and not os.path.isabs(source) and not os.path.exists(source):
            reason += "; the path is relative to the folder in which the training was started"
        raise ValueError(
            f"{checkpoint} was trained on {source!r}, which cannot be opened; pass --data ({reason})"
        ) from None
