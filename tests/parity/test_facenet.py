"""Inception-ResNet-v1 of facenet-pytorch (pip install --no-deps facenet-pytorch), up to the paper's last block."""

import pytest
from reference_keys import FaceNet

from zoo.models import create

pytestmark = pytest.mark.parity

HOOKS = {
    "conv2d_4b": "stem", "repeat_1": "inceptionresnetA", "mixed_6a": "reductionA", "repeat_2": "inceptionresnetB",
    "mixed_7a": "reductionB", "repeat_3": "inceptionresnetC", "avgpool_1a": "features",
}  # fmt: skip


def trunk(torch, num_classes):
    facenet = pytest.importorskip("facenet_pytorch.models.inception_resnet_v1")
    net = facenet.InceptionResnetV1(classify=True, num_classes=num_classes)
    net.block8 = net.dropout = net.last_linear = net.last_bn = torch.nn.Identity()
    net.logits = torch.nn.Linear(1792, num_classes)
    return net


@pytest.mark.parametrize("shape", [(299, 299, 3), (107, 90, 3)])
def test_evaluation(shape, torch, torchvision, compare):
    compare(trunk(torch, 1000), create("inception_resnet_v1"), FaceNet(), HOOKS, shape, batch=1)


def test_golden(torch, torchvision, compare):
    """What is recorded for everyone: one block of each kind, ten classes."""
    net = trunk(torch, 10)
    for run in ("repeat_1", "repeat_2", "repeat_3"):
        setattr(net, run, getattr(net, run)[:1])
    model = create("inception_resnet_v1", blocks=(1, 1, 1), num_classes=10)
    compare(net, model, FaceNet(), HOOKS, (75, 75, 3), golden="facenet_inception_resnet_v1")
