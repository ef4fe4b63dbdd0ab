"""The sheet of the worst mistakes of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoo.data.inspect.grid import CUT_MIDDLE, GREEN, GREY, RED, Cell, Line, draw_grid
from zoo.data.splits import Split
from zoo.fonts import isolate
from zoo.inference.examples import Examples

MAX_MISTAKES = 100


def draw_mistakes(split: Split, examples: Examples, title: str, path: Path, limit: int = MAX_MISTAKES) -> int:
    """Draw the mistakes with the highest loss, each with its true class, prediction, probability and file.

    Args:
        split: the split that was evaluated.
        examples: the predictions for it.
        title: first line of the heading.
        path: the PNG to write.
        limit: maximum number of mistakes.

    Returns:
        The number of mistakes drawn.
    """
    wrong = examples.mistakes()
    shown = wrong[:limit]
    number = f"{len(wrong):,}" if len(wrong) else "no"
    count = f"{number} mistake{'' if len(wrong) == 1 else 's'} among {len(examples):,} images"
    which = f"; the {len(shown)} with the highest loss" if len(wrong) > len(shown) else ""

    def cells() -> Iterator[Cell]:
        for index in shown.tolist():
            example = examples[index]
            (image,) = split.read(np.array([index]))
            prediction = example.prediction or "no prediction: outputs are not finite"
            tail = f" {100 * example.probability:.1f} %" if example.prediction else ""
            yield Cell(
                [image],
                [
                    Line(example.truth, colour=GREEN),
                    Line(f"→ {isolate(prediction)}", tail, RED),
                    Line(example.file, colour=GREY, cut=CUT_MIDDLE),
                ],
            )

    legend = "Below each image: true class, → prediction and its probability, file (or number of the image)."
    draw_grid(cells(), [title, count + which + ".", *([legend] if len(shown) else [])], path)
    return len(shown)
