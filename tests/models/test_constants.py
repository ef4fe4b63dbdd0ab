"""Constants of the published networks that neither parameter counts nor inference show, in one table."""

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo.models as models
from zoo.models import MODELS, alexnet, create, googlenet, inception_resnet_v2
from zoo.models.group_norm import GroupNorm, StandardizedConv
from zoo.models.layers import BatchNorm, Conv, ConvPool


@dataclass(frozen=True)
class Constants:
    """Constants of a network.

    Attributes:
        dropout: path of a dropout layer -> (rate, path of the next layer with parameters).
        batch_norm: (momentum, epsilon), the same for all norms.
        kernels: initialisation of kernels (see INITIALISERS) by the end of their path; "" for all others.
        biases: initial value of biases by the end of their path; 0 for all others.
        group_norm: epsilon, the same for all norms.
    """

    dropout: dict[str, tuple[float, str]]
    batch_norm: tuple[float, float] | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    biases: dict[str, float] = field(default_factory=dict)
    group_norm: float | None = None


# Drawn kernels [3, 3, 32, 48]: fan-in 288, fan-out 432. Standard deviations, and the largest value in units of them:
# 1.73 for uniform, 2.27 for flax's truncated normal, about 4 for normal distributions.
INITIALISERS = {
    "he fan-out": (2 / 432) ** 0.5,
    "he fan-in": (2 / 288) ** 0.5,
    "lecun": (1 / 288) ** 0.5,
    "uniform fan-in": (1 / 288) ** 0.5,
    "torch linear": (1 / 3 / 288) ** 0.5,
    "glorot": (2 / (288 + 432)) ** 0.5,
    "normal 0.1": 0.1,
    "normal 0.01": 0.01,
    "normal 0.001": 0.001,
    "partial identity": (32 / 13824 + 1 / 3 / 3 / 288) ** 0.5,  # 32 ones, and a third of the kernel as torch linear
    "zeros": 0.0,
}
UNIFORM = ("uniform fan-in", "torch linear", "glorot")


def initialiser(function, fan_in: int | None = None) -> str:
    """Return the key of INITIALISERS that an initialiser draws from; `fan_in` for one that depends on the layer's."""
    shape = (1, 1, fan_in, 48) if fan_in else (3, 3, 32, 48)
    kernel = np.asarray(function(jax.random.key(0), shape, jnp.float32))
    uniform = bool(np.abs(kernel).max() < 1.75 * kernel.std())
    near = [name for name, std in INITIALISERS.items() if kernel.std() == pytest.approx(std, rel=0.02)]
    return next(name for name in near if name == "zeros" or uniform == (name in UNIFORM))


# momentum is the fraction kept: PyTorch's 0.1 is 0.9 here.
TORCH, TENSORFLOW = (0.9, 1e-5), (0.9, 1e-3)
HE_OUT = {"": "he fan-out", "head": "torch linear"}
HE_IN = {"": "he fan-in", "head": "torch linear"}

