"""Checkpoints and configurations of format 1 are still read. `format1/` was written by the version before format 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo import checkpoint
from zoo.cli import main
from zoo.training.recipe import Recipe
from zoo.training.run import read_config

FORMAT1 = Path(__file__).parent / "format1"


def test_a_checkpoint_is_loaded_and_verified():
    assert checkpoint.verify_checkpoint(FORMAT1 / "best") == []
    old = json.loads((FORMAT1 / "best" / "card.json").read_text(encoding="utf-8"))
    loaded = zoo.load(FORMAT1 / "best")
    assert old["format"] == 1 and loaded.card.format == checkpoint.FORMAT
    assert loaded.card.preprocess.resize_mode == old["preprocess"]["fit"]
    assert loaded.card.preprocess.ink_extent == old["preprocess"]["ink"]
    assert loaded.card.recipe["b2"] == old["recipe"]["second_moment"]
    assert loaded.card.recipe["final_lr_fraction"] == old["recipe"]["final_rate"]
    assert loaded.card.recipe["decay_bias_and_norm"] == old["recipe"]["decay_all"]
    assert [row["sha256"] for row in loaded.card.leaves] == [row["sha256"] for row in old["leaves"]]


def test_saved_again_it_is_of_the_current_format_and_predicts_the_same(tmp_path):
    loaded = zoo.load(FORMAT1 / "best")
    zoo.save(tmp_path / "new", loaded.model, loaded.variables, loaded.card.classes, loaded.card.preprocess)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    assert zoo.load(tmp_path / "new").predict(images) == loaded.predict(images)


def test_a_flipped_bit_in_it_is_noticed(tmp_path):
    shutil.copytree(FORMAT1 / "best", tmp_path / "copy")
    card = tmp_path / "copy" / "card.json"
    card.write_text(card.read_text().replace('"widths"', '"wIdths"'))
    assert any("card.json" in line for line in checkpoint.verify_checkpoint(tmp_path / "copy"))


def test_a_configuration_is_read():
    old = json.loads((FORMAT1 / "config.json").read_text(encoding="utf-8"))
    config = read_config(FORMAT1 / "config.json")
    assert isinstance(config.recipe, Recipe) and config.recipe.b2 == old["recipe"]["second_moment"]
    assert config.model == "mlp" and config.fields["widths"] == [4]


def test_an_unfinished_run_is_resumed(tmp_path, capsys):
    """`run/` was interrupted at step 14 of 40. The same version trained the same run without interruption: its best
    checkpoint is that of step 23, with a validation loss of 1.97236."""
    run = tmp_path / "run"
    shutil.copytree(FORMAT1 / "run", run)
    before = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    settings = ["--set", "widths=4", "--set", "batch_size=60", "--set", "augment="]
    arguments = ["--data", "digits", "--limit", "60", "--model", "mlp", "--epochs", "40", *settings]
    assert main(["train", *arguments, "--workdir", str(run)]) == 0
    assert "step 14 of 40" in capsys.readouterr().out
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows[: len(before)] == before and len(rows) > len(before)
    assert (run / "state").is_dir() and not (run / "checkpoints").exists()
    best = zoo.load(run / "best")
    assert best.card.metrics["step"] == 23 and best.card.format == checkpoint.FORMAT
    (row,) = [row for row in map(json.loads, rows) if row["step"] == 23]
    assert row["validation_loss"] == pytest.approx(1.97236, rel=1e-4)  # the card's is that of calibrated probabilities
