import dataclasses
import io
import json
import struct
import subprocess
import sys
import zlib
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from zoo.data.images.decode import luma, read_image
from zoo.data.images.measure import preprocess_for
from zoo.data.images.polarity import convert_polarity
from zoo.data.images.preprocess import (
    CHANNELS,
    Preprocess,
    image_to_input,
    images_to_input,
    normalise,
)
from zoo.data.images.resample import INTERPOLATIONS, SMALL_IMAGE
from zoo.data.sources.open import ArraySplit, Dataset, from_arrays


def plan(size, resize=None, channels="L", **fields):
    count = len(channels)
    fields = {"mean": (0.5,) * count, "std": (0.25,) * count, **fields}
    return Preprocess(size=size, resize=resize or size, channels=channels, **fields)


def encode(picture, file_format, **options):
    out = io.BytesIO()
    picture.save(out, file_format, **options)
    return out.getvalue()


def scene(height=20, width=30):
    """A smooth RGB picture in which no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), 255 - 255 * x / (width - 1)], -1).astype(np.uint8)


def stroke(size=24):
    """Light ink on black: an L, which no flip or quarter turn maps to itself."""
    image = np.zeros((size, size, 1), np.uint8)
    image[size // 6 : -size // 6, size // 3 : size // 3 + 3] = 255
    image[-size // 6 - 3 : -size // 6, size // 3 : -size // 5] = 255
    return image


# --- the record -------------------------------------------------------------------------------------------------------


def test_json_round_trip_and_hash():
    first = plan((32, 28), (40, 36), "RGB", resize_mode="pad", polarity="dark-on-light")
    again = Preprocess(**json.loads(json.dumps(dataclasses.asdict(first))))
    assert again == first and hash(again) == hash(first)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (0, 3)},
        {"size": (3,)},
        {"resize": (3, 2.5)},
        {"resize_mode": "stretch"},
        {"interpolation": "linear"},
        {"channels": "RGBA"},
        {"polarity": "dark"},
        {"mean": (0.5,) * 3},
        {"std": (0.0,)},
    ],
)
def test_wrong_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        plan(**{"size": (3, 3), "resize": (3, 3), **fields})


def test_fill_is_the_background_or_the_mean_colour():
    assert plan((3, 3), polarity="light-on-dark").fill == (0,)
    assert plan((3, 3), polarity="dark-on-light", channels="RGB").fill == (255, 255, 255)
    assert plan((3, 3), channels="RGB", mean=(0.485, 0.456, 0.406)).fill == (124, 116, 104)


def test_import_is_light():
    code = (
        "import sys, zoo.data.images.preprocess, zoo.data.sources.open, zoo.data.loader;"
        "heavy = {'jax', 'PIL', 'sklearn', 'tensorflow_datasets', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- files ------------------------------------------------------------------------------------------------------------

COLOUR = {  # encoded bytes, and how far the decoded colours may be off
    "png": (lambda p: encode(p, "PNG"), 0),
    "bmp": (lambda p: encode(p, "BMP"), 0),
    "tiff": (lambda p: encode(p, "TIFF"), 0),
    "webp lossless": (lambda p: encode(p, "WEBP", lossless=True), 0),
    "jpeg": (lambda p: encode(p, "JPEG", quality=95), 12),
    "jpeg progressive": (lambda p: encode(p, "JPEG", quality=95, progressive=True), 12),
    "jpeg cmyk": (lambda p: encode(p.convert("CMYK"), "JPEG", quality=95), 12),
    "tiff cmyk": (lambda p: encode(p.convert("CMYK"), "TIFF"), 2),
    "webp": (lambda p: encode(p, "WEBP", quality=95), 24),
    "gif": (lambda p: encode(p.quantize(256), "GIF"), 24),
    "png palette": (lambda p: encode(p.quantize(256), "PNG"), 24),
    "png opaque alpha": (lambda p: encode(p.convert("RGBA"), "PNG"), 0),
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
    "png": lambda g: encode(Image.fromarray(g), "PNG"),
    "png 16 bit": lambda g: encode(Image.fromarray(g.astype(np.uint16) * 257), "PNG"),
    "tiff 16 bit": lambda g: encode(Image.fromarray(g.astype(np.uint16) * 257), "TIFF"),
    "tiff 32 bit": lambda g: encode(Image.fromarray(g.astype(np.int32) * 257), "TIFF"),
    "tiff float 0..1": lambda g: encode(Image.fromarray(g.astype(np.float32) / 255), "TIFF"),
    "tiff float 0..255": lambda g: encode(Image.fromarray(g.astype(np.float32)), "TIFF"),
    "pgm": lambda g: encode(Image.fromarray(g), "PPM"),
    "pgm 16 bit": lambda g: b"P5 20 16 65535\n" + (g.astype(">u2") * 257).tobytes(),
    "png opaque alpha": lambda g: encode(Image.fromarray(g).convert("LA"), "PNG"),
    "jpeg": lambda g: encode(Image.fromarray(g), "JPEG", quality=100),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_files(kind):
    got = read_image(GREY[kind](ramp()))
    assert got.dtype == np.uint8 and got.shape == (16, 20, 1)
    assert np.abs(got[..., 0].astype(int) - ramp()).max() <= (3 if kind == "jpeg" else 0)


def test_one_bit_and_grey_palette():
    bits = np.zeros((9, 7), bool)
    bits[2:5, 1:4] = True
    assert np.array_equal(read_image(encode(Image.fromarray(bits), "PNG")), bits[..., None] * np.uint8(255))
    palette = Image.fromarray(ramp()).convert("P")
    assert np.array_equal(luma(read_image(encode(palette, "PNG")))[..., 0], ramp())


def test_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((4, 5), level, np.uint8)) for level in (50, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(luma(read_image(data)), np.full((4, 5, 1), 50))


@pytest.mark.parametrize("ink, ground", [(0, 255), (60, 255), (255, 0), (200, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_what_the_ink_stands_out_from(mode, ink, ground):
    alpha = stroke()[..., 0]
    if mode == "P":
        picture = Image.fromarray((alpha > 0).astype(np.uint8))
        picture.putpalette([ground if ground else 7, 7, 7, ink, ink, ink])
        data = encode(picture, "PNG", transparency=0)
    else:
        grey = Image.fromarray(np.full_like(alpha, ink))
        bands = (grey, Image.fromarray(alpha)) if mode == "LA" else (grey, grey, grey, Image.fromarray(alpha))
        data = encode(Image.merge(mode, bands), "PNG")
    got = read_image(data)
    assert got.shape[-1] == (1 if mode == "LA" else 3)
    assert (got[alpha == 0] == ground).all() and (got[alpha == 255] == ink).all()


def test_partial_transparency_is_mixed_and_nothing_visible_is_white():
    half = np.zeros((2, 2, 4), np.uint8)
    half[..., 3] = 128
    assert (read_image(encode(Image.fromarray(half), "PNG")) == 127).all()
    assert (read_image(encode(Image.fromarray(half * 0), "PNG")) == 255).all()


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
        got = read_image(encode(stored, file_format, exif=exif, **options))
        expected = np.asarray(want).reshape(got.shape)
        assert np.abs(got.astype(int) - expected).max() < 12, file_format


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_spoil_an_image():
    data = encode(Image.fromarray(scene()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_image(data).shape == (20, 30, 3)


def test_path_bytes_and_file_are_the_same(tmp_path):
    path = tmp_path / "bild mit ümlaut.png"
    Image.fromarray(scene()).save(path)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            assert np.array_equal(read_image(source), scene())


def header_only(width, height):
    """A PNG that promises so many pixels and holds none."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9))))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@lru_cache(maxsize=1)
