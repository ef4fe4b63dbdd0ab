"""Compare the speed of this project with that of its peers, alternating in one run. See training.py and inference.py.

Each contender is a process of its own (race_peers.py). All are started, compiled and warmed up one after another; then
they take turns, for several rounds of a few seconds, while the others wait. Every round is recorded, and the ratio of
the medians is reported. A peer's figures are stored with those of this project from the same run and with the machine,
so that models and peers can be measured one at a time; figures that were not measured again stay in the file.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import label, labels, machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "speed.md"

#: name -> (image shape, number of classes, batch size)
MODELS: dict[str, tuple[tuple[int, int, int], int, int]] = {
    "lenet5": ((32, 32, 1), 10, 256),
    "resnet20": ((32, 32, 3), 10, 128),
    "alexnet_owt": ((224, 224, 3), 1000, 32),
    "googlenet_bn": ((224, 224, 3), 1000, 8),
    "resnet50": ((224, 224, 3), 1000, 8),
}
PEERS = ("flax", "keras", "torch", "torch-compile")
#: file in benchmarks/results -> heading in docs/speed.md
PARTS = {
    "training": "Training",
    "training_kept": "Training, with freed memory retained for all",
    "inference": "Inference",
    "inference_kept": "Inference, with freed memory retained for all",
}
LATENCY = (
    "Milliseconds of one call in float32, from images in memory to logits, waiting for them; medians of the rounds.",
    "ONNX Runtime and OpenVINO run the files of `zoo export --to onnx`, PyTorch in channels_last, eager and compiled",
    "with frozen weights. A row is one run. Made by `python -m benchmarks.latency`.",
)


#: (peer, model) whose network has other parameters than that of this project: Keras's own has biases in convolutions.
UNEQUAL = {("keras", "resnet50")}


class ContenderError(Exception):
    """Raised if a contender cannot run; the message gives the reason."""


class UnequalNetworksError(ContenderError):
    """Raised if the networks to be compared have different numbers of parameters."""


def check_parameters(model: str, counts: dict[str, int]) -> None:
    """Check that every contender has the parameters of this project's network, except those in UNEQUAL.

    Args:
        model: name in MODELS of the zoo.
        counts: contender (and "zoo") -> number of trainable parameters; 0 if it is unknown.

    Raises:
        UnequalNetworksError: naming the contender and both numbers.
    """
    for name, count in counts.items():
        if count and count != counts["zoo"] and (name, model) not in UNEQUAL:
            raise UnequalNetworksError(
                f"{model}: {name} has {count:,} parameters, this project {counts['zoo']:,}: not the same network"
            )


class Runner:
    """A contender's process, of a module like race_peers. Raises ContenderError if it ends or is not ready in time."""

    def __init__(
        self, name: str, python: str, asked: dict[str, Any], patience: float, peers: str = "benchmarks.race_peers"
    ):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["JAX_TRACEBACK_FILTERING"] = "off"  # the last line of an error is then its message
        self.process = subprocess.Popen(
            [python, "-m", peers, name, json.dumps(asked)], text=True, cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.complaints: list[str] = []
        threading.Thread(target=lambda: self.complaints.extend(self.process.stderr or ()), daemon=True).start()
        watch = threading.Timer(patience, self.process.kill)
        watch.start()
        try:
            self.ready = self.answer(f"was not ready within {patience:.0f} s, or ")
        finally:
            watch.cancel()

    def answer(self, otherwise: str = "") -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            time.sleep(0.1)  # for the last lines of its output
            last = next((line.strip() for line in reversed(self.complaints) if line.strip()), "without a word")
            raise ContenderError(f"{otherwise}ended with {self.process.returncode}: {last[:300]}")
        return json.loads(line)

    def take(self, steps: int) -> float:
        """Run a number of steps and return their seconds. Raises ContenderError if the process has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says why the process ended
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self.answer()["seconds"]

    def finish(self) -> int:
        """End the process and return its peak memory in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.answer()["peak_bytes"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def race(
    model: str,
    training: bool,
    pythons: dict[str, str],
    options: argparse.Namespace,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
) -> dict[str, Any]:
    """Return the figures of each peer, or why it has none.

    Args:
        model: name in MODELS of the zoo and in NETWORKS of the peers.
        training: time training steps rather than prediction.
        pythons: contender (and "zoo") -> Python.
        options: rounds, seconds, threads, patience and kept, as on the command line.
        shape: [H, W, C] of the images.
        classes: number of classes.
        batch: batch size.

    Raises:
        ContenderError: if this project cannot run, a contender ends early, or the networks differ in parameters.
    """
    asked = {
        "model": model, "training": training, "shape": shape, "classes": classes, "batch": batch,
        "threads": options.threads, "kept": options.kept,
    }  # fmt: skip
    runners: dict[str, Runner] = {}
    missing: dict[str, str] = {}
    rounds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    load = round(os.getloadavg()[0], 2)
    try:
        for name, python in pythons.items():
            try:
                runners[name] = Runner(name, python, asked, options.patience)
                print(f"   {name}: ready, first step after {runners[name].ready['first_step']:.1f} s", flush=True)
            except (ContenderError, OSError) as error:
                missing[name] = str(error)
                print(f"   {name}: {error}", flush=True)
        if "zoo" in missing:
            raise ContenderError(f"{model}: this project cannot run: {missing['zoo']}")
        check_parameters(model, {name: runner.ready["parameters"] for name, runner in runners.items()})
        steps = {name: max(1, round(options.seconds / runner.ready["step"])) for name, runner in runners.items()}
        rounds = {name: [] for name in runners}
        order = list(runners)
        for number in range(options.rounds):
            for name in order[number % len(order) :] + order[: number % len(order)]:
                taken = runners[name].take(steps[name])
                rounds[name].append(round(steps[name] * asked["batch"] / taken, 2))
        peaks = {name: runner.finish() for name, runner in runners.items()}
    finally:
        for runner in runners.values():
            runner.stop()
    about = {"batch": asked["batch"], "threads": options.threads or os.cpu_count(), "steps_a_round": steps["zoo"]}
    about |= {"load_before": load, "when": time.strftime("%Y-%m-%d %H:%M"), "machine": machine()}

    def figures(name: str) -> dict[str, Any]:
        speeds = rounds[name]
        return {
            "images_per_second": statistics.median(speeds), "best": max(speeds), "rounds": speeds,
            "peak_mib": round(peaks[name] / 2**20), "first_step_seconds": round(runners[name].ready["first_step"], 1),
            "parameters": runners[name].ready["parameters"],
        }  # fmt: skip

    ours, found = figures("zoo"), {}
    for name in pythons:
        if name in missing:
            found[name] = {"missing": missing[name], "machine": about["machine"]}
        elif name != "zoo":
            theirs = figures(name)
            ratio = ours["images_per_second"] / theirs["images_per_second"]
            found[name] = {"ratio": round(ratio, 3), "zoo": ours, "peer": theirs, **about}
    return found if len(pythons) > 1 else {"alone": {"zoo": ours, **about}}


def merge(known: dict[str, Any], found: dict[str, Any]) -> None:
    """Merge new rows into those of a network, both by peer; a peer that could not run keeps its older figures."""
    for name, row in found.items():
        if "missing" not in row or "peer" not in known.get(name, {}):
            known[name] = row


def draw(results: dict[str, Any], file: Path, title: str) -> None:
    """Draw images per second of each peer relative to this project; below the line, this project is faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [name for name in MODELS if name in results["models"]]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    raced = [
        (place, peer, label(row["machine"]), 1 / row["ratio"])
        for place, name in enumerate(models)
        for peer, row in results["models"][name].items() if "ratio" in row
    ]  # fmt: skip
    machines = labels(_rows(results))
    series = [key for key in itertools.product(PEERS, machines) if any(each[1:3] == key for each in raced)]
    width = 0.8 / len(series)
    for number, (peer, on) in enumerate(series):
        bars = [(place, height) for place, *key, height in raced if key == [peer, on]]
        places = [place + width * (number - (len(series) - 1) / 2) for place, _ in bars]
        # A peer has the same colour in every picture.
        axes.bar(
            places, [height for _, height in bars], 0.9 * width, color=f"C{PEERS.index(peer)}", edgecolor="white",
            hatch="//" * machines.index(on), label=peer if len(machines) == 1 else f"{peer}, {on}",
        )  # fmt: skip
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(models)), [f"{name}\nbatch {MODELS[name][2]}" for name in models])
    axes.set_ylabel("images per second, this project = 1")
    axes.set_title(title if len(machines) > 1 else f"{title} on {machines[0]}")
    figure.legend(loc="outside lower center", ncols=len(series) if len(machines) == 1 else 2, frameon=False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def by_machine(rows: Iterable[dict[str, Any]], table: Callable[[str], str]) -> str:
    """Return Markdown: for each machine of `rows`, the last used first, its label and the table of that label."""
    return "\n\n".join(f"**{on}**\n\n{table(on)}" for on in labels(rows))


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for rows in results["models"].values() for row in rows.values()]


def table(results: dict[str, Any]) -> str:
    """Return Markdown tables by machine: images per second of this project and of each peer, and their ratio."""
    return by_machine(_rows(results), lambda on: _table(results, on))


def _table(results: dict[str, Any], on: str) -> str:
    lines = [
        "| model, batch | peer | zoo, images/s | peer, images/s | zoo/peer | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for peer, row in results["models"].get(model, {}).items():
            if label(row["machine"]) != on:
                continue
            if "missing" in row:
                lines.append(f"| {model} | {peer} | | {row['missing']} | | |")
            elif "ratio" in row:
                zoo, other = row["zoo"], row["peer"]
                pair = [each["images_per_second"] for each in (zoo, other)]
                speeds = " | ".join(f"{each:,.0f}" if each >= 1000 else f"{each:.3g}" for each in pair)
                speeds += f" | {row['ratio']:.2f}"
                memory = f"{zoo['peak_mib']:,} / {other['peak_mib']:,}"
                lines.append(f"| {model}, {row['batch']} | {peer} | {speeds} | {memory} |")
    return "\n".join(lines)


def page() -> str:
    """Return the text of docs/speed.md: tables and pictures of all results so far."""
    lines = [
        "# Speed compared with other libraries",
        "",
        "One float32 batch in memory; the contenders alternate in one run. Figures are medians of the rounds, which",
        "are recorded in `benchmarks/results`. PyTorch runs in channels_last; Flax is plain linen code; memory is",
        "the peak while steps run. Made by `python -m benchmarks.training` and `python -m benchmarks.inference`.",
        "Both networks of a row have equal numbers of parameters, but for Keras's own ResNet-50, which has biases in",
        "its convolutions.",
        "A row has this project's figures from the run with that peer, and stands under the machine of that run.",
        "Processors of one name may differ in their vector instructions, which older rows do not record.",
        "",
        "`zoo train` and `zoo eval` tell the C library to retain freed memory (zoo/host_memory.py), and so does",
        "this project here. The peers run with their defaults, except in the section with freed memory retained for",
        "all (`--kept`).",
    ]
    for what, heading in PARTS.items():
        file = RESULTS / f"{what}.json"
        if file.exists():
            lines += ["", f"## {heading}", "", table(json.loads(file.read_text())), ""]
            lines += [f"![{heading}: images per second, relative to this project](../benchmarks/results/{what}.png)"]
    if (RESULTS / "latency.json").exists():
        from benchmarks import latency

        lines += ["", "## Latency", "", *LATENCY, "", latency.table(latency.read())]
    if (RESULTS / "sweep.json").exists():
        from benchmarks import sweep

        results = sweep.read()
        lines += ["", "## Sweep over sizes and batches", "", *sweep.describe(results), "", sweep.table(results)]
    if (RESULTS / "speedrun.json").exists():
        from benchmarks import speedrun

        lines += ["", *speedrun.describe(json.loads((RESULTS / "speedrun.json").read_text()))]
    if (RESULTS / "startup.json").exists():
        lines += ["", *_startup(json.loads((RESULTS / "startup.json").read_text()))]
    return "\n".join(lines) + "\n"


def write_page() -> None:
    """Write docs/speed.md."""
    PAGE.write_text(page(), encoding="utf-8")


def _startup(results: dict[str, Any]) -> list[str]:
    """Return the section on the time to start."""
    on = label(results["machine"])
    names = {
        "help": "`zoo --help`", "cold": "`python train.py` to the end of its first step, nothing compiled",
        "warm": "the same, compiled before", "predict": "`zoo predict` of one image, compiled before",
    }  # fmt: skip
    rows = [
        f"| {name} | {results[key]['seconds']:.2f} | {results[key]['target']:g} |"
        for key, name in names.items() if key in results
    ]  # fmt: skip
    return [
        f"## Start, {on}", "", "Seconds from the start of the command; medians of five. Made by `python -m",
        "benchmarks.startup`.", *([results["note"]] if "note" in results else []), "",
        "| command | seconds | aim |", "|---|---:|---:|", *rows,
    ]  # fmt: skip


def main(what: str, training: bool, description: str) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="*", help=f"names among {', '.join(MODELS)} (default: all)")
    add(
        "--peer", metavar="NAME[=PYTHON]", action="append", default=[],
        help=f"one of {', '.join(PEERS)}, and a Python that has it (default: flax, in this Python)",
    )  # fmt: skip
    add("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    add("--seconds", type=float, default=5, help="approximate length of a turn (default: 5)")
    add("--threads", type=int, default=0, help="processors per contender (default: all)")
    add("--batch", type=int, default=0, help="batch size (default: that of the model)")
    add("--patience", type=float, default=900, help="maximum seconds to compile (default: 900)")
    add("--kept", action="store_true", help="let the peers retain freed memory too, as `zoo train` does")
    add(
        "--output",
        metavar="FILE.json",
        type=Path,
        help=f"merge the results into this file (default: {what}.json in results)",
    )
    options = parser.parse_args()
    options.output = options.output or RESULTS / f"{what}{'_kept' if options.kept else ''}.json"
    peers = dict(peer.partition("=")[::2] for peer in options.peer or ["flax"])
    unknown = [name for name in options.models if name not in MODELS] + [name for name in peers if name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; models: {', '.join(MODELS)}; peers: {', '.join(PEERS)}")
    pythons = {"zoo": sys.executable, **{name: python or sys.executable for name, python in peers.items()}}
    left_out = [name for name in PEERS if name not in peers]
    if left_out:
        print(f"not measured: {', '.join(left_out)} (--peer {left_out[0]}=PYTHON)")
    for model in options.models or MODELS:
        print(f"{model}:", flush=True)
        shape, classes, batch = MODELS[model]
        try:
            found = race(model, training, pythons, options, shape, classes, options.batch or batch)
        except ContenderError as error:
            raise SystemExit(str(error)) from None
        results = json.loads(options.output.read_text()) if options.output.exists() else {"models": {}}
        merge(results["models"].setdefault(model, {}), found)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        draw(results, options.output.with_suffix(".png"), f"{what}{', freed memory retained for all' * options.kept}")
    print(table(results))
    if options.output.parent == RESULTS:
        write_page()
