"""The table of recipes against the published numbers, their choice by model and data, and similar names."""

import dataclasses
import json

import pytest

from benchmarks import recipes as page
from zoo.models import MODELS
from zoo.training import recipes
from zoo.training.origins import ORIGINS, settings_of
from zoo.training.published import PUBLISHED as PUBLISHED_RECIPES
from zoo.training.recipe import Recipe, recipe_from_json
from zoo.training.recipes import RECIPES

DEFAULTS = {
    "epochs": 20.0, "batch_size": 64, "micro_batch": 0, "min_epoch_steps": 0, "image_size": 0, "progressive": (),
    "progressive_at": (), "test_size": 0, "eval_crop": 0.0, "interpolation": "",
    "channels": "", "normalisation": "", "model_fields": (),
    "optimizer": "adamw", "learning_rate": 1e-3,
    "momentum": 0.9, "b2": 0.999, "epsilon": 1e-8,  # Kingma and Ba 2014, algorithm 1
    "schedule": "cosine", "warmup_epochs": 0.0, "warmup": "linear", "warmup_lr_fraction": 0.0,
    "milestones": (0.5, 0.75), "decay_factor": 0.1,
    "decay_every_epochs": 1.0, "final_lr_fraction": 0.0,
    "l1": 0.0, "l2": 0.0, "weight_decay": 0.0, "decay_bias_and_norm": False, "decay_bias": False,
    "bias_lr_factor": 1.0, "norm_lr_factor": 1.0, "norm_momentum": 0.0, "label_smoothing": 0.0, "clip_norm": 0.0,
    "augment": (), "augment_repeats": 1, "ema": 0.0, "ema_every": 1, "ema_warmup": "ramp", "class_weights": "none",
    "head_epochs": 0.0, "freeze": (), "unfreeze_at": 0.0, "layer_decay": 1.0, "head_lr": 0.0,
    "loss": "softmax", "target_threshold": 0.0,
    "aux_weight": 0.3,  # Szegedy et al. 2014, section 5: "discount weight is 0.3"
    "precision": "float32", "remat": False, "eval_every_epochs": 1.0, "monitor": "accuracy", "patience": 0, "seed": 0,
    "source": "",
}  # fmt: skip

CIFAR = ("pad_crop(pad=4)", "flip")  # He et al. 2015, section 4.2: 4 pixels on each side, a random crop or its mirror
IMAGENET = ("resized_crop", "flip")  # Szegedy et al. 2014, section 6: patches of 8 to 100 % of the image
MOMENTUM = {"optimizer": "momentum", "momentum": 0.9}
HE_CIFAR = {
    **MOMENTUM, "epochs": 64_000 / (45_000 / 128), "batch_size": 128, "learning_rate": 0.1, "schedule": "step",
    "milestones": (32 / 64, 48 / 64), "decay_factor": 0.1, "l2": 1e-4, "decay_bias_and_norm": True, "augment": CIFAR,
}  # fmt: skip
HE_WARMUP = {
    "warmup": "constant", "warmup_lr_fraction": pytest.approx(0.01 / 0.1),
    "warmup_epochs": pytest.approx(400 * 128 / 45_000),
}  # fmt: skip
RSB = {
    "batch_size": 2048, "optimizer": "lamb", "schedule": "cosine", "warmup_epochs": 5, "loss": "sigmoid",
    "target_threshold": 0.2, "eval_crop": 0.95, "interpolation": "bicubic",
    "epsilon": pytest.approx(1000 * 1e-6), "clip_norm": 1000 * 1.0,  # of timm, whose loss is a mean over 1,000 classes
}  # fmt: skip
RSB_CROP = "resized_crop(interpolation=random)"


def rsb_rates(peak):
    return {"warmup_lr_fraction": pytest.approx(1e-4 / peak), "final_lr_fraction": pytest.approx(1e-6 / peak)}


FINE_TUNE = {
    "epochs": 5, "batch_size": 32, "min_epoch_steps": 50, "optimizer": "adamw", "learning_rate": 1e-3,
    "weight_decay": 0.01, "warmup_epochs": 0.1, "head_epochs": 1, "layer_decay": 0.7, "monitor": "last",
}  # fmt: skip

