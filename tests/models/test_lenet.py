"""LeNet-1 and LeNet-4: the counts that their papers print, and their functions written out in NumPy."""

import jax
import numpy as np
import pytest
from seeded import seeded_images, seeded_variables

import zoo.models as models
from zoo.models import create
from zoo.models.lenet import H3_READS, LENET4_C3_READS


def ends_of(name):
    model = create(name)
    variables = models.abstract_variables(model)
    images = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    _, ends = jax.eval_shape(model.apply, variables, images)
    return {end: value.shape[1:] for end, value in ends.items()}


def test_lenet1_has_the_published_counts():
    """LeCun et al. 1989: 4,635 units with the one that is always on, 98,442 connections, 2,578 parameters."""
    shapes = ends_of("lenet1")
    layers = [shapes[name] for name in ("h1", "h2", "h3", "h4")]
    assert layers == [(24, 24, 4), (12, 12, 4), (8, 8, 12), (4, 4, 12)]
    assert 28 * 28 + sum(map(np.prod, layers)) + 10 + 1 == 4635
    connections = 24 * 24 * 4 * 26 + 12 * 12 * 4 * 5 + 8 * 8 * (25 * 20 + 12) + 4 * 4 * 12 * 5 + 10 * (192 + 1)
    assert connections == 98_442 and sum(map(len, H3_READS)) == 20
    # Table 1: the first six maps read the first two of H2, the last six the others.
    assert {i for reads in H3_READS[:6] for i in reads} == {0, 1}
    assert [[i - 2 for i in reads] for reads in H3_READS[6:]] == [list(reads) for reads in H3_READS[:6]]


def test_lenet4_has_about_as_many_connections_as_published():
    """LeCun et al. 1998, section III.C.8: about 260,000."""
    shapes = ends_of("lenet4")
    assert [shapes[name] for name in ("c1", "s2", "c3", "s4")] == [
        (28, 28, 4), (14, 14, 8), (10, 10, 16), (5, 5, 16),
    ]  # fmt: skip
    reads = sum(map(len, LENET4_C3_READS))
    connections = 28 * 28 * 4 * 26 + 14 * 14 * 8 * 5 + 10 * 10 * (25 * reads + 16) + 5 * 5 * 16 * 5
    assert connections + 120 * 401 + 10 * 121 == 262_306
    assert len(set(LENET4_C3_READS)) == 16 and all(len(set(r)) == 3 for r in LENET4_C3_READS)
    assert all(sum(i in r for r in LENET4_C3_READS) == 6 for i in range(8))


def squash(x):
    return 1.7159 * np.tanh(2 / 3 * x)


def convolve(x, kernel):
    """Correlate x [H, W] with kernel [5, 5]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5))
    return np.einsum("hwij,ij->hw", windows, kernel)


def subsample(x, layer):
    sums = x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]
    return squash(sums * layer["coefficient"] + layer["bias"])


def partial_conv(x, reads, layer):
    maps, kernels = [], iter(layer["kernel"])
    for inputs, bias in zip(reads, layer["bias"], strict=True):
        maps.append(sum(convolve(x[..., i], next(kernels)) for i in inputs) + bias)
    return squash(np.stack(maps, -1))


@pytest.mark.parametrize("name", ["lenet1", "lenet4"])
def test_functions_written_out(name):
    model = create(name)
    variables = jax.tree.map(np.asarray, seeded_variables(models.abstract_variables(model)))
    p = variables["params"]
    conv1, pool1, conv2, pool2 = ("h1", "h2", "h3", "h4") if name == "lenet1" else ("c1", "s2", "c3", "s4")
    images = seeded_images((1, *model.input_shape))
    logits = np.asarray(model.apply(variables, images)[0])[0]

    kernel = p[conv1]["kernel"]
    x = np.stack([convolve(images[0, ..., 0], kernel[:, :, 0, i]) for i in range(4)], -1)
    x = squash(x + p[conv1]["bias"])
    if name == "lenet4":
        x = x[..., [0, 0, 1, 1, 2, 2, 3, 3]]
    x = subsample(x, p[pool1])
    x = partial_conv(x, H3_READS if name == "lenet1" else LENET4_C3_READS, p[conv2])
    x = subsample(x, p[pool2]).reshape(-1)
    if name == "lenet4":
        x = squash(x @ p["f5"]["kernel"] + p["f5"]["bias"])
    np.testing.assert_allclose(logits, x @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-4, atol=1e-4)
