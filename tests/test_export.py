"""Exported files give the same logits or tensors, and describe themselves."""

import dataclasses
import datetime
import json
import os
import re
import resource
import stat
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from helpers import assert_one_line, run_command
from networks import SMALL

import zoo
from zoo import export, models
from zoo.checkpoint.calibration import Calibration
from zoo.data.images.preprocess import Preprocess
from zoo.export.onnx_graph import to_onnx
from zoo.pretrained.importing import import_file

CLASSES = tuple("abcdefghij")


def checkpoint(name, path, **fields):
    model = zoo.create(name, num_classes=10, **fields)
    height, width, channels = model.input_shape
    preprocess = Preprocess(
        size=(height, width), resize=(height, width), channels="L" if channels == 1 else "BGR",
        mean=(0.3,) * channels, std=(0.2,) * channels,
    )  # fmt: skip
    variables = models.init(model, 0)
    rng = np.random.default_rng(0)
    # Means far from zero would leave nothing after the rectifiers, and a head of zeros no logits to compare.
    variables["batch_stats"] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            if path[-1].key == "var"
            else rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        ),
        variables["batch_stats"],
    )
    if "head" in variables["params"]:
        variables["params"]["head"] = jax.tree.map(
            lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), variables["params"]["head"]
        )
    zoo.save(path, model, variables, CLASSES, preprocess, licence="CC0-1.0")
    return zoo.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def resnet(folder):
    return checkpoint("resnet20", folder / "resnet", blocks=(1, 1, 1))


@pytest.fixture(scope="module")
def lenet(folder):
    return checkpoint("lenet5", folder / "lenet")


@pytest.mark.parametrize("which", ["resnet", pytest.param("lenet", marks=pytest.mark.slow)])
def test_stablehlo_is_the_whole_network_at_any_batch_size(which, request, tmp_path):
    loaded = request.getfixturevalue(which)
    export.write_stablehlo(loaded, tmp_path / "net.stablehlo")
    about = json.loads((tmp_path / "net.stablehlo.json").read_text())
    card = json.loads(about["card"])
    assert card["classes"] == list(CLASSES) and card["licence"] == "CC0-1.0" and "uint8" in about["input"]
    assert about["jax"] == jax.__version__ and about["made"] < about["readable_until"]
    again = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    assert set(again.platforms) == {"cpu", "cuda", "tpu"} and again.in_avals[0].dtype == np.uint8
    assert str(again.in_avals[0].shape[0]) == "batch"
    pixels = export.example_pixels(loaded, 2)  # another batch size than in its own check
    images = (pixels / 255 - np.array(loaded.card.preprocess.mean)) / np.array(loaded.card.preprocess.std)
    logits, _ = jax.jit(loaded.model.apply)(loaded.variables, images.astype(np.float32))
    np.testing.assert_allclose(again.call(pixels), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(export.read_stablehlo(tmp_path / "net.stablehlo")(pixels), again.call(pixels))
    old = {**about, "jax": "0.9.0", "made": "2024-02-01", "readable_until": "2024-07-30"}
    (tmp_path / "net.stablehlo.json").write_text(json.dumps(old))
    with pytest.warns(UserWarning, match=r"net\.stablehlo: made on 2024-02-01 with JAX 0\.9\.0.*until 2024-07-30"):
        export.read_stablehlo(tmp_path / "net.stablehlo")


def test_the_promise_of_jax_ends_for_other_versions_only():
    today = datetime.date(2027, 1, 31)
    made = {"made": "2026-07-01", "jax": "0.9.0", "readable_until": "2027-01-30"}
    assert "export it anew" in export.describe_expiry(made, today)
    assert not export.describe_expiry({**made, "readable_until": "2027-01-31"}, today)
    assert not export.describe_expiry({**made, "jax": jax.__version__}, today)
    assert not export.describe_expiry({}, today)


def test_what_is_no_stablehlo_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.stablehlo").write_bytes(b"no such thing" * 10)
    with pytest.raises(ValueError, match=r"x\.stablehlo: JAX .* cannot read it") as caught:
        export.read_stablehlo(tmp_path / "x.stablehlo")
    assert_one_line(caught)
    for text in ("{", "[]", "null", "[" * 100_000):
        (tmp_path / "x.stablehlo.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.stablehlo\.json: is not the card") as caught:
            export.read_stablehlo(tmp_path / "x.stablehlo")
        assert_one_line(caught)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.MODELS if not name.endswith("_small")])
def test_every_network_can_be_traced_without_a_batch_size(name):
    model = zoo.create(name)
    (batch,) = jax.export.symbolic_shape("batch")
    variables = models.abstract_variables(model)
    images = jax.ShapeDtypeStruct((batch, *model.input_shape), np.float32)
    logits, _ = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (batch, model.num_classes)