CONSTANTS = {
    # Zeros make softmax regression start from equal probabilities; Glorot and Bengio 2010 for the rest.
    "softmax": Constants({"dropout": (0, "head")}, kernels={"": "zeros"}),
    "mlp": Constants(
        {"dropout1": (0, "hidden2"), "dropout2": (0, "head"), "dropout": (0, "head")},
        kernels={"": "he fan-in", "head": "glorot"},
    ),
    "lenet5": Constants(
        {"dropout1": (0, "dense2"), "dropout2": (0, "head"), "dropout": (0, "head")},
        kernels={"": "he fan-in", "head": "lecun"},
    ),
    # Krizhevsky et al. 2012, section 4.2: dropout 0.5 after the first two dense layers; section 5: N(0, 0.01) and
    # biases 1.
    "alexnet": Constants(
        {"dropout_dense6": (0.5, "dense7"), "dropout_dense7": (0.5, "head"), "dropout": (0, "head")},
        kernels={"": "normal 0.01"},
        biases=dict.fromkeys(("conv2", "conv4", "conv5", "dense6", "dense7"), 1.0),
    ),
    # torchvision alexnet.py: dropout 0.5 before each hidden dense layer.
    "alexnet_owt": Constants(
        {"dropout_dense6": (0.5, "dense6"), "dropout_dense7": (0.5, "dense7"), "dropout": (0, "head")}, kernels=HE_IN
    ),
    # Szegedy et al. 2014, section 5: 40 % dropout, 70 % in the auxiliary heads. Caffe's bvlc_googlenet: biases 0.2.
    "googlenet": Constants(
        {"aux1/dropout": (0.7, "aux1/head"), "aux2/dropout": (0.7, "aux2/head"), "dropout": (0.4, "head")},
        kernels={"": "uniform fan-in"},
        biases={"": 0.2, "head": 0.0, "aux1/head": 0.0, "aux2/head": 0.0},
    ),
    # torchvision googlenet.py: dropout 0.2 and 0.7, eps 0.001, trunc_normal_(std=0.01).
    "googlenet_bn": Constants(
        {"aux1/dropout": (0.7, "aux1/head"), "aux2/dropout": (0.7, "aux2/head"), "dropout": (0.2, "head")},
        TENSORFLOW,
        {"": "normal 0.01"},
    ),
    # Ioffe and Szegedy 2015, section 4.2.1: no dropout. TF-Slim inception_v2.py: epsilon 0.001.
    "inception_v2": Constants({"dropout": (0, "head")}, TENSORFLOW, {"": "he fan-out", "head": "lecun"}),
    # torchvision inception.py: dropout 0.5, eps 0.001, stddev 0.1, 0.01 (aux conv1) and 0.001 (aux fc).
    "inception_v3": Constants(
        {"dropout": (0.5, "head")},
        TENSORFLOW,
        {"": "normal 0.1", "aux1/conv1/conv": "normal 0.01", "aux1/head": "normal 0.001"},
    ),
    # Szegedy et al. 2016, figures 9 and 15: dropout, keep 0.8. TF-Slim: epsilon 0.001.
    "inception_v4": Constants({"dropout": (0.2, "head")}, TENSORFLOW, HE_IN),
    "inception_resnet_v1": Constants({"dropout": (0.2, "head")}, TENSORFLOW, kernels=HE_IN),
    "inception_resnet_v2": Constants({"dropout": (0.2, "head")}, TENSORFLOW, HE_IN),
    # Chollet 2016, section 4.2.2: dropout 0.5. timm xception.py: PyTorch's epsilon.
    "xception": Constants({"dropout": (0.5, "head")}, TORCH, HE_IN),
    # torchvision resnet.py: kaiming_normal_(mode="fan_out"), PyTorch's batch norm and linear layer.
    "resnet18": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    "resnet50": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    "resnet50d": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    "se_resnet50": Constants({"dropout": (0, "head")}, TORCH, HE_OUT | {"se/reduce": "lecun", "se/expand": "lecun"}),
    "resnet20": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    "resnet9": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    # Jordan 2024, appendix A: dirac_ and PyTorch's initialisation.
    "airbench": Constants(
        {"dropout": (0, "head")}, TORCH, {"": "partial identity", "whiten": "he fan-out", "head": "torch linear"}
    ),
    "resnet50_v2": Constants({"dropout": (0, "head")}, TORCH, HE_OUT),
    # timm resnet.py: GroupNorm, eps 1e-5, initialised as the others.
    "resnet50_gn": Constants({"dropout": (0, "head")}, group_norm=1e-5, kernels=HE_OUT),
    # google-research/big_transfer bit_jax/models.py: eps 1e-5, the head starts at zero.
    "bit_r50x1": Constants({"dropout": (0, "head")}, group_norm=1e-5, kernels={"": "he fan-out", "head": "zeros"}),
    "wide_resnet28_10": Constants(
        {**{f"stage{i}_block1/dropout": (0, f"stage{i}_block1/conv2") for i in (1, 2, 3)}, "dropout": (0, "head")},
        TORCH,
        HE_OUT,
    ),
    # Srivastava et al. 2015, section 2.2: gate biases start below 0, at -1 for 10 layers.
    "highway": Constants({"dropout": (0, "head")}, kernels={"": "he fan-in", "head": "lecun"}, biases={"gate": -1.0}),
    "highway_conv": Constants(
        {"dropout": (0, "head")}, kernels={"": "he fan-in", "head": "lecun"}, biases={"gate": -1.0}
    ),
}


def lookup(table: dict[str, Any], path: str, default: Any) -> Any:
    """Return the value of the longest key that a path ends with, at a "/"."""
    matches = [key for key in table if not key or f"/{path}".endswith(f"/{key}")]
    return table[max(matches, key=len)] if matches else default


