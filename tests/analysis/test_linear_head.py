"""A probe's classifier as the head of its network: an ordinary checkpoint with the probe's probabilities."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from helpers import assert_one_line, run_command
from photos import folder_of

import zoo
from zoo import models
from zoo.analysis.features import Features, Origin, load_features
from zoo.analysis.linear_head import head_variables, model_with_classes
from zoo.analysis.probe import linear_map
from zoo.data.dataset import ArraySplit, Dataset
from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.inference.evaluate import predict_probabilities

CONTRACT = importlib.import_module("models.test_contract")
QUICK_TO_COMPILE = ("mlp-sigmoid", "lenet5", "highway")
CASES = {**CONTRACT.REDUCED, **CONTRACT.QUICK}
PARAMETERS = [
    pytest.param(case, marks=[] if case in QUICK_TO_COMPILE else [pytest.mark.slow])
    for case in CASES
    if CASES[case][0] != "lenet5_1998"
]


def save_mlp(folder, size=8, classes=("x", "y"), **fields):
    model = models.create("mlp", widths=(12,), image_size=size, num_classes=len(classes) or None)
    preprocess = Preprocess(size=(size, size), resize=(size, size), channels="L", mean=(0.3,), std=(0.4,), **fields)
    zoo.save(folder, model, models.init(model, 0, (size, size, 1)), classes, preprocess, licence="CC0-1.0")
    return folder


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return save_mlp(tmp_path_factory.mktemp("ckpt") / "mlp")


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_head_of_every_family_is_a_linear_map_of_the_features(case):
    name, fields, shape = CASES[case]
    old = zoo.create(name, **fields)
    variables = jax.tree.map(np.asarray, models.init(old, 0, shape))
    model = model_with_classes(name, models.defining_fields(old), 3)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, *shape)).astype(np.float32)
    width = old.apply(variables, images)[1]["features"].shape[1]
    kernel, bias = rng.normal(0, 1, (width, 3)), rng.normal(0, 1, 3)
    headed = head_variables(model, shape, variables, kernel, bias, name)
    logits, ends = model.apply(headed, images)
    expected = np.asarray(ends["features"], np.float64) @ kernel + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert not any(path.startswith("aux") for path in headed["params"]) and model.num_classes == 3


@pytest.mark.parametrize("kind", ["softmax", "svm"])
@pytest.mark.parametrize("counts", [(20, 20), (20, 0, 20), (12, 12, 12), (15, 15, 15, 0, 0)], ids=str)
def test_standardisation_and_classifier_are_one_linear_map(kind, counts):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(50, 3, (len(labels), 4)) * [1, 10, 0.1, 0]  # means far from 0, one constant feature
    rows[:, 0] += 4 * labels
    linear = LogisticRegression(C=3) if kind == "softmax" else LinearSVC(C=3, random_state=0)
    pipeline = make_pipeline(StandardScaler(), linear).fit(rows, labels)
    kernel, bias = linear_map(pipeline, kind, len(counts))
    logits = rows @ kernel + bias
    present = np.flatnonzero(counts)
    assert np.array_equal(logits.argmax(1), pipeline.predict(rows))
    if kind == "softmax":
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities[:, present], pipeline.predict_proba(rows), atol=1e-8)
    elif len(present) > 2:
        np.testing.assert_allclose(logits[:, present], pipeline.decision_function(rows), atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "classes"), [("softmax", 2), pytest.param("softmax", 5, marks=pytest.mark.slow), ("svm", 5)]
)
def test_the_checkpoint_has_the_probabilities_of_the_probe(mlp, tmp_path, kind, classes):
    """Through save, load and the whole path from image to probability."""
    splits = {}
    for name, split in zoo.open_dataset("digits").splits.items():
        keep = np.flatnonzero(split.labels < classes)[:40]
        splits[name] = ArraySplit(split.read(keep), split.labels[keep])
    data = Dataset("some digits", splits, tuple("abcdefg"))
    extracted = zoo.features(mlp, data)
    probed = zoo.probe(extracted, kind)
    headed = zoo.attach_head(mlp, probed, tmp_path / "headed", command="zoo probe …")
    again = zoo.load(tmp_path / "headed")
    written, returned = (dataclasses.replace(card, fields={}) for card in (again.card, headed.card))
    assert written == returned and again.model == headed.model
    assert again.card.classes == data.class_names
    assert again.card.licence == "CC0-1.0" and again.card.recipe is None and again.card.command == "zoo probe …"
    assert again.card.preprocess == zoo.load(mlp).card.preprocess
    rows = extracted.splits["test"][0]
    split, preprocess = data.splits["test"], again.card.preprocess
    pixels = np.stack([image_to_input(image, preprocess) for image in split.read(np.arange(len(split)))])
    probabilities = predict_probabilities(again.model, again.variables, pixels, preprocess)
    if kind == "softmax":
        expected = np.zeros((len(rows), 7))
        expected[:, probed.classifier.classes_] = probed.classifier.predict_proba(rows)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert np.array_equal(probabilities.argmax(1), probed.classifier.predict(rows))
    result = zoo.evaluate(tmp_path / "headed", data)
    assert result.accuracy == probed.metrics.accuracy == again.card.metrics["test"]["accuracy"]
    assert result.loss == pytest.approx(probed.metrics.loss, rel=1e-4)
    assert again.card.calibration == probed.calibration is not None
    assert result.unlike_training == pytest.approx(probed.metrics.unlike_training)


def test_auxiliary_heads_are_left_out():
    for case in ("quick-googlenet", "quick-inception"):
        name, fields, shape = CASES[case]
        old, model = zoo.create(name, **fields), model_with_classes(name, fields | {"aux_heads": True}, 3)
        before, after = (set(models.abstract_variables(network, shape)["params"]) for network in (old, model))
        assert after < before and before - after <= {"aux1", "aux2", "aux"} and "head" in after


def few_digits():
    """Return 40 digits of three classes as a data set."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    images = (rng.integers(0, 80, (40, 8, 8, 1)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    split = ArraySplit(images, labels.astype(np.int32))
    return Dataset("few", {"train": split, "test": split}, ("one", "two", "three"))


