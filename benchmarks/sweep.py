"""Look for sizes and batches at which this project is far slower than PyTorch: every family, alternating in one run.

    python -m benchmarks.sweep --peer torch=ENV/bin/python                       # every point; hours on two cores
    python -m benchmarks.sweep --peer torch=ENV/bin/python --sample 60 --seed 1  # so many points, drawn at random
    python -m benchmarks.sweep resnet18 --size 64 --batch 16 --peer torch=ENV/bin/python
    python -m benchmarks.sweep                                                   # the table of the results so far

The method is that of race.py, with shorter turns. Each point is added to benchmarks/results/sweep.json as soon as it
is measured, and points measured on a machine with the same label are left out on the next call unless they are named
with --again. Points at which either side refuses the image size are recorded as refused. A peer that lacks a module, or
whose network has other parameters, ends the sweep.
"""

import argparse
import dataclasses
import json
import random
import sys
from typing import Any

from benchmarks.machine import label, machine
from benchmarks.race import RESULTS, ContenderError, UnequalNetworksError, race, write_page

#: model -> (smallest image, number of channels, number of classes). Small-image forms are those ending in _small.
NETWORKS = {
    "lenet5": (32, 1, 10),
    "resnet20": (28, 3, 10),
    "resnet18_small": (28, 3, 10),
    "resnet50_small": (28, 3, 10),
    "alexnet_owt": (63, 3, 1000),
    "googlenet_bn": (28, 3, 1000),
    "inception_v3": (75, 3, 1000),
    "inception_v4": (75, 3, 1000),
    "inception_resnet_v2": (75, 3, 1000),
    "xception": (64, 3, 1000),
    "resnet18": (32, 3, 1000),
    "resnet50": (32, 3, 1000),
    "resnet50d": (32, 3, 1000),
    "resnet50_v2": (32, 3, 1000),
    "resnet50_gn": (32, 3, 1000),
    "resnext50_32x4d": (32, 3, 1000),
    "se_resnet50": (32, 3, 1000),
    "eca_resnet50d": (32, 3, 1000),
    "resnet_rs50": (32, 3, 1000),
    "bit_r50x1": (32, 3, 1000),
}
SIZES = (28, 32, 48, 64, 96, 128, 160, 224)
#: training? -> batch sizes
BATCHES = {True: (8, 32, 128), False: (1, 2, 4, 8, 9, 16, 32, 128)}
#: Largest number of pixels in a batch, above which a point is left out.
MAX_PIXELS = {True: 32 * 128 * 128, False: 32 * 224 * 224}
OUTPUT = RESULTS / "sweep.json"


@dataclasses.dataclass(frozen=True)
class Point:
    """A network at an image size and batch size, in training or inference."""

    model: str
    size: int
    batch: int
    training: bool

    def __str__(self) -> str:
        return f"{self.model} {self.size} px, batch {self.batch}, {'training' if self.training else 'inference'}"


def all_points() -> list[Point]:
    """Return every point that is not too large."""
    return [
        Point(model, size, batch, training)
        for model, (smallest, _, _) in NETWORKS.items()
        for size in ((32,) if model == "lenet5" else SIZES)
        for training, batches in BATCHES.items()
        for batch in batches
        if size >= smallest and batch * size * size <= MAX_PIXELS[training]
    ]


