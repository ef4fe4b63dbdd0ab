"""Weight files are read, and nothing in them is executed."""

import json
import pickle
import random
import re
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch_bytes as tb
from torch_bytes import called, named, number, state_dict, storage, tensor, text, tuple_of

from zoo.pretrained.keras_config import preprocessing
from zoo.pretrained.readers import read_tensors
from zoo.pretrained.unpickle import ALLOWED

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "half": RNG.normal(size=(3,)).astype(np.float16),
    "brain": RNG.normal(size=(2, 2)).astype(tb.BFLOAT16),
    "double": RNG.normal(size=(5,)),
    "norm.num_batches_tracked": np.array(7, np.int64),
    "mask": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float32),
}


def written(tmp_path, data, name="weights.pth"):
    file = tmp_path / name
    file.write_bytes(data)
    return file


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype and np.array_equal(actual[key], array), key


# --- PyTorch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_state_dicts(form, tmp_path):
    found = read_tensors(written(tmp_path, state_dict(ARRAYS, form)))
    assert_equal(found.arrays, ARRAYS)
    assert found.notes == () and found.naming == "torch"


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_views_of_one_storage(form, tmp_path):
    """Transposed, strided and offset tensors that share their numbers."""
    data = np.arange(24, dtype=np.float32)
    reference = storage("0", "float32", 24, form == "legacy")
    views = {
        "whole": tensor(reference, (4, 6), (6, 1)),
        "transposed": tensor(reference, (6, 4), (1, 6)),
        "strided": tensor(reference, (2, 3), (12, 2), 1),
        "scalar": tensor(reference, (), (), 23),
    }
    body = tb.mapping(views)
    found = read_tensors(written(tmp_path, (tb.legacy if form == "legacy" else tb.zipped)(body, {"0": data}))).arrays
    whole = data.reshape(4, 6)
    assert_equal(found, {"whole": whole, "transposed": whole.T, "strided": whole[::2, 1::2], "scalar": data[23]})


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_training_checkpoints_are_unwrapped(key, tmp_path):
    best, log = b"G" + struct.pack(">d", 91.7), b"](" + text("a") + b"e"
    wrap = {"epoch": number(90), key: b"", "best_prec1": best, "log": log}

    def whole(tensors):
        return tb.mapping({name: tb.ordered(tensors) if name == key else value for name, value in wrap.items()})

    found = read_tensors(written(tmp_path, state_dict(ARRAYS, wrap=whole)))
    assert_equal(found.arrays, ARRAYS)
    assert found.notes == (f"the weights are those under {key!r}; not read: epoch, best_prec1, log",)


def test_objects_beside_the_weights_are_not_built(tmp_path):
    """Options, milestones and best values of the training scripts of torchvision and timm."""
    scalar = called(
        "numpy._core.multiarray", "scalar",
        called("numpy", "dtype", text("f8"), b"\x89", b"\x88") + tuple_of(number(3)) + b"b",
        called("_codecs", "encode", text("x"), text("latin1")),
    )  # fmt: skip
    beside = {
        "args": named("argparse", "Namespace") + b")\x81" + tb.mapping({"lr": number(1)}) + b"b",
        "milestones": called("collections", "Counter", b"}"), "best": scalar,
        "device": called("torch", "device", text("cuda")),
        # A call of the result of a call, whose result is given a state.
        "schedule": called("mine", "make") + tuple_of(number(1)) + b"R" + tb.mapping({"last": number(2)}) + b"b",
    }  # fmt: skip

    def whole(tensors):
        return tb.mapping({"model": tb.ordered(tensors), **beside})

    found = read_tensors(written(tmp_path, state_dict(ARRAYS, wrap=whole)))
    assert_equal(found.arrays, ARRAYS)
    assert found.notes == ("the weights are those under 'model'; not read: args, milestones, best, device, schedule",)