def test_a_file_with_other_logits_is_not_written(resnet, tmp_path):
    with pytest.raises(ValueError, match=r"x\.onnx: not written: its logits differ"):
        export._compare("x.onnx", resnet, lambda pixels: np.zeros((len(pixels), 10), np.float32))
    with pytest.raises(ValueError, match="not written"):
        export._compare("x.onnx", resnet, lambda pixels: np.full((len(pixels), 10), np.nan, np.float32))


def test_export_traces_the_plain_formulation(resnet):
    """The formulations for CPUs contain barriers that other programs do not know."""
    from zoo.models.operations import formulation

    with formulation("cpu"):
        text = str(jax.make_jaxpr(export.pixels_to_logits(resnet))(export.example_pixels(resnet, 1)))
    assert "optimization_barrier" not in text and "custom_vjp" not in text
    assert len(re.findall("conv_general_dilated", text)) >= 7


@pytest.mark.parametrize(
    ("name", "beside", "own"),
    [("net.xml", "net.bin", False), ("net.stablehlo", "net.stablehlo.json", False),
     ("net.safetensors", "net_preprocess.py", False), ("net.onnx", "net_preprocess.py", True),
     ("net.onnx", "net.bin", True), ("net.safetensors", "net.stablehlo.json", True)],
)  # fmt: skip
def test_what_is_written_beside_a_file_replaces_nothing_else(name, beside, own, lenet, tmp_path):
    """`own`: that an export wrote it, or will not write it."""
    if own and beside.endswith(".py"):
        export.write_preprocess(lenet, tmp_path / "net.safetensors")
    else:
        (tmp_path / beside).write_bytes(b"weights of PyTorch")
    if own:
        return export.require_companions(tmp_path / name)
    with pytest.raises(ValueError) as error:
        export.require_companions(tmp_path / name)
    assert_one_line(error, beside, name)


def test_safetensors_have_the_names_of_a_project_with_the_network(resnet, lenet, tmp_path):
    from safetensors import safe_open

    file = tmp_path / "x.safetensors"
    assert export.write_safetensors(resnet, file) == "akamaster"
    assert export.write_safetensors(lenet, file) == "zoo"
    with safe_open(file, "np") as written:
        assert set(written.keys()) == {row["path"] for row in lenet.card.leaves}
        assert json.loads(written.metadata()["card"])["classes"] == list(CLASSES)
    assert export.write_safetensors(resnet, file, "zoo") == "zoo"
    for keys, answer in {"torchvision": "has stem=.imagenet.", "timm": "ResNet.*small"}.items():
        with pytest.raises(ValueError, match=answer):
            export.write_safetensors(resnet, file, keys)
    with pytest.raises(ValueError, match="torchvision has no network like LeNet5"):
        export.write_safetensors(lenet, file, "torchvision")


def test_exported_safetensors_follow_the_umask_and_have_plain_names(resnet, tmp_path):
    from safetensors import safe_open

    before = os.umask(0o027)
    try:
        export.write_safetensors(resnet, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        keys = set(file.keys())
    assert {"conv1.weight", "linear.bias"} < keys and not any(key.startswith("module.") for key in keys)


def test_an_exported_file_is_imported_without_options(resnet, lenet, tmp_path):
    """Model, classes and preprocessing are in its metadata."""
    for loaded in (resnet, lenet):
        export.write_safetensors(loaded, tmp_path / "x.safetensors")
        again = zoo.load(tmp_path / "x.safetensors")
        assert again.model == loaded.model and again.card.preprocess == loaded.card.preprocess
        assert again.card.classes == CLASSES and again.card.licence == "CC0-1.0"
        jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)


def test_an_exported_file_keeps_its_calibration_for_the_same_network_and_pixels(resnet, tmp_path):
    calibration = Calibration(2.5, "validation", 100, 1.0, 0.9, 0.2, 0.1, 0.5, 0.95)
    card = dataclasses.replace(resnet.card, calibration=calibration)
    file = tmp_path / "x.safetensors"
    for keys in ("akamaster", "zoo"):
        export.write_safetensors(dataclasses.replace(resnet, card=card), file, keys)
        assert zoo.load(file).card.calibration == calibration
        assert import_file(file, classes=CLASSES[::-1]).card.calibration == calibration
        assert import_file(file, preprocess={"mean": (0.5,)}).card.calibration is None
        assert import_file(file, fields={"num_classes": None}).card.calibration is None


