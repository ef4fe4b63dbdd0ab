"""Figures of a run, as PNG: learning curves and the confusion matrix.

They use matplotlib's objects, never pyplot, so drawing changes no global state and needs no display. Files are written
atomically, and the same numbers give the same bytes.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import fonts
from zoo.files import atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VALIDATION, GREY, TEXT, GRID = "#4c78a8", "#e4572e", "#8a8a8a", "#333333", "#cfcfcf"
#: Maximum number of classes whose counts are written into the cells of the confusion matrix.
MAX_CLASSES_WITH_COUNTS = 20


def draw_curves(
    history: Sequence[Mapping[str, Any]], path: str | Path, *, best_step: int | None = None, title: str = ""
) -> None:
    """Draw loss and accuracy on the training and validation splits over the course of training.

    Args:
        history: rows with "step" and, if known, "epoch", "train_loss", "train_accuracy", "validation_loss" and
            "validation_accuracy" (accuracies in [0, 1]).
        path: the PNG to write.
        best_step: the step of the best checkpoint, marked in both panels.
        title: title of the figure.
    """
    figure = new_figure(9, 3.8, gap=0.06)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    from matplotlib.ticker import MaxNLocator

    by_epoch = all(row.get("epoch") is not None for row in history)
    position = {row["step"]: row["epoch"] if by_epoch else row["step"] for row in history}
    panels = [("loss", "loss", 1.0), ("accuracy", "accuracy (%)", 100.0)]
    for axes, (name, label, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        drawn = []
        for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
            rows = [row for row in history if _is_known(row, f"{split}_{name}")]
            points = [(position[row["step"]], unit * row[f"{split}_{name}"]) for row in rows]
            if not points:
                continue
            drawn.append(points)
            x, y = zip(*points, strict=True)
            few = len(points) < 25
            axes.plot(x, y, color=colour, label=split, lw=1.8, marker="o" if few else None, ms=3.5, clip_on=not few)
            best = [value for place, value in points if split == "validation" and place == position.get(best_step)]
            if best:
                label_text = f"best: {best[0]:.2f} %" if name == "accuracy" else f"best: {best[0]:.4g}"
                axes.plot(
                    position[best_step], best[0], "o", ms=8, mfc="white", mec=colour, mew=2, label=label_text, zorder=5
                )
        if best_step in position:
            axes.axvline(position[best_step], color=GREY, lw=1, ls=(0, (4, 3)), zorder=0)
        values = [y for points in drawn for _, y in points if y > 0]
        if name == "loss" and values and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        if all(float(x).is_integer() for x in position.values()):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        _style_axes(axes, "epoch" if by_epoch else "step", label)
        if drawn:
            axes.legend(
                frameon=False,
                fontsize=9,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=3,
                borderaxespad=0.2,
                handlelength=1.5,
                columnspacing=1.2,
            )
    save_figure(figure, path)


def draw_runs(labelled: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], path: str | Path) -> None:
    """Draw the validation loss and accuracy of several runs over their epochs.

    Args:
        labelled: (label, rows of metrics.jsonl) of each run.
        path: the PNG to write.
    """
    fonts.import_matplotlib()
    from matplotlib import colormaps

    figure = new_figure(11, 4 + 0.17 * max(0, len(labelled) - 8), gap=0.06)
    colours: list[Any] = [TRAIN, VALIDATION, "#2a7f62", "#7b5ea7", "#b8860b", "#3b9ab2", "#8c564b", "#555555"]
    if len(labelled) > len(colours):
        colours = [colormaps["turbo"](0.03 + 0.94 * n / (len(labelled) - 1)) for n in range(len(labelled))]
    panels = [("loss", "validation loss", 1.0), ("accuracy", "validation accuracy (%)", 100.0)]
    for axes, (name, text, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        values, lines = [], []
        for (_, history), colour in zip(labelled, colours, strict=False):
            rows = [row for row in history if _is_known(row, f"validation_{name}") and row.get("epoch") is not None]
            x, y = [row["epoch"] for row in rows], [unit * row[f"validation_{name}"] for row in rows]
            values += y
            style: dict[str, Any] = {"marker": "o", "ms": 3} if len(x) < 25 else {}
            lines += axes.plot(x, y, color=colour, lw=1.5, **style)
        if name == "loss" and values and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        _style_axes(axes, "epoch", text)
    labels = [_truncate(label, 50) for label, _ in labelled]
    add_legend(axes, lines, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save_figure(figure, path)


def draw_range_test(
    rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggestions: Mapping[str, float],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Draw the loss over the learning rate, with the suggested rates.

    Args:
        rates: learning rates [N].
        losses: losses of the batches [N].
        smoothed: smoothed losses [N].
        suggestions: rule -> learning rate.
        path: the PNG to write.
        title: title of the figure.
    """
    figure = new_figure(7, 4)
    axes: Axes = figure.subplots()
    axes.plot(rates, losses, color=TRAIN, lw=0.8, alpha=0.35, label="loss of a batch")
    axes.plot(rates, smoothed, color=TRAIN, lw=1.8, label="smoothed")
    for (rule, rate), colour, marker in zip(
        suggestions.items(), (VALIDATION, "#2a7f62", "#7b5ea7"), "osD", strict=False
    ):
        height = float(np.interp(np.log(rate), np.log(rates), smoothed))
        axes.plot(rate, height, marker, ms=8, mfc="white", mec=colour, mew=2, label=f"{rule}: {rate:.2g}", zorder=5)
    axes.set_xscale("log")
    low, high = (
        float(min(np.min(smoothed), np.quantile(losses, 0.1))),
        float(np.max(smoothed[: max(len(smoothed) // 2, 1)])),
    )
    margin = max(0.15 * (high - low), 1e-3)
    axes.set_ylim(low - 0.5 * margin, high + 2 * margin)  # the end of the curve diverges
    _style_axes(axes, "learning rate", "loss")
    axes.legend(frameon=False, fontsize=9)
    if title:
        axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    save_figure(figure, path)


def draw_confusion(
    confusion: np.ndarray | Sequence[Sequence[int]], class_names: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Draw the confusion matrix, each row coloured by its shares, with counts or, for many classes, the top mistakes.

    Args:
        confusion: counts [K, K], rows true and columns predicted.
        class_names: K names; long ones are shortened.
        path: the PNG to write.
        title: title of the figure.
    """
    fonts.import_matplotlib()
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion, np.int64)
    classes = len(counts)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    names = [_truncate(name, 18) for name in class_names]
    # Beyond a hundred classes there is no room for names; numbers are shown instead.
    ticks = range(0, classes, 1 if classes <= 60 else 2 if classes <= 100 else 100 if classes > 400 else 20)
    labels = [names[i] if classes <= 100 else str(i) for i in ticks]
    longest = max(len(label) for label in labels)
    has_counts = classes <= MAX_CLASSES_WITH_COUNTS
    side = max(3.0, 0.42 * classes) if has_counts else 6.0
    margin = 0.085 * longest + 0.6
    figure = new_figure(side + margin + (0.6 if has_counts else 3.6), side + margin)
    axes: Axes = figure.subplots()
    # The square root makes a few mistakes in a hundred visible.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    size = 9 if has_counts or classes > 100 else 5.5 if classes > 40 else 7
    axes.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    # A character is about 0.6 of the font size wide; labels that would touch are turned.
    room = side / max(len(labels), 1) * 72 / (0.6 * size)
    axes.set_xticks(ticks, labels, fontsize=size, rotation=90 if longest + 1 > room else 0, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted", color=TEXT)
    axes.set_ylabel("true", color=TEXT)
    if title:
        axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    if has_counts:
        for edge in range(classes + 1):
            axes.axhline(edge - 0.5, color=GRID, lw=0.8, clip_on=False)
            axes.axvline(edge - 0.5, color=GRID, lw=0.8, clip_on=False)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.35 else "#333333"
            text = f"{counts[i, j]}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9 if len(text) < 5 else 7)
    else:
        lines = [
            f"{fonts.isolate(names[i])} → {fonts.isolate(names[j])}: {counts[i, j]:,} of {support[i, 0]:,}"
            for i, j in _top_mistakes(counts, 20)
        ]
        text = "\n".join(["most frequent mistakes", "(true → predicted)", "", *(lines or ["none"])])
        style: dict[str, Any] = {"fontsize": 8, "linespacing": 1.5, "color": "#333333", "parse_math": False}
        axes.text(1.03, 1, text, transform=axes.transAxes, va="top", **style)
    save_figure(figure, path)


def new_figure(width: float, height: float, gap: float = 0.02) -> "Figure":
    """Return a blank figure; sizes in inches, the gap between panels as a fraction of the width."""
    fonts.import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=gap)
    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def add_legend(owner: Any, handles: Sequence[Any], labels: Sequence[str], **style: Any) -> None:
    """Add a legend of names from elsewhere to axes or a figure, each as it is written.

    Args:
        owner: the axes or the figure.
        handles: what the labels name.
        labels: one for each; matplotlib itself would leave out those that begin with "_" and read "$" as mathematics.
        **style: further arguments of `legend`.
    """
    legend = owner.legend(handles, [str(number) for number in range(len(handles))], frameon=False, **style)
    for entry, label in zip(legend.get_texts(), labels, strict=True):
        entry.set_parse_math(False)
        entry.set_text(label)


def _style_axes(axes: "Axes", x: str, y: str) -> None:
    """Apply the common style of all curves."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _is_known(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return value is not None and math.isfinite(value)


def _top_mistakes(counts: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Return the (true, predicted) cells off the diagonal with the highest counts, in descending order."""
    off_diagonal = counts - np.diag(np.diag(counts))
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:limit]
    return [
        (int(i), int(j))
        for i, j in zip(*np.unravel_index(order, off_diagonal.shape), strict=True)
        if off_diagonal[i, j] > 0
    ]


def _truncate(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def choose_fonts(figure: "Figure") -> None:
    """Give texts that DejaVu Sans has no letters for other installed fonts, or spell them out."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    spelt_out = False
    for axis in figure.findobj(Axis):
        if not isinstance(axis, Axis) or not isinstance(axis.get_major_locator(), FixedLocator):
            continue
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if (spellings := [fonts.spell_out(label) for label in labels]) != labels:
            axis.set_ticklabels(spellings)
            spelt_out = True
    for text in figure.findobj(Text):
        content = text.get_text() if isinstance(text, Text) else ""
        if fonts.has_all(content):
            continue
        spelling = fonts.spell_out(content)
        spelt_out |= spelling != content
        text.set_text(spelling)
        text.set_fontfamily(["DejaVu Sans", *(font.family for font in fonts.fonts_for(content))])
    if spelt_out:
        figure.text(0, -0.01, fonts.ADVICE, fontsize=7, color=GREY, va="top")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write the PNG atomically: under a temporary name first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    choose_fonts(figure)
    with warnings.catch_warnings(), atomic_writer(path, durable=False, unique=True) as stream:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such as those of an unassigned letter
        figure.savefig(stream, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.1)
