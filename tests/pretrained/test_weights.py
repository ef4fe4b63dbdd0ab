"""Weights by name, and weight files imported as checkpoints."""

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_bytes as tb
from helpers import make_plan
from networks import small
from PIL import Image
from seeded import seeded_tensors

import zoo
from zoo import cli, export, models
from zoo.data.imagenet import class_names
from zoo.inference.predict import Checkpoint
from zoo.models import MODELS
from zoo.pretrained import names, weights
from zoo.pretrained.convert import convert
from zoo.pretrained.importing import card_of, import_file, import_published
from zoo.pretrained.names import find
from zoo.pretrained.recognise import SOURCES
from zoo.pretrained.registry import CIFAR10, DEFAULTS, WEIGHTS
from zoo.pretrained.weights import save_imported
from zoo.training.recipe import Recipe

GOLDEN = [path for path in sorted((Path(__file__).parents[1] / "models" / "golden").glob("*.json"))
          if json.loads(path.read_text())["source"] in SOURCES]  # fmt: skip
#: One of each source; tests/models/test_golden.py tests the other key maps on tensors.
FILES = ("torchvision_resnet_basic", "timm_resnet_v2", "keras_resnet_v1", "akamaster_resnet20")


def save_torch(file, tensors, **options):
    file.write_bytes(tb.state_dict(tensors, **options))
    return file


# --- the registry --------------------------------------------------------------------------------------------------


def test_every_row_has_a_model_and_a_digest():
    for name, row in WEIGHTS.items():
        model = models.create(row.model, **row.fields)
        assert name == row.name and row.source in SOURCES and row.licence
        assert model.num_classes == len(row.classes) == len(set(row.classes)), name
        # A published digest; or a file on the hub, which announces one.
        digest = r"sha256:[0-9a-f]{8,9}|md5:[0-9a-f]{32}"
        assert re.fullmatch(digest, row.digest) or (not row.digest and row.file.startswith("timm/")), name
        assert row.file.startswith(("https://", "timm/"))
        height, width = row.preprocess.size
        assert height == width <= row.preprocess.resize[0] == row.preprocess.resize[1] < 1.5 * height, name
        assert 60 < (row.accuracy[0] or 60.1) < 100 or row.model == "alexnet_owt"
        assert card_of(row).model in MODELS
    assert len(WEIGHTS) > 100 and {row.source for row in WEIGHTS.values()} == set(SOURCES) - {"zoo"}


def test_every_row_of_the_registry_is_as_published():
    """All rows were compared with torchvision 0.28, timm 1.0.31, Keras 3.15 and akamaster's README.

    After changing a row, compare it with its source (tests/parity/test_registry.py for timm) and update the hash.
    """
    columns = ("name", "file", "digest", "model", "fields", "accuracy", "licence", "data")
    steps = ("size", "resize", "resize_mode", "interpolation", "channels", "mean", "std")
    rows = json.dumps(
        [
            [getattr(row, column) for column in columns] + [getattr(row.preprocess, step) for step in steps]
            for row in WEIGHTS.values()
        ]
    )
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "072384be969f5f9b"
    counts = {source: sum(row.source == source for row in WEIGHTS.values()) for source in SOURCES}
    assert counts == {"torchvision": 20, "timm": 169, "keras": 9, "akamaster": 6, "zoo": 0}


def test_preprocessing_that_the_sources_networks_contain():
    """Constants that tests with random weights cannot notice."""
    half = (0.5, 0.5, 0.5)
    for name in ("googlenet", "inception_v3"):  # transform_input
        assert find(f"torchvision:{name}").preprocess.mean == find(f"torchvision:{name}").preprocess.std == half
    caffe = find("keras:ResNet50").preprocess
    assert caffe.channels == "BGR" and caffe.mean[0] == pytest.approx(103.939 / 255) and caffe.std == (1 / 255,) * 3
    assert find("keras:ResNet50V2").preprocess.mean == half
    assert find("torchvision:resnet50.IMAGENET1K_V2").preprocess.resize == (232, 232)
    assert find("timm:resnet50.a1_in1k").preprocess.interpolation == "bicubic"
    assert find("timm:resnet50.a1_in1k").accuracy == (80.382, 94.598)
    assert find("akamaster:resnet20").classes == tuple(sorted(CIFAR10))


def test_weights_of_imagenet_21k():
    """Their order of classes is not in the package, and their accuracy is not published."""
    rows = {name: row for name, row in WEIGHTS.items() if row.data == "ImageNet-21k"}
    assert len(rows) == 6 and set(rows) == {name for name in WEIGHTS if name.endswith("_bit.goog_in21k")}
    for row in rows.values():
        card = card_of(row)
        assert len(row.classes) == card.fields["num_classes"] == 21843 and row.classes[7] == "class 7"
        assert row.accuracy == (None, None) and card.metrics == {}


