"""A folder, from files to figures: evaluation, prediction and training say what they leave out, and count the rest."""

import json

import jax
import numpy as np
import pytest
from photos import encoded, folder_of, photo

import zoo
from zoo import api, cli
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import images_to_views
from zoo.data.sources import from_arrays, open_dataset
from zoo.training import loop


def checkpoint(path, name, size, classes, **fields):
    """An untrained model, saved."""
    model = zoo.create(name, num_classes=len(classes), **fields)
    variables = zoo.init(model, 0, (*size, 3))
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


@pytest.mark.parametrize("tta", ["flip", "ten-crop"])
def test_the_probabilities_of_the_views_are_averaged_exactly_at_every_batch_size(tta, dense, folder):
    split = open_dataset(folder).splits["test"]
    views = images_to_views(split.read(np.arange(len(split))), dense.card.preprocess, tta)
    each = [api.evaluation.predict(dense.model, dense.variables, v, dense.card.preprocess) for v in views]
    mean = np.stack([part.mean(0) for part in each])
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


def test_another_size_than_it_was_trained_at(dense, folder, monkeypatch):
    with pytest.raises(ValueError, match="8x8"):
        zoo.evaluate(dense, str(folder), image_size=12)
    monkeypatch.setattr(api.evaluation, "evaluate", lambda model, variables, split, preprocess, *a, **k: preprocess)
    assert zoo.evaluate(dense, str(folder), image_size=12) == Preprocess((12, 12), (12, 12))
    assert zoo.evaluate(dense, str(folder)) is dense.card.preprocess


def test_what_is_left_out_of_an_evaluation_is_said(dense, folder, tmp_path, capsys):
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)
    assert cli.main(["eval", str(tmp_path / "c"), "--data", str(folder), "--tta", "five-crop"]) == 0
    captured = capsys.readouterr()
    assert "five-crop views, averaged" in captured.out and "11" in captured.out
    assert "test/a/broken.png: damaged" in captured.err and "left out" in captured.err
    assert cli.main(["eval", str(tmp_path / "c"), "--data", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 11 and len(result["left_out"]) == 1


def test_a_folder_without_a_test_split_says_which_part_is_counted(dense, tmp_path, capsys):
    loose = str(folder_of(tmp_path / "loose", {"a": 10, "b": 10}, (12, 16)))
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)

    def evaluated(*words):
        assert cli.main(["eval", str(tmp_path / "c"), "--data", loose, "--json", *words]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out)["examples"], captured.err

    count, said = evaluated()
    assert count == 4 and "4 of 20 records are held out of train by content; --split all" in said
    count, said = evaluated("--split", "all")
    assert count == 20 and "--split all" not in said
    count, said = evaluated("--split", "test")
    assert count == 4 and "--split all" not in said
    loose = str(folder_of(tmp_path / "split", {f"{s}/{c}": 10 for s in ("train", "val") for c in "ab"}, (12, 16)))
    count, said = evaluated()  # a validation split used as the test split is not held out
    assert count == 20 and "--split all" not in said


def test_classes_that_the_model_does_not_have(dense):
    images = np.zeros((20, 8, 8, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    data = from_arrays((images, np.arange(20) % 2), class_names=["a", "z"])
    with pytest.raises(ValueError, match=r"arrays: .*\bz \(it has b, c, a\)"):
        zoo.evaluate(dense, data)


def test_prediction_of_a_folder_counts_what_it_cannot_read(dense, folder, tmp_path, capsys):
    zoo.save(tmp_path / "c", dense.model, dense.variables, ("a", "b", "c"), dense.card.preprocess)
    table = tmp_path / "table.csv"
    assert cli.main(["predict", str(tmp_path / "c"), str(folder), "--tta", "flip", "-o", str(table)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 27 and len(table.read_text().splitlines()) == 28
    assert captured.err.splitlines()[-1] == "zoo predict: 1 of 28 files could not be read"
    assert "broken.png" in captured.err.splitlines()[0]


def test_training_from_files_stopped_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path, capsys, monkeypatch):
    """The host cuts the crops; another number of threads, and a stop in between, change nothing."""
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
        if seen == [1, 2, 3, 4, 5, 6]:
            raise MemoryError("killed here")

    monkeypatch.setattr(loop.Trainer, "process_metrics", process_metrics)
    with pytest.raises(MemoryError):
        cli.main([*words, "--workers", "4", "--workdir", "parts"])
    assert cli.main([*words, "--workers", "1", "--workdir", "parts"]) == 0
    assert seen[6] < 6 and seen[-1] == 9  # 22 images, 2 epochs
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    one, other = (jax.tree.leaves(zoo.load(tmp_path / run / "best").variables) for run in ("whole", "parts"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
