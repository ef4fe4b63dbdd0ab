"""Cards, manifests and arrays from strangers: hashes that match, contents that do not make sense."""

import copy
import json
import os
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import assert_one_line, run_command
from PIL import Image

import zoo
from zoo import checkpoint, models
from zoo.analysis.embedding import embed
from zoo.checkpoint import manifest, schema
from zoo.data.images.preprocess import Preprocess
from zoo.files import read_bounded

SIZE = (8, 8)
PREPROCESS = Preprocess(size=SIZE, resize=SIZE, channels="L", mean=(0.1,), std=(0.5,))
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def network():
    model = models.create("mlp", widths=(4,), num_classes=3, image_size=8)
    return model, jax.tree.map(np.asarray, models.init(model, 0, (8, 8, 1)))


@pytest.fixture
def folder(tmp_path, network):
    zoo.save(tmp_path / "ckpt", *network, CLASSES, PREPROCESS)
    return tmp_path / "ckpt"


def rewrite_card(folder: Path, raw: bytes) -> None:
    """Replace the card and bring the manifest in line with it, as someone who means harm would."""
    (folder / "card.json").write_bytes(raw)
    (folder / "manifest.json").unlink()
    manifest.write_manifest(folder)


WEIRD = (
    None, -1, 0, 10**9, 10**30, float("nan"), float("inf"), "x", "\ud800", [], {}, [10**9, 10**9], [1, 2, 3], True,
    1e-320, [[]], [None], {"a": {"b": []}},
)  # fmt: skip


@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_field_with_weird_values_loads_or_is_refused_in_one_line(folder, share):
    """Each field with a third of the values, in turn, or with all."""
    card = json.loads((folder / "card.json").read_text())
    places = [(name,) for name in card] + [("preprocess", name) for name in card["preprocess"]]
    places += [("fields", name) for name in card["fields"]] + [("leaves", 0, name) for name in card["leaves"][0]]
    refused = 0
    tried = [(place, WEIRD[number % share :: share]) for number, place in enumerate(places)]
    for place, values in tried:
        for value in values:
            changed = copy.deepcopy(card)
            part = changed
            for name in place[:-1]:
                part = part[name]
            part[place[-1]] = value
            rewrite_card(folder, json.dumps(changed).encode())
            try:
                loaded = zoo.load(folder)
            except ValueError as error:
                refused += 1
                assert str(folder) in str(error), (place, value, error)
                assert "\n" not in str(error)
            else:
                repr(loaded)
                assert loaded.card.preprocess.size == SIZE, (place, value)
    assert refused > 0.7 * sum(len(values) for _, values in tried)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"classes": ["a", "b"]}, "2 class names .* 3"), ({"classes": ["a", "b", "c", "d"]}, "4 class names .* 3"),
     ({"classes": ["a", "b", "a"]}, "'classes' is not a list of different names"),
     ({"model": 5}, "'model'"), ({"metrics": []}, "'metrics'"), ({"recipe": "adam"}, "'recipe'"),
     ({"versions": {"jax": 1}}, "'versions'"), ({"licence": None}, "'licence'"),
     ({"fields": {"num_classes": 3, "widths": [4] * 50}}, "widths"), ({"format": True}, "no format version")],
)  # fmt: skip
def test_the_field_that_is_wrong_is_named(folder, change, named):
    card = json.loads((folder / "card.json").read_text()) | change
    rewrite_card(folder, json.dumps(card).encode())
    with pytest.raises(ValueError, match=rf"card\.json: .*{named}"):
        zoo.load(folder)


@pytest.mark.parametrize("blocks", [[10**9, 3, 3, 3], [3, 3, 10**6]])
def test_a_network_of_more_layers_than_leaves_is_not_built(tmp_path, blocks):
    card = json.loads((Path(zoo.__file__).parent.parent / "checkpoints/resnet20-cifar10/card.json").read_text())
    card["fields"]["blocks"] = blocks
    with pytest.raises(ValueError, match="blocks"):
        checkpoint.card_from_json(card, "card.json")


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"format": ' + b"9" * 5000 + b"}",
            b"\xff\xfe", b"null", b'"\\ud800"', b"[]"]
)  # fmt: skip
def test_what_is_no_card_or_manifest_is_refused_by_name(folder, raw):
    rewrite_card(folder, raw)
    with pytest.raises(ValueError, match=r"card\.json"):
        zoo.load(folder)
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        zoo.load(folder)
    assert checkpoint.verify_checkpoint(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "arrays/../../x", "a\0b", "", "..\\x"])
