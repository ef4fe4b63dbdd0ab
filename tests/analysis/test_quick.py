"""`zoo train --quick`: a run that fits only a linear head to frozen features."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import killed_after, run_command
from photos import folder_of

import zoo
from zoo import models
from zoo.analysis.features import compute_features
from zoo.data.images.preprocess import Preprocess
from zoo.stores import lease, objects
from zoo.training.run import read_config


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ckpt") / "mlp"
    model = models.create("mlp", widths=(12,), image_size=8, num_classes=2)
    preprocess = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.3,), std=(0.4,))
    zoo.save(folder, model, models.init(model, 0, (8, 8, 1)), ("x", "y"), preprocess)
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.train.start_jax", lambda: None)
    layout = {"train/ants": 12, "train/bees": 12, "val/ants": 4, "val/bees": 4, "test/ants": 3, "test/bees": 5}
    return folder_of(tmp_path / "photos", layout, size=(9, 9))


def test_a_run_has_checkpoint_metrics_and_results(network, photos, capsys):
    words = ("train", "--quick", "--init", network, "--data", "photos", "--workdir", "run")
    code, out, err = run_command(capsys, *words)
    assert code == 0 and "head: softmax regression on frozen features" in out, err
    results, loaded = json.loads(Path("run/results.json").read_text()), zoo.load("run/best")
    row = json.loads(Path("run/metrics.jsonl").read_text())
    assert results["test"]["examples"] == 8 and results["validation"]["examples"] == 8
    assert row["validation_accuracy"] == results["validation"]["accuracy"]
    for split in ("validation", "test"):
        result = zoo.evaluate(loaded, "photos", split)
        assert result.accuracy == results[split]["accuracy"] == loaded.card.metrics[split]["accuracy"]
        assert result.loss == pytest.approx(results[split]["loss"], rel=1e-4)
    assert loaded.card.calibration is None and "Probabilities are not calibrated: only 8 validation images" in out
    assert loaded.card.recipe is None and loaded.card.source.startswith("linear softmax head on frozen features of")
    assert loaded.card.data["source"] == "photos" and loaded.card.command.startswith("zoo train --quick")
    jax.tree.map(
        np.testing.assert_array_equal, loaded.variables["params"]["hidden1"],
        zoo.load(network).variables["params"]["hidden1"],
    )  # fmt: skip
    Path("run/confusion.png").unlink()
    code, out, _ = run_command(capsys, *words)
    assert code == 0 and "This run is finished" in out and Path("run/confusion.png").exists()


def test_a_run_in_a_store_is_resumed_after_a_kill(network, tmp_path, monkeypatch):
    """By the same machine and by another one; killed while the checkpoint and while the files are written."""
    rng, address, many = np.random.default_rng(0), "memory://quick/run", 10**6
    data = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 2
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.0)

    def fit(machine, count=many):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        with killed_after(monkeypatch, count) as left:
            zoo.fit_head(data, init=network, workdir=address, quiet=True)
        return count - left[0]

    def stored():
        """Return the names of all objects but the lease and the arrays, whose names are random."""
        return {name for name in objects.listing(address) if not name.startswith((lease.FOLDER, "best/arrays/"))}

    changes, whole = fit("first"), stored()
    results = objects.read(f"{address}/results.json")
    for count, machine in ((changes // 2, "killed"), (changes // 2, "other"), (changes - 4, "killed")):
        for name in objects.listing(address):
            objects.remove(f"{address}/{name}")
        fit("killed", count)
        assert "config.json" in stored() and "results.json" not in stored()
        fit(machine)
        assert stored() == whole and objects.read(f"{address}/results.json") == results
        zoo.load(f"{address}/best")


def test_the_head_is_calibrated_on_the_validation_split(network, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    levels = rng.normal(60 + 50 * labels, 50)[:, None, None, None] + rng.normal(0, 20, (600, 8, 8, 1))
    data = zoo.data.sources.from_arrays((np.clip(levels, 0, 255).astype(np.uint8), labels))
    checkpoint = zoo.fit_head(data, init=network, workdir=tmp_path / "run", quiet=True)
    calibration, metrics = zoo.load(tmp_path / "run" / "best").card.calibration, checkpoint.card.metrics
    assert calibration.split == "validation" and calibration.examples == metrics["validation"]["examples"]
    assert calibration.loss_after == pytest.approx(metrics["validation"]["loss"], rel=1e-4)
    assert calibration.loss_before == pytest.approx(checkpoint.history[0]["validation_loss"], rel=1e-4)
    assert calibration.temperature != 1 and calibration.loss_after < calibration.loss_before
    result = zoo.evaluate(checkpoint, data)
    assert result.loss == pytest.approx(metrics["test"]["loss"], rel=1e-4)
    assert result.uncalibrated["loss"] == pytest.approx(metrics["test"]["uncalibrated"]["loss"], rel=1e-4)


def test_the_head_is_the_one_that_is_best_on_validation(network, photos):
    """The independent answer: scikit-learn on the same features, all strengths tried."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    checkpoint = zoo.fit_head("photos", init=network, workdir="run", quiet=True)
    loaded = zoo.load(network)
    arrays = compute_features(loaded.model, loaded.variables, loaded.card.preprocess, zoo.open_dataset("photos"))
    (rows, labels), (others, truth) = arrays["train"], arrays["validation"]
    scores = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1000 * strength / len(labels), max_iter=1000))
        pipeline.fit(rows, labels)
        probabilities = pipeline.predict_proba(others)
        scores.append(((probabilities.argmax(1) == truth).mean(), -log_loss(truth, probabilities), strength))
    accuracy, loss, strength = max(scores)
    assert checkpoint.history[0]["penalty"] == strength
    assert checkpoint.history[0]["validation_accuracy"] == accuracy
    assert checkpoint.history[0]["validation_loss"] == pytest.approx(-loss, rel=1e-3)


