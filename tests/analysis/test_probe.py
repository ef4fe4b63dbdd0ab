"""A network as a fixed feature extractor, and linear classifiers on it."""

import numpy as np
import pytest

import zoo
from zoo import models
from zoo.analysis.features import Features, endpoints, load_features
from zoo.analysis.probe import fit_on_validation
from zoo.cli import main
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.inference.calibrate import fit_temperature


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Save a network with random weights, which are good enough to tell digits apart."""
    folder = tmp_path_factory.mktemp("ckpt") / "random"
    model = models.create("resnet20", blocks=(1, 1), width=8, num_classes=2)
    preprocess = Preprocess(size=(16, 16), resize=(16, 16), channels="L", mean=(0.3,), std=(0.4,))
    zoo.save(folder, model, models.init(model, 0, (16, 16, 1)), ("a", "b"), preprocess)
    return folder


def test_features_are_the_endpoint_of_every_image_in_order(checkpoint):
    digits = zoo.open_dataset("digits")
    extracted = zoo.features(checkpoint, digits, splits=["validation"], batch_size=64)
    loaded = zoo.load(checkpoint)
    from zoo.data.images.preprocess import images_to_input, normalise

    split = digits.splits["validation"]
    preprocess = loaded.card.preprocess
    images = normalise(images_to_input(split.read(np.arange(len(split))), preprocess), preprocess)
    ends = loaded.model.apply(loaded.variables, images)[1]
    rows, labels = extracted.splits["validation"]
    assert list(extracted.splits) == ["validation"] and np.array_equal(labels, split.labels)
    np.testing.assert_allclose(rows, ends["features"], atol=1e-5)
    mean, flat = (
        zoo.features(checkpoint, digits, "stage1", splits=["validation"], pool=pool).splits["validation"][0]
        for pool in ("mean", "flatten")
    )
    np.testing.assert_allclose(mean, ends["stage1"].mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(flat, ends["stage1"].reshape(len(labels), -1), atol=1e-5)


def test_endpoints_are_named_in_order(checkpoint):
    loaded = zoo.load(checkpoint)
    assert list(endpoints(loaded.model, loaded.card.preprocess)) == ["stem", "stage1", "stage2", "features", "logits"]
    with pytest.raises(ValueError, match=r"'stage3'.* stem, stage1, stage2, features, logits"):
        zoo.features(checkpoint, "digits", "stage3")
    with pytest.raises(ValueError, match=r"'max'.* mean, flatten"):
        zoo.features(checkpoint, "digits", "stage1", pool="max")
    with pytest.raises(ValueError, match=r"'vla'.* train, validation, test"):
        zoo.features(checkpoint, "digits", splits=["vla"])


def blobs(classes, counts, seed=0, width=6):
    """Return features [N, width + 4]: clusters around a centre per class, and four columns of large noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(0, 2, (classes, width))

    def split(count):
        labels = rng.integers(0, classes, count).astype(np.int32)
        noise = rng.normal(0, 100, (count, 4))
        return np.hstack([centres[labels] + rng.normal(0, 1, (count, width)), noise]).astype(np.float32), labels

    names = ("train", "validation", "test")
    return Features({name: split(count) for name, count in zip(names, counts, strict=True)}, tuple("abcdefg"[:classes]))


@pytest.mark.parametrize("kind", ["softmax", "svm"])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_separates_linear_clusters(kind, classes):
    extracted = blobs(classes, (60, 20, 200))
    probed = zoo.probe(extracted, kind)
    assert probed.metrics["accuracy"] > 0.85 and probed.metrics["examples"] == 200 and probed.folds == 5
    rows, labels = extracted.splits["test"]
    assert probed.metrics["accuracy"] == pytest.approx((probed.classifier.predict(rows) == labels).mean())
    if kind == "softmax":  # without the temperature, the loss is that of the classifier's own probabilities
        probabilities = probed.classifier.predict_proba(rows)[np.arange(200), labels]
        loss = (probed.metrics.uncalibrated or {"loss": probed.metrics.loss})["loss"]
        assert loss == pytest.approx(-np.log(probabilities).mean(), rel=1e-3)


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_a_probe_is_calibrated_on_examples_held_out_by_cross_validation(kind):
    """The independent answer: scikit-learn's held-out scores of the same folds."""
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (160, 10)).astype(np.float32)
    labels = (rows[:, 0] + rng.normal(0, 1, 160) > 0).astype(np.int32)
    probed = zoo.probe(
        Features({"train": (rows[:100], labels[:100]), "test": (rows[100:], labels[100:])}, ("a", "b")), kind
    )
    order = np.random.default_rng(0).permutation(100)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(
        clone(probed.classifier), rows[order], labels[order], cv=folds, method="decision_function"
    )
    logits = np.stack([0 * scores if kind == "softmax" else -scores, scores], 1)
    calibration = probed.calibration
    assert calibration.split == "cross-validation" and calibration.examples == 100
    assert calibration.temperature == pytest.approx(fit_temperature(logits, labels[order]), rel=1e-4)
    energy = np.log(np.exp(logits).sum(1))
    assert calibration.energy_threshold == pytest.approx(np.quantile(energy, 0.05), abs=1e-4)
    own = (probed.classifier.decision_function(rows[100:]) > 0) == labels[100:]
    assert probed.metrics.accuracy == pytest.approx(own.mean()) and probed.metrics.uncalibrated is not None


