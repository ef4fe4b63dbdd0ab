"""A short Python file that brings images to the pixels of an exported network, with NumPy and Pillow alone."""

from zoo.checkpoint import Card
from zoo.data.images import polarity as drawings
from zoo.data.images.preprocess import Preprocess

#: The words by which a file of this kind is known.
WRITTEN_BY = "Written by `zoo export`."

HEAD = '''\
"""Preprocessing of {name}: NumPy and Pillow alone. Written by `zoo export`.

preprocess(file) returns the pixels that an exported network (ONNX, StableHLO) takes,
uint8 {shape}; normalise(pixels) the floats that bare weights take.
It reads files of 8 bits per channel{deep}.
"""

import numpy as np
from PIL import Image, ImageOps

SIZE, BOX = {size}, {resize}  # (height, width) of the input, and of the box that images are resized to
MEAN = np.array({mean}, np.float32)  # per channel, of pixels in [0, 1]
STD = np.array({std}, np.float32)
FILL = {fill}  # background where an image does not fill the input


def preprocess(file):
    x = decode(ImageOps.exif_transpose(Image.open(file)))
{convert}    (h, w), (rows, columns) = x.shape[:2], BOX
{geometry}
    picture = Image.fromarray(x[..., 0] if x.shape[2] == 1 else np.ascontiguousarray(x))
    method = Image.Resampling.{interpolation}
    x = np.asarray(picture.resize((columns, h), method).resize((columns, rows), method)).reshape(rows, columns, -1)
    (h, w) = min(rows, BOX[0], SIZE[0]), min(columns, BOX[1], SIZE[1])
    top, left = round((rows - h) / 2), round((columns - w) / 2)
    pixels = np.full((*SIZE, {count}), FILL, np.uint8)
    y, z = (SIZE[0] - h) // 2, (SIZE[1] - w) // 2
    pixels[y : y + h, z : z + w] = x[top : top + h, left : left + w]
    return pixels


def normalise(pixels):
    return (pixels.astype(np.float32) / 255 - MEAN) / STD


def decode(image):  # -> uint8 [h, w, 1 or 3]; transparent images are laid over white, light ones over black
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "F" or image.mode.startswith("I"):
{deep_code}
    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return np.asarray(image.convert("L" if grey else "RGB")).reshape(image.height, image.width, -1)
    rgba = np.asarray(image.convert("RGBA"))
    alpha, luma = rgba[..., 3:].astype(int), to_grey(rgba[..., :3]).astype(int)
    ground = 0 if (luma * alpha).sum() > 127 * alpha.sum() > 0 else 255
    rgb = (rgba[..., :3] * alpha + ground * (255 - alpha) + 127) // 255
    return rgb[..., : 1 if grey else 3].astype(np.uint8)


def to_grey(x):
    return x if x.shape[2] == 1 else np.asarray(Image.fromarray(np.ascontiguousarray(x)).convert("L"))[..., None]
'''

GEOMETRY = {
    "crop": """\
    if h * columns >= w * rows:  # cover the box
        rows = max(rows, columns * h // w)
    else:
        columns = max(columns, rows * w // h)""",
    "pad": """\
    if h * columns >= w * rows:  # fit inside the box
        columns = max(1, round(rows * w / h))
    else:
        rows = max(1, round(columns * h / w))""",
    "squash": "    # both sides become those of the box",
}

LEVELS = """

def levels(x):  # background (median of the border), darkest and lightest level
    grey = to_grey(x)[..., 0]
    width = max(1, min(grey.shape) // 20)
    inner = np.zeros(grey.shape, bool)
    inner[width : grey.shape[0] - width, width : grey.shape[1] - width] = True
    return float(np.median(grey[~inner])), float(grey.min()), float(grey.max()), grey[~inner]


"""

INVERT = """\
def adapt(x):  # invert images whose border is clearly {other}
    ground, low, high, _ = levels(x)
    return 255 - x if {condition} else x
"""

ADAPT = """\
def adapt(x):  # drawings: bring background, contrast and margins to those of the training images
    x = {before}x
    ground, low, high, border = levels(x)
    if ground - low > high - ground:  # dark ink
        x, ground, high, border = 255 - x, 255 - ground, 255 - low, 255.0 - border
    if ground > {tolerance}:
        noise = min(3 * float(np.median(np.abs(border - ground))), (high - ground) / 4)
        contrast = max(high - ground - noise, {contrast})
        steps = (np.arange(256) - (ground + noise)) * (255.0 / contrast)
        x = np.rint(np.clip(steps, 0, 255)).astype(np.uint8)[x]
    ink = (x > {ink}).any(axis=2)
    if not ink.any():
        return {before}x
    (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis=a))[[0, -1]].tolist() for a in (1, 0))
    h, w = bottom + 1 - top, right + 1 - left
    if max(h, w) >= {min_extent} * {extent} * max(x.shape[:2]):
        return {before}x
    side = max(round(max(h, w) / {extent}), max(h, w))
    framed = np.zeros((side, side, x.shape[2]), np.uint8)
    y, z = (side - h) // 2, (side - w) // 2
    framed[y : y + h, z : z + w] = x[top : top + h, left : left + w]
    return {before}framed
"""


def preprocess_file(card: Card, name: str) -> str:
    """Return the text of a Python file with `preprocess(file)` and `normalise(pixels)` for a card.

    Its pixels are those of `zoo.preprocess(file, card, normalised=False)`, except that it refuses files of more than 8
    bits per channel unless the card knows their value of white.

    Args:
        card: the card.
        name: name of the exported file.
    """
    how = card.preprocess
    height, width, count = how.input_shape
    text = HEAD.format(
        name=name,
        shape=f"[{height}, {width}, {count}] in the order {how.channels}",
        deep="" if how.white is None else f"; in deeper ones white is {how.white:g}",
        size=how.size,
        resize=how.resize,
        mean=list(how.mean),
        std=list(how.std),
        fill=how.fill,
        convert=_convert(how),
        geometry=GEOMETRY[how.resize_mode],
        interpolation=how.interpolation.upper(),
        count=count,
        deep_code=_deep(how),
    )
    return text if how.polarity is None else text + LEVELS + _adapt(how)


def _convert(how: Preprocess) -> str:
    lines = {"L": "    x = to_grey(x)\n", "RGB": "", "BGR": "    x = x[..., ::-1]\n"}[how.channels]
    return lines + ("    x = adapt(x)\n" if how.polarity is not None else "")


def _deep(how: Preprocess) -> str:
    if how.white is None:
        return '        raise ValueError("save the file with 8 bits: which value of its pixels is white is unknown")'
    scaled = f"np.rint(np.clip(np.asarray(image) * (255.0 / {how.white!r}), 0, 255))"
    return f"        return {scaled}.astype(np.uint8)[..., None]"


def _adapt(how: Preprocess) -> str:
    light_on_dark = how.polarity == "light-on-dark"
    if how.ink_extent is None:
        lighter = f"ground > {drawings.LIGHT} and ground - low > high - ground"
        darker = f"ground < {drawings.DARK} and high - ground > ground - low"
        return INVERT.format(other="light" if light_on_dark else "dark", condition=lighter if light_on_dark else darker)
    return ADAPT.format(
        before="" if light_on_dark else "255 - ",
        tolerance=drawings.GROUND_TOLERANCE,
        contrast=drawings.MIN_CONTRAST,
        ink=drawings.INK_CONTRAST,
        min_extent=repr(drawings.MIN_EXTENT),
        extent=repr(how.ink_extent),
    )