def test_a_manifest_lists_files_inside_the_folder_only(folder, name):
    listed = {name: {"bytes": 1, "sha256": "0" * 64}}
    (folder / "manifest.json").write_bytes(manifest._manifest_bytes(listed))
    with pytest.raises(manifest.CorruptCheckpointError, match=r"manifest\.json"):
        zoo.load(folder)


def test_integers_beyond_every_float_are_refused():
    assert schema.parse_json(b"1" + b"0" * 308, "x") == 10**308
    for digits in (b"1" + b"0" * 309, b"-" + b"9" * 400, b"9" * 5000):
        with pytest.raises(ValueError, match=r"x: .*digits"):
            schema.parse_json(b'{"a": [' + digits + b"]}", "x")
    assert schema.to_plain_json({"a": 10**400, "b": 7}, "x") == {"a": None, "b": 7}


def test_depth_ignores_brackets_in_strings():
    assert schema.parse_json(b'{"a": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}', "x") == {"a": "[" * 37}
    assert schema.parse_json(b"[" * schema.MAX_DEPTH + b"]" * schema.MAX_DEPTH, "x")
    with pytest.raises(ValueError, match="x"):
        schema.parse_json(b"[" * (schema.MAX_DEPTH + 1) + b"]" * (schema.MAX_DEPTH + 1), "x")


@pytest.mark.skipif(os.name == "nt", reason="no devices or pipes in folders")
@pytest.mark.parametrize("file", ["manifest.json", "card.json"])
def test_devices_and_pipes_are_not_read(folder, file):
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=file):
        zoo.load(folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(ValueError, match=file):
        zoo.load(folder)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="file"):
        read_bounded(tmp_path / "file", 4)
    with pytest.raises(ValueError, match="not a regular file"):
        read_bounded(tmp_path, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_and_reported(tmp_path, network, value):
    model, variables = network
    broken = copy.deepcopy(variables)
    broken["params"]["head"]["bias"] = np.asarray([0, value, 0], np.float32)
    with pytest.raises(ValueError, match="head/bias"):
        zoo.save(tmp_path / "ckpt", model, broken, CLASSES, PREPROCESS)
    assert not (tmp_path / "ckpt").exists()
    zoo.save(tmp_path / "ckpt", model, broken, CLASSES, PREPROCESS, allow_nonfinite=True)
    with pytest.raises(ValueError, match="head/bias"):
        zoo.load(tmp_path / "ckpt")
    assert np.array_equal(zoo.load(tmp_path / "ckpt", allow_nonfinite=True).variables["params"]["head"]["bias"],
                          broken["params"]["head"]["bias"], equal_nan=True)  # fmt: skip
    assert any("head/bias" in line for line in checkpoint.verify_checkpoint(tmp_path / "ckpt"))


def test_commands_accept_weights_that_are_not_finite_only_if_asked(tmp_path, network, monkeypatch, capsys):
    model, variables = network
    broken = copy.deepcopy(variables)
    broken["params"]["head"]["bias"] = np.asarray([0, np.nan, 0], np.float32)
    zoo.save(tmp_path / "ckpt", model, broken, CLASSES, PREPROCESS, allow_nonfinite=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), np.uint8), np.array(list("abca") * 10)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    commands = {
        "eval ckpt --data data.npz --json": 0, "predict ckpt x.png": 2, "verify ckpt": 0,
        "export ckpt --to safetensors -o x.safetensors": 0, "features ckpt --data data.npz -o f.npz": 0,
        "probe ckpt --data data.npz --json": 0,
    }  # fmt: skip
    for command, code in commands.items():
        refused, _, err = run_command(capsys, *command.split())
        assert refused == 2 and "params/head/bias" in err and err.count("\n") == 1, command
        accepted, out, err = run_command(capsys, *command.split(), "--allow-nonfinite")
        assert accepted == code, (command, err)
        if "--json" in command:
            json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        if command.startswith("eval"):
            assert json.loads(out)["loss"] is None and json.loads(out)["accuracy"] == 0
        if command.startswith("predict"):  # no class is right if all probabilities are NaN
            assert "NaN" in err and err.count("\n") == 1 and not out
    for command in (  # these have no use for such a network, and say which commands have
        "train --init ckpt --data data.npz", "show ckpt -o x.png", "report ckpt --data data.npz", "serve ckpt",
        "lr-find --init ckpt --data data.npz",
    ):  # fmt: skip
        refused, _, err = run_command(capsys, *command.split())
        assert refused == 2 and "params/head/bias" in err and "export and import" in err, (command, err)
        assert err.count("\n") == 1
    loaded = zoo.load("ckpt", allow_nonfinite=True)
    for call in (
        lambda: loaded.predict(images), lambda: zoo.explain(loaded, images, "saliency"),
        lambda: zoo.report(loaded, "data.npz"), lambda: embed(loaded, "data.npz", "logits"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="NaN"):
            call()
    assert not Path("report.html").exists()
    refused, _, err = run_command(capsys, "eval", "x.safetensors", "--data", "data.npz")
    assert refused == 2 and "params/head/bias" in err
    words = ("import", "x.safetensors", "-o", "imported")
    assert run_command(capsys, *words)[0] == 2 and not (tmp_path / "imported").exists()
    assert run_command(capsys, *words, "--allow-nonfinite")[0] == 0 and (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", {"test": 5}), ("metrics", {"test": {"accuracy": "x"}}), ("metrics", {"validation": {"loss": []}}),
        ("metrics", {"published": {"accuracy": True}}), ("metrics", {"test": {"examples": 10**30}}), ("metrics", []),
        ("data", {"source": 5}), ("data", []), ("recipe", "x"),
    ],
)  # fmt: skip
def test_records_of_a_card_have_types(folder, field, value):
    card = json.loads((folder / "card.json").read_text())
    rewrite_card(folder, json.dumps({**card, field: value}).encode())
    with pytest.raises(ValueError, match=f"'{field}' is not a table") as caught:
        zoo.load(folder)
    assert_one_line(caught, "card.json")


