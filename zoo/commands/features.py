"""`zoo features`: save a layer's activations for every image of a data set."""

import argparse
from typing import Any

from zoo.commands import add_allow_nonfinite, count, counter, start_jax, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    add_extraction(parser)
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="Split: train, validation or test; may be repeated (default: all).",
    )
    parser.add_argument("-o", "--output", metavar="FILE.npz", required=True, help="File to write.")


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """Add the options that `zoo probe` shares."""
    parser.add_argument("--data", metavar="DATA", help="Data set (default: the one it was trained on).")
    parser.add_argument("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    parser.add_argument(
        "--at", metavar="ENDPOINT", default="features", help="Endpoint: a stage, features (default) or logits."
    )
    parser.add_argument(
        "--pool", default="mean", metavar="POOL", help="Pooling of stages: mean over positions (default) or flatten."
    )
    parser.add_argument(
        "--limit", metavar="N", type=count, default=0, help="Use at most N records of each split; 0: all."
    )
    add_allow_nonfinite(parser)


def extract(options: argparse.Namespace, splits: list[str] | None) -> Any:
    """Compute the features selected by the options."""
    from zoo import loading
    from zoo.analysis.features import features
    from zoo.commands.evaluate import open_data_of

    loaded = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite)
    dataset = open_data_of(options.checkpoint, loaded.card, options.data, options.data_dir)
    return features(
        loaded, dataset, options.at, splits=splits, pool=options.pool, limit=options.limit, on_batch=counter("images"),
        source=options.checkpoint,
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    with writing(options.output, ".npz") as output:
        start_jax()
        features = extract(options, options.split)
        features.save(output.path)
    sizes = ", ".join(f"{name} {rows.shape[0]:,}" for name, (rows, _) in features.splits.items())
    width = next(iter(features.splits.values()))[0].shape[1]
    print(f"{options.output}: {width:,} features per image ({features.about}); {sizes}")
    return 0
