"""Train narrow forms of AlexNet and GoogLeNet with two scales of their inputs, and draw the curves.

    python -m benchmarks.lrn_inputs            # trains, writes benchmarks/results/lrn_inputs.json and draws
    python -m benchmarks.lrn_inputs --draw     # renders docs/lrn_inputs.png and prints the table

Both networks normalise responses and are published with the mean subtracted from pixels in 0..255. "before" divides by
the standard deviation, and draws AlexNet's kernels from N(0, 0.01) at any width, as this project did; "after" is what
`zoo train` does now. For AlexNet either change is also tried alone. Fashion-MNIST, 6,000 images, the recipe's optimiser
at a constant rate, without augmentation; three seeds, of which all are shown.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.accuracy import FASHION
from benchmarks.machine import hardware
from zoo.models.alexnet import FAN_IN
from zoo.training.plan import Plan, make_plan
from zoo.training.request import TrainRequest
from zoo.training.run import git_revision, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "lrn_inputs.json"
FIGURE = ROOT / "docs" / "lrn_inputs.png"

SEEDS = 3
STEPS = 300
EVERY = 20  # steps per point of a curve
LIMIT = 6000

#: network -> (recipe, fields of the model, fields of the recipe).
NETWORKS = {
    "alexnet": ("alexnet-2012", {"width": 0.125, "image_size": 67}, {"batch_size": 32, "channels": "RGB"}),
    "googlenet": (
        "googlenet-2014",
        {"width": 0.25, "blocks": (1, 1, 1)},
        {"batch_size": 32, "image_size": 48, "channels": "RGB", "ema": 0.0},
    ),
}
#: condition -> (normalisation, kernels as before).
CONDITIONS = {
    "before": ("standardise", True),
    "inputs": ("", True),
    "initialisation": ("standardise", False),
    "after": ("", False),
}
COLOURS = {"before": "tab:grey", "inputs": "tab:orange", "initialisation": "tab:green", "after": "tab:blue"}


def conditions_of(network: str) -> list[str]:
    """Return the conditions of a network; GoogLeNet's initialisation has not changed."""
    return list(CONDITIONS) if network == "alexnet" else ["before", "after"]


def plan_of(network: str, condition: str) -> Plan:
    recipe, fields, changes = NETWORKS[network]
    changes = {**changes, "augment": (), "schedule": "constant", "epochs": 10.0}
    changes["normalisation"] = CONDITIONS[condition][0]
    return make_plan(
        TrainRequest(network, FASHION, recipe, fields=fields, changes=changes, limit=LIMIT, workdir=ROOT / "runs")
    )


def former_initialisation(params: dict) -> dict:
    """Return AlexNet's parameters with all kernels from N(0, 0.01)."""
    return {
        layer: {
            **leaves,
            "kernel": leaves["kernel"] * math.sqrt(math.prod(leaves["kernel"].shape[:-1]) / FAN_IN[layer]),
        }
        for layer, leaves in params.items()
    }


def train(network: str, condition: str) -> list[dict]:
    """Train all seeds with one compiled step; return a row per seed: loss and accuracy on the training batches."""
    plan = plan_of(network, condition)
    segment, rows, step = plan.segments[0], [], None
    for seed in range(SEEDS):
        config = dataclasses.replace(plan.config, recipe=dataclasses.replace(plan.recipe, seed=seed))
        seeded = dataclasses.replace(plan, config=config)
        state = seeded.first_state()
        if network == "alexnet" and CONDITIONS[condition][1]:
            variables = {**state.variables, "params": former_initialisation(state.variables["params"])}
            state = state._replace(variables=jax.tree.map(jax.numpy.asarray, variables))
        state = seeded.shard_state(state)
        step = step or plan.compile_step(segment, state)
        start, losses, correct, curve = time.perf_counter(), [], [], []
        for number, batch in zip(range(1, STEPS + 1), seeded.batches(), strict=False):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            correct.append(float(metrics["top1"]) / float(metrics["examples"]))
            if number % EVERY == 0:
                curve.append([number, float(np.mean(losses[-EVERY:])), float(np.mean(correct[-EVERY:]))])
        seconds = time.perf_counter() - start
        print(f"{network} {condition} seed {seed}: {curve[-1]} in {seconds:.0f} s", flush=True)
        rows.append({"seed": seed, "curve": curve, "seconds": seconds})
    return rows


def measure(networks: list[str]) -> None:
    """Train these networks and write the results beside those of the others."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"networks": {}}
    for network in networks:
        rows = {condition: train(network, condition) for condition in conditions_of(network)}
        results["networks"][network] = rows
        results |= {"hardware": hardware(), "versions": versions(), "git": git_revision()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def steps_to(curve: list, accuracy: float) -> int | None:
    """Return the first point of a curve with at least this accuracy, or None."""
    return next((number for number, _, reached in curve if reached >= accuracy), None)


def render(results: dict) -> str:
    """Return the table of the page: loss and accuracy over the last EVERY steps, per seed."""
    lines = [
        "| network | inputs | training loss at the end | training accuracy at the end | steps to 30 % |",
        "|---|---|---|---|---|",
    ]
    for name, conditions in results["networks"].items():
        for condition, rows in conditions.items():
            last = [row["curve"][-1] for row in rows]
            first = [steps_to(row["curve"], 0.3) for row in rows]
            losses, accuracies = (", ".join(f"{point[n]:.2f}" for point in last) for n in (1, 2))
            lines.append(
                f"| {name} | {condition} | {losses} | {accuracies} | {', '.join(str(n or 'never') for n in first)} |"
            )
    return "\n".join(lines)


def draw(results: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results["networks"]), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (name, conditions) in zip(axes, results["networks"].items(), strict=True):
        for condition, rows in conditions.items():
            for row in rows:
                steps, losses, _ = zip(*row["curve"], strict=True)
                axis.plot(steps, losses, color=COLOURS[condition], label=condition if row["seed"] == 0 else None)
        axis.set(title=name, xlabel="step of 32 images")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training loss")
    axes[0].legend()
    figure.savefig(FIGURE, dpi=110)
    print(render(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="Networks to train (default: all).")
    parser.add_argument("--draw", action="store_true", help="Draw the recorded results without training.")
    options = parser.parse_args()
    if not options.draw:
        measure(options.networks or list(NETWORKS))
    draw(json.loads(RESULTS.read_text("utf-8")))


if __name__ == "__main__":
    main()