def test_from_python_with_arrays_and_class_weights(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), np.uint8), np.array([0] * 30 + [1] * 10)
    images[labels == 1] //= 3
    plain = zoo.fit_head((images, labels), init=zoo.load(network), quiet=True)
    balanced = zoo.fit_head((images, labels), init=zoo.load(network), class_weights="balanced", quiet=True)
    assert plain.workdir != balanced.workdir and plain.workdir.parent.name == "runs"
    assert balanced.predict(images[-1])[0].label == "1"
    recalls = [run.card.metrics["test"]["per_class"][1]["recall"] for run in (plain, balanced)]
    assert recalls[1] >= recalls[0] > 0


def test_a_configuration_repeats_the_run(network, photos, capsys):
    words = ("--quick", "--init", network, "--data", "photos", "--set", "class_weights=balanced", "--quiet")
    assert run_command(capsys, "train", *words, "--workdir", "one")[0] == 0
    config = read_config("one")
    assert config.head == "linear" and config.recipe.class_weights == "balanced"
    assert run_command(capsys, "train", "--config", "one", "--workdir", "two", "--quiet")[0] == 0
    one, two = zoo.load("one/best"), zoo.load("two/best")
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
    code, _, err = run_command(capsys, "train", "--init", network, "--data", "photos", "--workdir", "one")
    assert code == 2 and "holds another run" in err and "head" in err


@pytest.mark.slow
def test_small_images_start_from_a_shipped_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    checkpoint = zoo.fit_head((rng.integers(0, 256, (30, 28, 28), np.uint8), np.arange(30) % 2))
    assert checkpoint.card.model == "lenet5" and "lenet5-mnist" in checkpoint.card.source
    assert "features of lenet5-mnist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--epochs", "3"), "--epochs"),
        (("--learning-rate", "0.1", "--freeze", "body"), "--learning-rate, --freeze"),
        (("--augment", "flip"), "--augment"),
        (("--set", "ema=0.9"), "--set ema=0.9"),
        (("--micro-batch", "auto"), "--micro-batch"),
        (("--recipe", "fine-tune"), "--recipe"),
        (("--dry-run",), "--dry-run"),
        (("--seed", "1"), "--seed"),
        (("--parallel", "pmap"), "--parallel"),
        (("--model", "resnet50"), "--init instead"),
    ],
    ids=str,
)
def test_options_that_do_not_apply_are_named(words, answer, photos, capsys):
    code, out, err = run_command(capsys, "train", "--quick", "--data", "photos", *words)
    assert code == 2 and err.count("\n") == 1 and answer in err and "--quick" in err and not out


def test_a_network_with_fixed_outputs_has_no_head(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = models.create("lenet5_1998")
    preprocess = Preprocess(size=(32, 32), resize=(32, 32), channels="L", mean=(0.3,), std=(0.4,))
    zoo.save("old", model, models.init(model, 0), tuple("0123456789"), preprocess)
    with pytest.raises(ValueError, match="lenet5_1998: its outputs are fixed codes"):
        zoo.fit_head("digits", init="old", limit=40, quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_cross_validation_of_heads(network, photos, capsys):
    words = ("train", "--quick", "--init", network, "--data", "photos/train", "--folds", "3", "--workdir", "cv")
    code, _, err = run_command(capsys, *words, "--quiet")
    assert code == 0, err
    bests = sorted(Path("cv").rglob("best"))
    assert len(bests) == 3 and all(zoo.load(best).card.recipe is None for best in bests)
    assert sum(zoo.load(best).card.metrics["test"]["examples"] for best in bests) == 24
