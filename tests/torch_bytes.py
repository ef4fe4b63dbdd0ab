"""PyTorch's files written by hand, opcode by opcode, so that neither PyTorch nor pickle's own writer is needed."""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

KINDS = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + tuple_of(*arguments) + b"R"


def mapping(pairs: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u"


def ordered(pairs: Mapping[str, bytes]) -> bytes:
    """An OrderedDict as PyTorch writes it, with the _metadata of a module as its state."""
    return (
        called("collections", "OrderedDict")
        + b"("
        + b"".join(text(k) + v for k, v in pairs.items())
        + b"u"
        + (b"}" + text("_metadata") + b"}" + b"sb")
    )


def storage(key: str, dtype: str, count: int, legacy: bool = False) -> bytes:
    parts = [text("storage"), named("torch", KINDS[dtype]), text(key), text("cpu"), number(count)]
    return tuple_of(*parts, *([b"N"] if legacy else [])) + b"Q"


def tensor(reference: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> bytes:
    sizes = [tuple_of(*map(number, values)) for values in (shape, strides)]
    hooks = called("collections", "OrderedDict")
    return called("torch._utils", "_rebuild_tensor_v2", reference, number(offset), *sizes, b"\x89", hooks)


def contiguous(array: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zipped(body: bytes, storages: Mapping[str, np.ndarray], byteorder: str = "little", **more: bytes) -> bytes:
    """The archive of PyTorch 1.6 and later."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def legacy(body: bytes, storages: Mapping[str, np.ndarray], little: bool = True) -> bytes:
    """The stream of pickles of PyTorch before 1.6."""
    system = mapping({"protocol_version": number(1001), "little_endian": b"\x88" if little else b"\x89"})
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    pickles = [program(part) for part in (number(0x1950A86A20F9469CFC6C), number(1001), system, body, keys)]
    raw = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    return b"".join([*pickles, *raw])


def state_dict(arrays: Mapping[str, np.ndarray], form: str = "zip", wrap=ordered) -> bytes:
    """A file with these arrays, a storage each; `wrap`: the program of the whole from the tensors' programs."""
    storages = {str(i): np.asarray(array) for i, array in enumerate(arrays.values())}
    tensors = {
        key: tensor(storage(str(i), str(array.dtype), array.size, form == "legacy"), array.shape, contiguous(array))
        for i, (key, array) in enumerate(arrays.items())
    }
    return (legacy if form == "legacy" else zipped)(wrap(tensors), storages)