def test_the_test_split_does_not_influence_training():
    extracted = blobs(3, (60, 20, 100))
    rows, labels = extracted.splits["test"]
    other = extracted._replace(splits={**extracted.splits, "test": (rows + 5, (labels + 1) % 3)})
    one, two = zoo.probe(extracted), zoo.probe(other)
    assert (one.strength, one.cross_validated) == (two.strength, two.cross_validated)
    assert np.array_equal(one.classifier[-1].coef_, two.classifier[-1].coef_)
    assert one.metrics["accuracy"] != two.metrics["accuracy"]


def test_classes_with_one_training_example_or_none():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 1, (13, 3)).astype(np.float32), np.array([0] * 6 + [2] * 6 + [3], np.int32)
    rows[:, 0] += 5 * labels
    extracted = Features({"train": (rows, labels), "test": (rows, labels)}, tuple("abcd"))
    probed = zoo.probe(extracted)
    assert probed.metrics["per_class"][1]["support"] == 0 and probed.metrics["accuracy"] > 0.8
    with pytest.raises(ValueError, match=r"test or validation split.* train"):
        zoo.probe(Features({"train": (rows, labels)}, tuple("abcd")))
    with pytest.raises(ValueError, match="two classes"):
        zoo.probe(Features({"train": (rows, labels * 0), "test": (rows, labels)}, tuple("abcd")))


def test_a_penalty_is_chosen_although_a_class_has_a_single_example():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 1, (41, 3)).astype(np.float32), np.array([0] * 40 + [1], np.int32)
    rows[40] += 9
    probed = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels)}, ("a", "b", "c")))
    assert np.isfinite(probed.cross_validated) and probed.metrics["accuracy"] > 0.9
    with pytest.raises(ValueError, match="penalty"):
        zoo.probe(Features({"train": (rows[39:], labels[39:]), "test": (rows, labels)}, ("a", "b", "c")))
    unknown = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels * 0 + 2)}, ("a", "b", "c")))
    assert unknown.metrics["accuracy"] == 0 and unknown.metrics["loss"] < 100
    assert any("no training examples of c" in note for note in unknown.metrics["notes"])


def test_the_commands_features_and_probe(checkpoint, tmp_path, capsys):
    file = str(tmp_path / "digits.npz")
    assert main(["features", str(checkpoint), "--data", "digits", "--at", "stage2", "-o", file]) == 0
    assert "16 features per image (stage2 of resnet20 on digits); train 1,258" in capsys.readouterr().out
    extracted = load_features(file)
    assert extracted.splits["test"][0].shape == (359, 16) and extracted.class_names == tuple("0123456789")
    assert main(["probe", file]) == 0
    out = capsys.readouterr().out
    assert "linear softmax on stage2 of resnet20 on digits" in out and "5-fold" in out and "macro" in out
    assert main(["features", str(checkpoint), "-o", file]) == 2
    assert "--data" in capsys.readouterr().err
    (tmp_path / "x.npz").write_text("no")
    np.save(tmp_path / "array", np.zeros(3))
    for other in ("x.npz", (tmp_path / "array.npy").rename(tmp_path / "y.npz").name):
        assert main(["probe", str(tmp_path / other)]) == 2
        assert "`zoo features`" in capsys.readouterr().err
    assert main(["probe", file, "--at", "stage1", "--limit", "3"]) == 2
    assert "--limit, --at" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "x.npz")]) == 2
    assert "`zoo features`" in capsys.readouterr().err


