"""Attribution maps: the right gradient, completeness, sanity checks, and objects whose place is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_contract import REDUCED
from scipy.stats import spearmanr

import zoo
from zoo import models
from zoo.analysis import attribution
from zoo.analysis.explain import METHODS, baseline_of, explain, explain_pixels, spatial_stages
from zoo.data.images.preprocess import normalise

ROOT = Path(__file__).parents[2]
QUICK = ("lenet5", "lenet5_1998", "resnet-cifar", "highway_conv")


def network(name):
    """Return (model, variables, images) of a reduced network, whose head is not zero as that of BiT is at first."""
    entry, fields, shape = REDUCED[name]
    model = models.MODELS[entry](**fields)
    variables = zoo.init(model, 0, shape)
    head = variables["params"].get("head", {})
    if "kernel" in head:
        head["kernel"] = jax.random.normal(jax.random.key(2), head["kernel"].shape)
    return model, variables, jax.random.normal(jax.random.key(0), (2, *shape))


def spatial(ends, model):
    return [stage for stage in model.stages if stage in ends and ends[stage].ndim == 4]


@pytest.mark.parametrize("name", REDUCED)
def test_every_network_can_be_cut_at_its_last_stage_with_positions(name):
    entry, fields, shape = REDUCED[name]
    model = models.MODELS[entry](**fields)
    abstract = models.abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    ends = jax.eval_shape(model.apply, abstract, images)[1]
    stages = spatial(ends, model)
    assert bool(stages) == (entry not in ("softmax", "mlp", "highway"))
    for stage in stages[-1:]:
        targets = jax.ShapeDtypeStruct((2,), jnp.int32)
        result = jax.eval_shape(
            lambda *given, stage=stage: attribution.grad_cam(model, *given, stage), abstract, images, targets
        )
        assert result.shape == ends[stage].shape[:3]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REDUCED])
def test_the_two_parts_of_a_cut_network_are_the_network(name):
    model, variables, images = network(name)
    logits, ends = model.apply(variables, images)
    for stage in spatial(ends, model):
        activations, tail = attribution.split_at(model, variables, images, stage)
        np.testing.assert_array_equal(activations, ends[stage])
        np.testing.assert_allclose(tail(activations), logits, rtol=1e-4, atol=1e-5)
        other = tail(activations + jax.random.normal(jax.random.key(1), activations.shape))
        assert np.abs(other - logits).max() > 1e-5 * np.abs(logits).max(), "the logits do not depend on the stage"


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_of_the_zoo_can_be_cut_at_every_stage(name):
    model = zoo.create(name)
    abstract = models.abstract_variables(model)
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    ends = jax.eval_shape(model.apply, abstract, images)[1]
    for stage in spatial(ends, model)[-3:]:

        def cut(variables, images, stage=stage):
            activations, tail = attribution.split_at(model, variables, images, stage)
            return jax.grad(lambda value: tail(value)[:, 0].sum())(activations)

        assert jax.eval_shape(cut, abstract, images).shape == ends[stage].shape


def test_grad_cam_before_a_global_mean_is_the_class_activation_map():
    """With a mean over positions and a dense layer, the gradient is a column of the kernel (Selvaraju et al., 3.1)."""
    model, variables, images = network("resnet-cifar")
    targets = np.array([3, 7])
    end = np.asarray(model.apply(variables, images)[1]["stage2"])
    kernel = np.asarray(variables["params"]["head"]["kernel"])
    height, width = end.shape[1:3]
    expected = np.maximum(np.einsum("bhwc,cb->bhw", end, kernel[:, targets]) / (height * width), 0)
    actual = attribution.grad_cam(model, variables, images, targets, "stage2")
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert expected.max() > 0


def test_grad_cam_of_lenet_is_that_of_its_dense_layers():
    model, variables, images = network("lenet5")
    targets, params = np.array([1, 8]), jax.tree.map(np.asarray, variables["params"])
    end = np.asarray(model.apply(variables, images)[1]["conv2"])
    for row, target in enumerate(targets):
        first = end[row].reshape(-1) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
        second = np.maximum(first, 0) @ params["dense2"]["kernel"] + params["dense2"]["bias"]
        back = params["head"]["kernel"][:, target] * (second > 0)
        back = params["dense1"]["kernel"] @ ((params["dense2"]["kernel"] @ back) * (first > 0))
        expected = np.maximum((end[row] * back.reshape(end[row].shape).mean((0, 1))).sum(-1), 0)
        actual = attribution.grad_cam(model, variables, images, targets, "conv2")[row]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def lenet():
    return zoo.load(ROOT / "checkpoints" / "lenet5-mnist")


@pytest.fixture(scope="module")
def pixels(lenet):
    """Six handwritten digits of different classes, as the input of LeNet-5."""
    split = zoo.open_dataset("digits").splits["test"]
    records = np.array([np.flatnonzero(split.labels == k)[0] for k in range(6)])
    return zoo.preprocess(list(split.read(records)), lenet, normalised=False)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits(lenet, pixels):
    baseline = baseline_of(lenet.card.preprocess)
    images, targets = normalise(pixels, lenet.card.preprocess), np.arange(6)
    values = attribution.integrated_gradients(lenet.model, lenet.variables, images, targets, baseline, 64)
    logits = attribution.logits_of(lenet.model, lenet.variables, images)[np.arange(6), targets]
    start = attribution.logits_of(lenet.model, lenet.variables, jnp.broadcast_to(baseline, images.shape))
    difference = np.asarray(logits - start[np.arange(6), targets])
    error = np.abs(np.asarray(values).sum((1, 2, 3)) - difference)
    assert error.max() < 0.02 * np.abs(difference).max()
    black = images == baseline
    assert black.any() and not np.asarray(values)[np.asarray(black)].any()


def test_the_other_methods_agree_with_their_definitions(lenet, pixels):
    model, variables = lenet.model, lenet.variables
    images, targets = normalise(pixels[:2], lenet.card.preprocess), np.array([4, 5])
    gradient = np.asarray(attribution.saliency(model, variables, images, targets))
    step = 3e-4 * np.sign(gradient)  # small, since max pooling and ReLU have kinks
    rise = attribution.logits_of(model, variables, images + step) - attribution.logits_of(
        model, variables, images - step
    )
    slope = np.asarray(rise)[[0, 1], targets] / 2
    np.testing.assert_allclose(slope, np.abs(3e-4 * gradient).sum((1, 2, 3)), rtol=0.05)

    key = jax.random.key(0)
    still = attribution.smooth_grad(model, variables, images, targets, key, samples=2, noise=0.0)
    np.testing.assert_allclose(still, gradient, rtol=1e-3, atol=1e-5)

    baseline = baseline_of(lenet.card.preprocess)
    drops = np.asarray(attribution.occlusion(model, variables, images, targets, baseline, 16, 16))
    for top in (0, 16):
        for left in (0, 16):
            covered = images.at[:, top : top + 16, left : left + 16].set(baseline[0, 0, 0])
            drop = attribution.logits_of(model, variables, images) - attribution.logits_of(model, variables, covered)
            expected = np.asarray(drop)[[0, 1], targets]
            np.testing.assert_allclose(drops[:, top + 3, left + 5], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_maps_depend_on_the_weights(lenet, pixels, method):
    """Randomising the weights changes the maps (Adebayo et al. 2018, arXiv:1810.03292, section 3.1)."""
    trained = explain_pixels(lenet, pixels, method, list(range(6)), stage="conv2" * (method == "grad_cam"))
    random = zoo.Checkpoint(lenet.model, zoo.init(lenet.model, 1), lenet.card)
    other = explain_pixels(random, pixels, method, list(range(6)), stage="conv2" * (method == "grad_cam"))
    pairs = zip(trained.attributions, other.attributions, strict=True)
    maps = [(a.ravel(), b.ravel()) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    correlations = [spearmanr(*pair).statistic for pair in maps]
    assert len(maps) >= 4 and np.abs(np.mean(correlations)) < 0.4, correlations


@pytest.fixture(scope="module")
def found():
    """A network that tells a cross from a ring on a noisy background, and 16 images with the object's place."""

    def draw(count, seed):
        rng = np.random.default_rng(seed)
        images = rng.normal(96, 20, (count, 32, 32))
        places = rng.integers(0, 32 - 11, (count, 2))
        labels = rng.integers(0, 2, count)
        y, x = np.mgrid[-5:6, -5:6]
        shapes = (np.abs(np.hypot(y, x) - 4) < 1.2), (np.abs(y) < 1.5) | (np.abs(x) < 1.5)
        for image, (top, left), label in zip(images, places, labels, strict=True):
            image[top : top + 11, left : left + 11] += 110 * shapes[label]
        return np.clip(images, 0, 255).astype(np.uint8), labels, places

    images, labels, _ = draw(400, 0)
    settings = {"epochs": 4, "batch_size": 32, "augment": (), "learning_rate": 5e-3, "optimizer": "adamw"}
    checkpoint = zoo.fit(
        "resnet20", (images, labels), fields={"blocks": (1, 1), "width": 8}, quiet=True, **settings,
        schedule="cosine", warmup_epochs=0.5,
    )  # fmt: skip
    tests, labels, places = draw(16, 1)
    right = np.array([int(p.label) for p in checkpoint.predict(list(tests))]) == labels
    assert right.mean() > 0.9
    return checkpoint, tests[right], labels[right], places[right]


