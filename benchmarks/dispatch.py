"""Show where the time of a prediction of one image goes: Python, arguments, the network.

    taskset -c 0 python -m benchmarks.dispatch

Prints milliseconds of processor time per call, median and least of seven rounds that alternate. Pinned to one
processor, they say something on a machine that does other work as well.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.latency_peers import network, preprocess_of
from zoo import models
from zoo.distributed.compile import jit_for_platform
from zoo.inference.evaluate import make_eval_step, make_output_step, predict_outputs
from zoo.inference.folding import folded_on_device

CALLS = {"lenet5": 200, "resnet20": 30}
ROUNDS = 7


def variants(model: str) -> dict[str, Callable[[], Any]]:
    """Return functions that predict one image, from `zoo predict` after decoding down to an empty call."""
    net = network(model)
    variables, preprocess = models.init(net, 0), preprocess_of(net.input_shape)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *net.input_shape), dtype=np.uint8)
    folded = folded_on_device(net, variables, preprocess.input_shape)
    batch = {"image": pixels, "label": np.zeros(1, np.int32), "weight": np.zeros(1, np.float32)}
    output_step = make_output_step(net, preprocess)
    evaluation = jit_for_platform(make_eval_step(net, preprocess))
    outputs = jit_for_platform(output_step)
    constants = jit_for_platform(lambda images: output_step(folded, images))
    empty = jax.jit(lambda images: images.astype(np.float32).sum((1, 2, 3)))
    return {
        "`predict_outputs`": lambda: predict_outputs(net, variables, pixels, preprocess, 1),
        "evaluation step, with metrics": lambda: jax.block_until_ready(evaluation(folded, batch)),
        "outputs alone": lambda: jax.block_until_ready(outputs(folded, pixels)),
        "outputs alone, weights as constants": lambda: jax.block_until_ready(constants(pixels)),
        "a sum of the pixels": lambda: jax.block_until_ready(empty(pixels)),
    }


def main() -> None:
    for model, calls in CALLS.items():
        functions = variants(model)
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(ROUNDS + 1):  # the first round compiles
            for name, function in functions.items():
                began = time.process_time()
                for _ in range(calls):
                    function()
                times[name].append(1000 * (time.process_time() - began) / calls)
        for name, rounds in times.items():
            print(f"| {model} | {name} | {statistics.median(rounds[1:]):.3f} | {min(rounds[1:]):.3f} |", flush=True)


if __name__ == "__main__":
    main()
