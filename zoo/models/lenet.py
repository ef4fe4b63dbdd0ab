"""LeNet-1, LeNet-4 and LeNet-5.

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition". `LeNet5` is the form
taught today; `LeNet51998` is the network of figure 2 of the paper, with trainable subsampling, partial connections and
radial basis outputs. Section III.C also compares LeNet-4, and LeNet-1, which was published in LeCun et al. 1989,
"Handwritten digit recognition with a back-propagation network".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.layers import Conv, ConvPool, Dense, classify, find_activation, require_images
from zoo.models.operations import avg_pool, conv2d

POOLS = ("max", "avg")


class LeNet5(nn.Module):
    """Modern LeNet-5: 61,706 parameters with one input channel, 32x32 pixels and ten classes.

    Differs from the paper: every channel of C3 reads all six of S2, pooling has no parameters, and the output is a
    dense softmax layer. ReLU and max pooling replace tanh and average pooling by default.

    Attributes:
        activation: "relu", "tanh" or "sigmoid".
        pool: "max" or "avg".
        dropout: rate after each hidden dense layer.
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the dense layers.
        dtype: type of the computation.
    """

    activation: str = "relu"
    pool: str = "max"
    dropout: float = 0.0
    num_classes: int | None = 10
    image_size: int = 32
    dtype: Any = jnp.float32

    family = "lenet"
    model_parallel = ()
    paper = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
    stages = ("conv1", "conv2", "dense1", "dense2", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 16, "LeNet-5", fixed_size=self.image_size)
        act = find_activation(self.activation)
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is not one of {', '.join(POOLS)}")
        init = nn.initializers.he_normal() if self.activation == "relu" else nn.initializers.glorot_uniform()
        ends = {}
        x = images.astype(self.dtype)  # [B, 32, 32, 1]
        for i, features in enumerate((6, 16), 1):
            x = ConvPool(features, 5, act, self.pool, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(x)
            ends[f"conv{i}"] = x  # [B, 14, 14, 6], then [B, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate((120, 84), 1):
            x = act(Dense(width, kernel_init=init, dtype=self.dtype, name=f"dense{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
            ends[f"dense{i}"] = x
        return classify(x, ends, self.num_classes, train, kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)


# Table I: channels of S2 that each of the sixteen channels of C3 reads (a column of the table).
C3_READS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Output codes: 7x12 bitmaps of the digits, after figure 3. Rows from the top; "#" is +1, "." is -1. The figure does not
# determine every pixel; the network only needs codes that are fixed and far apart.
DIGITS = {
    "0": "....... ..###.. .##.##. ##...## ##...## ##...## ##...## ##...## ##...## .##.##. ..###.. .......",
    "1": "....... ...##.. ..###.. .####.. ...##.. ...##.. ...##.. ...##.. ...##.. ...##.. .###### .......",
    "2": "....... .#####. ##...## .....## .....## ....##. ...##.. ..##... .##.... ##..... ####### .......",
    "3": "....... ####### ....##. ...##.. ..##... ..####. .....## .....## .....## ##...## .#####. .......",
    "4": "....... ....##. ...###. ..####. .##.##. ##..##. ##..##. ####### ....##. ....##. ....##. .......",
    "5": "....... ####### ##..... ##..... ##..... ######. .....## .....## .....## ##...## .#####. .......",
    "6": "....... ..####. .##.... ##..... ##..... ##.###. ###..## ##...## ##...## .##..## ..####. .......",
    "7": "....... ####### ##...## .....## ....##. ....##. ...##.. ...##.. ..##... ..##... ..##... .......",
    "8": "....... .#####. ##...## ##...## .##.##. ..###.. .##.##. ##...## ##...## ##...## .#####. .......",
    "9": "....... .####.. ##..##. ##...## ##...## ##..### .###.## .....## .....## ....##. .####.. .......",
}


def scaled_tanh(x):
    """Return 1.7159 tanh(2/3 x), the activation of appendix A, which maps ±1 to ±1."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def _uniform_fan_in(fan_in: int):
    """Return an initialiser that draws uniformly between ±2.4 / fan_in, as in appendix A."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -2.4 / fan_in, 2.4 / fan_in)

    return init


class Subsampling(nn.Module):
    """Trainable subsampling: sum over 2x2, times a coefficient, plus a bias. [B, H, W, C] -> [B, H / 2, W / 2, C].

    Parameters: coefficient [C], bias [C].
    """

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        coefficient = self.param("coefficient", nn.initializers.constant(0.25), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return 4 * avg_pool(x, 2, 2) * coefficient.astype(x.dtype) + bias.astype(x.dtype)


class PartialConv(nn.Module):
    """Partially connected 5x5 convolution (C3): output channel i reads only the input channels reads[i].

    Parameters: kernel [number of connections, 5, 5], bias [number of output channels]; C3 has 60 and 16.
    """

    reads: tuple[tuple[int, ...], ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        pairs = [(i, o) for o, inputs in enumerate(self.reads) for i in inputs]

        def init(key, shape, dtype):
            fan_in = jnp.array([25.0 * len(self.reads[o]) for _, o in pairs])
            return jax.random.uniform(key, shape, dtype, -2.4, 2.4) / fan_in[:, None, None]

        kernel = self.param("kernel", init, (len(pairs), 5, 5), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (len(self.reads),), jnp.float32)
        rows, columns = (jnp.array(side) for side in zip(*pairs, strict=True))
        full = jnp.zeros((x.shape[-1], len(self.reads), 5, 5), jnp.float32).at[rows, columns].set(kernel)
        full = full.transpose(2, 3, 0, 1).astype(self.dtype)
        return conv2d(x, full, (1, 1), ((0, 0), (0, 0))) + bias.astype(self.dtype)


# LeCun et al. 1989, table 1: maps of H2 that each of the twelve maps of H3 reads.
H3_READS = (
    (0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1),
    (2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3),
)  # fmt: skip

# Not published (see `LeNet4`): each map of C3 reads three of S2, each map of S2 is read by six of C3.
LENET4_C3_READS = tuple(tuple(sorted((i + j) % 8 for j in steps)) for steps in ((0, 1, 3), (0, 2, 4)) for i in range(8))


class LeNet1(nn.Module):
    """LeNet-1 (LeCun et al. 1989): 2,578 parameters with 28x28 pixels and ten classes, as the paper counts.

    H1 104, H2 8, H3 512, H4 24, output 1,930. The paper's other counts, 4,635 units and 98,442 connections, follow from
    the same layers.

    Differs from the paper: its output units are squashed and trained on ±1 by the squared error; here the logits are
    their inputs, for softmax cross-entropy. It was trained by a quasi-Newton method. Not specified in the paper: the
    squashing function, here that of LeNet-5 (1998, appendix A), also after H2 and H4.

    Attributes:
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the output layer.
        dtype: type of the computation.
    """

    num_classes: int | None = 10
    image_size: int = 28
    dtype: Any = jnp.float32

    family = "lenet"
    model_parallel = ()
    paper = "LeCun et al. 1989, Handwritten digit recognition with a back-propagation network"
    stages = ("h1", "h2", "h3", "h4", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 16, "lenet1", fixed_size=self.image_size)
        ends = {}
        x = images.astype(self.dtype)  # [B, 28, 28, 1]
        conv = Conv(4, 5, padding=0, kernel_init=_uniform_fan_in(25 * x.shape[-1]), dtype=self.dtype, name="h1")
        ends["h1"] = x = scaled_tanh(conv(x))  # [B, 24, 24, 4]
        ends["h2"] = x = scaled_tanh(Subsampling(name="h2")(x))  # [B, 12, 12, 4]
        ends["h3"] = x = scaled_tanh(PartialConv(H3_READS, self.dtype, name="h3")(x))  # [B, 8, 8, 12]
        ends["h4"] = x = scaled_tanh(Subsampling(name="h4")(x))  # [B, 4, 4, 12]
        x = x.reshape(x.shape[0], -1)
        init = _uniform_fan_in(x.shape[-1])
        return classify(x, ends, self.num_classes, train, kernel_init=init, dtype=self.dtype)


class LeNet4(nn.Module):
    """LeNet-4 (LeCun et al. 1998, section III.C.8): 50,698 parameters with 32x32 pixels and ten classes.

    C1 104, S2 16, C3 1,216, S4 32, F5 48,120, output 1,210. Two maps of S2 read each map of C1. The paper describes the
    network in one paragraph, which does not determine it:

    - which maps of S2 each map of C3 reads is not printed. Here each reads three, the number at which the network has
      262,306 connections, "about 260,000" in the paper;
    - it prints "about 17,000 free parameters", but a fully connected layer of 120 units on sixteen maps of 5x5, as it
      describes, has 48,120 alone.

    Not specified in the paper either: the output units, here a dense layer whose outputs are the logits. The squashing
    function is that of LeNet-5.

    Attributes:
        num_classes: number of classes, or None for no head.
        image_size: height and width of the images, which fix the layer F5.
        dtype: type of the computation.
    """

    num_classes: int | None = 10
    image_size: int = 32
    dtype: Any = jnp.float32

    family = "lenet"
    model_parallel = ()
    paper = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
    stages = ("c1", "s2", "c3", "s4", "f5", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 1)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 16, "lenet4", fixed_size=self.image_size)
        ends = {}
        x = images.astype(self.dtype)  # [B, 32, 32, 1]
        conv = Conv(4, 5, padding=0, kernel_init=_uniform_fan_in(25 * x.shape[-1]), dtype=self.dtype, name="c1")
        ends["c1"] = x = scaled_tanh(conv(x))  # [B, 28, 28, 4]
        ends["s2"] = x = scaled_tanh(Subsampling(name="s2")(jnp.repeat(x, 2, axis=-1)))  # [B, 14, 14, 8]
        ends["c3"] = x = scaled_tanh(PartialConv(LENET4_C3_READS, self.dtype, name="c3")(x))  # [B, 10, 10, 16]
        ends["s4"] = x = scaled_tanh(Subsampling(name="s4")(x))  # [B, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)
        f5 = Dense(120, kernel_init=_uniform_fan_in(x.shape[-1]), dtype=self.dtype, name="f5")
        ends["f5"] = x = scaled_tanh(f5(x))
        return classify(x, ends, self.num_classes, train, kernel_init=_uniform_fan_in(120), dtype=self.dtype)


class LeNet51998(nn.Module):
    """LeNet-5 as published: 60,000 trainable parameters, for ten digits in 32x32 pixels.

    C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164. The logits are minus the squared distances of F6 to ten fixed
    7x12 codes, so softmax cross-entropy on them is the discriminative criterion of equation 9 without its constant j.

    Differs from the paper: trained as the recipe says, not by the stochastic diagonal Levenberg-Marquardt method.

    Attributes:
        num_classes: 10, or None for no head.
        dtype: type of the computation.
    """

    num_classes: int | None = 10
    dtype: Any = jnp.float32

    family = "lenet"
    model_parallel = ()
    paper = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
    stages = ("c1", "s2", "c3", "s4", "c5", "f6", "head")
    input_shape = (32, 32, 1)
    channels = "L"  # grey only; preprocessing converts other images

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        if self.num_classes not in (None, 10):
            raise ValueError(
                f"lenet5_1998 has output codes for the ten digits only, not for num_classes={self.num_classes}; "
                "lenet5 takes any number of classes"
            )
        require_images(images, 32, "lenet5_1998", fixed_size=32, size_fields=())
        if images.shape[-1] != 1:
            raise ValueError(f"lenet5_1998 takes one channel; got {images.shape[-1]} (lenet5 takes any number)")

        def conv(features, name, fan_in):
            return Conv(features, 5, padding=0, kernel_init=_uniform_fan_in(fan_in), dtype=self.dtype, name=name)

        ends = {}
        x = images.astype(self.dtype)
        ends["c1"] = x = scaled_tanh(conv(6, "c1", 25)(x))  # [B, 28, 28, 6]
        ends["s2"] = x = scaled_tanh(Subsampling(name="s2")(x))  # [B, 14, 14, 6]
        ends["c3"] = x = scaled_tanh(PartialConv(C3_READS, self.dtype, name="c3")(x))  # [B, 10, 10, 16]
        ends["s4"] = x = scaled_tanh(Subsampling(name="s4")(x))  # [B, 5, 5, 16]
        ends["c5"] = x = scaled_tanh(conv(120, "c5", 400)(x)).reshape(x.shape[0], 120)
        f6 = Dense(84, kernel_init=_uniform_fan_in(120), dtype=self.dtype, name="f6")
        ends["f6"] = ends["features"] = x = scaled_tanh(f6(x))
        if self.num_classes is not None:
            ends["logits"] = x = -jnp.square(x[:, None].astype(jnp.float32) - digit_codes()).sum(-1)
        return x, ends


def digit_codes() -> jax.Array:
    """Return the fixed codes of the radial basis outputs, float32 [10, 84] of ±1."""
    bitmaps = [DIGITS[str(digit)].replace(" ", "") for digit in range(10)]
    return jnp.array([[1.0 if pixel == "#" else -1.0 for pixel in bitmap] for bitmap in bitmaps], jnp.float32)
