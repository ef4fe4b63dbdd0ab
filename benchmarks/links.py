"""Hyperlinks of generated pages: papers on arXiv and the projects that recipes cite."""

import re

#: Names of projects as recipes spell them, and their pages.
PROJECTS = {
    "cuda-convnet2": "https://github.com/akrizhevsky/cuda-convnet2",
    "bvlc_alexnet": "https://github.com/BVLC/caffe/tree/master/models/bvlc_alexnet",
    "bvlc_googlenet": "https://github.com/BVLC/caffe/tree/master/models/bvlc_googlenet",
    "tensorflow/models": "https://github.com/tensorflow/models",
    "fb.resnet.torch": "https://github.com/facebookarchive/fb.resnet.torch",
    "gluon-cv": "https://github.com/dmlc/gluon-cv",
    "timm": "https://github.com/huggingface/pytorch-image-models",
    "ML-Decoder": "https://github.com/Alibaba-MIIL/ML_Decoder",
    "keras_cv_attention_models": "https://github.com/leondgarse/keras_cv_attention_models",
    "big_transfer": "https://github.com/google-research/big_transfer",
    "torchvision": "https://github.com/pytorch/vision",
}


def link_papers(text: str) -> str:
    """Return text with every arXiv number as a link, without parentheses around it."""
    bare = re.sub(r"(,)? \((arXiv:[\d.]+\d)\)", r", \2", text)
    return re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", bare)


def link_projects(text: str) -> str:
    """Return text with the first mention of each project as a link."""
    for name, url in PROJECTS.items():
        text = re.sub(rf"(?<![\w/\[-]){re.escape(name)}(?![\w-])", f"[{name}]({url})", text, count=1)
    return text
