"""Softmax regression and the multi-layer perceptron.

Rosenblatt 1958 (the perceptron); Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating
errors" (hidden layers). Differs from 1986: softmax and cross-entropy instead of squared error, ReLU by default.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import Dense, classify, find_activation, require_channels, require_images


class MLP(nn.Module):
    """Multi-layer perceptron on the flattened image; softmax regression without hidden layers.

    Stages: hidden1, hidden2, …, head.

    Attributes:
        widths: units of each hidden layer.
        activation: "relu", "tanh" or "sigmoid".
        dropout: rate after each hidden layer.
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the first layer.
        image_width: width of images that are not square, such as points (1x2 pixels); 0 for `image_size`.
        dtype: type of the computation.
    """

    widths: tuple[int, ...] = (512, 256)
    activation: str = "relu"
    dropout: float = 0.0
    num_classes: int | None = 10
    image_size: int = 28
    image_width: int = 0
    dtype: Any = jnp.float32

    family = "perceptron"
    added_fields = ("image_width",)
    model_parallel = (r"hidden\d+/(kernel|bias)",)
    paper = "Rumelhart et al. 1986, Learning representations by back-propagating errors"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*(f"hidden{i}" for i in range(1, len(self.widths) + 1)), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_width or self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        sizes = ("image_size", "image_width")
        require_images(images, 1, "an MLP", fixed_size=self.input_shape[:2], size_fields=sizes)
        act = find_activation(self.activation)
        hidden_init = nn.initializers.he_normal() if self.activation == "relu" else nn.initializers.glorot_uniform()
        ends = {}
        first = self.variables.get("params", {}).get(self.stages[0], {})
        require_channels(self, images.shape[-1], first.get("kernel"), positions=math.prod(self.input_shape[:2]))
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            x = Dense(width, kernel_init=hidden_init, dtype=self.dtype, name=f"hidden{i}")(x)
            x = act(x)
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
            ends[f"hidden{i}"] = x
        head_init = nn.initializers.glorot_uniform() if self.widths else nn.initializers.zeros
        return classify(x, ends, self.num_classes, train, kernel_init=head_init, dtype=self.dtype)
