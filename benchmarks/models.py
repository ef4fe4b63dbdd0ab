"""Render docs/models.md from the tables of models and of published weights.

    python -m benchmarks.models

`tests/models/test_page.py` checks that the page is current.
"""

from pathlib import Path

from benchmarks.links import link_papers
from zoo.commands import amount
from zoo.models import create
from zoo.models.summary import figures
from zoo.pretrained.conventions import CIFAR_10, IMAGENET_21K, NON_COMMERCIAL
from zoo.pretrained.registry import WEIGHTS, Weights

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

HEAD = """# Models

Every model, with its figures and the published weights that `zoo.load` opens by name. Made by
`python -m benchmarks.models` from the tables in `zoo/models/` and `zoo/pretrained/`; what a model does differently from
its paper is in the docstring of its file. How well narrow forms train is in [families](families.md).

- **Parameters** are trainable ones, at the native size and the published number of classes, with auxiliary heads.
  **Multiply-adds** count convolutions and dense layers of the same network, for one image.
- **Weights**: `source:network`, then each tag with its published top-1 and top-5 accuracy in percent, single crop, and
  its image size if that is not the native one; the first tag is the default. They are figures of the source, not of
  this project: torchvision's weight enumerations, timm's results-imagenet.csv, keras.io, and akamaster's README.
  Validation split of ImageNet-1k, or test split of CIFAR-10 (akamaster). A dash means that none is published.
- † licensed CC-BY-NC-4.0: not for commercial use. ‡ 21,843 classes of ImageNet-21k.
"""


def describe_set(weights: Weights, native: tuple[int, ...]) -> str:
    """Return tag, accuracies and image size of a set of weights."""
    tag = weights.name.partition(".")[2]
    top1, top5 = (f"{value:.2f}" if value is not None else "–" for value in weights.accuracy)
    height = weights.preprocess.size[0]
    marks = "†" * (weights.licence == NON_COMMERCIAL) + "‡" * (weights.data == IMAGENET_21K)
    accuracy = "–" if weights.accuracy[0] is None else top1 if weights.data == CIFAR_10 else f"{top1} / {top5}"
    size = "" if height == native[0] else f" at {height}"
    return f"{tag}{marks} {accuracy}{size}".strip()


def describe_weights(name: str) -> str:
    """Return the text of a table cell with all published weights of a model."""
    native = create(name).input_shape
    sets: dict[str, list[str]] = {}
    for weights in WEIGHTS.values():
        if weights.model == name:
            network = weights.name.partition(".")[0]
            sets.setdefault(network, []).append(describe_set(weights, native))
    return "<br>".join(f"`{network}` {', '.join(tags)}" for network, tags in sets.items())


def page() -> str:
    """Return the text of docs/models.md."""
    families: dict[str, list[str]] = {}
    for name, totals in figures().items():
        model = create(name)
        size = "x".join(map(str, model.input_shape))
        cells = [
            name, f"{totals['parameters']:,}", amount(totals["multiply_adds"]), size, link_papers(model.paper),
            describe_weights(name),
        ]  # fmt: skip
        families.setdefault(model.family, []).append(f"| {' | '.join(cells)} |")
    columns = "| model | parameters | multiply-adds | native size | paper | published weights |\n" + "|---" * 6 + "|"
    tables = [f"## {family}\n\n{columns}\n" + "\n".join(rows) + "\n" for family, rows in families.items()]
    return "\n".join([HEAD, *tables])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
