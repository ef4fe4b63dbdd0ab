"""WEIGHTS: the table of published weights that the models here can load.

Sources: torchvision 0.28 (its weight enumerations), timm 1.0.31 (see timm_sets.py), Keras 3.15 (keras.applications;
accuracies and licences from keras.io, which does not state how images were resized: 256 / 224 is assumed),
akamaster/pytorch_resnet_cifar10 (its README).

The first set of each network is its default, as in the source. Files are verified as follows:

- torchvision, akamaster: the file name contains the first eight digits of the sha256;
- Keras: md5, from its source code; it publishes no other hash;
- timm: the Hugging Face hub announces the sha256 of a file before it sends the file. That protects against damage in
  transit, not against the hub itself. The card records the sha256 of the file that was read.
"""

from dataclasses import dataclass, field
from typing import Any

from zoo.data.dataset import placeholder_names
from zoo.data.imagenet import class_names
from zoo.data.images.preprocess import Preprocess
from zoo.pretrained.conventions import (
    APACHE,
    BSD,
    CAFFE,
    CIFAR_10,
    HALF,
    IMAGENET,
    IMAGENET_1K,
    IMAGENET_21K,
    MIT,
)
from zoo.pretrained.timm_sets import TIMM, TIMM_FILES, TIMM_MODELS

