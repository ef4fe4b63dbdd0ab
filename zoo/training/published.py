"""PUBLISHED: the training recipes of papers and reference implementations, each citing its sources.

What a source does not print, and what this project does otherwise, is named in the recipe's `source` after "ours:".
Numbers are computed from the units of the source, such as iterations times batch size.
"""

from zoo.training.recipe import Recipe

IMAGENET_IMAGES = 1_281_167
#: Training images of CIFAR-10 without the 5,000 that He et al. 2015 hold out.
CIFAR_IMAGES = 45_000
SMALL_AREA = 96 * 96  # of BiT's rule

_CIFAR = ("pad_crop(pad=4)", "flip")
_IMAGENET = ("resized_crop", "flip")
_RAND_AUGMENT = "rand_augment(number=2, magnitude={}, p=0.5, std=0.5, increasing=1)"

_RSB_CROP = "resized_crop(interpolation=random)"
_RSB_MODEL = ("zero_init=true", "stochastic_depth=0.05", "keep_first=true")
# Of timm in October 2021, when the weights were released: train.py (first and last rate), optim/lamb.py (clipping).
_RSB_FIRST_LR, _RSB_LAST_LR = 1e-4, 1e-6
# timm averages the loss over the 1,000 classes, here it is summed: gradients are a thousand times as large.
_RSB_CLIP, _RSB_EPSILON = 1000 * 1.0, 1000 * 1e-6
_RSB = (
    "both classes of a mixed image present (section 3.1). Operations, interpolation, initialisation, drop rates, first "
    "and last rate, clipping and epsilon: timm, with its defaults of October 2021; the last two times 1,000, "
    "since its loss is a mean over 1,000 classes"
)
_RSB_OURS = (
    "rates by step, cosine from the end of the warm-up, no cool-down (timm: by epoch, from epoch 0, 10 epochs), "
    "bilinear interpolation in RandAugment"
)


def _scale_crop(low: int, high: int, size: int) -> str:
    """Return the operation that resizes the shorter side to low … high and crops `size`, all in pixels."""
    return f"scale_crop(low={low / size:.6g}, high={high / size:.6g})"


def _epochs(iterations: float, batch_size: int, images: int = IMAGENET_IMAGES) -> float:
    return iterations * batch_size / images


