"""One contender of benchmarks/gpu.py, in a process of its own: python -m benchmarks.gpu_peers NAME JSON.

It speaks as race_peers.py does. Images and labels are on the device already. Precision "bfloat16" is the mixed
precision of each library, "tf32" is float32 with products in TF32, which is JAX's default on such devices.
"""

from typing import Any

from benchmarks.race_peers import Contender, main, normalised
from benchmarks.race_peers import zoo as zoo_on_cpu


def zoo(model: str, training: bool, pixels, labels, precision: str) -> Contender:
    return zoo_on_cpu(model, training, pixels, labels, dtype="bfloat16" if precision == "bfloat16" else "float32")


def torch(model: str, training: bool, pixels, labels, precision: str, compiled: bool = False) -> Contender:
    import numpy as np
    import torch
    from torch.nn import functional

    from benchmarks.torch_networks import NETWORKS, compiled_network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net: Any = NETWORKS[model]().to(device, memory_format=torch.channels_last).train(training)
    count = sum(p.numel() for p in net.parameters())
    images = torch.from_numpy(normalised(pixels).transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    net = compiled_network(net, training) if compiled else net
    mixed = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def train_step():
        optimiser.zero_grad(set_to_none=True)
        with mixed:
            loss = functional.cross_entropy(net(images), targets)
        loss.backward()
        optimiser.step()

    def predict():
        with torch.inference_mode(), mixed:
            return net(images).softmax(1)

    def run(steps):
        for _ in range(steps):
            train_step() if training else predict()
        if device == "cuda":
            torch.cuda.synchronize()

    return run, count


def torch_compile(*args, **kwargs) -> Contender:
    return torch(*args, **kwargs, compiled=True)


if __name__ == "__main__":
    main({"zoo": zoo, "torch": torch, "torch-compile": torch_compile})
