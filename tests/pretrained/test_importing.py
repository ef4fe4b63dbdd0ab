"""Weight files of all kinds that people have: each gives the source's network, or one line that says what to type.

Expected values are computed here from the tensors of the file, with transposes written out.
"""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch_bytes as tb
from helpers import assert_one_line, run_command
from networks import small
from PIL import Image
from safetensors.numpy import save_file
from torch_bytes import called, named, number, text

import zoo
from zoo.data.dataset import with_classes
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources.open import open_dataset
from zoo.pretrained.importing import import_file
from zoo.pretrained.readers import read_tensors
from zoo.pretrained.registry import CIFAR10
from zoo.pretrained.weights import folder_of

MODEL, FIELDS = "resnet20", {"blocks": (1, 1, 1)}
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def tensors():
    """The state dict of a network with seven classes."""
    return small(num_classes=7)[1]


def save(file, tensors, **options):
    file.write_bytes(tb.state_dict(tensors, **options))
    return file


def save_tree(file, tree):
    """Write a nested dict of arrays, and of programs for other objects (`torch_bytes`)."""
    storages = {}

    def program(value):
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            return tb.mapping({key: program(entry) for key, entry in value.items()})
        key = str(len(storages))
        storages[key] = np.asarray(value)
        return tb.tensor(tb.storage(key, str(value.dtype), value.size), value.shape, tb.contiguous(value))

    file.write_bytes(tb.zipped(program(tree), storages))
    return file


def prefixed(prefix, tensors):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def strings(*words):
    return b"](" + b"".join(map(text, words)) + b"e"


def assert_same_network(imported, tensors, head="linear"):
    """Assert that the stem, the last norm and the head are those of the state dict."""
    params, stats = imported.variables["params"], imported.variables["batch_stats"]
    assert np.array_equal(params["stem"]["conv"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(stats["stage3_block1"]["conv2"]["norm"]["var"], tensors["layer3.0.bn2.running_var"])
    assert np.array_equal(params["head"]["kernel"], tensors[f"{head}.weight"].T)
    assert np.array_equal(params["head"]["bias"], tensors[f"{head}.bias"])


# --- prefixes and wrappers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "net.", "backbone.", "model.", "module._orig_mod.model.", "0.", "encoder.trunk.", "resnet.layer1."]
)
def test_any_prefix_is_removed(prefix, tensors, tmp_path):
    imported = import_file(save(tmp_path / "x.pth", prefixed(prefix, tensors)), MODEL, FIELDS)
    assert_same_network(imported, tensors)
    assert any(repr(prefix) in note for note in imported.notes) == bool(prefix)


def test_tensors_of_a_loss_or_metric_beside_the_network_are_noted(tensors, tmp_path):
    beside = {
        "criterion.weight": np.ones(7, np.float32), "loss_fn.pos_weight": np.ones(7, np.float32),
        "val_confmat.mat": np.zeros((7, 7), np.int64), "class_weights": np.ones(7, np.float32),
    }  # fmt: skip
    for prefix in ("", "model."):
        imported = import_file(save(tmp_path / "x.ckpt", prefixed(prefix, tensors) | beside), MODEL, FIELDS)
        assert_same_network(imported, tensors)
        assert all(any(key in note for note in imported.notes) for key in beside)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("head.weight", (3, 7)), ("neck.weight", (64, 64, 1, 1)), ("norm.weight", (64,))],
)
def test_layers_beside_the_network_are_an_error(name, shape, tensors, tmp_path):
    """Without them the network would give other answers."""
    file = save(tmp_path / "x.pth", prefixed("net.", tensors) | {name: np.ones(shape, np.float32)})
    with pytest.raises(ValueError) as error:
        import_file(file, MODEL, FIELDS)
    assert_one_line(error, "x.pth", name, "--set num_classes=none")


# --- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["fc", "linear.1", "classifier", "head.fc"])
def test_a_head_of_one_layer_has_any_name(stem, tensors, tmp_path):
    renamed = {key.replace("linear", stem): value for key, value in tensors.items()}
    imported = import_file(save(tmp_path / "x.pth", renamed), MODEL, FIELDS)
    assert_same_network(imported, renamed, head=stem)
    assert imported.card.fields["num_classes"] == 7


