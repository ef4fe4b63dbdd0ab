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

HOOKS = {"layer1": "stage1", "layer2": "stage2", "layer3": "stage3"}  # without the wrapper, as files are read


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_evaluation(depth, cifar_resnet, compare):
    compare(cifar_resnet((depth - 2) // 6).module, create(f"resnet{depth}"), source, HOOKS, (32, 32, 3))


def test_golden(cifar_resnet, compare):
    compare(cifar_resnet(3).module, create("resnet20"), source, HOOKS, (32, 32, 3), golden="akamaster_resnet20")


@pytest.mark.parametrize("depth", [20, 32, 44])
def test_published_weights(depth, torch, cifar_resnet):
    folder = os.environ.get("ZOO_AKAMASTER_WEIGHTS")
    if folder is None:
        pytest.skip("ZOO_AKAMASTER_WEIGHTS is not set")
    (file,) = Path(folder).glob(f"resnet{depth}-*.th")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    net = cifar_resnet((depth - 2) // 6)
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
