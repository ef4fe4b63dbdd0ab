"""The peer of slow_layers.py: time layers in PyTorch, which must be installed; one JSON line in, one number out."""

import json
import os
import sys

import torch
import torch.nn.functional as F

from benchmarks.machine import least_seconds

torch.set_num_threads(len(os.sched_getaffinity(0)))


def layer(kind, x, kernel, stride, pads, groups, backward):
    """Return a function that computes a layer once, in channels_last."""
    if kind == "dense":
        inputs, weights = torch.randn(x), torch.randn(kernel[::-1])

        def forward():
            return F.linear(inputs, weights)
    else:
        inputs = torch.randn(x).permute(0, 3, 1, 2)  # channels_last
        top, bottom, left, right = pads
        symmetric = top == bottom and left == right
        padding = (top, left) if symmetric else 0
        weights = torch.randn(1)
        if kind == "conv":
            weights = (0.05 * torch.randn(kernel)).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

        def forward():
            images = inputs if symmetric else F.pad(inputs, (left, right, top, bottom))
            if kind == "conv":
                return F.conv2d(images, weights, None, stride, padding, 1, groups)
            return F.max_pool2d(images, kernel, stride, padding)

    if not backward:

        def call():
            with torch.inference_mode():
                forward()

        return call
    inputs.requires_grad_()
    weights.requires_grad_(kind != "max_pool")
    g = torch.ones_like(forward())
    wanted = [inputs] if kind == "max_pool" else [inputs, weights]
    return lambda: torch.autograd.grad(forward(), wanted, g)


for line in sys.stdin:
    *description, backward, seconds = json.loads(line)
    call = layer(*description, backward)
    call()
    print(least_seconds(call, seconds), flush=True)
