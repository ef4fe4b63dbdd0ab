"""Measure accuracy over several seeds with the commands that a user would type, and render the README's table.

    python -m benchmarks.accuracy digits mnist        # trains what is missing, writes benchmarks/results/accuracy.json
    python -m benchmarks.accuracy families            # every family with the same short budget, and softmax regression
    python -m benchmarks.accuracy --readme            # renders that file into README.md and docs/families.md

Every seed that was run is reported. Test split, single crop, the checkpoint chosen on the validation split.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import hardware
from benchmarks.pages import replace_block
from zoo.training import run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "families.md"
FASHION = "/usr/share/datasets/fashion-mnist"  # the location of Debian's package dataset-fashion-mnist

#: name -> (arguments of `zoo train`, number of seeds).
EXPERIMENTS: dict[str, tuple[str, int]] = {
    "digits": ("--model lenet5 --data digits", 5),
    "mnist": ("--model lenet5 --data tfds:mnist", 3),
    "mnist-plain": ("--model lenet5 --data tfds:mnist --recipe mnist-plain", 3),
    "mnist-1998": ("--model lenet5_1998 --data tfds:mnist", 3),
}


#: The same short training for many families: data, images, epochs, batch size, one validation at the end. The recipe is
#: the family's default without augmentation, which helps only if images are repeated often.
_COMMON = "--data FASHION --image-size 28 --set augment= --set warmup_epochs=0.3"
VECTORS = f"{_COMMON} --epochs 3 --batch-size 64 --set eval_every_epochs=3"
MAPS = f"{_COMMON} --limit 12000 --epochs 4 --batch-size 32 --set eval_every_epochs=4"

#: (budget, model, fields): a narrow instance of each family, which one core trains in a few minutes.
FAMILIES: tuple[tuple[str, str, str], ...] = (
    (VECTORS, "softmax", ""),
    (VECTORS, "mlp", ""),
    (VECTORS, "highway", ""),
    (VECTORS, "lenet5", ""),
    (MAPS, "softmax", ""),
    (MAPS, "highway_conv", ""),
    (MAPS, "alexnet_small", "--set width=0.25"),
    (MAPS, "alexnet_owt_small", "--set width=0.25"),
    (MAPS, "googlenet_small", "--set width=0.25"),
    (MAPS, "googlenet_bn_small", "--set width=0.125"),
    (MAPS, "inception_v2_small", "--set width=0.125"),
    (MAPS, "inception_v3_small", "--set width=0.125"),
    (MAPS, "inception_v4_small", "--set width=0.1"),
    (MAPS, "inception_resnet_v2_small", "--set width=0.1"),
    (MAPS, "xception_small", "--set width=0.125"),
    (MAPS, "resnet20", "--set width=8"),
    (MAPS, "resnet50_small", "--set width=8"),
    (MAPS, "resnet50_v2_small", "--set width=8"),
    (MAPS, "wide_resnet16_8", "--set width=8 --set widen=2"),
)
_BUDGETS = {VECTORS: "vectors", MAPS: "maps"}
EXPERIMENTS |= {
    f"family-{_BUDGETS[budget]}-{model}": (" ".join(f"--model {model} {fields} {budget}".split()), 3)
    for budget, model, fields in FAMILIES
}


def measure(name: str, data: dict[str, str | None]) -> dict:
    """Train the unfinished seeds of an experiment and return its summary. `data`: locations of the data sets."""
    words, seeds = EXPERIMENTS[name]
    rows, made_with = [], []
    for seed in range(seeds):
        folder = ROOT / "runs" / "accuracy" / f"{name}-{seed}"
        arguments = [str(data.get(word) or word) for word in shlex.split(words)]
        if data["tfds"] and "tfds:" in words:
            arguments += ["--data-dir", data["tfds"]]
        command = ["train", *arguments, "--seed", str(seed), "--workdir", str(folder), "--save-every", "600"]
        subprocess.run([sys.executable, "-m", "zoo.cli", *command], check=True)
        result = json.loads((folder / run.RESULTS).read_text())
        sessions = [json.loads(line) for line in (folder / run.TIMING).read_text().splitlines()]
        seconds = sum(session["seconds"] for session in sessions)
        accuracies = {split: result[split]["accuracy"] for split in ("validation", "test")}
        made_with.append(json.loads((folder / run.CONFIG).read_text())["made_with"])
        rows.append({"seed": seed, **accuracies, "best_step": result["best_step"], "seconds": seconds})
    if any(
        (origin["versions"], origin["git"]) != (made_with[0]["versions"], made_with[0]["git"]) for origin in made_with
    ):
        raise SystemExit(f"{name}: the runs under runs/accuracy come from different versions; remove them")
    test = [row["test"] for row in rows]
    return {
        "command": f"zoo train {words} --seed 0 … {seeds - 1}",
        "mean": statistics.mean(test),
        "std": statistics.stdev(test),
        "seeds": rows,
        "hardware": hardware(),
        "versions": made_with[0]["versions"],
        "git": made_with[0]["git"],
    }


def render(results: dict) -> str:
    """Return the README's table as Markdown."""
    lines = ["| command | test accuracy | seeds |", "|---|---|---|"]
    for name, row in results.items():
        figure = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} %"
        if name in EXPERIMENTS and not name.startswith("family-"):
            lines.append(f"| `{row['command']}` | {figure} | {len(row['seeds'])} |")
    hardware = sorted({row["hardware"] for row in results.values()})
    lines.append("")
    lines.append(
        "Mean ± standard deviation over all seeds that were run. Test split, single crop, the checkpoint chosen on "
        f"the validation split. Hardware: {'; '.join(hardware)}. Made by `python -m benchmarks.accuracy`."
    )
    return "\n".join(lines)


