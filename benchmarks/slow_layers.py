"""Look for layers that are far slower than in PyTorch: every convolution, product and pooling that the models make.

    python -m benchmarks.slow_layers --peer ENV/bin/python                      # every layer; hours
    python -m benchmarks.slow_layers --peer ENV/bin/python --sample 500 --seed 1
    python -m benchmarks.slow_layers                                            # the results so far

A sweep over whole networks (sweep.py) compiles each of them at each size and batch. Networks share most of their
layers, and a layer compiles in less than a second, so this one covers every family, size and batch. It traces the
networks of sweep.py, collects the distinct layers, and times each alone, forward, and forward and backward,
alternating with PyTorch in another process. Each layer is added to benchmarks/results/slow_layers.json when measured,
with the hardware; layers measured on this hardware are left out on the next call.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import zoo
from benchmarks.machine import hardware, least_seconds
from benchmarks.race import RESULTS, ROOT
from benchmarks.sweep import BATCHES, MAX_PIXELS, NETWORKS, SIZES
from zoo.distributed.compile import compiler_options
from zoo.host_memory import retain_freed_memory
from zoo.models import abstract_variables, cpu_kernels, operations
from zoo.models.operations import formulation

OUTPUT = RESULTS / "slow_layers.json"
#: Largest forward work of a layer, in multiplications.
MAX_WORK = 8e9


class Layer(NamedTuple):
    """A convolution, matrix product or pooling.

    Attributes:
        kind: "conv", "dense" or "max_pool".
        x: shape of its input, [B, H, W, C] or [B, C].
        kernel: shape of its kernel, [kh, kw, C / groups, F] or [C, F]; of a pooling [kh, kw].
        stride: of windows.
        pads: (top, bottom, left, right).
        groups: of channels.
    """

    kind: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    def output(self) -> tuple[int, ...]:
        """Return the shape of the output."""
        if self.kind == "dense":
            return (self.x[0], self.kernel[1])
        padded = (self.x[1] + self.pads[0] + self.pads[1], self.x[2] + self.pads[2] + self.pads[3])
        rows, columns = ((padded[i] - self.kernel[i]) // self.stride[i] + 1 for i in (0, 1))
        return (self.x[0], rows, columns, self.kernel[3] if self.kind == "conv" else self.x[3])

    def work(self) -> int:
        """Return the number of multiplications, or of comparisons, forward."""
        count = 1
        for size in (*self.output(), *(self.kernel[:1] if self.kind == "dense" else self.kernel[:3])):
            count *= size
        return count

    def __str__(self) -> str:
        """Return its name in the results, which no other layer has."""
        x, kernel, stride, pads = ("x".join(map(str, sizes)) for sizes in (self.x, self.kernel, self.stride, self.pads))
        return f"{self.kind} {x}, kernel {kernel}, stride {stride}, padding {pads}, groups {self.groups}"


# --- the layers of a network -------------------------------------------------------------------------------------


def layers_of(name: str, size: int, batch: int) -> list[Layer]:
    """Return the layers of a network in training; nothing is computed.

    Raises:
        ValueError: if the network refuses the size.
    """
    _, channels, classes = NETWORKS[name]
    model = zoo.create(name, num_classes=classes)
    variables = abstract_variables(model, (size, size, channels))

    def call(variables, images):
        return model.apply(variables, images, train=True, mutable=True, rngs={"dropout": jax.random.key(0)})[0]

    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
    with formulation("plain"):
        return list(dict.fromkeys(_layers(jax.make_jaxpr(call)(variables, images).jaxpr)))


def _layers(jaxpr: Any) -> Iterator[Layer]:
    for equation in jaxpr.eqns:
        parameters, shapes = equation.params, [var.aval.shape for var in equation.invars if hasattr(var, "aval")]
        match equation.primitive.name:
            case "conv_general_dilated":
                (top, bottom), (left, right) = parameters["padding"]
                yield Layer(
                    "conv", *shapes[:2], tuple(parameters["window_strides"]), (top, bottom, left, right),
                    parameters["feature_group_count"],
                )  # fmt: skip
            case "dot_general" if len(shapes[0]) == len(shapes[1]) == 2:
                yield Layer("dense", *shapes[:2])
            case "reduce_window_max" if len(shapes[0]) == 4:
                (_, (top, bottom), (left, right), _) = parameters["padding"]
                window, stride = parameters["window_dimensions"], parameters["window_strides"]
                yield Layer("max_pool", shapes[0], window[1:3], stride[1:3], (top, bottom, left, right))
        for value in parameters.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _layers(inner)


def all_layers() -> list[Layer]:
    """Return the distinct layers of every network, size and batch."""
    found: dict[Layer, None] = {}
    for name, (smallest, _, _) in NETWORKS.items():
        for size in (32,) if name == "lenet5" else SIZES:
            if size < smallest:
                continue
            try:
                layers = layers_of(name, size, 1)
            except ValueError:
                continue
            batches = [b for b in sorted({*BATCHES[True], *BATCHES[False]}) if b * size * size <= MAX_PIXELS[False]]
            found |= {layer._replace(x=(batch, *layer.x[1:])): None for batch in batches for layer in layers}
    return [layer for layer in found if layer.work() <= MAX_WORK]


# --- one layer -----------------------------------------------------------------------------------------------------


def compiled(layer: Layer, backward: bool) -> Callable[[], Any]:
    """Compile a layer as training steps on CPUs do, and return a function that runs it once."""
    (top, bottom, left, right), stride = layer.pads, layer.stride

    def forward(x, kernel):
        if layer.kind == "conv":
            return operations.conv2d(x, kernel, stride, ((top, bottom), (left, right)), layer.groups)
        if layer.kind == "dense":
            return operations.dot_general(x, kernel, (((1,), (0,)), ((), ())))
        return cpu_kernels.max_pool(x, layer.kernel[0], stride[0], ((top, bottom), (left, right)))

    def both(x, kernel, g):
        value, pull = jax.vjp(forward, x, kernel)
        return value, pull(g)

    x = jax.random.normal(jax.random.key(0), layer.x)
    kernel = jax.random.normal(jax.random.key(1), layer.kernel) * 0.05
    args = (x, kernel, jnp.ones(layer.output())) if backward else (x, kernel)
    with formulation("cpu"):
        jitted = jax.jit(both if backward else forward, compiler_options=compiler_options()).lower(*args).compile()
    return lambda: jax.block_until_ready(jitted(*args))


class Peer:
    """A process of PyTorch that times layers."""

    def __init__(self, python: str):
        command = [python, "-m", "benchmarks.slow_layers_peer"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, layer: Layer, backward: bool, seconds: float) -> float:
        """Return the least seconds of a call in PyTorch."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([*layer, backward, seconds]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{layer}: the peer ended")
        return float(line)


