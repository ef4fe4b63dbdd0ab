"""Options: their help texts, and each one reaches the setting that it names."""

import argparse
import importlib
import json
import re
import shutil

import pytest
from helpers import run_command

from zoo import api, cli, loading
from zoo.commands import devices, train, words_without, write_extra
from zoo.commands.sweep import first_seed
from zoo.distributed import mesh, processes
from zoo.pretrained import weights

FRAGMENTS = ("Of ", "What ", "Whether ", "Where ", "Who ", "How ", "Those ", "As ", "When ")


def parser_of(command):
    """Return the parser of a command, with its options."""
    parser = argparse.ArgumentParser(command, allow_abbrev=False)
    importlib.import_module(f"zoo.commands.{cli.COMMANDS[command][0]}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_texts_are_sentences_and_values_have_names(command):
    for action in parser_of(command)._actions:
        if action.dest == "help":
            continue
        assert action.help and action.help.endswith((".", "…")) and ": ," not in action.help, action.dest
        assert action.help[0].isupper() and not action.help.startswith(FRAGMENTS), action.help
        if action.nargs != 0 and not action.choices:
            assert action.metavar and action.metavar != "X", action.dest


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("epochs", "7"), ("batch-size", "12"), ("optimizer", "lion"), ("learning-rate", "0.25"), ("schedule", "linear"),
        ("weight-decay", "0.5"), ("augment", "flip"), ("precision", "bfloat16"), ("image-size", "20"),
        ("progressive", "16,20"), ("test-size", "24"), ("eval-crop", "0.875"), ("normalisation", "centre"),
        ("monitor", "macro_f1"), ("patience", "9"), ("seed", "11"),
        ("head-epochs", "2"), ("head-lr", "0.125"), ("layer-decay", "0.75"), ("freeze", "stem"), ("unfreeze-at", "3"),
        ("micro-batch", "4"),
    ],
)  # fmt: skip
def test_recipe_options_become_settings_of_their_field(flag, text):
    request = train.train_request(parser_of("train").parse_args([f"--{flag}", text]))
    (setting,) = request.settings
    assert setting == (f"--{flag}", f"recipe.{flag.replace('-', '_')}", text)


def test_every_recipe_option_is_tested_above():
    mark = next(
        mark for mark in test_recipe_options_become_settings_of_their_field.pytestmark if mark.name == "parametrize"
    )
    assert [flag for flag, _ in mark.args[1]] == [*train.RECIPE_FLAGS, "micro-batch"]


def test_train_has_defaults_only_where_nothing_depends_on_the_recipe():
    options = vars(parser_of("train").parse_args([]))
    assert {name: value for name, value in options.items() if value} == {
        "save_every": 60.0,
        "device_data": "auto",
        "parallel": "jit",
        "report": True,
        "hang_timeout": 1800.0,
    }


def test_train_passes_each_option_on(monkeypatch, tmp_path, capsys):
    from zoo.training import loop, plan

    calls = []
    monkeypatch.setattr(train, "start_jax", lambda: None)
    monkeypatch.setattr(plan, "make_plan", lambda request, say: calls.append(request) or "the plan")
    monkeypatch.setattr(loop, "fit", lambda *arguments, **options: calls.append((arguments, options)))
    words = ("train", "--model", "mlp", "--data", "x", "--data-dir", "d", "--recipe", "mnist", "--workdir", tmp_path)
    words += ("--limit", 5, "--workers", 3, "--save-every", 2.5, "--save-steps", 8, "--quiet", "--set", "l2=0.5")
    assert run_command(capsys, *words)[0] == 0
    request, (arguments, options) = calls
    assert (request.model, request.data, request.data_dir, request.recipe) == ("mlp", "x", "d", "mnist")
    assert (request.workdir, request.limit, request.init, request.base) == (str(tmp_path), 5, None, None)
    assert [setting.text for setting in request.settings] == ["0.5"]
    assert arguments == ("the plan",)
    assert (options["save_seconds"], options["save_steps"], options["workers"], options["quiet"]) == (2.5, 8, 3, True)
    assert options["command"].startswith("zoo train --model mlp --data x")