def test_a_head_outside_of_the_backbone(tensors, tmp_path):
    body = {key: value for key, value in tensors.items() if not key.startswith("linear")}
    head = {key.replace("linear", "classifier"): tensors[key] for key in ("linear.weight", "linear.bias")}
    imported = import_file(save(tmp_path / "x.pth", prefixed("backbone.", body) | head), MODEL, FIELDS)
    assert_same_network(imported, tensors)


def test_a_head_without_bias_has_a_bias_of_zero(tensors, tmp_path):
    without = {key: value for key, value in tensors.items() if key != "linear.bias"}
    imported = import_file(save(tmp_path / "x.pth", without), MODEL, FIELDS)
    assert_same_network(imported, tensors | {"linear.bias": np.zeros(7, np.float32)})


def test_a_head_without_bias_under_another_name(tensors, tmp_path):
    renamed = {key.replace("linear", "fc.1"): value for key, value in tensors.items() if key != "linear.bias"}
    imported = import_file(save(tmp_path / "x.pth", renamed), MODEL, FIELDS)
    assert_same_network(imported, tensors | {"linear.bias": np.zeros(7, np.float32)})


def test_a_head_of_two_layers_is_an_error_and_the_body_can_be_imported(tensors, tmp_path):
    body = {key: value for key, value in tensors.items() if not key.startswith("linear")}
    rng = np.random.default_rng(0)
    two = {"linear.0.weight": rng.normal(size=(32, 64)), "linear.2.weight": rng.normal(size=(7, 32))}
    file = save(tmp_path / "x.pth", body | {key: value.astype(np.float32) for key, value in two.items()})
    with pytest.raises(ValueError) as error:
        import_file(file, MODEL, FIELDS)
    assert_one_line(error, "linear.0.weight (32, 64)", "linear.2.weight (7, 32)", "--set num_classes=none")
    imported = import_file(file, MODEL, {**FIELDS, "num_classes": None})
    assert "head" not in imported.variables["params"] and imported.card.classes == ()
    with pytest.raises(ValueError, match=r"linear\.0\.weight"):
        import_file(file)  # recognised, with the same error


def test_a_network_without_a_head_names_the_flag(tensors, tmp_path):
    body = {key: value for key, value in tensors.items() if not key.startswith("linear")}
    for arrays in (body, prefixed("encoder.", body)):
        file = save(tmp_path / "x.pth", arrays)
        for target in (MODEL, None):
            with pytest.raises(ValueError) as error:
                import_file(file, target, FIELDS if target else None)
            assert_one_line(error, "linear.weight", "--set num_classes=none")
        assert import_file(file, None, {"num_classes": None}).card.classes == ()


@pytest.mark.parametrize("prefix", ["", "net."])
def test_the_head_of_a_file_can_be_left_out(prefix, tensors, tmp_path):
    imported = import_file(save(tmp_path / "x.pth", prefixed(prefix, tensors)), MODEL, {**FIELDS, "num_classes": None})
    assert imported.card.classes == () and "head" not in imported.variables["params"]
    assert any("linear.weight" in note for note in imported.notes)


@pytest.mark.parametrize("aux_classes", [None, 9])
def test_auxiliary_heads_may_be_missing_or_have_other_classes(aux_classes, tmp_path):
    """Only training uses them; people often replace the head alone."""
    _, tensors = small("googlenet_bn", "torchvision", blocks=(1, 1, 1), num_classes=7, width=0.125)
    if aux_classes is None:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("aux")}
    else:
        inputs = tensors["aux1.fc2.weight"].shape[1]
        tensors["aux1.fc2.weight"] = np.ones((aux_classes, inputs), np.float32)
        tensors["aux1.fc2.bias"] = np.ones(aux_classes, np.float32)
    fields = {"blocks": (1, 1, 1), "width": 0.125}
    imported = import_file(save(tmp_path / "x.pth", tensors), "googlenet_bn", fields)
    assert imported.card.fields["aux_heads"] is False and len(imported.card.classes) == 7
    assert any("--set aux_heads=false" in note for note in imported.notes)
    assert np.array_equal(imported.variables["params"]["head"]["kernel"], tensors["fc.weight"].T)