#: Every recipe: its fields that differ from the defaults, and some that agree because the paper says so.
PUBLISHED = {
    # This project's own: small images on two cores.
    "default": {},
    "points": {"epochs": 40, "batch_size": 32, "learning_rate": 0.01},
    "digits": {"epochs": 40, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.01, "warmup_epochs": 1,
               "augment": ("affine(rotate=8, scale=0.08, shear=0.08, shift=2)",)},
    # LeCun et al. 1998, section III: 20 passes; 60,000 distorted patterns (planar affine). Optimiser: this project.
    "mnist": {"epochs": 20, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.02, "warmup_epochs": 1,
              "ema": 0.999, "augment": ("affine(rotate=10, scale=0.1, shear=0.1, shift=2)",)},
    "mnist-plain": {"epochs": 20, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1,
                    "ema": 0.999},
    "lenet5-1998": {"epochs": 20, "batch_size": 128, "optimizer": "adam", "learning_rate": 1e-3, "warmup_epochs": 1,
                    "ema": 0.999},
    "small": {"epochs": 10, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 0.02, "warmup_epochs": 1,
              "ema": 0.995, "augment": CIFAR},
    "small-resnet": {"epochs": 10, "batch_size": 64, "optimizer": "nesterov", "learning_rate": 0.1,
                     "schedule": "one-cycle", "l2": 5e-4, "augment": CIFAR},
    "speed-run": {"epochs": 15, "batch_size": 128, "image_size": 32, "progressive": (16, 24, 32),
                  "optimizer": "nesterov", "learning_rate": 0.2, "schedule": "one-cycle", "l2": 5e-4,
                  "label_smoothing": 0.1, "ema": 0.99, "norm_lr_factor": 4, "eval_every_epochs": 2, "monitor": "last",
                  "augment": ("pad_crop(pad=2, reflect=1)", "flip")},
    # Jordan 2024, airbench94.py: batches of 1,024 at a rate of 1.5 for mean gradients (11.5 / 7.67, summed) with
    # decay 0.0153 / 11.5; momentum 0.85, biases of norms 64 times as fast, smoothing 0.2, shifts of 2 pixels.
    "airbench": {"epochs": 12, "batch_size": 256, "image_size": 32, "progressive": (16, 24, 32),
                 "optimizer": "nesterov", "learning_rate": 0.6, "momentum": 0.85, "schedule": "one-cycle",
                 "l2": 1.33e-3, "label_smoothing": 0.2, "ema": 0.98, "norm_lr_factor": 64, "freeze": ("whiten",),
                 "eval_every_epochs": 2, "monitor": "last", "augment": ("pad_crop(pad=2, reflect=1)", "flip")},
    # This project's own: from a checkpoint.
    # This project: at a rate of 1e-3 the validation loss rose to 17 on 84 photographs
    "photos": {"epochs": 30, "batch_size": 32, "learning_rate": 3e-4, "weight_decay": 0.05, "warmup_epochs": 5,
               "clip_norm": 1.0, "label_smoothing": 0.1, "augment": IMAGENET},
    "fine-tune": {**FINE_TUNE, "augment": ("resized_crop(area=0.6)", "flip")},
    "fine-tune-small": {**FINE_TUNE, "augment": CIFAR},
    "fine-tune-drawings": {**FINE_TUNE, "augment": ("affine(rotate=8, scale=0.08, shear=0.08)",)},
    # Krizhevsky et al. 2012, section 5: batch 128, momentum 0.9, weight decay 0.0005, rate 0.01 divided by 10 three
    # times, about 90 cycles; section 4.1: 256 pixels, crops, mirror images, colour noise of 0.1. Caffe's
    # bvlc_alexnet/train_val.prototxt: biases have lr_mult 2 and decay_mult 0.
    "alexnet-2012": {**MOMENTUM, "epochs": 90, "batch_size": 128, "learning_rate": 0.01, "schedule": "step",
                     "milestones": (0.4, 0.65, 0.85), "decay_factor": 0.1, "l2": 5e-4, "decay_bias_and_norm": False,
                     "bias_lr_factor": 2, "eval_crop": 227 / 256,
                     "augment": ("scale_crop(low=1.12775, high=1.12775)", "flip", "pca_noise(sigma=0.1)")},
    # cuda-convnet2, layer-params-223-ce2-1gpu.cfg: wc=0.0005, epsW=dexp[base=0.01;tgtFactor=250;numSteps=4] (at 25, 50
    # and 75 %), epsB with base 0.02; TrainingExample.md: 90 epochs of batches of 128, colour noise 0.1, crops of 224.
    "alexnet-owt": {**MOMENTUM, "epochs": 90, "batch_size": 128, "learning_rate": 0.01, "schedule": "step",
                    "milestones": (0.25, 0.5, 0.75), "decay_factor": 1 / 250 ** (1 / 3), "l2": 5e-4,
                    "bias_lr_factor": 2, "loss": "sigmoid", "eval_crop": 224 / 256,
                    "augment": ("scale_crop(low=1.14286, high=1.14286)", "flip", "pca_noise(sigma=0.1)")},
    # Szegedy et al. 2014, section 6: momentum 0.9, rate down 4 % every 8 epochs, Polyak averaging; Caffe's
    # bvlc_googlenet: base_lr 0.01, stepsize 320,000, weight_decay 0.0002, batch_size 32, max_iter 10,000,000 ("250
    # epochs"), biases with lr_mult 2 and decay_mult 0. Howard 2013: factors of 0.5 to 1.5 in random
    # order, then the lighting noise of Krizhevsky et al. 2012.
    "googlenet-2014": {**MOMENTUM, "epochs": 250, "batch_size": 32, "learning_rate": 0.01, "schedule": "exponential",
                       "decay_factor": 0.96, "decay_every_epochs": 8, "l2": 2e-4, "bias_lr_factor": 2,
                       "aux_weight": 0.3, "ema": 0.9999, "eval_crop": 224 / 256,
                       "augment": ("resized_crop(interpolation=any)", "flip", "colour_jitter(0.5, 0.5, 0.5)",
                                   "pca_noise(sigma=0.1)")},
    # Ioffe and Szegedy 2015, section 4.2: initial rate 0.045 (BN-x30), decay 6 times faster, L2 a fifth, batch 32; 6
    # million steps to 74.8 %.
    "inception-v2": {**MOMENTUM, "epochs": 6e6 * 32 / 1_281_167, "batch_size": 32, "learning_rate": 0.045,
                     "schedule": "exponential", "decay_factor": 0.96, "decay_every_epochs": 8 / 6, "l2": 4e-5,
                     "eval_crop": 0.875, "augment": IMAGENET},
    # Szegedy et al. 2015 (arXiv:1512.00567), section 8: RMSProp, decay 0.9, epsilon 1.0, rate 0.045 times 0.94 every
    # two epochs, gradients clipped at 2.0, batch 32, 100 epochs; section 7: label smoothing 0.1. tensorflow/models,
    # inception: auxiliary weight 0.4, weight decay 0.00004, BATCHNORM_MOVING_AVERAGE_DECAY 0.9997,
    # MOVING_AVERAGE_DECAY 0.9999, area_range from 0.05, central_fraction 0.875, inputs from -1 to 1, keep 0.8.
    "inception-v3": {"epochs": 100, "batch_size": 32, "optimizer": "rmsprop-tf", "learning_rate": 0.045,
                     "momentum": 0.9, "b2": 0.9, "epsilon": 1.0, "schedule": "exponential", "decay_factor": 0.94,
                     "decay_every_epochs": 2, "clip_norm": 2.0, "label_smoothing": 0.1, "aux_weight": 0.4,
                     "ema": 0.9999, "l2": 4e-5, "norm_momentum": 0.9997, "eval_crop": 0.875,
                     "normalisation": "symmetric", "model_fields": ("dropout=0.2",),
                     "augment": ("resized_crop(area=0.05, interpolation=any)", "flip", "distort_colour")},
    # Chollet 2016 (arXiv:1610.02357), section 4.2: SGD, momentum 0.9, rate 0.045 times 0.94 every 2 epochs, Polyak
    # averaging; 4.3: weight decay 1e-5.
    "xception": {**MOMENTUM, "epochs": 120, "batch_size": 256, "learning_rate": 0.045, "schedule": "exponential",
                 "decay_factor": 0.94, "decay_every_epochs": 2, "l2": 1e-5, "ema": 0.9999, "augment": IMAGENET},
    # He et al. 2015 (arXiv:1512.03385), section 3.4: batch 256, rate 0.1 divided by 10 at plateaus, 60e4 iterations,
    # weight decay 0.0001, momentum 0.9, shorter side in [256, 480], crops of 224, colour augmentation of AlexNet.
    "he2015-imagenet": {**MOMENTUM, "epochs": 60e4 * 256 / 1_281_167, "batch_size": 256, "learning_rate": 0.1,
                        "schedule": "step", "milestones": (1 / 3, 2 / 3), "decay_factor": 0.1, "l2": 1e-4,
                        "decay_bias_and_norm": True, "eval_crop": 224 / 256,
                        "augment": ("scale_crop(low=1.14286, high=2.14286)", "flip", "pca_noise(sigma=0.1)")},
    # fb.resnet.torch: rate 0.1 ^ floor((epoch - 1) / 30), Nesterov, weight decay of all parameters, Scale(256).
    "fb-resnet-torch": {"epochs": 90, "batch_size": 256, "optimizer": "nesterov", "momentum": 0.9,
                        "learning_rate": 0.1, "schedule": "step", "milestones": (30 / 90, 60 / 90),
                        "decay_factor": 0.1, "l2": 1e-4, "decay_bias_and_norm": True, "eval_crop": 224 / 256,
                        "interpolation": "bicubic",
                        "augment": ("resized_crop(interpolation=bicubic)", "colour_jitter(0.4, 0.4, 0.4)",
                                    "pca_noise(sigma=0.1)", "flip")},
    # Section 4.2: batch 128, rate 0.1 divided by 10 at 32k and 48k of 64k iterations, weight decay 0.0001, 45k images.
    "he2015-cifar": HE_CIFAR,
    # For 110 layers, and in He et al. 2016 (arXiv:1603.05027), appendix: a rate of 0.01 for 400 iterations.
    "he2015-cifar-110": {**HE_CIFAR, **HE_WARMUP},
    "he2016-cifar": {**HE_CIFAR, **HE_WARMUP},
    # Zagoruyko and Komodakis 2016 (arXiv:1605.07146), section 3: Nesterov 0.9, batch 128, rate 0.1 times 0.2 at 60, 120
    # and 160 of 200 epochs, weight decay 0.0005; scripts/train_cifar.sh: randomcrop_type=reflection.
    "wide-resnet": {"epochs": 200, "batch_size": 128, "optimizer": "nesterov", "momentum": 0.9, "learning_rate": 0.1,
                    "schedule": "step", "milestones": (60 / 200, 120 / 200, 160 / 200), "decay_factor": 0.2,
                    "l2": 5e-4, "decay_bias_and_norm": True, "augment": ("pad_crop(pad=4, reflect=1)", "flip")},
    # scripts/train_svhn.sh: learningRate=0.01, epoch_step={80,120}, max_epoch=160, learningRateDecayRatio=0.1,
    # dropout=0.4, randomcrop=0, hflip=false.
    "wide-resnet-svhn": {"epochs": 160, "batch_size": 128, "optimizer": "nesterov", "momentum": 0.9,
                         "learning_rate": 0.01, "schedule": "step", "milestones": (80 / 160, 120 / 160),
                         "decay_factor": 0.1, "l2": 5e-4, "decay_bias_and_norm": True,
                         "model_fields": ("dropout=0.4",)},
    # Srivastava et al. 2015 (arXiv:1505.00387), section 3; the numbers are this project's.
    "highway": {**MOMENTUM, "epochs": 100, "batch_size": 100, "learning_rate": 0.05, "schedule": "exponential",
                "decay_factor": 0.97},
    # torchvision's references/classification/train.py with its defaults, 8 GPUs of 32 images.
    "torchvision-v1": {**MOMENTUM, "epochs": 90, "batch_size": 8 * 32, "learning_rate": 0.1, "schedule": "step",
                       "milestones": (30 / 90, 60 / 90), "decay_factor": 0.1, "l2": 1e-4, "decay_bias_and_norm": True,
                       "augment": IMAGENET, "eval_crop": 224 / 256},
    # He et al. 2018 (arXiv:1812.01187): batch 1024 at 0.1 * 1024 / 256, 5 epochs of warm-up, zero gamma, no bias decay,
    # cosine, label smoothing 0.1, mixup 0.2 for 200 epochs, jitter 0.4, PCA noise 0.1.
    "bag-of-tricks": {"epochs": 200, "batch_size": 1024, "optimizer": "nesterov", "momentum": 0.9,
                      "learning_rate": 0.4, "schedule": "cosine", "warmup_epochs": 5, "l2": 1e-4,
                      "label_smoothing": 0.1, "eval_crop": 224 / 256, "model_fields": ("zero_init=true",),
                      "augment": (*IMAGENET, "colour_jitter(0.4, 0.4, 0.4)", "pca_noise(sigma=0.1)",
                                  "mixup(alpha=0.2)")},
    # Wightman et al. 2021 (arXiv:2110.00476), table 2: test crop ratio 0.95, repeated augmentation for A1 and A2,
    # RandAugment 7 / 0.5 and 6 / 0.5, stochastic depth 0.05. timm, train.py and optim/lamb.py of October 2021: warm-up
    # from 1e-4, lowest rate 1e-6, train-interpolation random, max_grad_norm 1.0; resnet.py: drop rates at
    # (i - 1) / (L - 1), evaluation bicubic.
    "rsb-a1": {**RSB, "epochs": 600, "image_size": 224, "learning_rate": 5e-3, "weight_decay": 0.01,
               **rsb_rates(5e-3), "label_smoothing": 0.1, "augment_repeats": 3,
               "model_fields": ("zero_init=true", "stochastic_depth=0.05", "keep_first=true"),
               "augment": (RSB_CROP, "flip", "rand_augment(number=2, magnitude=7, p=0.5, std=0.5, increasing=1)",
                           "mixup_or_cutmix(mixup=0.2, cutmix=1)")},
    "rsb-a2": {**RSB, "epochs": 300, "image_size": 224, "learning_rate": 5e-3, "weight_decay": 0.02,
               **rsb_rates(5e-3), "label_smoothing": 0.0, "augment_repeats": 3,
               "model_fields": ("zero_init=true", "stochastic_depth=0.05", "keep_first=true"),
               "augment": (RSB_CROP, "flip", "rand_augment(number=2, magnitude=7, p=0.5, std=0.5, increasing=1)",
                           "mixup_or_cutmix(mixup=0.1, cutmix=1)")},
    "rsb-a3": {**RSB, "epochs": 100, "image_size": 160, "test_size": 224, "learning_rate": 8e-3, "weight_decay": 0.02,
               **rsb_rates(8e-3), "model_fields": ("zero_init=true",),
               "augment": (RSB_CROP, "flip", "rand_augment(number=2, magnitude=6, p=0.5, std=0.5, increasing=1)",
                           "mixup_or_cutmix(mixup=0.1, cutmix=1)")},
    # torchvision's references/classification README and blog post "How to Train State-Of-The-Art Models Using
    # TorchVision's Latest Primitives" (2021): 600 epochs, batch 8 x 128, rate 0.5, cosine, 5 epochs of warm-up (from
    # lr-warmup-decay 0.01), weight decay 2e-5 without norms, label smoothing 0.1, mixup 0.2, CutMix 1.0,
    # TrivialAugment, random erasing 0.1, trained at 176 pixels, val-resize-size 232, ra-reps 4; train.py: the EMA of
    # 0.99998 is adjusted by world size * batch * 32 / epochs and updated every 32 steps.
    "torchvision-v2": {**MOMENTUM, "epochs": 600, "batch_size": 8 * 128, "image_size": 176, "test_size": 224,
                       "learning_rate": 0.5, "schedule": "cosine", "warmup_epochs": 5, "warmup_lr_fraction": 0.01,
                       "l2": 2e-5, "decay_bias": True, "label_smoothing": 0.1, "ema_every": 32, "ema_warmup": "copy",
                       "ema": pytest.approx(1 - 0.00002 * 8 * 128 * 32 / 600), "augment_repeats": 4,
                       "eval_crop": 224 / 232,
                       "augment": (*IMAGENET, "trivial_augment", "random_erasing(p=0.1)",
                                   "mixup_or_cutmix(mixup=0.2, cutmix=1)")},
}  # fmt: skip