def test_parameters_and_sizes(tmp_path):
    plain = tensor(storage("0", "float32", 2), (2,), (1,))
    body = tb.mapping({
        "weight": called("torch._utils", "_rebuild_parameter", plain, b"\x88", called("collections", "OrderedDict")),
        "shape": called("torch", "Size", tuple_of(number(2))),
    })  # fmt: skip
    found = read_tensors(written(tmp_path, tb.zipped(body, {"0": np.ones(2, np.float32)})))
    assert_equal(found.arrays, {"weight": np.ones(2, np.float32)})
    assert found.notes == ("not tensors, not read: shape",)


def stack_named(module, name):
    """Return STACK_GLOBAL of protocol 4, whose names may contain dots."""
    return text(module) + text(name) + b"\x93"


EVIL = {
    "posix.system": called("posix", "system", text("touch canary")),
    "os.path.join": stack_named("os", "path.join") + tuple_of(text("a")) + b"R",
    "os.path.join in two": stack_named("os.path", "join") + tuple_of(text("a")) + b"R",
    "builtins.eval": called("builtins", "eval", text("open('canary', 'w')")),
    "__builtin__.exec": called("__builtin__", "exec", text("open('canary', 'w')")),
    "torch.storage._load_from_bytes": called("torch.storage", "_load_from_bytes", text("x")),
    "torch.storage._load_from_bytes dotted":
        stack_named("torch", "storage._load_from_bytes") + tuple_of(text("x")) + b"R",
    "collections.OrderedDict.fromkeys": stack_named("collections", "OrderedDict.fromkeys") + tuple_of(text("a")) + b"R",
    "torch._utils._rebuild_tensor_v2.__globals__": stack_named("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "torch._utils.os.system": stack_named("torch._utils", "os.system"),
    "torch.nn.modules.linear.Linear": named("torch.nn.modules.linear", "Linear") + b")\x81",
    "numpy.core.multiarray._reconstruct": called("numpy.core.multiarray", "_reconstruct"),
    "torch.FloatTensor": named("torch", "FloatTensor"),
    "functools.partial": called("functools", "partial", named("collections", "OrderedDict")),
    "torch .Size": stack_named("torch ", "Size"),
    "collections.": stack_named("collections", ""),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("what", EVIL)
def test_imports_of_a_pickle_are_named_and_refused(what, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = tb.mapping({"weight": EVIL[what]})
    file = written(tmp_path, (tb.legacy if form == "legacy" else tb.zipped)(body, {}))
    named_there = what.removesuffix(" in two").removesuffix(" dotted")
    with pytest.raises(ValueError, match=f"weights.pth: .*import {re.escape(named_there)},") as error:
        read_tensors(file)
    assert "\n" not in str(error.value) and [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"(iposix\nsystem\n", "INST"),
        (b"N)\x81", "calls a NoneType"),
        (b"(" + named("collections", "OrderedDict") + b"o", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (named("torch", "Size") + b"}" + text("x") + number(1) + b"sb", "sets the state"),
        (named("torch", "FloatStorage") + b")R", "torch.FloatStorage"),
        (text("print") + b")R", "calls a str"),
        (tuple_of(text("module"), text("Net"), text("net.py"), text("class Net: …")) + b"Q", "no tensors"),
        (tuple_of(text("storage"), text("os"), text("0"), text("cpu"), number(1)) + b"Q", "storage of a str"),
        (b"}" + tuple_of(tuple_of(text("a"))) + number(1) + b"s", "a tuple is the key"),
        (b"}](" + number(1) + b"e" + number(1) + b"s", "a list is the key"),
    ],
)  # fmt: skip
def test_opcodes_that_weights_do_not_need_are_refused(body, answer, tmp_path):
    with pytest.raises(ValueError, match=f"weights.pth: .*{answer}"):
        read_tensors(written(tmp_path, tb.zipped(tb.mapping({"weight": body}), {})))


BOMB = b")" + b"q\x00h\x00\x86" * 200  # a pair of a pair twice, …: 2^200 empty tuples to hash or to show


@pytest.mark.parametrize("body", [BOMB + text("x") + b"\x93", text("x") + BOMB + b"\x93"], ids=["module", "name"])
def test_names_that_are_not_text_are_refused_before_they_are_hashed(body, tmp_path):
    with pytest.raises(ValueError, match=r"weights.pth: .*import by a (tuple|str) and a (tuple|str)"):
        read_tensors(written(tmp_path, tb.zipped(body, {})))


def test_a_class_that_is_not_a_name_is_refused_before_it_is_hashed(tmp_path):
    with pytest.raises(ValueError, match="calls a tuple"):
        read_tensors(written(tmp_path, tb.zipped(BOMB + b")\x81", {})))


@pytest.mark.parametrize("version", [BOMB, number(10**400), text("1001")])
def test_text_of_a_file_is_shortened_in_errors(version, tmp_path):
    data = b"".join(map(tb.program, (number(0x1950A86A20F9469CFC6C), version, b"}")))
    with pytest.raises(ValueError, match=r"weights.pth: has version (a tuple|10+|a str) of PyTorch's format") as error:
        read_tensors(written(tmp_path, data))
    assert len(str(error.value).partition("weights.pth")[2]) < 200
    with pytest.raises(ValueError, match=r"import x{80}, which"):
        read_tensors(written(tmp_path, tb.zipped(stack_named("x" * 10**6, "y"), {})))


def test_a_real_malicious_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("never printed",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file = tmp_path / "weights.pth"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"weight": Evil()}, protocol))
        with pytest.raises(ValueError, match=r"import (__builtin__|builtins)\.print"):
            read_tensors(file)


