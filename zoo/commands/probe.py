"""`zoo probe`: train a linear classifier on a checkpoint's features."""

import argparse
import sys

from zoo.commands import start_jax
from zoo.commands.features import add_extraction, extract


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT|FILE.npz", help="A checkpoint, or a file written by `zoo features`."
    )
    add_extraction(parser)
    parser.add_argument("--svm", action="store_true", help="Train a linear SVM instead of a softmax classifier.")
    parser.add_argument("--json", action="store_true", help="Print all metrics as JSON, with the confusion matrix.")


def run(options: argparse.Namespace) -> int:
    start_jax()
    import json

    from zoo.analysis import probe
    from zoo.inference import metrics
    from zoo.inference.evidence import describe_evidence

    if options.checkpoint.lower().endswith(".npz"):
        ignored = {"--data": options.data, "--data-dir": options.data_dir, "--limit": options.limit,
                 "--at": options.at != "features", "--pool": options.pool != "mean"}  # fmt: skip
        if any(ignored.values()):
            flags = ", ".join(flag for flag, value in ignored.items() if value)
            raise ValueError(f"{options.checkpoint} already holds features; remove {flags}, which would have no effect")
        features = probe.load_features(options.checkpoint)
    else:
        features = extract(options, None)
    kind = "svm" if options.svm else "softmax"
    probed = probe.probe(features, kind)
    lines = describe_evidence(
        probed.metrics, "`zoo train --folds 5` tests on every image once.",
        "Check the labels with `zoo data`, or try another layer with --at.",
    )  # fmt: skip
    if options.json:
        print(json.dumps(probed.metrics.to_json(), indent=1))
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
        return 0
    print(
        f"linear {kind} on {features.about}; C {probed.strength:g} per 1,000 examples, by {probed.folds}-fold "
        f"cross-validation on train and validation ({100 * probed.cross_validated:.2f} %); test split:"
    )
    print("\n".join([metrics.format_report(probed.metrics), *lines]))
    return 0