def test_defaults_of_a_recipe():
    assert dataclasses.asdict(Recipe()) == DEFAULTS


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_numbers(name):
    fields = dataclasses.asdict(RECIPES[name])
    assert fields.pop("source")
    expected = {**DEFAULTS, **PUBLISHED[name]}
    expected["epochs"] = pytest.approx(expected["epochs"])
    expected["l2"], expected["decay_factor"] = map(pytest.approx, (expected["l2"], expected["decay_factor"]))
    del expected["source"]
    assert fields == expected


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    assert recipe_from_json(json.loads(json.dumps(dataclasses.asdict(RECIPES[name])))) == RECIPES[name]


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("lenet5_1998", "tfds:mnist", "lenet5-1998"),
        ("lenet5_1998", "tfds:fashion_mnist", "lenet5-1998"),
        ("lenet5_1998", "digits", "digits"),
        ("lenet5_1998", "tfds:cifar10", "default"),
        ("lenet5", "tfds:mnist", "mnist"),
        ("lenet5", "mnist", "mnist"),
        ("lenet5", "fashion-mnist", "default"),
        ("lenet5", "tfds:fashion_mnist", "default"),
        ("lenet5", "photos", "default"),
        ("softmax", "digits", "default"),
        ("softmax", "moons", "points"),
        ("mlp", "xor", "points"),
        ("mlp", "digits", "default"),
        ("highway", "digits", "default"),
        ("highway_conv", "digits", "digits"),
        ("highway_conv", "photos", "small-resnet"),
        ("resnet20", "digits", "digits"),
        ("airbench", "digits", "digits"),
        ("airbench", "photos", "airbench"),
        ("alexnet", "photos", "small"),
        ("alexnet_owt_small", "photos", "small"),
        ("googlenet", "photos", "small"),
        ("googlenet_small", "photos", "small"),
        ("googlenet_bn_small", "photos", "small-resnet"),
        ("resnet50", "photos", "small-resnet"),
    ],
)
def test_default_recipes(model, data, name):
    assert recipes.default_recipe(model, data) == recipes.default_recipe(model, data, 64) == name


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("resnet18", "photos", "photos"),
        ("alexnet", "photos", "photos"),
        ("googlenet", "tfds:cifar10", "photos"),
        ("resnet18", "digits", "digits"),
        ("mlp", "photos", "default"),
    ],
)
def test_large_images_are_not_shifted_by_a_few_pixels(model, data, name):
    assert recipes.default_recipe(model, data, 65) == name
    assert not any(op.startswith("pad_crop") for op in RECIPES[name].augment)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", ["digits", "tfds:mnist", "tfds:cifar10", "photos"])
