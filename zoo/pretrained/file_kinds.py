"""Name the kind of a file that is not a weight file, so that the error says what it is."""

import zipfile
from pathlib import Path

from zoo.checkpoint.format import CARD
from zoo.checkpoint.manifest import MANIFEST
from zoo.files import ZIP_ERRORS

#: (offset, magic bytes, description, advice).
_UNPACK = "unpack it first"
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (0, b"\x89PNG\r\n\x1a\n", "an image (PNG)", ""),
    (0, b"\xff\xd8\xff", "an image (JPEG)", ""),
    (0, b"GIF8", "an image (GIF)", ""),
    (0, b"BM", "an image (BMP)", ""),
    (0, b"II*\x00", "an image (TIFF)", ""),
    (0, b"MM\x00*", "an image (TIFF)", ""),
    (8, b"WEBP", "an image (WebP)", ""),
    (4, b"ftyp", "an image or a video", ""),
    (0, b"%PDF", "a PDF document", ""),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "a NumPy array", ""),
    (0, b"GGUF", "a GGUF file of llama.cpp", ""),
    (4, b"TFL3", "a TensorFlow Lite model", ""),
    (0, b"\x7fELF", "a program", ""),
    (0, b"MZ", "a program", ""),
    (0, b"SQLite format 3", "an SQLite database", ""),
)
HEAD_BYTES = 512


def file_kind(path: Path) -> str:
    """Return what a file that is not a weight file is, with advice: "a web page instead of …"; "" if unknown."""
    if path.name in (CARD, MANIFEST) and (path.parent / CARD).is_file():
        return f"part of the checkpoint {path.parent}; give that folder"
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if head[:4] == b"PK\x03\x04":
        return _zip_kind(path)
    for offset, magic, description, advice in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return f"{description}, not weights{f'; {advice}' if advice else ''}"
    if b"onnx" in head.lower() or path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head):
        return "an ONNX model, not weights; bring the PyTorch or Keras file it was made from"
    if head and not head.strip(b"\x00"):
        return "a file of zeros, not weights; download it again"
    return _text_kind(head)


def _zip_kind(path: Path) -> str:
    """Return what a zip archive without PyTorch's or Keras's members is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (*ZIP_ERRORS, ValueError):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), not weights; save them as safetensors"
    shown = ", ".join(name[:80] for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"a zip archive, but not of PyTorch or Keras; unpack it first (it holds {shown or 'nothing'})"


def _text_kind(head: bytes) -> str:
    """Return what kind of text a file is; "" if it is not text."""
    try:
        # The head may end within a character.
        text = head.decode("utf-8-sig", errors="strict" if len(head) < HEAD_BYTES else "ignore").strip()
    except UnicodeDecodeError:
        return ""
    if not text or not all(character.isprintable() or character in "\r\n\t" for character in text):
        return ""
    lower = text.lower()
    if lower.startswith("<!doctype html") or "<html" in lower or lower.startswith("<head"):
        return "a web page (HTML) instead of the weights; download the file itself"
    if lower.startswith("<"):
        return "an XML document (perhaps a server's error message) instead of the weights; download the file itself"
    if lower[0] in "{[":
        return "a JSON text, not weights"
    return "a text file, not weights"


def folder_kind(path: Path) -> str:
    """Return what a folder without weight files is, with advice."""
    if (path / "saved_model.pb").exists():
        return "a TensorFlow SavedModel, which is not read; save the model as .keras or .weights.h5"
    if (path / "data.pkl").exists() or (path / "archive" / "data.pkl").exists():
        return "an unpacked PyTorch file; bring the file as torch.save wrote it"
    return "a folder, and no weight file is in it"
