"""Attribution: the parts of an image that a class score depends on.

Every method is a pure function (model, variables, images, targets, …) -> array, compiled once per model and shape.
Images are the network's normalised input, float32 [B, H, W, C]; targets are class indices, int32 [B]. The score that is
explained is the logit of the target.

`zoo.explain` in explain.py applies them to a checkpoint and images of any kind.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

SMOOTH_GRAD_SAMPLES = 25
SMOOTH_GRAD_NOISE = 0.15  # Smilkov et al. 2017, section 3.2: 10 to 20 % gives the clearest maps
INTEGRATION_STEPS = 32
OCCLUSION_BATCH = 16  # occluded images per forward pass


def split_at(model: nn.Module, variables: dict, images: jax.Array, stage: str) -> tuple[jax.Array, Any]:
    """Cut the network at an endpoint.

    The network is traced, and the traced operations after the endpoint become a function of it. This requires nothing
    of a model but that the endpoint is on the way to the logits. Where other values bypass the endpoint, they are kept
    constant.

    Args:
        model: a model with a head.
        variables: {"params": …, "batch_stats": …}.
        images: [B, H, W, C].
        stage: name of an endpoint.

    Returns:
        (activations of the endpoint, function from such activations to logits [B, K]).
    """

    def forward(variables, images):
        logits, ends = model.apply(variables, images)
        return ends[stage], logits

    closed = jax.make_jaxpr(forward)(variables, images)
    jaxpr = closed.jaxpr
    end, logits = jaxpr.outvars
    cut = 1 + max((i for i, equation in enumerate(jaxpr.eqns) if end in equation.outvars), default=-1)
    before = {*jaxpr.constvars, *jaxpr.invars, *(var for equation in jaxpr.eqns[:cut] for var in equation.outvars)}
    after = [var for equation in jaxpr.eqns[cut:] for var in equation.invars] + [logits]
    bypass = [var for var in dict.fromkeys(v for v in after if isinstance(v, jex.Var)) if var in before and var != end]
    head = jaxpr.replace(outvars=[end, *bypass], eqns=jaxpr.eqns[:cut])
    tail = jaxpr.replace(constvars=[], invars=[end, *bypass], outvars=[logits], eqns=jaxpr.eqns[cut:])
    run_head = jex.jaxpr_as_fun(jex.ClosedJaxpr(head, closed.consts))
    run_tail = jex.jaxpr_as_fun(jex.ClosedJaxpr(tail, ()))
    activations, *constants = run_head(*jax.tree.leaves((variables, images)))
    return activations, lambda activations: run_tail(activations, *constants)[0]


def _target_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def _scores(model: nn.Module, variables: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
    return _target_logits(model.apply(variables, images)[0], targets)


def _gradients(model: nn.Module, variables: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Return d logit / d image, [B, H, W, C]. In evaluation mode images of a batch do not affect each other."""
    return jax.grad(lambda images: _scores(model, variables, images, targets).sum())(images)


@partial(jax.jit, static_argnames="model")
def logits_of(model: nn.Module, variables: dict, images: jax.Array) -> jax.Array:
    """Return the logits, float32 [B, K]."""
    return model.apply(variables, images)[0]


@partial(jax.jit, static_argnames=("model", "stage"))
def grad_cam(model: nn.Module, variables: dict, images: jax.Array, targets: jax.Array, stage: str) -> jax.Array:
    """Compute Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391, equations 1 and 2).

    Each channel of the stage is weighted by the mean over positions of the gradient of the target's logit; negative
    sums are cut off.

    Args:
        model: a model with a head.
        variables: {"params": …, "batch_stats": …}.
        images: [B, H, W, C].
        targets: int32 [B].
        stage: an endpoint [B, h, w, F].

    Returns:
        float32 [B, h, w], 0 or more.
    """
    activations, tail = split_at(model, variables, images, stage)
    gradients = jax.grad(lambda value: _target_logits(tail(value), targets).sum())(activations)
    weights = gradients.astype(jnp.float32).mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * activations).sum(-1))


