"""Cross-validation: K ordinary runs and a summary, from the command line and from Python."""

import csv
import gc
import json
import weakref

import numpy as np
import pytest
from helpers import assert_one_line, random_images, run_bits, run_command
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import f1_score

import zoo
from zoo import checkpoint
from zoo.data.sources import from_arrays
from zoo.inference import metrics
from zoo.inference.metrics import summarise
from zoo.training import cross_validation, loop, report
from zoo.training.recipe import Recipe
from zoo.training.request import TrainRequest
from zoo.training.run import CONFIG, RESULTS, read_config

SUMS = {"loss": 2.0, "weight": 4, "top1": 3, "top5": 4, "confusion": np.array([[2, 0], [1, 1]]), "invalid": np.zeros(2)}
OPTIONS = ["--model", "softmax", "--image-size", "6", "--epochs", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Write a table of 36 images of three classes, brighter from class to class, of twelve patients."""
    folder = tmp_path_factory.mktemp("table")
    images, labels = random_images(36, 6, 6)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for i, (image, label) in enumerate(zip(images // 4 + 80 * labels[:, None, None], labels, strict=True)):
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", "abc"[label], f"p{i // 3}"])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of the runs of the first test."""
    return tmp_path_factory.mktemp("runs") / "cv"


def train(capsys, table, folder, *words):
    return run_command(capsys, "train", "--data", table, *OPTIONS, "--workdir", folder, *words)


def test_the_command_trains_and_summarises_every_fold(capsys, table, runs):
    code, out, err = train(capsys, table, runs, "--folds", 3)
    assert code == 0, err
    assert sorted(path.name for path in runs.iterdir()) == ["fold1", "fold2", "fold3", "summary.json"]
    results = [json.loads((runs / f"fold{k}" / RESULTS).read_text())["test"] for k in (1, 2, 3)]
    summary = json.loads((runs / "summary.json").read_text())
    accuracies = np.array([np.trace(result["confusion"]) / 12 for result in results])
    assert (summary["folds"], summary["group"], summary["accuracies"]) == (3, "patient", accuracies.tolist())
    assert summary["mean_accuracy"] == pytest.approx(accuracies.mean())
    assert summary["std_accuracy"] == pytest.approx(accuracies.std(ddof=1))
    pooled = summary["all_images"]
    confusion = np.sum([result["confusion"] for result in results], 0)
    assert pooled["confusion"] == confusion.tolist() and pooled["examples"] == 36
    interval = binomtest(int(np.trace(confusion)), 36).proportion_ci(method="wilson")
    assert pooled["accuracy_interval"] == pytest.approx([interval.low, interval.high])
    true, predicted = (np.repeat(side.ravel(), confusion.ravel()) for side in np.indices((3, 3)))
    assert pooled["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert pooled["loss"] == pytest.approx(np.mean([result["loss"] for result in results]))
    lines = out.splitlines()
    assert "3 folds: accuracy" in lines[-3] and f"± {100 * accuracies.std(ddof=1):.2f} %" in lines[-3]
    assert lines[-2].startswith("all images: accuracy") and "n = 36" in lines[-2] and "summary.json" in lines[-1]
    assert not any("--folds 5" in line for line in lines)  # it is what was done
    assert any("images of the same patient stay together (12 groups)" in line for line in lines)


def test_the_advice_on_a_bad_result_is_not_what_was_done():
    assert "fine-tune with --init" in report.advise_training(False, "")
    assert "--init" not in report.advise_training(True, "") and "another --init" in report.advise_training(
        True, "linear"
    )


def test_the_summary_is_named_where_it_is(runs):
    result = cross_validation.CrossValidation((0.5, 0.75), summarise(SUMS, ("a", "b")), runs)
    lines = cross_validation.describe(result, "s3://bucket/cv/summary.json", "")
    assert lines[-1].startswith("summary: s3://bucket/cv/summary.json; ")


def test_the_same_command_trains_nothing_anew(capsys, table, runs):
    before = (runs / "summary.json").read_bytes()
    (runs / "summary.json").unlink()
    code, out, _ = train(capsys, table, runs, "--folds", 3)
    assert code == 0 and out.count("This run is finished") == 3 and (runs / "summary.json").read_bytes() == before
    for words, part in ((["--folds", 4], "data.fold"), ([], "holds the folds"), (["--folds", 3, "--seed", 1], "seed")):
        code, _, err = train(capsys, table, runs, *words)
        assert code == 2 and part in err and err.count("\n") == 1, err


def test_the_checkpoint_of_a_fold_is_evaluated_on_its_own_test_images(capsys, table, runs):
    stored = json.loads((runs / "fold2" / RESULTS).read_text())["test"]
    card = checkpoint.read_card(runs / "fold2" / "best")
    assert (card.data["fold"], card.data["group"]) == ("2/3", "patient")
    code, out, _ = run_command(capsys, "eval", runs / "fold2" / "best", "--json")
    assert code == 0 and json.loads(out)["confusion"] == stored["confusion"]


def test_the_configuration_of_a_fold_repeats_it(capsys, runs, tmp_path):
    code, _, err = run_command(capsys, "train", "--config", runs / "fold3" / CONFIG, "--workdir", tmp_path / "again")
    assert code == 0, err
    assert (tmp_path / "again" / "fold3" / RESULTS).read_bytes() == (runs / "fold3" / RESULTS).read_bytes()
    assert read_config(runs / "fold3").fold.index == 3


def test_a_killed_cross_validation_is_resumed(capsys, table, runs, tmp_path, monkeypatch):
    """The second fold is interrupted after its first step; everything ends with the same bits."""
    arguments = {"image_size": 6, "epochs": 2, "batch_size": 8, "workdir": tmp_path / "cv", "folds": 3}
    save_if_due, steps = loop.Trainer.save_if_due, []

    def interrupt(trainer, *arguments):
        if trainer.plan.folder.name == "fold2":
            steps.append(trainer.progress.step)
            trainer.caught.append(15)
        save_if_due(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "save_if_due", interrupt)
        with pytest.raises(loop.InterruptedRunError):
            zoo.cross_validate("softmax", table, **arguments)
    assert steps == [1] and not (tmp_path / "cv" / "summary.json").exists()
    capsys.readouterr()
    zoo.cross_validate("softmax", table, **arguments)
    out = capsys.readouterr().out
    assert out.count("This run is finished") == 1 and "Resuming at step 1 of" in out
    assert (tmp_path / "cv" / "summary.json").read_bytes() == (runs / "summary.json").read_bytes()
    one, two = (run_bits(folder / "fold2") for folder in (tmp_path / "cv", runs))
    assert one["state"] == two["state"] and one["results"] == two["results"]


def result_of(confusion):
    """Return the results of a run with this confusion matrix on its test split."""
    counts = np.array(confusion)
    sums = {
        "loss": 1.0, "weight": counts.sum(), "top1": np.trace(counts), "top5": counts.sum(), "confusion": counts,
        "invalid": np.zeros(len(counts)),
    }  # fmt: skip
    names = [str(i) for i in range(len(counts))]
    return {"stopped": "done", "best_step": 1, "test": metrics.summarise(sums, names).to_json()}


def test_the_images_of_a_fold_are_freed_after_its_run(tmp_path):
    splits = []

    def run_plan(plan):
        gc.collect()
        assert not any(split() for split in splits)
        splits.extend(weakref.ref(split) for split in plan.dataset.splits.values())
        plan.folder.mkdir(parents=True)
        (plan.folder / RESULTS).write_text(json.dumps(result_of([[4, 1], [0, 5]])))

    data = from_arrays(random_images(30, 6, 6, classes=2), name="made")
    request = TrainRequest("softmax", data, Recipe(epochs=1, image_size=6), workdir=tmp_path / "cv")
    result = cross_validation.cross_validate(request, 3, None, run_plan)
    assert len(splits) == 9 and result.metrics.examples == 30 and result.accuracies == (0.9,) * 3


def test_results_of_many_classes_are_pooled(monkeypatch):
    tables = ([[4, 1, 0], [0, 5, 0], [0, 2, 0]], [[0, 0, 1], [3, 0, 0], [1, 1, 1]])
    pooled = []
    for limit in (metrics.DENSE_CLASSES, 2):
        monkeypatch.setattr(metrics, "DENSE_CLASSES", limit)
        results = [result_of(table)["test"] for table in tables]
        assert isinstance(results[0]["confusion"][0], dict) == (limit == 2)
        pooled.append(cross_validation.pool_results(json.loads(json.dumps(results)), "abc"))
    assert pooled[0] == pooled[1] and pooled[0].confusion == np.sum(tables, 0).tolist()


@pytest.mark.slow
def test_from_python_with_arrays(tmp_path):
    images, labels = random_images(30, 6, 6, classes=2)
    arguments = {"epochs": 1, "image_size": 6, "workdir": tmp_path / "cv", "quiet": True}
    result = zoo.cross_validate("softmax", (images, labels), folds=2, **arguments)
    assert isinstance(result, cross_validation.CrossValidation) and len(result.accuracies) == 2
    assert result.mean == pytest.approx(np.mean(result.accuracies))
    assert result.std == pytest.approx(np.std(result.accuracies, ddof=1))
    assert result.metrics.examples == 30 and "n = 30" in str(result)
    assert zoo.load(result.folder / "fold1" / "best").card.data["fold"] == "1/2"
    for folds in (1, 0, "two", 2.5, True):
        with pytest.raises(ValueError) as error:
            zoo.cross_validate("softmax", (images, labels), folds=folds)
        assert_one_line(error, "folds", "at least 2")
    with pytest.raises(ValueError) as error:
        zoo.cross_validate("softmax", (images, labels), epoch=1)
    assert_one_line(error, "cross_validate: epoch", "epochs")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--folds", "1"], ["--folds '1'", "at least 2"]),
        (["--folds", "many"], ["--folds 'many'", "at least 2"]),
        (["--folds", "13"], ["13 folds", "--folds 12"]),
        (["--group", "patient"], ["--group patient", "--folds 5"]),
        (["--folds", "3", "--group", "patent"], ["--group patent", "did you mean patient?"]),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, table, tmp_path, words, parts):
    code, _, err = train(capsys, table, tmp_path / "new", *words)
    assert code == 2 and err.count("\n") == 1 and all(part in err for part in parts), err
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(capsys, table, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, err = train(capsys, table, tmp_path / "mine", "--folds", 3)
    assert (
        code == 2
        and "holds no folds" in err
        and sorted((tmp_path / "mine").iterdir()) == [tmp_path / "mine" / "thesis.txt"]
    )


def test_a_dry_run_describes_the_first_fold(capsys, table, tmp_path):
    code, out, _ = train(capsys, table, tmp_path / "dry", "--folds", 3, "--dry-run")
    assert code == 0 and "first of 3 runs" in out and "fold 1 of 3" in out and not (tmp_path / "dry").exists()
