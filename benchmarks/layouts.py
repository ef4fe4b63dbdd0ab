"""What a layout costs on this machine: the same training step, the same whole batch, over simulated CPU devices.

    python -m benchmarks.layouts           # writes benchmarks/results/layouts.json and the table of docs/parallel.md

Rounds alternate between the layouts; all are kept, medians and ratios to one device under jit are shown. The devices
share the machine's cores, so this shows overhead and not speed-up: `jax.pmap` takes no compiler options, and its steps
go without those of zoo/distributed/compile.py.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import numpy as np

from benchmarks.machine import hardware
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import parse_parallelism
from zoo.training import plan as planning
from zoo.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "layouts.json"
DOCUMENT = ROOT / "docs" / "parallel.md"

#: model -> (fields, side of the images, batch)
MODELS: dict[str, tuple[dict, int, int]] = {
    "lenet5": ({}, 32, 128),
    "alexnet_owt_small": ({}, 32, 64),
    "resnet20": ({}, 32, 128),
}
LAYOUTS = (("jit", "data=1"), ("pmap", "data=1"), ("jit", "data=2"), ("pmap", "data=2"), ("jit", "fsdp=2"))


def prepare(name: str, how: str, mesh: str):
    """A function that takes one step of a training and returns its seconds."""
    fields, side, size = MODELS[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    data = from_arrays((images, np.arange(size) % 10), validation=(images, np.arange(size) % 10), name="noise")
    recipe = Recipe(batch_size=size, optimizer="momentum", learning_rate=1e-3, schedule="constant")
    job = planning.make_plan(
        planning.TrainRequest(name, data, recipe, fields=fields, parallelism=parse_parallelism(how, mesh))
    )
    state = job.shard_state(job.first_state())
    compiled = job.compile_step(job.segments[0], state)
    batch = next(job.batches())
    kept = [state]

    def step() -> float:
        began = time.perf_counter()
        kept[0], metrics = compiled(kept[0], batch)
        jax.block_until_ready((kept[0], metrics))
        return time.perf_counter() - began

    step()
    return step


def measure(name: str, rounds: int) -> dict:
    """Every round's seconds by layout, the rounds alternating."""
    steps = {f"{how} {mesh}": prepare(name, how, mesh) for how, mesh in LAYOUTS}
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            seconds[key].append(min(step() for _ in range(3)))
    return {"batch": MODELS[name][2], "seconds": seconds}


def render(results: dict) -> str:
    keys = [f"{how} {mesh}" for how, mesh in LAYOUTS]
    lines = ["| model, batch | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
    for name, row in results["models"].items():
        medians = [statistics.median(row["seconds"][key]) for key in keys]
        cells = [f"{1000 * medians[0]:.0f} ms"] + [f"x {each / medians[0]:.2f}" for each in medians[1:]]
        lines.append(f"| {name}, {row['batch']} | " + " | ".join(cells) + " |")
    lines += ["", f"Seconds of a step, and multiples of the first column; {results['hardware']}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    results: dict = {"hardware": hardware(), "models": {}}
    for name in MODELS:
        results["models"][name] = measure(name, options.rounds)
        print(render(results).splitlines()[-3], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = DOCUMENT.read_text()
    before, _, rest = text.partition("<!-- layouts -->\n")
    _, _, after = rest.partition("<!-- end -->")
    DOCUMENT.write_text(f"{before}<!-- layouts -->\n{render(results)}\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
