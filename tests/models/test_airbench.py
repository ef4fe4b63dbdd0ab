"""The network of airbench94: its function, and its first layer, which is computed from images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_bits, train
from jax.scipy.special import erf

from zoo import models
from zoo.data.sources import from_arrays
from zoo.models import create
from zoo.models.airbench import WHITENING_EPSILON
from zoo.training import loop, plots
from zoo.training.recipes import RECIPES


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolve(x, kernel, padding):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_it_is_the_published_function():
    """Jordan 2024: pooling before the norm, norms without scale, exact GELUs, a ninth of the features."""
    model = create("airbench", width=4)
    images = draw(2, 32, 32, 3)
    variables = models.init(model, 0)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * np.abs(draw(*leaf.shape)), variables)
    logits, ends = jax.jit(model.apply)(variables, images)
    params, stats = variables["params"], variables["batch_stats"]

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def norm(x, stage, name):
        moments = stats[stage][name]
        return (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) + params[stage][name]["bias"]

    x = gelu(convolve(images, params["whiten"]["kernel"], "VALID") + params["whiten"]["bias"])
    for stage in ("stage1", "stage2", "stage3"):
        x = convolve(x, params[stage]["conv1"]["kernel"], "SAME")
        side = x.shape[1] // 2
        x = x[:, : 2 * side, : 2 * side].reshape(2, side, 2, side, 2, -1).max((2, 4))
        x = gelu(norm(x, stage, "norm1"))
        x = gelu(norm(convolve(x, params[stage]["conv2"]["kernel"], "SAME"), stage, "norm2"))
    head = params["head"]
    np.testing.assert_allclose(logits, x.max((1, 2)) / 9 @ head["kernel"] + head["bias"], rtol=1e-3, atol=1e-4)
    assert {name: ends[name].shape[1:] for name in model.stages[:-1]} == {
        "whiten": (31, 31, 24), "stage1": (15, 15, 4), "stage2": (7, 7, 16), "stage3": (3, 3, 16),
    }  # fmt: skip


def test_a_stage_starts_as_a_copy_of_its_input():
    """The first min(C, F) outputs of a 3x3 convolution are inputs; the others are drawn within 1 / sqrt(fan-in)."""
    params = models.init(create("airbench"), 0)["params"]
    x = jnp.asarray(draw(1, 6, 6, 64))
    copied = convolve(x, params["stage2"]["conv1"]["kernel"], "SAME")[..., :64]
    np.testing.assert_array_equal(copied, x)
    drawn = params["stage2"]["conv1"]["kernel"][..., 64:]
    assert 0.99 * 576**-0.5 < np.abs(drawn).max() <= 576**-0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_whitens_patches(channels):
    """Over the images, its outputs before the GELU are uncorrelated, of variance one, and come with their negatives."""
    model = create("airbench")
    smooth = draw(64, 12, 12, 1).cumsum(1).cumsum(2) / 8  # neighbours are alike, and so are channels
    images = smooth + 0.2 * draw(64, 12, 12, channels, seed=1)
    before = models.init(model, 0, (12, 12, channels))
    after = model.initialise_from_images(before, images)
    kernel = after["params"]["whiten"]["kernel"]
    assert kernel.shape == (2, 2, channels, 24) and kernel.dtype == np.float32
    random = before["params"]["whiten"]["kernel"]
    np.testing.assert_array_equal(kernel[..., 8 * channels :], random[..., 8 * channels :])
    outputs = np.asarray(convolve(images, kernel[..., : 8 * channels], "VALID")).reshape(-1, 8 * channels)
    half = outputs[:, : 4 * channels]
    np.testing.assert_array_equal(outputs[:, 4 * channels :], -half)
    moments = half.T @ half / len(half)
    off_diagonal = moments - np.diag(np.diag(moments))
    assert np.abs(off_diagonal).max() < 1e-3
    assert np.all(np.diag(moments) < 1 + 1e-3) and np.diag(moments).min() > 0.04 / (0.04 + WHITENING_EPSILON) - 0.01
    rest = jax.tree.map(np.array_equal, {**before["params"], "whiten": 0}, {**after["params"], "whiten": 0})
    assert all(jax.tree.leaves(rest)) and after["batch_stats"] is before["batch_stats"]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_run_of_its_recipe_is_resumed(tmp_path, monkeypatch):
    """Whitened first layer, frozen, and averages over growing images: saved in the second size, killed, and resumed."""
    recipe = dataclasses.replace(RECIPES["airbench"], epochs=2, batch_size=20, image_size=12, progressive=(9, 12))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 12, 12, 3), np.uint8), np.arange(60) % 2
    data = from_arrays((images, labels), validation=(images[:20], labels[:20]), name="made")
    for drawing in ("draw_curves", "draw_confusion"):
        monkeypatch.setattr(plots, drawing, lambda *arguments, **more: None)
    save = loop.Trainer.save

    def save_and_die(trainer):
        save(trainer)
        if trainer.progress.step == 4:
            raise Killed

    def run(name):
        train("airbench", data, recipe, fields={"width": 2}, workdir=tmp_path / name, save_steps=4, quiet=True)

    run("alone")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "save", save_and_die)
        with pytest.raises(Killed):
            run("killed")
    run("killed")
    assert run_bits(tmp_path / "killed") == run_bits(tmp_path / "alone")
