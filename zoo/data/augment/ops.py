"""Augmentation on the device: pure functions of a key and a batch that run inside the compiled train step.

A recipe lists its operations as text, in order: `("affine(rotate=10, shift=2)", "cutout(size=8)")`. Operation n draws
the random numbers of example b from `fold_in(fold_in(key, n), index[b])`, where `index` is the position in the global
batch. The result for an example therefore does not depend on the devices and processes that share the batch.

Each operation has two steps: `draw_*` maps one example's key to its random numbers, and a function of images and
numbers applies them. Images are float32 [B, H, W, C] in 0..255, targets float32 [B, K], and `fill` is the background
colour [C] that enters where an image is moved away. Coordinates are (y, x) in pixels; whole numbers are centres of
pixels.

The operations for photographs are in photo.py; this file holds the others and the table of all.

mixup and cutmix combine each example with its neighbour, `index ^ 1`. The stream is shuffled, so the neighbour is
random, and a shard that starts at an even position and has an even length holds both. An example without its neighbour
beside it (the last of an odd batch) is unchanged.
"""

import ast
import inspect
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.photo import colour_jitter, rand_augment, random_erasing, resized_crop, trivial_augment
from zoo.data.augment.pixels import box_mask, sample_bilinear, translate
from zoo.suggest import did_you_mean

# --- moving pixels ----------------------------------------------------------------------------------------------------


def draw_translation(key: Array, pixels: int) -> Array:
    """Draw a translation (down, right), int32 [2], each uniform on -pixels..pixels."""
    return jax.random.randint(key, (2,), -pixels, pixels + 1)


def pad_crop(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pad: int = 4
) -> tuple[Array, Array]:
    """Pad by `pad` pixels on every side and crop at random, as for CIFAR (Lin et al. 2013, arXiv:1312.4400).

    He et al. 2015 (arXiv:1512.03385) pad with zeros after subtracting the mean; for photographs, `fill` is that mean.
    """
    return translate(images, jax.vmap(lambda key: draw_translation(key, pad))(keys), fill, pad), targets


def shift(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pixels: int = 2
) -> tuple[Array, Array]:
    """Translate by a whole number of pixels, up to `pixels` in each direction (LeCun et al. 1998).

    Same as `pad_crop`, under its usual name for digits.
    """
    return translate(images, jax.vmap(lambda key: draw_translation(key, pixels))(keys), fill, pixels), targets


def draw_flip(key: Array, p: float) -> Array:
    """Draw a bool that is True with probability p."""
    return jax.random.bernoulli(key, float(p))


def flip(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, p: float = 0.5
) -> tuple[Array, Array]:
    """Mirror horizontally with probability p (Krizhevsky et al. 2012). Not for digits or letters."""
    flipped = jax.vmap(lambda key: draw_flip(key, p))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images), targets


def draw_affine(key: Array, rotate: float, scale: float, shear: float, shift: float) -> Array:
    """Draw a planar affine map, float32 [6]: angle (degrees), scales of y and x, shear, shifts down and right (pixels).

    All are uniform: the angle on ±rotate, each scale independently on 1 ± scale (which includes squeezing), the shear
    on ±shear (pixels to the right per pixel down), each shift on ±shift.
    """
    strengths = jnp.array([rotate, scale, scale, shear, shift, shift], jnp.float32)
    return jax.random.uniform(key, (6,), minval=-1, maxval=1) * strengths + jnp.array([0, 1, 1, 0, 0, 0], jnp.float32)


