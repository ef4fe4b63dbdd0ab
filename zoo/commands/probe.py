"""`zoo probe`: a linear classifier on a checkpoint's features."""

import argparse

from zoo.commands import start_jax
from zoo.commands.features import add_extraction, extract


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT|FILE.npz", help="a checkpoint, or a file of `zoo features`")
    add_extraction(parser)
    parser.add_argument("--svm", action="store_true", help="a linear SVM instead of a softmax")
    parser.add_argument("--json", action="store_true", help="every number, the confusion matrix too, as JSON")


def run(options: argparse.Namespace) -> int:
    start_jax()
    import json

    from zoo.analysis import probe
    from zoo.inference import metrics

    if options.checkpoint.lower().endswith(".npz"):
        given = {"--data": options.data, "--data-dir": options.data_dir, "--limit": options.limit,
                 "--at": options.at != "features", "--pool": options.pool != "mean"}  # fmt: skip
        if any(given.values()):
            flags = ", ".join(flag for flag, value in given.items() if value)
            raise ValueError(f"{options.checkpoint} has its features already; {flags} would change nothing")
        found = probe.load_features(options.checkpoint)
    else:
        found = extract(options, None)
    kind = "svm" if options.svm else "softmax"
    probed = probe.probe(found, kind)
    if options.json:
        print(json.dumps(probed.metrics, indent=1))
        return 0
    print(
        f"linear {kind} on {found.about}; C {probed.strength:g} per 1,000 examples, by {probed.folds}-fold "
        f"cross-validation on train and validation ({100 * probed.cross_validated:.2f} %); test split:"
    )
    print(metrics.format_report(probed.metrics))
    return 0