def trace(model) -> list[tuple[str, nn.Module]]:
    """The layers of a model in the order in which training calls them, by path."""
    calls = []

    def record(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(
            context.module, (nn.Dropout, BatchNorm, GroupNorm, Conv, StandardizedConv, ConvPool, nn.Dense)
        ):
            calls.append(("/".join(context.module.path), context.module))
        return call(*args, **kwargs)

    def train(images, key):
        with nn.intercept_methods(record):
            return model.init({"params": key, "dropout": key}, images, train=True)

    jax.eval_shape(train, jnp.zeros((1, *model.input_shape)), jax.random.key(0))
    return calls


def one_block_a_stage(name):
    fields = models.defining_fields(create(name))
    if "depth" in fields:
        return create(name, depth=10)
    if "googlenet" in name:
        return create(name, blocks=(1, 4, 1))  # both auxiliary heads
    return create(name, **({"blocks": (1,) * len(fields["blocks"])} if "blocks" in fields else {}))


@pytest.mark.parametrize("name", CONSTANTS)
def test_published_constants(name):
    """Runtime fields and epsilon are changed, to see that they reach every layer."""
    expected, model = CONSTANTS[name], one_block_a_stage(name)
    epsilon = expected.batch_norm[1] if expected.batch_norm else expected.group_norm
    assert getattr(model, "epsilon", None) == epsilon
    changes = {"dtype": jnp.bfloat16} | ({"epsilon": 0.125} if epsilon else {})
    changes |= {"axis_name": "batch"} if expected.batch_norm else {}
    calls = trace(model.clone(**changes))
    dropout = {}
    for i, (path, layer) in enumerate(calls):
        if isinstance(layer, nn.Dropout):
            assert not layer.deterministic, path
            later = (name for name, layer in calls[i:] if not isinstance(layer, nn.Dropout))
            dropout[path] = (layer.rate, next(later))
    assert dropout == expected.dropout
    norms = {(layer.momentum, layer.epsilon, layer.axis_name) for _, layer in calls if isinstance(layer, BatchNorm)}
    assert norms == ({(expected.batch_norm[0], 0.125, "batch")} if expected.batch_norm else set())
    epsilons = {layer.epsilon for _, layer in calls if isinstance(layer, GroupNorm)}
    assert epsilons == ({0.125} if expected.group_norm else set())
    names: dict[Any, str] = {}
    fans = alexnet.FAN_IN if name == "alexnet" else {}  # larger in narrower networks
    for path, layer in calls:
        if isinstance(layer, (Conv, StandardizedConv, ConvPool, nn.Dense)):
            assert layer.dtype == jnp.bfloat16, path
            if layer.kernel_init not in names:
                names[layer.kernel_init] = initialiser(layer.kernel_init, fans.get(path))
            assert names[layer.kernel_init] == lookup(expected.kernels, path, None), path
            bias = getattr(layer, "bias_init", nn.initializers.zeros)(jax.random.key(0), (1,), jnp.float32)
            assert float(bias[0]) == pytest.approx(lookup(expected.biases, path, 0.0)), path


def test_every_family_has_constants():
    families = {create(name).family for name in (*CONSTANTS, "lenet5_1998")}
    assert families == {create(name).family for name in MODELS}


# Krizhevsky et al. 2012, section 3.3: n = 5, alpha = 1e-4, beta = 0.75, k = 2. Caffe's bvlc_googlenet: n = 5, alpha =
# 1e-4 divided by n, beta = 0.75, k = 1.
RESPONSE_NORMS = {
    "alexnet": (alexnet, {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}, 2),
    "googlenet": (googlenet, {"size": 5, "alpha": 2e-5, "beta": 0.75, "k": 1.0}, 2),
}


@pytest.mark.parametrize("name", RESPONSE_NORMS)
def test_published_response_normalisation(name, monkeypatch):
    module, expected, count = RESPONSE_NORMS[name]
    calls = []

    def local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0):
        calls.append({"size": size, "alpha": alpha, "beta": beta, "k": k})
        return x

    monkeypatch.setattr(module, "local_response_norm", local_response_norm)
    model = one_block_a_stage(name)
    jax.eval_shape(lambda images: model.init(jax.random.key(0), images), jnp.zeros((1, *model.input_shape)))
    assert calls == count * [expected]


