import errno
import hashlib
import json
import os
import struct
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import BAD, GOOD_FORMS, hostile_folder
from photos import encoded, exif, folder_of, photo, scene
from PIL import Image

from zoo import cli
from zoo.data.augment.host_crop import Crop, read_crop
from zoo.data.images.decode import apply_orientation, read_image
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import listing, open_dataset, scan
from zoo.data.sources.open import open_source


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs a system with links and pipes")
    root = tmp_path_factory.mktemp("hostile")
    return root, hostile_folder(root, 60)


def test_every_fault_is_reported_and_readable_images_are_kept(hostile, tmp_path, monkeypatch, capfd):
    check_hostile(*hostile, tmp_path, monkeypatch, capfd)


@pytest.mark.slow
def test_every_fault_among_five_thousand_images(tmp_path, monkeypatch, capfd):
    count = hostile_folder(tmp_path / "photos", 4_500)
    check_hostile(tmp_path / "photos", count, tmp_path, monkeypatch, capfd)


def check_hostile(root, count, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    lines = found["left_out"]
    assert len(lines) == len(BAD)
    for path, reason in BAD.items():
        (line,) = [line for line in lines if line.startswith(f"{path}: ")]
        assert reason in line, line
    assert sum(found["splits"].values()) == count and err == ""
    assert set(found["classes"]) == {"cat", "dog", "wolf"} and found["classes"]["wolf"]["train"] == 1
    assert len(found["leaks"]) == 1 and "test/cat/leaked.png = train/cat/0.png" in found["leaks"][0]
    assert found["wrongly_named"] == ["train/cat/really a.jpg: is PNG"]
    assert any("not an image" in note for note in found["notes"]) and any(
        "readme.txt" in note for note in found["notes"]
    )
    assert found["sizes"]["smallest"] == [1, 1] and [16, 12, 1] in found["sizes"]["common"]  # the one that is turned
    assert found["kinds"].keys() >= {"JPEG CMYK", "PNG RGB", "GIF P", "WEBP RGB"}
    assert Path(found["contact_sheet"]).stat().st_size > 1000 and not (tmp_path / "contact-sheet.png").exists()
    assert len(out.splitlines()) > 20 and all(line.isprintable() for line in out.splitlines())


def test_readable_images_are_read_as_read_image_does(hostile):
    root, count = hostile
    dataset = open_dataset(root)
    assert sum(map(len, dataset.splits.values())) == count
    seen = set()
    for split in dataset.splits.values():
        for i, image in enumerate(split.read(np.arange(len(split)))):
            path = root / split.store.names[split.records[i]]
            np.testing.assert_array_equal(image, read_image(path))
            assert tuple(split.sizes[i]) == image.shape[:2]
            seen.add(path.name)
    assert seen >= set(GOOD_FORMS)


def test_the_report_is_short_and_the_full_list_is_in_a_file(hostile, capsys):
    root, _ = hostile
    lines = listing.describe_left_out(open_dataset(root))
    assert len(lines) == 12 and f"{len(BAD):,} images" in lines[0]
    place = lines[-1].rsplit(" ", 1)[1]
    with open(place, encoding="utf-8") as file:
        assert len(file.read().splitlines()) == len(BAD)


def test_a_scan_is_cached_until_a_file_changes(tmp_path, monkeypatch):
    folder_of(tmp_path / "photos", {"cat": 5, "dog": 5})
    looked = []
    original = scan.examine
    monkeypatch.setattr(scan, "examine", lambda data: looked.append(1) or original(data))
    first = open_dataset(tmp_path / "photos")
    assert len(looked) == 10
    assert open_dataset(tmp_path / "photos").fingerprint() == first.fingerprint() and len(looked) == 10
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(b"")
    again = open_dataset(tmp_path / "photos")
    assert len(looked) > 10 and again.left_out == ("cat/0.png: empty file (0 bytes)",)


@pytest.mark.parametrize(
    "module, name, error, said",
    [
        (os, "open", OSError(errno.EMFILE, "Too many open files"), "cannot be read (Too many open files)"),
        (listing.FileStore, "_read", MemoryError(), "MemoryError"),
        (scan, "to_pixels", MemoryError(), "does not fit in memory"),
    ],
)
def test_a_scan_with_temporary_errors_is_not_cached(module, name, error, said, tmp_path, monkeypatch):
    root = folder_of(tmp_path / "photos", {"cat": 5, "dog": 5})
    source = open_source(root)

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        assert set(source.scan(0).reasons.values()) == {said}
    assert not source.scan(0).reasons


@pytest.mark.parametrize("workers", [1, 4])
def test_a_scan_does_not_depend_on_the_number_of_threads(workers, tmp_path):
    folder_of(tmp_path, {"cat": 70, "dog": 70})
    (tmp_path / "cat" / "3.png").write_bytes(b"no")
    source = open_source(tmp_path)
    one = scan.scan(source.store, 140, f"alone-{workers}", 0)
    other = scan.scan(source.store, 140, f"together-{workers}", workers)
    assert one.keys == other.keys and one.kinds == other.kinds and one.reasons == other.reasons and one.reasons
    np.testing.assert_array_equal(one.sizes, other.sizes)


@pytest.mark.parametrize("orientation, size", [(1, (20, 30)), (4, (20, 30)), (5, (30, 20)), (8, (30, 20))])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_sizes_follow_exif_orientation(orientation, size, file_format):
    data = encoded(photo(20, 30), file_format, exif=exif(orientation))
    assert scan.examine(data) == (size, f"{file_format} RGB", (0, 0))


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_orientations_that_do_not_exist_are_upright(orientation, file_format):
    data, plain = (encoded(photo(20, 30), file_format, exif=exif(turn)) for turn in (orientation, 1))
    assert scan.examine(data) == ((20, 30), f"{file_format} RGB", (0, 0))
    np.testing.assert_array_equal(read_image(data), read_image(plain))
    preprocess = Preprocess((10, 15), (10, 15))
    np.testing.assert_array_equal(*(read_crop(file, preprocess, 0, 0, 7, Crop()) for file in (data, plain)))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("cut", [0.6, 0.97])
def test_truncated_jpeg_files_are_unreadable_in_every_mode(mode, cut):
    data = encoded(Image.fromarray(photo(64, 64)).convert(mode), "JPEG")
    assert scan.examine(data) == ((64, 64), f"JPEG {mode}", (0, 0))
    with pytest.raises(ValueError, match="image"):
        scan.examine(data[: int(cut * len(data))])


@pytest.mark.parametrize(
    "error, temporary",
    [(OSError(), True), (MemoryError(), True), (ValueError(), False), (KeyError(), False), (PermissionError(), True)],
)
def test_temporary_errors(error, temporary):
    assert scan.is_temporary(error) == temporary
    outer = ValueError("cannot be read")
    outer.__cause__ = error
    assert scan.is_temporary(outer) == temporary


def test_a_scan_of_several_chunks(monkeypatch):
    """Each record has its own size, kind, hash and reason, whatever the number of chunks."""
    images = [encoded(photo(3 + i, 5)) if i % 3 else b"damaged" for i in range(7)]
    store = types.SimpleNamespace(fetch=lambda records: [images[i] for i in records], name=lambda i: f"{i}.png")
    for chunk in (1, 3, 7, 64):
        monkeypatch.setattr(scan, "CHUNK", chunk)
        for result in (scan.scan(store, 7, f"chunks-{chunk}"), scan.scan(store, 7, f"chunks-{chunk}")):  # and cached
            assert result.sizes.tolist() == [[3 + i, 5] if i % 3 else [0, 0] for i in range(7)]
            assert result.kinds == tuple("PNG RGB" if i % 3 else "" for i in range(7))
            assert result.keys == tuple(hashlib.blake2b(data, digest_size=16).digest() for data in images)
            assert set(result.reasons) == {0, 3, 6} and not any("image" in text[:6] for text in result.reasons.values())


def test_records_that_cannot_be_fetched():
    def fetch(records):
        raise ValueError("a.png: no such file")

    result = scan.scan(types.SimpleNamespace(fetch=fetch, name=lambda i: "a.png"), 1, "unfetched")
    assert result.reasons == {0: "no such file"} and result.keys == (bytes(16),) and result.kinds == ("",)


@pytest.mark.parametrize(
    "values, dtype, extent", [([7, 4000], np.uint16, (7, 4000)), ([-0.02, 1.02], np.float32, (-0.02, 1.02))]
)
def test_the_range_of_deep_images_is_measured(values, dtype, extent):
    data = encoded(Image.fromarray(np.array([values], dtype)), "TIFF")
    assert scan.examine(data)[2] == pytest.approx(extent)


@pytest.mark.parametrize("low, valid", [(-0.049, True), (-0.051, False)])
def test_deep_images_with_negative_values_are_unreadable(low, valid):
    data = encoded(Image.fromarray(np.array([[low, 1.0]], np.float32)), "TIFF")
    if valid:
        assert scan.examine(data)[2] == pytest.approx((low, 1))
    else:
        with pytest.raises(ValueError, match=f"^image: .*{low:g}"):
            scan.examine(data)


def late_exif(image, orientation):
    """Return a PNG with its EXIF data behind the pixels, where Pillow finds them only as it decodes."""
    data, tags = encoded(image), exif(orientation).tobytes()[6:]
    end, chunk = data.rindex(b"IEND") - 4, b"eXIf" + tags
    return data[:end] + struct.pack(">I", len(tags)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end:]


TURNED = {  # ways to write an image with an orientation
    "JPEG": lambda image, turn: encoded(image, "JPEG", quality=95, subsampling=0, exif=exif(turn)),
    "MPO": lambda image, turn: encoded(
        image, "MPO", quality=95, subsampling=0, save_all=True, append_images=[image], exif=exif(turn)
    ),
    "PNG": lambda image, turn: encoded(image, exif=exif(turn)),
    "PNG, EXIF last": late_exif,
    "WEBP": lambda image, turn: encoded(image, "WEBP", lossless=True, exif=exif(turn)),
    "TIFF": lambda image, turn: encoded(image, "TIFF", tiffinfo={0x0112: turn}),
    "TIFF, LZW": lambda image, turn: encoded(image, "TIFF", compression="tiff_lzw", tiffinfo={0x0112: turn}),
    "TIFF, 16 bits": lambda image, turn: encoded(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "TIFF", tiffinfo={0x0112: turn}
    ),
}


@pytest.mark.parametrize("form", TURNED)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_scan_crops_and_decoder_agree_on_the_orientation_of_every_format(form, orientation):
    """An image that is stored turned is the same as one that is stored upright."""
    upright = scene()
    stored = next(  # the transposition that the orientation undoes
        turned for method in Image.Transpose
        if np.array_equal(apply_orientation(np.asarray(turned := Image.fromarray(upright).transpose(method)),
                                            orientation), upright)
    )  # fmt: skip
    data, plain = TURNED[form](stored, orientation), TURNED[form](Image.fromarray(upright), 1)
    tolerance = 8 if form in ("JPEG", "MPO") else 0
    np.testing.assert_allclose(read_image(data).astype(int), read_image(plain), atol=tolerance)
    assert scan.examine(data)[0] == scan.examine(plain)[0] == upright.shape[:2]
    preprocess = Preprocess((10, 15), (10, 15))
    crops = [read_crop(file, preprocess, 0, 0, 7, Crop(area=0.5)).astype(int) for file in (data, plain)]
    np.testing.assert_allclose(*crops, atol=max(tolerance, 1))
