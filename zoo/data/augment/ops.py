"""Augmentation on the device: pure functions of a key and a batch, made to run inside the compiled train step.

A recipe names its operations as text, in order: `("affine(rotate=10, shift=2)", "cutout(size=8)")`. Every operation n
draws example b's random numbers from `fold_in(fold_in(key, n), index[b])`, where `index` is the position in the global
batch, so what happens to an example does not depend on how the batch is divided over devices and processes.

Each operation is two steps: `draw_*` turns one example's key into its random numbers, and a function of images and
numbers applies them. Images are float32 [B, H, W, C] in 0..255, targets float32 [B, K], `fill` is the background colour
[C] that appears where an image is moved away. Coordinates are (y, x) in pixels, whole numbers being the centres of
pixels.

The operations made for photographs are in photo_augment.py; this file holds the others and the table of all.

mixup and cutmix combine each example with its neighbour, `index ^ 1`. The stream is shuffled, so that is a random
partner, and any shard that starts at an even position and has an even length holds both. An example whose partner is
not next to it (the last of an odd batch) is left as it is.
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.photo import colour_jitter, rand_augment, random_erasing, resized_crop, trivial_augment
from zoo.data.augment.pixels import box_mask, sample, translate

# ------------------------------------------------------------ moving pixels


def draw_translation(key: Array, pixels: int) -> Array:
    """(down, right), int32 [2], each uniform on -pixels..pixels."""
    return jax.random.randint(key, (2,), -pixels, pixels + 1)


def pad_crop(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pad: int = 4
) -> tuple[Array, Array]:
    """Pad by `pad` pixels on every side and crop back at random, as for CIFAR (Lin et al. 2013, arXiv:1312.4400).

    He et al. 2015 (arXiv:1512.03385) pad with zeros after subtracting the mean; `fill` is that mean for photographs.
    """
    return translate(images, jax.vmap(lambda key: draw_translation(key, pad))(keys), fill, pad), targets


def shift(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pixels: int = 2
) -> tuple[Array, Array]:
    """Translate by a whole number of pixels, up to `pixels` each way, as LeCun et al. 1998 did for digits.

    The same movement as `pad_crop`, under the name that digits know it by.
    """
    return translate(images, jax.vmap(lambda key: draw_translation(key, pixels))(keys), fill, pixels), targets


def draw_flip(key: Array, p: float) -> Array:
    """Whether to flip: bool, true with probability p."""
    return jax.random.bernoulli(key, float(p))


def flip(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, p: float = 0.5
) -> tuple[Array, Array]:
    """Mirror left and right with probability p (Krizhevsky et al. 2012). Not for digits or letters."""
    flipped = jax.vmap(lambda key: draw_flip(key, p))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images), targets


def draw_affine(key: Array, rotate: float, scale: float, shear: float, shift: float) -> Array:
    """One planar affine map, float32 [6]: angle (degrees), scale of y and of x, shear, shift down and right (pixels).

    All are uniform: the angle on ±rotate, each scale on 1 ± scale on its own (so squeezing is included), the shear on
    ±shear (pixels to the right per pixel down), each shift on ±shift.
    """
    strengths = jnp.array([rotate, scale, scale, shear, shift, shift], jnp.float32)
    return jax.random.uniform(key, (6,), minval=-1, maxval=1) * strengths + jnp.array([0, 1, 1, 0, 0, 0], jnp.float32)


def affine_coordinates(drawn: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    """Where the pixels at rows and columns (that broadcast to [B, H, W]) of the moved images come from: [B, 2, H, W].

    Forward, a point p goes to centre + shift + R S K (p - centre): K shears along x, S scales, R rotates; this is the
    inverse.
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
    """Random planar affine map about the centre, bilinear: the distortions of LeCun et al. 1998, and rotation.

    rotate in degrees, scale a fraction (each axis on its own), shear in pixels per pixel, shift in pixels: all are the
    largest deviation either way, drawn uniformly (`draw_affine`). The paper names shifts, scaling, squeezing and
    shearing, no strengths.
    """
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(keys)
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    return sample(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets


def draw_noise(key: Array, height: int, width: int) -> Array:
    """White noise, uniform on [-1, 1], float32 [2, H, W].

    256 levels are plenty under a blur: four values come from a random word, which is also quicker to compile.
    """
    words = jax.random.bits(key, (math.ceil(2 * height * width / 4),), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: 2 * height * width]
    return levels.reshape(2, height, width).astype(jnp.float32) * np.float32(2 / 255) - 1


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Convolution of `size` samples, zero beyond them, with a Gaussian of deviation sigma and sum one: [size, size]."""
    if sigma == 0:
        return np.eye(size, dtype=np.float32)
    reach = max(size, math.ceil(8 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return kernel[reach + np.subtract.outer(np.arange(size), np.arange(size))].astype(np.float32)


def displacement(noise: Array, alpha: float, sigma: float) -> Array:
    """Smooth displacements [B, 2, H, W] in pixels: noise of that shape, blurred with sigma, times alpha (in pixels)."""
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
    """Elastic distortion (Simard et al. 2003): blurred uniform noise displaces the pixels; alpha, sigma in pixels.

    The paper's best for 29x29 digits, alpha 34 and sigma 4, displaces by 1.4 pixels (root mean square in each
    direction).
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
    """`affine`, then `elastic`, as one map: one interpolation instead of two, which blurs less and costs less."""
    height, width = images.shape[1:3]
    pairs = jax.vmap(jax.random.split)(keys)
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(pairs[:, 0])
    noise = jax.vmap(lambda key: draw_noise(key, height, width))(pairs[:, 1])
    moved = displacement(noise, alpha, sigma)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] + moved[:, 0]
    columns = jnp.arange(width, dtype=jnp.float32) + moved[:, 1]
    return sample(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets


# ------------------------------------------------------------ covering and mixing


def draw_centre(key: Array, height: int, width: int) -> Array:
    """A pixel, int32 [2], uniform over the image."""
    return jax.random.randint(key, (2,), 0, jnp.array([height, width]))


def cutout(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, size: int = 16
) -> tuple[Array, Array]:
    """Cover a square of `size` pixels about a random pixel with fill (DeVries & Taylor 2017, arXiv:1708.04552).

    As in the paper the square may reach over the edge; its best sizes: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.
    """
    height, width = images.shape[1:3]
    centre = jax.vmap(lambda key: draw_centre(key, height, width))(keys)
    mask = box_mask(centre, jnp.full_like(centre, size), height, width)
    return jnp.where(mask[..., None], fill, images), targets


def swap_neighbours(x: Array) -> Array:
    """Rows 1, 0, 3, 2, …; the last of an odd number stays."""
    even = len(x) // 2 * 2
    swapped = x[:even].reshape(even // 2, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
    return jnp.concatenate([swapped, x[even:]])


def _pair_keys(keys: Array) -> Array:
    """One key for both examples of a pair: that of the first, [B]."""
    return jnp.repeat(keys[::2], 2, axis=0)[: len(keys)]


def _paired(index: Array) -> Array:
    """Whether an example's partner is beside it, bool [B]."""
    return swap_neighbours(index) == index ^ 1


def mix(images: Array, targets: Array, share: Array) -> tuple[Array, Array]:
    """Weighted mean with the neighbour, images and targets alike: example b keeps share[b], in 0..1, of itself."""
    own, other = share[:, None, None, None], 1 - share[:, None, None, None]
    blended = own * images + other * swap_neighbours(images)
    return blended, own[:, :, 0, 0] * targets + other[:, :, 0, 0] * swap_neighbours(targets)


def draw_share(key: Array, alpha: float) -> Array:
    """A share ~ Beta(alpha, alpha), in steps of 2**-16, so that blends of whole-number pixels are exact."""
    return jnp.round(jax.random.beta(key, alpha, alpha) * 2**16) / 2**16


def mixup(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 0.2
) -> tuple[Array, Array]:
    """mixup (Zhang et al. 2017, arXiv:1710.09412): blend examples and targets by a share ~ Beta(alpha, alpha).

    A pair draws one share, and each of the two keeps so much of itself, so each counts once in the batch. The paper's
    alpha: 1 for CIFAR, 0.2 to 0.4 for ImageNet; 0 changes nothing.
    """
    if alpha == 0:
        return images, targets
    share = jax.vmap(lambda key: draw_share(key, alpha))(_pair_keys(keys))
    return mix(images, targets, jnp.where(_paired(index), share, 1))


def draw_cutmix(key: Array, alpha: float, height: int, width: int) -> tuple[Array, Array]:
    """A box's centre and extent, both int32 [2]: its area, uncut, is one minus a share ~ Beta(alpha, alpha)."""
    for_share, for_centre = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(for_share, alpha, alpha))
    extent = jnp.floor(side * jnp.array([height, width], jnp.float32)).astype(jnp.int32)
    return draw_centre(for_centre, height, width), extent


def paste(images: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """Take the neighbour's pixels where mask, bool [B, H, W], and of its target exactly that share of pixels."""
    share = mask.sum((1, 2), dtype=jnp.float32)[:, None] / (mask.shape[1] * mask.shape[2])
    pasted = jnp.where(mask[..., None], swap_neighbours(images), images)
    return pasted, (1 - share) * targets + share * swap_neighbours(targets)


def cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 1.0
) -> tuple[Array, Array]:
    """CutMix (Yun et al. 2019, arXiv:1905.04899): paste a box of the neighbour; targets by the count of pixels.

    A pair draws one box and exchanges it, so every pixel of the batch is used once. The paper uses alpha 1; 0 changes
    nothing.
    """
    if alpha == 0:
        return images, targets
    height, width = images.shape[1:3]
    centre, extent = jax.vmap(lambda key: draw_cutmix(key, alpha, height, width))(_pair_keys(keys))
    return paste(images, targets, box_mask(centre, extent, height, width) & _paired(index)[:, None, None])


def draw_mixture(key: Array, mixup: float, cutmix: float, height: int, width: int) -> tuple[Array, Array]:
    """How much of itself each pixel of a pair keeps, [H, W] in 0..1, and the mean of that.

    By a coin it is one share for all, of `draw_share`, or all outside the box of `draw_cutmix` and nothing inside.
    """
    for_coin, for_share, for_box = jax.random.split(key, 3)
    centre, extent = draw_cutmix(for_box, cutmix, height, width)
    outside = ~box_mask(centre[None], extent[None], height, width)[0]
    blending = jax.random.bernoulli(for_coin)
    share = jnp.where(blending, draw_share(for_share, mixup), outside.sum(dtype=jnp.float32) / outside.size)
    return jnp.where(blending, share, outside), share


def mixup_or_cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, mixup: float = 0.2, cutmix: float = 1.0
) -> tuple[Array, Array]:
    """`mixup` or `cutmix` with these alphas, by a fair coin, as Wightman et al. 2021 (arXiv:2110.00476) train.

    Each pair tosses its own coin, where they, timm and torchvision toss one for the batch: then what happens to an
    example depends on its pair alone. An alpha of 0 leaves the other operation, always.
    """
    if mixup == 0 or cutmix == 0:
        name, alpha = ("cutmix", cutmix) if mixup == 0 else ("mixup", mixup)
        return AUGMENTATIONS[name](keys, index, images, targets, fill, alpha=alpha)
    height, width = images.shape[1:3]
    own, share = jax.vmap(lambda key: draw_mixture(key, mixup, cutmix, height, width))(_pair_keys(keys))
    own = jnp.where(_paired(index)[:, None, None], own, 1)[..., None]
    share = jnp.where(_paired(index), share, 1)[:, None]
    mixed = own * images + (1 - own) * swap_neighbours(images)
    return mixed, share * targets + (1 - share) * swap_neighbours(targets)