@pytest.mark.parametrize(
    ("write", "package", "advice"),
    [(export.write_onnx, "onnxruntime", r"ONNX needs onnx(runtime)?: pip install 'jax-model-zoo\[onnx\]'"),
     (export.write_openvino, "openvino", r"OpenVINO needs openvino: pip install 'jax-model-zoo\[openvino\]'")],
)  # fmt: skip
def test_export_without_its_packages(write, package, advice, resnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=advice):
        write(resnet, tmp_path / "x.xml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("right", [True, False])
def test_onnx_is_compared_with_the_network_before_it_is_written(right, lenet, tmp_path, monkeypatch):
    """The packages are replaced here, because they are extras."""
    logits = jax.jit(export.pixels_to_logits(lenet))

    class Session:
        def __init__(self, data, providers):
            assert data == b"proto"

        def run(self, outputs, inputs):
            return [np.asarray(logits(inputs["pixels"])) + (0 if right else 1)]

    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(export, "onnx_model", lambda *_: b"proto")
    if right:
        export.write_onnx(lenet, tmp_path / "x.onnx")
        assert (tmp_path / "x.onnx").read_bytes() == b"proto"
    else:
        with pytest.raises(ValueError, match="not written: its logits differ"):
            export.write_onnx(lenet, tmp_path / "x.onnx")
        assert not list(tmp_path.iterdir())


@contextmanager
def file_size_limit(size):
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_what_was_there(resnet, tmp_path, folder, capsys):
    file = tmp_path / "x.safetensors"
    file.write_text("before")
    with file_size_limit(10_000), pytest.raises(OSError, match=r"x\.safetensors") as caught:
        export.write_safetensors(resnet, file)
    assert caught.value.filename == str(file)
    with file_size_limit(100), pytest.raises(OSError, match=r"x_preprocess\.py"):
        export.write_preprocess(resnet, file)
    with file_size_limit(10_000):
        code, out, err = run_command(capsys, "export", folder / "resnet", "--to", "safetensors", "-o", file)
    assert code == 2 and not out and err.count("\n") == 1 and f"{file}: file too large" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"] and file.read_text() == "before"


def test_a_stablehlo_file_is_written_whole_or_not_at_all(resnet, tmp_path, monkeypatch):
    """Without compiling the network: what is written is what `serialize` returns."""

    class Exported:
        def serialize(self):
            return bytes(50_000)

        def call(self, pixels):
            return jax.jit(export.pixels_to_logits(resnet))(pixels)

    monkeypatch.setattr(jax.export, "export", lambda *_, **__: lambda *_: Exported())
    monkeypatch.setattr(jax.export, "deserialize", lambda data: Exported())
    monkeypatch.setattr(export, "_compare", lambda *_: None)
    with file_size_limit(20_000), pytest.raises(OSError, match=r"net\.stablehlo"):
        export.write_stablehlo(resnet, tmp_path / "net.stablehlo")
    assert not (tmp_path / "net.stablehlo").exists() and not list(tmp_path.glob(".*"))
    export.write_stablehlo(resnet, tmp_path / "net.stablehlo")
    assert (tmp_path / "net.stablehlo").read_bytes() == bytes(50_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_onnx(name, tmp_path):
    """Needs the extra onnx."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    loaded = checkpoint(name, tmp_path / "ckpt", **SMALL[name])
    export.write_onnx(loaded, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert "card" in session.get_modelmeta().custom_metadata_map
    require_same_logits(loaded, lambda pixels: session.run(None, {"pixels": pixels})[0])
    nodes = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    if loaded.model.family == "resnet" and name != "resnet50_gn":
        assert nodes.count("Transpose") <= 3, "images are to stay in the layout of convolutions"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_openvino(name, tmp_path):
    """Needs the extra openvino."""
    pytest.importorskip("onnx")
    loaded = checkpoint(name, tmp_path / "ckpt", **SMALL[name])
    try:
        export.write_openvino(loaded, tmp_path / "net.xml")
    except ImportError as error:
        pytest.skip(str(error))
    import openvino

    assert "openvino_telemetry.main" not in sys.modules, "it would fork and report"
    model = openvino.Core().read_model(tmp_path / "net.xml")
    assert json.loads(model.get_rt_info(["zoo", "card"]).astype(str))["classes"] == list(CLASSES)
    assert 'element_type="f32"' in (text := (tmp_path / "net.xml").read_text()) and "f16" not in text
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    require_same_logits(loaded, lambda pixels: compiled([pixels])["logits"])


@pytest.mark.parametrize("name", ["airbench", "resnet9", "lenet1", "lenet4"])
def test_every_operation_is_translated(name, monkeypatch):
    """Without the extra onnx; the networks that it takes longer to translate are tested above."""
    monkeypatch.setitem(sys.modules, "onnx", MagicMock())
    model = zoo.create(name, **SMALL[name])
    shape = model.input_shape
    preprocess = Preprocess(
        size=shape[:2], resize=shape[:2], channels="L" if shape[2] == 1 else "RGB", mean=(0.5,) * shape[2],
        std=(0.5,) * shape[2],
    )  # fmt: skip
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), models.abstract_variables(model))
    card = SimpleNamespace(preprocess=preprocess, calibration=None)
    network = export.pixels_to_logits(SimpleNamespace(card=card, model=model, variables=variables))
    assert to_onnx(network, shape, ("pixels", "logits"))


def require_same_logits(loaded, exported):
    for count in (1, 4):
        pixels = export.example_pixels(loaded, count)
        logits = np.asarray(jax.jit(export.pixels_to_logits(loaded))(pixels))
        assert np.abs(logits).max() > 1e-3
        np.testing.assert_allclose(exported(pixels), logits, atol=1e-4 * np.abs(logits).max())


@pytest.mark.slow
def test_an_operation_that_onnx_cannot_express_is_named(lenet, tmp_path, monkeypatch):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "pixels_to_logits", lambda loaded: lambda pixels: jax.numpy.sort(pixels, axis=1))
    with pytest.raises(
        ValueError, match=r"x\.onnx: ONNX cannot express lenet5: the operation sort; use --to stablehlo"
    ):
        export.write_onnx(lenet, tmp_path / "x.onnx")


# --- commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_global_cache(monkeypatch):
    for command in ("export", "import_weights"):
        monkeypatch.setattr(f"zoo.commands.{command}.start_jax", lambda: None)


def test_export_import_and_verify(resnet, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command(capsys, "export", folder / "resnet", "--to", "safetensors")
    assert code == 0 and out.startswith("resnet.safetensors: resnet20") and "names of akamaster" in out
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    words = ("import", "resnet.safetensors", "--as", "resnet20", "--set", "blocks=1,1,1", "--classes", "names.txt")
    assert "-o FOLDER" in run_command(capsys, *words)[2]
    code, out, _ = run_command(capsys, *words, "-o", "back")
    assert code == 0 and "note: the tensors have the names of akamaster" in out
    again = zoo.load("back")
    assert again.card.classes == CLASSES
    jax.tree.map(np.testing.assert_array_equal, again.variables, resnet.variables)
    code, out, _ = run_command(capsys, "verify", "back")
    assert code == 0 and re.match(r"back: ok, \d+ files, [\d.]+ .B, \d+ leaves, [\d,]+ values, resnet20\n", out)
    part = max((p for p in (tmp_path / "back").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    (tmp_path / "back" / "arrays" / "stranger").write_text("x")
    code, out, err = run_command(capsys, "verify", "back")
    assert code == 2 and not out and err.count("\n") >= 2
    assert f"{part.name} has different content (sha256)\n" in err and "stranger is not listed in the manifest\n" in err


@pytest.mark.parametrize(
    ("words", "answer"),
    [(("export", "CKPT", "--to", "safetensors", "--keys", "tf"), "--keys tf"),
     (("export", "CKPT", "--to", "onnx", "--keys", "timm"), "--keys timm"),
     (("export", "CKPT", "--to", "pickle"), "--to pickle: choose from safetensors, stablehlo, onnx, openvino"),
     (("export", "CKPT", "--to", "safetensors", "--keys", "timm", "-o", "x.safetensors"), "ResNet"),
     (("import", "nowhere.pth", "--as", "resnet20", "-o", "x"), "nowhere.pth: no such weight file"),
     (("import", "nowhere.pth", "--as", "resnet20", "--set", "block=1", "-o", "x"), "did you mean blocks"),
     (("import", "nowhere.pth", "--as", "resnet20", "--set", "blocks", "-o", "x"), "--set blocks"),
     (("import", "nowhere.pth", "--as", "keras:ResNet5"), "did you mean keras:ResNet50"),
     (("verify", "nowhere"), "no such checkpoint folder"), (("verify", "timm:resnet18"), "timm:resnet18.a1_in1k: ")],
)  # fmt: skip
def test_mistakes_get_one_line(words, answer, resnet, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(capsys, *(folder / "resnet" if word == "CKPT" else word for word in words))
    assert code == 2 and answer in err and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())


def test_list_weights(capsys):
    code, out, _ = run_command(capsys, "list", "--weights")
    assert code == 0 and "torchvision:resnet50.IMAGENET1K_V2*" in out and "80.86" in out and "CC-BY-NC-4.0" in out
    rows = {row["name"]: row for row in json.loads(run_command(capsys, "list", "--weights", "--json")[1])}
    assert rows["timm:resnet50.a1_in1k"]["preprocess"]["interpolation"] == "bicubic"
    code, out, _ = run_command(capsys, "info", "akamaster:resnet20")
    assert code == 0 and "classes (airplane, automobile," in out and "accuracy 91.73 % on CIFAR-10, test split" in out