# --- several sets of weights ------------------------------------------------------------------------------------


@pytest.fixture
def with_average(tensors, tmp_path):
    """Checkpoints of a network and its moving average, and the name of the average in each."""
    average = {key: value + 1 for key, value in tensors.items()}
    separate = save_tree(tmp_path / "timm.pth", {"state_dict_ema": average, "state_dict": tensors, "epoch": number(3)})
    together = save_tree(
        tmp_path / "lightning.ckpt",
        {"state_dict": prefixed("ema_model.module.", average) | prefixed("model.", tensors)},
    )
    return [(separate, "state_dict_ema"), (together, "ema_model")], average


def test_an_average_is_selected_by_name(with_average, tensors):
    files, average = with_average
    for file, name in files:
        plain = import_file(file, MODEL, FIELDS)
        assert_same_network(plain, tensors)
        assert any(name in note and "--weights" in note for note in plain.notes)
        assert_same_network(import_file(file, MODEL, FIELDS, weights=name), average)
        with pytest.raises(ValueError) as error:
            import_file(file, MODEL, FIELDS, weights=name[:-1] + "x")
        assert_one_line(error, f"did you mean {name}")


def test_networks_side_by_side_must_be_selected(tensors, tmp_path):
    other = {key: value * 2 for key, value in tensors.items()}
    file = save_tree(tmp_path / "gan.pth", {"first": tensors, "second": other})
    with pytest.raises(ValueError) as error:
        import_file(file, MODEL, FIELDS)
    assert_one_line(error, "--weights", "first", "second")
    assert_same_network(import_file(file, MODEL, FIELDS, weights="second"), other)


def test_the_network_is_preferred_to_a_copy_with_a_shorter_name(tensors, tmp_path):
    average = {key: value + 1 for key, value in tensors.items()}
    separate = save_tree(tmp_path / "a.pth", {"my_ema": average, "my_network": tensors})
    together = save(tmp_path / "b.pth", prefixed("ema.", average) | prefixed("my_network.", tensors))
    for file in (separate, together):
        assert_same_network(import_file(file, MODEL, FIELDS), tensors)