def test_a_network_without_a_head_gets_one(tmp_path):
    save_mlp(tmp_path / "headless", classes=())
    probed = zoo.probe(zoo.features(tmp_path / "headless", few_digits()))
    assert zoo.attach_head(tmp_path / "headless", probed).card.classes == ("one", "two", "three")


def test_features_that_differ_by_rounding_errors_only_are_ignored():
    """Standardised, they would be noise with the weight of any other feature."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = np.stack([7 + 1e-6 * rng.normal(size=40), 3.0 * labels + rng.normal(size=40)], 1).astype(np.float32)
    probed = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels)}, ("a", "b")))
    assert not probed.kernel[0].any() and probed.kernel[1].any()


def test_what_does_not_belong_together_is_named(mlp, tmp_path):
    probed = zoo.probe(zoo.features(mlp, few_digits()))
    other = save_mlp(tmp_path / "other", classes=("p", "q", "r"))
    with pytest.raises(ValueError, match="not the network") as caught:
        zoo.attach_head(other, probed)
    assert_one_line(caught, "other")
    elsewhere = probed._replace(origin=dataclasses.replace(probed.origin, at="hidden1"))
    with pytest.raises(ValueError, match=r"'features'.*'hidden1'"):
        zoo.attach_head(mlp, elsewhere)
    with pytest.raises(ValueError, match=r"lenet5_1998: .*no head"):
        model_with_classes("lenet5_1998", {}, 10)
    model = model_with_classes("mlp", {"widths": (12,), "image_size": 8}, 3)
    with pytest.raises(ValueError, match="not one dense layer on 5 features"):
        head_variables(model, (8, 8, 1), {}, np.zeros((5, 3)), np.zeros(3), "mlp")


def test_the_file_of_features_keeps_file_names_and_origin(mlp, tmp_path):
    folder_of(tmp_path / "data", {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2}, size=(9, 9))
    extracted = zoo.features(mlp, tmp_path / "data")
    extracted.save(tmp_path / "f.npz")
    again = load_features(tmp_path / "f.npz")
    assert again.sketches == extracted.sketches and set(again.sketches) == set(again.splits)
    assert again.files == extracted.files and again.origin == extracted.origin
    assert again.files["test"] == tuple(f"test/{c}/{n}.png" for c in "ab" for n in (0, 1))
    for name, files in again.files.items():
        loaded = zoo.load(mlp)
        pixels = [zoo.preprocess(tmp_path / "data" / file, loaded.card) for file in files]
        np.testing.assert_allclose(
            loaded.model.apply(loaded.variables, np.stack(pixels))[1]["features"], again.splits[name][0], atol=1e-5
        )
    assert again.origin.checkpoint == str(mlp) and again.origin.data == str(tmp_path / "data")


def test_without_a_test_split_the_validation_split_is_evaluated_and_not_trained_on():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = (rng.normal(size=(60, 3)) + 4 * np.eye(3)[labels]).astype(np.float32)
    splits = {"train": (rows[:40], labels[:40]), "validation": (rows[40:], labels[40:])}
    probed = zoo.probe(Features(splits, tuple("abc")))
    assert probed.split == "validation" and probed.trained_on == ("train",) and probed.metrics.examples == 20
    np.testing.assert_allclose(probed.classifier[0].mean_, rows[:40].mean(0), rtol=1e-5)


def test_balanced_class_weights():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels = np.array([0] * 50 + [1] * 6)
    rows = (rng.normal(size=(56, 2)) + labels[:, None]).astype(np.float32)
    probed = zoo.probe(
        Features({"train": (rows, labels), "test": (rows, labels)}, ("a", "b")), class_weights="balanced"
    )
    expected = make_pipeline(
        StandardScaler(), LogisticRegression(C=1000 * probed.strength / 56, class_weight="balanced", max_iter=1000)
    ).fit(rows, labels)
    np.testing.assert_allclose(probed.classifier.predict_proba(rows), expected.predict_proba(rows), atol=1e-6)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_global_cache(monkeypatch):
    for command in ("probe", "features", "predict", "evaluate", "export", "train", "verify", "info"):
        monkeypatch.setattr(f"zoo.commands.{command}.start_jax", lambda: None, raising=False)


def test_every_command_takes_the_checkpoint(mlp, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", {"train/ants": 12, "train/bees": 12, "val/ants": 4, "val/bees": 4}, size=(9, 9))
    code, out, err = run_command(capsys, "probe", mlp, "--data", "photos", "-o", "fitted")
    assert code == 0, err
    assert "test split:" in out and "with the classifier as its head" in out
    accuracy = json.loads(run_command(capsys, "eval", "fitted", "--data", "photos", "--json")[1])
    assert accuracy["accuracy"] == zoo.load("fitted").card.metrics["test"]["accuracy"]
    code, out, _ = run_command(capsys, "predict", "fitted", "photos/val/ants")
    assert code == 0 and out.count("ants") >= 4
    on_train = json.loads(run_command(capsys, "eval", "fitted", "--data", "photos", "--split", "train", "--json")[1])
    assert any("were trained on" in note for note in on_train["notes"])
    code, out, _ = run_command(capsys, "verify", "fitted")
    assert code == 0 and "fitted: ok" in out
    code, out, _ = run_command(capsys, "info", "fitted")
    assert code == 0 and "linear softmax classifier on frozen features" in out and "trained on  photos" in out
    code, out, _ = run_command(capsys, "export", "fitted", "--to", "safetensors")
    assert code == 0 and zoo.load("fitted.safetensors").card.classes == ("ants", "bees")
    words = ("--epochs", "1", "--batch-size", "8", "--augment", "none", "--workdir", "run", "--quiet")
    code, out, err = run_command(capsys, "train", "--init", "fitted", "--data", "photos", *words)
    assert code == 0 and zoo.load("run/best").card.classes == ("ants", "bees"), err
    code, _, err = run_command(capsys, "probe", mlp, "--data", "photos", "-o", "fitted")
    assert code == 2 and "is a checkpoint already" in err and err.count("\n") == 1


def test_a_broken_head_is_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2}, size=(9, 9))
    whole = zoo.load(save_mlp(tmp_path / "whole"))
    variables = jax.tree.map(np.array, whole.variables)
    variables["params"]["head"]["kernel"][:] = np.nan
    zoo.save("broken", whole.model, variables, ("x", "y"), whole.card.preprocess, allow_nonfinite=True)
    code, _, err = run_command(capsys, "probe", "broken", "--data", "photos", "-o", "fitted")
    assert code == 2 and "--allow-nonfinite" in err
    code, _, err = run_command(capsys, "probe", "broken", "--data", "photos", "-o", "fitted", "--allow-nonfinite")
    assert code == 0, err
    assert zoo.load("fitted").card.classes == ("a", "b")


def test_a_probe_on_a_file_of_features_finds_its_network(mlp, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", {"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2}, size=(9, 9))
    words = ("--data", "photos")
    assert run_command(capsys, "features", mlp, *words, "-o", "f.npz")[0] == 0
    assert run_command(capsys, "probe", "f.npz", "-o", "one")[0] == 0
    assert run_command(capsys, "probe", mlp, *words, "-o", "two")[0] == 0
    one, two = zoo.load("one"), zoo.load("two")
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
    load_features("f.npz")._replace(origin=None).save("old.npz")
    load_features("f.npz")._replace(origin=Origin("gone", "0", "features", "mean", "digits")).save("gone.npz")
    assert run_command(capsys, "features", mlp, *words, "--at", "hidden1", "-o", "dense.npz")[0] == 0
    for line, answer in {
        ("old.npz", "-o", "x"): "zoo features CKPT",
        ("gone.npz", "-o", "x"): "gone",
        ("dense.npz", "-o", "x"): "drop --at",
        (str(mlp), *words, "--at", "hidden1", "-o", "x"): "drop --at hidden1",
        (str(mlp), *words, "-o", "f.npz"): "f.npz: exists and is not a checkpoint",
        (str(mlp), *words, "-o", "f.npz/x"): "f.npz is a file",
    }.items():
        code, _, err = run_command(capsys, "probe", *line)
        assert code == 2 and answer in err and err.count("\n") == 1, err
    assert not (tmp_path / "x").exists()