PUBLISHED: dict[str, Recipe] = {
    "alexnet-2012": Recipe(
        epochs=90, batch_size=128, optimizer="momentum", learning_rate=0.01, schedule="step",
        milestones=(0.4, 0.65, 0.85), l2=5e-4, bias_lr_factor=2.0, eval_crop=227 / 256,
        augment=(_scale_crop(256, 256, 227), "flip", "pca_noise(sigma=0.1)"),
        source="Krizhevsky et al. 2012, sections 4.1 and 5; biases without decay and at twice the rate: Caffe's "
        "bvlc_alexnet and the author's cuda-convnet2. Ours: the epochs at which the rate falls (three times "
        "by hand in the paper), a mean per channel (per pixel in the paper), one central crop (ten in the "
        "paper)",
    ),
    "alexnet-owt": Recipe(
        epochs=90, batch_size=128, optimizer="momentum", learning_rate=0.01, schedule="step",
        milestones=(0.25, 0.5, 0.75), decay_factor=250 ** (-1 / 3), l2=5e-4, bias_lr_factor=2.0, loss="sigmoid",
        eval_crop=224 / 256,
        augment=(_scale_crop(256, 256, 224), "flip", "pca_noise(sigma=0.1)"),
        source="Krizhevsky 2014 (arXiv:1404.5997), section 5, logistic outputs; schedule, biases and colour noise: "
        "the author's cuda-convnet2 (layer-params-223-ce2-1gpu.cfg, TrainingExample.md), on one GPU. Ours: "
        "the rate of biases falls with that of weights (there it falls once, by 10); standardised inputs, because the "
        "model is initialised after He et al. 2015",
    ),
    "googlenet-2014": Recipe(
        epochs=250, batch_size=32, optimizer="momentum", learning_rate=0.01, schedule="exponential", decay_factor=0.96,
        decay_every_epochs=8, l2=2e-4, bias_lr_factor=2.0, aux_weight=0.3, ema=0.9999, eval_crop=224 / 256,
        augment=("resized_crop(interpolation=any)", "flip", "colour_jitter(0.5, 0.5, 0.5)", "pca_noise(sigma=0.1)"),
        source="Szegedy et al. 2014 (arXiv:1409.4842), sections 5 to 7: momentum, rate down 4 % every 8 epochs, "
        "averaged weights, patches of 8 to 100 % of the image, any of four interpolations, distortions of Howard 2013 "
        "(arXiv:1312.5402); rate, batch, L2, biases and length: Caffe's bvlc_googlenet/solver.prototxt. Ours: the "
        "decay of the average, one crop (144 in the paper)",
    ),
    "inception-v2": Recipe(
        epochs=_epochs(6_000_000, 32), batch_size=32, optimizer="momentum", learning_rate=0.045,
        schedule="exponential", decay_factor=0.96, decay_every_epochs=8 / 6, l2=2e-4 / 5, augment=_IMAGENET,
        eval_crop=0.875,
        source="Ioffe and Szegedy 2015 (arXiv:1502.03167), section 4.2: BN-x30, a rate of 0.045 that decays 6 times "
        "as fast as GoogLeNet's, a fifth of its L2 (Caffe's 2e-4), fewer photometric distortions, 6 million "
        "steps of 32, with momentum. Ours: its value, no photometric distortions at all, the crop of evaluation",
    ),
    "inception-v3": Recipe(
        epochs=100, batch_size=32, optimizer="rmsprop-tf", learning_rate=0.045, b2=0.9, epsilon=1.0,
        schedule="exponential", decay_factor=0.94, decay_every_epochs=2, clip_norm=2.0, label_smoothing=0.1,
        aux_weight=0.4, ema=0.9999, l2=4e-5, norm_momentum=0.9997, eval_crop=0.875, normalisation="symmetric",
        model_fields=("dropout=0.2",),
        augment=("resized_crop(area=0.05, interpolation=any)", "flip", "distort_colour"),
        source="Szegedy et al. 2015 (arXiv:1512.00567), sections 7 and 8 (50 replicas of batch 32; scale the rate "
        "with the batch); momentum, auxiliary weight, dropout, L2, averages, inputs, crops and distortions: "
        "tensorflow/models, inception (image_processing.py, inception_train.py, slim). Ours: the area of crops is "
        "uniform and their shape log-uniform (height and shape uniform there, around objects), evaluation keeps the "
        "aspect ratio",
    ),
    "xception": Recipe(
        epochs=120, batch_size=256, optimizer="momentum", learning_rate=0.045, schedule="exponential",
        decay_factor=0.94, decay_every_epochs=2, l2=1e-5, ema=0.9999, augment=_IMAGENET,
        source="Chollet 2016 (arXiv:1610.02357), section 4.2 (optimiser, averaged weights) and 4.3 (L2; dropout 0.5 "
        "is the model's default). Ours: batch, epochs, decay of the average, augmentation, whole images in "
        "evaluation",
    ),
    "he2015-imagenet": Recipe(
        epochs=_epochs(600_000, 256), batch_size=256, optimizer="momentum", learning_rate=0.1, schedule="step",
        milestones=(1 / 3, 2 / 3), l2=1e-4, decay_bias_and_norm=True, eval_crop=224 / 256,
        augment=(_scale_crop(256, 480, 224), "flip", "pca_noise(sigma=0.1)"),
        source="He et al. 2015 (arXiv:1512.03385), section 3.4: 600,000 iterations of 256, shorter side in [256, "
        "480], AlexNet's colour noise. Ours: the epochs at which the rate falls (when the error stalls in the"
        " paper), decay of biases and norms, standardised inputs (a mean per pixel is subtracted in the paper), one "
        "central crop (ten there)",
    ),
    "fb-resnet-torch": Recipe(
        epochs=90, batch_size=256, optimizer="nesterov", learning_rate=0.1, schedule="step", milestones=(1 / 3, 2 / 3),
        l2=1e-4, decay_bias_and_norm=True, eval_crop=224 / 256,
        interpolation="bicubic",
        augment=(
            "resized_crop(interpolation=bicubic)", "colour_jitter(0.4, 0.4, 0.4)", "pca_noise(sigma=0.1)", "flip",
        ),
        source="fb.resnet.torch (train.lua, datasets/imagenet.lua, datasets/transforms.lua). Ours: log-uniform "
        "aspect ratios, values clipped after each colour change",
    ),
    "he2015-cifar": Recipe(
        epochs=_epochs(64_000, 128, CIFAR_IMAGES), batch_size=128, optimizer="momentum", learning_rate=0.1,
        schedule="step", milestones=(32 / 64, 48 / 64), l2=1e-4, decay_bias_and_norm=True, augment=_CIFAR,
        source="He et al. 2015 (arXiv:1512.03385), section 4.2: 64k iterations on 45k images, the rate divided by 10"
        " at 32k and 48k. Ours: decay of biases and norms, the mean colour per channel (per pixel in the "
        "paper)",
    ),
    "he2015-cifar-110": Recipe(
        epochs=_epochs(64_000, 128, CIFAR_IMAGES), batch_size=128, optimizer="momentum", learning_rate=0.1,
        schedule="step", milestones=(32 / 64, 48 / 64), l2=1e-4, decay_bias_and_norm=True, augment=_CIFAR,
        warmup="constant", warmup_lr_fraction=0.1, warmup_epochs=_epochs(400, 128, CIFAR_IMAGES),
        source="He et al. 2015 (arXiv:1512.03385), section 4.2, for 110 layers: he2015-cifar with a rate of 0.01 "
        "until the training error is below 80 %, after about 400 iterations. Ours: as for he2015-cifar",
    ),
    "he2016-cifar": Recipe(
        epochs=_epochs(64_000, 128, CIFAR_IMAGES), batch_size=128, optimizer="momentum", learning_rate=0.1,
        schedule="step", milestones=(32 / 64, 48 / 64), l2=1e-4, decay_bias_and_norm=True, augment=_CIFAR,
        warmup="constant", warmup_lr_fraction=0.1, warmup_epochs=_epochs(400, 128, CIFAR_IMAGES),
        source="He et al. 2016 (arXiv:1603.05027), appendix: the rate of 2015 with 0.01 for the first 400 "
        "iterations, for pre-activation networks. Ours: epochs counted on 45k images as in 2015, decay of "
        "biases and norms",
    ),
    "wide-resnet": Recipe(
        epochs=200, batch_size=128, optimizer="nesterov", learning_rate=0.1, schedule="step",
        milestones=(60 / 200, 120 / 200, 160 / 200), decay_factor=0.2, l2=5e-4, decay_bias_and_norm=True,
        augment=("pad_crop(pad=4, reflect=1)", "flip"),
        source="Zagoruyko and Komodakis 2016 (arXiv:1605.07146), section 3, and their code (scripts/train_cifar.sh, "
        "train.lua); dropout 0.3, where used, is a field of the model",
    ),
    "wide-resnet-svhn": Recipe(
        epochs=160, batch_size=128, optimizer="nesterov", learning_rate=0.01, schedule="step",
        milestones=(80 / 160, 120 / 160), decay_factor=0.1, l2=5e-4, decay_bias_and_norm=True,
        model_fields=("dropout=0.4",),
        source="Zagoruyko and Komodakis 2016 (arXiv:1605.07146), section 3.5, and their scripts/train_svhn.sh: no "
        "augmentation, dropout 0.4. Ours: standardised inputs (scaled to 0..1 in the paper)",
    ),
    "highway": Recipe(
        epochs=100, batch_size=100, optimizer="momentum", learning_rate=0.05, schedule="exponential", decay_factor=0.97,
        source="Srivastava et al. 2015 (arXiv:1505.00387), section 3: SGD with momentum and an exponentially falling"
        " rate. Ours: all numbers, which the paper searched at random and does not print",
    ),
    "torchvision-v1": Recipe(
        epochs=90, batch_size=256, optimizer="momentum", learning_rate=0.1, schedule="step", milestones=(1 / 3, 2 / 3),
        l2=1e-4, decay_bias_and_norm=True, augment=_IMAGENET, eval_crop=224 / 256,
        source="torchvision's references/classification with its defaults on 8 GPUs, for its first set of weights",
    ),
    "bag-of-tricks": Recipe(
        epochs=200, batch_size=1024, optimizer="nesterov", learning_rate=0.1 * 1024 / 256, warmup_epochs=5, l2=1e-4,
        label_smoothing=0.1, eval_crop=224 / 256, model_fields=("zero_init=true",),
        augment=(*_IMAGENET, "colour_jitter(0.4, 0.4, 0.4)", "pca_noise(sigma=0.1)", "mixup(alpha=0.2)"),
        source="He et al. 2018 (arXiv:1812.01187), sections 2.1, 3.1 and 5: warm-up, zero gamma, no decay of biases "
        "and norms, cosine, label smoothing, mixup for 200 epochs; colours as in gluon-cv's train_imagenet.py"
        " (brightness, saturation, contrast). Ours: no distillation",
    ),
    "rsb-a1": Recipe(
        epochs=600, batch_size=2048, image_size=224, optimizer="lamb", learning_rate=5e-3, weight_decay=0.01,
        warmup_epochs=5, warmup_lr_fraction=_RSB_FIRST_LR / 5e-3, final_lr_fraction=_RSB_LAST_LR / 5e-3,
        clip_norm=_RSB_CLIP, loss="sigmoid", target_threshold=0.2, label_smoothing=0.1, epsilon=_RSB_EPSILON,
        augment_repeats=3, eval_crop=0.95, interpolation="bicubic", model_fields=_RSB_MODEL,
        augment=(_RSB_CROP, "flip", _RAND_AUGMENT.format(7), "mixup_or_cutmix(mixup=0.2, cutmix=1)"),
        source=f"Wightman et al. 2021 (arXiv:2110.00476), table 2, A1; {_RSB}. Ours: the threshold, which is that of "
        f"A2; {_RSB_OURS}",
    ),
    "rsb-a2": Recipe(
        epochs=300, batch_size=2048, image_size=224, optimizer="lamb", learning_rate=5e-3, weight_decay=0.02,
        warmup_epochs=5, warmup_lr_fraction=_RSB_FIRST_LR / 5e-3, final_lr_fraction=_RSB_LAST_LR / 5e-3,
        clip_norm=_RSB_CLIP, loss="sigmoid", target_threshold=0.2, epsilon=_RSB_EPSILON, augment_repeats=3,
        eval_crop=0.95, interpolation="bicubic", model_fields=_RSB_MODEL,
        augment=(_RSB_CROP, "flip", _RAND_AUGMENT.format(7), "mixup_or_cutmix(mixup=0.1, cutmix=1)"),
        source=f"Wightman et al. 2021 (arXiv:2110.00476), table 2, A2; {_RSB}; threshold: the command for A2 of "
        f"Ridnik et al. 2021 (ML-Decoder). Ours: {_RSB_OURS}",
    ),
    "rsb-a3": Recipe(
        epochs=100, batch_size=2048, image_size=160, test_size=224, optimizer="lamb", learning_rate=8e-3,
        weight_decay=0.02, warmup_epochs=5, warmup_lr_fraction=_RSB_FIRST_LR / 8e-3,
        final_lr_fraction=_RSB_LAST_LR / 8e-3, clip_norm=_RSB_CLIP, loss="sigmoid", target_threshold=0.2,
        epsilon=_RSB_EPSILON, eval_crop=0.95, interpolation="bicubic", model_fields=("zero_init=true",),
        augment=(_RSB_CROP, "flip", _RAND_AUGMENT.format(6), "mixup_or_cutmix(mixup=0.1, cutmix=1)"),
        source=f"Wightman et al. 2021 (arXiv:2110.00476), table 2, A3 (trained at 160 pixels, tested at 224); {_RSB}; "
        f"threshold: the reproduction in keras_cv_attention_models (train_script.py). Ours: {_RSB_OURS}",
    ),
    "torchvision-v2": Recipe(
        epochs=600, batch_size=1024, image_size=176, test_size=224, optimizer="momentum", learning_rate=0.5,
        warmup_epochs=5, warmup_lr_fraction=0.01, l2=2e-5, decay_bias=True, label_smoothing=0.1,
        ema=1 - (1 - 0.99998) * 1024 * 32 / 600, ema_every=32, ema_warmup="copy", augment_repeats=4,
        eval_crop=224 / 232,
        augment=(*_IMAGENET, "trivial_augment", "random_erasing(p=0.1)", "mixup_or_cutmix(mixup=0.2, cutmix=1)"),
        source="torchvision's second set of weights (its blog, 2021; references/classification on 8 GPUs of 128): "
        "trained at 176 pixels, tested at 224, 4 copies of each image, average every 32 steps. Ours: warm-up "
        "and average by steps (by epochs there), the mean colour where operations leave the image (black there)",
    ),
}  # fmt: skip


