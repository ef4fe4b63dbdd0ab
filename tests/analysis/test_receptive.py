"""Receptive fields: published values, and the pixels that a position really depends on."""

import jax
import numpy as np
import pytest
from models.test_contract import REDUCED

import zoo
from zoo import models
from zoo.analysis.receptive import ReceptiveField, receptive_fields

#: Size of the last stage in pixels (Araujo, Norris and Sim 2019, table 1; the stride is in the 1x1 convolutions).
PUBLISHED = {
    "resnet50_v1": ("stage4", 483),
    "resnet101_v1": ("stage4", 1027),
    "inception_v3": ("mixed7c", 1311),
    "inception_v4": ("inceptionC", 2071),
    "inception_resnet_v2": ("conv7b", 3039),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    stage, size = PUBLISHED[name]
    field = receptive_fields(zoo.create(name))[stage]
    assert field.size == (size, size) and field.stride == (32, 32) and not field.whole


def test_small_networks():
    lenet = receptive_fields(zoo.create("lenet5"))
    assert lenet["conv2"] == ReceptiveField((16, 16), (4, 4), start=(0, 0))
    assert lenet["dense1"] == ReceptiveField((32, 32), (32, 32), whole=True)
    # Before its last pooling, which adds 2 * 16 to give the published 195.
    assert receptive_fields(zoo.create("alexnet"))["conv5"].size == (163, 163)
    assert receptive_fields(zoo.create("resnet18"))["stage4"].size == (435, 435)
    assert receptive_fields(zoo.create("resnet50d_small"))["stage2"].size == (23, 23)
    assert receptive_fields(zoo.create("softmax")) == {}


def test_squeeze_and_excitation_sees_the_whole_image():
    fields = receptive_fields(zoo.create("se_resnet50_small", blocks=(1, 1)))
    assert not fields["stem"].whole and fields["stage1"].whole and fields["stage2"].whole


def rows_that_matter(model, variables, shape, stage):
    """Return the rows of the image whose change, in some of 12 random images, changes the centre of a stage, and the
    row of that centre.
    """
    rng = np.random.default_rng(0)
    plain = rng.normal(0, 1, (12, *shape)).astype(np.float32)
    changed = np.repeat(plain[None], shape[0], axis=0)
    for row in range(shape[0]):
        changed[row, :, row] += rng.choice([-30, 30], (12, 1, 1))
    run = jax.jit(lambda images: model.apply(variables, images)[1][stage])
    before, after = run(plain), np.asarray(run(changed.reshape(-1, *shape)))
    middle = after.shape[1] // 2, after.shape[2] // 2
    after = after[:, middle[0], middle[1]].reshape(shape[0], 12, -1)
    rows = np.flatnonzero((np.abs(after - np.asarray(before)[:, middle[0], middle[1]]) > 1e-4).any((1, 2)))
    return rows, middle[0]


CASES = {
    "lenet5": "conv2", "lenet5_1998": "s4", "highway_conv": "layer3", "resnet-cifar": "stage1",
}  # fmt: skip
SLOW_CASES = {"googlenet_bn": "conv2", "inception_v3": "conv4a", "alexnet": "conv2", "xception": "entry_block1"}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_a_position_depends_on_these_rows(name):
    entry, fields, shape = REDUCED[name]
    model, stage = models.MODELS[entry](**fields), {**CASES, **SLOW_CASES}[name]
    variables = models.init(model, 0, shape)
    rows, position = rows_that_matter(model, variables, shape, stage)
    field = receptive_fields(model, shape)[stage]
    top = field.start[0] + field.stride[0] * position
    assert np.array_equal(rows, np.arange(max(top, 0), min(top + field.size[0], shape[0])))
