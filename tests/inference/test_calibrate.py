"""Temperature, energy threshold, and their use by every part that gives probabilities."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import assert_one_line, random_images, run_command, train
from PIL import Image

import zoo
from zoo import checkpoint, export
from zoo.checkpoint.calibration import Calibration
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.inference import calibrate
from zoo.inference.calibrate import fit_calibration, fit_temperature, loss_and_error
from zoo.inference.metrics import calibration_error
from zoo.inference.softmax import log_probabilities
from zoo.models import abstract_variables
from zoo.training import run

CLASSES = ("a", "b", "c")
CALIBRATION = Calibration(2.5, "validation", 100, 1.0, 0.9, 0.2, 0.1, 0.5, 0.95)


def calibrated_logits(count=4000, classes=5, seed=0):
    """Return logits whose softmax are true probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    labels = np.array([rng.choice(classes, p=row) for row in np.exp(log_probabilities(logits))])
    return logits, labels


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same network with and without a calibration, and images."""
    root = tmp_path_factory.mktemp("calibrated")
    model = zoo.create("softmax", num_classes=3, image_size=6)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_variables(model, (6, 6, 3))
    )
    for name, calibration in (("plain", None), ("calibrated", CALIBRATION)):
        zoo.save(root / name, model, variables, CLASSES, Preprocess((6, 6), (6, 6)), calibration=calibration)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(root / f"{i}.png")
    return root


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 20.0])
def test_the_temperature_undoes_a_factor_and_is_the_best_of_a_grid(factor):
    logits, labels = calibrated_logits()
    temperature = fit_temperature((factor * logits).astype(np.float32), labels)
    assert temperature == pytest.approx(factor, rel=0.06)
    best = loss_and_error(factor * logits, labels, temperature)[0]
    assert all(
        best <= loss_and_error(factor * logits, labels, temperature * other)[0] for other in (0.9, 0.99, 1.01, 1.1)
    )
    before, after = (loss_and_error(factor * logits, labels, t)[1] for t in (1.0, temperature))
    assert after < 0.03 and (factor == 1 or after < before)


def test_a_temperature_changes_no_class():
    logits = calibrated_logits()[0] * 30
    for temperature in (0.05, 0.5, 7.0, 90.0):
        assert (log_probabilities(logits, temperature).argmax(1) == logits.argmax(1)).all()
        np.testing.assert_allclose(np.exp(log_probabilities(logits, temperature)).sum(1), 1)


def test_logits_without_a_best_temperature_are_named():
    labels = np.arange(90) % 3
    right = np.eye(3)[labels] * 50
    with pytest.raises(ValueError, match="wide margin"):
        fit_temperature(right, labels)
    with pytest.raises(ValueError, match="too little"):
        fit_temperature(right, (labels + 1) % 3)


@pytest.mark.parametrize(
    ("count", "wrong", "reason"),
    [(10, 0, "10 validation"), (200, 4, "4 of 200"), (200, 180, "too little"), (200, 60, "")],
)
def test_too_few_examples_or_mistakes_leave_the_temperature_at_one(count, wrong, reason):
    labels = np.arange(count) % 3
    logits = np.eye(3)[labels] * 4 + np.random.default_rng(0).normal(0, 0.1, (count, 3))
    logits[:wrong] = np.roll(logits[:wrong], 1, axis=1)
    energy = np.arange(count, dtype=np.float32)
    fitted, text = fit_calibration(logits, energy, labels, "validation")
    assert (reason in text) and bool(text) == bool(reason)
    if count < 20:
        assert fitted is None
        return
    assert (fitted.temperature == 1) == bool(reason) and fitted.examples == count
    assert np.mean(energy >= fitted.energy_threshold) == pytest.approx(0.95, abs=0.01)
    assert fitted.loss_after <= fitted.loss_before
    probabilities = np.exp(log_probabilities(logits, fitted.temperature))
    assert fitted.ece_after == pytest.approx(calibration_error(probabilities, labels))


def test_outputs_that_are_not_finite_are_left_out():
    logits, labels = calibrated_logits(500)
    energy = np.log(np.exp(logits).sum(1))
    expected = fit_calibration(logits, energy, labels, "v")
    broken = [np.concatenate([part, part[:2]]) for part in (logits, energy, labels)]
    broken[0][-2:] = [[np.nan] * 5, [np.inf] * 5]
    broken[1][-2:] = np.nan
    assert fit_calibration(*broken, "v") == expected


def test_outputs_too_large_for_a_card_are_not_calibrated():
    """A network that nearly diverged must still be saved."""
    logits = np.random.default_rng(0).normal(size=(200, 3)) * 1e30
    calibration, reason = fit_calibration(logits, logits.max(axis=1), np.arange(200) % 3, "validation")
    assert calibration is None and "too large" in reason


def test_cards_keep_it_and_cards_without_it_have_their_old_bytes(saved):
    assert zoo.load(saved / "calibrated").card.calibration == CALIBRATION
    plain = json.loads((saved / "plain" / "card.json").read_text())
    assert "calibration" not in plain and zoo.load(saved / "plain").card.calibration is None
    card = json.loads((saved / "calibrated" / "card.json").read_text())
    assert card.pop("calibration") == dataclasses.asdict(CALIBRATION) and card == plain


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0}, {"temperature": -1}, {"temperature": "2"}, {"temperature": True}, {"temperature": 1e9},
        {"temperature": None}, {"energy_threshold": 1e300}, {"examples": 1.5}, {"ece_after": 2}, {"split": 3},
        {"more": 1}, {"examples": 0}, {"split": "x" * 10_000}, {"loss_before": 10**400}, {"temperature": -(10**400)},
    ],
)  # fmt: skip
def test_cards_of_strangers_are_checked(change, saved):
    data = {**checkpoint.read_card(saved / "plain").to_json(), "calibration": {**CALIBRATION.__dict__, **change}}
    with pytest.raises(ValueError) as caught:
        checkpoint.card_from_json(json.loads(json.dumps(data)), "card.json")
    assert_one_line(caught, "card.json", "calibration")
    for value in ([], 1, "x", {}):
        with pytest.raises(ValueError, match="calibration"):
            checkpoint.card_from_json({**json.loads(json.dumps(data)), "calibration": value}, "card.json")


@pytest.mark.parametrize("tta", ["", "flip"])
def test_prediction_and_evaluation_use_it_alike_and_no_class_changes(tta, saved):
    plain, loaded = zoo.load(saved / "plain"), zoo.load(saved / "calibrated")
    images, labels = random_images(40, 6, 6, 3)
    before, after = plain.predict(images, tta=tta), loaded.predict(images, tta=tta)
    for old, new in zip(before, after, strict=True):
        assert [label for label, _ in old.top] == [label for label, _ in new.top]
        powers = np.array([p for _, p in old.top]) ** (1 / 2.5)
        np.testing.assert_allclose([p for _, p in new.top], powers / powers.sum(), rtol=1e-4)
        assert old.unlike_training is None and new.unlike_training in (True, False)
    result = zoo.evaluate(loaded, (images, labels), tta=tta, per_example=True)
    old = zoo.evaluate(plain, (images, labels), tta=tta)
    assert result.accuracy == old.accuracy and result.confusion == old.confusion
    assert result.uncalibrated == {"loss": old.loss, "ece": old.ece} and old.uncalibrated is None
    np.testing.assert_allclose(result.per_example.probabilities, [p.probability for p in after], rtol=1e-5)
    true = [dict(p.top)[CLASSES[label]] for p, label in zip(after, labels, strict=True)]
    assert result.loss == pytest.approx(-np.log(true).mean(), rel=1e-5)
    assert result.loss == pytest.approx(result.per_example.losses.mean(), rel=1e-6)
    table = np.array([[dict(p.top)[name] for name in CLASSES] for p in after])
    assert result.ece == pytest.approx(calibration_error(table, labels), abs=1e-6)
    assert result.unlike_training == pytest.approx(np.mean([p.unlike_training for p in after]))
    assert "uncalibrated" not in old.to_json() and result.to_json()["uncalibrated"] == result.uncalibrated


def test_evaluation_without_a_score_table_gives_the_same_loss(saved, monkeypatch):
    loaded, data = zoo.load(saved / "calibrated"), random_images(40, 6, 6, 3)
    whole = zoo.evaluate(loaded, data, per_example=True)
    monkeypatch.setattr("zoo.inference.metrics.SCORE_LIMIT", 10)
    streamed = zoo.evaluate(loaded, data, per_example=True, batch_size=7)
    assert streamed.loss == pytest.approx(whole.loss) and streamed.ece is None
    np.testing.assert_allclose(streamed.per_example.losses, whole.per_example.losses, rtol=1e-5)


def test_exports_divide_the_logits(saved):
    plain, loaded = zoo.load(saved / "plain"), zoo.load(saved / "calibrated")
    pixels = export.example_pixels(plain, 3)
    expected = np.asarray(export.pixels_to_logits(plain)(pixels))
    np.testing.assert_allclose(np.asarray(export.pixels_to_logits(loaded)(pixels)), expected / 2.5, rtol=1e-6)


def test_predict_says_unsure_and_unlike(saved, tmp_path, capsys):
    files = [saved / f"{i}.png" for i in range(4)]
    answers = zoo.load(saved / "calibrated").predict(files)
    limit = sorted(answer.probability for answer in answers)[2]
    unsure = [answer.probability < limit for answer in answers]
    assert 0 < sum(unsure) < 4
    words = ("predict", saved / "calibrated", *files, "--min-probability", limit)
    code, out, _ = run_command(capsys, *words, "-o", tmp_path / "t.csv")
    assert code == 0 and [" unsure:" in line for line in out.splitlines()] == unsure
    unlike = [answer.unlike_training for answer in answers]
    assert ["unlike the training" in line for line in out.splitlines()] == unlike
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert rows[0].endswith("probability3,unsure,unlike_training")
    assert [row.split(",")[-2] for row in rows[1:]] == [str(flag).lower() for flag in unsure]
    lines = [json.loads(line) for line in run_command(capsys, *words, "--json")[1].splitlines()]
    assert [(line["unsure"], line["unlike_training"]) for line in lines] == list(zip(unsure, unlike, strict=True))
    code, out, _ = run_command(capsys, "predict", saved / "plain", files[0], "--json")
    assert set(json.loads(out)) == {"file", "top"}
    for wrong in ("80", "-0.1", "high", "nan"):
        code, _, err = run_command(capsys, "predict", saved / "plain", files[0], "--min-probability", wrong)
        assert code == 2 and "--min-probability" in err and "0.8" in err


def test_training_fits_it_and_changes_nothing_else(tmp_path, monkeypatch):
    images, labels = random_images(600, 8, 8)
    images[np.arange(600), 0, labels] = 255
    dataset = from_arrays((images, labels))
    recipe = zoo.Recipe(epochs=2, batch_size=30, learning_rate=0.02)
    calibrated = train("softmax", dataset, recipe, workdir=tmp_path / "on", quiet=True)
    monkeypatch.setattr(calibrate, "MIN_EXAMPLES", 1000)
    plain = train("softmax", dataset, recipe, workdir=tmp_path / "off", quiet=True)
    fitted = calibrated.card.calibration
    assert plain.card.calibration is None and fitted.split == "validation" and fitted.temperature != 1
    assert fitted.examples == len(dataset.splits["validation"]) and fitted.loss_after < fitted.loss_before
    assert calibrated.card.leaves == plain.card.leaves
    assert (tmp_path / "on" / run.METRICS).read_bytes() == (tmp_path / "off" / run.METRICS).read_bytes()
    results = json.loads((tmp_path / "on" / run.RESULTS).read_text())
    assert results["validation"]["uncalibrated"]["loss"] == pytest.approx(fitted.loss_before)
    assert results["validation"]["loss"] == pytest.approx(fitted.loss_after)
    assert results["test"]["loss"] == pytest.approx(zoo.evaluate(calibrated, dataset).loss)
    assert results["test"]["loss"] == calibrated.card.metrics["test"]["loss"]
    old = json.loads((tmp_path / "off" / run.RESULTS).read_text())
    assert old["test"]["accuracy"] == results["test"]["accuracy"]
    assert old["test"]["loss"] == pytest.approx(results["test"]["uncalibrated"]["loss"])