@pytest.mark.parametrize("present", [True, False])
def test_published_files_may_lack_the_auxiliary_heads_of_their_row(present, tmp_path, monkeypatch):
    """timm does not say which of its files have them."""
    _, tensors = small("googlenet_bn", "torchvision", blocks=(1, 1, 1), num_classes=1000, width=0.125)
    tensors = {key: value for key, value in tensors.items() if present or not key.startswith("aux")}
    row = dataclasses.replace(
        WEIGHTS["torchvision:googlenet.IMAGENET1K_V1"], digest="", fields={"blocks": (1, 1, 1), "width": 0.125}
    )
    imported = import_published(save_torch(tmp_path / "x.pth", tensors), row)
    assert imported.card.fields["aux_heads"] == present == ("aux1" in imported.variables["params"])
    assert present == (not any("auxiliary" in note for note in imported.notes))


def test_imagenet_classes():
    names = class_names()
    assert len(names) == 1000 and names[0] == "tench" and names[999] == "toilet tissue" and "" not in names


@pytest.mark.parametrize(
    ("spec", "name"),
    [("torchvision:resnet50", "torchvision:resnet50.IMAGENET1K_V2"), ("timm:resnet50", "timm:resnet50.a1_in1k"),
     ("torchvision:resnet50.IMAGENET1K_V1",) * 2, ("keras:Xception",) * 2],
)  # fmt: skip
def test_default_weights_of_a_network(spec, name):
    assert find(spec).name == name and DEFAULTS[name.partition(".")[0]] in WEIGHTS


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("torchvision:resnet5", "did you mean torchvision:resnet50"),
        ("torchvision:resnet50.IMAGENET1K_V3", r"did you mean torchvision:resnet50\.IMAGENET1K_V2"),
        ("timm:resnet50.a1", r"did you mean timm:resnet50\.a1_in1k"),
        ("keras:ResNet50v2", "did you mean keras:ResNet50V2"),
        ("torchvison:resnet50", "did you mean torchvision:resnet50"),
        ("lenet5-mnits", "did you mean lenet5-mnist"),
        ("runs/best", "runs/best: "),
        ("quite something else", "zoo list --weights"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(spec, answer, monkeypatch):
    monkeypatch.setattr(names, "shipped", lambda: ["lenet5-mnist", "resnet20-cifar10"])
    with pytest.raises(FileNotFoundError, match=answer) as error:
        zoo.load(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["checkpoints", "zoo/_checkpoints"])
def test_shipped_checkpoints_of_a_repository_and_of_a_wheel(place, tmp_path, monkeypatch):
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(names, "_PACKAGE", tmp_path / "zoo")
    model = zoo.create("softmax", image_size=4)
    preprocess = zoo.data.images.preprocess.Preprocess(size=(4, 4), resize=(4, 4), channels="L", mean=(0,), std=(1,))
    zoo.save(tmp_path / place / "softmax-digits", model, models.init(model, 0), tuple("0123456789"), preprocess)
    assert names.shipped() == ["softmax-digits"]
    assert zoo.load("softmax-digits").model == model
    with pytest.raises(ValueError, match="softmax-digits"):
        zoo.load("softmax-digits", "softmax")


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path if path.stem in FILES else pytest.param(path, marks=pytest.mark.slow) for path in GOLDEN],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_import_and_export_of_every_source_and_network(path, tmp_path):
    """import, then export, gives the same tensors; nothing is computed."""
    card = json.loads(path.read_text())
    tensors = seeded_tensors(card["tensors"])
    form = ".safetensors" if card["source"] == "timm" else ".h5" if card["source"] == "keras" else ".pth"
    file = tmp_path / f"weights{form}"
    if form == ".pth":
        save_torch(file, tensors)
    elif form == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, file)
    else:
        save_keras(file, tensors)
    imported = import_file(file, card["model"], card["fields"])
    assert models.create(imported.card.model, **imported.card.fields) == models.create(card["model"], **card["fields"])
    source = SOURCES[card["source"]]
    model = models.create(card["model"], **card["fields"])
    abstract = models.abstract_variables(model)
    plain = {key.removeprefix("module."): value for key, value in tensors.items()}
    expected = convert(source.key_map(model, abstract), plain, abstract, source.IGNORED)
    jax.tree.map(np.testing.assert_array_equal, imported.variables, expected)

    loaded = Checkpoint(model, imported.variables, imported.card)
    assert export.write_safetensors(loaded, tmp_path / "back.safetensors", card["source"]) == card["source"]
    again = import_file(tmp_path / "back.safetensors", card["model"], card["fields"]) if form != ".h5" else imported
    jax.tree.map(np.testing.assert_array_equal, again.variables, imported.variables)


