"""Evaluation: averaging over views, exactness at every batch size, and data sets with unreadable or held-out files."""

import json

import jax
import numpy as np
import pytest
from photos import encoded, folder_of, photo

import zoo
from zoo import api, cli
from zoo.data.dataset import all_splits
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import images_to_views
from zoo.data.sources import from_arrays, open_dataset
from zoo.inference import evaluate, metrics
from zoo.models import abstract_variables
from zoo.training import loop


def checkpoint(path, name, size, classes, **fields):
    """Save a model with random weights and load it."""
    model = zoo.create(name, num_classes=len(classes), **fields)
    rng = np.random.default_rng(0)
    # Fresh heads are zero and give equal probabilities, which hide how they are averaged.
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_variables(model, (*size, 3))
    )
    zoo.save(path, model, variables, classes, Preprocess(size, size))
    return zoo.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = folder_of(
        tmp_path_factory.mktemp("folder"), {"train/a": 8, "train/b": 8, "test/a": 6, "test/b": 5}, (12, 16)
    )
    (root / "test" / "a" / "broken.png").write_bytes(encoded(photo(30, 30))[:300])
    return root


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("dense") / "c", "softmax", (8, 8), ("b", "c", "a"), image_size=8)


def test_unknown_views_are_named(dense, folder):
    with pytest.raises(ValueError, match="'flp' is unknown; choose from flip"):
        zoo.evaluate(dense, str(folder), tta="flp")


@pytest.mark.parametrize("tta", ["flip", "ten-crop"])
def test_the_probabilities_of_the_views_are_averaged_exactly_at_every_batch_size(tta, dense, folder):
    split = open_dataset(folder).splits["test"]
    views = images_to_views(split.read(np.arange(len(split))), dense.card.preprocess, tta)
    each = [evaluate.predict_probabilities(dense.model, dense.variables, v, dense.card.preprocess) for v in views]
    mean = np.stack([part.mean(0) for part in each])
    geometric = np.exp(np.stack([np.log(part).mean(0) for part in each]))  # the average of logits, but for a constant
    geometric /= geometric.sum(1, keepdims=True)
    first = np.stack([part[0] for part in each])
    assert min(np.abs(mean - geometric).max(), np.abs(mean - first).max()) > 0.01  # the test can tell them apart
    truth = [{"a": 2, "b": 0}["ab"[label]] for label in split.labels]
    accuracy = float(np.mean(mean.argmax(1) == truth))
    loss = float(-np.log(mean[np.arange(len(truth)), truth]).mean())
    for batch_size in (30, 256):
        result = zoo.evaluate(dense, str(folder), batch_size=batch_size, tta=tta)
        assert result["examples"] == 11 and result["accuracy"] == pytest.approx(accuracy)
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
    paths = [str(folder / split.name(i)) for i in range(len(split))]
    shares = [dict(prediction.top)["a"] for prediction in dense.predict(paths, tta=tta)]
    np.testing.assert_allclose(shares, mean[:, 2], rtol=1e-5)


def test_the_image_size_may_differ_from_training(dense, folder, monkeypatch):
    with pytest.raises(ValueError, match="8x8"):
        zoo.evaluate(dense, str(folder), image_size=12)
    monkeypatch.setattr(api.evaluation, "evaluate", lambda model, variables, split, preprocess, *a, **k: preprocess)
    assert zoo.evaluate(dense, str(folder), image_size=12) == Preprocess((12, 12), (12, 12))
    assert zoo.evaluate(dense, str(folder)) is dense.card.preprocess


