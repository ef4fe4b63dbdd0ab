"""WEIGHTS: the table of published weights that the models here can load.

Sources: torchvision 0.28 (its weight enumerations), timm 1.0.31 (its default configurations; accuracies from
results/results-imagenet.csv, at the image size of the set), Keras 3.15 (keras.applications; accuracies and licences
from keras.io, which does not state how images were resized: 256 / 224 is assumed), akamaster/pytorch_resnet_cifar10
(its README).

The first set of each network is its default, as in the source. Files are verified as follows:

- torchvision, akamaster: the file name contains the first eight digits of the sha256;
- Keras: md5, from its source code; it publishes no other hash;
- timm: the Hugging Face hub announces the sha256 of a file before it sends the file. That protects against damage in
  transit, not against the hub itself. The card records the sha256 of the file that was read.
"""

from dataclasses import dataclass, field
from typing import Any

from zoo.data.imagenet import class_names
from zoo.data.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF = ((0.5,) * 3, (0.5,) * 3)
#: Keras's "caffe" mode: the mean colour is subtracted in 0..255, in the order BGR.
CAFFE = ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3)

APACHE, BSD, MIT, NON_COMMERCIAL = "Apache-2.0", "BSD-3-Clause", "MIT", "CC-BY-NC-4.0"

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
        data: training data, "ImageNet-1k" or "CIFAR-10".
    """

    name: str
    file: str
    digest: str
    model: str
    preprocess: Preprocess
    accuracy: tuple[float | None, float | None]
    licence: str
    fields: dict[str, Any] = field(default_factory=dict)
    data: str = "ImageNet-1k"

    @property
    def source(self) -> str:
        """The project that published the weights."""
        return self.name.partition(":")[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return CIFAR10 if self.data == "CIFAR-10" else class_names()


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

_D: dict[str, Any] = {"stem": "deep", "shortcut": "pool"}
# timm's networks: model and the fields that differ from its defaults.
TIMM_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "resnet26": ("resnet50", {"blocks": (2, 2, 2, 2)}),
    "resnet50": ("resnet50", {}),
    "resnet101": ("resnet101", {}),
    "resnet152": ("resnet152", {}),
    "resnet18d": ("resnet18", _D),
    "resnet34d": ("resnet34", _D),
    "resnet26d": ("resnet50d", {"blocks": (2, 2, 2, 2)}),
    "resnet50d": ("resnet50d", {}),
    "resnet101d": ("resnet101", _D),
    "resnet152d": ("resnet152", _D),
    "resnet200d": ("resnet50d", {"blocks": (3, 24, 36, 3)}),
    "resnext50_32x4d": ("resnext50_32x4d", {}),
    "resnext50d_32x4d": ("resnext50_32x4d", _D),
    "resnext101_32x4d": ("resnext101_32x8d", {"widen": 2}),
    "resnext101_32x8d": ("resnext101_32x8d", {}),
    "resnext101_32x16d": ("resnext101_32x8d", {"widen": 8}),
    "resnext101_32x32d": ("resnext101_32x8d", {"widen": 16}),
    "resnext101_64x4d": ("resnext101_64x4d", {}),
    "wide_resnet50_2": ("wide_resnet50_2", {}),
    "wide_resnet101_2": ("wide_resnet101_2", {}),
    "seresnet50": ("se_resnet50", {}),
    "seresnext50_32x4d": ("resnext50_32x4d", {"squeeze": 16}),
    "seresnext101_32x4d": ("resnext101_32x8d", {"widen": 2, "squeeze": 16}),
    "seresnext101_32x8d": ("resnext101_32x8d", {"squeeze": 16}),
    "seresnext101_64x4d": ("resnext101_64x4d", {"squeeze": 16}),
    "resnetv2_50": ("resnet50_v2", {}),
    "resnetv2_101": ("resnet101_v2", {}),
    "inception_v4": ("inception_v4", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}),
    "legacy_xception": ("xception", {}),
}  # fmt: skip
# network.tag, size, crop (size / resize), interpolation, top-1, top-5[, normalisation[, licence]]; on the hub under
# timm/network.tag, except those in TIMM_FILES.
TIMM: tuple[tuple, ...] = (
    ("resnet18.a1_in1k", 224, 0.95, "bicubic", 71.504, 90.086),
    ("resnet18.a2_in1k", 224, 0.95, "bicubic", 70.634, 89.486),
    ("resnet18.a3_in1k", 160, 0.95, "bicubic", 65.670, 86.268),
    ("resnet18.tv_in1k", 224, 0.875, "bilinear", 69.752, 89.082, IMAGENET, BSD),
    ("resnet18.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 72.636, 91.416, IMAGENET, NON_COMMERCIAL),
    ("resnet18.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 73.286, 91.754, IMAGENET, NON_COMMERCIAL),
    ("resnet18.gluon_in1k", 224, 0.875, "bicubic", 70.844, 89.750),
    ("resnet18d.ra2_in1k", 224, 0.875, "bicubic", 72.296, 90.682),
    ("resnet18d.ra4_e3600_r224_in1k", 224, 0.9, "bicubic", 74.356, 91.826, HALF),
    ("resnet34.a1_in1k", 224, 0.95, "bicubic", 76.420, 92.896),
    ("resnet34.a2_in1k", 224, 0.95, "bicubic", 75.520, 92.454),
    ("resnet34.a3_in1k", 160, 0.95, "bicubic", 70.580, 89.540),
    ("resnet34.bt_in1k", 224, 0.875, "bicubic", 75.176, 92.166),
    ("resnet34.ra4_e3600_r224_in1k", 224, 0.9, "bicubic", 77.492, 93.498, HALF),
    ("resnet34.tv_in1k", 224, 0.875, "bilinear", 73.298, 91.422, IMAGENET, BSD),
    ("resnet34.gluon_in1k", 224, 0.875, "bicubic", 74.574, 91.988),
    ("resnet34d.ra2_in1k", 224, 0.875, "bicubic", 77.108, 93.372),
    ("resnet26.bt_in1k", 224, 0.875, "bicubic", 75.298, 92.578),
    ("resnet26d.bt_in1k", 224, 0.875, "bicubic", 76.698, 93.156),
    ("resnet50.a1_in1k", 224, 0.95, "bicubic", 80.382, 94.598),
    ("resnet50.a1h_in1k", 176, 0.9, "bicubic", 79.264, 94.498),
    ("resnet50.a2_in1k", 224, 0.95, "bicubic", 79.828, 94.560),
    ("resnet50.a3_in1k", 160, 0.95, "bicubic", 75.994, 92.494),
    ("resnet50.b1k_in1k", 224, 0.95, "bicubic", 79.564, 94.622),
    ("resnet50.b2k_in1k", 224, 0.95, "bicubic", 79.388, 94.580),
    ("resnet50.c1_in1k", 224, 0.95, "bicubic", 79.766, 94.954),
    ("resnet50.c2_in1k", 224, 0.95, "bicubic", 79.868, 94.862),
    ("resnet50.d_in1k", 224, 0.95, "bicubic", 79.904, 94.666),
    ("resnet50.ram_in1k", 224, 0.875, "bicubic", 79.034, 94.386),
    ("resnet50.am_in1k", 224, 0.875, "bicubic", 79.004, 94.392),
    ("resnet50.ra_in1k", 224, 0.875, "bicubic", 78.820, 94.314),
    ("resnet50.bt_in1k", 224, 0.875, "bicubic", 78.444, 94.274),
    ("resnet50.tv_in1k", 224, 0.875, "bilinear", 76.156, 92.866, IMAGENET, BSD),
    ("resnet50.tv2_in1k", 176, 0.875, "bilinear", 79.434, 94.640, IMAGENET, BSD),
    ("resnet50.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 79.252, 94.826, IMAGENET, NON_COMMERCIAL),
    ("resnet50.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 81.146, 95.980, IMAGENET, NON_COMMERCIAL),
    ("resnet50.gluon_in1k", 224, 0.875, "bicubic", 77.580, 93.704),
    ("resnet50d.ra2_in1k", 224, 0.875, "bicubic", 80.546, 95.160),
    ("resnet50d.ra4_e3600_r224_in1k", 224, 0.95, "bicubic", 80.956, 95.380, HALF),
    ("resnet50d.a1_in1k", 224, 0.95, "bicubic", 80.730, 94.678),
    ("resnet50d.a2_in1k", 224, 0.95, "bicubic", 80.268, 94.642),
    ("resnet50d.a3_in1k", 160, 0.95, "bicubic", 77.222, 93.256),
    ("resnet50d.gluon_in1k", 224, 0.875, "bicubic", 79.080, 94.458),
    ("resnet101.a1h_in1k", 224, 0.95, "bicubic", 81.950, 95.760),
    ("resnet101.a1_in1k", 224, 0.95, "bicubic", 81.494, 95.164),
    ("resnet101.a2_in1k", 224, 0.95, "bicubic", 81.344, 95.198),
    ("resnet101.a3_in1k", 160, 0.95, "bicubic", 77.928, 93.686),
    ("resnet101.tv_in1k", 224, 0.875, "bilinear", 77.404, 93.552, IMAGENET, BSD),
    ("resnet101.tv2_in1k", 176, 0.875, "bilinear", 79.908, 94.606, IMAGENET, BSD),
    ("resnet101.gluon_in1k", 224, 0.875, "bicubic", 79.306, 94.538),
    ("resnet101d.ra2_in1k", 256, 0.95, "bicubic", 82.254, 96.070),
    ("resnet101d.gluon_in1k", 224, 0.875, "bicubic", 80.466, 95.034),
    ("resnet152.a1h_in1k", 224, 0.95, "bicubic", 82.818, 96.124),
    ("resnet152.a1_in1k", 224, 0.95, "bicubic", 81.998, 95.294),
    ("resnet152.a2_in1k", 224, 0.95, "bicubic", 81.764, 95.270),
    ("resnet152.a3_in1k", 160, 0.95, "bicubic", 78.896, 94.140),
    ("resnet152.tv_in1k", 224, 0.875, "bilinear", 78.330, 94.046, IMAGENET, BSD),
    ("resnet152.tv2_in1k", 176, 0.875, "bilinear", 80.222, 94.650, IMAGENET, BSD),
    ("resnet152.gluon_in1k", 224, 0.875, "bicubic", 79.712, 94.720),
    ("resnet152d.ra2_in1k", 256, 0.95, "bicubic", 83.160, 96.370),
    ("resnet152d.gluon_in1k", 224, 0.875, "bicubic", 80.476, 95.194),
    ("resnet200d.ra2_in1k", 256, 0.95, "bicubic", 83.250, 96.552),
    ("wide_resnet50_2.racm_in1k", 224, 0.875, "bicubic", 81.466, 95.544),
    ("wide_resnet50_2.tv_in1k", 224, 0.875, "bilinear", 78.486, 94.084, IMAGENET, BSD),
    ("wide_resnet50_2.tv2_in1k", 176, 0.875, "bilinear", 80.442, 95.076, IMAGENET, BSD),
    ("wide_resnet101_2.tv_in1k", 224, 0.875, "bilinear", 78.862, 94.312, IMAGENET, BSD),
    ("wide_resnet101_2.tv2_in1k", 176, 0.875, "bilinear", 80.494, 94.978, IMAGENET, BSD),
    ("resnext50_32x4d.a1h_in1k", 224, 0.95, "bicubic", 81.140, 95.320),
    ("resnext50_32x4d.a1_in1k", 224, 0.95, "bicubic", 80.526, 94.458),
    ("resnext50_32x4d.a2_in1k", 224, 0.95, "bicubic", 80.444, 94.630),
    ("resnext50_32x4d.a3_in1k", 160, 0.95, "bicubic", 77.732, 93.314),
    ("resnext50_32x4d.ra_in1k", 224, 0.875, "bicubic", 79.800, 94.608),
    ("resnext50_32x4d.tv_in1k", 224, 0.875, "bilinear", 77.632, 93.674, IMAGENET, BSD),
    ("resnext50_32x4d.tv2_in1k", 176, 0.875, "bilinear", 79.384, 94.302, IMAGENET, BSD),
    ("resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 80.316, 95.386, IMAGENET, NON_COMMERCIAL),
    ("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 82.162, 96.224, IMAGENET, NON_COMMERCIAL),
    ("resnext50_32x4d.gluon_in1k", 224, 0.875, "bicubic", 79.354, 94.424),
    ("resnext50d_32x4d.bt_in1k", 224, 0.875, "bicubic", 79.672, 94.878),
    ("resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 80.936, 95.732, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x4d.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 83.268, 96.760, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x4d.gluon_in1k", 224, 0.875, "bicubic", 80.336, 94.908),
    ("resnext101_32x8d.tv_in1k", 224, 0.875, "bilinear", 79.308, 94.530, IMAGENET, BSD),
    ("resnext101_32x8d.tv2_in1k", 176, 0.875, "bilinear", 81.990, 95.716, IMAGENET, BSD),
    ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 82.720, 96.624, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x8d.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 81.620, 96.036, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 84.276, 97.188, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x16d.fb_wsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 84.166, 97.192, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", 81.856, 96.084, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x16d.fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 83.340, 96.844, IMAGENET, NON_COMMERCIAL),
    ("resnext101_32x32d.fb_wsl_ig1b_ft_in1k", 224, 0.875, "bilinear", 85.090, 97.442, IMAGENET, NON_COMMERCIAL),
    ("resnext101_64x4d.c1_in1k", 224, 0.95, "bicubic", 82.446, 95.920),
    ("resnext101_64x4d.tv_in1k", 224, 0.875, "bilinear", 82.978, 96.252, IMAGENET, BSD),
    ("resnext101_64x4d.gluon_in1k", 224, 0.875, "bicubic", 80.640, 95.000),
    ("seresnet50.a1_in1k", 224, 0.95, "bicubic", 80.012, 94.704),
    ("seresnet50.a2_in1k", 224, 0.95, "bicubic", 80.102, 94.720),
    ("seresnet50.a3_in1k", 160, 0.95, "bicubic", 75.104, 92.096),
    ("seresnet50.ra2_in1k", 224, 0.875, "bicubic", 80.260, 95.068),
    ("seresnext50_32x4d.racm_in1k", 224, 0.875, "bicubic", 81.268, 95.624),
    ("seresnext50_32x4d.gluon_in1k", 224, 0.875, "bicubic", 79.916, 94.816),
    ("seresnext101_32x4d.gluon_in1k", 224, 0.875, "bicubic", 80.886, 95.268),
    ("seresnext101_32x8d.ah_in1k", 224, 0.95, "bicubic", 83.618, 96.412),
    ("seresnext101_64x4d.gluon_in1k", 224, 0.875, "bicubic", 80.884, 95.308),
    ("inception_resnet_v2.tf_in1k", 299, 0.8975, "bicubic", 80.434, 95.312, HALF),
    ("inception_resnet_v2.tf_ens_adv_in1k", 299, 0.8975, "bicubic", 79.998, 94.940, HALF),
    ("inception_v4.tf_in1k", 299, 0.875, "bicubic", 80.144, 94.982, HALF),
    ("resnetv2_50.a1h_in1k", 224, 0.95, "bicubic", 80.410, 95.082, HALF),
    ("resnetv2_101.a1h_in1k", 224, 0.95, "bicubic", 82.042, 95.866, HALF),
    ("legacy_xception.tf_in1k", 299, 0.8975, "bicubic", 79.058, 94.396, HALF),
)  # fmt: skip
TIMM_FILES = {
    "legacy_xception.tf_in1k":
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth",
}  # fmt: skip


def _timm(name: str, size: int, crop: float, interpolation: str, top1: float, top5: float, norm: tuple = IMAGENET,
          licence: str = APACHE) -> Weights:  # fmt: skip
    model, fields = TIMM_MODELS[name.partition(".")[0]]
    file = TIMM_FILES.get(name, f"timm/{name}/model.safetensors")
    return Weights(
        f"timm:{name}", file, _digest_in_name(file) if name in TIMM_FILES else "", model,
        _square(size, int(size / crop), norm, interpolation), (top1, top5), licence, fields,
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
        (top1, None), "BSD-2-Clause", data="CIFAR-10",
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