def affine_coordinates(drawn: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    """Compute the source coordinates of the pixels of transformed images.

    The forward map of a point p is centre + shift + R S K (p - centre), where K shears along x, S scales and R rotates.
    This is its inverse.

    Args:
        drawn: float32 [B, 6], as from `draw_affine`.
        rows: target rows, broadcastable to [B, H, W].
        columns: target columns, broadcastable to [B, H, W].
        size: (height, width) of the images.

    Returns:
        float32 [B, 2, H, W], (y, x).
    """
    angle, scale_y, scale_x, shear, down, right = (drawn[:, i, None, None] for i in range(6))
    middle_y, middle_x = (size[0] - 1) / 2, (size[1] - 1) / 2
    sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    y, x = rows - middle_y - down, columns - middle_x - right
    y, x = (cosine * y + sine * x) / scale_y, (cosine * x - sine * y) / scale_x
    return jnp.stack([y + middle_y, x - shear * y + middle_x], axis=1)


def affine(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    rotate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> tuple[Array, Array]:
    """Apply a random planar affine map about the centre, bilinear: the distortions of LeCun et al. 1998, and rotation.

    Every number is the largest deviation in either direction, drawn uniformly (`draw_affine`): rotate in degrees, scale
    as a fraction (for each axis independently), shear in pixels per pixel, shift in pixels. The paper names shifts,
    scaling, squeezing and shearing, but no strengths.
    """
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(keys)
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    return sample_bilinear(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets


def draw_noise(key: Array, height: int, width: int) -> Array:
    """Draw white noise, uniform on 256 levels of [-1, 1], float32 [2, H, W].

    Under a blur, 256 levels suffice; drawing four values from each random word is also faster to compile.
    """
    words = jax.random.bits(key, (math.ceil(2 * height * width / 4),), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: 2 * height * width]
    return levels.reshape(2, height, width).astype(jnp.float32) * np.float32(2 / 255) - 1


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Return the matrix [size, size] that convolves with a Gaussian of deviation sigma and sum 1, with zero padding."""
    if sigma == 0:
        return np.eye(size, dtype=np.float32)
    reach = max(size, math.ceil(8 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return kernel[reach + np.subtract.outer(np.arange(size), np.arange(size))].astype(np.float32)


def displacement(noise: Array, alpha: float, sigma: float) -> Array:
    """Blur noise [B, 2, H, W] with sigma and multiply by alpha: smooth displacements in pixels."""
    down, across = (blur_matrix(size, sigma) for size in noise.shape[2:])
    blurred = jnp.einsum("ij,bcjk->bcik", down, noise, precision="highest")
    return alpha * jnp.einsum("bcij,kj->bcik", blurred, across, precision="highest")


def elastic(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    alpha: float = 34.0,
    sigma: float = 4.0,
) -> tuple[Array, Array]:
    """Apply an elastic distortion (Simard et al. 2003): blurred uniform noise displaces the pixels.

    alpha and sigma are in pixels. The paper's best for 29x29 digits, alpha 34 and sigma 4, displaces by 1.4 pixels
    (root mean square in each direction).
    """
    return affine_elastic(keys, index, images, targets, fill, alpha=alpha, sigma=sigma)


def affine_elastic(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    rotate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
    alpha: float = 34.0,
    sigma: float = 4.0,
) -> tuple[Array, Array]:
    """Apply `affine`, then `elastic`, as one map: one interpolation instead of two, which blurs less and is faster."""
    height, width = images.shape[1:3]
    pairs = jax.vmap(jax.random.split)(keys)
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(pairs[:, 0])
    noise = jax.vmap(lambda key: draw_noise(key, height, width))(pairs[:, 1])
    moved = displacement(noise, alpha, sigma)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] + moved[:, 0]
    columns = jnp.arange(width, dtype=jnp.float32) + moved[:, 1]
    return sample_bilinear(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets


# --- covering and mixing ----------------------------------------------------------------------------------------------


def draw_centre(key: Array, height: int, width: int) -> Array:
    """Draw a pixel (row, column), int32 [2], uniformly over the image."""
    return jax.random.randint(key, (2,), 0, jnp.array([height, width]))


def cutout(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, size: int = 16
) -> tuple[Array, Array]:
    """Cover a square of `size` pixels around a random pixel with fill (DeVries and Taylor 2017, arXiv:1708.04552).

    As in the paper, the square may extend over the edge. The paper's best sizes are 16 for CIFAR-10, 8 for CIFAR-100
    and 20 for SVHN.
    """
    height, width = images.shape[1:3]
    centre = jax.vmap(lambda key: draw_centre(key, height, width))(keys)
    mask = box_mask(centre, jnp.full_like(centre, size), height, width)
    return jnp.where(mask[..., None], fill, images), targets


def swap_neighbours(x: Array) -> Array:
    """Return rows 1, 0, 3, 2, ...; the last of an odd number stays in place."""
    even = len(x) // 2 * 2
    swapped = x[:even].reshape(even // 2, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
    return jnp.concatenate([swapped, x[even:]])


def _pair_keys(keys: Array) -> Array:
    """Return the key of the first example of each pair for both, [B]."""
    return jnp.repeat(keys[::2], 2, axis=0)[: len(keys)]


def _has_neighbour(index: Array) -> Array:
    """Return True for examples whose neighbour is beside them, bool [B]."""
    return swap_neighbours(index) == index ^ 1


def blend_neighbours(images: Array, targets: Array, weight: Array) -> tuple[Array, Array]:
    """Blend images and targets with the neighbour's; example b has the weight weight[b], in 0..1."""
    own, other = weight[:, None, None, None], 1 - weight[:, None, None, None]
    blended = own * images + other * swap_neighbours(images)
    return blended, own[:, :, 0, 0] * targets + other[:, :, 0, 0] * swap_neighbours(targets)


def draw_weight(key: Array, alpha: float) -> Array:
    """Draw a weight ~ Beta(alpha, alpha), in steps of 2**-16, so that blends of whole-number pixels are exact."""
    return jnp.round(jax.random.beta(key, alpha, alpha) * 2**16) / 2**16


def mixup(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 0.2
) -> tuple[Array, Array]:
    """Blend pairs of examples and targets with a weight ~ Beta(alpha, alpha): mixup (Zhang et al. 2017).

    Both examples of a pair use the same weight for themselves, so that each counts once in the batch. The paper
    (arXiv:1710.09412) uses alpha 1 for CIFAR and 0.2 to 0.4 for ImageNet; 0 turns mixup off.
    """
    if alpha == 0:
        return images, targets
    weight = jax.vmap(lambda key: draw_weight(key, alpha))(_pair_keys(keys))
    return blend_neighbours(images, targets, jnp.where(_has_neighbour(index), weight, 1))


def draw_cutmix(key: Array, alpha: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw the centre and extent of a box, both int32 [2].

    Its area before clipping, as a share of the image, is 1 - weight with weight ~ Beta(alpha, alpha).
    """
    weight_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(weight_key, alpha, alpha))
    extent = jnp.floor(side * jnp.array([height, width], jnp.float32)).astype(jnp.int32)
    return draw_centre(centre_key, height, width), extent


def paste_neighbours(images: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """Replace the pixels under mask, bool [B, H, W], by the neighbour's; mix targets by the share of pixels."""
    share = mask.sum((1, 2), dtype=jnp.float32)[:, None] / (mask.shape[1] * mask.shape[2])
    pasted = jnp.where(mask[..., None], swap_neighbours(images), images)
    return pasted, (1 - share) * targets + share * swap_neighbours(targets)


def cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 1.0
) -> tuple[Array, Array]:
    """Exchange a random box between pairs of examples: CutMix (Yun et al. 2019, arXiv:1905.04899).

    Targets are mixed by the number of exchanged pixels, so that every pixel of the batch counts once. The paper uses
    alpha 1; 0 turns CutMix off.
    """
    if alpha == 0:
        return images, targets
    height, width = images.shape[1:3]
    centre, extent = jax.vmap(lambda key: draw_cutmix(key, alpha, height, width))(_pair_keys(keys))
    return paste_neighbours(
        images, targets, box_mask(centre, extent, height, width) & _has_neighbour(index)[:, None, None]
    )


def draw_mixture(key: Array, mixup: float, cutmix: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw the weight of each pixel of an example against its neighbour, [H, W] in 0..1, and the mean weight.

    With equal probability this is a constant from `draw_weight`, or 1 outside the box of `draw_cutmix` and 0 inside.
    """
    coin_key, weight_key, box_key = jax.random.split(key, 3)
    centre, extent = draw_cutmix(box_key, cutmix, height, width)
    outside = ~box_mask(centre[None], extent[None], height, width)[0]
    blending = jax.random.bernoulli(coin_key)
    weight = jnp.where(blending, draw_weight(weight_key, mixup), outside.sum(dtype=jnp.float32) / outside.size)
    return jnp.where(blending, weight, outside), weight


def mixup_or_cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, mixup: float = 0.2, cutmix: float = 1.0
) -> tuple[Array, Array]:
    """Apply `mixup` or `cutmix` with equal probability (Wightman et al. 2021, arXiv:2110.00476).

    `mixup` and `cutmix` are their alphas; if one is 0, the other operation is always applied. Each pair draws its own
    choice, whereas timm and torchvision draw one for the batch, so that an example's result depends on its pair alone.
    """
    if mixup == 0 or cutmix == 0:
        name, alpha = ("cutmix", cutmix) if mixup == 0 else ("mixup", mixup)
        return AUGMENTATIONS[name](keys, index, images, targets, fill, alpha=alpha)
    height, width = images.shape[1:3]
    weights, mean = jax.vmap(lambda key: draw_mixture(key, mixup, cutmix, height, width))(_pair_keys(keys))
    weights = jnp.where(_has_neighbour(index)[:, None, None], weights, 1)[..., None]
    mean = jnp.where(_has_neighbour(index), mean, 1)[:, None]
    mixed = weights * images + (1 - weights) * swap_neighbours(images)
    return mixed, mean * targets + (1 - mean) * swap_neighbours(targets)


# --- table and parser -------------------------------------------------------------------------------------------------

# Each function maps (keys [B], index [B], images, targets, fill, **numbers) to (images, targets). A recipe may set its
# keyword-only parameters, in that order; a parameter with an integer default takes integers only.
AUGMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "pad_crop": pad_crop,
    "shift": shift,
    "flip": flip,
    "affine": affine,
    "elastic": elastic,
    "affine_elastic": affine_elastic,
    "cutout": cutout,
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup_or_cutmix": mixup_or_cutmix,
    "resized_crop": resized_crop,
    "colour_jitter": colour_jitter,
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
    "random_erasing": random_erasing,
}

# Operations that combine an example with its neighbour: under pmap they need an even number of images per device.
PAIRING = ("mixup", "cutmix", "mixup_or_cutmix")

# Bounds of the parameters; others are at least 0.
MINIMUM = {"ratio": 0.01}
MAXIMUM = {
    "p": 1.0,
    "scale": 0.9,
    "rotate": 180.0,
    "area": 1.0,
    "smallest": 1.0,
    "largest": 1.0,
    "ratio": 1.0,
    "hue": 0.5,
    "magnitude": 10.0,
}


def parse(text: str) -> tuple[str, dict[str, float]]:
    """Parse the text of an operation; nothing in it is ever executed.

    Example:
        >>> parse("affine(rotate=10, shift=2)")
        ('affine', {'rotate': 10, 'shift': 2})

    Args:
        text: NAME or NAME(number, ..., argument=number, ...), with a name in AUGMENTATIONS.

    Returns:
        The name, and the arguments by name.

    Raises:
        ValueError: one line that names the text and the error: syntax, an unknown name (with a suggestion), or an
            argument that is unknown, repeated, of the wrong type or out of bounds.
    """
    where = f"augmentation {text!r}"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{where} is not of the form 'flip' or 'affine(rotate=10, shift=2)'") from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{where} is not of the form 'flip' or 'affine(rotate=10, shift=2)'")
    name = call.func.id
    if name not in AUGMENTATIONS:
        raise ValueError(f"{where}: unknown operation {name!r}; {_suggest(name, list(AUGMENTATIONS))}")
    signature = inspect.signature(AUGMENTATIONS[name]).parameters.values()
    parameters = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    if len(call.args) > len(parameters):
        raise ValueError(
            f"{where}: {name} takes {', '.join(parameters) or 'no arguments'}, not {len(call.args)} values"
        )
    arguments = [*zip(parameters, call.args, strict=False), *((str(k.arg), k.value) for k in call.keywords)]
    numbers: dict[str, float] = {}
    for argument, node in arguments:
        if argument not in parameters:
            raise ValueError(f"{where}: {name} has no argument {argument!r}; {_suggest(argument, list(parameters))}")
        if argument in numbers:
            raise ValueError(f"{where}: {argument} appears twice")
        bounds = MINIMUM.get(argument, 0), MAXIMUM.get(argument, math.inf)
        numbers[argument] = _number(f"{where}: {argument}", node, parameters[argument], *bounds)
    return name, numbers


def _number(where: str, node: ast.expr, default: float, lower: float, upper: float) -> float:
    kind = "an integer" if isinstance(default, int) else "a number"
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{where} must be {kind}, not {ast.unparse(node)}") from None
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else (int, float)):
        raise ValueError(f"{where} must be {kind}, not {value!r}")
    if not (math.isfinite(value) and lower <= value <= upper):
        bounds = f"at least {lower:g}" if upper == math.inf else f"between {lower:g} and {upper:g}"
        raise ValueError(f"{where} must be {bounds}, not {value!r}")
    return value


def _suggest(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known, cutoff=0.6)
    return (f"{hint} " if hint else "") + f"Known: {', '.join(known)}"


def augment(
    ops: Sequence[str], key: Array, index: Array, images: Array, targets: Array, *, fill: Sequence[float] | Array
) -> tuple[Array, Array]:
    """Apply operations in order. Under jit, `ops` is static and everything else may be traced.

    Args:
        ops: texts as for `parse`; with none, images and targets are returned unchanged.
        key: the step's key.
        index: int32 [B], position of each example in the global batch.
        images: float32 [B, H, W, C] in 0..255.
        targets: float32 [B, K], each row a distribution over classes.
        fill: background colour [C] in 0..255.

    Returns:
        Images and targets of the same shapes.

    Raises:
        ValueError: as `parse`.
    """
    colour = jnp.asarray(fill, images.dtype)
    for n, op in enumerate(ops):
        name, numbers = parse(op)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, n), index)
        images, targets = AUGMENTATIONS[name](keys, index, images, targets, colour, **numbers)
    return images, targets