def test_the_allow_list_is_short():
    """Each of these functions builds plain data; check a new one for side effects before changing this number."""
    assert len(ALLOWED) == 6 and all(callable(build) for build in ALLOWED.values())


FLOAT = storage("0", "float32", 4)
FOUR = {"0": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("body", "storages", "answer"),
    [
        (tensor(FLOAT, (5,), (1,)), FOUR, "reaches outside"),
        (tensor(FLOAT, (4,), (1,), 1), FOUR, "reaches outside"),
        (tensor(FLOAT, (2,), (2**40,)), FOUR, "reaches outside"),
        (tensor(FLOAT, (10**6, 10**6), (0, 0)), FOUR, "reaches outside"),
        (tensor(FLOAT, (2,), (-1,), 1), FOUR, "non-negative integers"),
        (tensor(FLOAT, (2,), (1, 1)), FOUR, "non-negative integers"),
        (tensor(text("x"), (2,), (1,)), FOUR, "non-negative integers"),
        (tensor(storage("0", "float32", 2**60), (1,), (1,)), FOUR, "16 bytes instead of"),
        (tensor(storage("1", "float32", 4), (4,), (1,)), FOUR, "data/1 is missing"),
        (tensor(storage("../../etc/passwd", "float32", 4), (4,), (1,)), FOUR, "is missing"),
        (tensor(FLOAT, (4,), (1,)) + tensor(storage("0", "int32", 4), (4,), (1,)) + b"\x86", FOUR, "two sizes"),
    ],
)  # fmt: skip
def test_headers_that_contradict_the_data_are_refused(body, storages, answer, tmp_path):
    with pytest.raises(ValueError, match=f"weights.pth: .*{answer}"):
        read_tensors(written(tmp_path, tb.zipped(tb.mapping({"weight": body}), storages)))


@pytest.mark.parametrize(
    "body",
    [b"r\xff\xff\xff\xff", b"\x8e" + struct.pack("<Q", 2**62), b"h\x07", b"R", b"u", b"(" * 9 + b"t" * 9, b"0" * 9],
)
def test_damaged_programs_give_one_error(body, tmp_path):
    """A memo of 2^32 entries, a string of 2^62 bytes, an empty stack."""
    with pytest.raises(ValueError, match=r"weights.pth: "):
        read_tensors(written(tmp_path, tb.zipped(b"}" + body, {})))