def malformed():
    photo = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    damaged = bytearray(encode(Image.fromarray(scene()), "PNG"))
    damaged[60] ^= 0xFF
    negative = encode(Image.fromarray(np.full((4, 4), -1.0, np.float32)), "TIFF")
    nan = encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    huge = encode(Image.fromarray(np.full((4, 4), 1e9, np.float32)), "TIFF")
    return {
        "empty.jpg": (b"", "empty file"),
        "text.png": (b"hello, I am a text file", "not an image"),
        "cut.jpg": (photo[: len(photo) // 2], "truncated"),
        "cut.png": (encode(Image.fromarray(scene()), "PNG")[:70], "damaged"),
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


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    "source, target", [((9, 7), (16, 5)), ((28, 28), (32, 32)), ((33, 20), (11, 13)), ((5, 40), (7, 9))]
)
def test_a_stack_gives_pillows_own_bits(source, target, interpolation, fit):
    rng = np.random.default_rng(0)
    for channels in ("L", "RGB"):
        images = rng.integers(0, 256, (5, *source, len(channels)), np.uint8)
        images[0] = rng.choice(np.array([0, 255], np.uint8), images[0].shape)  # overshoots are clipped
        assert np.prod(source) * len(channels) <= SMALL_IMAGE
        preprocess = plan(target, channels=channels, interpolation=interpolation, resize_mode=fit)
        got = images_to_input(images, preprocess)
        assert got.shape == (5, *target, len(channels)) and got.dtype == np.uint8
        assert np.array_equal(got, images_to_input(list(images), preprocess))
        assert np.array_equal(got[2], image_to_input(images[2], preprocess))
        if fit == "squash":
            method = Image.Resampling[interpolation.upper()]
            for row, image in zip(got, images, strict=True):
                picture = Image.fromarray(image.squeeze(-1) if channels == "L" else image)
                want = picture.resize((target[1], source[0]), method).resize(target[::-1], method)
                assert np.array_equal(row, np.asarray(want).reshape(row.shape))


def test_large_images_give_the_same_bits_alone_and_in_a_stack():
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), np.uint8)
    preprocess = plan((64, 64), (72, 72), "RGB")
    assert np.array_equal(
        images_to_input(images, preprocess), np.stack([image_to_input(i, preprocess) for i in images])
    )