def test_a_second_network_may_be_smaller(tensors, tmp_path):
    smaller = dict(list(tensors.items())[: len(tensors) * 2 // 3])
    statistics = dict(list(tensors.items())[:2])
    file = save_tree(tmp_path / "gan.pth", {"first": tensors, "second": smaller, "third": statistics})
    with pytest.raises(ValueError, match=r"first, second$"):
        import_file(file, MODEL, FIELDS)


# --- objects beside the weights, and whole modules ---------------------------------------------------------------


def test_harmless_objects_beside_the_weights_are_not_imported(tensors, tmp_path):
    beside = {
        "path": called("pathlib", "PosixPath", text("a")), "config": named("__main__", "Config") + b")\x81}b",
        "act": called("functools", "partial", named("torch.nn", "ReLU")) + b"}b",
        "when": called("datetime", "date", text("x")),
        "meter": named("collections", "defaultdict") + b"(c__builtin__\nlist\ntR" + text("a") + number(1) + b"s",
        "keys": b"}" + tb.tuple_of(number(1), number(2)) + number(3) + b"s", "dtype": named("torch", "float16"),
        "members": b"\x8f(" + number(1) + b"\x90", "frozen": b"(" + number(1) + b"\x91",
        "keywords": named("__main__", "Args") + b")}\x92", "stack": b"](" + named("torch", "Size") + b")Re",
    }  # fmt: skip
    file = save_tree(tmp_path / "x.ckpt", {"state_dict": prefixed("net.", tensors), **beside})
    assert_same_network(import_file(file, MODEL, FIELDS), tensors)


def test_an_attack_beside_the_weights_is_refused(tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("a.os", "x"),
        ("nt", "system"),
    ):
        file = save_tree(tmp_path / "x.pth", {"model": tensors, "args": called(module, name, text("touch canary"))})
        with pytest.raises(ValueError, match=rf"x\.pth: .*{module}\.{name}"):
            read_tensors(file)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def module(parameters, children, name="Net"):
    """Return the program of a pickled torch.nn.Module."""
    state = {
        "training": b"\x89",
        "_parameters": tb.mapping(parameters),
        "_buffers": b"}",
        "_modules": tb.mapping(children),
    }
    return named("my_project.models", name) + b")\x81" + tb.mapping(state) + b"b"


def test_a_pickled_module_is_read_as_its_state_dict(tmp_path):
    """As torch.save(model) writes it; the class need not exist here."""
    arrays = [np.full((2, 3), i, np.float32) for i in range(3)]
    tensor = [tb.tensor(tb.storage(str(i), "float32", 6), (2, 3), (3, 1)) for i in range(3)]
    inner = module({"weight": tensor[1], "bias": b"N"}, {})
    whole = module({"scale": tensor[0]}, {"block": module({}, {"0": inner}), "fc": module({"weight": tensor[2]}, {})})
    file = tmp_path / "model.pt"
    for body in (whole, tb.mapping({"model": whole, "epoch": number(1)})):
        file.write_bytes(tb.zipped(body, {str(i): array for i, array in enumerate(arrays)}))
        found = read_tensors(file).arrays
        assert list(found) == ["scale", "block.0.weight", "fc.weight"]
        assert [array[0, 0] for array in found.values()] == [0, 1, 2]


# --- classes ----------------------------------------------------------------------------------------------------

INDICES = {name: 6 - i for i, name in enumerate(CLASSES)}  # the order of the outputs is reversed


@pytest.mark.parametrize(
    ("entry", "program", "expected"),
    [
        ("classes", strings(*CLASSES), CLASSES),
        ("class_to_idx", tb.mapping({name: number(i) for name, i in INDICES.items()}), CLASSES[::-1]),
        ("idx_to_class", b"}(" + b"".join(number(i) + text(n) for n, i in INDICES.items()) + b"u", CLASSES[::-1]),
        ("hyper_parameters", tb.mapping({"id2label": tb.mapping({str(i): text(n) for n, i in INDICES.items()})}),
         CLASSES[::-1]),
        ("args", named("argparse", "Namespace") + b")\x81" + tb.mapping({"class_names": strings(*CLASSES)}) + b"b",
         CLASSES),
        ("classes", strings("a", "b"), None),
        ("classes", strings(*"aabcdef"), None),
        ("class_to_idx", tb.mapping({name: number(i + 1) for name, i in INDICES.items()}), None),
    ],
    ids=["list", "name to index", "index to name", "in options", "in a namespace", "too few", "repeated", "not from 0"],
)  # fmt: skip
def test_class_names_and_their_order_in_the_file(entry, program, expected, tensors, tmp_path):
    file = save_tree(tmp_path / "x.pth", {"model": tensors, entry: program})
    placeholders = tuple(f"class {i}" for i in range(7))
    assert import_file(file, MODEL, FIELDS).card.classes == (expected or placeholders)
    assert import_file(file, MODEL, FIELDS, classes=tuple("abcdefg")).card.classes == tuple("abcdefg")


def test_class_names_of_safetensors_metadata(tensors, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors", {"classes": json.dumps(CLASSES), "format": "pt"})
    assert import_file(tmp_path / "x.safetensors", MODEL, FIELDS).card.classes == CLASSES


@pytest.mark.parametrize(("count", "refused"), [(10, False), (11, True)])
def test_numbered_folders_are_ambiguous_from_eleven_classes_on(count, refused, tmp_path, capsys, monkeypatch):
    """torchvision sorts them as text: 0, 1, 10, 2, …"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.import_weights.start_jax", lambda: None)
    _, tensors = small(num_classes=count)
    tensors = {key.replace("linear", "fc"): value for key, value in tensors.items()}
    save(tmp_path / "x.pth", tensors)
    for label in range(count):
        for split in ("train", "val", "test"):
            folder = tmp_path / "photos" / split / str(label)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * label, 0, 0)).save(folder / "0.png")
    words = ("import", "x.pth", "--as", MODEL, "--set", "blocks=1,1,1")
    data = open_dataset("photos")
    if count == 10:  # under akamaster's names they would be CIFAR-10's
        assert run_command(capsys, *words, "--classes", "photos", "-o", "named")[0] == 0
        assert zoo.load("named").card.classes == tuple("0123456789")
        return
    assert run_command(capsys, *words, "-o", "unnamed")[0] == 0
    with pytest.raises(ValueError) as error:
        with_classes(data, zoo.load("unnamed").card.classes)
    assert_one_line(error, "photos", "--classes")
    assert run_command(capsys, *words, "--classes", "photos/train", "-o", "named")[0] == 0
    classes = zoo.load("named").card.classes
    assert classes == ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    split = with_classes(data, classes).splits["train"]
    red = {int(label): np.asarray(split.read([i])[0])[0, 0, 0] for i, label in enumerate(split.labels)}
    assert red == {output: 20 * int(folder) for output, folder in enumerate(classes)}


# --- preprocessing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mean", "0", "--std", "1"], {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        (["--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"], {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}),
        (["--size", "40", "--resize", "48"], {"size": (40, 40), "resize": (48, 48)}),
        (["--size", "40x24", "--resize-mode", "squash"],
         {"size": (40, 24), "resize": (40, 24), "resize_mode": "squash"}),
        (["--interpolation", "bicubic", "--channels", "BGR"],
         {"interpolation": "bicubic", "mean": (0.406, 0.456, 0.485)}),
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing_is_set_by_options(options, expected, tensors, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.import_weights.start_jax", lambda: None)
    save(tmp_path / "x.pth", tensors)
    assert run_command(capsys, "import", "x.pth", *options, "-o", "out")[0] == 0
    preprocess = zoo.load("out").card.preprocess
    for field, value in expected.items():
        assert getattr(preprocess, field) == value, field


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--mean", "123.7,116.3,103.5"], ["--mean", "0.4851,0.4561,0.4059"]),
        (["--mean", "high"], ["--mean 'high'"]),
        (["--std", "0.1,0.2"], ["--std '0.1,0.2'"]),
        (["--std", "0"], ["std"]),
        (["--size", "big"], ["--size 'big'"]),
        (["--resize", "0"], ["--resize '0'"]),
        (["--resize-mode", "stretch"], ["resize_mode", "squash"]),
        (["--classes", "missing.txt"], ["missing.txt"]),
        (["--as", "akamaster:resnet20", "--mean", "0"], ["akamaster:resnet20", "resnet20"]),
        (["--set", "epsilon=1"], ["--set epsilon=1", "--as MODEL"]),
    ],
    ids=str,
)
def test_wrong_preprocessing_options_get_one_line(options, parts, tensors, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.import_weights.start_jax", lambda: None)
    save(tmp_path / "x.pth", tensors)
    code, _, err = run_command(capsys, "import", "x.pth", *options, "-o", "out")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert all(part in err for part in parts), err


@pytest.mark.parametrize(("scale", "shape"), [(1, (1, 3, 1, 1)), (255, (3,))])
def test_normalisation_buffers_of_the_network_are_used(scale, shape, tensors, tmp_path):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    buffers = {"0.mean": (mean * scale).reshape(shape), "0.std": (std * scale).reshape(shape)}
    arrays = prefixed("1.", tensors) | {key: value.astype(np.float32) for key, value in buffers.items()}
    preprocess = import_file(save(tmp_path / "x.pth", arrays), MODEL, FIELDS).card.preprocess
    np.testing.assert_allclose((preprocess.mean, preprocess.std), (mean, std), rtol=1e-6)


BUFFERS = {"mean": np.float32([0.1, 0.2, 0.3]), "std": np.float32([0.4, 0.5, 0.6])}
INPUT_NORM = {f"input_bn.{key}": np.ones(3, np.float32) for key in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize(
    ("beside", "outcome"),
    [
        (prefixed("a.", BUFFERS), "used"),
        (prefixed("a.", BUFFERS) | prefixed("b.", BUFFERS), "used"),
        (prefixed("a.", BUFFERS) | {"b.mean": BUFFERS["std"], "b.std": BUFFERS["std"]}, "b.mean"),
        ({"a.mean": BUFFERS["mean"]}, "a.mean"),
        ({"a.mean": BUFFERS["mean"], "b.std": BUFFERS["std"]}, "a.mean"),
        (INPUT_NORM, "input_bn.running_mean"),
        (INPUT_NORM | prefixed("input_bn.", BUFFERS), "input_bn.running_mean"),
    ],
    ids=["pair", "twice", "two", "mean alone", "of two modules", "norm", "norm and pair"],
)  # fmt: skip
def test_only_a_pair_of_normalisation_buffers_is_taken(beside, outcome, prefix, tensors, tmp_path):
    """Everything else is noted or refused, never lost."""
    try:
        imported = import_file(save(tmp_path / "x.pth", prefixed(prefix, tensors) | beside), MODEL, FIELDS)
    except ValueError as error:
        assert outcome in str(error) and "\n" not in str(error)
        return
    mean = imported.card.preprocess.mean
    assert np.allclose(mean, BUFFERS["mean"]) == any(all(f"{m}.{k}" in beside for k in BUFFERS) for m in "ab")
    assert outcome == "used" or any(outcome in note for note in imported.notes)


KERAS_NET = {
    "blocks": (1,), "width": 8, "num_classes": 5, "stride_at": "last", "conv_bias": True, "pool_padding": "zeros",
    "epsilon": 1.001e-5,
}  # fmt: skip


def write_keras(file, tensors, layers):
    """Write a file of Keras: weights by name, and the configuration of a model that begins with these layers."""
    h5py = pytest.importorskip("h5py")
    named = [{"class_name": kind, "config": config} for kind, config in (*layers, ("Conv2D", {}))]
    with h5py.File(file, "w") as out:
        out.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": named}})
        out.attrs["layer_names"] = list(dict.fromkeys(key.partition("/")[0] for key in tensors))
        for key, array in tensors.items():
            group = out.require_group(key.partition("/")[0])
            group.attrs["weight_names"] = [*group.attrs.get("weight_names", []), key]
            group[key] = array
    return file


NEGATIVE, HALVES = ("Rescaling", {"scale": -1 / 127.5, "offset": 1}), {"mean": (0.5,), "std": (0.5,)}
RESIZING = ("Resizing", {"height": 64, "width": 64, "interpolation": "lanczos5"})


@pytest.mark.parametrize(
    ("layers", "changes", "expected"),
    [
        ([NEGATIVE], {}, "--mean and --std"),
        ([NEGATIVE], {"mean": (0.5,)}, "--mean and --std"),
        ([NEGATIVE], HALVES, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ([("Rescaling", {"scale": 1e12, "offset": 0})], HALVES, {"std": (0.5,) * 3}),
        ([("Stack", {})], HALVES, "--channels, --mean and --std"),
        ([("Stack", {})], {**HALVES, "channels": "BGR"}, {"channels": "BGR"}),
        ([RESIZING], {}, "--interpolation"),
        ([RESIZING], {"interpolation": "lanczos"}, {"interpolation": "lanczos", "size": (64, 64)}),
    ],
    ids=str,
)
def test_what_a_keras_model_does_in_an_unknown_way_can_be_given(layers, changes, expected, tmp_path):
    _, tensors = small("resnet50_v2", "keras", **KERAS_NET)
    file = write_keras(tmp_path / "net.h5", tensors, layers)
    fields = {"blocks": (1,), "width": 8}
    if isinstance(expected, str):
        with pytest.raises(ValueError) as error:
            import_file(file, "resnet50_v2", fields, preprocess=changes)
        return assert_one_line(error, "net.h5: ", expected)
    preprocess = import_file(file, "resnet50_v2", fields, preprocess=changes).card.preprocess
    assert {name: getattr(preprocess, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("layer", "mean", "std"),
    [(("Rescaling", {"scale": 1 / 255, "offset": 0}), 0.0, 1.0),
     (("Normalization", {"name": "n", "mean": [51.0], "variance": [102.0**2]}), 0.2, 0.4)],
    ids=["rescaling", "normalization"],
)  # fmt: skip
def test_a_grey_keras_model_has_one_mean(layer, mean, std, tmp_path):
    _, tensors = small("resnet50_v2", "keras", **KERAS_NET)
    tensors["conv1_conv/kernel"] = tensors["conv1_conv/kernel"][:, :, :1]
    file = write_keras(tmp_path / "net.h5", tensors, [layer])
    preprocess = import_file(file, "resnet50_v2", {"blocks": (1,), "width": 8}).card.preprocess
    assert preprocess.channels == "L" and preprocess.mean == (pytest.approx(mean),)
    assert preprocess.std == (pytest.approx(std),)


# --- architecture and shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "fields"),
    [("resnet20", "akamaster", {"blocks": (2, 1, 2)}), ("resnet18", "torchvision", {"blocks": (1, 1, 1, 1)}),
     ("resnet50", "torchvision", {"blocks": (1, 1, 1, 1)}), ("resnet50_v2", "timm", {"blocks": (1, 1, 1, 1)})],
)  # fmt: skip
def test_the_architecture_is_recognised_from_the_tensors(name, source, fields, tmp_path):
    model, tensors = small(name, source, num_classes=7, **fields)
    imported = import_file(save(tmp_path / "x.pth", prefixed("net.", tensors)))
    assert imported.card.model == name and zoo.create(name, **imported.card.fields) == model
    with pytest.raises(ValueError) as error:
        import_file(tmp_path / "x.pth", "inception_v4")
    assert_one_line(error, "x.pth", "inception_v4", name)


def test_an_unknown_architecture_is_named(tmp_path):
    file = save(tmp_path / "x.pth", {f"blocks.{i}.attn.weight": np.ones((4, 4), np.float32) for i in range(5)})
    with pytest.raises(ValueError) as error:
        import_file(file, "resnet18")
    assert_one_line(error, "x.pth", "resnet18", "blocks.0.attn.weight")


@pytest.mark.parametrize("kind", ["_rebuild_tensor_v3", "_rebuild_sparse_tensor", "_rebuild_qtensor"])
@pytest.mark.parametrize("model", [None, MODEL])
def test_tensors_of_other_kinds_are_named(kind, model, tensors, tmp_path):
    """Of 8 bits, sparse and quantised ones: without their names, the rest would look like another network."""
    file = save_tree(tmp_path / "x.pth", {**tensors, "conv1.weight": called("torch._utils", kind, number(0))})
    with pytest.raises(ValueError) as error:
        import_file(file, model, FIELDS if model else None)
    assert_one_line(error, "x.pth", f"conv1.weight (torch._utils.{kind})", "float16")


def test_import_without_output_proposes_the_model(tensors, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.commands.import_weights.start_jax", lambda: None)
    code, out, err = run_command(capsys, "import", save(tmp_path / "x.pth", tensors))
    assert code == 2 and "recognised resnet20" in out and "resnet20 with 7 classes" in err and "-o FOLDER" in err


def write_shards(folder, tensors, index=True):
    keys = list(tensors)
    parts = {f"model-{i + 1:05d}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for name, part in parts.items():
        save_file({key: tensors[key] for key in part}, folder / name)
    if index:
        weight_map = {key: name for name, part in parts.items() for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return list(parts)


@pytest.mark.parametrize("index", [True, False])
def test_sharded_weights(index, tensors, tmp_path):
    names = write_shards(tmp_path, tensors, index)
    for given in (*(["model.safetensors.index.json"] if index else []), *names, "."):
        assert_same_network(import_file(tmp_path / given, MODEL, FIELDS), tensors)
    loaded = zoo.load(tmp_path, MODEL, **FIELDS)
    assert np.array_equal(loaded.variables["params"]["head"]["kernel"], tensors["linear.weight"].T)
    with pytest.raises(ValueError, match="convert it: zoo import"):
        folder_of(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError) as error:
        import_file(tmp_path / names[0], MODEL, FIELDS)
    assert_one_line(error, names[1])


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", 3])
def test_an_index_may_only_name_files_beside_it(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="weight_map"):
        read_tensors(tmp_path / "model.safetensors.index.json")


# --- files that are not weights -----------------------------------------------------------------------------------


def picture(form):
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, form)
    return out.getvalue()


def archive(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return out.getvalue()


NOT_WEIGHTS = {
    "png": (picture("PNG"), "image (PNG)"), "jpeg": (picture("JPEG"), "image (JPEG)"),
    "webp": (picture("WEBP"), "image (WebP)"),
    "html": (b"\n\n<html><head><title>Google Drive", "web page"), "bom": (b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied", "XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "zip": (archive("weights/mine.pth", "readme.txt"), "weights/mine.pth"), "npz": (archive("a.npy"), "NumPy archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "gzip"), "tar": (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    "pdf": (b"%PDF-1.7 x", "PDF"), "json": (b'{"epochs": 3, "lr": 0.1}', "JSON"),
    "text": (b"epoch,loss\n1,2\n", "text file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(40), "NumPy array"), "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"), "zeros": (bytes(1000), "zeros"),
    "gguf": (b"GGUF" + bytes(40), "GGUF"), "empty": (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_a_file_that_is_not_a_weight_file_is_called_what_it_is(kind, suffix, tmp_path):
    data, part = NOT_WEIGHTS[kind]
    file = tmp_path / f"x{suffix}"
    file.write_bytes(data)
    with pytest.raises(ValueError) as error:
        import_file(file, "resnet18")
    assert_one_line(error, f"x{suffix}", part)


def test_folders_that_are_not_weights(tmp_path):
    for name, part in (("saved_model.pb", "SavedModel"), ("data.pkl", "unpacked"), ("x.txt", "no weight file")):
        folder = tmp_path / f"folder-{name}"
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=part):
            read_tensors(folder)


def test_akamaster_names_of_ten_classes_are_cifar10(tmp_path):
    assert import_file(save(tmp_path / "x.pth", small()[1])).card.classes == CIFAR10


# --- the card of an exported file -------------------------------------------------------------------------------------


def exported(path, **changes):
    """Write softmax regression as `zoo export` does, with changes to its card."""
    size = {"size": (4, 4), "resize": (4, 4), "channels": "L", "mean": (0.5,), "std": (0.25,)}
    card = {
        "model": "softmax", "fields": {"num_classes": 3, "image_size": 4}, "classes": ["a", "b", "c"],
        "preprocess": dataclasses.asdict(Preprocess(**size)), "licence": "CC0-1.0", "format": 2, **changes,
    }  # fmt: skip
    arrays = {"params/head/kernel": np.ones((16, 3), np.float32), "params/head/bias": np.zeros(3, np.float32)}
    save_file(arrays, path, {"card": json.dumps(card)})
    return path


def test_a_network_that_is_nothing_but_a_head_is_imported(tmp_path):
    imported = import_file(exported(tmp_path / "x.safetensors"))
    assert imported.card.model == "softmax" and imported.card.classes == ("a", "b", "c")
    assert imported.card.licence == "CC0-1.0" and imported.card.preprocess.size == (4, 4)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("fields", [1], "'fields' is not"), ("fields", {"blocks": [10**9]}, "does not fit"),
        ("classes", [1, 2, 3], "'classes'"), ("classes", ["a"], "1 class names"),
        ("preprocess", 5, "preprocess"), ("preprocess", {}, "missing or unknown"),
        ("model", 7, "'model'"), ("model", "lenet\x1b[2J", "lenet"), ("licence", [], "'licence'"),
        ("format", 99, "format"), ("recipe", [], "'recipe'"), ("unknown\nfield", 1, r"unknown field"),
    ],
)  # fmt: skip
def test_the_card_of_an_exported_file_is_checked(field, value, part, tmp_path):
    with pytest.raises(ValueError) as caught:
        import_file(exported(tmp_path / "x.safetensors", **{field: value}))
    assert_one_line(caught, "x.safetensors: ", part)
    assert str(caught.value).isprintable()
