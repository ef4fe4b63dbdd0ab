import io
import struct
import zlib
from functools import lru_cache

import numpy as np
import pytest
from photos import encoded, exif, photo, scene, stroke
from PIL import Image

from zoo.data.images.decode import (
    apply_orientation,
    composite,
    exif_orientation,
    luma,
    open_image,
    read_image,
    to_pixels,
)

COLOUR = {  # encoder, and tolerance of the decoded levels
    "png": (lambda p: encoded(p, "PNG"), 0),
    "bmp": (lambda p: encoded(p, "BMP"), 0),
    "tiff": (lambda p: encoded(p, "TIFF"), 0),
    "webp lossless": (lambda p: encoded(p, "WEBP", lossless=True), 0),
    "jpeg": (lambda p: encoded(p, "JPEG", quality=95), 12),
    "jpeg progressive": (lambda p: encoded(p, "JPEG", quality=95, progressive=True), 12),
    "jpeg cmyk": (lambda p: encoded(p.convert("CMYK"), "JPEG", quality=95), 12),
    "tiff cmyk": (lambda p: encoded(p.convert("CMYK"), "TIFF"), 2),
    "webp": (lambda p: encoded(p, "WEBP", quality=95), 24),
    "gif": (lambda p: encoded(p.quantize(256), "GIF"), 24),
    "png palette": (lambda p: encoded(p.quantize(256), "PNG"), 24),
    "png opaque alpha": (lambda p: encoded(p.convert("RGBA"), "PNG"), 0),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_colour_files(kind):
    encoder, tolerance = COLOUR[kind]
    want = scene()
    got = read_image(encoder(Image.fromarray(want)))
    assert got.dtype == np.uint8 and got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= tolerance


def ramp():
    return np.linspace(0, 255, 16 * 20).astype(np.uint8).reshape(16, 20)


GREY = {
    "png": lambda g: encoded(Image.fromarray(g), "PNG"),
    "png 16 bit": lambda g: encoded(Image.fromarray(g.astype(np.uint16) * 257), "PNG"),
    "tiff 16 bit": lambda g: encoded(Image.fromarray(g.astype(np.uint16) * 257), "TIFF"),
    "tiff 32 bit": lambda g: encoded(Image.fromarray(g.astype(np.int32) * 257), "TIFF"),
    "tiff float 0..1": lambda g: encoded(Image.fromarray(g.astype(np.float32) / 255), "TIFF"),
    "tiff float 0..255": lambda g: encoded(Image.fromarray(g.astype(np.float32)), "TIFF"),
    "pgm": lambda g: encoded(Image.fromarray(g), "PPM"),
    "pgm 16 bit": lambda g: b"P5 20 16 65535\n" + (g.astype(">u2") * 257).tobytes(),
    "png opaque alpha": lambda g: encoded(Image.fromarray(g).convert("LA"), "PNG"),
    "jpeg": lambda g: encoded(Image.fromarray(g), "JPEG", quality=100),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_files(kind):
    got = read_image(GREY[kind](ramp()))
    assert got.dtype == np.uint8 and got.shape == (16, 20, 1)
    assert np.abs(got[..., 0].astype(int) - ramp()).max() <= (3 if kind == "jpeg" else 0)


def test_one_bit_and_grey_palette():
    bits = np.zeros((9, 7), bool)
    bits[2:5, 1:4] = True
    assert np.array_equal(read_image(encoded(Image.fromarray(bits), "PNG")), bits[..., None] * np.uint8(255))
    palette = Image.fromarray(ramp()).convert("P")
    assert np.array_equal(luma(read_image(encoded(palette, "PNG")))[..., 0], ramp())


def test_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((4, 5), level, np.uint8)) for level in (50, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(luma(read_image(data)), np.full((4, 5, 1), 50))


@pytest.mark.parametrize("ink, ground", [(0, 255), (60, 255), (255, 0), (200, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_laid_over_a_contrasting_background(mode, ink, ground):
    alpha = stroke()[..., 0]
    if mode == "P":
        picture = Image.fromarray((alpha > 0).astype(np.uint8))
        picture.putpalette([ground if ground else 7, 7, 7, ink, ink, ink])
        data = encoded(picture, "PNG", transparency=0)
    else:
        grey = Image.fromarray(np.full_like(alpha, ink))
        bands = (grey, Image.fromarray(alpha)) if mode == "LA" else (grey, grey, grey, Image.fromarray(alpha))
        data = encoded(Image.merge(mode, bands), "PNG")
    got = read_image(data)
    assert got.shape[-1] == (1 if mode == "LA" else 3)
    assert (got[alpha == 0] == ground).all() and (got[alpha == 255] == ink).all()


def test_partial_transparency_is_blended_and_invisible_images_are_white():
    half = np.zeros((2, 2, 4), np.uint8)
    half[..., 3] = 128
    assert (read_image(encoded(Image.fromarray(half), "PNG")) == 127).all()
    assert (read_image(encoded(Image.fromarray(half * 0), "PNG")) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("grey", [False, True])
def test_exif_orientation(orientation, grey):
    want = Image.fromarray(scene()).convert("L" if grey else "RGB")
    undo = {  # how a camera held that way stores the scene
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = want.transpose(undo[orientation]) if orientation > 1 else want
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file_format, options in (("JPEG", {"quality": 97, "subsampling": 0}), ("PNG", {}), ("TIFF", {})):
        got = read_image(encoded(stored, file_format, exif=exif, **options))
        expected = np.asarray(want).reshape(got.shape)
        assert np.abs(got.astype(int) - expected).max() < 12, file_format


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored():
    data = encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_image(data).shape == (20, 30, 3)


def test_path_bytes_and_file_are_the_same(tmp_path):
    path = tmp_path / "bild mit ümlaut.png"
    Image.fromarray(scene()).save(path)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            assert np.array_equal(read_image(source), scene())


def header_only(width, height):
    """Return a PNG with a header of this size and no pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9))))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@lru_cache(maxsize=1)
def malformed():
    photo = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    damaged = bytearray(encoded(Image.fromarray(scene()), "PNG"))
    damaged[60] ^= 0xFF
    negative = encoded(Image.fromarray(np.full((4, 4), -1.0, np.float32)), "TIFF")
    nan = encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    huge = encoded(Image.fromarray(np.full((4, 4), 1e9, np.float32)), "TIFF")
    return {
        "empty.jpg": (b"", "empty file"),
        "text.png": (b"hello, I am a text file", "not an image"),
        "cut.jpg": (photo[: len(photo) // 2], "truncated"),
        "cut.png": (encoded(Image.fromarray(scene()), "PNG")[:70], "damaged"),
        "flip.png": (bytes(damaged), "damaged"),
        "head.jpg": (photo[:20], "not an image|damaged"),
        "bomb.png": (header_only(20_000, 20_000), "pixels"),
        "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(40), "heic"),
        "negative.tif": (negative, "range from -1"),
        "nan.tif": (nan, "nan"),
        "huge.tif": (huge, "1e"),
    }


@pytest.mark.parametrize("name", malformed())
def test_malformed_files_get_one_line_with_their_name(name, tmp_path):
    data, reason = malformed()[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "low, high, dtype, expected",
    [  # the smallest of the usual ranges that holds all values
        (0, 255, np.int32, [0, 255]),
        (0, 256, np.int32, [0, 1]),
        (0, 65535, np.int32, [0, 255]),
        (0, 65536, np.int32, [0, 0]),
        (0, 2**31 - 1, np.int32, [0, 255]),
        (0.0, 1.0, np.float32, [0, 255]),
        (0.25, 0.5, np.float32, [64, 128]),  # 63.75 and 127.5, rounded to even
        (0.0, 1.5, np.float32, [0, 2]),
        (0.0, 255.0, np.float32, [0, 255]),
        (0.0, 256.0, np.float32, [0, 1]),
        (0.0, 65535.0, np.float32, [0, 255]),
    ],
)
def test_deep_pixels_are_scaled_from_the_smallest_usual_range(low, high, dtype, expected):
    data = encoded(Image.fromarray(np.array([[low, high]], dtype)), "TIFF")
    assert read_image(data)[0, :, 0].tolist() == expected


def test_deep_pixels_beyond_every_range_are_rejected():
    with pytest.raises(ValueError, match="65536"):
        read_image(encoded(Image.fromarray(np.array([[0, 65536.0]], np.float32)), "TIFF"))


def test_dark_16_bit_png_is_not_stretched():
    """PNG and PPM always have the range of 16 bits, whatever the largest value."""
    grey = np.array([[0, 100, 257]], np.uint16)
    assert read_image(encoded(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 0, 1]
    assert read_image(b"P5 3 1 65535\n" + grey.astype(">u2").tobytes())[0, :, 0].tolist() == [0, 0, 1]


def test_luma_is_pillows_for_every_kind_of_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    rgb[0, :8] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    np.testing.assert_array_equal(luma(rgb)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize("level, ground", [(127, 255), (128, 0)])
def test_composite_lays_light_images_over_black(level, ground):
    """Light means over 127 on average, weighted by alpha."""
    rgba = np.full((4, 4, 4), level, np.uint8)
    rgba[..., 3] = 100
    rgba[0] = 0
    blended = (level * 100 + ground * 155 + 127) // 255
    got = composite(rgba)
    assert got.shape == (4, 4, 3) and (got[0] == ground).all() and (got[1:] == blended).all()
    np.testing.assert_array_equal(composite(rgba, grey=True), got[..., :1])


def test_composite_weighs_by_alpha_and_luma():
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 0] = (0, 255, 0, 200)  # luma 150
    rgba[0, 1] = (0, 0, 0, 20)
    assert composite(rgba)[0, 0].tolist() == [0, 200, 0]  # over black: mean luma 136
    rgba[0, 1, 3] = 255
    assert composite(rgba)[0, 0].tolist() == [55, 255, 55]  # over white: mean luma 66


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_orientation_of_an_array_is_pillows(orientation):
    from PIL import ImageOps

    stored = photo(5, 8)
    tagged = Image.open(io.BytesIO(encoded(stored, exif=exif(orientation))))
    upright = apply_orientation(stored, orientation)
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(tagged)))
    assert exif_orientation(tagged) == orientation and upright.flags.c_contiguous


def test_orientation_is_upright_without_exif():
    assert exif_orientation(Image.new("L", (2, 2))) == 1


def test_open_image_names_the_image_and_reports_errors_of_the_block():
    with pytest.raises(ValueError, match=r"^image: empty"), open_image(b""):
        pass
    with pytest.raises(ValueError, match=r"^x\.png: .*\(first\)$"), open_image(encoded(photo(3, 3)), "x.png"):
        raise RuntimeError("first\nsecond")
    with pytest.raises(ValueError, match=r"^x: .*memory"), open_image(encoded(photo(3, 3)), "x"):
        raise MemoryError


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP"])
def test_usual_formats_are_recognised_by_their_first_bytes(file_format, monkeypatch):
    """Only one decoder is tried for JPEG and PNG."""
    formats = []
    original = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, formats_=None, **k: formats.append(k["formats"]) or original(file, **k)
    )
    read_image(encoded(photo(4, 4), file_format))
    assert formats == [None if file_format == "BMP" else (file_format,)]


def test_to_pixels_of_one_bit_and_grey_images_has_one_channel():
    assert to_pixels(Image.new("1", (3, 2), 1)).tolist() == [[[255]] * 3] * 2
    assert to_pixels(Image.new("L", (3, 2), 7)).shape == (2, 3, 1)
    assert to_pixels(Image.new("LA", (3, 2), (7, 255))).shape == (2, 3, 1)
    assert to_pixels(Image.new("RGB", (3, 2), (7, 8, 9))).shape == (2, 3, 3)
