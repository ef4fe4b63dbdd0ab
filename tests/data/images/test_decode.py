import io
import os
import struct
import tracemalloc
import zlib
from functools import lru_cache

import numpy as np
import pytest
from photos import encoded, exif, photo, scene, stroke
from PIL import Image

from zoo.data.images.decode import (
    UNREAD_FORMATS,
    apply_orientation,
    composite,
    decode_images,
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
    [  # ranges that cannot be mistaken
        (0, 255, np.int32, [0, 255]),
        (0, 128, np.int32, [0, 128]),
        (0, 65535, np.int32, [0, 255]),
        (0, 32768, np.int32, [0, 128]),  # 127.5, rounded to even
        (0, 2**31 - 1, np.int32, [0, 255]),
        (0.0, 1.0, np.float32, [0, 255]),
        (0.25, 0.5, np.float32, [64, 128]),  # 63.75 and 127.5, rounded to even
        (-0.01, 1.02, np.float32, [0, 255]),
        (0.0, 255.0, np.float32, [0, 255]),
        (0.0, 260.0, np.float32, [0, 255]),
        (0, 4096, np.uint16, [0, 16]),
        (0, 8, np.uint16, [0, 0]),  # black, whether white is 4095 or 65535
    ],
)
def test_deep_pixels_of_a_lone_file(low, high, dtype, expected):
    data = encoded(Image.fromarray(np.array([[low, high]], dtype)), "TIFF")
    assert read_image(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "values, dtype",
    [([0, 127], np.int32), ([0, 256], np.int32), ([0.0, 1.5], np.float32), ([0.0, 300.0], np.float32),
     ([-0.1, 1.0], np.float32), ([0, 65536.0], np.float32), ([0, 4095], np.uint16), ([0, 9], np.uint16)],
)  # fmt: skip
def test_deep_pixels_of_an_ambiguous_range_are_refused_without_the_white_of_the_data(values, dtype):
    data = encoded(Image.fromarray(np.array([values], dtype)), "TIFF")
    with pytest.raises(ValueError, match=f"range from {values[0]:g} to {values[1]:g}".replace("+", r"\+")):
        read_image(data)
    if values[0] == 0:
        assert read_image(data, white=131071.0)[0, 1, 0] == round(values[1] * 255 / 131071)
        assert read_image(data, white=values[1])[0].ravel().tolist() == [0, 255]


@pytest.mark.parametrize("levels", [[0, 100, 257], [0, 2000, 4095]])
def test_16_bit_files_that_may_hold_12_bits_need_the_white_of_the_data(levels):
    grey = np.array([levels], np.uint16)
    pgm = b"P5 3 1 65535\n" + grey.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(grey)), pgm, encoded(Image.fromarray(grey), "TIFF")):
        with pytest.raises(ValueError, match="4095"):
            read_image(data)
        for white in (4095, 65535):
            expected = [round(level * 255 / white) for level in levels]
            assert read_image(data, white)[0, :, 0].tolist() == expected


def test_8_bit_files_do_not_depend_on_white():
    data = encoded(Image.fromarray(np.array([[0, 1, 9]], np.uint8)))
    assert all(read_image(data, white)[0, :, 0].tolist() == [0, 1, 9] for white in (None, 1, 4095))


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
    (tried,) = formats
    assert len(tried) > 20 if file_format == "BMP" else tried == (file_format,)
    assert not UNREAD_FORMATS & set(tried)


def test_to_pixels_of_one_bit_and_grey_images_has_one_channel():
    assert to_pixels(Image.new("1", (3, 2), 1)).tolist() == [[[255]] * 3] * 2
    assert to_pixels(Image.new("L", (3, 2), 7)).shape == (2, 3, 1)
    assert to_pixels(Image.new("LA", (3, 2), (7, 255))).shape == (2, 3, 1)
    assert to_pixels(Image.new("RGB", (3, 2), (7, 8, 9))).shape == (2, 3, 3)


# --- everything that shows an image -----------------------------------------------------------------------------------


def as_pil(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


SAME_IMAGE = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16),
    "uint16, full range": lambda x: x.astype(np.uint16) * 257,
    "float 0..255": lambda x: x.astype(np.float32),
    "float 0..1": lambda x: x / 255,
    "a hair over 1": lambda x: np.where(x == 255, 1.02, x / 255),
    "a hair under 0": lambda x: np.where(x == 0, -1e-9, x / 255),
    "half": lambda x: (x / 255).astype(np.float16),
    "longdouble": lambda x: (x / 255).astype(np.longdouble),
    "channels first": lambda x: x.transpose(2, 0, 1)[None],
    "stack": lambda x: x[None],
    "rgba": lambda x: np.concatenate([np.repeat(x[..., :1], 3, -1) if x.shape[-1] == 1 else x,
                                      np.full_like(x[..., :1], 255)], -1),
    "pil": as_pil,
    "pil rgba": lambda x: as_pil(x).convert("RGBA"),
    "pil float": lambda x: Image.fromarray((x[..., 0] / 255).astype(np.float32)),
    "pil 16 bit": lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
    "pil int": lambda x: Image.fromarray(x[..., 0].astype(np.int32)),
    "png bytes": lambda x: encoded(as_pil(x)),
    "bytearray": lambda x: bytearray(encoded(as_pil(x))),
    "file": lambda x: io.BytesIO(encoded(as_pil(x))),
    "list": lambda x: [x],
    "nested": lambda x: [[x[None]]],
}  # fmt: skip