def test_eval_passes_each_option_on(monkeypatch, capsys):
    calls = []
    loaded = loading.load("lenet5-mnist")
    monkeypatch.setattr("zoo.commands.evaluate.start_jax", lambda: None)
    monkeypatch.setattr(loading, "load", lambda spec, allow_nonfinite: loaded)

    class Stop(ValueError):
        pass

    def evaluate(*arguments, **options):
        calls.append((arguments, options))
        raise Stop("stopped")

    monkeypatch.setattr(api, "evaluate", evaluate)
    words = ("eval", "lenet5-mnist", "--data", "digits", "--split", "validation", "--limit", 4, "--batch-size", 3)
    code, _, err = run_command(capsys, *words, "--tta", "five-crop", "--image-size", 28)
    assert code == 2 and err.endswith("stopped\n")
    ((checkpoint, dataset, split), options) = calls[0]
    assert (checkpoint, dataset.name, split) == (loaded, "digits", "validation")
    options.pop("on_batch")
    assert options == {"limit": 4, "batch_size": 3, "tta": "five-crop", "image_size": 28, "per_example": False}


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        ([], {}, ("", None, None)),
        (["--coordinator", "a:1", "--processes", "4", "--process", "3"], {}, ("a:1", 4, 3)),
        # read by `processes.initialize`
        ([], {"ZOO_COORDINATOR": "b:2", "ZOO_PROCESSES": "2", "ZOO_PROCESS": "1"}, ("", None, None)),
        (["--coordinator", "none"], {"ZOO_COORDINATOR": "b:2"}, ("none", None, None)),  # options override
    ],
)
def test_processes_are_taken_from_options_or_the_launcher(words, environment, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "initialize", lambda *arguments: calls.append(arguments))
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.delenv(f"ZOO_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallelism = devices.parallelism_of(parser_of("devices").parse_args([*words, "--mesh", "data=1"]))
    assert calls == [expected] and parallelism == mesh.Parallelism("jit", (("data", 1),))


@pytest.mark.parametrize(
    ("option", "valid", "invalid"),
    [
        ("--save-every", {"0": 0.0, "0.5": 0.5, "1e3": 1000.0}, ["-1", "inf", "nan", "soon", ""]),
        ("--save-steps", {"0": 0, "12": 12}, ["-1", "1.5", "many", ""]),
    ],
)
def test_numbers_are_parsed_at_their_limits(option, valid, invalid, capsys):
    name = option[2:].replace("-", "_")
    for text, value in valid.items():
        assert getattr(parser_of("train").parse_args([option, text]), name) == value
    for text in invalid:
        code, _, err = run_command(capsys, "train", f"{option}={text}")
        assert code == 2 and re.search(rf"{option}.*{text}", err) and err.count("\n") == 1


def test_misspelt_options_and_commands_get_a_suggestion(capsys):
    for words, hint in (
        (("trian",), "train"),
        (("eval", "x", "--splitt", "test"), "--split"),
        (("--versio",), "--ver"),
    ):
        code, _, err = run_command(capsys, *words)
        assert code == 2 and f"did you mean {hint}" in err and err.count("\n") == 1
    code, _, err = run_command(capsys, "zzzz")
    assert code == 2 and "train, eval" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("two\n  lines"), 2, "zoo list: two lines\n"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "zoo list: a.png: no such file\n"),
        (ImportError("needs onnx"), 2, "zoo list: needs onnx\n"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), 2, "zoo list: out of memory; "),
        (KeyboardInterrupt(), 130, ""),
        (ValueError(), 2, "zoo list: ValueError\n"),
    ],
)
def test_exit_codes(error, code, words, monkeypatch, capsys):
    from zoo.commands import list as command

    def fail(options):
        raise error

    monkeypatch.setattr(command, "run", fail)
    actual, out, err = run_command(capsys, "list")
    assert actual == code and not out and words in err and err.count("\n") == (words != "")


