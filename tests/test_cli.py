"""The command line: its output, its files, and one line for each mistake."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import run_command

import zoo
from zoo import cli
from zoo.commands import train
from zoo.models import MODELS, create
from zoo.training.run import read_config

TRAIN = ["train", "--model", "mlp", "--set", "widths=16", "--image-size", "8", "--epochs", "2", "--save-every", "1000"]


@pytest.fixture(autouse=True, scope="module")
def _no_global_cache():
    """Leave the process-wide compilation cache of JAX unchanged."""
    with pytest.MonkeyPatch.context() as patch:
        for module, _ in cli.COMMANDS.values():
            patch.setattr(f"zoo.commands.{module}.start_jax", lambda: None, raising=False)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a run once for the tests that read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main([*TRAIN, "--workdir", str(folder), "--learning-rate", "0.01"]) == 0
    return folder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Save two test digits as PNG files, dark on light."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("drawings")
    split = zoo.open_dataset("digits").splits["test"]
    for i in range(2):
        image = Image.fromarray(255 - split.read(np.array([i]))[0, :, :, 0]).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(folder / f"{split.labels[i]}_{i}.png")
    return folder


def test_training_reports_its_configuration_results_and_next_steps(capsys, tmp_path):
    code, first, err = run_command(capsys, *TRAIN, "--workdir", tmp_path / "run")
    assert code == 0 and not err
    for words in (
        "model: mlp",
        "data: digits",
        "recipe: adamw",
        "epoch ",
        "validation",
        "test: accuracy",
        "zoo predict",
    ):
        assert words in first
    assert (tmp_path / "run" / "best" / "card.json").exists()
    code, out, _ = run_command(capsys, *TRAIN, "--workdir", tmp_path / "run")
    assert code == 0 and "This run is finished" in out
    repeated = [line for line in first.splitlines() if line.startswith(("all steps", "validation:", "      test:"))]
    repeated += [f"checkpoint: {tmp_path}/run/best"]
    assert len(repeated) == 4 and all(out.splitlines().count(line) == 1 for line in repeated), out


def test_options_are_stored_in_the_config(trained):
    config = read_config(trained)
    assert (config.model, config.data) == ("mlp", "digits")
    assert config.fields["widths"] == [16] and config.fields["image_size"] == 8
    assert config.recipe.epochs == 2 and config.recipe.learning_rate == 0.01
    assert json.loads((trained / "config.json").read_text())["made_with"]["command"].startswith("zoo train --model mlp")


def test_config_repeats_a_run_exactly(capsys, tmp_path, trained):
    code, out, _ = run_command(capsys, "train", "--config", trained / "config.json", "--workdir", tmp_path / "again")
    assert code == 0 and "validation" in out
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    seed = ["train", "--config", trained, "--seed", "1", "--dry-run"]
    code, out, _ = run_command(capsys, *seed, "--workdir", tmp_path / "other")
    assert code == 0 and "images/s" in out and "nothing was trained" in out and not (tmp_path / "other").exists()


def test_eval(capsys, trained):
    code, out, _ = run_command(capsys, "eval", trained / "best", "--split", "validation")
    assert code == 0 and "accuracy (top-1)" in out and "support" in out
    results = []
    for batch_size in (7, 256):
        code, out, _ = run_command(capsys, "eval", trained / "best", "--json", "--batch-size", batch_size)
        results.append(json.loads(out))
    assert results[0]["confusion"] == results[1]["confusion"]
    stored = json.loads((trained / "results.json").read_text())["test"]
    assert stored["accuracy"] == results[0]["accuracy"] and stored["confusion"] == results[0]["confusion"]


def test_eval_says_that_a_run_is_not_finished(capsys, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert "not finished" not in run_command(capsys, "eval", folder, "--limit", 20)[2]
    (tmp_path / "run" / "results.json").unlink()
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert f"{folder}: the run is not finished" in run_command(capsys, "eval", folder, "--limit", 20)[2]


def test_predict(capsys, trained, drawings, tmp_path):
    code, out, _ = run_command(capsys, "predict", trained / "best", drawings, "--top", 3)
    lines = out.strip().splitlines()
    assert code == 0 and len(lines) == 2 and all(line.count("%") == 3 for line in lines)
    code, out, _ = run_command(capsys, "predict", trained / "best", drawings, "--json", "-o", tmp_path / "table.csv")
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers[0]["top"]) == 5 and sum(p for _, p in answers[0]["top"]) <= 1.0001
    table = (tmp_path / "table.csv").read_text().splitlines()
    assert table[0].startswith("file,class1,probability1") and len(table) == 3


def test_predict_skips_files_that_are_not_images(capsys, trained, drawings, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    good = sorted(drawings.iterdir())[0]
    code, out, err = run_command(capsys, "predict", trained / "best", bad, good)
    assert code == 2 and good.name in out and "bad.png" in err.splitlines()[0]
    assert err.splitlines()[1:] == ["zoo predict: 1 of 2 files could not be read"]


def test_list_and_info(capsys, trained):
    code, out, _ = run_command(capsys, "info", "lenet5")
    assert code == 0 and "61,706 parameters, 417 k multiply-adds" in out and "conv1" in out
    code, out, _ = run_command(capsys, "info", trained / "best")
    assert code == 0 and "mlp, 10 classes (0, 1, 2" in out and "test" in out
    code, out, _ = run_command(capsys, "info", trained / "best", "--json")
    assert json.loads(out)["model"] == "mlp"
    code, out, _ = run_command(capsys, "list", "--recipes")
    assert code == 0 and "Krizhevsky et al. 2012" in out and all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out and "Zagoruyko and Komodakis 2016" in " ".join(out.split())
    code, out, _ = run_command(capsys, "list", "--recipes", "rsb-a1")
    assert code == 0 and "optimizer = lamb" in out and "bilinear interpolation in RandAugment" in " ".join(out.split())


def test_help_of_every_command(capsys):
    assert run_command(capsys)[0] == 0
    for command in cli.COMMANDS:
        code, out, _ = run_command(capsys, command, "--help")
        assert code == 0 and "usage: zoo " + command in out


MISTAKES = [
    (["trian"], "trian"),
    (["--foo"], "'--foo'"),
    (["train", "--epochs", "inf"], "--epochs inf"),
    (["train", "--seed", "99999999999999999999"], "--seed 999"),
    (["train", "--model", "mlp", "--set", "widths=abc"], "widths="),
    (["train", "--model", "mlp", "--set", "widths=-5"], "widths="),
    (["train", "--set", "dropout=2"], "in [0, 1)"),
    (["train", "--image-size", "8"], "at least 16x16"),
    (["train", "--save-every", "nan"], "seconds"),
    (["info", "nowhere/best"], "no such checkpoint"),
    (["train", "--modle", "x"], "did you mean --model"),
    (["train", "--epoch", "3"], "did you mean --epochs"),
    (["trian"], "did you mean train"),
    (["train", "--model", "lenet"], "did you mean lenet5"),
    (["train", "--data", "digit"], "digits"),
    (["train", "--data", "nowhere.npz"], "nowhere.npz"),
    (["train", "--recipe", "mnits"], "mnist"),
    (["train", "--optimizer", "adamm"], "did you mean adam"),
    (["train", "--epochs", "many"], "epochs"),
    (["train", "--learning-rate", "-1"], "--learning-rate -1: "),
    (["train", "--set", "dropuot=0.1"], "did you mean dropout"),
    (["train", "--set", "dropout"], "field=value"),
    (["train", "--set", "model.dropout=much"], "type float"),
    (["train", "--augment", "flop"], "flip"),
    (["train", "--limit", "-3"], "--limit"),
    (["train", "--config", "nowhere.json"], "nowhere.json"),
    (["train", "--model", "lenet5_1998", "--set", "num_classes=26"], "num_classes=26"),
    (["train", "--workdir", __file__], "is a file"),
    (["eval", "nowhere"], "nowhere"),
    (["eval", "TRAINED", "--split", "tset"], "validation, test"),
    (["eval", "TRAINED/../.."], "no card.json"),
    (["predict", "TRAINED", "nowhere.png"], "nowhere.png"),
    (["predict", "TRAINED", "EMPTY"], "has no images"),
    (["predict", "TRAINED", __file__, "-o", "x.txt"], ".csv"),
    (["predict", "TRAINED", __file__, "-o", "no/such/table.csv"], "no/such"),
    (["predict", "TRAINED", __file__, "--tta", "flip"], "'flip'"),
    (["predict", "TRAINED", __file__, "--tta", "twelve"], "choose from flip, five-crop"),
    (["info", "lenet6"], "did you mean lenet5"),
    (["list", "lenet6"], "did you mean lenet5"),
    (["list", "lenet5-mnist"], "`zoo list --weights lenet5-mnist`"),
    (["compare", "TRAINED/../.."], "/*"),
    (["list", "resnet20", "--recipes"], "--recipes takes one name"),
    (["train", "--seeds", "3"], "`zoo sweep --seeds`"),
]


@pytest.mark.parametrize(("words", "answer"), MISTAKES, ids=[" ".join(words)[:60] for words, _ in MISTAKES])
def test_each_mistake_is_reported_in_one_line(capsys, tmp_path, monkeypatch, trained, words, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    words = [word.replace("TRAINED", str(trained / "best")) for word in words]
    code, _, err = run_command(capsys, *words)
    assert code == 2 and answer in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()  # nothing is left behind


def test_help_imports_no_heavy_libraries():
    """`zoo --help` imports none of the heavy libraries."""
    code = (
        "import sys, zoo.cli; zoo.cli.main([]); heavy = {'jax', 'flax', 'orbax', 'tensorflow_datasets', 'matplotlib',"
    )
    code += " 'sklearn', 'PIL', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_import_changes_nothing_in_jax():
    code = "import jax; before = dict(jax.config.values); import zoo; zoo.MODELS; zoo.fit; zoo.load; zoo.RECIPES;"
    code += "assert dict(jax.config.values) == before"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_train_py_is_zoo_train():
    root = Path(__file__).parents[1]
    script, command = (
        subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, cwd=root).stdout
        for words in (["train.py"], ["-c", "import sys, zoo.cli; sys.exit(zoo.cli.main())", "train"])
    )
    assert script == command and "--data" in script


def test_list_shows_every_model(capsys):
    code, out, _ = run_command(capsys, "list")
    assert code == 0 and all(f" {name} " in out for name in MODELS) and "61,706" in out
    families = [line for line in out.splitlines() if line and " " not in line]
    assert len(set(families)) == len(families) > 5 and all(len(line) <= 80 for line in out.splitlines())
    words = " ".join(out.split())
    assert all(re.match(r"\D+\d{4}", create(name).paper)[0] in words for name in MODELS)  # no author is left out


@pytest.mark.parametrize(
    ("words", "shown", "left_out"),
    [(["resnet20"], " resnet20 ", " lenet5 "), (["ResNet5*d"], " resnet50d ", " resnet50 "),
     (["mnist", "--weights"], "lenet5-mnist", "resnet20-cifar10")],
)  # fmt: skip
def test_list_shows_what_matches_a_name(words, shown, left_out, capsys):
    for form in ([], ["--json"]):
        code, out, _ = run_command(capsys, "list", *words, *form)
        assert code == 0 and shown.strip() in out and left_out not in out


def test_data_options_reach_the_request():
    import argparse

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    request = train.train_request(parser.parse_args(["--data", "tfds:mnist", "--data-dir", "here", "--limit", "5"]))
    assert (request.data, request.data_dir, request.limit) == ("tfds:mnist", "here", 5)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["train", "--lr", "0.1"], "--learning-rate"), (["train", "digits"], "--data digits"), (["fit"], "train"),
     (["train", "--epochs", "two"], "--epochs 'two'"), (["train", "--batch-size", "x"], "--batch-size 'x'")],
)  # fmt: skip
def test_common_slips_are_answered_with_what_to_type(words, named, capsys):
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and named in message and message.count("\n") == 1