def test_many_are_done_in_chunks_that_do_not_show():
    images = np.random.default_rng(0).integers(0, 256, (2500, 28, 28, 1), np.uint8)
    preprocess = plan((32, 32), resize_mode="crop")
    got = images_to_input(images, preprocess)
    for i in (0, 2047, 2048, 2499):
        assert np.array_equal(got[i], image_to_input(images[i], preprocess))


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    image = np.zeros((10, 30, 1), np.uint8)
    image[:, 10:20] = 200
    assert (image_to_input(image, plan((10, 10), resize_mode="crop")) == 200).all()
    padded = image_to_input(image, plan((30, 30), resize_mode="pad", polarity="dark-on-light"))
    assert np.array_equal(padded[10:20], image) and (padded[:10] == 255).all() and (padded[20:] == 255).all()
    squashed = image_to_input(image, plan((10, 10), resize_mode="squash", interpolation="nearest"))
    assert np.array_equal(squashed[0, :, 0], image[0, 1::3, 0])


def test_exact_pixels_when_only_padding_or_cropping():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    padded = image_to_input(image, plan((32, 32), (28, 28), polarity="light-on-dark"))
    assert np.array_equal(padded[2:30, 2:30], image) and padded.sum() == image.sum()
    assert np.array_equal(image_to_input(image, plan((20, 24), (28, 28))), image[4:24, 2:26])


@pytest.mark.parametrize("height, width", [(300, 401), (375, 500), (500, 333), (257, 1000)])
def test_resize_256_centre_crop_224_as_torchvision_does(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    short, long = min(height, width), max(height, width)
    scaled = int(256 * long / short)
    new_w, new_h = (scaled, 256) if width > height else (256, scaled)
    method = Image.Resampling.BILINEAR
    resized = Image.fromarray(image).resize((new_w, height), method).resize((new_w, new_h), method)
    left, top = round((new_w - 224) / 2), round((new_h - 224) / 2)
    want = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(image_to_input(image, plan((224, 224), (256, 256), "RGB")), want)


def test_nothing_to_do_is_no_copy():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    assert images_to_input(images, plan((8, 8))) is images


def test_extreme_shapes():
    for shape in ((1, 1, 3), (1, 500, 3), (500, 1, 3)):
        for fit in ("crop", "pad", "squash"):
            assert image_to_input(np.full(shape, 9, np.uint8), plan((8, 6), channels="RGB", resize_mode=fit)).shape == (
                8,
                6,
                3,
            )


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("given", [1, 3, 4])
def test_channels(given, channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, given), np.uint8)
    if given == 4:
        image[..., 3] = 255
    got = image_to_input(image, plan((6, 5), channels=channels))
    assert np.array_equal(got, images_to_input(image[None], plan((6, 5), channels=channels))[0])
    picture = Image.fromarray(image[..., 0] if given == 1 else image[..., :3])
    if channels == "L":
        assert np.array_equal(got[..., 0], np.asarray(picture.convert("L")))
    else:
        rgb = np.asarray(picture.convert("RGB"))
        assert np.array_equal(got, rgb if channels == "RGB" else rgb[..., ::-1])


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)],
)
def test_wrong_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"images must (be uint8|have)"):
        image_to_input(image, plan((4, 4)))