#: Number of outputs of weights trained on ImageNet-21k; their order is that of Google's list of synsets.
CLASSES_21K = 21843
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Weights:
    """A published set of weights.

    Attributes:
        name: "source:network.tag"; without a tag for Keras and akamaster, which have one set per network.
        file: URL of the file, or "repository/file" on the Hugging Face hub.
        digest: "sha256:PREFIX" or "md5:PREFIX"; "" if the hub announces it.
        model: name in MODELS.
        preprocess: preprocessing of the published evaluation.
        accuracy: published (top-1, top-5) in percent, single crop, on ImageNet's validation split or CIFAR-10's test
            split; None if not published.
        licence: licence of the weights.
        fields: fields of the model that differ from its defaults.
        data: training data of the classifier, "ImageNet-1k", "ImageNet-21k" or "CIFAR-10".
    """

    name: str
    file: str
    digest: str
    model: str
    preprocess: Preprocess
    accuracy: tuple[float | None, float | None]
    licence: str
    fields: dict[str, Any] = field(default_factory=dict)
    data: str = IMAGENET_1K

    @property
    def source(self) -> str:
        """The project that published the weights."""
        return self.name.partition(":")[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; those of ImageNet-21k are placeholders."""
        if self.data == IMAGENET_21K:
            return placeholder_names(CLASSES_21K)
        return CIFAR10 if self.data == CIFAR_10 else class_names()


def _square(size: int, resize: int, norm: tuple, interpolation: str = "bilinear", channels: str = "RGB") -> Preprocess:
    """Return the preprocessing that resizes the shorter side to `resize` and crops the centre."""
    return Preprocess(
        size=(size, size), resize=(resize, resize), interpolation=interpolation, channels=channels,
        mean=norm[0], std=norm[1],
    )  # fmt: skip


def _digest_in_name(file: str) -> str:
    return f"sha256:{file.rpartition('-')[2].partition('.')[0]}"


# --- torchvision ------------------------------------------------------------------------------------------------

TORCHVISION_URL = "https://download.pytorch.org/models/"
# network.tag, file, resize, top-1, top-5[, size, normalisation]. GoogLeNet and Inception-v3 convert their input
# (`transform_input`) from ImageNet's normalisation to the one listed here, with which the weights were trained.
TORCHVISION: tuple[tuple, ...] = (
    ("alexnet.IMAGENET1K_V1", "alexnet-owt-7be5be79.pth", 256, 56.522, 79.066),
    ("googlenet.IMAGENET1K_V1", "googlenet-1378be20.pth", 256, 69.778, 89.530, 224, HALF),
    ("inception_v3.IMAGENET1K_V1", "inception_v3_google-0cc3c7bd.pth", 342, 77.294, 93.450, 299, HALF),
    ("resnet18.IMAGENET1K_V1", "resnet18-f37072fd.pth", 256, 69.758, 89.078),
    ("resnet34.IMAGENET1K_V1", "resnet34-b627a593.pth", 256, 73.314, 91.420),
    ("resnet50.IMAGENET1K_V2", "resnet50-11ad3fa6.pth", 232, 80.858, 95.434),
    ("resnet50.IMAGENET1K_V1", "resnet50-0676ba61.pth", 256, 76.130, 92.862),
    ("resnet101.IMAGENET1K_V2", "resnet101-cd907fc2.pth", 232, 81.886, 95.780),
    ("resnet101.IMAGENET1K_V1", "resnet101-63fe2227.pth", 256, 77.374, 93.546),
    ("resnet152.IMAGENET1K_V2", "resnet152-f82ba261.pth", 232, 82.284, 96.002),
    ("resnet152.IMAGENET1K_V1", "resnet152-394f9c45.pth", 256, 78.312, 94.046),
    ("resnext50_32x4d.IMAGENET1K_V2", "resnext50_32x4d-1a0047aa.pth", 232, 81.198, 95.340),
    ("resnext50_32x4d.IMAGENET1K_V1", "resnext50_32x4d-7cdf4587.pth", 256, 77.618, 93.698),
    ("resnext101_32x8d.IMAGENET1K_V2", "resnext101_32x8d-110c445d.pth", 232, 82.834, 96.228),
    ("resnext101_32x8d.IMAGENET1K_V1", "resnext101_32x8d-8ba56ff5.pth", 256, 79.312, 94.526),
    ("resnext101_64x4d.IMAGENET1K_V1", "resnext101_64x4d-173b62eb.pth", 232, 83.246, 96.454),
    ("wide_resnet50_2.IMAGENET1K_V2", "wide_resnet50_2-9ba9bcbe.pth", 232, 81.602, 95.758),
    ("wide_resnet50_2.IMAGENET1K_V1", "wide_resnet50_2-95faca4d.pth", 256, 78.468, 94.086),
    ("wide_resnet101_2.IMAGENET1K_V2", "wide_resnet101_2-d733dc28.pth", 232, 82.510, 96.020),
    ("wide_resnet101_2.IMAGENET1K_V1", "wide_resnet101_2-32ee1156.pth", 256, 78.848, 94.284),
)  # fmt: skip
TORCHVISION_MODELS = {"alexnet": "alexnet_owt", "googlenet": "googlenet_bn"}  # the others have the same name here


def _torchvision(name: str, file: str, resize: int, top1: float, top5: float, size: int = 224,
                 norm: tuple = IMAGENET) -> Weights:  # fmt: skip
    network = name.partition(".")[0]
    return Weights(
        f"torchvision:{name}", TORCHVISION_URL + file, _digest_in_name(file),
        TORCHVISION_MODELS.get(network, network), _square(size, resize, norm), (top1, top5), BSD,
    )  # fmt: skip


# --- timm -------------------------------------------------------------------------------------------------------


def _timm(
    name: str, size: int, crop: float, interpolation: str, top1: float | None, top5: float | None,
    norm: tuple = IMAGENET, licence: str = APACHE, data: str = IMAGENET_1K,
) -> Weights:  # fmt: skip
    model, fields = TIMM_MODELS[name.partition(".")[0]]
    if data == IMAGENET_21K:
        fields = {**fields, "num_classes": CLASSES_21K}
    if name == "inception_v3.tv_in1k":  # the only one with torchvision's auxiliary head in its file
        fields = {}
    file = TIMM_FILES.get(name, f"timm/{name}/model.safetensors")
    return Weights(
        f"timm:{name}", file, _digest_in_name(file) if name in TIMM_FILES else "", model,
        _square(size, int(size / crop), norm, interpolation), (top1, top5), licence, fields, data,
    )  # fmt: skip


# --- Keras ------------------------------------------------------------------------------------------------------

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_V1: dict[str, Any] = {"epsilon": 1.001e-5}
_V2: dict[str, Any] = {"epsilon": 1.001e-5, "stride_at": "last", "conv_bias": True, "pool_padding": "zeros"}
# network, folder/file (…_weights_tf_dim_ordering_tf_kernels.h5), md5, model, fields, size, mode, top-1, top-5, licence.
KERAS: tuple[tuple, ...] = (
    ("ResNet50", "resnet/resnet50", "2cb95161c43110f7111970584f804107", "resnet50_v1",
     _V1, 224, "caffe", 74.9, 92.1, MIT),
    ("ResNet101", "resnet/resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "resnet101_v1",
     _V1, 224, "caffe", 76.4, 92.8, MIT),
    ("ResNet152", "resnet/resnet152", "100835be76be38e30d865e96f2aaae62", "resnet152_v1",
     _V1, 224, "caffe", 76.6, 93.1, MIT),
    ("ResNet50V2", "resnet/resnet50v2", "3ef43a0b657b3be2300d5770ece849e0", "resnet50_v2",
     _V2, 224, "tf", 76.0, 93.0, BSD),
    ("ResNet101V2", "resnet/resnet101v2", "6343647c601c52e1368623803854d971", "resnet101_v2",
     _V2, 224, "tf", 77.2, 93.8, BSD),
    ("ResNet152V2", "resnet/resnet152v2", "a49b44d1979771252814e80f8ec446f9", "resnet152_v2",
     _V2, 224, "tf", 78.0, 94.2, BSD),
    ("InceptionV3", "inception_v3/inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564", "inception_v3",
     {"aux_heads": False, "pool_padding": "nothing"}, 299, "tf", 77.9, 93.7, APACHE),
    ("InceptionResNetV2", "inception_resnet_v2/inception_resnet_v2", "e693bd0210a403b3192acc6073ad2e96",
     "inception_resnet_v2", {}, 299, "tf", 80.3, 95.3, APACHE),
    ("Xception", "xception/xception", "0a58e3b7378bc2990ea3b43d5981f1f6", "xception",
     {"pool_padding": "same", "epsilon": 1e-3}, 299, "tf", 79.0, 94.5, MIT),
)  # fmt: skip


def _keras(network: str, file: str, md5: str, model: str, fields: dict, size: int, mode: str, top1: float, top5: float,
           licence: str) -> Weights:  # fmt: skip
    norm, channels = (CAFFE, "BGR") if mode == "caffe" else (HALF, "RGB")
    preprocess = _square(size, round(size * 256 / 224), norm, "bilinear", channels)
    url = f"{KERAS_URL}{file}_weights_tf_dim_ordering_tf_kernels.h5"
    return Weights(f"keras:{network}", url, f"md5:{md5}", model, preprocess, (top1, top5), licence, fields)


# --- akamaster --------------------------------------------------------------------------------------------------

AKAMASTER_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# network, file, top-1.
AKAMASTER: tuple[tuple[str, str, float], ...] = (
    ("resnet20", "resnet20-12fca82f.th", 91.73),
    ("resnet32", "resnet32-d509ac18.th", 92.63),
    ("resnet44", "resnet44-014dd654.th", 93.10),
    ("resnet56", "resnet56-4bfd9763.th", 93.39),
    ("resnet110", "resnet110-1d1ed7c2.th", 93.68),
    ("resnet1202", "resnet1202-f3b1deed.th", 93.82),
)


def _akamaster(network: str, file: str, top1: float) -> Weights:
    return Weights(
        f"akamaster:{network}", AKAMASTER_URL + file, _digest_in_name(file), network, _square(32, 32, IMAGENET),
        (top1, None), "BSD-2-Clause", data=CIFAR_10,
    )  # fmt: skip


WEIGHTS: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        *(_torchvision(*row) for row in TORCHVISION),
        *(_timm(*row) for row in TIMM),
        *(_keras(*row) for row in KERAS),
        *(_akamaster(*row) for row in AKAMASTER),
    )
}
#: "torchvision:resnet50" -> "torchvision:resnet50.IMAGENET1K_V2": the first set of each network.
DEFAULTS: dict[str, str] = {}
for _name in WEIGHTS:
    DEFAULTS.setdefault(_name.partition(".")[0], _name)