def test_nan_in_a_card_is_printed_as_null(folder, capsys):
    card = json.loads((folder / "card.json").read_text())
    card["metrics"] = {"test": {"accuracy": 0.5, "top5": float("nan"), "loss": float("nan")}, "auc": float("inf")}
    rewrite_card(folder, json.dumps(card).encode())
    code, out, _ = run_command(capsys, "info", folder, "--json")
    assert code == 0
    shown = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert shown["metrics"] == {"test": {"accuracy": 0.5, "top5": None, "loss": None}, "auc": None}


def test_names_in_a_card_cannot_change_the_terminal_or_break_lines(folder, capsys):
    card = json.loads((folder / "card.json").read_text())
    card |= {"classes": ["two\nlines", "\x1b[2J", "c"], "licence": "a\nb", "source": "\x9b31m"}
    rewrite_card(folder, json.dumps(card).encode())
    loaded = zoo.load(folder)
    code, out, _ = run_command(capsys, "info", folder)
    assert code == 0
    for text in (out, repr(loaded)):
        assert r"two\nlines, \x1b[2J, c" in text and all(line.isprintable() for line in text.split("\n"))


def test_names_in_a_manifest_are_printed_on_one_line(folder):
    (folder / "arrays" / "two\nlines\x1b[2J").write_text("x")
    with pytest.raises(ValueError, match=r"arrays/two\\nlines\\x1b\[2J is not listed") as caught:
        zoo.load(folder)
    assert_one_line(caught)
    assert all(line.isprintable() for line in checkpoint.verify_checkpoint(folder))


def test_metadata_may_hold_numpy_and_jax_scalars(tmp_path, network):
    metrics = {"test": {"accuracy": np.float32(0.5), "loss": jax.numpy.float32(2.5), "examples": np.int64(7)},
               "step": np.asarray(3), "auc": float("nan"), "done": np.bool_(True)}  # fmt: skip
    zoo.save(tmp_path / "ckpt", *network, CLASSES, PREPROCESS, metrics=metrics)
    assert zoo.load(tmp_path / "ckpt").card.metrics == {
        "test": {"accuracy": 0.5, "loss": 2.5, "examples": 7}, "step": 3, "auc": None, "done": True
    }  # fmt: skip
    assert "NaN" not in (tmp_path / "ckpt" / "card.json").read_text()
    with pytest.raises(ValueError, match="object"):
        zoo.save(tmp_path / "other", *network, CLASSES, PREPROCESS, metrics={"x": object()})
    with pytest.raises(ValueError, match="licence"):
        zoo.save(tmp_path / "other", *network, CLASSES, PREPROCESS, licence=5)
    assert not (tmp_path / "other").exists()


def test_a_link_stays_and_its_target_is_replaced(tmp_path, network):
    (tmp_path / "disk").mkdir()
    (tmp_path / "best").symlink_to(tmp_path / "disk" / "best")
    for name in ("one", "two", "three"):
        zoo.save(tmp_path / "best", *network, CLASSES, PREPROCESS, source=name)
        assert zoo.load(tmp_path / "best").card.source == name
        assert (tmp_path / "best").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["best"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "disk"]


def test_threads_save_and_load_at_the_same_time(tmp_path, network):
    failures = []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                zoo.save(tmp_path / str(number), *network, CLASSES, PREPROCESS)
                zoo.load(tmp_path / str(number))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