SLOW_METHODS = ("smooth_grad", "integrated_gradients")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_METHODS else name for name in METHODS]
)
def test_maps_point_at_the_object(found, method):
    """The pointing game (Zhang et al. 2016, arXiv:1608.00507): by chance 15 % of the maxima would lie in the box."""
    checkpoint, images, labels, places = found
    result = explain(checkpoint, list(images), method, [str(label) for label in labels])
    hits = []
    for heatmap, (top, left) in zip(result.heatmap, places, strict=True):
        row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
        hits.append(top - 1 <= row < top + 12 and left - 1 <= column < left + 12)
    assert np.mean(hits) >= 0.75, np.mean(hits)


def test_explain_takes_one_image_or_several(lenet):
    photo = ROOT / "docs" / "digit.png"
    one = explain(lenet, photo)
    assert one.target == "7" and one.stage == "conv2" and one.image.shape == (32, 32, 1)
    assert one.heatmap.shape == (32, 32) and one.attributions.shape == (5, 5) and one.heatmap.min() >= 0
    assert one.probability == pytest.approx(lenet.predict(photo)[0].probability, abs=1e-5)
    for target in (np.array(3), jnp.int32(3), [jnp.int32(3)]):  # such as logits.argmax()
        assert zoo.explain(lenet, [photo], target=target).target == ("3",)
    two = zoo.explain(lenet, [photo, photo], target=["7", 3], stage="conv1")
    assert two.target == ("7", "3") and two.heatmap.shape == (2, 32, 32) and two.attributions.shape == (2, 14, 14)
    assert not np.array_equal(two.heatmap[0], two.heatmap[1])
    assert list(spatial_stages(lenet)) == ["conv1", "conv2"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"method": "gradcam"}, "grad_cam"),
        ({"target": "seven"}, "'seven'"),
        ({"target": 10}, "10"),
        ({"target": True}, "True"),
        ({"target": ["1", "2"]}, "2 targets for 1 images"),
        ({"stage": "conv3"}, "conv1"),
        ({"stage": "dense1"}, "dense1"),
        ({"method": "saliency", "stage": "conv1"}, "stage"),
    ],
)
def test_mistakes_are_named(lenet, arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        explain(lenet, ROOT / "docs" / "digit.png", **arguments)
    assert "\n" not in str(caught.value)


def test_a_network_without_positions_has_no_grad_cam():
    from zoo.data.images.preprocess import Preprocess

    model = zoo.create("mlp", widths=(4,), image_size=4, num_classes=2)
    card = zoo.load(ROOT / "checkpoints" / "lenet5-mnist").card
    preprocess = Preprocess((4, 4), (4, 4), channels="L", mean=(0.5,), std=(0.5,))
    import dataclasses

    card = dataclasses.replace(card, model="mlp", classes=("a", "b"), preprocess=preprocess)
    checkpoint = zoo.Checkpoint(model, zoo.init(model, 0, (4, 4, 1)), card)
    image = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    with pytest.raises(ValueError, match="mlp has no stage with positions"):
        explain(checkpoint, image)
    assert explain(checkpoint, image, "integrated_gradients", "b").heatmap.shape == (4, 4)
