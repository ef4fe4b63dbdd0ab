"""`zoo info`: print the layers of a model or the card of a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.commands import amount, json_text
from zoo.files import require_writable, write_atomically
from zoo.suggest import did_you_mean
from zoo.text import escape, first_few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME|CKPT", help="Name of a model, folder of a run, or folder or name of a checkpoint."
    )
    parser.add_argument("--json", action="store_true", help="Print the layers or the card as JSON.")
    parser.add_argument("--diagram", metavar="FILE.svg", help="Draw the network: blocks, branches and shapes.")


def run(options: argparse.Namespace) -> int:
    from zoo.models import MODELS, create
    from zoo.models.graph import trace
    from zoo.models.summary import totals
    from zoo.pretrained import weights

    if options.diagram:
        require_writable(Path(options.diagram), ".svg")

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
    graph = trace(model, shape)
    rows = graph.rows()
    size = "x".join(map(str, shape))
    if options.diagram:
        from zoo.analysis.diagram import diagram

        write_atomically(Path(options.diagram), diagram(graph, f"{options.name}, images of {size}"))
        print(options.diagram, file=sys.stderr)
    if options.json:
        print(json_text(card.to_json() if card else [row._asdict() for row in rows]))
        return 0
    if card:
        print_card(options.name, card)
    print_layers(rows)
    total = totals(rows)
    work = amount(total["multiply_adds"])
    print(f"\n{total['parameters']:,} parameters, {work} multiply-adds for an image of {size}")
    print(model.paper)
    return 0


def print_layers(rows: Sequence[Any]) -> None:
    """Print layers and operations as a table, with the inputs of those that read more than the row above."""
    width = max(len(row.path) for row in rows)
    reads, above = [], "image"
    for row in rows:
        inputs = [_shorten(path, row.path) for path in row.inputs]
        reads.append("" if row.inputs == (above,) else first_few(inputs, 4))
        above = row.path
    title = "  reads" if any(reads) else ""
    print(f"{'layer':<{width}}  {'kind':<14}{'output':<16}{'parameters':>12}{'multiply-adds':>16}{title}")
    for row, inputs_text in zip(rows, reads, strict=True):
        output = "x".join(map(str, row.output))
        counts = f"{row.parameters:>12,}{row.multiply_adds:>16,}" if row.parameters else " " * 28
        print(f"{row.path:<{width}}  {row.kind:<14}{output:<16}{counts}  {inputs_text}".rstrip())


def _shorten(path: str, reader: str) -> str:
    """Return the path of an input without the folder that it shares with its reader."""
    folder = reader.rpartition("/")[0]
    return path.removeprefix(f"{folder}/") if folder else path


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
    classes = ", ".join(map(escape, card.classes[:10]))
    print(f"{path}: {card.model}, {len(card.classes)} classes ({classes}{more})")
    changed = {key: value for key, value in card.fields.items() if key != "num_classes"}
    lines = {
        "fields": ", ".join(f"{key}={value}" for key, value in changed.items()),
        "preprocess": ", ".join(f"{key}={value}" for key, value in vars(card.preprocess).items()),
        "trained on": (card.data or {}).get("source"),
        "licence": card.licence,
        "source": card.source,
    }
    for split in ("validation", "test"):
        if card.metrics.get(split):
            lines[split] = _format_metrics(card.metrics[split])
    if card.calibration is not None:
        lines["temperature"] = f"{card.calibration.temperature:.3f}"
    if published := card.metrics.get("published"):
        lines["published"] = f"{_format_metrics(published)} on {published.get('data', 'its original data')}"
    for key, value in lines.items():
        if value:
            print(f"  {key:<12}{escape(str(value))}")
    print()