def test_cyclic_and_deeply_nested_dicts(tmp_path):
    with pytest.raises(ValueError, match="no tensors by name"):
        read_tensors(written(tmp_path, tb.zipped(b"}q\x00" + text("a") + b"h\x00s", {})))
    with pytest.raises(ValueError, match="nested too deeply"):
        nest = b"}" + (text("a") + b"}") * 20_000 + b"s" * 20_000
        read_tensors(written(tmp_path, tb.zipped(nest, {})))
    doubling = b"}q\x00" + b"".join(
        b"}" + text("a") + b"h" + bytes([i]) + b"s" + text("b") + b"h" + bytes([i]) + b"sq" + bytes([i + 1])
        for i in range(100)
    )
    with pytest.raises(ValueError, match="no tensors by name"):  # and not after 2^100 dicts
        read_tensors(written(tmp_path, tb.zipped(doubling, {})))


def test_overflows_give_one_error(tmp_path):
    weight = text("weight") + tensor(FLOAT, (4,), (1,)) + b"s"
    own_entry = b"}q\x00" + weight + text("state_dict") + b"h\x00s"  # a dict below its own key
    assert list(read_tensors(written(tmp_path, tb.zipped(own_entry, FOUR))).arrays) == ["weight"]
    weight = tb.mapping({"weight": tensor(storage("0", "float32", 2**62, legacy=True), (1,), (1,))})
    data = tb.legacy(weight, FOUR)
    data = data[: -FOUR["0"].nbytes - 8] + struct.pack("<q", 2**62) + FOUR["0"].tobytes()
    with pytest.raises(ValueError, match=r"weights.pth: is damaged, or too large .*OverflowError"):
        read_tensors(written(tmp_path, data))


def test_an_axis_of_length_one_may_have_any_stride(tmp_path):
    weight = tensor(FLOAT, (1, 4), (10**30, 1))
    found = read_tensors(written(tmp_path, tb.zipped(tb.mapping({"weight": weight}), FOUR)))
    assert_equal(found.arrays, {"weight": np.ones((1, 4), np.float32)})


def test_other_byte_orders_and_archives_are_refused(tmp_path):
    body = tb.mapping({"weight": tensor(FLOAT, (4,), (1,))})
    for data in (tb.zipped(body, FOUR, byteorder="big"), tb.legacy(body, FOUR, little=False)):
        with pytest.raises(ValueError, match="big-endian"):
            read_tensors(written(tmp_path, data))
    with pytest.raises(ValueError, match="TorchScript"):
        read_tensors(written(tmp_path, tb.zipped(body, FOUR, **{"constants.pkl": b"."})))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tb.program(body))
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="compressed"):
        read_tensors(tmp_path / "bomb.pth")


#: An array of NumPy as the start of its pickle.
ARRAY = called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), tuple_of(number(0)), text("b"))


@pytest.mark.parametrize(
    ("data", "answer"),
    [(b"", "empty file"), (b"<!DOCTYPE html><html>", "web page"),
     (b"version https://git-lfs.github.com", "LFS pointer"),
     (b"GIF89a" + bytes(50), "image .GIF."), (b"PK\x03\x04" + bytes(40), "cut off or damaged"),
     (tb.program(b"}"), "pickle.dump"),
     (tb.program(b"]"), "not a file of PyTorch"), (tb.legacy(b"](" + number(1) + b"e", {}), "holds a list"),
     (tb.zipped(b"}", {}), "no tensors by name; it has nothing"),
     (tb.zipped(tensor(FLOAT, (4,), (1,)), FOUR), "holds a single tensor"),
     (tb.zipped(tb.mapping({"net": tb.mapping({"w": ARRAY})}), {}), r"not read: w .numpy\.core\.multiarray"),
     (tb.legacy(b"}", {})[:20], "its pickle is cut off or damaged")],
    ids=["empty", "html", "lfs", "gif", "zip", "dict", "pickle", "list", "no tensors", "tensor", "NumPy",
         "cut off"],  # the bytes of a zip vary
)  # fmt: skip
def test_files_that_are_not_weights_are_named(data, answer, tmp_path):
    with pytest.raises(ValueError, match=f"weights.pth: .*{answer}"):
        read_tensors(written(tmp_path, data))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such weight file"):
        read_tensors(tmp_path / "nowhere.pth")


def safetensors_bytes(arrays):
    from safetensors.numpy import save

    return save(arrays)


