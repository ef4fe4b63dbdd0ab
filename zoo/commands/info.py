"""`zoo info`: print the layers of a model or the card of a checkpoint."""

import argparse
from typing import Any

from zoo.commands import amount
from zoo.suggest import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|CKPT", help="Name of a model, or folder or name of a checkpoint.")
    parser.add_argument("--json", action="store_true", help="Print the layers or the card as JSON.")


def run(options: argparse.Namespace) -> int:
    import json

    from zoo.models import MODELS, create
    from zoo.models.summary import layers, totals
    from zoo.pretrained import weights

    card = None
    if options.name in MODELS:
        model = create(options.name)
        shape = model.input_shape
    else:
        try:
            card = weights.read_card(options.name)
        except FileNotFoundError:
            if did_you_mean(options.name, MODELS, cutoff=0.8):
                create(options.name)  # raises with the closest names
            raise
        model, shape = create(card.model, **card.fields), card.preprocess.input_shape
    rows = layers(model, shape)
    if options.json:
        print(json.dumps(card.to_json() if card else [row._asdict() for row in rows], indent=1))
        return 0
    if card:
        print_card(options.name, card)
    width = max(len(row.path) for row in rows)
    print(f"{'layer':<{width}}  {'kind':<14}{'output':<16}{'parameters':>12}{'multiply-adds':>16}")
    for row in rows:
        output = "x".join(map(str, row.output))
        print(f"{row.path:<{width}}  {row.kind:<14}{output:<16}{row.parameters:>12,}{row.multiply_adds:>16,}")
    total, size = totals(rows), "x".join(map(str, shape))
    work = amount(total["multiply_adds"])
    print(f"\n{total['parameters']:,} parameters, {work} multiply-adds for an image of {size}")
    print(model.paper)
    return 0


def _format_metrics(result: dict[str, Any]) -> str:
    """Format accuracy and loss, or every number if there is neither."""
    from zoo.inference.predict import describe_accuracy

    parts = []
    if result.get("accuracy") is not None:
        parts.append(f"accuracy {describe_accuracy(result)}")
    if result.get("loss") is not None:
        parts.append(f"loss {result['loss']:.4f}")
    return ", ".join(parts or [f"{key} {value}" for key, value in result.items() if isinstance(value, (int, float))])


def print_card(path: str, card: Any) -> None:
    """Print a summary of a checkpoint's card."""
    more = ", …" if len(card.classes) > 10 else ""
    print(f"{path}: {card.model}, {len(card.classes)} classes ({', '.join(card.classes[:10])}{more})")
    changed = {key: value for key, value in card.fields.items() if key != "num_classes"}
    lines = {
        "fields": ", ".join(f"{key}={value}" for key, value in changed.items()),
        "preprocess": ", ".join(f"{key}={value}" for key, value in vars(card.preprocess).items()),
        "trained on": (card.data or {}).get("source"),
        "licence": card.licence,
        "source": card.source,
    }
    for split in ("validation", "test"):
        if split in card.metrics:
            lines[split] = _format_metrics(card.metrics[split])
    if published := card.metrics.get("published"):
        lines["published"] = f"{_format_metrics(published)} on {published.get('data', 'its original data')}"
    for key, value in lines.items():
        if value:
            print(f"  {key:<12}{value}")
    print()
