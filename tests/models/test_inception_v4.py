"""Inception-v4 and Inception-ResNet-v2: sizes of the figures, smallest images, scaled residuals."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import seeded_variables

import zoo.models as models
from zoo.models import create
from zoo.models.branches import chain
from zoo.models.inception_resnet_v2 import InceptionResNet
from zoo.models.layers import BatchNorm, ConvNorm

FEW = {"blocks": (1, 1, 1)}  # tracing all blocks takes seconds


def stages(model, side):
    """Return stage -> (height, width, channels)."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    _, ends = jax.eval_shape(model.apply, models.abstract_variables(model, (side, side, 3)), images)
    return {stage: ends[stage].shape[1:] for stage in model.stages if stage != "head"}


def test_activations_have_the_sizes_of_the_figures():
    """Figure 9; for Inception-ResNet-v2 those of the released network."""
    assert stages(create("inception_v4", **FEW), 299) == {
        "stem": (35, 35, 384),
        "inceptionA": (35, 35, 384),
        "reductionA": (17, 17, 1024),
        "inceptionB": (17, 17, 1024),
        "reductionB": (8, 8, 1536),
        "inceptionC": (8, 8, 1536),
    }
    assert stages(create("inception_resnet_v2", **FEW), 299) == {
        "stem": (35, 35, 320),
        "inceptionresnetA": (35, 35, 320),
        "reductionA": (17, 17, 1088),
        "inceptionresnetB": (17, 17, 1088),
        "reductionB": (8, 8, 2080),
        "inceptionresnetC": (8, 8, 2080),
        "conv7b": (8, 8, 1536),
    }


@pytest.mark.parametrize("family", ["inception_v4", "inception_resnet_v2"])
@pytest.mark.parametrize(("form", "minimum"), [("", 75), ("_small", 15)])
def test_the_smallest_image_leaves_one_pixel(family, form, minimum):
    model = create(family + form, **FEW)
    last = list(stages(model, minimum).values())[-1]
    assert last[:2] == (1, 1)
    with pytest.raises(ValueError, match=f"{family} needs images of at least {minimum}x{minimum} pixels"):
        models.abstract_variables(model, (minimum - 1, minimum, 3))


@pytest.mark.parametrize("family", ["inception_v4", "inception_resnet_v2"])
def test_small_forms_have_all_blocks_and_remat_keeps_paths(family):
    assert create(f"{family}_small").blocks == create(family).blocks
    model = create(f"{family}_small", **FEW)
    plain, again = (models.abstract_variables(models.with_runtime(model, remat=remat)) for remat in (False, True))
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, again)


def test_a_residual_block_adds_its_scaled_branches():
    """relu(x + scale * branch); with the last block's scale 1 and no ReLU, x + branch."""

    def conv(features, kernel_size, stride, padding, *, name):
        return ConvNorm(features, kernel_size, partial(BatchNorm, epsilon=1e-3), stride, padding, name=name)

    branches = (chain("branch1x1", (4, 1)), chain("branch3x3", (4, 1), (4, 3)))
    scaled = InceptionResNet(conv, branches, 0.17, nn.relu, jnp.float32)
    last = InceptionResNet(conv, branches, 1.0, None, jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 6)).astype(np.float32)
    variables = seeded_variables(jax.eval_shape(partial(scaled.init, train=False), jax.random.key(0), x))
    output, last_output = jax.jit(lambda v, x: (scaled.apply(v, x, False), last.apply(v, x, False)))(variables, x)
    assert np.abs(last_output - x).max() > 0.1
    np.testing.assert_allclose(output, np.maximum(x + 0.17 * (last_output - x), 0), atol=1e-5)
