"""One contender of benchmarks/latency.py, in a process of its own: python -m benchmarks.latency_peers NAME JSON.

It speaks with latency.py as race_peers.py does. A step is one call that waits for its result: from images in host
memory to logits in host memory. The peers need only this folder.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.host_memory import retain_freed_memory

if __name__ == "__main__" and sys.argv[1] == "zoo":
    retain_freed_memory()  # as `zoo predict` and `zoo serve` do, before threads start

from benchmarks.race_peers import main, network, normalised


def preprocess_of(shape: tuple[int, ...]) -> Any:
    from zoo.data.images.preprocess import Preprocess

    height, width, channels = shape
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "channels": "L" if channels == 1 else "RGB"}
    return Preprocess((height, width), (height, width), **statistics)


def export(model: str, classes: int, folder: str) -> None:
    """Write the network, freshly initialised, as MODEL.onnx, as `zoo export` does."""
    import tempfile

    import zoo
    from zoo.export import write_onnx

    net = network(model)
    with tempfile.TemporaryDirectory() as checkpoint:
        names = [str(number) for number in range(classes)]
        zoo.save(f"{checkpoint}/{model}", net, zoo.init(net, 0), names, preprocess_of(net.input_shape))
        write_onnx(zoo.load(f"{checkpoint}/{model}"), Path(folder, f"{model}.onnx"))


def zoo_peer(model, pixels, file) -> tuple[Callable[[], Any], int]:
    """Predict as `zoo predict` and `zoo serve` do after decoding: normalise, run the folded network, apply softmax."""
    from zoo import models
    from zoo.inference.evaluate import predict_outputs

    net = network(model)
    variables = models.init(net, 0)
    seen = preprocess_of(pixels.shape[1:])
    return lambda: predict_outputs(net, variables, pixels, seen, len(pixels)).logits, models.count_parameters(variables)


def torch_peer(model, pixels, file, compiled=False):
    import torch

    from benchmarks.torch_networks import NETWORKS, compiled_network

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = NETWORKS[model]().eval().to(memory_format=torch.channels_last)
    count = sum(p.numel() for p in net.parameters())
    images = torch.from_numpy(normalised(pixels).transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    net = compiled_network(net, training=False) if compiled else net

    @torch.inference_mode()
    def step():
        return net(images).numpy()

    return step, count


def torch_compile_peer(model, pixels, file):
    return torch_peer(model, pixels, file, compiled=True)


def onnxruntime_peer(model, pixels, file):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"pixels": pixels})[0], 0


def openvino_peer(model, pixels, file):
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would fork this process
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(openvino.Core().read_model(file), "CPU", settings)
    return lambda: compiled([pixels])["logits"], 0


STEPS = {
    "zoo": zoo_peer, "torch": torch_peer, "torch-compile": torch_compile_peer, "onnxruntime": onnxruntime_peer,
    "openvino": openvino_peer,
}  # fmt: skip


def contender(name: str) -> Callable[..., tuple[Callable[[int], Any], int]]:
    def prepare(model, training, pixels, labels, file=""):
        step, parameters = STEPS[name](model, pixels, file)

        def run(steps):
            for _ in range(steps):
                step()

        return run, parameters

    return prepare


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main({name: contender(name) for name in STEPS})
