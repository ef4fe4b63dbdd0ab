"""The own networks of He et al. 2016, written out in PyTorch's layers after resnet-1k-layers and fb.resnet.torch."""

import pytest
from reference_keys import ByName

from zoo.models import create

pytestmark = pytest.mark.parity


def network(torch, blocks, width, imagenet, classes):
    """Return the CIFAR network of resnet-pre-act.lua, or the ImageNet network of preresnet.lua."""
    nn, relu = torch.nn, torch.nn.functional.relu

    def conv(inputs, outputs, size, stride=1):
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Unit(nn.Module):
        """With `activated`, x comes from a norm and ReLU; otherwise the first ones precede the fork if it projects."""

        def __init__(self, inputs, inner, stride, activated):
            super().__init__()
            outputs = 4 * inner
            if not activated:
                self.norm1 = nn.BatchNorm2d(inputs)
            strides = (1, stride) if imagenet else (stride, 1)
            self.conv1, self.norm2 = conv(inputs, inner, 1, strides[0]), nn.BatchNorm2d(inner)
            self.conv2, self.norm3 = conv(inner, inner, 3, strides[1]), nn.BatchNorm2d(inner)
            self.conv3 = conv(inner, outputs, 1)
            self.shortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None
            self.activated = activated

        def forward(self, x):
            first = x if self.activated else relu(self.norm1(x))
            branch = relu(self.norm2(self.conv1(first)))
            branch = self.conv3(relu(self.norm3(self.conv2(branch))))
            return branch + (x if self.shortcut is None else self.shortcut(first))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv(3, width, 7, 2) if imagenet else conv(3, width, 3)
            if imagenet:
                self.stem_norm = nn.BatchNorm2d(width)
            channels, self.names = width, []
            for i, count in enumerate(blocks):
                for j in range(count):
                    first = i == j == 0 and imagenet
                    unit = Unit(channels, width * 2**i, 2 if i > 0 and j == 0 else 1, first)
                    channels = 4 * width * 2**i
                    self.names.append(f"stage{i + 1}_block{j + 1}")
                    self.add_module(self.names[-1], unit)
            self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

        def forward(self, x):
            x = self.stem(x)
            if imagenet:
                x = nn.functional.max_pool2d(relu(self.stem_norm(x)), 3, 2, 1)
            for name in self.names:
                x = self.get_submodule(name)(x)
            return self.head(relu(self.norm(x)).mean((2, 3)))

    return Network()


def hooks(blocks):
    return {f"stage{i}_block{count}": f"stage{i}" for i, count in enumerate(blocks, 1)}


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet164", (32, 32, 3)), ("resnet1001", (32, 32, 3)), ("resnet200_v2", (64, 64, 3))]
)
def test_evaluation(name, shape, torch, compare):
    model = create(name)
    net = network(torch, model.blocks, model.width, name == "resnet200_v2", model.num_classes)
    compare(net, model, ByName(), hooks(model.blocks), shape, batch=1)


def test_golden(torch, compare):
    """What is recorded for everyone: two blocks in a stage, so that one has no projection."""
    for golden, name, blocks, shape in (
        ("written_resnet164", "resnet164", (2, 1), (16, 16, 3)),
        ("written_resnet200_v2", "resnet200_v2", (2, 1), (40, 40, 3)),
    ):
        model = create(name, blocks=blocks, num_classes=10)
        net = network(torch, blocks, model.width, name == "resnet200_v2", 10)
        compare(net, model, ByName(), hooks(blocks), shape, golden=golden)
