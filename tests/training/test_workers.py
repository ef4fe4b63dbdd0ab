"""The number of threads that read data reaches every reader of a command."""

import numpy as np
import pytest
from helpers import random_images, run_command

from zoo.data import loader


@pytest.fixture(autouse=True)
def _no_global_cache(monkeypatch):
    for command in ("train", "lr_find"):
        monkeypatch.setattr(f"zoo.commands.{command}.start_jax", lambda: None)


@pytest.mark.parametrize(
    "words", [("train", "--dry-run"), ("lr-find", "--steps", 15), ("train", "--workdir", "run", "--no-report")]
)
def test_workers_reach_every_reader(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, labels = random_images(60, 8, 8)
    np.savez("data.npz", x_train=images, y_train=labels)
    counts, preprocessed = [], loader.preprocessed

    def record(split, preprocess, workers):
        counts.append(workers)
        return preprocessed(split, preprocess, workers)

    monkeypatch.setattr(loader, "preprocessed", record)
    options = ("--model", "softmax", "--data", "data.npz", "--batch-size", 20, "--epochs", 1, "--workers", 3)
    code, _, err = run_command(capsys, *words, *options)
    assert code == 0, err
    assert counts and set(counts) == {3}