# ------------------------------------------------------------ naming them

# Each takes (keys [B], index [B], images, targets, fill, **numbers) and returns (images, targets). Its keyword-only
# parameters are what a recipe may set, in that order; a whole-number default asks for a whole number.
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

# Those that combine an example with its neighbour: where each device runs the step on its own rows, their number must
# be even.
PAIRING = ("mixup", "cutmix", "mixup_or_cutmix")

# No number may be negative; these have other bounds too.
LOWER = {"ratio": 0.01}
UPPER = {
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
    """ "affine(rotate=10, shift=2)" -> ("affine", {"rotate": 10, "shift": 2}); nothing in the text is ever executed.

    Raises ValueError, one line, for what is not NAME or NAME(number, …, argument=number, …), for a name that is not in
    AUGMENTATIONS (the nearest is suggested), and for arguments that the function does not take or that are out of
    range.
    """
    where = f"augmentation {text!r}"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{where} cannot be read; write it like 'affine(rotate=10, shift=2)' or 'flip'") from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{where} cannot be read; write it like 'affine(rotate=10, shift=2)' or 'flip'")
    name = call.func.id
    if name not in AUGMENTATIONS:
        raise ValueError(f"{where}: there is no {name!r}; {_suggest(name, list(AUGMENTATIONS))}")
    signature = inspect.signature(AUGMENTATIONS[name]).parameters.values()
    parameters = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    if len(call.args) > len(parameters):
        raise ValueError(f"{where}: {name} takes {', '.join(parameters)}, but {len(call.args)} values are given")
    given = [*zip(parameters, call.args, strict=False), *((str(k.arg), k.value) for k in call.keywords)]
    numbers: dict[str, float] = {}
    for argument, node in given:
        if argument not in parameters:
            raise ValueError(f"{where}: {name} does not take {argument!r}; {_suggest(argument, list(parameters))}")
        if argument in numbers:
            raise ValueError(f"{where}: {argument} is given twice")
        bounds = LOWER.get(argument, 0), UPPER.get(argument, math.inf)
        numbers[argument] = _number(f"{where}: {argument}", node, parameters[argument], *bounds)
    return name, numbers


def _number(where: str, node: ast.expr, default: float, lower: float, upper: float) -> float:
    kind = "a whole number" if isinstance(default, int) else "a number"
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
    near = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}"


def augment(
    ops: Sequence[str], key: Array, index: Array, images: Array, targets: Array, *, fill: Sequence[float] | Array
) -> tuple[Array, Array]:
    """Apply the operations in order. Runs under jit; `ops` is static, everything else may be traced.

    Args:
        ops: texts that `parse` accepts; none means nothing is changed.
        key: the step's key.
        index: int32 [B], position of each example in the global batch.
        images: float32 [B, H, W, C] in 0..255.
        targets: float32 [B, K], each row a distribution over classes.
        fill: background colour [C] in 0..255.

    Returns:
        Images and targets of the same shapes.

    Raises:
        ValueError: an operation that `parse` refuses.
    """
    colour = jnp.asarray(fill, images.dtype)
    for n, op in enumerate(ops):
        name, numbers = parse(op)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, n), index)
        images, targets = AUGMENTATIONS[name](keys, index, images, targets, colour, **numbers)
    return images, targets