PLAIN = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)}
FORMS = {
    "zip": lambda: state_dict(PLAIN), "legacy": lambda: state_dict(PLAIN, "legacy"),
    "safetensors": lambda: safetensors_bytes(PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_anywhere_gives_one_error(form, tmp_path):
    data = FORMS[form]()
    for length in range(1, len(data), 7):
        with pytest.raises(ValueError, match=r"weights\.pth: ") as error:
            read_tensors(written(tmp_path, data[:length]))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_gives_an_error_or_other_numbers(form, tmp_path):
    """These formats have no checksums of their own; the digests in the registry serve for that."""
    rng, data = random.Random(0), FORMS[form]()
    for _ in range(150):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert all(isinstance(a, np.ndarray) for a in read_tensors(written(tmp_path, flipped)).arrays.values())
        except ValueError as error:
            assert str(error).startswith(str(tmp_path))


def test_safetensors(tmp_path):
    assert_equal(read_tensors(written(tmp_path, safetensors_bytes(PLAIN), "x.safetensors")).arrays, PLAIN)
    assert_equal(
        read_tensors(written(tmp_path, safetensors_bytes(PLAIN), "x.bin")).arrays, PLAIN
    )  # detected from its content
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]}}).encode()
    with pytest.raises(ValueError, match="safetensors: is cut off"):
        read_tensors(written(tmp_path, struct.pack("<Q", len(header)) + header, "x.safetensors"))
    header = json.dumps({"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    with pytest.raises(ValueError, match=r"4\.safetensors: holds numbers of type float4.*BF16"):
        read_tensors(written(tmp_path, struct.pack("<Q", len(header)) + header + bytes(4), "4.safetensors"))
    half = written(tmp_path, safetensors_bytes({"a": np.ones(3, tb.BFLOAT16)}), "half.safetensors")
    assert read_tensors(half).arrays["a"].astype(np.float32).tolist() == [1, 1, 1]


# --- Keras ------------------------------------------------------------------------------------------------------

KERAS = {
    "conv1/kernel": np.ones((3, 3, 3, 4), np.float32), "conv1/bias": np.full(4, 2, np.float32),
    "batch_normalization/beta": np.full(4, 3, np.float32), "batch_normalization/moving_mean": np.full(4, 4, np.float32),
    "batch_normalization/moving_variance": np.full(4, 5, np.float32),
    "batch_normalization_1/beta": np.full(4, 6, np.float32),
    "batch_normalization_1/moving_mean": np.full(4, 7, np.float32),
    "batch_normalization_1/moving_variance": np.full(4, 8, np.float32),
}  # fmt: skip
NORM = "batch_normalization"
LAYERS = {"conv1": "conv1", NORM: f"{NORM}_94", f"{NORM}_1": f"{NORM}_95"}


def write_keras(file, form):
    """Write one of the three forms, as a session that had made 94 norms before."""
    h5py = pytest.importorskip("h5py")
    if form == ".keras":
        with zipfile.ZipFile(file, "w") as archive:
            inner = file.with_name("inner.weights.h5")
            write_keras(inner, ".weights.h5")
            archive.write(inner, "model.weights.h5")
        return
    with h5py.File(file, "w") as out:
        if form == ".h5":
            out.attrs["layer_names"] = [name.encode() for name in LAYERS.values()]
        for place, layer in LAYERS.items():
            weights = {key.split("/")[1]: array for key, array in KERAS.items() if key.startswith(f"{place}/")}
            if form == ".h5":
                group = out.create_group(layer)
                group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in weights]
                for name, array in weights.items():
                    group[f"{layer}/{name}:0"] = array
            else:
                group = out.create_group(f"layers/{'conv2d' if place == 'conv1' else place}/vars")
                group.attrs["name"] = layer
                for i, array in enumerate(weights.values()):
                    group[str(i)] = array


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
def test_three_forms_of_keras(form, tmp_path):
    file = tmp_path / f"model{form}"
    write_keras(file, form)
    found = read_tensors(file)
    assert found.naming == "keras" and set(found.arrays) == set(KERAS)
    assert all(np.array_equal(found.arrays[key], array) for key, array in KERAS.items())
    data = file.read_bytes()
    for length in (9, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=rf"model{form}: is cut off or not a file of Keras"):
            read_tensors(written(tmp_path, data[:length], f"model{form}"))


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_an_archive_of_keras_with_a_damaged_member_gives_one_error(method, tmp_path):
    """A member of the archive that is cut, or not of its compression, has an error type of its own in each module."""
    pytest.importorskip("h5py")
    file = tmp_path / "model.keras"
    with zipfile.ZipFile(file, "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("config.json", b"{}" + bytes(500))
        archive.writestr("model.weights.h5", np.random.default_rng(0).bytes(500), zipfile.ZIP_STORED)
    data = file.read_bytes()
    end = data.index(b"PK\x01\x02")
    start = data.index(b"config.json") + len("config.json")
    for damaged in (
        data[:start] + bytes([255] * 4) + data[start + 4 :],  # what begins the compressed bytes
        data[: end - 400] + data[end:],  # a member shorter than its length
        data[:start] + data[end:],
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.keras: .*(cut off|damaged|no weights)"):
            read_tensors(file)


def test_names_of_keras_1(tmp_path):
    h5py = pytest.importorskip("h5py")
    old = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
    layers = {"conv1": "conv1", NORM: "batchnormalization_1", f"{NORM}_1": "batchnormalization_2"}
    with h5py.File(tmp_path / "model.h5", "w") as out:
        out.attrs["layer_names"] = [name.encode() for name in layers.values()]
        for place, layer in layers.items():
            weights = {key.split("/")[1]: array for key, array in KERAS.items() if key.startswith(f"{place}/")}
            names = [f"{layer}_{old.get(name, name)}:0" for name in weights]
            group = out.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, weights.values(), strict=True):
                group[name] = array
    assert_equal(read_tensors(tmp_path / "model.h5").arrays, KERAS)


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
def test_a_keras_model_inside_a_model(form, tmp_path):
    """Transfer learning leaves a backbone as one layer; its weights have the names of its own layers."""
    h5py = pytest.importorskip("h5py")
    kernel, bias, head = np.ones((1, 1, 3, 4), np.float32), np.full(4, 2, np.float32), np.full((4, 2), 3, np.float32)
    file = tmp_path / f"model{form}"
    with h5py.File(tmp_path / "inner.h5", "w") as out:
        if form == ".h5":
            out.attrs["layer_names"] = [b"rescaling", b"resnet", b"dense_7"]
            out.create_group("rescaling").attrs["weight_names"] = []
            # Keras 2 repeats the name of the outer model, or not.
            for outer, names in (
                ("resnet", ["resnet/conv1/kernel:0", "conv1/bias"]),
                ("dense_7", ["model/dense_7/kernel"]),
            ):
                group = out.create_group(outer)
                group.attrs["weight_names"] = [name.encode() for name in names]
                for name in names:
                    group[name] = head if outer == "dense_7" else kernel if "kernel" in name else bias
        else:
            inner = out.create_group("layers/functional/layers/conv2d/vars")
            inner.attrs["name"], inner["0"], inner["1"] = "conv1", kernel, bias
            outer = out.create_group("layers/dense/vars")
            outer.attrs["name"], outer["0"] = "dense_7", head
    data = (tmp_path / "inner.h5").read_bytes()
    if form == ".keras":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.weights.h5", data)
    else:
        file.write_bytes(data)
    assert_equal(read_tensors(file).arrays, {"conv1/kernel": kernel, "conv1/bias": bias, "dense_7/kernel": head})


def test_two_keras_layers_of_one_name_are_ambiguous(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "model.weights.h5", "w") as out:
        for place in ("layers/functional/layers/conv2d/vars", "layers/functional_1/layers/conv2d/vars"):
            group = out.create_group(place)
            group.attrs["name"], group["0"] = "conv1", np.ones((1, 1, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"two layers called conv1"):
        read_tensors(tmp_path / "model.weights.h5")


def layer(kind, *constants, **config):
    """Return a layer of a model's configuration, called with an input and constants."""
    return {"class_name": kind, "config": config, "inbound_nodes": [{"args": [{}, *constants], "kwargs": {}}]}


def channel(name, index):
    return layer("GetItem", [{}, index], name=name)


STACK = {
    "class_name": "Stack", "config": {},
    "inbound_nodes": [{"args": [[{"config": {"keras_history": [name, 0, 0]}} for name in ("r", "g", "b")]]}],
}  # fmt: skip
CAFFE_MEAN = {"class_name": "__tensor__", "config": {"value": [[[[-103.939, -116.779, -123.68]]]]}}
INPUT = layer("InputLayer", batch_shape=[None, 160, 96, 3])


@pytest.mark.parametrize(
    ("layers", "function"),  # of pixels in 0..255, as Keras computes it
    [
        ([layer("Rescaling", scale=1 / 255, offset=0.0)], lambda x: x / 255),
        ([layer("Rescaling", scale=1 / 127.5, offset=-1)], lambda x: x / 127.5 - 1),
        ([layer("RandomFlip"), layer("TrueDivide", 127.5), layer("Subtract", 1.0)], lambda x: x / 127.5 - 1),
        ([layer("Multiply", 2.0), layer("Add", 3.0)], lambda x: 2 * x + 3),
        ([layer("Sequential", layers=[layer("RandomRotation"), layer("Rescaling", scale=2, offset=[1, 2, 3])])],
         lambda x: 2 * x + [1, 2, 3]),
        ([layer("Normalization", name="n", mean=[1.0, 2, 3], variance=[4.0, 9, 16])],
         lambda x: (x - [1, 2, 3]) / [2, 3, 4]),
        ([layer("Normalization", name="normalization", mean=None)], lambda x: (x - 5) / 3),
        ([channel("r", 2), channel("g", 1), channel("b", 0), STACK, layer("Add", CAFFE_MEAN)],
         lambda x: x[::-1] - [103.939, 116.779, 123.68]),
    ],
    ids=["rescaling", "offset", "tf mode", "multiply", "nested", "normalization", "adapted", "caffe mode"],
)  # fmt: skip
def test_preprocessing_layers_of_a_keras_model(layers, function):
    arrays = {"normalization/mean": np.full(3, 5.0), "normalization/variance": np.full(3, 9.0)}
    config = {"class_name": "Functional", "config": {"layers": [INPUT, *layers, layer("Conv2D"), layer("Rescaling")]}}
    fields = preprocessing(config, arrays).preprocess
    assert fields["size"] == (160, 96)
    pixels = np.array([10.0, 100.0, 200.0])
    ordered = pixels[::-1] if fields.get("channels") == "BGR" else pixels
    ours = (ordered / 255 - np.array(fields["mean"])) / np.array(fields["std"])
    np.testing.assert_allclose(ours, function(pixels), rtol=1e-6)


@pytest.mark.parametrize(
    "layers",
    [[layer("Multiply", -1.0)], [layer("TrueDivide", 0.0)], [layer("Add", [1, 2])], [layer("Subtract")],
     [channel("r", 0), channel("g", 1), channel("b", 2), STACK], [layer("Normalization", name="other", mean=None)],
     [layer("Normalization", name="n", mean=[1.0], variance=[1.0], invert=True)], [channel("r", 2), channel("g", 1)],
     [layer("GetItem", name="r"), layer("GetItem", 3, name="g"), STACK],
     [layer("Rescaling", scale=-1 / 127.5, offset=1)],
     [{"class_name": "Stack", "inbound_nodes": [{"args": []}]}],
     [{"class_name": "Stack", "inbound_nodes": [{"args": [[{"config": {"keras_history": []}}]]}]}]],
    ids=["negative", "by zero", "two channels", "no constant", "order", "no statistics", "inverted", "not stacked",
         "no index", "negative scale", "no arguments", "no history"],
)  # fmt: skip
def test_preprocessing_layers_that_are_not_understood_name_the_options(layers):
    found = preprocessing({"class_name": "Sequential", "config": {"layers": [INPUT, *layers]}}, {})
    assert all("--mean and --std" in problem for problem in found.preprocess_problems) and found.preprocess_problems
    assert found.preprocess == {"size": (160, 96)}
    for problem, fields in found.preprocess_problems.items():
        assert {"mean", "std"} <= set(fields) and ("channels" in fields) == ("--channels" in problem)


@pytest.mark.parametrize(
    ("options", "mode", "interpolation", "noted"),
    [
        ({}, "squash", "bilinear", False),
        ({"crop_to_aspect_ratio": True, "interpolation": "bicubic"}, "crop", "bicubic", False),
        ({"pad_to_aspect_ratio": True, "fill_value": 0.0, "interpolation": "nearest"}, "pad", "nearest", True),
        ({"interpolation": "lanczos3"}, "squash", "lanczos", False),
        ({"interpolation": "area"}, "squash", "box", False),
        ({"interpolation": "lanczos5"}, "squash", None, False),
    ],
    ids=str,
)
def test_the_resizing_layer_of_a_keras_model(options, mode, interpolation, noted):
    layers = [INPUT, layer("Resizing", height=64, width=48, **options), layer("Conv2D")]
    found = preprocessing({"class_name": "Functional", "config": {"layers": layers}}, {})
    expected = {"size": (64, 48), "resize": (64, 48), "resize_mode": mode}
    assert found.preprocess == expected | ({"interpolation": interpolation} if interpolation else {})
    assert bool(found.preprocess_notes) == noted
    assert list(found.preprocess_problems.values()) == ([] if interpolation else [("interpolation",)])


def test_keras_models_without_preprocessing_layers():
    assert preprocessing(None, {}).preprocess == {}
    base = [layer("InputLayer", batch_shape=[None, None, None, 3]), layer("Conv2D")]
    assert preprocessing({"class_name": "Functional", "config": {"layers": base}}, {}).preprocess == {}


def test_keras_files_with_links_or_unwritten_arrays_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_keras(tmp_path / "other.h5", ".h5")
    links = (h5py.ExternalLink("other.h5", "/conv1"), h5py.SoftLink("/elsewhere"))
    for form, places in ((".h5", ("conv1", "conv1/conv1/bias:0")), (".weights.h5", ("layers", "layers/conv2d/vars/0"))):
        for place, link in zip(places, links, strict=True):
            write_keras(tmp_path / f"model{form}", form)
            with h5py.File(tmp_path / f"model{form}", "a") as file:
                del file[place]
                file[place] = link
            with pytest.raises(ValueError, match=rf"model{form}: has a link in place of"):
                read_tensors(tmp_path / f"model{form}")
    write_keras(tmp_path / "model.h5", ".h5")
    with h5py.File(tmp_path / "model.h5", "a") as file:
        del file["conv1/conv1/kernel:0"]
        file.create_dataset("conv1/conv1/kernel:0", (10**6, 10**6), "f4", chunks=(1000, 1000))
    with pytest.raises(
        ValueError, match=r"model.h5: has /conv1/conv1/kernel:0 of shape \(1000000, 1000000\) in 0 bytes"
    ):
        read_tensors(tmp_path / "model.h5")


@pytest.mark.parametrize(("place", "count"), [("conv2d", 3), ("batch_normalization", 2), ("batch_normalization", 5)])
def test_keras_layers_with_another_number_of_weights_are_refused(place, count, tmp_path):
    h5py = pytest.importorskip("h5py")
    write_keras(tmp_path / "model.weights.h5", ".weights.h5")
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        values = file[f"layers/{place}/vars"]
        for i in range(len(values), count):
            values[str(i)] = np.zeros(4, np.float32)
        for i in range(count, len(values)):
            del values[str(i)]
    with pytest.raises(ValueError, match=rf"model.weights.h5: \w+ in it has {count} weights; a {place} has "):
        read_tensors(tmp_path / "model.weights.h5")


def test_keras_files_without_h5py(tmp_path, monkeypatch):
    write_keras(tmp_path / "model.h5", ".h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"model.h5: .*pip install 'jax-model-zoo\[keras\]'"):
        read_tensors(tmp_path / "model.h5")
