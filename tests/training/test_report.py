"""Lines printed about a run, against its plan, its rows and its results."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest
from helpers import make_plan, random_images, train

import zoo
from zoo import checkpoint
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import parse_parallelism
from zoo.training import plots, report, run
from zoo.training.recipe import Recipe

MLP = {"widths": (4,), "image_size": 8}
RECIPE = Recipe(
    epochs=2, batch_size=15, learning_rate=0.05, optimizer="sgd", schedule="linear", augment=("flip", "cutout(size=2)"),
    eval_every_epochs=0.5,
)  # fmt: skip


def dataset():
    return from_arrays(
        random_images(60, 8, 8), validation=random_images(30, 8, 8), test=random_images(21, 8, 8), name="made"
    )


def lines_of(recipe=RECIPE, **arguments):
    plan = make_plan("mlp", dataset(), recipe, fields=MLP, **arguments)
    lines: list[str] = []
    report.describe(plan, lines.append)
    return plan, lines


def test_a_run_is_described_before_it_starts():
    _, lines = lines_of(workdir="here")
    assert lines[0] == f"model: mlp, {64 * 4 + 4 + 4 * 3 + 3} parameters, images 8x8x1"
    assert lines[1] == "data: made, 3 classes; train 60, validation 30, test 21"
    (recipe,) = (line for line in lines if line.startswith("recipe: "))
    assert recipe == (
        "recipe: sgd, learning rate 0.05 (linear), 2 epochs = 8 steps of 15; flip; cutout(size=2)"
    )  # fmt: skip
    assert re.fullmatch(r"run: here on cpu \(one of 8 devices\), float32", lines[-1])
    assert not any(line.startswith("devices: ") for line in lines)


@pytest.mark.parametrize(("fields", "steps", "warned"), [({"epochs": 12.25}, 49, True), ({"epochs": 12.5}, 50, False)])
def test_few_updates_are_pointed_out(fields, steps, warned):
    plan, lines = lines_of(dataclasses.replace(RECIPE, **fields))
    assert plan.total_steps == steps
    assert any(f"Only {steps} updates" in line and "--epochs" in line for line in lines) == warned


def test_changes_that_small_data_makes_to_a_recipe_are_described():
    _, lines = lines_of(dataclasses.replace(RECIPE, batch_size=10**6, min_epoch_steps=7, augment=()))
    assert any("batch size 60 instead of 1,000,000" in line for line in lines)
    assert any("an epoch has 7 steps" in line and "--set min_epoch_steps=0" in line for line in lines)
    assert any(line.endswith("14 steps of 60; no augmentation") for line in lines)
    _, lines = lines_of(dataclasses.replace(RECIPE, batch_size=60, min_epoch_steps=1))
    assert not any("instead of" in line or "an epoch has" in line for line in lines)


def test_devices_are_described():
    recipe = dataclasses.replace(RECIPE, batch_size=16)
    plan, lines = lines_of(recipe, parallelism=parse_parallelism(mesh="data=4"))
    assert "devices: jit over data=4; 4 of 16 images per device" in lines and lines[-1].startswith("run: ")
    assert " on cpu x 4, float32" in lines[-1] and not any("sharded" in line for line in lines)
    plan, lines = lines_of(recipe, parallelism=parse_parallelism(mesh="fsdp=2"))
    assert f"      0 of {plan.num_parameters} parameters sharded, the others replicated" in lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a finished run, the plan, what it printed)."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("runs") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        fitted = train("mlp", dataset(), RECIPE, fields=MLP, workdir=folder, command="zoo train of the test")
    return fitted, make_plan("mlp", dataset(), RECIPE, fields=MLP, workdir=folder), out.getvalue().splitlines()


def test_a_row_per_evaluation(trained):
    """Every half epoch of 4 steps; the learning rate is that of the last step before the evaluation."""
    fitted, _, _ = trained
    rows = fitted.history
    assert [row["step"] for row in rows] == [2, 4, 6, 8] and [row["epoch"] for row in rows] == [0.5, 1, 1.5, 2]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.05 * (1 - step / 8) for step in (1, 3, 5, 7)])
    metrics = {"loss", "accuracy", "top5", "macro_f1", "roc_auc", "ece"}
    assert set(rows[0]) == {
        "step", "epoch", "learning_rate", "train_loss", "train_accuracy", "best",
        *(f"validation_{name}" for name in metrics),
    }  # fmt: skip
    assert all(0 <= row["train_accuracy"] <= 1 and (row["train_accuracy"] * 30) % 1 < 1e-6 for row in rows)
    best = [row["validation_accuracy"] for row in rows]
    assert rows[0]["best"]
    assert fitted.card.metrics["step"] == max(
        rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"])
    )["step"]  # fmt: skip
    assert max(best) == fitted.card.metrics["validation"]["accuracy"]


def test_rows_are_printed(trained):
    fitted, _, lines = trained
    printed = [line for line in lines if line.startswith("epoch ")]
    assert len(printed) == len(fitted.history)
    pair = r"loss ([\d.]+) accuracy ([\d.]+) %"
    pattern = rf"epoch ([\d.]+)/2  train {pair}  validation {pair}(  best)?"
    for line, row in zip(printed, fitted.history, strict=True):
        match = re.match(pattern, line)
        values = [float(text) for text in match.groups()[:5]]
        assert values == pytest.approx(
            [row["epoch"], row["train_loss"], 100 * row["train_accuracy"], row["validation_loss"],
             100 * row["validation_accuracy"]], abs=0.006,
        )  # fmt: skip
        assert bool(match[6]) == row["best"]


def test_results_are_written_and_printed(trained):
    fitted, plan, lines = trained
    results = json.loads((fitted.workdir / run.RESULTS).read_text())
    assert results["stopped"] == "all steps done" and results["best_step"] == fitted.card.metrics["step"]
    assert (results["validation"]["examples"], results["test"]["examples"]) == (30, 21)
    assert np.array(results["test"]["confusion"]).sum() == 21
    for name in ("validation", "test"):
        metrics = report.evaluate_split(plan, fitted.variables, name, _Silent(), fitted.card.calibration)
        assert metrics.to_json() == results[name]
        (line,) = (line for line in lines if line.strip().startswith(f"{name}: accuracy"))
        numbers = [float(text.replace(",", "")) for text in re.findall(r"[\d.]+\d|\d", line)]
        low, high = (100 * end for end in results[name]["accuracy_interval"])
        expected = [100 * metrics.accuracy, 95, low, high, metrics.examples, metrics.loss, 1, metrics.macro_f1]
        assert numbers == pytest.approx(expected, abs=0.051)
    few = [line for line in lines if line.startswith("Only 21 test images")]
    assert len(few) == 1 and "--folds 5" in few[0]
    epoch = results["best_step"] / 4
    assert f"all steps done; best checkpoint: epoch {epoch:.1f} (step {results['best_step']})" in lines
    assert f"checkpoint: {fitted.workdir / 'best'}" in lines
    (timing,) = (json.loads(line) for line in (fitted.workdir / run.TIMING).read_text().splitlines())
    assert timing["steps"] == [0, 8]


def test_the_card_of_the_best_checkpoint(trained):
    fitted, plan, _ = trained
    card = checkpoint.read_card(fitted.workdir / run.BEST)
    row = next(row for row in fitted.history if row["step"] == card.metrics["step"])
    assert card.metrics["validation"]["accuracy"] == row["validation_accuracy"]
    assert card.metrics["test"]["examples"] == 21 and "confusion" not in card.metrics["test"]
    assert (card.model, card.classes, card.preprocess) == ("mlp", plan.dataset.class_names, plan.preprocess)
    assert card.recipe["augment"] == ["flip", "cutout(size=2)"] and card.data["source"] == "made"
    assert card.command == "zoo train of the test" and card.source == "trained with jax-model-zoo"
    assert card.versions["jax"] and card.versions["git"] and card.licence == ""


class _Silent:
    """A display that shows nothing."""

    def show_evaluation(self, split, total):
        return lambda done: None


DATA = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8), np.arange(40) % 2


def fit_arrays(folder):
    return zoo.fit("softmax", DATA, epochs=1, image_size=6, workdir=folder)


@pytest.mark.parametrize("name", ["draw_curves", "draw_confusion"])
def test_a_figure_that_cannot_be_drawn_does_not_fail_the_run(name, tmp_path, monkeypatch, capsys):
    written = []

    def fail(*arguments, **options):
        written.append((tmp_path / "run" / "results.json").read_text())
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(plots, name, fail)
    fitted = fit_arrays(tmp_path / "run")
    assert json.loads(written[0])["test"]["examples"] == len(fitted.card.classes) * 4
    lines = [line for line in capsys.readouterr().out.splitlines() if "no fonts" in line]
    assert len(lines) == 1 and "not drawn" in lines[0]
    assert fit_arrays(tmp_path / "run").card == fitted.card  # the same command again: finished


@pytest.mark.parametrize("missing", [["curves.png"], ["confusion.png"], ["curves.png", "confusion.png"]])
def test_figures_that_a_killed_process_left_out_are_drawn_by_the_same_command(missing, finished, capsys):
    before = {name: (finished / name).read_bytes() for name in ("curves.png", "confusion.png")}
    for name in missing:
        (finished / name).unlink()
    fit_arrays(finished)
    assert "is finished" in capsys.readouterr().out
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_the_results_of_many_classes_are_drawn_as_those_of_few(finished, capsys):
    picture, results = (finished / "confusion.png").read_bytes(), (finished / run.RESULTS).read_text()
    sparse = json.loads(results)
    sparse["test"]["confusion"] = [
        {str(column): count for column, count in enumerate(row) if count} for row in sparse["test"]["confusion"]
    ]
    try:
        (finished / run.RESULTS).write_text(json.dumps(sparse))
        (finished / "confusion.png").unlink()
        fit_arrays(finished)
        assert "is finished" in capsys.readouterr().out and (finished / "confusion.png").read_bytes() == picture
    finally:
        (finished / run.RESULTS).write_text(results)


def test_all_rows_are_on_disk_before_the_results(tmp_path, monkeypatch):
    synced, fsync = {}, os.fsync

    def record(descriptor):
        status = os.fstat(descriptor)
        synced.pop(status.st_ino, None)
        synced[status.st_ino] = status.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    fit_arrays(tmp_path / "run")
    rows, results = ((tmp_path / "run" / name).stat() for name in (run.METRICS, run.RESULTS))
    order = list(synced)
    assert synced[rows.st_ino] == rows.st_size and order.index(rows.st_ino) < order.index(results.st_ino)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit_arrays(folder)
    return folder


def test_freezing_without_a_checkpoint_is_pointed_out():
    _, lines = lines_of(dataclasses.replace(RECIPE, freeze=("body",)))
    assert any("random initial values" in line and "--init" in line for line in lines)
