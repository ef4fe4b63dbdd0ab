"""The CIFAR ResNets: against the section 4.2 network of the paper, built here in PyTorch as its weights name it.

ZOO_AKAMASTER_WEIGHTS names the folder with the published files (resnet20-12fca82f.th, …); without it seeded weights do.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from seeded import seeded_images

import zoo.models as models
from zoo.models import create
from zoo.pretrained import akamaster as source
from zoo.pretrained.convert import convert

pytestmark = pytest.mark.parity

HOOKS = {"module.layer1": "stage1", "module.layer2": "stage2", "module.layer3": "stage3"}


@pytest.fixture(scope="module")
def build(torch):
    """blocks in each stage -> the network, under the name `module` that DataParallel gives it."""
    nn, f = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.stride, self.pad = stride, (width - before) // 2
            self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

        def forward(self, x):
            shortcut = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
            return f.relu(shortcut + self.bn2(self.conv2(f.relu(self.bn1(self.conv1(x))))))

    class Net(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            for i, (before, width) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                rest = [Block(width, width, 1) for _ in range(blocks - 1)]
                self.add_module(f"layer{i}", nn.Sequential(Block(before, width, min(i, 2)), *rest))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(f.relu(self.bn1(self.conv1(x))))))
            return self.linear(x.mean((2, 3)))

    class Parallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    return lambda blocks: Parallel(Net(blocks))


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_evaluation(depth, build, compare):
    compare(build((depth - 2) // 6), create(f"resnet{depth}"), source, HOOKS, (32, 32, 3))


def test_golden(build, compare):
    compare(build(3), create("resnet20"), source, HOOKS, (32, 32, 3), golden="akamaster_resnet20")


@pytest.mark.parametrize("depth", [20, 32, 44])
def test_published_weights(depth, torch, build):
    folder = os.environ.get("ZOO_AKAMASTER_WEIGHTS")
    if folder is None:
        pytest.skip("ZOO_AKAMASTER_WEIGHTS is not set")
    (file,) = Path(folder).glob(f"resnet{depth}-*.th")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    net = build((depth - 2) // 6)
    net.load_state_dict(state, strict=True)
    images = seeded_images((8, 32, 32, 3))
    with torch.no_grad():
        theirs = net.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    model = create(f"resnet{depth}")
    abstract = models.abstract_variables(model)
    tensors = {key.removeprefix("module."): tensor.numpy() for key, tensor in state.items()}
    variables = convert(source.key_map(model, abstract), tensors, abstract, source.IGNORED)
    ours, _ = jax.jit(model.apply)(variables, images)
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()