@partial(jax.jit, static_argnames="model")
def saliency(model: nn.Module, variables: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Compute the gradient of the target's logit with respect to the image (Simonyan et al. 2013, arXiv:1312.6034).

    Returns:
        float32 [B, H, W, C], signed.
    """
    return _gradients(model, variables, images, targets)


@partial(jax.jit, static_argnames=("model", "samples"))
def smooth_grad(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    samples: int = SMOOTH_GRAD_SAMPLES,
    noise: float = SMOOTH_GRAD_NOISE,
) -> jax.Array:
    """Average the gradient over noisy copies of the image (Smilkov et al. 2017, arXiv:1706.03825).

    Args:
        model: a model with a head.
        variables: {"params": …, "batch_stats": …}.
        images: [B, H, W, C].
        targets: int32 [B].
        key: random key of the noise.
        samples: number of noisy copies.
        noise: standard deviation as a fraction of the range of values of each image.

    Returns:
        float32 [B, H, W, C], signed.
    """
    scale = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def add(total, key):
        noisy = images + scale * jax.random.normal(key, images.shape)
        return total + _gradients(model, variables, noisy, targets), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jax.random.split(key, samples))
    return total / samples


@partial(jax.jit, static_argnames=("model", "steps"))
def integrated_gradients(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    targets: jax.Array,
    baseline: jax.Array,
    steps: int = INTEGRATION_STEPS,
) -> jax.Array:
    """Integrate the gradient along the straight line from a baseline (Sundararajan et al. 2017, arXiv:1703.01365).

    The attributions of an image add up to the difference of its logit and the baseline's (completeness), up to the
    error of the Gauss-Legendre quadrature.

    Args:
        model: a model with a head.
        variables: {"params": …, "batch_stats": …}.
        images: [B, H, W, C].
        targets: int32 [B].
        baseline: image without information, broadcastable to [B, H, W, C].
        steps: number of points of the quadrature.

    Returns:
        float32 [B, H, W, C], signed.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    difference = images - baseline

    def add(total, step):
        position, weight = step
        return total + weight * _gradients(model, variables, baseline + position * difference, targets), None

    path = jnp.asarray((points + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), path)
    return total * difference


@partial(jax.jit, static_argnames=("model", "patch", "stride"))
def occlusion(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    targets: jax.Array,
    baseline: jax.Array,
    patch: int,
    stride: int,
) -> jax.Array:
    """Compute how much covering a square lowers the target's logit (Zeiler and Fergus 2013, arXiv:1311.2901).

    Args:
        model: a model with a head.
        variables: {"params": …, "batch_stats": …}.
        images: [B, H, W, C].
        targets: int32 [B].
        baseline: values of covered pixels, broadcastable to [B, H, W, C].
        patch: side of the square in pixels.
        stride: distance between squares in pixels.

    Returns:
        float32 [B, H, W]: the mean drop of the logit over the squares that cover a pixel; negative where the logit
        rises.
    """
    height, width = images.shape[1:3]
    rows, columns = (_patch_starts(side, patch, stride) for side in (height, width))
    corners = jnp.asarray([(row, column) for row in rows for column in columns], jnp.int32)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def covered(corner):
        return (y >= corner[0]) & (y < corner[0] + patch) & (x >= corner[1]) & (x < corner[1] + patch)

    def score(corner):
        occluded = jnp.where(covered(corner)[None, :, :, None], baseline, images)
        return _scores(model, variables, occluded, targets)

    drops = _scores(model, variables, images, targets) - jax.lax.map(score, corners, batch_size=OCCLUSION_BATCH)
    masks = jax.vmap(covered)(corners).astype(jnp.float32)
    return jnp.einsum("pb,phw->bhw", drops, masks) / masks.sum(0)


def _patch_starts(side: int, patch: int, stride: int) -> list[int]:
    """Return the first pixels of the patches along one axis; the last patch ends at the edge."""
    last = max(side - patch, 0)
    return [*range(0, last, stride), last]


def heatmap(method: str, values: Any) -> np.ndarray:
    """Reduce attributions [..., H, W, C] to a map [..., H, W].

    Gradients give the largest magnitude over the channels (Simonyan et al. 2013), integrated gradients their sum. Maps
    without channels, those of Grad-CAM and occlusion, are returned as they are.
    """
    values = np.asarray(values, np.float32)
    if method in ("saliency", "smooth_grad"):
        return np.abs(values).max(-1)
    return values.sum(-1) if method == "integrated_gradients" else values


def upsample(maps: Any, size: tuple[int, int]) -> np.ndarray:
    """Resize maps [B, h, w] bilinearly to [B, *size]."""
    maps = jnp.asarray(maps, jnp.float32)
    return np.asarray(jax.image.resize(maps, (len(maps), *size), "bilinear", antialias=False))
