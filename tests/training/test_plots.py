"""The pictures come out whole, the same each time, and for every shape of data a run may have."""

import io

import numpy as np
import pytest
from PIL import Image

from zoo.training import plots
from zoo.training.plots import _top_mistakes, draw_confusion, draw_curves, draw_images

HISTORY = [
    {
        "step": 10 * n,
        "epoch": 0.5 * n,
        "train_loss": 2.0 / n,
        "train_accuracy": 1 - 0.5 / n,
        "validation_loss": 2.2 / n,
        "validation_accuracy": 1 - 0.6 / n,
        "learning_rate": 0.1,
    }
    for n in range(1, 9)
]


def drawn(folder, function, *args, **options):
    """The PNG's bytes, after checking that it is one and lies there alone."""
    folder.mkdir(exist_ok=True)
    path = folder / "picture.png"
    function(*args, path, **options)
    assert [p.name for p in folder.iterdir()] == ["picture.png"]
    image = Image.open(path)
    image.load()
    assert image.format == "PNG" and 200 < image.width < 2000 and 150 < image.height < 2000
    assert len(image.convert("L").getcolors()) > 5  # not blank
    return path.read_bytes()


def without(*names):
    return [{key: value for key, value in row.items() if key not in names} for row in HISTORY]


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        HISTORY[:1],
        without("epoch"),
        without("train_loss", "train_accuracy"),
        without("validation_loss", "validation_accuracy"),
        [*HISTORY[:3], {"step": 40, "epoch": 2.0}, {"step": 50, "epoch": 2.5, "train_loss": float("nan")}],
        [HISTORY[0], {**HISTORY[1], "train_loss": 1e-6, "validation_loss": None}],
    ],
    ids=["full", "one row", "no epochs", "no training", "no validation", "gaps", "log scale"],
)
def test_curves(history, tmp_path):
    drawn(tmp_path, draw_curves, history, best_step=10)


def test_the_best_step_is_marked(tmp_path):
    pictures = {drawn(tmp_path, draw_curves, HISTORY, best_step=step) for step in (None, 10, 80)}
    assert len(pictures) == 3


@pytest.mark.parametrize("classes", [2, 20, 21, 130])
def test_confusion(classes, tmp_path):
    counts = np.random.default_rng(0).integers(0, 4, (classes, classes)) + np.diag(np.full(classes, 3000))
    counts[1] = 0  # a class without examples
    # Not in the font, no mathematics, and long: no error and no warning, which the tests' settings make one.
    names = [f"類 ${i}$ {{\\frac of a name without end" for i in range(classes)]
    drawn(tmp_path, lambda c, path: draw_confusion(c.tolist(), names, path, title="$\\frac"), counts)


def test_mistakes_are_the_highest_counts_off_the_diagonal():
    assert _top_mistakes(np.array([[9, 1, 0], [5, 9, 1], [0, 7, 9]]), 3) == [(2, 1), (1, 0), (0, 1)]
    assert _top_mistakes(np.eye(3, dtype=int), 3) == []


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (5, 3), (12, 1)])
def test_images(count, channels, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_SHEET_IMAGES", 10)
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 9, channels), dtype=np.uint8)
    drawn(tmp_path, lambda x, path: draw_images(x, [f"a long $\\caption\nof {i}" for i in range(count)], path), images)


def test_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        draw_images(np.zeros((0, 4, 4, 1), np.uint8), [], tmp_path / "picture.png")


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    first = drawn(tmp_path / "a", draw_curves, HISTORY, best_step=20)
    assert drawn(tmp_path / "b", draw_curves, HISTORY, best_step=20) == first
    assert "Software" not in Image.open(io.BytesIO(first)).info


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    old = drawn(tmp_path, draw_curves, HISTORY)

    def fail(self, where, **_):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(HISTORY[:2], tmp_path / "picture.png")
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == old
