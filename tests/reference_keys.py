"""Key maps for reference networks that are not in the package: written out in PyTorch, or without weights to load."""

from zoo.models.inception_resnet_v1 import InceptionResNetV1
from zoo.pretrained.convert import TORCH_IGNORED, torch_key_map
from zoo.pretrained.timm import INCEPTION_RESNET_V2, INCEPTION_V4, in_blocks


class ByName:
    """A key map for a PyTorch network whose modules have the names of ours, with a point for every slash."""

    IGNORED = TORCH_IGNORED
    __name__ = "by_name"

    def __init__(self, layouts=None):
        self.layouts = layouts or {}

    def key_map(self, model, variables):
        return torch_key_map(variables, ((r".*", lambda m: m[0].replace("/", ".")),), self.layouts)


_RUNS = {"inceptionresnetA": "repeat_1", "inceptionresnetB": "repeat_2", "inceptionresnetC": "repeat_3"}
_SINGLE = {"stem": "", "reductionA": "mixed_6a.", "reductionB": "mixed_7a."}
_BLOCKS = {
    **{block: INCEPTION_RESNET_V2[block] for block in (*_RUNS, "reductionB")},
    "reductionA": INCEPTION_V4["reductionA"],
    "stem": {
        "conv1": "conv2d_1a", "conv2": "conv2d_2a", "conv3": "conv2d_2b", "conv4": "conv2d_3b", "conv5": "conv2d_4a",
        "conv6": "conv2d_4b",
    },
}  # fmt: skip


class FaceNet:
    """facenet-pytorch's InceptionResnetV1 up to the paper's last block, with a head called `logits`.

    Its weights end in an embedding of faces and have one block more, so the package does not load them.
    """

    IGNORED = TORCH_IGNORED
    __name__ = "facenet"

    def key_map(self, model: InceptionResNetV1, variables):
        def place(block, number):
            return _SINGLE[block] if block in _SINGLE else f"{_RUNS[block]}.{number - 1}."

        rules = (
            *in_blocks(_BLOCKS, place),
            (r"(inceptionresnet[ABC])(\d+)/expand", lambda m: f"{place(m[1], int(m[2]))}conv2d"),
            (r"head", "logits"),
        )
        return torch_key_map(variables, rules)


KEYS = {source.__name__: source for source in (ByName(), FaceNet())}