# Fields of the entries of MODELS that their parameter counts do not determine.
FIELDS = {
    "resnet50_v1": {"stride_in": "1x1"},
    "resnet101_v1": {"stride_in": "1x1"},
    "resnet152_v1": {"stride_in": "1x1"},
    "resnet50_v1_small": {"stride_in": "1x1"},
    "resnet50": {"stride_in": "3x3", "shortcut": "conv", "stem": "imagenet"},
    "resnet50d": {"shortcut": "pool", "stem": "deep"},
    "resnet50d_small": {"shortcut": "pool", "stem": "small"},
    "resnet20": {"shortcut": "pad", "stem": "small", "blocks": (3, 3, 3), "width": 16},
    "resnet1202": {"blocks": (200, 200, 200)},
    "resnet50_v2": {"stride_at": "first", "conv_bias": False, "pool_padding": "nothing", "stem_norm": False},
    "resnet200_v2": {"stride_in": "3x3", "stem_norm": True, "shortcut": "conv"},
    "resnet164": {"stride_in": "1x1", "stem_norm": False, "blocks": (18, 18, 18)},
    "resnet1001": {"stride_in": "1x1", "blocks": (111, 111, 111)},
    "resnet50c": {"shortcut": "conv", "stem": "deep"},
    "resnet_rs50": {"shortcut": "pool", "stem": "deep", "stem_pool": "conv", "squeeze": 4, "stride_in": "3x3"},
    "inception_v3": {"pool_padding": "zeros"},
    "xception": {"pool_padding": "symmetric"},
    "alexnet": {"image_size": 227},
    "alexnet_owt": {"pool_size": 6},
    "airbench": {"width": 64, "logit_scale": 1 / 9},
    "mlp": {"activation": "relu", "image_size": 28},
    "lenet5": {"activation": "relu", "pool": "max", "image_size": 32},
    "highway": {"activation": "relu", "gate_bias": -1.0, "layers": 10, "width": 50},
    "highway_conv": {"activation": "relu", "gate_bias": -1.0, "layers": 9, "width": 16},
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_counts_do_not_determine(name):
    fields = models.defining_fields(create(name))
    assert {field: fields[field] for field in FIELDS[name]} == FIELDS[name]


@pytest.mark.parametrize("name", MODELS)
def test_regularisation_that_a_recipe_turns_on_is_off_by_default(name):
    model = create(name)
    assert getattr(model, "stochastic_depth", 0) == 0 and not getattr(model, "zero_init", False)
    assert getattr(model, "aux_heads", True) and model.dtype == jnp.float32
    assert not getattr(model, "remat", False) and getattr(model, "axis_name", None) is None


def test_lenet5_of_1998_starts_as_in_appendix_a():
    """Uniform between ±2.4 / fan-in: 25 for C1, 25 for each map that C3 reads, 400 for C5, 120 for F6."""
    params = models.init(create("lenet5_1998"), 0)["params"]
    reads = [3] * 18 + [4] * 36 + [6] * 6  # Table I: six columns of three maps, nine of four, one of six
    for name, fan_in in {"c1": 25, "c5": 400, "f6": 120}.items():
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.9 * 2.4 / fan_in < largest <= 2.4 / fan_in * (1 + 1e-6), name
    for kernel, maps in zip(params["c3"]["kernel"], reads, strict=True):
        assert 0.5 * 2.4 / (25 * maps) < np.abs(kernel).max() <= 2.4 / (25 * maps) * (1 + 1e-6)
    for name in ("s2", "s4"):
        assert np.all(params[name]["coefficient"] == 0.25) and not np.any(params[name]["bias"])


def test_factors_of_residual_branches():
    """TF-Slim inception_resnet_v2.py: 0.17, 0.1 and 0.2, within the range of Szegedy et al. 2016, section 3.3."""
    scales = {name[-1]: row.scale for name, row in inception_resnet_v2.INCEPTION_RESNETS.items()}
    assert scales == {"A": 0.17, "B": 0.1, "C": 0.2}


# arXiv ids of the papers, or words of a title that is not on arXiv.
PAPERS = {
    "softmax": "1986, Learning representations by back-propagating errors",
    "lenet5": "1998, Gradient-based learning applied to document recognition",
    "lenet1": "1989, Handwritten digit recognition with a back-propagation network",
    "lenet4": "1998, Gradient-based learning applied to document recognition",
    "lenet5_1998": "1998, Gradient-based learning applied to document recognition",
    "alexnet": "2012, ImageNet classification with deep convolutional neural networks",
    "alexnet_owt": "2014, One weird trick",
    "googlenet": "arXiv:1409.4842",
    "googlenet_bn": "arXiv:1409.4842",
    "inception_v2": "arXiv:1502.03167",
    "inception_v3": "arXiv:1512.00567",
    "inception_v4": "arXiv:1602.07261",
    "inception_resnet_v1": "arXiv:1602.07261",
    "inception_resnet_v2": "arXiv:1602.07261",
    "xception": "arXiv:1610.02357",
    "resnet50": "arXiv:1512.03385",
    "resnet50_v1": "arXiv:1512.03385",
    "resnet20": "arXiv:1512.03385",
    "resnet9": "2018, How to train your ResNet",
    "airbench": "arXiv:2404.00498",
    "resnet50_v2": "arXiv:1603.05027",
    "resnet164": "arXiv:1603.05027",
    "resnet50c": "arXiv:1812.01187",
    "resnet50d": "arXiv:1812.01187",
    "resnet50_gn": "arXiv:1803.08494",
    "eca_resnet50d": "arXiv:1910.03151",
    "resnet_rs50": "arXiv:2103.07579",
    "bit_r50x1": "arXiv:1912.11370",
    "resnext50_32x4d": "arXiv:1611.05431",
    "wide_resnet50_2": "arXiv:1605.07146",
    "se_resnet50": "arXiv:1709.01507",
    "wide_resnet28_10": "arXiv:1605.07146",
    "highway": "arXiv:1505.00387",
    "highway_conv": "arXiv:1507.06228",
}


@pytest.mark.parametrize("name", PAPERS)
def test_models_cite_their_papers(name):
    assert PAPERS[name] in create(name).paper
