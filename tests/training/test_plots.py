"""Figures show the numbers that they are given, for every shape of data a run may have, and are written atomically."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zoo.training.plots import draw_confusion, draw_curves, draw_runs

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


@pytest.fixture
def figure_of(monkeypatch, tmp_path):
    """Return the matplotlib figure that a function draws, which is not rendered."""
    from matplotlib.figure import Figure

    def draw(function, *arguments, **options):
        figures = []

        def save(figure, file, **more):
            figures.append(figure)

        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", save)
            function(*arguments, tmp_path / "figure.png", **options)
        return figures[0]

    return draw


def bytes_of(folder, function, *arguments, **options):
    """Return the bytes of the PNG that a function draws, after checking it; no other file is left."""
    folder.mkdir(exist_ok=True)
    path = folder / "figure.png"
    function(*arguments, path, **options)
    assert [p.name for p in folder.iterdir()] == ["figure.png"]
    image = Image.open(path)
    image.load()
    assert image.format == "PNG" and 200 < image.width < 2000 and 150 < image.height < 2000
    assert len(image.convert("L").getcolors()) > 5  # not blank
    return path.read_bytes()


def without(*names):
    return [{key: value for key, value in row.items() if key not in names} for row in HISTORY]


# --- curves of several runs -------------------------------------------------------------------------------------------


def test_every_run_is_in_the_legend_as_it_is_called(figure_of):
    names = ["_a", "b", "$x_1$", "_"]
    figure = figure_of(draw_runs, [(name, HISTORY) for name in names])
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [entry.get_text() for entry in legend.get_texts()] == names
    assert not any(entry.get_parse_math() for entry in legend.get_texts())


# --- learning curves --------------------------------------------------------------------------------------------------


def curves_of(figure):
    """Return, for each panel, {label: (x, y)} of its lines."""
    return [
        {line.get_label(): tuple(np.asarray(line.get_data(), float).tolist()) for line in axes.get_lines()}
        for axes in figure.axes
    ]


def test_curves_show_loss_and_accuracy_in_percent(figure_of):
    figure = figure_of(draw_curves, HISTORY)
    loss, accuracy = curves_of(figure)
    epochs = [row["epoch"] for row in HISTORY]
    for panel, name, unit in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        assert set(panel) == {"train", "validation"}
        for split in panel:
            x, y = panel[split]
            assert x == epochs and y == pytest.approx([unit * row[f"{split}_{name}"] for row in HISTORY])
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [
        ("epoch", "loss"), ("epoch", "accuracy (%)"),
    ]  # fmt: skip
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear"]


def test_the_best_step_is_marked_with_its_values(figure_of):
    loss, accuracy = curves_of(figure_of(draw_curves, HISTORY, best_step=40))
    assert loss["best: 0.55"] == ([2.0], [0.55]) and accuracy["best: 85.00 %"] == ([2.0], [85.0])
    assert sum(x == [2.0, 2.0] for x, _ in loss.values()) == 1  # the vertical line
    assert set(curves_of(figure_of(draw_curves, HISTORY, best_step=41))[0]) == {"train", "validation"}


def test_without_epochs_curves_are_drawn_over_steps(figure_of):
    figure = figure_of(draw_curves, without("epoch"), best_step=20)
    assert curves_of(figure)[0]["train"][0] == [row["step"] for row in HISTORY]
    assert figure.axes[0].get_xlabel() == "step"


def test_unknown_and_infinite_values_are_left_out(figure_of):
    history = [*HISTORY[:3], {"step": 40, "epoch": 2.0}, {"step": 50, "epoch": 2.5, "train_loss": float("nan"),
                                                         "validation_loss": None, "train_accuracy": 0.5}]  # fmt: skip
    loss, accuracy = curves_of(figure_of(draw_curves, history))
    assert loss["train"][0] == loss["validation"][0] == [0.5, 1.0, 1.5]
    assert accuracy["train"][0] == [0.5, 1.0, 1.5, 2.5]
    loss, accuracy = curves_of(figure_of(draw_curves, without("validation_loss", "validation_accuracy"), best_step=10))
    assert set(loss) - {"_child1"} == {"train"}


@pytest.mark.parametrize(("smallest", "scale"), [(0.1, "linear"), (0.09, "log"), (0.0, "linear")])
def test_losses_over_a_range_of_more_than_thirty_are_on_a_log_scale(figure_of, smallest, scale):
    history = [{"step": n, "epoch": n, "train_loss": loss} for n, loss in enumerate((3.0, smallest))]
    assert figure_of(draw_curves, history).axes[0].get_yscale() == scale


def test_few_points_are_marked(figure_of):
    few, many = (
        figure_of(draw_curves, [{"step": n, "epoch": n, "train_loss": 1.0} for n in range(count)]).axes[0].get_lines()
        for count in (24, 25)
    )
    assert few[0].get_marker() == "o" and many[0].get_marker() == "None"


@pytest.mark.parametrize(
    "history",
    [HISTORY, HISTORY[:1], [HISTORY[0], {**HISTORY[1], "train_loss": 1e-6, "validation_loss": None}]],
    ids=["full", "one row", "log scale"],
)
def test_curves_are_rendered(history, tmp_path):
    bytes_of(tmp_path, draw_curves, history, best_step=10)


# --- confusion matrix -------------------------------------------------------------------------------------------------


def test_a_confusion_matrix_shows_shares_by_colour_and_counts_as_text(figure_of):
    confusion = [[8, 2, 0], [1, 3, 0], [0, 0, 0]]  # no example of the last class
    figure = figure_of(draw_confusion, confusion, ["cat", "dog", "emu"], title="a title")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.get_images()[0].get_array(), [[0.8, 0.2, 0], [0.25, 0.75, 0], [0, 0, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"), ((1, 0), "2"), ((0, 1), "1"), ((1, 1), "3"),
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "emu"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "emu"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("predicted", "true", "a title")


@pytest.mark.parametrize(
    ("classes", "ticks", "first_label", "has_counts"),
    [(20, 20, "class 0", True), (21, 21, "class 0", False), (60, 60, "class 0", False), (61, 31, "class 0", False),
     (100, 50, "class 0", False), (101, 6, "0", False), (400, 20, "0", False), (401, 5, "0", False)],
)  # fmt: skip
def test_labels_thin_out_with_the_number_of_classes(figure_of, classes, ticks, first_label, has_counts):
    names = [f"class {n}" for n in range(classes)]
    (axes,) = figure_of(draw_confusion, np.eye(classes, dtype=int), names).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (len(labels), labels[0], len(axes.texts)) == (ticks, first_label, classes if has_counts else 1)


def test_many_classes_list_the_most_frequent_mistakes(figure_of):
    counts = np.diag(np.full(30, 1000))
    counts[3, 4], counts[7, 1], counts[2, 9] = 1200, 30, 31
    names = [f"class {n}" for n in range(30)]
    (text,) = figure_of(draw_confusion, counts, names).axes[0].texts
    assert text.get_text().splitlines()[3:] == [
        "class 3 → class 4: 1,200 of 2,200", "class 2 → class 9: 31 of 1,031", "class 7 → class 1: 30 of 1,030",
    ]  # fmt: skip
    (text,) = figure_of(draw_confusion, np.eye(30, dtype=int), names).axes[0].texts
    assert text.get_text().splitlines()[3:] == ["none"]
    everywhere = figure_of(draw_confusion, np.ones((30, 30), int), names).axes[0].texts[0]
    assert len(everywhere.get_text().splitlines()) == 3 + 20


def test_long_class_names_are_shortened(figure_of):
    (axes,) = figure_of(draw_confusion, [[1, 0], [0, 1]], ["x" * 18, "y" * 19]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x" * 18, "y" * 17 + "…"]


@pytest.mark.parametrize("classes", [2, 130])
def test_confusion_matrices_are_rendered(classes, tmp_path):
    """Names outside the font, with mathematics, or too long give no error and no warning."""
    counts = np.random.default_rng(0).integers(0, 4, (classes, classes)) + np.diag(np.full(classes, 3000))
    names = [f"類 ${i}$ {{\\frac of a name without end" for i in range(classes)]
    bytes_of(tmp_path, lambda c, path: draw_confusion(c.tolist(), names, path, title="$\\frac"), counts)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    first = bytes_of(tmp_path / "a", draw_curves, HISTORY, best_step=20)
    assert bytes_of(tmp_path / "b", draw_curves, HISTORY, best_step=20) == first
    assert "Software" not in Image.open(io.BytesIO(first)).info


def test_a_failure_leaves_the_old_figure(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    old = bytes_of(tmp_path, draw_curves, HISTORY)

    def fail(self, where, **_):
        where.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(HISTORY[:2], tmp_path / "figure.png")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == old


def test_missing_folders_are_created(tmp_path):
    draw_curves(HISTORY[:2], tmp_path / "a" / "b" / "figure.png")
    assert (tmp_path / "a" / "b" / "figure.png").exists()


def test_a_backend_that_is_not_installed_does_not_matter(tmp_path):
    """Jupyter names its own backend to every process that is started from a notebook."""
    code = (
        "import os, sys; from zoo.training.plots import draw_confusion\n"
        "draw_confusion([[3, 1], [0, 2]], ['a', 'b'], 'picture.png')\n"
        "assert os.environ['MPLBACKEND'] == sys.argv[1]"
    )
    for backend in ("module://no_such_package.backend", "no-such-backend"):
        environment = {**os.environ, "MPLBACKEND": backend}
        subprocess.run([sys.executable, "-c", code, backend], cwd=tmp_path, env=environment, check=True, timeout=120)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_is_named(tmp_path, monkeypatch):
    file = tmp_path / "confusion.png"
    file.write_bytes(b"old")

    def fail(figure, stream, **options):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space") as caught:
        draw_confusion(np.eye(2, dtype=int), ["a", "b"], file, title="t")
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
