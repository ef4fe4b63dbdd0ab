"""`zoo probe`: train a linear classifier on a checkpoint's features."""

import argparse
import shlex
import sys

from zoo.commands import json_text, require_new_checkpoint, start_jax
from zoo.commands.features import add_extraction, extract


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CKPT|FILE.npz",
        help="Folder of a run, a checkpoint, or a file written by `zoo features`.",
    )
    add_extraction(parser)
    parser.add_argument("--svm", action="store_true", help="Train a linear SVM instead of a softmax classifier.")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="Save network and classifier as a checkpoint for every other command."
    )
    parser.add_argument("--json", action="store_true", help="Print all metrics as JSON, with the confusion matrix.")


def run(options: argparse.Namespace) -> int:
    start_jax()
    from zoo import loading
    from zoo.analysis import probe
    from zoo.analysis.features import HEAD_INPUT, load_features
    from zoo.analysis.linear_head import attach_head, model_with_classes
    from zoo.inference import metrics
    from zoo.inference.evidence import describe_evidence
    from zoo.training.report import describe_calibration

    if options.output:
        require_new_checkpoint(options.output)
    if options.checkpoint.lower().endswith(".npz"):
        ignored = {"--data": options.data, "--data-dir": options.data_dir, "--limit": options.limit,
                 "--at": options.at != HEAD_INPUT, "--pool": options.pool != "mean"}  # fmt: skip
        if any(ignored.values()):
            flags = ", ".join(flag for flag, value in ignored.items() if value)
            raise ValueError(f"{options.checkpoint} already holds features; remove {flags}, which would have no effect")
        features = load_features(options.checkpoint)
        if options.output and (features.origin is None or not features.origin.checkpoint):
            raise ValueError(
                f"{options.checkpoint}: does not say which checkpoint computed its features; write it again with "
                "`zoo features CKPT`, or give the checkpoint instead of the file"
            )
    else:
        if options.output and options.at != HEAD_INPUT:
            raise ValueError(f"-o: a head reads the endpoint {HEAD_INPUT!r}; drop --at {options.at}")
        if options.output:
            card = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite).card
            model_with_classes(card.model, card.fields, 2)  # raises if the network has no head to train
        features = extract(options, None)
    kind = "svm" if options.svm else "softmax"
    probed = probe.probe(features, kind)
    lines = describe_evidence(
        probed.metrics, "`zoo train --folds 5` tests on every image once.",
        "Check the labels with `zoo data`, or try another layer with --at.",
    )  # fmt: skip
    lines = [
        *describe_calibration(probed.calibration, probed.uncalibrated, {probed.split: probed.metrics}),
        *lines,
    ]
    saved = ""
    if options.output and features.origin:
        command = shlex.join(["zoo", *options.words])
        headed = attach_head(
            features.origin.checkpoint, probed, options.output, command=command, allow_nonfinite=options.allow_nonfinite
        )
        saved = f"{options.output}: {headed.card.model} with the classifier as its head"
    if options.json:
        print(json_text(probed.metrics.to_json()))
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
        return 0
    print(
        f"linear {kind} on {features.about}; C {probed.strength:g} per 1,000 examples, by {probed.folds}-fold "
        f"cross-validation on {' and '.join(probed.trained_on)} ({100 * probed.cross_validated:.2f} %); "
        f"{probed.split} split:"
    )
    print("\n".join([metrics.format_report(probed.metrics), *lines]))
    if saved:
        print(f"{saved}\n   try it: zoo predict {options.output} IMAGE …")
    return 0