def test_drawings_of_the_other_polarity_give_the_same_features(tmp_path):
    images = zoo.open_dataset("digits").splits["test"].read(np.arange(100))
    labels = np.arange(100) % 2
    light, dark = (from_arrays((pixels, labels), name="drawn") for pixels in (images, 255 - images))
    model = models.create("mlp", widths=(8,), image_size=8, num_classes=2)
    preprocess = Preprocess(size=(8, 8), resize=(8, 8), channels="L", polarity="light-on-dark", mean=(0.3,), std=(0.4,))
    zoo.save(tmp_path / "ckpt", model, models.init(model, 0, (8, 8, 1)), ("a", "b"), preprocess)
    one, two = (zoo.features(tmp_path / "ckpt", data).splits for data in (light, dark))
    keys = [np.sort(rows, axis=0) for rows in (np.concatenate([s[n][0] for n in s]) for s in (one, two))]
    np.testing.assert_allclose(*keys, atol=1e-5)


# --- the choice of the penalty ---------------------------------------------------------------------------------------


def tiny(counts, width=2, seed=0):
    """Return rows float32 [N, width] and labels with this number of examples per class, apart along the first axis."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    rows = rng.normal(0, 1, (len(labels), width)).astype(np.float32)
    rows[:, 0] += 6 * labels
    return rows, labels


@pytest.mark.parametrize(
    ("counts", "folds"),
    [((20, 20), 5), ((20, 5), 5), ((20, 4), 4), ((20, 2), 2), ((20, 1), 5), ((3, 1), 4), ((2, 1), 2)],
    ids=str,
)
def test_the_number_of_folds_follows_the_rarest_class(counts, folds):
    """Stratified if every class has two examples; else plain folds, without those that would train on one class."""
    rows, labels = tiny(counts)
    probed = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels)}, ("a", "b")))
    expected = folds if min(counts) > 1 else folds - 1  # without the fold that holds the only example
    if counts == (2, 1):
        expected = 2
    assert probed.folds == expected


def test_validation_examples_are_trained_on_and_test_examples_are_not():
    rows, labels = tiny((8, 8, 8))
    splits = {"train": (rows[:16], labels[:16]), "validation": (rows[16:], labels[16:]), "test": (rows, labels)}
    probed = zoo.probe(Features(splits, tuple("abc")))
    assert list(probed.classifier.classes_) == [0, 1, 2] and probed.metrics["accuracy"] == 1
    del splits["validation"]
    probed = zoo.probe(Features(splits, tuple("abc")))
    assert list(probed.classifier.classes_) == [0, 1]
    np.testing.assert_allclose(probed.classifier[0].mean_, rows[:16].mean(0), rtol=1e-5)  # of the training rows
    assert probed.metrics["per_class"][2]["recall"] == 0 and len(probed.metrics["notes"]) == 1


def test_the_strength_is_the_cross_validated_best_and_the_smallest_of_equals():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from zoo.analysis.probe import STRENGTHS

    assert STRENGTHS == (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    extracted = blobs(3, (40, 20, 50))
    rows, labels = (np.concatenate([extracted.splits[name][i] for name in ("train", "validation")]) for i in (0, 1))
    order = np.random.default_rng(3).permutation(60)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    scores = {}
    for strength in STRENGTHS:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1000 * strength / 60, max_iter=1000))
        scores[strength] = cross_val_score(pipeline, rows[order], labels[order], cv=folds).mean()
    best = max(scores.values())
    probed = zoo.probe(extracted, seed=3)
    assert probed.strength == min(strength for strength, score in scores.items() if score > best - 1e-6)
    assert probed.cross_validated == pytest.approx(best) and 1000 * probed.strength / 60 == probed.classifier[-1].C


def test_the_number_of_examples_that_choose_the_strength_is_limited(monkeypatch):
    from zoo.analysis import probe as probing

    assert (probing.CROSS_VALIDATED, probing.FOLDS, probing.UNSEEN_MARGIN) == (10_000, 5, 20.0)
    sizes, original = [], probing._folds
    monkeypatch.setattr(probing, "_folds", lambda labels, seed: sizes.append(len(labels)) or original(labels, seed))
    monkeypatch.setattr(probing, "CROSS_VALIDATED", 30)
    probed = zoo.probe(blobs(2, (60, 20, 20)))
    assert sizes == [30] and pytest.approx(1000 * probed.strength / 80) == probed.classifier[-1].C


def test_an_unknown_kind_of_probe_is_named():
    with pytest.raises(ValueError, match=r"'tree'.*softmax, svm"):
        zoo.probe(blobs(2, (10, 0, 5)), "tree")


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_that_are_not_finite_are_refused(split):
    features = blobs(2, (10, 0, 5))
    features.splits[split][0][3, 1] = np.inf
    with pytest.raises(ValueError, match=f"features of 1 of .* images of the {split} split are NaN or infinite"):
        zoo.probe(features)


def test_a_file_of_features_is_read_as_written(tmp_path):
    extracted = blobs(3, (5, 2, 3))._replace(about="features of x on y")
    extracted.save(tmp_path / "name.of.mine")  # no suffix is appended
    again = load_features(tmp_path / "name.of.mine")
    assert (again.class_names, again.about) == (extracted.class_names, extracted.about)
    assert list(again.splits) == ["train", "validation", "test"]
    for name, pair in extracted.splits.items():
        for actual, expected in zip(again.splits[name], pair, strict=True):
            assert actual.dtype == expected.dtype and np.array_equal(actual, expected)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        load_features(tmp_path / "nowhere.npz")


FEATURES = {
    "train_features": np.ones((4, 3), np.float32), "train_labels": np.array([0, 1, 0, 1]),
    "class_names": np.array(["cat", "dog"]), "about": np.array("features"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "array", "part"),
    [
        ("class_names", np.empty((2**24, 0), "U3"), "(16777216, 0)"),  # no bytes, and millions of names
        ("class_names", np.array(["cat"]), "labels 0 to 1 for 1 classes"),
        ("train_labels", np.array([0, 1]), "(4, 3)"), ("train_labels", np.array([0, -1, 0, 1]), "labels -1 to 1"),
        ("train_labels", np.array([0.0, 1, 0, 1]), "float64"), ("train_features", np.ones(4, np.float32), "(4,)"),
        ("train_features", np.array([["x"]] * 4), "<U1"), ("train_files", np.empty((4, 0), "U3"), "(4, 0)"),
        ("about", np.array([{}], object), "pickle"),
    ],
)  # fmt: skip
def test_a_file_of_features_is_checked(key, array, part, tmp_path):
    np.savez(tmp_path / "f.npz", **FEATURES)
    assert load_features(tmp_path / "f.npz").class_names == ("cat", "dog")
    np.savez(tmp_path / "f.npz", **{**FEATURES, key: array})
    with pytest.raises(ValueError, match=r"f\.npz: was not written by `zoo features`") as caught:
        load_features(tmp_path / "f.npz")
    assert part in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_features_do_not_depend_on_the_batch_size(batch_size, checkpoint):
    rng = np.random.default_rng(0)
    data = from_arrays((rng.integers(0, 256, (10, 16, 16), np.uint8), np.arange(10) % 2), name="mine")
    progress = []
    extracted = zoo.features(checkpoint, data, "stem", batch_size=batch_size, on_batch=progress.append)
    total = sum(len(rows) for rows, _ in extracted.splits.values())
    assert total == progress[-1] == 10 and extracted.about == "stem of resnet20 on mine"
    for name, (rows, labels) in extracted.splits.items():
        assert rows.shape == (len(data.splits[name]), 8) and labels.dtype == np.int32


def test_validation_images_of_a_class_that_is_not_trained_do_not_change_the_temperature(monkeypatch):
    """Their logits are UNSEEN_MARGIN below the others, for which a temperature of 1 is never the best."""
    monkeypatch.setattr("zoo.analysis.probe.STRENGTHS", (1.0,))
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (300, 4)).astype(np.float32)
    labels = (rows[:, 0] + rng.normal(0, 1, 300) > 0).astype(np.int32)
    validation = (rows[100:], labels[100:])
    more = (np.concatenate([validation[0], rows[:5]]), np.concatenate([validation[1], np.full(5, 2, np.int32)]))
    fitted = [
        fit_on_validation(Features({"train": (rows[:100], labels[:100]), "validation": split}, ("a", "b", "c")))
        for split in (validation, more)
    ]
    assert fitted[0].strength == fitted[1].strength
    assert fitted[0].calibration == fitted[1].calibration and fitted[0].calibration.examples == 200