# --- polarity ---------------------------------------------------------------------------------------------------------


def test_what_matches_passes_unchanged():
    image = stroke() // 2 + 3
    assert convert_polarity(image, "light-on-dark") is image
    assert np.array_equal(convert_polarity(255 - image, "dark-on-light"), 255 - image)


@pytest.mark.parametrize("polarity", ["light-on-dark", "dark-on-light"])
@pytest.mark.parametrize("paper, ink", [(255, 0), (0, 255), (230, 40), (120, 20), (90, 200), (140, 255)])
def test_any_ink_on_any_paper_becomes_the_known_kind(paper, ink, polarity):
    want = stroke() if polarity == "light-on-dark" else 255 - stroke()
    image = np.where(stroke() > 0, ink, paper).astype(np.uint8)
    assert np.array_equal(convert_polarity(image, polarity), want)
    assert np.array_equal(convert_polarity(np.repeat(image, 3, -1), polarity), np.repeat(want, 3, -1))


def test_the_grain_of_paper_does_not_become_ink():
    rng = np.random.default_rng(0)
    sheet = np.clip(rng.normal(215, 3, (60, 60, 1)), 0, 255).astype(np.uint8)
    assert convert_polarity(sheet, "light-on-dark").mean() < 25
    assert (convert_polarity(np.full((9, 9, 1), 180, np.uint8), "light-on-dark") == 0).all()
    written = np.where(stroke(60) > 0, 40, sheet).astype(np.uint8)
    got = convert_polarity(written, "light-on-dark")
    assert got[stroke(60) == 0].mean() < 5 and got[stroke(60) > 0].min() > 230