def test_other_errors_are_not_hidden(monkeypatch):
    from zoo.commands import list as command

    for error in (RuntimeError("a bug"), KeyError("a bug")):
        monkeypatch.setattr(command, "run", lambda options, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error), match="a bug"):
            cli.main(["list"])


def test_advice_on_memory_names_options_of_the_command():
    named = {}
    for command in cli.COMMANDS:
        parser = parser_of(command)
        advice = cli._memory_advice(parser)
        named[command] = set(re.findall(r"--[a-z-]+", advice))
        assert advice and named[command] <= set(parser._option_string_actions), command
    assert {"--batch-size", "--micro-batch"} <= named["train"] and "--batch-size" in named["eval"]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--model mlp --learning-rate 1 --epochs 2", "--model mlp --epochs 2"),
        ("--learning-rate=1 --output=a.png -oa.png -o a.png --model mlp", "--model mlp"),
        ("--set learning_rate=1 --set dropout=0.1", "--set dropout=0.1"),
        ("--set recipe.learning_rate=1 --set=learning_rate=1 --set=l2=1", "--set=l2=1"),
        ("--set head_lr=1 --optimizer sgd", "--set head_lr=1 --optimizer sgd"),
    ],
)
def test_a_command_line_without_options_and_settings(words, kept):
    own = ("-o", "--output", "--learning-rate")
    assert words_without(words.split(), own, fields=("learning_rate",)) == kept.split()


def test_a_sweep_begins_with_the_seed_of_its_configuration(tmp_path):
    from zoo.training.recipe import Recipe
    from zoo.training.run import RunConfig

    file = tmp_path / "config.json"
    file.write_text(json.dumps(RunConfig("lenet5", {}, "digits", Recipe(seed=7)).to_json()))
    for words, seed in (
        ([], 0), (["--config", str(file)], 7), (["--config", str(file), "--seed", "3"], 3),
        (["--config", str(file), "--recipe", "small"], 0), (["--seed", "12"], 12),
    ):  # fmt: skip
        assert first_seed(parser_of("sweep").parse_args(words)) == seed, words


def test_a_file_beside_a_result_may_fail_to_be_written_only_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = write_extra(lambda path: path.write_text("x"), None, "a.txt", "picture", "-o FILE")
    assert file.read_text() == "x" and file.is_relative_to(tmp_path) and not capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert write_extra(lambda path: path.write_text("x"), None, "a.txt", "picture", "-o FILE") is None
    err = capsys.readouterr().err
    assert err.startswith("picture: not written (") and err.endswith("; name a file with -o FILE\n")
    with pytest.raises(OSError):
        write_extra(lambda path: path.write_text("x"), str(tmp_path / "no" / "a.txt"), "a.txt", "picture", "-o FILE")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (61_706, "61.7 k"),
        (1e6, "1 M"),
        (4089184256, "4.09 G"),
        (5e12, "5e+03 G"),
    ],
)
def test_amounts_have_three_digits_and_a_unit(number, text):
    from zoo.commands import amount

    assert amount(number) == text


def test_an_exported_run_has_its_name(tmp_path, monkeypatch, capsys):
    """The checkpoints of all runs are called "best"."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights.folder_of("lenet5-mnist"), "runs/mine/best")
    (tmp_path / "runs/mine/config.json").write_text("{}")
    assert run_command(capsys, "export", "runs/mine/best", "--to", "safetensors")[0] == 0
    code, out, _ = run_command(capsys, "verify", "runs/mine")
    assert code == 0 and out.startswith("runs/mine: ok, ")
    assert {path.name for path in tmp_path.glob("*.*")} == {"mine.safetensors", "mine_preprocess.py"}