def grey_and_colour():
    image = np.random.default_rng(3).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    image[0, 0], image[0, 1] = 255, 0
    return image[..., :1], image


@pytest.mark.parametrize("way", SAME_IMAGE)
def test_every_way_to_hand_over_an_image_gives_the_same_pixels(way):
    grey, colour = grey_and_colour()
    for image in [grey] if way in ("pil float", "pil 16 bit", "pil int") else [grey, colour]:
        (got,) = decode_images(SAME_IMAGE[way](image))
        want = np.repeat(image, got.shape[-1] // image.shape[-1], -1)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint16", "bool"])
def test_jax_arrays(dtype):
    import jax.numpy as jnp

    grey, _ = grey_and_colour()
    binary = (grey > 127) * np.uint8(255)
    scale = 255 if "float" in dtype or dtype == "bool" else 1
    (got,) = decode_images(jnp.asarray(binary // scale, dtype))
    np.testing.assert_array_equal(got, binary)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pil_images_of_every_mode_are_as_their_files(mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(encoded(Image.fromarray(scene()), "PNG", exif=exif)))
    stored.load()
    converted = (stored.convert("RGBA") if mode == "RGBa" else stored).convert(mode)
    (got,) = decode_images(converted)
    plain = Image.fromarray(scene())
    want = np.asarray((plain.convert("RGBA") if mode == "RGBa" else plain).convert(mode).convert("RGB"))
    if orientation == 6:  # the camera was turned: rotate clockwise
        want = np.rot90(want, -1)
    np.testing.assert_array_equal(got if got.shape[-1] == 3 else np.repeat(got, 3, -1), want)


def test_several_images_of_different_kinds_and_sizes():
    grey, colour = grey_and_colour()
    large = np.repeat(np.repeat(colour, 2, 0), 3, 1)
    got = decode_images([grey, large / 255, [encoded(as_pil(colour)), np.stack([grey, grey])], as_pil(grey)])
    for image, want in zip(got, [grey, large, colour, grey, grey, grey], strict=True):
        np.testing.assert_array_equal(image, want)
    assert decode_images([]) == []
    assert [image.shape for image in decode_images(np.zeros((20, 8, 9)))] == [(8, 9, 1)] * 20
    assert [image.shape for image in decode_images(np.zeros((1, 8, 9)))] == [(8, 9, 1)]
    for shape, words in (
        ((4, 28, 28), "for 4 grey images write x[..., None], for one image with 4 channels x.transpose(1, 2, 0)"),
        ((28, 28, 2), "for 28 grey images write x[..., None], for one image x[..., :1]"),
    ):
        with pytest.raises(ValueError) as caught:
            decode_images(np.zeros(shape, np.uint8))
        assert words in str(caught.value) and str(shape) in str(caught.value)
    assert len(decode_images(np.zeros((4, 28, 28), np.uint8)[..., None])) == 4
    assert decode_images(np.zeros((4, 28, 28), np.uint8).transpose(1, 2, 0))[0].shape == (28, 28, 3)


BINARY = np.random.default_rng(5).integers(0, 2, (5, 8, 9))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.uint64, np.float32])
def test_zeros_and_ones_are_black_and_white_for_a_model_of_such_images(dtype):
    for x in (BINARY.astype(dtype), [image.astype(dtype) for image in BINARY], BINARY[0].astype(dtype)):
        got = np.stack(decode_images(x, white=1))[..., 0]
        np.testing.assert_array_equal(got, BINARY[: len(got)] * 255)
    full = (BINARY * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.stack(decode_images(full, white=1))[..., 0], full)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_zeros_and_ones_are_ambiguous_for_other_models(dtype):
    x = BINARY.astype(dtype)
    for images in (x, x[0], list(x)):
        with pytest.raises(ValueError, match="0 to 1"):
            decode_images(images)
    with pytest.raises(ValueError, match=r"astype\(bool\)"):
        decode_images(x)
    beside = decode_images([x[0], np.full((8, 9), 200, dtype)])  # a nearly black image among others
    np.testing.assert_array_equal(beside[0][..., 0], BINARY[0])
    assert not np.any(decode_images(x * 0))  # black in any range


@pytest.mark.parametrize(
    "values, white, expected",
    [
        ([0, 2048, 4095], 4095, [0, 128, 255]),
        ([0, 1023], 4095, [0, 64]),
        ([0.0, 300.0], 511, [0, 150]),
        ([0, 100.0], 255, [0, 100]),
        ([0, 0.4], 511, [0, 0]),
    ],
)
def test_the_white_of_the_training_data_scales_arrays(values, white, expected):
    (got,) = decode_images(np.array([values]), white=white)
    assert got.ravel().tolist() == expected


@pytest.mark.parametrize(
    "values, white, named",
    [
        ([0, 5000], 4095, "4095"), ([0.0, 0.5], 255, "0..255"), ([0, 4000], None, "0 to 4000"),
        ([0, 100], None, "0 to 100"), ([0.0, 100.0], None, "0 to 100"), ([-1.0, 1.0], None, "-1 to 1"),
        ([0.0, 300.0], None, "0 to 300"), ([-1, 200], None, "-1 to 200"), ([0, np.nan], None, "NaN"),
        ([0, np.inf], None, "infinity"), ([0.0, 2e9], 4095, "4095"),
    ],
)  # fmt: skip
def test_arrays_of_an_ambiguous_range_are_refused(values, white, named):
    with pytest.raises(ValueError) as caught:
        decode_images(np.array([values]), white=white)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_float_images_of_two_ranges_are_not_mixed():
    images = [np.full((4, 4), 0.5), np.full((4, 4), 200.0)]
    with pytest.raises(ValueError, match=r"0\.5, others up to 200"):
        decode_images(images)
    with pytest.raises(ValueError, match=r"0\.5, others up to 200"):
        decode_images(images[::-1])
    assert decode_images([images[1], images[0] * 0])[1].max() == 0


@pytest.mark.parametrize(
    "images, named",
    [
        (np.zeros((3, 8, 8)), "(3, 8, 8)"),
        (np.zeros((4, 8, 3)), "(4, 8, 3)"),
        (np.zeros(5), "(5,)"),
        (np.zeros((2, 8, 8, 5)), "(2, 8, 8, 5)"),
        (np.zeros((1, 2, 8, 8, 3)), "(1, 2, 8, 8, 3)"),
        (np.zeros((0, 8)), "(0, 8)"),
        (np.zeros((2, 0, 8, 3)), "(2, 0, 8, 3)"),
        (np.full((8, 8), "a"), "<U1"),
        (np.zeros((8, 8), "datetime64[s]"), "datetime64"),
        (np.zeros((8, 8), complex), "complex128"),
        (np.array([None, "x"], object), "object"),
        (np.zeros((8, 8), [("a", "f4")]), "'a'"),
        (None, "NoneType"),
        ({"image": 3}, "dict"),
        ((n for n in range(3)), "generator"),
        ([1, 2], "()"),
        (io.StringIO("text"), "rb"),
    ],
)
def test_what_is_no_image_is_one_line(images, named):
    with pytest.raises(ValueError) as caught:
        decode_images(images)
    assert named in str(caught.value) and "\n" not in str(caught.value)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_large_transparent_images_are_composited_by_bands(mode):
    """The result is that of the formula, computed at once, and the ground is chosen over the whole image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1200, 1000, 4)).astype(np.uint8)
    pixels[900:, :, :3] //= 8  # the last bands are dark, all together are light or dark by all of them
    image = Image.fromarray(pixels).convert(mode)
    rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    grey = np.asarray(image.convert("RGBA").convert("RGB").convert("L")).astype(np.int64)
    alpha = rgba[..., 3:]
    ground = 0 if (grey * alpha[..., 0]).sum() > 127 * alpha.sum() else 255
    want = (rgba[..., :3] * alpha + ground * (255 - alpha) + 127) // 255
    want = want[..., :1] if mode == "LA" else want
    np.testing.assert_array_equal(to_pixels(image), want)
    if mode == "RGBA":
        np.testing.assert_array_equal(composite(pixels), want)


def test_a_large_transparent_image_takes_little_more_memory_than_its_pixels():
    image = Image.new("RGBA", (4000, 4000), (200, 0, 0, 100))
    data = encoded(image)
    assert len(data) < 200_000
    tracemalloc.start()
    pixels = read_image(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.shape == (4000, 4000, 3) and peak < 3 * pixels.nbytes


def test_luma_of_a_large_image_is_computed_by_blocks():
    rgb = np.random.default_rng(0).integers(0, 256, (1300, 900, 3), np.uint8)
    np.testing.assert_array_equal(luma(rgb)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


# --- files that must not be decoded -----------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
OTHERS = {
    "EPS": EPS, "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60), "GRIB": b"GRIB" + bytes(3) + b"\1" + bytes(40),
    "BUFR": b"BUFR" + bytes(40), "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60), "MPEG": b"\0\0\1\xb3\4\0\4" + bytes(20),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_formats_that_run_programs_or_are_only_headers_are_not_opened(name, monkeypatch):
    """Pillow runs Ghostscript for EPS."""
    import subprocess

    for function in ("run", "call", "check_call", "Popen"):
        monkeypatch.setattr(subprocess, function, lambda *_, **__: pytest.fail("runs a program"))
    assert name in UNREAD_FORMATS
    with pytest.raises(ValueError, match=r"^image: is not an image file of a known format"):
        read_image(OTHERS[name])


def test_only_regular_files_of_bounded_size_are_decoded(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(ValueError, match=f"{name}: is a pipe, a socket or a device"):
            read_image(tmp_path / name)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match=r"large\.png: is larger than 1,073,741,824 bytes"):
        read_image(tmp_path / "large.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_names_and_brands_are_printed_on_one_line(tmp_path):
    file = tmp_path / "two\nlines.png"
    file.write_bytes(b"\0\0\0\x18ftypa\x1bv\n" + bytes(20))
    with pytest.raises(ValueError, match=r"two\\nlines\.png: is a a\\x1bv file") as caught:
        read_image(file)
    assert str(caught.value).isprintable()


def tiff(pixels, **tags):
    """Return an uncompressed TIFF of pixels [H, W] or [H, W, 3], with these values of TIFF_TAGS for the usual ones."""
    bits, channels = 8 * pixels.dtype.itemsize, pixels.shape[2] if pixels.ndim == 3 else 1
    if tags.get("planes") == 2:
        pixels = pixels.transpose(2, 0, 1)
    data = pixels.tobytes()
    size = len(data) // channels
    strips = [8 + k * size for k in range(channels)] if tags.get("planes") == 2 else [8]
    height, width = pixels.shape[-2:] if tags.get("planes") == 2 else pixels.shape[:2]
    values = {
        "subfile": [0], "width": [width], "height": [height], "bits": [bits] * channels, "compression": [1],
        "photometric": [2 if channels == 3 else 1], "offsets": strips, "channels": [channels], "rows": [height],
        "lengths": [len(data) // len(strips)] * len(strips), "planes": [1], "type": [1],
    } | {name: [value] for name, value in tags.items()}  # fmt: skip
    directory, more = struct.pack("<H", len(values)), b""
    behind = 8 + len(data) + 2 + 12 * len(values) + 4
    for name, number in TIFF_TAGS.items():
        cell = struct.pack(f"<{len(values[name])}I", *values[name])
        place = cell if len(cell) == 4 else struct.pack("<I", behind + len(more))
        more += cell if len(cell) > 4 else b""
        directory += struct.pack("<HHI", number, 4, len(values[name])) + place
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4) + more


TIFF_TAGS = {
    "subfile": 254, "width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offsets": 273,
    "channels": 277, "rows": 278, "lengths": 279, "planes": 284, "type": 339,
}  # fmt: skip
DEEP = scene().astype(np.uint16) * 257
ODD_TIFF = {  # file, and the grey or RGB levels that it shows, or what has to be said of it
    "8 bits": (tiff(scene()), scene()),
    "8 bits in planes": (tiff(scene(), planes=2), scene()),
    "white is 0": (tiff(255 - scene()[..., 0], photometric=0), scene()[..., :1]),
    "16 bits": (tiff(DEEP[..., 0]), scene()[..., :1]),
    "16 bits in colour": (tiff(DEEP), scene()),
    "white is 0 of 16 bits": (tiff(65535 - DEEP[..., 0], photometric=0), "white as 0, with 16 bits"),
    "white is 0 of floats": (tiff(DEEP[..., 0].astype(np.float32), photometric=0, type=3), "white as 0, with 32 bits"),
    "16 bits in planes": (tiff(DEEP, planes=2), "in planes"),
    "signed": (tiff(scene()[..., 0].astype(np.int8), type=2), "signed"),
    "thumbnail": (tiff(scene(), subfile=1), "thumbnail"),
    "64-bit floats": (tiff(DEEP[..., 0].astype(np.float64), type=3), "type that cannot be decoded"),
}


@pytest.mark.parametrize("name", ODD_TIFF)
def test_tiff_files_are_decoded_as_they_are_meant_or_refused(name):
    data, meant = ODD_TIFF[name]
    if not isinstance(meant, str):
        assert np.array_equal(read_image(data), meant)
        return
    with pytest.raises(ValueError, match=f"^image: .*{meant}.*convert it to"):
        read_image(data)
    if "cannot be decoded" not in meant:
        with Image.open(io.BytesIO(data)) as image, pytest.raises(ValueError, match=meant):
            decode_images(image)
