"""The measured networks in PyTorch, as a peer: torchvision's, and the two small ones written by hand."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.loader_peers import torch_vision


def lenet5():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.missing = stride, (width - channels) // 2

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing, self.missing))
        return functional.relu(x + y, inplace=True)


def resnet20():
    blocks, channels = [], 16
    for stage in range(3):
        for block in range(3):
            width = 16 * 2**stage
            blocks.append(Block(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = width
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _torchvision(name, **fields):
    torch_vision()
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **fields)


def _timm(name):
    torch_vision()
    import timm

    return timm.create_model(name, num_classes=1000)


def _small(net):
    """Give a residual network of torchvision the stem for small images: 3x3, stride 1, no pooling."""
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


NETWORKS = {
    "lenet5": lenet5,
    "resnet20": resnet20,
    "alexnet_owt": lambda: _torchvision("alexnet"),
    "googlenet_bn": lambda: _torchvision("googlenet", aux_logits=False, init_weights=False),
    "resnet50": lambda: _torchvision("resnet50"),
    # for sweep.py and gpu.py
    "resnet152": lambda: _torchvision("resnet152"),
    "resnet18": lambda: _torchvision("resnet18"),
    "resnet18_small": lambda: _small(_torchvision("resnet18", num_classes=10)),
    "resnet50_small": lambda: _small(_torchvision("resnet50", num_classes=10)),
    "resnext50_32x4d": lambda: _torchvision("resnext50_32x4d"),
    "resnet50d": lambda: _timm("resnet50d"),
    "resnet50_v2": lambda: _timm("resnetv2_50"),
    "resnet50_gn": lambda: _timm("resnet50_gn"),
    "se_resnet50": lambda: _timm("seresnet50"),
    "eca_resnet50d": lambda: _timm("ecaresnet50d"),
    "resnet_rs50": lambda: _timm("resnetrs50"),
    "bit_r50x1": lambda: _timm("resnetv2_50x1_bit"),
    "inception_v3": lambda: _timm("inception_v3"),
    "inception_v4": lambda: _timm("inception_v4"),
    "inception_resnet_v2": lambda: _timm("inception_resnet_v2"),
    "xception": lambda: _timm("legacy_xception"),
}


def compiled_network(net, training):
    """Return a network compiled by TorchInductor; in inference with frozen weights, which folds batch norm."""
    import torch._inductor.config as inductor

    inductor.freezing = not training
    return torch.compile(net)


def trainer(net, images, labels):
    """Return a function that runs one step of SGD with momentum."""
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def step():
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        optimiser.step()

    return step
