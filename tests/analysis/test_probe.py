"""A network as a fixed feature extractor, and linear classifiers on it."""

import numpy as np
import pytest

import zoo
from zoo import models
from zoo.analysis.probe import Features, endpoints, load_features
from zoo.cli import main
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random network; its features are good enough for digits all the same."""
    folder = tmp_path_factory.mktemp("ckpt") / "random"
    model = models.create("resnet20", blocks=(1, 1), width=8, num_classes=2)
    plan = Preprocess(size=(16, 16), resize=(16, 16), channels="L", mean=(0.3,), std=(0.4,))
    zoo.save(folder, model, models.init(model, 0, (16, 16, 1)), ("a", "b"), plan)
    return folder


def test_features_are_the_endpoint_of_every_image_in_order(checkpoint):
    digits = zoo.open_dataset("digits")
    found = zoo.features(checkpoint, digits, splits=["validation"], batch_size=64)
    loaded = zoo.load(checkpoint)
    from zoo.data.images.preprocess import images_to_input, normalise

    split = digits.splits["validation"]
    preprocess = loaded.card.preprocess
    images = normalise(images_to_input(split.read(np.arange(len(split))), preprocess), preprocess)
    ends = loaded.model.apply(loaded.variables, images)[1]
    rows, labels = found.splits["validation"]
    assert list(found.splits) == ["validation"] and np.array_equal(labels, split.labels)
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
    with pytest.raises(ValueError, match=r"no endpoint 'stage3'; it has stem, stage1, stage2, features, logits"):
        zoo.features(checkpoint, "digits", "stage3")
    with pytest.raises(ValueError, match="is one of mean, flatten"):
        zoo.features(checkpoint, "digits", "stage1", pool="max")
    with pytest.raises(ValueError, match="no split 'val'; it has train, validation, test"):
        zoo.features(checkpoint, "digits", splits=["val"])


def blobs(classes, counts, seed=0, width=6):
    """Features [N, width] around a centre per class: some of the numbers are only noise of a larger scale."""
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
def test_a_probe_finds_what_is_linear(kind, classes):
    found = blobs(classes, (60, 20, 200))
    probed = zoo.probe(found, kind)
    assert probed.metrics["accuracy"] > 0.85 and probed.metrics["examples"] == 200 and probed.folds == 5
    rows, labels = found.splits["test"]
    assert probed.metrics["accuracy"] == pytest.approx((probed.classifier.predict(rows) == labels).mean())
    if kind == "softmax":  # its own probabilities are those that were judged
        sure = probed.classifier.predict_proba(rows)[np.arange(200), labels]
        assert probed.metrics["loss"] == pytest.approx(-np.log(sure).mean(), rel=1e-3)


def test_the_test_split_chooses_nothing():
    found = blobs(3, (60, 20, 100))
    rows, labels = found.splits["test"]
    other = found._replace(splits={**found.splits, "test": (rows + 5, (labels + 1) % 3)})
    one, two = zoo.probe(found), zoo.probe(other)
    assert (one.strength, one.cross_validated) == (two.strength, two.cross_validated)
    assert np.array_equal(one.classifier[-1].coef_, two.classifier[-1].coef_)
    assert one.metrics["accuracy"] != two.metrics["accuracy"]


def test_classes_with_one_example_or_none():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 1, (13, 3)).astype(np.float32), np.array([0] * 6 + [2] * 6 + [3], np.int32)
    rows[:, 0] += 5 * labels
    found = Features({"train": (rows, labels), "test": (rows, labels)}, tuple("abcd"))
    probed = zoo.probe(found)
    assert probed.metrics["per_class"][1]["support"] == 0 and probed.metrics["accuracy"] > 0.8
    with pytest.raises(ValueError, match="needs a train and a test split; there are train"):
        zoo.probe(Features({"train": (rows, labels)}, tuple("abcd")))
    with pytest.raises(ValueError, match="two classes at least"):
        zoo.probe(Features({"train": (rows, labels * 0), "test": (rows, labels)}, tuple("abcd")))


def test_one_example_of_a_class_still_leaves_something_to_choose_by():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 1, (41, 3)).astype(np.float32), np.array([0] * 40 + [1], np.int32)
    rows[40] += 9
    probed = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels)}, ("a", "b", "c")))
    assert np.isfinite(probed.cross_validated) and probed.metrics["accuracy"] > 0.9
    with pytest.raises(ValueError, match="more than one example of a class"):
        zoo.probe(Features({"train": (rows[39:], labels[39:]), "test": (rows, labels)}, ("a", "b", "c")))
    unknown = zoo.probe(Features({"train": (rows, labels), "test": (rows, labels * 0 + 2)}, ("a", "b", "c")))
    assert unknown.metrics["accuracy"] == 0 and unknown.metrics["loss"] < 100
    assert any("no training examples of c" in note for note in unknown.metrics["notes"])


def test_the_commands(checkpoint, tmp_path, capsys):
    file = str(tmp_path / "digits.npz")
    assert main(["features", str(checkpoint), "--data", "digits", "--at", "stage2", "-o", file]) == 0
    assert "16 numbers each (stage2 of resnet20 on digits); train 1,258" in capsys.readouterr().out
    found = load_features(file)
    assert found.splits["test"][0].shape == (359, 16) and found.class_names == tuple("0123456789")
    assert main(["probe", file]) == 0
    out = capsys.readouterr().out
    assert "linear softmax on stage2 of resnet20 on digits" in out and "5-fold" in out and "macro" in out
    assert main(["features", str(checkpoint), "-o", file]) == 2
    assert "does not say what it was trained on; give --data" in capsys.readouterr().err
    (tmp_path / "x.npz").write_text("no")
    np.save(tmp_path / "array", np.zeros(3))
    for other in ("x.npz", (tmp_path / "array.npy").rename(tmp_path / "y.npz").name):
        assert main(["probe", str(tmp_path / other)]) == 2
        assert "is not a file of `zoo features`" in capsys.readouterr().err
    assert main(["probe", file, "--at", "stage1", "--limit", "3"]) == 2
    assert "has its features already; --limit, --at would change nothing" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "x.npz")]) == 2
    assert "is not a file of `zoo features`" in capsys.readouterr().err


def test_drawings_of_the_other_polarity_give_the_same_features(tmp_path):
    images = zoo.open_dataset("digits").splits["test"].read(np.arange(100))
    labels = np.arange(100) % 2
    light, dark = (from_arrays((pixels, labels), name="drawn") for pixels in (images, 255 - images))
    model = models.create("mlp", widths=(8,), image_size=8, num_classes=2)
    plan = Preprocess(size=(8, 8), resize=(8, 8), channels="L", polarity="light-on-dark", mean=(0.3,), std=(0.4,))
    zoo.save(tmp_path / "ckpt", model, models.init(model, 0, (8, 8, 1)), ("a", "b"), plan)
    one, two = (zoo.features(tmp_path / "ckpt", data).splits for data in (light, dark))
    keys = [np.sort(rows, axis=0) for rows in (np.concatenate([s[n][0] for n in s]) for s in (one, two))]
    np.testing.assert_allclose(*keys, atol=1e-5)
