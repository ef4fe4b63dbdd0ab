"""One contender of benchmarks/race.py, in a process of its own: python -m benchmarks.race_peers NAME JSON.

It prepares, warms up and reports so in a line of JSON. For each line N on standard input it then runs N steps and
prints their seconds, and at the end of its input its peak memory. The peers need only this folder, so they run in
environments of their own.

All have the same float32 batch in memory. The images are normalised already, except for this project, whose step takes
bytes and normalises them itself. A training step is SGD with momentum on the softmax cross-entropy.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from zoo.host_memory import release_freed_memory, retain_freed_memory

if __name__ == "__main__" and (sys.argv[1] == "zoo" or json.loads(sys.argv[2])["kept"]):
    retain_freed_memory()  # as `zoo train` and `zoo eval` do, before threads start

import numpy as np

#: Contender -> (function that runs a number of steps and waits for the last, number of parameters).
Contender = tuple[Callable[[int], Any], int]


def drawn(shape, classes, batch):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, *shape), np.uint8), rng.integers(0, classes, batch).astype(np.int32)


def normalised(pixels):
    return (pixels.astype(np.float32) - 127.5) / 63.75


def network(model: str) -> Any:
    """Return this project's network without auxiliary heads, which the peers' networks do not have."""
    from zoo import models

    net = models.create(model)
    return net.clone(aux_heads=False) if "aux_heads" in models.defining_fields(net) else net


def zoo(model: str, training: bool, pixels, labels, dtype: str = "float32") -> Contender:
    import jax

    from zoo import models
    from zoo.data.images.preprocess import Preprocess
    from zoo.distributed.compile import compile_train_step, jit_for_platform
    from zoo.distributed.mesh import SINGLE_DEVICE
    from zoo.inference.evaluate import make_eval_step
    from zoo.inference.folding import folded_on_device
    from zoo.training.memory import FREE_DELAY, max_in_flight
    from zoo.training.optim import make_optimizer
    from zoo.training.recipe import Recipe
    from zoo.training.step import create_state, make_train_step

    height, width, channels = shape = pixels.shape[1:]
    net = models.with_runtime(network(model), dtype=jax.numpy.dtype(dtype).type)
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "channels": "L" if channels == 1 else "RGB"}
    seen = Preprocess((height, width), (height, width), **statistics)
    recipe = Recipe(optimizer="sgd", momentum=0.9, learning_rate=0.01, schedule="constant", batch_size=len(pixels))
    optimizer, _ = make_optimizer(recipe, 1000, 100)
    state = create_state(net, optimizer, recipe, shape)
    count = models.count_parameters(state.variables)
    batch = jax.device_put({"image": pixels, "label": labels, "weight": np.ones(len(labels), np.float32)})
    if training:
        step = compile_train_step(make_train_step(net, recipe, seen, optimizer), SINGLE_DEVICE, net, state, batch)
        limit, under_way = max_in_flight(step), deque()

        def run(steps):  # waits for steps as `zoo train` does
            nonlocal state
            for _ in range(steps):
                if len(under_way) == limit:
                    jax.block_until_ready(under_way.popleft())
                    if limit == 1:
                        time.sleep(FREE_DELAY)
                state, metrics = step(state, batch)
                under_way.append(metrics)
            jax.block_until_ready(metrics)

    else:
        variables = folded_on_device(net, state.variables, shape)
        step = jit_for_platform(make_eval_step(net, seen)).lower(variables, batch).compile()

        def run(steps):  # reads results one batch late, as `zoo eval` does
            late = None
            for _ in range(steps):
                answer = step(variables, batch)
                jax.block_until_ready(late)
                late = answer
            jax.block_until_ready(late)

    return run, count


def flax(model: str, training: bool, pixels, labels) -> Contender:
    from functools import partial

    import jax
    import optax

    from benchmarks.linen_networks import NETWORKS

    net, optimizer = NETWORKS[model](), optax.sgd(0.01, momentum=0.9)
    images, labels = jax.device_put((normalised(pixels), labels))
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    stats = variables.get("batch_stats", {})
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    @partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        params, stats, opt_state, key = state
        key, dropout = jax.random.split(key)

        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, updates = net.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": dropout})
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates.get("batch_stats", {})

        (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), new_stats, opt_state, key), value

    @jax.jit
    def predict(variables, images):
        return jax.nn.softmax(net.apply(variables, images))

    state = (variables["params"], stats, optimizer.init(variables["params"]), jax.random.key(0))

    def run(steps):
        nonlocal state
        for _ in range(steps):
            if training:
                state, answer = step(state, images, labels)
            else:
                answer = predict(variables, images)
        jax.block_until_ready(answer)

    return run, count


def keras(model: str, training: bool, pixels, labels) -> Contender:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    from benchmarks.keras_networks import NETWORKS

    net = NETWORKS[model]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    images = normalised(pixels)

    def run(steps):
        for _ in range(steps):
            answer = net.train_on_batch(images, labels) if training else net.predict_on_batch(images)
        return np.asarray(answer)

    return run, sum(int(np.prod(weight.shape)) for weight in net.trainable_weights)


def torch(model: str, training: bool, pixels, labels, compiled: bool = False) -> Contender:
    import torch

    from benchmarks.torch_networks import NETWORKS, compiled_network, trainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = NETWORKS[model]().to(memory_format=torch.channels_last)
    count = sum(p.numel() for p in net.parameters())
    images = torch.from_numpy(normalised(pixels).transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels.astype(np.int64))
    net.train(training)
    net = compiled_network(net, training) if compiled else net
    step = trainer(net, images, targets) if training else lambda: net(images).softmax(1)

    def run(steps):
        with torch.inference_mode(not training):
            for _ in range(steps):
                step()

    return run, count


def torch_compile(*args) -> Contender:
    return torch(*args, compiled=True)


CONTENDERS = {"zoo": zoo, "flax": flax, "keras": keras, "torch": torch, "torch-compile": torch_compile}


def peak_bytes(reset: bool = False) -> int:
    """Return the peak memory of this process in bytes, since the last reset on Linux."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(contenders: dict[str, Callable[..., Contender]]) -> None:
    name, asked = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    if asked["threads"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked["threads"]])
    began = time.perf_counter()
    pixels, labels = drawn(asked["shape"], asked["classes"], asked["batch"])
    run, parameters = contenders[name](
        asked["model"], asked["training"], pixels, labels, **asked.get("extra", {})
    )  # fmt: skip
    run(1)
    ready = time.perf_counter() - began
    if name == "zoo" or asked["kept"]:
        release_freed_memory()  # memory used for compiling; once, as `zoo train` and `zoo eval` do
    run(2)  # autotuning, and differences of the second call
    peak_bytes(reset=True)
    began = time.perf_counter()
    run(1)
    said = {"parameters": parameters, "first_step": ready, "step": time.perf_counter() - began}
    print(json.dumps(said), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        run(int(line))
        print(json.dumps({"seconds": time.perf_counter() - began}), file=answers, flush=True)
    print(json.dumps({"peak_bytes": peak_bytes()}), file=answers, flush=True)
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main(CONTENDERS)
