"""AlexNet: separate towers, image sizes, initialisation and the order of its layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import seeded_images, seeded_variables

import zoo.models as models
from zoo.models import create
from zoo.models.alexnet import FAN_IN, normalise_within_towers

TINY = {"width": 0.1, "num_classes": 10}  # 8, 24, 40, 40 and 24 maps, 408 units


def shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    _, ends = jax.eval_shape(model.apply, models.abstract_variables(model, image_shape), images)
    return {stage: ends[stage].shape[1:] for stage in model.stages if stage != "head"}


def test_activations_have_the_sizes_of_figure_2():
    assert shapes(create("alexnet"), (227, 227, 3)) == {
        "conv1": (55, 55, 2 * 48),
        "conv2": (27, 27, 2 * 128),
        "conv3": (13, 13, 2 * 192),
        "conv4": (13, 13, 2 * 192),
        "conv5": (13, 13, 2 * 128),
        "dense6": (2 * 2048,),
        "dense7": (2 * 2048,),
    }


def test_towers_exchange_channels_only_before_conv3():
    """Section 3.5: the first tower's conv2 does not depend on the second tower's conv1."""
    model = create("alexnet_small", **TINY, image_size=15)
    variables = seeded_variables(models.abstract_variables(model))
    other = jax.tree.map(jnp.asarray, variables)
    kernel = other["params"]["conv1"]["kernel"]
    other["params"]["conv1"]["kernel"] = kernel.at[..., kernel.shape[-1] // 2 :].multiply(2)
    run = jax.jit(model.apply)
    images = seeded_images((1, 15, 15, 3))
    before, after = run(variables, images)[1], run(other, images)[1]
    half = before["conv2"].shape[-1] // 2
    assert np.array_equal(before["conv2"][..., :half], after["conv2"][..., :half])
    assert not np.allclose(before["conv2"][..., half:], after["conv2"][..., half:])
    assert not np.allclose(before["conv3"][..., :half], after["conv3"][..., :half])


def test_response_normalisation_of_section_3_3_within_each_tower():
    x = 30 * seeded_images((1, 2, 3, 12))
    normalised = normalise_within_towers(jnp.asarray(x))
    for i in range(12):
        tower = range(0, 6) if i < 6 else range(6, 12)
        near = [j for j in tower if abs(i - j) <= 2]
        expected = x[..., i] / (2 + 1e-4 * np.square(x[..., near]).sum(-1)) ** 0.75
        np.testing.assert_allclose(normalised[..., i], expected, rtol=1e-5)


def test_initialisation_of_section_5():
    model = create("alexnet", width=0.25, image_size=67)
    params = models.init(model, 0)["params"]
    biases = {name: set(np.unique(layer["bias"]).tolist()) for name, layer in params.items()}
    ones = {"conv2", "conv4", "conv5", "dense6", "dense7"}
    assert biases == {name: {1.0} if name in ones else {0.0} for name in biases}
    full = models.abstract_variables(create("alexnet"))["params"]
    for name, layer in params.items():
        connections = np.prod(full[name]["kernel"].shape[:-1]), np.prod(layer["kernel"].shape[:-1])
        assert FAN_IN[name] == connections[0]
        scale = np.sqrt(connections[0] / connections[1])  # 1 in the network of the paper
        assert np.std(layer["kernel"]) == pytest.approx(0.01 * scale, rel=0.03), name


def test_two_towers_take_one_image_size():
    model = create("alexnet_small", image_size=28)
    assert model.input_shape == (28, 28, 3)
    with pytest.raises(ValueError, match=r"28x28.*got 32x32.*image_size=32"):
        models.abstract_variables(model, (32, 32, 3))
    assert models.count_parameters(models.abstract_variables(create("alexnet", image_size=224))) < 60_965_224


def test_one_tower_adapts_to_any_size():
    """Adaptive pooling always leaves pool_size x pool_size cells for the dense layers."""
    at = partial(models.abstract_variables, create("alexnet_owt"))
    assert at((63, 63, 3)) == at((224, 224, 3)) == at((300, 200, 3))
    small = models.abstract_variables(create("alexnet_owt_small"))["params"]["dense6"]["kernel"]
    assert small.shape == (3 * 3 * 128, 2048)


@pytest.mark.parametrize(
    ("name", "minimum"), [("alexnet", 67), ("alexnet_small", 15), ("alexnet_owt", 63), ("alexnet_owt_small", 15)]
)
def test_the_smallest_image(name, minimum):
    def at(side):
        return create(name, **({"image_size": side} if "owt" not in name else {}))

    assert min(shapes(at(minimum), (minimum, minimum, 3))["conv5"]) >= 3  # the window of the last pool
    with pytest.raises(ValueError, match=f"{minimum}x{minimum} pixels; got {minimum - 1}x{minimum - 1}"):
        models.abstract_variables(at(minimum - 1), (minimum - 1, minimum - 1, 3))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt"])
def test_unknown_stem_raises(name):
    with pytest.raises(ValueError, match="tiny"):
        models.abstract_variables(create(name, stem="tiny"))