@pytest.mark.parametrize("height, width", [(24, 24), (48, 48), (24, 40), (90, 60)])
def test_ink_on_paper_in_every_kind_of_file_is_seen_as_the_training_data_is(height, width, tmp_path):
    """Dark ink on light paper, as people scan it, becomes light ink on black, as the model knows it."""
    canvas = np.zeros((height, width, 1), np.uint8)
    top, left = (height - 24) // 2, (width - 24) // 2
    canvas[top : top + 24, left : left + 24] = stroke()
    preprocess = plan((32, 32), resize_mode="pad", polarity="light-on-dark")
    want = image_to_input(canvas, preprocess)
    paper = 255 - canvas[..., 0]
    grey = Image.fromarray(paper)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.merge("RGBA", [Image.new("L", grey.size, 0)] * 3 + [Image.fromarray(canvas[..., 0])])
    files = {
        "grey.png": encode(grey, "PNG"),
        "rgb.png": encode(grey.convert("RGB"), "PNG"),
        "rgba.png": encode(grey.convert("RGBA"), "PNG"),
        "clear.png": encode(clear, "PNG"),
        "deep.png": encode(Image.fromarray(paper.astype(np.uint16) * 257), "PNG"),
        "palette.png": encode(grey.convert("P"), "PNG"),
        "turned.jpg": encode(grey.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "pale.png": encode(Image.fromarray((90 + paper.astype(int) * 140 // 255).astype(np.uint8)), "PNG"),
    }
    for name, data in files.items():
        got = image_to_input(read_image(data), preprocess, match_polarity=True)
        assert np.abs(got.astype(int) - want).mean() < (2 if name.endswith("jpg") else 0.6), name


def test_polarity_is_not_touched_unless_asked():
    image = 255 - stroke()
    assert np.array_equal(image_to_input(image, plan((24, 24), polarity="light-on-dark")), image)
    assert np.array_equal(image_to_input(image, plan((24, 24)), match_polarity=True), image)


# --- for the device, and for a data set -------------------------------------------------------------------------------


def test_normalise():
    import jax.numpy as jnp

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    preprocess = Preprocess((3, 4), (3, 4))
    want = (images / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    got = normalise(images, preprocess)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(got, normalise(images.astype(np.float32), preprocess))
    assert normalise(images, preprocess, jnp.bfloat16).dtype == jnp.bfloat16


def data(images):
    labels = np.arange(len(images), dtype=np.int32) % 2
    return Dataset("made", {"train": ArraySplit(images, labels)}, ("a", "b"))


def test_small_grey_images_on_a_common_ground_are_padded():
    images = np.zeros((40, 28, 28, 1), np.uint8)
    images[:, 10:18, 10:18] = np.random.default_rng(0).integers(100, 256, (40, 8, 8, 1))
    got = preprocess_for(data(images), (32, 32))
    assert (got.size, got.resize, got.resize_mode, got.channels) == ((32, 32), (28, 28), "pad", "L")
    assert got.polarity == "light-on-dark"
    padded = images_to_input(images, got) / 255
    assert got.mean == (round(padded.mean(), 4),) and got.std == (round(padded.std(), 4),)
    inverted = preprocess_for(data(255 - images), (32, 32))
    assert inverted.polarity == "dark-on-light" and inverted.fill == (255,)


def test_photographs_are_cropped_and_have_no_polarity():
    images = np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), np.uint8)
    got = preprocess_for(data(images), (32, 32))
    assert (got.size, got.resize, got.resize_mode, got.channels, got.polarity) == (
        (32, 32),
        (32, 32),
        "crop",
        "RGB",
        None,
    )
    np.testing.assert_allclose(got.mean, images_to_input(images, got).mean((0, 1, 2)) / 255, atol=6e-5)
    np.testing.assert_allclose(got.std, images_to_input(images, got).std((0, 1, 2)) / 255, atol=6e-5)


@pytest.mark.parametrize(
    "own, box",
    [((32, 32), (32, 32)), ((24, 30), (24, 30)), ((23, 32), (32, 32)), ((33, 32), (32, 32)), ((8, 8), (32, 32))],
)
def test_when_images_keep_their_pixels(own, box):
    images = np.random.default_rng(0).integers(0, 256, (6, *own, 3), np.uint8)
    assert preprocess_for(data(images), (32, 32)).resize == box


def test_padding_of_photographs_is_their_mean_and_not_part_of_it():
    images = np.full((6, 28, 28, 3), (255, 0, 102), np.uint8)
    got = preprocess_for(data(images), (32, 32))
    assert got.mean == (1.0, 0.0, 0.4) and got.std == (1.0, 1.0, 1.0)
    assert (images_to_input(images, got) == images[0, 0, 0]).all()


def test_a_mixed_ground_is_no_polarity():
    images = np.zeros((40, 8, 8, 1), np.uint8)
    images[:5] = 255
    images[:, 4, 4] = 128
    assert preprocess_for(data(images), (8, 8)).polarity is None
    images[:2] = 0
    assert preprocess_for(data(images), (8, 8)).polarity == "light-on-dark"


def test_differing_sizes_and_a_long_split():
    rng = np.random.default_rng(0)

    class Photos:
        labels = np.zeros(12_345, np.int32)
        asked = None

        def __len__(self):
            return 12_345

        def read(self, indices):
            self.asked = np.asarray(indices)
            return [rng.integers(0, 256, (4 + i % 3, 5, 1 if i % 2 else 3), np.uint8) for i in range(len(indices))]

    photos = Photos()
    got = preprocess_for(Dataset("photos", {"train": photos}, ("a", "b")), (4, 4))
    assert got.channels == "RGB" and got.resize == (4, 4)
    assert len(photos.asked) == 10_000 and photos.asked[-1] >= 12_340 and (np.diff(photos.asked) > 0).all()


def test_no_train_split():
    dataset = from_arrays((np.full((4, 2, 2), 200), [0, 1, 0, 1]), validation=(np.full((2, 2, 2), 200), [0, 1]))
    only = Dataset("made", {"validation": dataset.splits["validation"]}, dataset.class_names)
    with pytest.raises(ValueError, match="no train split"):
        preprocess_for(only, (4, 4))