def bit_hyperrule(num_records: int, height: float, width: float) -> Recipe:
    """Return the recipe of BiT's HyperRule for fine-tuning on a data set (Kolesnikov et al. 2019, section 3.3).

    Length, mixup and image size follow from the data; the paper uses it for every data set without tuning.

    Args:
        num_records: number of training images.
        height: usual height of an image, in pixels.
        width: usual width of an image, in pixels.
    """
    if num_records < 20_000:
        warmup, steps = 100, 500
    elif num_records < 500_000:
        warmup, steps = 500, 10_000
    else:
        warmup, steps = 500, 20_000
    resized, size = (160, 128) if height * width < SMALL_AREA else (512, 480)
    batch_size = 512
    per_epoch = max(num_records / batch_size, 1)
    milestones = (200, 300, 400) if steps == 500 else (0.3 * steps, 0.6 * steps, 0.9 * steps)
    mixup = () if num_records < 20_000 else ("mixup(alpha=0.1)",)
    return Recipe(
        epochs=steps / per_epoch, batch_size=batch_size, optimizer="momentum", learning_rate=0.003, schedule="step",
        milestones=tuple(step / steps for step in milestones), warmup_epochs=warmup / per_epoch, image_size=size,
        eval_crop=1.0, monitor="last", eval_every_epochs=steps / per_epoch / 10,
        augment=(_scale_crop(resized, resized, size), "flip", *mixup),
        source="Kolesnikov et al. 2019 (arXiv:1912.11370), section 3.3, and big_transfer's bit_hyperrule.py: "
        f"{steps:,} steps of 512 for {num_records:,} images. Ours: images keep their aspect ratio, ten "
        "validations, batches of all images where there are fewer than 512, heads of other networks than BiT's start "
        "at random (at zero there)",
    )  # fmt: skip
