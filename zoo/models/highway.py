"""Highway networks.

Srivastava, Greff and Schmidhuber 2015, "Highway networks", arXiv:1505.00387 (fully connected), and "Training very deep
networks", arXiv:1507.06228 (convolutional): y = T(x) H(x) + (1 - T(x)) x. With T fixed at 1/2 this is (x + H(x)) / 2, a
residual layer up to scale.

Not specified in the papers: the pooling of the convolutional network. Three 2x2 poolings of 28x28 pixels, leaving 3x3,
give the numbers of parameters in table 1 (39 thousand with 16 channels, 151 thousand with 32); here they follow every
third layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import Conv, Dense, classify, find_activation, require_channels, require_images
from zoo.models.operations import max_pool

ACTIVATIONS = ("relu", "tanh")


class HighwayLayer(nn.Module):
    """Highway layer, T(x) H(x) + (1 - T(x)) x, of the shape of x.

    Children: transform (H) and gate (T).

    Attributes:
        layer: constructor of H and T.
        act: activation of H.
        gate_bias: initial bias of T. A negative value starts the layer near the identity (arXiv:1505.00387, section
            2.2).
    """

    layer: Callable[..., nn.Module]
    act: Callable
    gate_bias: float

    @nn.compact
    def __call__(self, x):
        transformed = self.act(self.layer(name="transform")(x))
        gate = nn.sigmoid(self.layer(bias_init=nn.initializers.constant(self.gate_bias), name="gate")(x))
        return gate * transformed + (1 - gate) * x


def _layer_names(layers: int) -> tuple[str, ...]:
    """Return layer01, layer02, …, zero-padded so that none is a prefix of another."""
    return tuple(f"layer{i:0{len(str(layers))}}" for i in range(1, layers + 1))


class Highway(nn.Module):
    """Fully connected highway network (arXiv:1505.00387, section 3.1, on MNIST).

    One plain layer, highway layers and a softmax layer. Stages: layer01, …, head.

    Attributes:
        layers: number of layers, the plain one included; 10, 20, 50 and 100 in the paper.
        width: units of each layer.
        gate_bias: initial bias of the gates, -1 or below.
        activation: activation of H, "relu" or "tanh".
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the first layer.
        dtype: type of the computation.
    """

    layers: int = 10
    width: int = 50
    gate_bias: float = -1.0
    activation: str = "relu"
    num_classes: int | None = 10
    image_size: int = 28
    dtype: Any = jnp.float32

    family = "highway"
    model_parallel = ()
    paper = "Srivastava et al. 2015, Highway networks, arXiv:1505.00387"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*_layer_names(self.layers), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 1, "a highway network", fixed_size=self.image_size)
        act = find_activation(self.activation, ACTIVATIONS)
        dense = partial(Dense, self.width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        first = self.variables.get("params", {}).get(self.stages[0], {})
        require_channels(self, images.shape[-1], first.get("kernel"), positions=self.image_size**2)
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        ends = {}
        for i, name in enumerate(_layer_names(self.layers)):
            x = HighwayLayer(dense, act, self.gate_bias, name=name)(x) if i else act(dense(name=name)(x))
            ends[name] = x
        return classify(x, ends, self.num_classes, train, kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)


class ConvHighway(nn.Module):
    """Convolutional highway network (arXiv:1507.06228, table 1, on MNIST).

    Nine 3x3 layers, the first a plain one, 2x2 max pooling after every third, and a softmax layer. Stages: layer1, …,
    head.

    Attributes:
        layers: number of convolutional layers.
        width: channels of each layer, 16 or 32 in the paper (38,730 or 151,178 parameters).
        gate_bias: initial bias of the gates.
        activation: activation of H, "relu" or "tanh".
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the head.
        dtype: type of the computation.
    """

    layers: int = 9
    width: int = 16
    gate_bias: float = -1.0
    activation: str = "relu"
    num_classes: int | None = 10
    image_size: int = 28
    dtype: Any = jnp.float32

    family = "highway"
    model_parallel = ()
    paper = "Srivastava et al. 2015, Training very deep networks, arXiv:1507.06228"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*_layer_names(self.layers), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 2 ** (self.layers // 3), "this highway network", fixed_size=self.image_size)
        act = find_activation(self.activation, ACTIVATIONS)
        conv = partial(Conv, self.width, 3, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        x = images.astype(self.dtype)  # [B, 28, 28, 1]
        ends = {}
        for i, name in enumerate(_layer_names(self.layers), 1):
            x = act(conv(name=name)(x)) if i == 1 else HighwayLayer(conv, act, self.gate_bias, name=name)(x)
            if i % 3 == 0:
                x = max_pool(x, 2, 2)  # [B, 14, 14, 16], [B, 7, 7, 16], [B, 3, 3, 16]
            ends[name] = x
        features = x.reshape(x.shape[0], -1)
        return classify(features, ends, self.num_classes, train, kernel_init=nn.initializers.lecun_normal(),
                        dtype=self.dtype)  # fmt: skip