def measure(layer: Layer, peer: Peer, seconds: float) -> dict[str, Any]:
    """Return milliseconds {"zoo": [forward, both], "peer": [forward, both]} and the compilation's "compile_s"."""
    row: dict[str, Any] = {"zoo": [], "peer": [], "compile_s": 0.0}
    for backward in (False, True):
        start = time.perf_counter()
        function = compiled(layer, backward)
        row["compile_s"] += time.perf_counter() - start
        function()
        here = there = float("inf")
        for _ in range(2):
            here = least_seconds(function, seconds, here)
            there = min(there, peer.ask(layer, backward, seconds))
        row["zoo"].append(round(1e3 * here, 4))
        row["peer"].append(round(1e3 * there, 4))
    return {**row, "compile_s": round(row["compile_s"], 2)}


def read() -> dict[str, Any]:
    return json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"layers": []}


def table(rows: list[dict[str, Any]], count: int) -> str:
    """Return Markdown: the layers that lose most to the peer."""
    lines = [
        "| layer | forward: zoo, torch, ms | forward and backward | worst | hardware |", "|---|---|---|---:|---|"
    ]  # fmt: skip

    def ratio(row: dict[str, Any]) -> float:
        return min(peer / zoo for zoo, peer in zip(row["zoo"], row["peer"], strict=True))

    for row in sorted(rows, key=ratio)[:count]:
        cells = [f"{zoo:.2f} / {peer:.2f}" for zoo, peer in zip(row["zoo"], row["peer"], strict=True)]
        lines.append(f"| {row['layer']} | {' | '.join(cells)} | {ratio(row):.2f} | {row['hardware']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer", metavar="PYTHON", help="a Python that has torch; without: print only")
    add("--sample", metavar="N", type=int, help="measure N layers drawn at random (default: all)")
    add("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    add("--kind", help="measure layers of one kind")
    add("--batch", type=int, action="append", help="batch size (default: all)")
    add("--seconds", type=float, default=0.1, help="approximate length of a turn (default: 0.1)")
    add("--rows", type=int, default=30, help="number of rows printed (default: 30)")
    options = parser.parse_args()
    retain_freed_memory()  # as `zoo train` does, before threads start
    results = read()
    if options.peer:
        on = hardware()
        known = {row["layer"] for row in results["layers"] if row["hardware"] == on}
        layers = [
            layer for layer in all_layers()
            if options.kind in (None, layer.kind) and (options.batch is None or layer.x[0] in options.batch)
        ]  # fmt: skip
        random.Random(options.seed).shuffle(layers)
        print(f"{len(layers)} layers, {len(known)} measured", file=sys.stderr)
        peer = Peer(options.peer)
        for layer in layers[: options.sample]:
            if str(layer) in known:
                continue
            row = measure(layer, peer, options.seconds)
            results["layers"].append({"layer": str(layer), "hardware": on, **row})
            OUTPUT.write_text(json.dumps(results).replace('{"layer"', '\n{"layer"') + "\n")
            print(f"{layer}: {row}", flush=True)
    print(table(results["layers"], options.rows))


if __name__ == "__main__":
    main()
