"""Time the training step under each device layout, over simulated CPU devices.

    python -m benchmarks.layouts           # writes benchmarks/results/layouts.json and the table of docs/parallel.md

The whole batch is the same everywhere. Rounds alternate between layouts; all are recorded, and the table shows medians
and ratios to one device under jit. The devices share the machine's cores, so the ratios show overhead, not speed-up.
`jax.pmap` takes no compiler options, so its steps run without those of zoo/distributed/compile.py.
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
from benchmarks.pages import replace_block
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import parse_parallelism
from zoo.training import plan as planning
from zoo.training.recipe import Recipe
from zoo.training.request import TrainRequest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "layouts.json"
DOCUMENT = ROOT / "docs" / "parallel.md"

#: model -> (fields, image size in pixels, batch size)
MODELS: dict[str, tuple[dict, int, int]] = {
    "lenet5": ({}, 32, 128),
    "alexnet_owt_small": ({}, 32, 64),
    "resnet20": ({}, 32, 128),
}
LAYOUTS = (("jit", "data=1"), ("pmap", "data=1"), ("jit", "data=2"), ("pmap", "data=2"), ("jit", "fsdp=2"))


def prepare(name: str, how: str, mesh: str):
    """Return a function that runs one training step and returns its seconds."""
    fields, side, size = MODELS[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    data = from_arrays((images, np.arange(size) % 10), validation=(images, np.arange(size) % 10), name="noise")
    recipe = Recipe(batch_size=size, optimizer="momentum", learning_rate=1e-3, schedule="constant")
    job = planning.make_plan(TrainRequest(name, data, recipe, fields=fields, parallelism=parse_parallelism(how, mesh)))
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
    """Return the seconds of every round by layout; rounds alternate between layouts."""
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
    lines += ["", f"Time per step, and multiples of the first column; {results['hardware']}."]
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
    DOCUMENT.write_text(replace_block(DOCUMENT.read_text(encoding="utf-8"), "layouts", render(results)), "utf-8")


if __name__ == "__main__":
    main()
