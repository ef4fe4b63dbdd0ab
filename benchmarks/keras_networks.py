"""The measured networks in Keras, as a peer: its own ResNet-50, and the others built from its layers."""

import keras
from keras import layers as kl

from benchmarks.googlenet_modules import MODULES, POOLED


def conv(x, features, kernel, stride=1, padding=None, norm=True):
    """Return a convolution padded by half its kernel, with batch norm or else a bias."""
    padding = kernel // 2 if padding is None else padding
    x = kl.ZeroPadding2D(padding)(x) if padding and stride > 1 else x
    same = "same" if padding and stride == 1 else "valid"
    x = kl.Conv2D(features, kernel, stride, padding=same, use_bias=not norm)(x)
    return kl.BatchNormalization(momentum=0.9)(x) if norm else x


def relu(x):
    return kl.Activation("relu")(x)


def lenet5():
    x = start = keras.Input((32, 32, 1))
    for features in (6, 16):
        x = kl.MaxPooling2D(2)(kl.Conv2D(features, 5, activation="relu")(x))
    x = kl.Flatten()(x)
    for width in (120, 84):
        x = kl.Dense(width, activation="relu")(x)
    return keras.Model(start, kl.Dense(10)(x))


def alexnet_owt():
    x = start = keras.Input((224, 224, 3))
    x = kl.MaxPooling2D(3, 2)(relu(conv(x, 64, 11, 4, padding=2, norm=False)))
    x = kl.MaxPooling2D(3, 2)(relu(conv(x, 192, 5, norm=False)))
    for features in (384, 256, 256):
        x = relu(conv(x, features, 3, norm=False))
    x = kl.Flatten()(kl.MaxPooling2D(3, 2)(x))
    for _ in range(2):
        x = kl.Dense(4096, activation="relu")(kl.Dropout(0.5)(x))
    return keras.Model(start, kl.Dense(1000)(x))


def googlenet_bn():
    def pool(x, window=3):  # "same" pads at the end, as rounding up does
        return kl.MaxPooling2D(window, 2, padding="same")(x)

    def inception(x, f1, f3_reduce, f3, f5_reduce, f5, f_pool):
        pooled = kl.MaxPooling2D(3, 1, padding="same")(x)
        branches = [unit(x, f1, 1), unit(unit(x, f3_reduce, 1), f3, 3), unit(unit(x, f5_reduce, 1), f5, 3)]
        return kl.Concatenate()([*branches, unit(pooled, f_pool, 1)])

    def unit(*args):
        return relu(conv(*args))

    x = start = keras.Input((224, 224, 3))
    x = pool(unit(x, 64, 7, 2))
    x = pool(unit(unit(x, 64, 1), 192, 3))
    for number, sizes in enumerate(MODULES):
        x = inception(x, *sizes)
        if number in POOLED:
            x = pool(x, POOLED[number])
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(start, kl.Dense(1000)(kl.Dropout(0.2)(x)))


def resnet50():
    return keras.applications.ResNet50(weights=None, classifier_activation=None)


def resnet20():
    x = start = keras.Input((32, 32, 3))
    x = relu(conv(x, 16, 3))
    for stage in range(3):
        for block in range(3):
            width, stride = 16 * 2**stage, 2 if stage > 0 and block == 0 else 1
            y = conv(relu(conv(x, width, 3, stride)), width, 3)
            if stride > 1:  # every second pixel, and zeros for the missing channels
                x = kl.AveragePooling2D(1, 2)(x)
                x = kl.Permute((2, 3, 1))(x)
                x = kl.ZeroPadding2D(((0, 0), (width // 4, width // 4)))(x)
                x = kl.Permute((3, 1, 2))(x)
            x = relu(kl.Add()([x, y]))
    return keras.Model(start, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


NETWORKS = {
    "lenet5": lenet5, "resnet20": resnet20, "alexnet_owt": alexnet_owt, "googlenet_bn": googlenet_bn,
    "resnet50": resnet50,
}  # fmt: skip