def measure(point: Point, peer: str, python: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a point, {"ratio", "zoo", "peer"} in images per second, or {"refused": reason}."""
    _, channels, classes = NETWORKS[point.model]
    pythons = {"zoo": sys.executable, peer: python}
    shape = (point.size, point.size, channels)
    try:
        row = race(point.model, point.training, pythons, options, shape, classes, point.batch)[peer]
        reason = row.get("missing", "")
    except UnequalNetworksError as error:
        raise SystemExit(str(error)) from None
    except ContenderError as error:
        reason = str(error)
    if "ModuleNotFoundError" in reason:  # it would be recorded as a refusal of every point
        raise SystemExit(f"{point}: {reason}")
    if reason:
        return {"refused": reason}
    return {
        "ratio": row["ratio"], "zoo": row["zoo"]["images_per_second"], "peer": row["peer"]["images_per_second"],
        "zoo_mib": row["zoo"]["peak_mib"], "peer_mib": row["peer"]["peak_mib"], "load_before": row["load_before"],
    }  # fmt: skip


def read() -> dict[str, Any]:
    return json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"points": []}


def find(results: dict[str, Any], point: Point, peer: str, on: str) -> dict[str, Any] | None:
    """Return the row of a point measured on the machine with this label, or None."""
    key = {**dataclasses.asdict(point), "against": peer}.items()
    rows = (row for row in results["points"] if all(row[name] == value for name, value in key))
    return next((row for row in rows if label(row["machine"]) == on), None)


def table(results: dict[str, Any]) -> str:
    """Return Markdown: for each network its worst, median and best ratio and where the worst is, the slowest first."""
    groups: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    for row in results["points"]:
        if "ratio" in row:
            groups.setdefault((label(row["machine"]), row["against"], row["model"], row["training"]), []).append(row)
    lines = [
        "| network | | points | worst | at | median | best | machine; peer |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for (on, peer, model, training), rows in sorted(groups.items(), key=lambda i: min(r["ratio"] for r in i[1])):
        rows = sorted(rows, key=lambda row: row["ratio"])
        worst, middle, best = rows[0], rows[len(rows) // 2], rows[-1]
        lines.append(
            f"| {model} | {'training' if training else 'inference'} | {len(rows)} | {worst['ratio']:.2f} | "
            f"{worst['size']} px, batch {worst['batch']} | {middle['ratio']:.2f} | {best['ratio']:.2f} | {on}; {peer} |"
        )
    return "\n".join(lines)


def describe(results: dict[str, Any]) -> list[str]:
    """Return lines of text on the worst point, and on what the table of `table` shows."""
    rows = sorted((row for row in results["points"] if "ratio" in row), key=lambda row: row["ratio"])
    worst, slower = rows[0], sum(row["ratio"] < 0.8 for row in rows)
    point = Point(*(worst[field.name] for field in dataclasses.fields(Point)))
    return [
        f"**Worst point: {point}: {worst['ratio']:.2f} of {worst['against']}.** {len(rows)} points measured, of",
        f"{len(all_points()):,}; {slower} below 0.8. Images per second of this project by those of the peer, medians",
        "of short turns that alternate. Made by `python -m benchmarks.sweep`; every point is in",
        "`benchmarks/results/sweep.json`.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="*", help=f"names among {', '.join(NETWORKS)} (default: all)")
    add("--peer", metavar="NAME=PYTHON", help="torch or torch-compile, and a Python that has it; without: print only")
    add("--size", type=int, action="append", help="image size (default: all)")
    add("--batch", type=int, action="append", help="batch size (default: all)")
    add("--only", choices=["training", "inference"], help="measure one of both")
    add("--sample", metavar="N", type=int, help="measure N points drawn at random")
    add("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    add("--again", action="store_true", help="measure points that are in the results again")
    add("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    add("--seconds", type=float, default=0.7, help="approximate length of a turn (default: 0.7)")
    add("--threads", type=int, default=0, help="processors per contender (default: all)")
    add("--patience", type=float, default=300, help="maximum seconds to compile (default: 300)")
    add("--kept", action="store_true", help="let the peer retain freed memory too")
    options = parser.parse_args()
    if unknown := [name for name in options.models if name not in NETWORKS]:
        parser.error(f"unknown: {', '.join(unknown)}; networks: {', '.join(NETWORKS)}")
    results, about = read(), machine()
    if options.peer:
        peer, _, python = options.peer.partition("=")
        points = [
            point for point in all_points()
            if point.model in (options.models or NETWORKS)
            and (options.size is None or point.size in options.size)
            and (options.batch is None or point.batch in options.batch)
            and options.only in (None, "training" if point.training else "inference")
        ]  # fmt: skip
        if options.sample is not None:
            points = random.Random(options.seed).sample(points, min(options.sample, len(points)))
        for number, point in enumerate(points, 1):
            known = find(results, point, peer, label(about))
            if known and not options.again:
                continue
            print(f"{number} of {len(points)}: {point}", flush=True)
            figures = measure(point, peer, python or sys.executable, options)
            print("   " + (f"{figures['ratio']:.2f}" if "ratio" in figures else figures["refused"]), flush=True)
            results = read()  # another call may have added points
            results["points"] = [row for row in results["points"] if row != known]
            results["points"].append({**dataclasses.asdict(point), "against": peer, "machine": about, **figures})
            OUTPUT.write_text(_one_row_per_line(results))
        write_page()
    print(table(results))


def _one_row_per_line(results: dict[str, Any]) -> str:
    rows = ",\n".join("  " + json.dumps(row) for row in results["points"])
    return f'{{"points": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    main()
