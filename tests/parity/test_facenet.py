"""Inception-ResNet-v1 of facenet-pytorch (pip install --no-deps facenet-pytorch), up to the paper's last block.

timm, torchvision and Keras do not have this network. Its key map is here, not in the package: facenet-pytorch's weights
end in an embedding of faces and have one block more.
"""

import pytest

from zoo.models import create
from zoo.models.inception_resnet_v1 import InceptionResNetV1
from zoo.pretrained.convert import TORCH_IGNORED, torch_key_map
from zoo.pretrained.timm import INCEPTION_RESNET_V2, INCEPTION_V4, in_blocks

pytestmark = pytest.mark.parity

RUNS = {"inceptionresnetA": "repeat_1", "inceptionresnetB": "repeat_2", "inceptionresnetC": "repeat_3"}
SINGLE = {"stem": "", "reductionA": "mixed_6a.", "reductionB": "mixed_7a."}
BLOCKS = {
    **{block: INCEPTION_RESNET_V2[block] for block in (*RUNS, "reductionB")},
    "reductionA": INCEPTION_V4["reductionA"],
    "stem": {
        "conv1": "conv2d_1a", "conv2": "conv2d_2a", "conv3": "conv2d_2b", "conv4": "conv2d_3b", "conv5": "conv2d_4a",
        "conv6": "conv2d_4b",
    },
}  # fmt: skip
HOOKS = {
    "conv2d_4b": "stem", "repeat_1": "inceptionresnetA", "mixed_6a": "reductionA", "repeat_2": "inceptionresnetB",
    "mixed_7a": "reductionB", "repeat_3": "inceptionresnetC", "avgpool_1a": "features",
}  # fmt: skip


class Source:
    IGNORED = TORCH_IGNORED
    __name__ = "facenet"

    @staticmethod
    def key_map(model: InceptionResNetV1, variables):
        def place(block, number):
            return SINGLE[block] if block in SINGLE else f"{RUNS[block]}.{number - 1}."

        rules = (
            *in_blocks(BLOCKS, place),
            (r"(inceptionresnet[ABC])(\d+)/expand", lambda m: f"{place(m[1], int(m[2]))}conv2d"),
            (r"head", "logits"),
        )
        return torch_key_map(variables, rules)


@pytest.mark.parametrize("shape", [(299, 299, 3), (107, 90, 3)])
def test_evaluation(shape, torch, torchvision, compare):
    facenet = pytest.importorskip("facenet_pytorch.models.inception_resnet_v1")
    net = facenet.InceptionResnetV1(classify=True, num_classes=1000)
    net.block8 = net.dropout = net.last_linear = net.last_bn = torch.nn.Identity()
    net.logits = torch.nn.Linear(1792, 1000)
    compare(net, create("inception_resnet_v1"), Source, HOOKS, shape, batch=1)
