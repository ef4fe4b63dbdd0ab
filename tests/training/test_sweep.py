"""Sweeps and comparisons: ordinary runs, chosen on validation, shown in one table."""

import csv
import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line, random_images, run_command
from PIL import Image

from zoo.analysis.compare import format_value
from zoo.training import loop, request, run, sweep
from zoo.training.plan import Plan
from zoo.training.recipe import Recipe
from zoo.training.sweep import Trial, describe, draws, format_table, grid, parse_axis, ranked


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two learning rates with two seeds each, run once from the command line."""
    root = tmp_path_factory.mktemp("sweep")
    images, labels = random_images(240, 8, 8)
    images[np.arange(240), 0, labels] = 255
    np.savez(root / "data.npz", x_train=images, y_train=labels)
    return root


def words_of(root):
    return (
        "sweep", "--model", "softmax", "--data", root / "data.npz", "--epochs", 1, "--batch-size", 40, "--set",
        "learning_rate=0.02,1e-9", "--seeds", 2, "--workdir", root / "runs", "-o", root / "t.csv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(swept):
    from zoo import cli

    assert cli.main([str(word) for word in words_of(swept)]) == 0
    return swept


def test_a_grid_has_every_combination_and_lists_are_separated_by_bars():
    axes = [parse_axis("learning_rate=0.1, 0.01"), parse_axis("augment=none|flip,pad_crop(pad=4)")]
    assert grid(axes) == [
        {"learning_rate": rate, "augment": ops} for rate in ("0.1", "0.01") for ops in ("none", "flip,pad_crop(pad=4)")
    ]
    assert grid([]) == [{}]


def test_draws_stay_in_their_ranges_and_can_be_extended():
    axes = [parse_axis("learning_rate=1e-4..1e-1"), parse_axis("batch_size=8..64"), parse_axis("optimizer=sgd,adam")]
    few, many = draws(axes, 5, 1), draws(axes, 60, 1)
    assert many[:5] == few and len(many) == 60
    rates = np.array([float(drawn["learning_rate"]) for drawn in many])
    assert ((rates >= 1e-4) & (rates <= 1e-1)).all() and 0.25 < (rates < 3.2e-3).mean() < 0.75  # in the logarithm
    assert all(8 <= int(drawn["batch_size"]) <= 64 for drawn in many)
    assert {drawn["optimizer"] for drawn in many} == {"sgd", "adam"}
    assert len(draws([parse_axis("optimizer=sgd,adam")], 10)) == 2  # no setting twice


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["learning_rate"], "field=value"), (["learning_rate=1..x"], "1e-4..1e-1"), (["learning_rate=2..1"], "grow"),
        (["learning_rate="], "values"), (["epochs=1,1"], "twice"), (["epochs=1..2"], "--random"),
        (["epochs=1", "epochs=2"], "twice"), (["seed=1,2"], "--seeds"),
    ],
)  # fmt: skip
def test_wrong_axes_are_named(texts, named):
    with pytest.raises(ValueError, match=named):
        grid([parse_axis(text) for text in texts])


def test_every_setting_is_checked_before_anything_is_trained(swept, tmp_path, capsys):
    words = words_of(swept)[:9]
    for assignment, named in (
        ("learning_rate=0.1,high", "high"),
        ("no_field=1,2", "no_field"),
        ("epochs=1,-1", "epochs"),
    ):
        code, _, err = run_command(capsys, *words, "--set", assignment, "--workdir", tmp_path)
        assert code == 2 and named in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_winner_is_chosen_on_validation_and_only_its_test_result_is_shown(finished, capsys):
    code, out, _ = run_command(capsys, *words_of(finished))  # a second time: read, not trained
    assert code == 0 and out.count("finished before") == 4
    with open(finished / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and rows[0]["learning_rate"] == "0.02"
    means = [float(row["validation accuracy"]) for row in rows]
    assert means == sorted(means, reverse=True) and all(row["seeds"] == "2" for row in rows)
    folders = [run_folder for row in rows for run_folder in row["runs"].split()]
    assert len(set(folders)) == 4
    results = [json.loads((finished / "runs" / f / run.RESULTS).read_text()) for f in rows[0]["runs"].split()]
    accuracies = [result["validation"]["accuracy"] for result in results]
    assert means[0] == pytest.approx(np.mean(accuracies))
    assert float(rows[0]["standard deviation"]) == pytest.approx(np.std(accuracies, ddof=1))
    assert out.count("test accuracy") == 1
    assert f"{100 * np.mean([result['test']['accuracy'] for result in results]):.2f}" in out.split("test accuracy")[1]


def test_each_run_is_an_ordinary_run_and_a_missing_one_is_trained_again(finished, capsys):
    folders = sorted((finished / "runs").iterdir())
    kept = (folders[0] / run.METRICS).read_bytes()
    command = json.loads((folders[0] / run.CONFIG).read_text())["made_with"]["command"]
    assert command.startswith("zoo train --model softmax") and "--seeds" not in command and "--seed " in command
    shutil.rmtree(folders[0])
    code, out, _ = run_command(capsys, *words_of(finished))
    assert code == 0 and out.count("finished before") == 3
    assert (folders[0] / run.METRICS).read_bytes() == kept


def run_without_training(monkeypatch, fit, **arguments):
    """Run a sweep of two settings with two seeds on 60 digits; `fit` takes the place of the training."""

    def fit_and_diverge(plan, **options):
        fit(plan)
        raise loop.DivergenceError("the loss is nan")

    monkeypatch.setattr(loop, "fit", fit_and_diverge)
    trained = request.TrainRequest("softmax", recipe=Recipe(epochs=1, image_size=8), limit=60, **arguments)
    settings = grid([parse_axis("learning_rate=0.1,0.01")])
    sweep.run_sweep(trained, settings, (0, 1), lambda line: None, folder="sweep")


def test_runs_share_the_data_and_their_plans_are_freed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_dataset, opened, plans, splits = request.open_dataset, [], [], set()

    def fit(plan):
        gc.collect()
        assert not any(earlier() for earlier in plans)
        plans.append(weakref.ref(plan))
        splits.add(plan.dataset.splits["train"])
        assert plan.config.limit == len(plan.dataset.splits["train"]) == 60

    monkeypatch.setattr(request, "open_dataset", lambda *names: [opened.append(names), open_dataset(*names)][1])
    run_without_training(monkeypatch, fit)
    assert len(opened) == len(splits) == 1 and len(plans) == 4


def test_a_repeated_sweep_takes_the_micro_batch_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def fit(plan):
        seen.append((plan.folder, plan.recipe.micro_batch))
        run.open_folder(plan.folder, plan.config, "")

    monkeypatch.setattr(Plan, "compile_within_memory", lambda *arguments: (None, "a shortage"))
    monkeypatch.setattr(Plan, "fitting_micro_batch", lambda plan, shortage, say: plan.with_micro_batch(4))
    run_without_training(monkeypatch, fit, changes={"micro_batch": "auto"})
    monkeypatch.setattr(Plan, "compile_within_memory", pytest.fail)  # nothing is searched for
    run_without_training(monkeypatch, fit, changes={"micro_batch": "auto"})
    assert seen[:4] == seen[4:] and {size for _, size in seen} == {4}
    assert sorted({folder for folder, _ in seen}) == sorted(Path("sweep").iterdir())


def test_diverged_settings_come_last_and_are_named():
    good = Trial({"learning_rate": "0.1"}, (), (0.7, 0.9), (0.7, 0.9), (0.6, 0.8))
    better_on_test = Trial({"learning_rate": "0.2"}, (), (0.5, 0.7), (0.5, 0.7), (1.0, 1.0))
    bad = Trial({"learning_rate": "9"}, (), (1.0,), (1.0,), (1.0,), ("seed 1: the loss is nan",))
    assert ranked([bad, better_on_test, good]) == [good, better_on_test, bad]
    assert describe((0.7, 0.9)) == "80.00 ± 14.14 % (n = 2)" and describe((0.5,)) == "50.00 % (n = 1)"
    named = good._replace(folders=(sweep.Path("a"), sweep.Path("b")))
    lines = format_table([bad, better_on_test, named])
    assert "seed 1" in lines[3] and "70.00 ± 14.14" in lines[-2] and lines[-1].endswith("b/best")
    assert "diverged" in format_table([bad])[-1]


def test_compare_shows_what_differs_and_draws_the_curves(finished, tmp_path, capsys, monkeypatch):
    folders = sorted((finished / "runs").iterdir())
    files = [tmp_path / name for name in ("c.png", "c.html", "c.csv")]
    words = ("compare", *folders, "-o", files[0], "--html", files[1], "--csv", files[2])
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    with open(files[2], newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"learning_rate", "seed"} < set(rows[0]) and "epochs" not in rows[0]
    for folder, row in zip(folders, rows, strict=True):
        results = json.loads((folder / run.RESULTS).read_text())
        assert row["run"] == folder.name and float(row["test accuracy"]) == results["test"]["accuracy"]
        assert int(row["parameters"]) == 2355 and row["best step"] == str(results["best_step"])
    page = files[1].read_text(encoding="utf-8")
    assert page.count("<tr>") == 5 and "base64" in page and "http" not in page
    with Image.open(files[0]) as picture:
        assert picture.format == "PNG"
    (folders[0] / run.RESULTS).rename(tmp_path / "results")
    code, out, _ = run_command(capsys, *words[:3], "--json")
    (tmp_path / "results").rename(folders[0] / run.RESULTS)
    assert code == 0 and [row["state"] == "not finished" for row in json.loads(out)] == [True, False]
    assert json.loads(out)[0]["test accuracy"] is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0]))  # no folder: the picture fails, table and page do not
    files[1].unlink()
    code, out, err = run_command(capsys, *words[:3], "--html", files[1])
    assert code == 0 and "test accuracy" in out and f"written: {files[1]}\n" in out and "-o FILE.png" in err
    assert "base64" in files[1].read_text(encoding="utf-8")


def test_the_option_loss_is_a_word_in_the_table_and_the_result_a_number():
    assert format_value("loss", "softmax") == "softmax"
    assert format_value("test loss", 0.00594) == "0.0059"


def test_compare_names_what_is_no_run(finished, tmp_path, capsys):
    folder = sorted((finished / "runs").iterdir())[0]
    copy = tmp_path / "<b>"
    shutil.copytree(folder, copy)
    code, _, err = run_command(capsys, "compare", folder, tmp_path)
    assert code == 2 and str(tmp_path) in err and err.count("\n") == 1
    code, out, _ = run_command(capsys, "compare", folder, copy, copy / "best", "--html", tmp_path / "p.html")
    assert "All options are the same in these runs." in out
    assert code == 0 and "&lt;b&gt;" in (tmp_path / "p.html").read_text()  # names are escaped, and no run appears twice
    assert (tmp_path / "p.html").read_text().count("<tr>") == 3
    rows = (copy / run.METRICS).read_text()
    for file, content in (
        (run.METRICS, "{"), (run.METRICS, "[1]"), (run.METRICS, '{"step": "1"}'), (run.METRICS, '{"step": 1, "a": []}'),
        (run.TIMING, '{"steps": [0, 1]}'), (run.TIMING, '{"steps": [0], "seconds": 1}'), (run.TIMING, "1"),
        (run.TIMING, '{"steps": [0, 2], "seconds": 1.5, "device": "cpu"}'),
        (run.TIMING, '{"steps": [0, 2], "seconds": 1.5, "images_per_second": 8}'),
        (run.TIMING, '{"steps": [0, 1], "seconds": "long"}'), (run.TIMING, '{"seconds": 1' + "0" * 400 + "}"),
        ("best/card.json", '{"leaves": 3}'),
    ):  # fmt: skip
        before = (copy / file).read_text()
        (copy / file).write_text(content)
        code, _, err = run_command(capsys, "compare", folder, copy)
        assert code == 2 and "damaged" in err and Path(file).name in err and err.count("\n") == 1, (content, err)
        (copy / file).write_text(before)
    assert (copy / run.METRICS).read_text() == rows


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '"stopped"', '{"stopped": 1, "best_step": 3}', '{"stopped": "done", "best_step": "3"}',
     '{"stopped": "done", "best_step": 3, "test": {"accuracy": "high"}}', '{"stopped": "done", "best_step": 1e400}'],
)  # fmt: skip
def test_results_that_are_none_count_as_not_finished(text, tmp_path):
    (tmp_path / run.RESULTS).write_text(text)
    assert not run.is_finished(tmp_path)
    with pytest.raises(ValueError, match=run.RESULTS):
        run.read_results(tmp_path)


def test_a_run_whose_files_do_not_belong_together_is_named(finished, tmp_path):
    folder = next((finished / "runs").iterdir())
    whole = json.loads((folder / run.RESULTS).read_text())
    for file, content in (
        (run.METRICS, ""), (run.METRICS, json.dumps({"step": whole["best_step"]})),
        (run.RESULTS, json.dumps({**whole, "validation": None})), (run.RESULTS, json.dumps({**whole, "test": {}})),
        (run.RESULTS, json.dumps({key: whole[key] for key in ("stopped", "best_step")})),
        (run.RESULTS, json.dumps({**whole, "validation": {**whole["validation"], "accuracy": None}})),
    ):  # fmt: skip
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        (copy / file).write_text(content)
        with pytest.raises(ValueError, match=file) as caught:
            sweep._read_trial({}, [(0, copy, "")])
        assert_one_line(caught, str(copy))
        shutil.rmtree(copy)
