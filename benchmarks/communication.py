"""Estimate scaling: bytes sent per step against floating-point operations, from the compiled program.

    python -m benchmarks.communication              # compiles for 8 simulated devices, writes docs/scaling.md

The real training step is compiled for 8 devices at a fixed batch per device, and size and group of every collective are
read from the compiled program. For more devices, sizes stay the same and the groups along "data" or "fsdp" grow; arrays
that are as long as the whole batch grow too. Over a ring, a device sends 2 (g - 1) / g of the bytes of an all-reduce in
a group of g, and (g - 1) / g of the result of an all-gather or the operand of a reduce-scatter.
"""

import argparse
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp

from zoo import models
from zoo.data.images.preprocess import Preprocess
from zoo.distributed import compile, mesh
from zoo.training.optim import make_optimizer
from zoo.training.recipes import find_recipe
from zoo.training.step import TrainState, make_train_step, reset_optimizer

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
COMPILED, SIZES = 8, (8, 64, 1024)
#: Speed of the device that the last column assumes. Computing and sending do not overlap.
FLOPS_PER_SECOND, BYTES_PER_SECOND = 100e12, 50e9

#: (model, recipe, images per device). The whole batch must differ from every layer's width, which `sent` would mistake
#: for it.
TRAININGS = (("resnet50", "he2015-imagenet", 36), ("alexnet_owt", "alexnet-2012", 128))
MESHES = ("data=8", "data=4,model=2", "fsdp=8")

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


class Collective(NamedTuple):
    """One result of a collective: bytes on each device, first dimension, and number of participating devices."""

    kind: str
    bytes: int
    rows: int
    group: int


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives in a compiled program's text, one entry per resulting array."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(", line)
        if match is None:
            continue
        group = _group(line, devices)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)):
            shape = [int(size) for size in dims.split(",") if size]
            size = math.prod(shape) * _BYTES.get(dtype, 4)
            found.append(Collective(match.group(2), size, shape[0] if shape else 0, group))
    return found


def _group(line: str, devices: int) -> int:
    """Return the number of devices in a group."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match.group(2))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    return devices


def sent(found: list[Collective], devices: int, model: int, batch: int) -> float:
    """Return the bytes that each of `devices` sends per step; `found` and `batch` are those of COMPILED devices."""
    total, growth = 0.0, devices / COMPILED
    for each in found:
        group = each.group if each.group == model else each.group * growth
        size = each.bytes * (growth if each.rows == batch and each.group != model else 1)
        total += size * (group - 1) / group * (2 if each.kind == "all-reduce" else 1)
    return total


def measure(name: str, recipe_name: str, per_device: int, axes: str) -> tuple[list[Collective], float]:
    """Return the collectives of a step on COMPILED devices and the floating-point operations of each device.

    Args:
        name: a model.
        recipe_name: the recipe of its training.
        per_device: images per device.
        axes: the mesh, such as "data=4,model=2".
    """
    model, recipe = models.create(name), find_recipe(recipe_name)
    height, width, channels = model.input_shape
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "channels": "L" if channels == 1 else "RGB"}
    plain = Preprocess((height, width), (height, width), polarity=None, **statistics)
    optimizer, _ = make_optimizer(recipe, 1000, 100)

    def fresh(variables):
        ema = variables if recipe.ema else None
        state = TrainState(jnp.zeros((), jnp.int32), variables, (), ema, jax.random.key_data(jax.random.key(0)))
        return reset_optimizer(state, optimizer, frozenset())

    state = jax.eval_shape(fresh, models.abstract_variables(model, (height, width, channels)))
    parallelism = mesh.parse_parallelism(mesh=axes)
    gather = partial(mesh.gather_fsdp, parallelism, model)
    step = make_train_step(model, recipe, plain, optimizer, gather=gather)
    batch = mesh.abstract_batch(parallelism, per_device * COMPILED, (height, width, channels))
    program = compile.compile_train_step(step, parallelism, model, state, batch)
    flops = jax.jit(step).lower(state, batch).cost_analysis()["flops"]
    return collectives(program.as_text(), COMPILED), flops / COMPILED


def table() -> str:
    lines = [
        "| model | mesh | images per device | devices | GFLOP per device | MB sent per device | compute : sending |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, recipe, per_device in TRAININGS:
        for axes in MESHES:
            found, flops = measure(name, recipe, per_device, axes)
            counts = dict(mesh.parse_parallelism(mesh=axes).axes)
            for devices in SIZES:
                size = sent(found, devices, counts.get("model", 0), per_device * COMPILED)
                shown = ",".join(
                    f"{axis}={count if axis == 'model' else count * devices // COMPILED}"
                    for axis, count in counts.items()
                )
                ratio = (flops / FLOPS_PER_SECOND) / (size / BYTES_PER_SECOND)
                numbers = f"{flops / 1e9:,.0f} | {size / 1e6:,.1f} | {ratio:.2f}"
                lines.append(f"| {name} | {shown} | {per_device} | {devices:,} | {numbers} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def document() -> str:
    method = (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ")
    return f"""# Estimated scaling

Written by `python -m benchmarks.communication`. {method}

{table()}

The last column is computing time divided by sending time, for a device that computes {FLOPS_PER_SECOND / 1e12:.0f}
TFLOP/s and sends {BYTES_PER_SECOND / 1e9:.0f} GB/s. Above 1, sending can overlap with computing. Numbers are
float32, and augmentation is part of the step. Under fsdp, parameters are gathered and gradients reduced. The
compiler for CPU writes a reduce-scatter as an all-reduce of which each device keeps a part, and it is counted as
such; on a GPU or TPU, whose compilers merge the two, gradients cost half as much.
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"Wrote {DOCUMENT}")


if __name__ == "__main__":
    main()