def test_every_model_has_a_default_recipe(model, data):
    assert recipes.default_recipe(model, data) in RECIPES


@pytest.mark.parametrize("name", ["digits", "mnist", "fine-tune-drawings"])
def test_drawings_are_never_mirrored(name):
    assert not any(op.startswith("flip") for op in RECIPES[name].augment)


def test_an_unknown_recipe_gets_similar_names():
    assert recipes.find_recipe("mnist") is RECIPES["mnist"]
    with pytest.raises(ValueError, match=r"'mnits'.*mnist.*zoo list --recipes"):
        recipes.find_recipe("mnits")
    with pytest.raises(ValueError, match=r"'xyzzy'; `zoo list --recipes` lists all"):
        recipes.find_recipe("xyzzy")


# --- origins and the page ---------------------------------------------------------------------------------------------


def test_published_recipes_have_origins():
    assert set(ORIGINS) == set(PUBLISHED_RECIPES) <= set(RECIPES)


@pytest.mark.parametrize("name", ORIGINS)
def test_every_number_has_one_origin(name):
    """Paper, code or ours: each field that differs from the defaults has exactly one of them."""
    assert set(ORIGINS[name]) <= {"paper", "code", "ours"}
    fields = [field for names in ORIGINS[name].values() for field in names.split()]
    assert sorted(fields) == sorted(settings_of(RECIPES[name]))
    assert ("Ours:" in RECIPES[name].source) >= ("ours" in ORIGINS[name])


def test_the_page_of_recipes_is_current():
    assert page.PAGE.read_text("utf-8") == page.render()
    rows = [line.split("|")[1].strip(" `") for line in page.render().splitlines() if line.startswith("| `")]
    assert rows == list(RECIPES)