def render_families(results: dict) -> str:
    """Return docs/families.md, the table of short trainings of every family."""
    lines = [
        "# Every family, trained for a few minutes",
        "",
        "Narrow instances on Fashion-MNIST at 28 pixels, three seeds each, compared with softmax regression under the",
        "same budget. The table shows early progress, not final accuracy. Networks with shortcuts learn most.",
    ]
    for budget, heading in ((VECTORS, "All 55,000 images, 3 epochs"), (MAPS, "12,000 images, 4 epochs")):
        lines += ["", f"## {heading}", "", f"`zoo train --model MODEL FIELDS {budget} --seed 0 … 2`", ""]
        lines += ["| model | fields | test accuracy | above softmax |", "|---|---|---|---|"]
        base = results[f"family-{_BUDGETS[budget]}-softmax"]["mean"]
        for of, model, fields in FAMILIES:
            row = results.get(f"family-{_BUDGETS[budget]}-{model}")
            if of == budget and row:
                figure = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} %"
                code = f"`{fields}`" if fields else ""
                lines.append(f"| {model} | {code} | {figure} | {100 * (row['mean'] - base):+.2f} |")
    hardware = sorted({row["hardware"] for name, row in results.items() if name.startswith("family-")})
    lines += [
        "",
        "Mean ± standard deviation over all seeds that were run. Test split, single crop, the last step's checkpoint.",
        f"FASHION is the folder of the IDX files. Hardware: {'; '.join(hardware)}. Made by",
        "`python -m benchmarks.accuracy families --readme`.",
    ]
    return "\n".join(lines) + "\n"


def write_readme(results: dict) -> None:
    """Write the tables into README.md and docs/families.md."""
    README.write_text(replace_block(README.read_text(encoding="utf-8"), "results", render(results)), "utf-8")
    PAGE.write_text(render_families(results), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help=f"families, or names among {', '.join(EXPERIMENTS)}")
    parser.add_argument("--tfds", metavar="DIR", help="folder of TensorFlow Datasets")
    parser.add_argument(
        "--fashion", metavar="DIR", default=FASHION, help=f"folder of Fashion-MNIST's IDX files (default: {FASHION})"
    )
    parser.add_argument("--readme", action="store_true", help="render the results into README.md and docs/families.md")
    options = parser.parse_args()
    families = [name for name in EXPERIMENTS if name.startswith("family-")]
    chosen = [choice for name in options.experiments for choice in (families if name == "families" else [name])]
    data = {"FASHION": options.fashion, "tfds": options.tfds}
    unknown = sorted(set(chosen) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}; choose from families, {', '.join(EXPERIMENTS)}")
    for name in chosen:
        measured = measure(name, data)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = measured
        ordered = {key: results[key] for key in EXPERIMENTS if key in results}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
        print(f"{name}: {100 * measured['mean']:.2f} ± {100 * measured['std']:.2f} %", flush=True)
    if options.readme:
        write_readme(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