def save_keras(file, tensors):
    """Write Keras's older form, which lists layers by name."""
    h5py = pytest.importorskip("h5py")
    layers = dict.fromkeys(key.split("/")[0] for key in tensors)
    with h5py.File(file, "w") as out:
        out.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            arrays = {key: array for key, array in tensors.items() if key.split("/")[0] == layer}
            group = out.create_group(layer)
            group.attrs["weight_names"] = [f"{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                group[f"{key}:0"] = array


def test_load_a_file_with_its_model(tmp_path):
    model, tensors = small(num_classes=7)
    file = save_torch(tmp_path / "mine.pth", tensors)
    loaded = zoo.load(file, "resnet20", blocks=(1, 1, 1))
    assert loaded.model == model and loaded.card.classes == tuple(f"class {i}" for i in range(7))
    assert np.array_equal(loaded.variables["params"]["head"]["bias"], tensors["linear.bias"])
    assert "mine.pth, sha256 " in loaded.card.source
    with pytest.raises(ValueError, match=r"did you mean .*resnet20"):
        zoo.load(file, "resnet2")
    with pytest.raises(ValueError, match="no field 'depth'"):
        zoo.load(file, "resnet20", depth=3)


def test_classes_prefixes_and_channels_are_read_from_the_file(tmp_path):
    """Ten classes under akamaster's names are CIFAR-10."""
    _, tensors = small()
    for prefix in ("", "module.", "_orig_mod."):
        keys = {f"{prefix}{key}": value for key, value in tensors.items()}
        imported = import_file(save_torch(tmp_path / "x.pth", keys), "resnet20", {"blocks": (1, 1, 1)})
        assert imported.card.classes == CIFAR10
        assert (f"prefix {prefix!r}" in " ".join(imported.notes)) == bool(prefix)
        assert np.array_equal(imported.variables["params"]["head"]["bias"], tensors["linear.bias"])
    grey = {**tensors, "conv1.weight": tensors["conv1.weight"][:, :1]}
    file = save_torch(tmp_path / "x.pth", grey)
    imported = import_file(file, "resnet20", {"blocks": (1, 1, 1)}, classes="abcdefghij")
    assert imported.card.preprocess.channels == "L" and imported.card.classes == tuple("abcdefghij")
    assert any("preprocessing is assumed" in note for note in imported.notes)
    save_imported(imported, tmp_path / "grey")
    assert zoo.load(tmp_path / "grey").variables["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
    with pytest.raises(ValueError, match="2 class names"):
        import_file(file, "resnet20", {"blocks": (1, 1, 1)}, classes="ab")


def test_a_network_without_a_head_can_only_be_fine_tuned(tmp_path, capsys):
    _, tensors = small()
    body = {key: value for key, value in tensors.items() if not key.startswith("linear")}
    file = save_torch(tmp_path / "x.pth", body | {"n_averaged": np.array(3)})
    words = ["import", str(file), "--as", "resnet20", "--set", "blocks=1,1,1", "--set", "num_classes=none"]
    assert cli.main([*words, "-o", str(tmp_path / "body")]) == 0
    assert cli.main([*words, "-o", str(tmp_path / "body")]) == 2
    assert f"{tmp_path / 'body'}:" in capsys.readouterr().err
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    for command in (["predict", str(tmp_path / "body"), str(tmp_path / "image.png")],
                    ["eval", str(tmp_path / "body"), "--data", "digits"]):  # fmt: skip
        assert cli.main(command) == 2
        assert "--init" in capsys.readouterr().err
    start = zoo.loading.open_init(tmp_path / "body")
    assert make_plan(None, "digits", Recipe(), init=start).model.num_classes == 10


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--set", "dtype=bfloat16"], "dtype=bfloat16"),
        (["--classes", "twice.txt"], "twice.txt: duplicate class names: b"),
        (["--classes", "latin.txt"], "latin.txt"),
    ],
)
def test_wrong_options_of_an_import(options, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.txt").write_text("a\nb\nb\n\n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    save_torch(tmp_path / "x.pth", small()[1])
    assert cli.main(["import", "x.pth", "--as", "resnet20", *options, "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert problem in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_half_precision_is_converted_to_float32(tmp_path):
    _, tensors = small()
    half = {key: value.astype(tb.BFLOAT16) for key, value in tensors.items()}
    imported = import_file(save_torch(tmp_path / "x.pth", half), "resnet20", {"blocks": (1, 1, 1)})
    kernel = imported.variables["params"]["stem"]["conv"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0), rtol=1e-2)


def test_files_of_another_network_are_refused_in_one_line(tmp_path):
    _, tensors = small()
    file = save_torch(tmp_path / "x.pth", tensors)
    with pytest.raises(ValueError, match=r"x\.pth: the tensors do not match the model: 30 missing") as error:
        zoo.load(file, "resnet20", blocks=(2, 2, 2))
    assert str(error.value).count("(for ") > 10 and " … " in str(error.value)  # the first and the last ones
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"x\.pth: is not a file of inception_v4"):
        zoo.load(file, "inception_v4")
    with pytest.raises(ValueError, match=r"x\.pth: .*no network like LeNet5"):
        zoo.load(file, "lenet5")
    del tensors["bn1.bias"]
    tensors["extra"] = np.zeros(1, np.float32)
    message = r"1 missing: bn1\.bias \(for params/stem/norm/bias\); 1 unexpected: extra"
    with pytest.raises(ValueError, match=message):
        zoo.load(save_torch(file, tensors), "resnet20", blocks=(1, 1, 1))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A row of WEIGHTS and its file: (name, file, tensors)."""
    _, tensors = small()
    data = tb.state_dict(tensors, "legacy")
    name, digest = "akamaster:resnet8", hashlib.sha256(data).hexdigest()[:8]
    row = dataclasses.replace(
        WEIGHTS["akamaster:resnet20"], name=name, file=f"https://example.org/resnet8-{digest}.th",
        digest=f"sha256:{digest}", fields={"blocks": (1, 1, 1)},
    )  # fmt: skip
    monkeypatch.setitem(WEIGHTS, name, row)
    file = tmp_path / f"resnet8-{digest}.th"
    file.write_bytes(data)
    return name, file, tensors


def test_a_published_file_is_recognised_by_name_and_hash(published, tmp_path):
    name, file, _ = published
    card = zoo.load(file).card
    assert card.source.startswith(name) and card.classes == CIFAR10 and card.licence == "BSD-2-Clause"
    assert card.metrics["published"]["accuracy"] == pytest.approx(0.9173)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"is not the file of akamaster:resnet8: its sha256 is \w{8}… instead of \w{8}"
    ):
        zoo.load(file)
    other = tmp_path / "renamed.th"
    other.write_bytes(data)
    with pytest.raises(ValueError, match="--as resnet20"):
        import_file(other, name)
    with pytest.raises(ValueError, match=name):
        import_file(file, name, {"width": 8})


def test_own_weights_may_have_the_name_of_a_published_file(published, monkeypatch):
    """Weights from torch.hub are often fine-tuned and saved under the same name."""
    name, file, tensors = published
    monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], model="resnet8"))
    monkeypatch.setitem(MODELS, "resnet8", functools.partial(zoo.create, "resnet20", blocks=(1, 1, 1)))
    own = {key: value[:7] if "linear" in key else value for key, value in tensors.items()}
    imported = import_file(save_torch(file, own), "resnet8")
    assert name in imported.notes[0]
    assert imported.notes[0] in imported.card.source and imported.card.licence != "BSD-2-Clause"
    assert imported.variables["params"]["head"]["bias"].shape == (7,)


def test_the_card_of_a_published_file_states_what_was_not_read(tmp_path, published, monkeypatch):
    name, file, tensors = published
    data = tb.state_dict(
        tensors, wrap=lambda inner: tb.mapping({"state_dict": tb.ordered(inner), "epoch": tb.number(9)})
    )
    file.write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], digest=digest))
    imported = import_file(file, name)
    assert imported.notes == ("the weights are those under 'state_dict'; not read: epoch",)
    assert imported.card.source.endswith(f"; {imported.notes[0]}") and weights.find_set(imported.card).name == name


def test_cached_weights_are_opened_offline(published, monkeypatch):
    name, file, tensors = published
    save_imported(import_file(file, name), weights.cached_folder(WEIGHTS[name]))
    monkeypatch.setattr(weights, "fetch", lambda *_: pytest.fail("downloads"))
    hashed, original = [], zoo.checkpoint.manifest.file_sha256
    monkeypatch.setattr(zoo.checkpoint.manifest, "file_sha256", lambda part: hashed.append(part) or original(part))
    loaded = zoo.load(name)
    assert hashed and len(hashed) == len(set(hashed))  # each file is hashed once
    assert np.array_equal(loaded.variables["params"]["head"]["bias"], tensors["linear.bias"])
    assert weights.read_card(name) == loaded.card and weights.folder_of(name).is_dir()


@pytest.mark.parametrize("spec", [".nowhere", "./nowhere", "runs/nowhere/best"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_name(spec):
    with pytest.raises(FileNotFoundError, match=f"^{spec}: no such checkpoint folder or weight file$"):
        find(spec)
