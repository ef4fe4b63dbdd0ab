"""Xception: sizes of figure 5, padding of its pools, separable convolution."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import seeded_variables

import zoo.models as models
from zoo.models import create
from zoo.models.layers import BatchNorm
from zoo.models.xception import POOLS, SeparableConvNorm


def stages(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    _, ends = jax.eval_shape(model.apply, models.abstract_variables(model, (side, side, 3)), images)
    return [ends[stage].shape[1:] for stage in model.stages if stage != "head"]


@pytest.mark.parametrize("pool_padding", POOLS)
def test_activations_have_the_sizes_of_figure_5(pool_padding):
    shapes = stages(create("xception", blocks=(1,), pool_padding=pool_padding), 299)
    assert shapes == [(147, 147, 64), (74, 74, 128), (37, 37, 256), (19, 19, 728), (19, 19, 728), (10, 10, 2048)]


@pytest.mark.parametrize(("name", "minimum"), [("xception", 7), ("xception_small", 9)])
def test_the_smallest_image(name, minimum):
    model = create(name, blocks=(1,))
    assert stages(model, minimum)[-1][:2] == (1, 1)
    with pytest.raises(ValueError, match=f"xception needs images of at least {minimum}x{minimum} pixels"):
        models.abstract_variables(model, (minimum, minimum - 1, 3))


def test_small_form_has_all_blocks_and_remat_keeps_paths():
    assert create("xception_small").blocks == create("xception").blocks
    model = create("xception_small", blocks=(1,))
    plain, again = (models.abstract_variables(models.with_runtime(model, remat=remat)) for remat in (False, True))
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, again)


def test_paddings_agree_for_odd_sizes_only():
    images = -1 - np.random.default_rng(0).random((1, 9, 8, 2))  # below the zeros of a wrong padding
    symmetric, same = (np.asarray(POOLS[padding](jnp.asarray(images))) for padding in ("symmetric", "same"))
    np.testing.assert_array_equal(same, nn.max_pool(images, (3, 3), (2, 2), "SAME"))
    assert symmetric.shape == same.shape == (1, 5, 4, 2) and not np.array_equal(symmetric, same)
    np.testing.assert_array_equal(*(POOLS[padding](jnp.asarray(images[:, :, :7])) for padding in ("symmetric", "same")))


def test_a_separable_convolution_is_a_convolution_of_low_rank():
    """Its full kernel is depthwise [3, 3, 1, C] times pointwise [1, 1, C, F]."""
    module = SeparableConvNorm(4, partial(BatchNorm, epsilon=0.0))
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)
    params = seeded_variables(shapes)["params"] | {"norm": {"scale": np.ones(4), "bias": np.zeros(4)}}
    statistics = {"norm": {"mean": np.zeros(4), "var": np.ones(4)}}

    @jax.jit
    def run(x):
        kernel = params["depthwise"]["kernel"].swapaxes(2, 3) * params["pointwise"]["kernel"]
        whole = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return module.apply({"params": params, "batch_stats": statistics}, x, False), whole

    np.testing.assert_allclose(*run(x), atol=1e-5)


def test_unknown_padding_raises():
    with pytest.raises(ValueError, match="'valid'"):
        models.abstract_variables(create("xception", pool_padding="valid"))
