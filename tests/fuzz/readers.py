"""The readers of the package, each with valid files to start from and the damage that suits its format."""

import contextlib
import gzip
import io
import json
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import photos
import torch_bytes
from PIL import Image

from . import mutations as damage
from .contract import MAX_BYTES, MAX_HDF5_BYTES, MAX_IMAGE_BYTES

Files = dict[str, bytes]  # content by path relative to the folder of an input


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        seeds: returns valid inputs, which must be read.
        mutate: returns a damaged input, made from one of the seeds.
        read: reads the files of a folder.
        share: how many inputs it gets, relative to the other readers.
        max_bytes: limit of memory.
    """

    seeds: Callable[[], list[Files]]
    mutate: Callable[[Random, list[Files]], Files]
    read: Callable[[Path], Any]
    share: float = 1.0
    max_bytes: int = MAX_BYTES

    def example(self, rng: Random) -> Files:
        """Return a damaged input."""
        return self.mutate(rng, self.seeds())


def one_file(name: str, change: Callable[[Random, bytes], bytes]) -> Callable[[Random, list[Files]], Files]:
    """Return a mutation of the file `name` of an input."""

    def mutate(rng: Random, seeds: list[Files]) -> Files:
        files = dict(damage.pick(rng, seeds))
        files[name] = change(rng, files[name])
        return files

    return mutate


def any_file(changes: Mapping[str, Callable[[Random, bytes], bytes]]) -> Callable[[Random, list[Files]], Files]:
    """Return a mutation of one of the files of an input, by the end of its name."""

    def mutate(rng: Random, seeds: list[Files]) -> Files:
        files = dict(damage.pick(rng, seeds))
        name = rng.choice(sorted(files))
        change = next((change for end, change in changes.items() if name.endswith(end)), damage.damage_bytes)
        files[name] = change(rng, files[name])
        if rng.random() < 0.02:
            del files[name]
        return files

    return mutate


# --- weights ----------------------------------------------------------------------------------------------------------

ARRAYS = {
    "conv.weight": np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3), "conv.bias": np.ones(4, np.float32),
    "half": np.ones((2, 3), np.float16), "steps": np.array([3], np.int64),
}  # fmt: skip


def read_weights(name: str, folder: Path) -> Any:
    """Read the weights of a file, every number of them."""
    from zoo.pretrained.readers import read_tensors

    arrays = read_tensors(folder / name).arrays
    return {key: zlib.crc32(np.ascontiguousarray(array).tobytes()) for key, array in arrays.items()}


def _wrapped(tensors: Mapping[str, bytes]) -> bytes:
    """Return a training checkpoint: weights, optimiser, options and class names."""
    return torch_bytes.mapping({
        "state_dict": torch_bytes.ordered(tensors), "epoch": torch_bytes.number(3),
        "args": torch_bytes.named("argparse", "Namespace") + b")\x81" + torch_bytes.mapping({"lr": b"N"}) + b"b",
        "classes": b"](" + torch_bytes.text("cat") + torch_bytes.text("dog") + b"e",
    })  # fmt: skip


@cache
def torch_seeds(form: str) -> list[Files]:
    wraps = (torch_bytes.ordered, _wrapped)
    return [{"w.pth": torch_bytes.state_dict(ARRAYS, form, wrap=wrap)} for wrap in wraps]


def damage_torch_zip(rng: Random, data: bytes) -> bytes:
    def member(rng: Random, name: str, content: bytes) -> bytes:
        return (damage.damage_pickle if name.endswith(".pkl") else damage.damage_bytes)(rng, content)

    return damage.damage_zip(rng, data, member)


def damage_torch_stream(rng: Random, data: bytes) -> bytes:
    start = data.index(b"conv.weight") - 80  # behind the pickles that tell the format
    if rng.random() < 0.7:
        return data[:start] + damage.damage_pickle(rng, data[start:])
    return damage.damage_pickle(rng, data)


@cache
def safetensors_seeds() -> list[Files]:
    from safetensors.numpy import save

    arrays = {key.replace("/", "."): array for key, array in ARRAYS.items()}
    return [
        {"w.safetensors": save(arrays, metadata)} for metadata in (None, {"classes": '["cat", "dog"]', "format": "pt"})
    ]


def damage_safetensors(rng: Random, data: bytes) -> bytes:
    """Damage the header of a safetensors file, whose length is then right again, or its bytes."""
    if rng.random() < 0.25:
        return damage.damage_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5 and header:
        row = header[rng.choice(sorted(header))]
        if isinstance(row, dict) and "dtype" in row:
            field = rng.choice(("dtype", "shape", "data_offsets"))
            row[field] = rng.choice((
                "F4", "F8_E4M3", "F8_E5M2", "F6_E2M3", "E8M0", "BF16", "C64", "U64", "BOOL", "f32", "I8",
                [2**32, 2**32], [0, 2**62], [0], [], [-1], [1.5], [2**31, 2**31], [0, 144], [144, 0],
                [2**63, 2**63 + 8],
            ))  # fmt: skip
    else:
        header = damage.damage_json_value(rng, header)
    text = damage.json_bytes(rng, header)
    size = len(text) if rng.random() < 0.95 else rng.choice(damage.NUMBERS)
    return struct.pack("<Q", size % 2**64) + text + data[8 + length :]


@cache
def index_seeds() -> list[Files]:
    from safetensors.numpy import save

    names = [f"w-0000{i}-of-00002.safetensors" for i in (1, 2)]
    keys = list(ARRAYS)
    shards = {name: save({key: ARRAYS[key]}) for name, key in zip(names, keys, strict=False)}
    index = {"metadata": {"total_size": 160}, "weight_map": dict(zip(keys, names, strict=False))}
    return [{"w.safetensors.index.json": json.dumps(index).encode(), **shards}]


def _exported(metadata: Mapping[str, str]) -> bytes:
    from safetensors.numpy import save

    from zoo.trees import flatten

    return save({path: np.array(leaf) for path, leaf in flatten(_tiny()[1]).items()}, dict(metadata))


@cache
def _tiny() -> tuple[Any, Any, Any]:
    """Return (model, variables, preprocess) of a small network, without compiling anything."""
    from zoo import models

    model = models.create("softmax", num_classes=3, image_size=4)
    preprocess = photos.preprocess_of((4, 4))
    rng = np.random.default_rng(0)
    abstract = models.abstract_variables(model, preprocess.input_shape)
    variables = _map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)
    return model, variables, preprocess


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    return {key: _map(function, value) for key, value in tree.items()} if hasattr(tree, "items") else function(tree)


@cache
def exported_seeds() -> list[Files]:
    card = {key: value for key, value in json.loads(checkpoint_files()["card.json"]).items() if key != "leaves"}
    return [{"e.safetensors": _exported({"card": json.dumps(card), "input": "pixels", "output": "logits"})}]


def damage_exported(rng: Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    card = damage.damage_json(rng, header["__metadata__"]["card"].encode())
    header["__metadata__"]["card"] = card.decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def import_weights(name: str, folder: Path) -> Any:
    from unittest.mock import patch

    from zoo.pretrained import importing

    # Recognising a model without its name traces all of them, which takes longer than the limit on a busy machine.
    with patch.object(importing, "recognise", lambda tensors: (None, "")):
        return importing.import_file(folder / name)


# --- Keras ------------------------------------------------------------------------------------------------------------


def hdf5(fill: Callable[[Any], None]) -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        fill(file)
    return out.getvalue()


def named_layers(file: Any) -> None:
    """Write weights as Keras 1 and 2 do."""
    layers = {"conv1": {"kernel:0": np.ones((3, 3, 2, 4), np.float32), "bias:0": np.zeros(4, np.float32)},
              "fc": {"kernel:0": np.ones((4, 3), np.float32), "bias:0": np.zeros(3, np.float32)}}  # fmt: skip
    file.attrs["layer_names"] = [name.encode() for name in layers]
    file.attrs["model_config"] = json.dumps(KERAS_CONFIG)
    for layer, weights in layers.items():
        group = file.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/{name}".encode() for name in weights]
        for name, array in weights.items():
            group.create_dataset(f"{layer}/{name}", data=array, chunks=array.shape, compression="gzip")


def numbered_layers(file: Any) -> None:
    """Write weights as Keras 3 does."""
    for kind, layer, arrays in (
        ("conv2d", "conv1", [np.ones((3, 3, 2, 4), np.float32), np.zeros(4, np.float32)]),
        ("dense", "fc", [np.ones((4, 3), np.float32), np.zeros(3, np.float32)]),
    ):
        group = file.create_group(f"layers/{kind}/vars")
        group.attrs["name"] = layer
        for number, array in enumerate(arrays):
            group[str(number)] = array


KERAS_CONFIG = {
    "class_name": "Functional",
    "config": {"name": "m", "layers": [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 32, 32, 3], "name": "in"}, "inbound_nodes": []},
        {"class_name": "Rescaling", "config": {"name": "r", "scale": 0.00784, "offset": -1.0}, "inbound_nodes": []},
        {"class_name": "Resizing", "config": {"name": "s", "height": 32, "width": 32}, "inbound_nodes": []},
        {"class_name": "Subtract", "config": {"name": "d"}, "inbound_nodes": [
            {"args": ["x", {"class_name": "__tensor__", "config": {"value": [1.0, 2.0, 3.0]}}]}]},
        {"class_name": "Conv2D", "config": {"name": "conv1", "filters": 4}, "inbound_nodes": []},
    ]},
}  # fmt: skip


@cache
def keras_seeds(form: str) -> list[Files]:
    if form == "h5":
        return [{"k.h5": hdf5(named_layers)}]
    if form == "weights.h5":
        return [{"k.weights.h5": hdf5(numbered_layers)}]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(KERAS_CONFIG))
        archive.writestr("model.weights.h5", hdf5(numbered_layers))
    return [{"k.keras": out.getvalue()}]


def damage_hdf5(rng: Random, data: bytes) -> bytes:
    """Damage the bytes of an HDF5 file, or its groups, attributes and data sets through its library."""
    if rng.random() < 0.6:
        return damage.damage_bytes(rng, data)
    import h5py

    stream = io.BytesIO(data)
    with h5py.File(stream, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        for _ in range(rng.choice((1, 1, 2))):
            with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):  # a change that HDF5 does not allow
                _damage_member(rng, file, rng.choice(places))
    return stream.getvalue()


def _damage_member(rng: Random, file: Any, place: str) -> None:
    import h5py

    if place not in file:
        return
    kind = rng.randrange(9)
    parent, name = file[place].parent, place.rpartition("/")[2]
    if kind == 0:
        file[place].attrs[rng.choice(("name", "weight_names", "layer_names"))] = rng.choice((
            0, [1, 2], np.array([b"x\x1b[2J\n"]), b"\xff\xfe", "../../x", [b"a/b"] * 300, h5py.Empty("f4"),
            np.zeros((2, 2)),
        ))  # fmt: skip
    elif kind == 1:
        del file[place]
    elif kind == 2:
        del file[place]
        parent[name] = rng.choice(
            (h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("/etc/passwd", "/"))
        )
    elif kind == 3:
        del file[place]
        parent.create_dataset(name, shape=(2**20, 2**20), dtype="f4", chunks=(64, 64), compression="gzip")
    elif kind == 4:
        del file[place]
        parent[name] = rng.choice((
            "text", np.array([b"bytes"]), np.zeros(3, "c8"), np.zeros(2, [("a", "f4")]), np.zeros(0, "f4"),
            np.zeros(()), np.full(3, np.nan, "f4"), np.zeros((1,) * 30, "f4"), h5py.Empty("f4"), np.zeros(2, "f2"),
            np.zeros(3, bool),
        ))  # fmt: skip
    elif kind == 5:
        parent[rng.choice(("x\x1b[2J\n", "layers", "vars", "0", "9", "model_weights", "é", "a b"))] = file[place]
    elif kind == 6:
        attributes = file[place].attrs
        for key in list(attributes)[:1]:
            del attributes[key]
    elif kind == 7:
        group = file
        for _ in range(rng.choice((3, 12))):
            group = group.require_group("layers/functional/layers")
    else:
        config = damage.damage_json(rng, json.dumps(KERAS_CONFIG).encode()).decode("utf-8", "replace")
        file.attrs["model_config"] = config.replace("\0", "0")[:60_000]


def damage_keras(rng: Random, data: bytes) -> bytes:
    def member(rng: Random, name: str, content: bytes) -> bytes:
        return (damage_hdf5 if name.endswith(".h5") else damage.damage_json)(rng, content)

    return damage.damage_zip(rng, data, member)


# --- data sets --------------------------------------------------------------------------------------------------------


def open_data(name: str, folder: Path) -> Any:
    """Open a data set and fetch every record of a listing."""
    from zoo.data.sources.listing import Listing
    from zoo.data.sources.open import open_source

    source = open_source(folder / name if name else folder)
    if isinstance(source, Listing):
        for record in range(min(len(source.labels), 50)):
            try:
                source.store.fetch([record])
            except ValueError as error:  # reported and left out by the scan
                if not str(error).startswith(source.store.name(record)) or not str(error).isprintable():
                    raise
        return [str(note) for note in source.notes]
    return source.class_names, [split.labels.sum() for split in source.splits.values()]


@cache
def npz_seeds(compressed: bool = True) -> list[Files]:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 6, 6), np.uint8), np.arange(12) % 3
    plain = {"x_train": images, "y_train": labels, "x_test": images[::-1], "y_test": labels[::-1]}
    words = {"images": images / 255, "labels": np.array(["cat", "dog", "cow"])[labels], "class_names": np.array(["a"])}
    words.pop("class_names")
    seeds = []
    for arrays in (plain, words):
        out = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(out, **arrays)
        seeds.append({"d.npz": out.getvalue()})
    return seeds


def damage_npy(rng: Random, data: bytes) -> bytes:
    """Damage the header of an array of NumPy, whose length is then right again, or its bytes."""
    if rng.random() < 0.4:
        return damage.damage_bytes(rng, data)
    (length,) = struct.unpack("<H", data[8:10])
    text = data[10 : 10 + length].decode("latin1").strip()
    start = text.index("'descr': ") + 9
    end = text.index(", 'fortran")
    kind = rng.randrange(5)
    if kind == 0:
        new = rng.choice(("'|O'", "'<f8'", "'>i2'", "'<M8[s]'", "'|S5'", "'<U9'", "'|V3'", "'<c16'", "[('a', '<f4')]",
                          "'x'", "'<U2147483647'", "0", "'|b1'", "'<f2'", "'<u8'"))  # fmt: skip
        text = text[:start] + new + text[end:]
    elif kind == 1:
        sizes = ", ".join(str(rng.choice((*damage.NUMBERS, -1))) for _ in range(rng.randrange(5)))
        text = text[: text.index("(")] + f"({sizes},)" + text[text.rindex(")") + 1 :]
    elif kind == 2:
        text = rng.choice(("(" * 9000, "[" * 300 + "]" * 300, "-" * 9000 + "1", "{", "None", "__import__('os')",
                           "1" * 9000, "{'descr': '<f4', 'fortran_order': 1, 'shape': [3]}", "'a'*10**9",
                           "\0"))  # fmt: skip
    elif kind == 3:
        text = text.replace("False", rng.choice(("True", "1", "'x'", "None")))
    else:
        text = damage.damage_bytes(rng, text.encode("latin1")).decode("latin1")
    header = text.encode("latin1") + b"\n"
    return data[:8] + struct.pack("<H", min(len(header), 2**16 - 1)) + header + data[10 + length :]


def damage_npz(rng: Random, data: bytes) -> bytes:
    return damage.damage_zip(rng, data, lambda rng, name, content: damage_npy(rng, content), stored=False)


@cache
def features_seeds() -> list[Files]:
    out = io.BytesIO()
    rows, labels = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    np.savez(out, train_features=rows, train_labels=labels, test_features=rows, test_labels=labels,
             class_names=np.array(["cat", "dog"]), about=np.array("features"))  # fmt: skip
    return [{"f.npz": out.getvalue()}]


def read_features(folder: Path) -> Any:
    from zoo.analysis.features import load_features

    return load_features(folder / "f.npz").class_names


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes()


@cache
def idx_seeds(compressed: bool) -> list[Files]:
    rng = np.random.default_rng(0)
    labels = (np.arange(12) % 3).astype(np.uint8)
    arrays = {"train-images-idx3-ubyte": rng.integers(0, 256, (12, 6, 6), np.uint8), "train-labels-idx1-ubyte": labels}
    files = {name: idx(array) for name, array in arrays.items()}
    if compressed:
        return [{f"{name}.gz": gzip.compress(data, 1, mtime=0) for name, data in files.items()}]
    letters = {f"emnist-a-{name}": data for name, data in files.items()}
    return [{**files, "classes.txt": b"cat\ndog\ncow\n"}, {**letters, "emnist-a-mapping.txt": b"0 65\n1 66\n2 67\n"}]


@cache
def tar_seeds() -> list[Files]:
    picture = photos.encoded(photos.photo(4, 4))
    members = [[("0.cls", b"cat"), ("0.png", picture), ("1.json", b'{"label": "dog"}'), ("1.png", picture)],
               [("cat/" + "long" * 30 + ".png", picture), ("dog/1.png", picture), ("dog/é.png", picture)]]  # fmt: skip
    seeds = []
    for content, form in (
        (members[0], tarfile.USTAR_FORMAT),
        (members[1], tarfile.PAX_FORMAT),
        (members[1], tarfile.GNU_FORMAT),
    ):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name, data in content:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        seeds.append({"t.tar": out.getvalue()})
    return seeds


@cache
def table_seeds(suffix: str) -> list[Files]:
    pictures = {f"{n}.png": photos.encoded(photos.photo(4, 4, seed=n)) for n in range(3)}
    rows = [{"path": f"{n}.png", "label": ("cat", "dog")[n % 2], "split": "train"} for n in range(3)]
    if suffix == ".jsonl":
        return [{f"t{suffix}": "\n".join(map(json.dumps, rows)).encode(), **pictures}]
    separator = "\t" if suffix == ".tsv" else ","
    text = "\n".join(separator.join(row) for row in [list(rows[0]), *(list(row.values()) for row in rows)])
    flags = "image,cat,dog,is_valid\n0.png,1,0,False\n1.png,0,1,True\n2.png,1,0,False"
    bare = separator.join(("0.png", "cat")) + "\n" + separator.join(("1.png", "dog"))
    texts = [text, bare] if suffix == ".tsv" else [text, flags, bare]
    return [{f"t{suffix}": content.encode(), **pictures} for content in texts]


# --- images -----------------------------------------------------------------------------------------------------------


def _picture(mode: str) -> Any:
    picture = Image.fromarray(photos.photo(12, 16))
    return (
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else picture.convert(mode)
    )


def _frames(mode: str) -> dict[str, Any]:
    return {"save_all": True, "append_images": [_picture(mode).rotate(90), _picture(mode).rotate(180)]}


#: Name of a format -> modes in which an image is saved, and options.
IMAGE_FORMATS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "PNG": [("RGB", {}), ("RGBA", {}), ("P", {}), ("I;16", {}), ("RGB", _frames("RGB"))],
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "exif": photos.exif(6)})],
    "GIF": [("P", {}), ("P", _frames("P"))],
    "TIFF": [("RGB", {}), ("I;16", {}), ("F", {}), ("RGB", {"compression": "tiff_lzw"}),
             ("1", {"compression": "group4"}), ("RGB", {"compression": "jpeg"}), ("RGB", _frames("RGB"))],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", _frames("RGB"))],
    "AVIF": [("RGB", {})], "BMP": [("RGB", {}), ("P", {}), ("1", {})], "JPEG2000": [("RGB", {}), ("L", {})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {}), ("I;16", {})], "ICO": [("RGBA", {})], "ICNS": [("RGBA", {})],
    "TGA": [("RGB", {"compression": "tga_rle"}), ("P", {})], "PCX": [("RGB", {}), ("P", {})], "DDS": [("RGBA", {})],
    "SGI": [("RGB", {"rle": True}), ("L", {})], "IM": [("RGB", {}), ("F", {})], "SPIDER": [("F", {})],
    "MSP": [("1", {})], "XBM": [("1", {})], "BLP": [("P", {})], "QOI": [("RGB", {})], "DIB": [("RGB", {})],
    "MPO": [("RGB", _frames("RGB"))],
}  # fmt: skip


@cache
def image_seeds(form: str) -> list[Files]:
    return [{"i.img": photos.encoded(_picture(mode), form, **options)} for mode, options in IMAGE_FORMATS[form]]


@cache
def other_image_seeds() -> list[Files]:
    """Return the beginnings of formats that Pillow reads but does not write, and of those that it leaves to others."""
    big, little = partial(struct.pack, ">III"), partial(struct.pack, "<III")
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 4", "END")
    heads = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">IIHH", 4, 4, 8, 3) + bytes(60),  # PSD
        struct.pack("<IHHHHHHHI", 600, 0xAF12, 1, 4, 4, 8, 3, 5, 0).ljust(128, b"\0") + bytes(200),  # FLI
        "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(16),  # FITS
        b"FTEX" + little(0x100, 4, 4) + little(1, 1, 0) + bytes(80),
        big(28, 2, 4) + big(4, 3, 0x47494D50) + bytes(64),  # GBR of the GIMP
        b"GRIB" + bytes(3) + b"\1" + bytes(40), b"BUFR" + bytes(40), b"\x89HDF\r\n\x1a\n" + bytes(60),
        b"\x1c\1" + bytes(40), b"\0\0\0\0\0\0\0\4" + bytes(300),  # IPTC, McIdas
        b"\0\0\1\xb3\4\0\4" + bytes(20), bytes(2048) + b"PCD_" + bytes(4000),  # MPEG, Photo CD
        b"\x80\xe8\0\0" + struct.pack("<HH", 4, 4).rjust(420, b"\0") + bytes(700),  # PIXAR
        big(0x59A66A95, 4, 4) + big(24, 48, 1) + bytes(8) + bytes(64), b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),  # Sun, WMF
        b'/* XPM */\nstatic char * x[] = {\n"2 2 1 1",\n"a c #000000",\n"aa",\n"aa"};\n',
        b"P7 332\n#END_OF_COMMENTS\n4 4 255\n" + bytes(16),  # xv thumbnail
        struct.pack("<I", 987654321) + bytes(4096), b"\0\0\2\0\1\0\4\4\0\0\1\0" + bytes(100),  # DCX, CUR
    ]  # fmt: skip
    return [{"i.img": head} for head in heads]


def read_picture(folder: Path) -> Any:
    """Read an image as prediction does, as the scan of a data set does, and a crop of it as training does."""
    from zoo.data.augment.host_crop import Crop, read_crop
    from zoo.data.images.decode import read_image
    from zoo.data.sources.scan import examine

    path = folder / "i.img"
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)
    if path.stat().st_size % 4 == 0:
        data = path.read_bytes()
        examine(data)
        read_crop(data, photos.preprocess_of((8, 8)), 0, 0, 0, Crop())
    return pixels.shape


def damage_picture(form: str, rng: Random, data: bytes) -> bytes:
    return (damage.damage_png if form == "PNG" else damage.damage_bytes)(rng, data)


# --- checkpoints and runs ---------------------------------------------------------------------------------------------


def tree_files(root: Path) -> Files:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@cache
def checkpoint_files() -> Files:
    """Return a checkpoint, written by `zoo.save`."""
    import zoo

    model, variables, preprocess = _tiny()
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(
            Path(folder, "c"), model, variables, ("cat", "dog", "cow"), preprocess, metrics={"test": {"loss": 0.5}}
        )
        return tree_files(Path(folder, "c"))


@cache
def state_files() -> Files:
    from zoo.checkpoint import save_state
    from zoo.training.run import Progress

    arrays = {"state": {"step": np.array(3), "w": np.ones((3, 2), np.float32)}}
    with tempfile.TemporaryDirectory() as folder:
        save_state(folder, 3, arrays, Progress(3, [{"step": 1, "loss": 0.5}], 1, [0.5]).to_json())
        return tree_files(Path(folder))


def with_digests(files: Files, top: str = "") -> Files:
    """Return files with a manifest that is right for them."""
    from zoo.checkpoint import manifest

    inside = {name.removeprefix(top): data for name, data in files.items() if name.startswith(top)}
    inside.pop(manifest.MANIFEST, None)
    import hashlib

    rows = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in inside.items()}
    return {**files, f"{top}{manifest.MANIFEST}": manifest._manifest_bytes(rows)}


def damage_card(rng: Random, seeds: list[Files]) -> Files:
    files = dict(seeds[0])
    files["card.json"] = damage.damage_json(rng, files["card.json"])
    return with_digests(files)


def damage_manifest(rng: Random, seeds: list[Files]) -> Files:
    """Damage a manifest, whose own digest and spelling are then right again for half of them."""
    from zoo.checkpoint import manifest

    files = dict(seeds[0])
    body = json.loads(files[manifest.MANIFEST])
    if rng.random() < 0.5:
        body = damage.damage_json_value(rng, {"files": body["files"], "format": body["format"]})
        try:
            files[manifest.MANIFEST] = manifest._manifest_bytes(body["files"], body.get("format"))
            return files
        except (TypeError, KeyError, AttributeError, ValueError, IndexError):
            pass
    files[manifest.MANIFEST] = damage.damage_json(rng, files[manifest.MANIFEST])
    return files


def damage_arrays(rng: Random, seeds: list[Files]) -> Files:
    """Damage a file that Orbax wrote, with right digests."""
    files = dict(seeds[0])
    name = rng.choice([name for name in files if "arrays/" in name])
    is_json = files[name][:1] == b"{"
    files[name] = (damage.damage_json if is_json and rng.random() < 0.8 else damage.damage_bytes)(rng, files[name])
    if rng.random() < 0.05:
        del files[name]
    return with_digests(
        files, next((name[: -len("manifest.json")] for name in files if name.endswith("manifest.json")), "")
    )


def damage_progress(rng: Random, seeds: list[Files]) -> Files:
    files = dict(seeds[0])
    name = next(name for name in files if name.endswith("progress.json"))
    files[name] = damage.damage_json(rng, files[name])
    return with_digests(files, name.removesuffix("progress.json"))


def load_folder(folder: Path) -> Any:
    from zoo.checkpoint import load_checkpoint, verify_checkpoint

    if any(not line.isprintable() for line in verify_checkpoint(folder)):
        raise ValueError(f"{folder}: \n verify prints a line that is not printable")
    return load_checkpoint(folder)[0].model


def load_network(folder: Path) -> Any:
    """Load a checkpoint as a network and print its card, whose lines must be printable."""
    import zoo
    from zoo.commands.info import print_card

    loaded = zoo.load(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_card("name", loaded.card)
    text = f"{out.getvalue()}\n{loaded!r}"
    assert all(line.isprintable() for line in text.split("\n")), text
    return text


def resume(folder: Path) -> Any:
    from zoo.checkpoint import latest_intact_save, read_state
    from zoo.training.run import Progress

    save = latest_intact_save(folder, lambda line: None)
    if save is None:
        return None
    like = {"state": {"step": np.array(0), "w": np.zeros((3, 2), np.float32)}}
    return Progress.from_json(read_state(save, lambda step: like)[1], str(save))


@cache
def run_files() -> Files:
    from zoo.training.recipe import Recipe
    from zoo.training.run import RunConfig

    config = RunConfig("lenet5", {"num_classes": 10}, "digits", Recipe(), 0, "0" * 64, init="x", init_digest="1" * 64)
    made_with = {"command": "zoo train", "git": None, "versions": {"jax": "0.9"}}
    rows = [{"step": n, "epoch": n / 10, "train_loss": 1 / n, "best": True} for n in (1, 2)]
    timing = {"steps": [0, 2], "seconds": 1.5, "images_per_second": 8.5, "device": "cpu"}
    content = {
        "config.json": json.dumps({**config.to_json(), "made_with": made_with}, indent=1),
        "results.json": json.dumps({"stopped": "all steps done", "best_step": 2, "test": {"accuracy": 0.5}}),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "timing.jsonl": 2 * (json.dumps(timing) + "\n"),
    }
    return {name: text.encode() for name, text in content.items()}


def run_seeds(name: str) -> list[Files]:
    return [{name: run_files()[name]}]


def read_run(name: str, folder: Path) -> Any:
    from zoo.training import run

    if name == "config.json":
        config = run.read_config(folder)
        return config.identity(), config.default_name()
    reader = {"results.json": run.read_results, "metrics.jsonl": run.read_history, "timing.jsonl": run.read_timing}
    return reader[name](folder)


def compare_runs(folder: Path) -> Any:
    from zoo.analysis import compare

    compared = compare.read_runs([folder])
    header, rows = compare.table(compared)
    return compare.format_table(header, [*rows, rows[0]])


def read_class_names(folder: Path) -> Any:
    from zoo.commands.import_weights import read_classes

    return read_classes(folder / "classes.txt")


JSON_CHANGES = {
    "config.json": damage.damage_json, "results.json": damage.damage_json, "metrics.jsonl": damage.damage_json_lines,
    "timing.jsonl": damage.damage_json_lines,
}  # fmt: skip


def checkpoint_seeds() -> list[Files]:
    return [checkpoint_files()]


def state_seeds() -> list[Files]:
    return [state_files()]


def weights_reader(
    name: str, seeds: Callable[[], list[Files]], change: Any, share: float, max_bytes: int = MAX_BYTES
) -> Reader:
    return Reader(seeds, one_file(name, change), partial(read_weights, name), share, max_bytes)


def data_reader(name: str, seeds: Callable[[], list[Files]], change: Any, share: float) -> Reader:
    return Reader(seeds, one_file(name, change), partial(open_data, name), share)


READERS: dict[str, Reader] = {
    "pth (zip)": weights_reader("w.pth", partial(torch_seeds, "zip"), damage_torch_zip, 9),
    "pth (stream)": weights_reader("w.pth", partial(torch_seeds, "legacy"), damage_torch_stream, 9),
    "safetensors": weights_reader("w.safetensors", safetensors_seeds, damage_safetensors, 9),
    "safetensors index": Reader(
        index_seeds, any_file({".json": damage.damage_json, ".safetensors": damage_safetensors}),
        partial(read_weights, "w.safetensors.index.json"), 2,
    ),
    "exported card": Reader(
        exported_seeds, one_file("e.safetensors", damage_exported), partial(import_weights, "e.safetensors"), 1
    ),
    "h5": weights_reader("k.h5", partial(keras_seeds, "h5"), damage_hdf5, 4, MAX_HDF5_BYTES),
    "weights.h5": weights_reader("k.weights.h5", partial(keras_seeds, "weights.h5"), damage_hdf5, 4, MAX_HDF5_BYTES),
    "keras": weights_reader("k.keras", partial(keras_seeds, "keras"), damage_keras, 4, MAX_HDF5_BYTES),
    "npz": data_reader("d.npz", npz_seeds, damage_npz, 6),
    "npy in npz": data_reader("d.npz", partial(npz_seeds, False), damage_npz, 6),
    "features": Reader(features_seeds, one_file("f.npz", damage_npz), read_features, 2),
    "idx": Reader(partial(idx_seeds, False), any_file({}), partial(open_data, ""), 4),
    "idx.gz": Reader(
        partial(idx_seeds, True), any_file({".gz": partial(damage.damage_gzip, damage=damage.damage_bytes)}),
        partial(open_data, ""), 4,
    ),
    "tar": data_reader("t.tar", tar_seeds, damage.damage_tar, 6),
    "csv": data_reader("t.csv", partial(table_seeds, ".csv"), damage.damage_table, 5),
    "tsv": data_reader("t.tsv", partial(table_seeds, ".tsv"), damage.damage_table, 2),
    "jsonl": data_reader("t.jsonl", partial(table_seeds, ".jsonl"), damage.damage_json_lines, 4),
    "card": Reader(checkpoint_seeds, damage_card, load_folder, 1),
    "card, whole network": Reader(checkpoint_seeds, damage_card, load_network, 0.5),
    "manifest": Reader(checkpoint_seeds, damage_manifest, load_folder, 1.5),
    "arrays of Orbax": Reader(checkpoint_seeds, damage_arrays, load_folder, 1),
    "progress.json": Reader(state_seeds, damage_progress, resume, 0.5),
    "state of Orbax": Reader(state_seeds, damage_arrays, resume, 0.5),
    **{
        name: Reader(partial(run_seeds, name), one_file(name, change), partial(read_run, name), 2)
        for name, change in JSON_CHANGES.items()
    },
    "run, compared": Reader(lambda: [run_files()], any_file(JSON_CHANGES), compare_runs, 2),
    "class names": Reader(
        lambda: [{"classes.txt": "cat\nDog\nZebra é\n".encode()}], one_file("classes.txt", damage.damage_bytes),
        read_class_names, 1,
    ),
    **{
        f"image {form}": Reader(
            partial(image_seeds, form), one_file("i.img", partial(damage_picture, form)), read_picture,
            5 if form in ("PNG", "JPEG", "TIFF", "GIF", "WEBP") else 0.1 if form == "ICNS" else 1.5, MAX_IMAGE_BYTES,
        )
        for form in IMAGE_FORMATS
    },
    "image, other": Reader(
        other_image_seeds, one_file("i.img", damage.damage_bytes), read_picture, 5, MAX_IMAGE_BYTES
    ),
}  # fmt: skip

#: Readers whose seeds need not be accepted.
NOT_ALL_ACCEPTED = {"image, other"}
