"""Six recipes against their sources, in the units of the sources: iterations, batches, pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data.augment.ops import parse
from zoo.data.images.preprocess import Preprocess
from zoo.training.optim import decay_mask, kinds_of_parameters, learning_rate_schedule, multipliers_by_kind
from zoo.training.progressive import eval_preprocess
from zoo.training.published import bit_hyperrule
from zoo.training.recipes import RECIPES, RULES, find_recipe

IMAGENET = 1_281_167
LAYER = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
}
KERNELS, BIASES, NORMS = ["conv/kernel"], ["conv/bias"], ["norm/scale", "norm/bias"]

#: recipe -> (training images, iterations, {iteration: rate}, decayed leaves, factor on the rate of biases,
#: (input, pixels of the shorter side in evaluation), operations with their numbers in the source's units).
SOURCES = {
    # Section 5: about 90 cycles, batch 128, rate 0.01, three divisions by 10; Caffe: lr_mult 2, decay_mult 0.
    "alexnet-2012": (
        IMAGENET, 90 * IMAGENET / 128, {0: 0.01, 90 * IMAGENET // 128 - 9: 1e-5}, KERNELS, 2, (227, 256),
        {"scale_crop": (256 / 227, 256 / 227), "flip": (), "pca_noise": (0.1,)},
    ),
    # bvlc_googlenet/solver.prototxt: base_lr 0.01, stepsize 320000, gamma 0.96, max_iter 10000000, batch_size 32.
    "googlenet-2014": (
        IMAGENET, 10_000_000, {0: 0.01, 319_000: 0.01, 321_500: 0.0096, 961_500: 0.01 * 0.96**3}, KERNELS, 2,
        (224, 256), {"resized_crop": ("any",), "flip": (), "colour_jitter": (0.5, 0.5, 0.5), "pca_noise": (0.1,)},
    ),
    # Section 8 and tensorflow/models: num_epochs_per_decay 2, batch 32, factor 0.94; central_fraction 0.875.
    "inception-v3": (
        IMAGENET, 100 * IMAGENET / 32, {0: 0.045, 80_000: 0.045, 80_100: 0.045 * 0.94, 160_300: 0.045 * 0.94**2},
        KERNELS, 1, (299, 341), {"resized_crop": (0.05, "any"), "flip": (), "distort_colour": ()},
    ),
    # Section 3.4: 60e4 iterations of 256 from a rate of 0.1; shorter side in [256, 480], crops of 224.
    "he2015-imagenet": (
        IMAGENET, 600_000, {0: 0.1, 199_990: 0.1, 200_010: 0.01, 400_010: 0.001}, KERNELS + BIASES + NORMS, 1,
        (224, 256), {"scale_crop": (256 / 224, 480 / 224), "flip": (), "pca_noise": (0.1,)},
    ),
    # scripts/train_cifar.sh: epoch_step {60,120,160}, ratio 0.2, max_epoch 200; 390 batches of 128 per epoch.
    "wide-resnet": (
        50_000, 200 * 50_000 / 128, {0: 0.1, 59 * 391: 0.1, 61 * 391: 0.02, 121 * 391: 0.004, 161 * 391: 0.0008},
        KERNELS + BIASES + NORMS, 1, None, {"pad_crop": (4, 1), "flip": ()},
    ),
    # Table 2, A3: 100 epochs of batches of 2048, rate 8e-3, 5 epochs of warm-up, cosine; 160 pixels, tested at 224.
    # timm: from 1e-4, to 1e-6.
    "rsb-a3": (
        IMAGENET, 100 * IMAGENET / 2048, {0: 1e-4, 5 * 626: 8e-3, 31_280 + 31_277: 1e-6}, KERNELS, 1, (224, 235),
        {"resized_crop": ("random",), "flip": (), "rand_augment": (2, 6, 0.5, 0.5, 1), "mixup_or_cutmix": (0.1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_recipes_in_the_units_of_their_sources(name):
    images, iterations, rates, decayed, bias_factor, evaluation, augment = SOURCES[name]
    recipe = RECIPES[name]
    per_epoch = images / recipe.batch_size
    steps = recipe.epochs * per_epoch
    assert steps == pytest.approx(iterations, rel=2e-3)  # the sources round epochs

    schedule = learning_rate_schedule(recipe, round(steps), per_epoch)
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=2e-3, abs=1e-7), step

    kinds = kinds_of_parameters(LAYER)
    assert [path for path, kind in kinds.items() if kind == "bias"] == BIASES
    mask = decay_mask(LAYER, recipe)
    assert {f"{layer}/{leaf}" for layer in mask for leaf, decays in mask[layer].items() if decays} == set(decayed)
    assert multipliers_by_kind(LAYER, recipe) == ({} if bias_factor == 1 else dict.fromkeys(BIASES, bias_factor))

    assert [parse(op)[0] for op in recipe.augment] == list(augment)
    for op in recipe.augment:
        operation, numbers = parse(op)
        for got, expected in zip(numbers.values(), augment[operation], strict=True):
            assert got == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-5)), op

    if evaluation is None:
        assert recipe.eval_crop == 0
    else:
        size, shorter = evaluation
        start = (recipe.image_size or size,) * 2
        final = eval_preprocess(recipe, Preprocess(size=start, resize=start))
        assert final.size == (size, size) and final.resize == (shorter, shorter)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_is_its_own(name):
    """Published recipes name their source, and what the source does not say."""
    source = RECIPES[name].source
    assert "this project" in source or "20" in source or "19" in source or "torch" in source
    assert source == " ".join(source.split())


# --- BiT's HyperRule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "supports"),
    [
        (60, [100, 200, 300, 400, 500]),
        (19_999, [100, 200, 300, 400, 500]),
        (20_000, [500, 3000, 6000, 9000, 10_000]),
        (499_999, [500, 3000, 6000, 9000, 10_000]),
        (500_000, [500, 6000, 12_000, 18_000, 20_000]),
    ],
)
def test_bits_schedule(images, supports):
    """big_transfer's bit_hyperrule.py: warm-up, divisions by 10, end."""
    recipe = bit_hyperrule(images, 300, 400)
    per_epoch = images / min(recipe.batch_size, images)
    assert recipe.epochs * per_epoch == pytest.approx(supports[-1])
    schedule = learning_rate_schedule(recipe, supports[-1], per_epoch)
    warmup, *drops = supports[:-1]
    assert float(schedule(0)) == 0 and float(schedule(warmup // 2)) == pytest.approx(0.0015)
    for number, step in enumerate([warmup, *drops]):  # the code divides after the step of this number, ours at it
        assert float(schedule(step + 1)) == pytest.approx(0.003 / 10**number)
    assert ("mixup(alpha=0.1)" in recipe.augment) == (images >= 20_000)


@pytest.mark.parametrize(
    ("height", "width", "resized", "size"),
    [(32, 32, 160, 128), (95, 97, 160, 128), (96, 96, 512, 480), (300, 400, 512, 480)],
)
def test_bits_resolution(height, width, resized, size):
    recipe = bit_hyperrule(1000, height, width)
    assert recipe.image_size == size
    assert list(parse(recipe.augment[0])[1].values()) == pytest.approx([resized / size] * 2, rel=1e-5)
    final = eval_preprocess(recipe, Preprocess(size=(size, size), resize=(600, 600)))
    assert final.resize == (size, size)  # validation sees whole images


def test_rules_are_not_recipes():
    assert not set(RULES) & set(RECIPES)
    with pytest.raises(ValueError, match="depends on the data"):
        find_recipe("bit-hyperrule")


# --- evaluation crops -------------------------------------------------------------------------------------------------


def test_evaluation_crops_of_other_inputs():
    recipe = RECIPES["torchvision-v1"]
    crop = Preprocess(size=(224, 224), resize=(224, 224))
    assert eval_preprocess(recipe, crop).resize == (256, 256)
    assert eval_preprocess(RECIPES["torchvision-v2"], crop).resize == (232, 232)
    drawings = Preprocess(size=(32, 32), resize=(28, 28), channels="L", polarity="light-on-dark", mean=(0,), std=(1,))
    padded = Preprocess(size=(32, 32), resize=(28, 28))
    for whole in (drawings, padded):
        assert eval_preprocess(recipe, whole) == whole
    pretrained = Preprocess(size=(224, 224), resize=(232, 232))
    assert eval_preprocess(RECIPES["fine-tune"], pretrained) == pretrained


def test_the_rate_of_a_constant_warm_up():
    recipe = RECIPES["he2015-cifar-110"]
    steps = 64_000
    rates = np.array([float(learning_rate_schedule(recipe, steps, 45_000 / 128)(n)) for n in (0, 399, 400, 31_999)])
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.1, 0.1], rtol=1e-6)
