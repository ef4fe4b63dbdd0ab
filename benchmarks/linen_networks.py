"""The measured networks in plain Flax, as a peer."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from benchmarks.googlenet_modules import MODULES, POOLED

SAME = [(1, 1), (1, 1)]


class LeNet5(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for features in (6, 16):
            x = nn.max_pool(nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class AlexNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(64, (11, 11), 4, padding=[(2, 2), (2, 2)])(x))
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = nn.relu(nn.Conv(192, (5, 5), padding=[(2, 2), (2, 2)])(x))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for features in (384, 256, 256):
            x = nn.relu(nn.Conv(features, (3, 3), padding=SAME)(x))
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096)(nn.Dropout(0.5, deterministic=not train)(x)))
        return nn.Dense(1000)(x)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm and 3x3 in place of 5x5 kernels, as in torchvision; no auxiliary heads."""

    @nn.compact
    def __call__(self, x, train=False):
        def conv(x, features, kernel, stride=1):
            padding = [(kernel // 2, kernel // 2)] * 2
            x = nn.Conv(features, (kernel, kernel), stride, padding=padding, use_bias=False)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3)(x))

        def pool(x, window=3):  # 112, 56, 28 and 14 pixels: the last window extends beyond the edge
            return nn.max_pool(x, (window, window), (2, 2), padding=[(0, window - 2)] * 2)

        def inception(x, f1, f3_reduce, f3, f5_reduce, f5, f_pool):
            pooled = nn.max_pool(x, (3, 3), padding=SAME)
            branches = [conv(x, f1, 1), conv(conv(x, f3_reduce, 1), f3, 3), conv(conv(x, f5_reduce, 1), f5, 3)]
            return jnp.concatenate([*branches, conv(pooled, f_pool, 1)], -1)

        x = pool(conv(x, 64, 7, 2))
        x = pool(conv(conv(x, 64, 1), 192, 3))
        for number, sizes in enumerate(MODULES):
            x = inception(x, *sizes)
            if number in POOLED:
                x = pool(x, POOLED[number])
        x = x.mean((1, 2))
        return nn.Dense(1000)(nn.Dropout(0.2, deterministic=not train)(x))


class ResNet50(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), 2, padding=[(3, 3), (3, 3)], use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=SAME)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                width, stride = 64 * 2**stage, 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(nn.Conv(width, (1, 1), use_bias=False)(x)))
                y = nn.relu(norm()(nn.Conv(width, (3, 3), stride, padding=SAME, use_bias=False)(y)))
                y = norm()(nn.Conv(4 * width, (1, 1), use_bias=False)(y))
                if block == 0:
                    x = norm()(nn.Conv(4 * width, (1, 1), stride, use_bias=False)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000)(x.mean((1, 2)))


class ResNet20(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        conv = partial(nn.Conv, kernel_size=(3, 3), padding=SAME, use_bias=False)
        x = nn.relu(norm()(conv(16)(x)))
        for stage in range(3):
            for block in range(3):
                width, stride = 16 * 2**stage, 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(width, strides=stride)(x)))
                y = norm()(conv(width)(y))
                missing = (width - x.shape[-1]) // 2
                x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (missing, missing)))
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


NETWORKS = {
    "lenet5": LeNet5, "resnet20": ResNet20, "alexnet_owt": AlexNet, "googlenet_bn": GoogLeNet, "resnet50": ResNet50,
}  # fmt: skip
