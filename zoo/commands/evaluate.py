"""`zoo eval`: every metric of a checkpoint on a split of a data set."""

import argparse

from zoo.commands import count, counter, one_line, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder")
    parser.add_argument("--data", metavar="DATA", help="default: what it was trained on")
    parser.add_argument("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its data")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--limit", metavar="N", type=count, default=0, help="use at most N records")
    parser.add_argument("--batch-size", metavar="N", type=count, default=256, help="changes nothing but the speed")
    parser.add_argument("--json", action="store_true", help="every number, the confusion matrix too, as JSON")


def run(options: argparse.Namespace) -> int:
    start_jax()
    import json

    from zoo import api
    from zoo.data.sources import open_dataset
    from zoo.training import metrics

    loaded = api.load(options.checkpoint)
    data = options.data or (loaded.card.data or {}).get("source")
    if not data:
        raise ValueError(f"{options.checkpoint}: the card does not say what it was trained on; give --data")
    if options.batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    try:
        dataset = open_dataset(data, options.data_dir)
    except (ValueError, OSError) as error:
        if options.data:
            raise
        raise ValueError(f"{options.checkpoint} was trained on {data!r}; give --data ({one_line(error)})") from None
    result = api.evaluate(
        loaded, dataset, options.split, limit=options.limit, batch_size=options.batch_size,
        on_batch=counter("evaluated"),
    )  # fmt: skip
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{options.checkpoint} on {data}, {options.split} split, single crop")
        print(metrics.format_report(result))
    return 0