def test_unreadable_files_are_reported_and_left_out(dense, folder, tmp_path, capsys):
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)
    assert cli.main(["eval", str(tmp_path / "c"), "--data", str(folder), "--tta", "five-crop"]) == 0
    captured = capsys.readouterr()
    assert "five-crop views, averaged" in captured.out and "11" in captured.out
    assert "test/a/broken.png: damaged" in captured.err and "left out" in captured.err
    assert cli.main(["eval", str(tmp_path / "c"), "--data", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 11 and len(result["left_out"]) == 1


def test_a_held_out_test_split_is_reported(dense, tmp_path, capsys):
    loose = str(folder_of(tmp_path / "loose", {"a": 10, "b": 10}, (12, 16)))
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)

    def evaluated(*words):
        assert cli.main(["eval", str(tmp_path / "c"), "--data", loose, "--json", *words]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out)["examples"], captured.err

    examples, err = evaluated()
    assert examples == 4 and "4 of 20 records are held out of train by content; --split all" in err
    examples, err = evaluated("--split", "all")
    assert examples == 20 and "--split all" not in err
    examples, err = evaluated("--split", "test")
    assert examples == 4 and "--split all" not in err
    loose = str(folder_of(tmp_path / "split", {f"{s}/{c}": 10 for s in ("train", "val") for c in "ab"}, (12, 16)))
    examples, err = evaluated()  # a validation split used as the test split is not held out
    assert examples == 20 and "--split all" not in err


def test_unknown_classes_are_rejected(dense):
    images = np.zeros((20, 8, 8, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    data = from_arrays((images, np.arange(20) % 2), class_names=["a", "z"])
    with pytest.raises(ValueError, match=r"arrays: .*\bz \(it has b, c, a\)"):
        zoo.evaluate(dense, data)


def test_prediction_of_a_folder_counts_unreadable_files(dense, folder, tmp_path, capsys):
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)
    table = tmp_path / "table.csv"
    assert cli.main(["predict", str(tmp_path / "c"), str(folder), "--tta", "flip", "-o", str(table)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 27 and len(table.read_text().splitlines()) == 28
    assert captured.err.splitlines()[-1] == "zoo predict: 1 of 28 files could not be read"
    assert "broken.png" in captured.err.splitlines()[0]


def test_resuming_training_from_files_gives_the_same_bits(tmp_path, capsys, monkeypatch):
    """Stop in the middle of an epoch and resume with another number of threads; the host cuts the crops."""
    folder_of(tmp_path / "data", {"train/a": 12, "train/b": 12, "test/a": 4, "test/b": 4}, (40, 50), suffix="jpg")
    (tmp_path / "data" / "train" / "a" / "broken.jpg").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--model", "softmax", "--data", "data", "--set", "image_size=16", "--epochs", "2"]
    words += ["--batch-size", "5", "--augment", "resized_crop,flip", "--save-steps", "4", "--save-every", "1000"]
    assert cli.main([*words, "--workers", "0", "--workdir", "whole"]) == 0
    out = capsys.readouterr().out
    assert "train/a/broken.jpg: is not an image" in out and "left out" in out
    seen = []
    original = loop.Trainer.process_metrics

    def process_metrics(self, step, metrics):
        original(self, step, metrics)
        seen.append(step)
        if seen == [1, 2, 3, 4, 5, 6, 7]:
            raise MemoryError("killed here")

    monkeypatch.setattr(loop.Trainer, "process_metrics", process_metrics)
    with pytest.raises(MemoryError):
        cli.main([*words, "--workers", "4", "--workdir", "parts"])
    assert cli.main([*words, "--workers", "1", "--workdir", "parts"]) == 0
    assert seen[7] < 7 and seen[-1] == 9  # 22 images, 2 epochs
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    one, other = (jax.tree.leaves(zoo.load(tmp_path / run / "best").variables) for run in ("whole", "parts"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# --- on arrays -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays():
    """A split of 13 images of the classes of `dense`, all different."""
    rng = np.random.default_rng(5)
    data = from_arrays((rng.integers(0, 256, (13, 8, 8, 3), np.uint8), np.arange(13) % 3), class_names=list("bca"))
    return all_splits(data)


def run_evaluation(checkpoint, split, **options):
    card = checkpoint.card
    return evaluate.evaluate(checkpoint.model, checkpoint.variables, split, card.preprocess, card.classes, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 12, 13, 14, 256])
def test_every_example_counts_once_at_every_batch_size(batch_size, dense, arrays):
    probabilities = evaluate.predict_probabilities(
        dense.model, dense.variables, arrays.read(np.arange(13)), dense.card.preprocess
    )
    loss = -np.log(probabilities[np.arange(13), arrays.labels]).mean()
    progress = []
    result = run_evaluation(dense, arrays, batch_size=batch_size, on_batch=progress.append)
    assert result["examples"] == 13 and sum(map(sum, result["confusion"])) == 13
    assert result["accuracy"] == pytest.approx((probabilities.argmax(1) == arrays.labels).mean())
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["roc_auc"] == pytest.approx(metrics.roc_auc(probabilities, arrays.labels))
    assert result["ece"] == pytest.approx(metrics.calibration_error(probabilities, arrays.labels), abs=1e-6)
    assert progress == [*range(batch_size, 13, batch_size), 13]


def test_batches_shrink_to_the_split_and_by_the_number_of_views(dense, arrays, monkeypatch):
    sizes, original = [], evaluate.eval_batches

    def recorded(*args, batch_size, **options):
        sizes.append(batch_size)
        return original(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(evaluate, "eval_batches", recorded)
    for options in ({}, {"batch_size": 16}, {"batch_size": 15}, {"batch_size": 20, "tta": "ten-crop"},
                    {"batch_size": 19, "tta": "ten-crop"}, {"batch_size": 9, "tta": "ten-crop"}):  # fmt: skip
        run_evaluation(dense, arrays, **options)
    assert sizes == [16, 16, 15, 2, 1, 1]


def test_score_table_at_its_limit(dense, arrays, monkeypatch):
    monkeypatch.setattr(metrics, "SCORE_LIMIT", 39)  # 13 examples of 3 classes
    assert run_evaluation(dense, arrays)["roc_auc"] is not None
    monkeypatch.setattr(metrics, "SCORE_LIMIT", 38)
    result = run_evaluation(dense, arrays)
    assert result["roc_auc"] is result["ece"] is None and len(result["notes"]) == 1
    assert metrics.SCORE_LIMIT == 38 and "38" in result["notes"][0]


def test_the_loss_is_cross_entropy_of_the_mean_probability_even_if_a_class_is_impossible(dense):
    """Underflow of all views gives the smallest normal float32, not an infinite loss."""
    model = dense.model
    variables = jax.tree.map(np.zeros_like, dense.variables)
    variables["params"]["head"]["bias"] = np.array([0, 200, 0], np.float32)
    step = evaluate.make_eval_step(model, dense.card.preprocess)
    batch = {"image": np.zeros((1, 2, 8, 8, 3), np.uint8), "label": np.zeros(1, np.int32), "weight": np.ones(1)}
    sums, (probabilities, *_) = step(variables, batch)
    assert float(sums["loss"]) == pytest.approx(-np.log(np.finfo(np.float32).tiny), rel=1e-5)
    np.testing.assert_allclose(probabilities, [[0, 1, 0]], atol=1e-6)


def test_sums_are_added_over_an_axis(dense, arrays):
    step = evaluate.make_eval_step(dense.model, dense.card.preprocess, axis_name="i")
    images = arrays.read(np.arange(12)).reshape(4, 3, 8, 8, 3)
    batch = {"image": images, "label": arrays.labels[:12].reshape(4, 3).astype(np.int32), "weight": np.ones((4, 3))}
    sums, _ = jax.vmap(step, in_axes=(None, 0), axis_name="i", out_axes=(None, 0))(dense.variables, batch)
    assert float(sums["weight"]) == 12 and sums["confusion"].sum() == 12


def test_an_empty_split_is_rejected(dense, arrays):
    empty = type(arrays)(arrays.images[:0], arrays.labels[:0])
    with pytest.raises(ValueError, match="empty"):
        run_evaluation(dense, empty)


def test_published_settings():
    assert metrics.BINS == 15  # Guo et al. 2017
    assert evaluate.BATCH_SIZE == 256 and evaluate.PREDICTION_BATCHES == (64, 32, 16, 1)
