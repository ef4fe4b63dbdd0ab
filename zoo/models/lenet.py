"""LeNet-5. LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".

`LeNet5` is the form it is taught in today; `LeNet51998` is the network of the paper's figure 2, trainable subsampling,
partial connections and radial basis outputs included.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.layers import Conv, ConvPool, avg_pool, conv2d, require_images

ACTIVATIONS = {"relu": nn.relu, "tanh": jnp.tanh, "sigmoid": nn.sigmoid}
POOLS = ("max", "avg")


class LeNet5(nn.Module):
    """The modern LeNet-5: 61,706 parameters with one input channel, 32x32 pixels and ten classes.

    Differs from the paper: every map of C3 sees all six of S2, pooling has no parameters, the output is a dense
    softmax layer, ReLU and maxima instead of tanh and means (`activation`, `pool` give those back).
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
        require_images(images, 16, "LeNet-5", bound_to=self.image_size)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is not one of {', '.join(POOLS)}")
        act = ACTIVATIONS[self.activation]
        init = nn.initializers.he_normal() if self.activation == "relu" else nn.initializers.glorot_uniform()
        ends = {}
        x = images.astype(self.dtype)  # [B, 32, 32, 1]
        for i, features in enumerate((6, 16), 1):
            x = ConvPool(features, 5, act, self.pool, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(x)
            ends[f"conv{i}"] = x  # [B, 14, 14, 6], then [B, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate((120, 84), 1):
            x = act(nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"dense{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
            ends[f"dense{i}"] = x
        ends["features"] = x
        if self.num_classes is not None:
            x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
            ends["logits"] = x = x.astype(jnp.float32)
        return x, ends


# Table I: which maps of S2 (columns of the paper's table are the sixteen maps of C3) each map of C3 reads.
C3_READS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The output codes: 7x12 drawings of the digits, after figure 3. Rows from the top; "#" is +1, "." is -1. The scan of
# the figure does not settle every pixel; what matters to the network is that the codes are fixed and far apart.
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
    """1.7159 tanh(2/3 x): the squashing function of appendix A, which maps ±1 to ±1."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def _uniform_fan_in(fan_in: int):
    """Uniform between ±2.4 / fan_in, as in appendix A."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -2.4 / fan_in, 2.4 / fan_in)

    return init


class Subsampling(nn.Module):
    """The four inputs of each 2x2 cell summed, times a trainable coefficient, plus a bias: [B, H, W, C] -> halves."""

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        coefficient = self.param("coefficient", nn.initializers.constant(0.25), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return 4 * avg_pool(x, 2, 2) * coefficient.astype(x.dtype) + bias.astype(x.dtype)


class PartialConv(nn.Module):
    """C3: a 5x5 convolution whose map i reads only the maps reads[i]. Parameters: kernel [60, 5, 5], bias [16]."""

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


class LeNet51998(nn.Module):
    """LeNet-5 as published: 60,000 trainable parameters, for ten digits in 32x32 pixels.

    C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164. The logits are minus the squared distances of F6 to ten
    fixed 7x12 codes, so softmax cross-entropy on them is the paper's discriminative criterion (equation 9) without
    its constant j. Differs: trained by what the recipe says, not by the stochastic diagonal Levenberg-Marquardt method.
    """

    num_classes: int | None = 10
    dtype: Any = jnp.float32

    family = "lenet"
    model_parallel = ()
    paper = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
    stages = ("c1", "s2", "c3", "s4", "c5", "f6", "head")
    input_shape = (32, 32, 1)
    channels = "L"  # the only ones it takes: images are adapted

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        if self.num_classes not in (None, 10):
            raise ValueError(
                f"lenet5_1998 has fixed output codes for the ten digits and cannot have {self.num_classes} classes; "
                "lenet5 is the modern form, for any number of classes"
            )
        require_images(images, 32, "lenet5_1998", bound_to=32)
        if images.shape[-1] != 1:
            raise ValueError(f"lenet5_1998 takes one channel; got {images.shape[-1]}. lenet5 takes any number")

        def conv(features, name, fan_in):
            return Conv(features, 5, padding=0, kernel_init=_uniform_fan_in(fan_in), dtype=self.dtype, name=name)

        ends = {}
        x = images.astype(self.dtype)
        ends["c1"] = x = scaled_tanh(conv(6, "c1", 25)(x))  # [B, 28, 28, 6]
        ends["s2"] = x = scaled_tanh(Subsampling(name="s2")(x))  # [B, 14, 14, 6]
        ends["c3"] = x = scaled_tanh(PartialConv(C3_READS, self.dtype, name="c3")(x))  # [B, 10, 10, 16]
        ends["s4"] = x = scaled_tanh(Subsampling(name="s4")(x))  # [B, 5, 5, 16]
        ends["c5"] = x = scaled_tanh(conv(120, "c5", 400)(x)).reshape(x.shape[0], 120)
        f6 = nn.Dense(84, kernel_init=_uniform_fan_in(120), dtype=self.dtype, name="f6")
        ends["f6"] = ends["features"] = x = scaled_tanh(f6(x))
        if self.num_classes is not None:
            ends["logits"] = x = -jnp.square(x[:, None].astype(jnp.float32) - digit_codes()).sum(-1)
        return x, ends


def digit_codes() -> jax.Array:
    """The fixed targets of the radial basis outputs, float32 [10, 84], ±1."""
    drawings = [DIGITS[str(digit)].replace(" ", "") for digit in range(10)]
    return jnp.array([[1.0 if pixel == "#" else -1.0 for pixel in drawing] for drawing in drawings], jnp.float32)
