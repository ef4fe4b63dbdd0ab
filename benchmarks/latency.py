"""Time single calls of inference, against what people deploy with: PyTorch, ONNX Runtime and OpenVINO.

    python -m benchmarks.latency --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python \\
        --peer onnxruntime=ENV/bin/python --peer openvino=ENV/bin/python
    python -m benchmarks.latency resnet50 --batch 1 --peer torch=ENV/bin/python --again
    python -m benchmarks.latency                                     # the table of the results so far

A call goes from images in memory to logits and waits for them, with one image or eight. This project runs as `zoo
predict` does, with batch norm folded; PyTorch in channels_last and inference mode, or compiled with frozen weights;
ONNX Runtime and OpenVINO run the files of `zoo export`, in float32. Those need the extra onnx, here or in the Python of
`--exporter`. The contenders alternate as in race.py, and every point is added to benchmarks/results/latency.json as
soon as it is measured: the figures of each peer, with those of this project from the same run. The next call measures
only peers without figures on this machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, label, machine
from benchmarks.race import (
    MODELS,
    RESULTS,
    ROOT,
    ContenderError,
    Runner,
    by_machine,
    check_parameters,
    merge,
    write_page,
)

PEERS = ("torch", "torch-compile", "onnxruntime", "openvino")
EXPORTED = ("onnxruntime", "openvino")
BATCHES = (1, 8)
OUTPUT = RESULTS / "latency.json"


def export(python: str, model: str, folder: str) -> str:
    """Write the network as ONNX with this Python and return the file's path."""
    words = [python, "-m", "benchmarks.latency_peers", "export", model, str(MODELS[model][1]), folder]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(f"{model}: cannot be exported: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return str(Path(folder, f"{model}.onnx"))


def measure(model: str, batch: int, pythons: dict[str, str], file: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return {peer: {"zoo", "peer", …}}, both {"ms", "best", "rounds"}, or {"missing": reason} for one that cannot run.

    Raises:
        ContenderError: if this project cannot run, a contender ends early, or the networks differ in parameters.
    """
    shape, classes, _ = MODELS[model]
    asked = {
        "model": model, "training": False, "shape": shape, "classes": classes, "batch": batch,
        "threads": options.threads, "kept": False, "extra": {"file": file},
    }  # fmt: skip
    about = {"load_before": round(os.getloadavg()[0], 2), "when": time.strftime("%Y-%m-%d %H:%M"), "machine": machine()}
    runners: dict[str, Runner] = {}
    missing: dict[str, str] = {}
    try:
        for name, python in pythons.items():
            try:
                runners[name] = Runner(name, python, asked, options.patience, "benchmarks.latency_peers")
            except (ContenderError, OSError) as error:
                missing[name] = str(error)
                print(f"   {name}: {error}", flush=True)
        if "zoo" in missing:
            raise ContenderError(f"{model}: this project cannot run: {missing['zoo']}")
        check_parameters(model, {name: runner.ready["parameters"] for name, runner in runners.items()})
        calls = {name: max(1, round(options.seconds / runner.ready["step"])) for name, runner in runners.items()}
        rounds: dict[str, list[float]] = {name: [] for name in runners}
        order = list(runners)
        for number in range(options.rounds):
            for name in order[number % len(order) :] + order[: number % len(order)]:
                rounds[name].append(round(1000 * runners[name].take(calls[name]) / calls[name], 3))
    finally:
        for runner in runners.values():
            runner.stop()
    figures = {
        name: {"ms": statistics.median(times), "best": min(times), "rounds": times} for name, times in rounds.items()
    }
    return {name: {"missing": reason, "machine": about["machine"]} for name, reason in missing.items()} | {
        name: {"zoo": figures["zoo"], "peer": peer, **about} for name, peer in figures.items() if name != "zoo"
    }


def unmeasured(known: dict[str, Any], peers: Iterable[str], on: str) -> list[str]:
    """Return the peers that have no figures on the machine with this label. `known`: the rows of a point by peer."""
    return [name for name in peers if "peer" not in known.get(name, {}) or label(known[name]["machine"]) != on]


def table(results: dict[str, Any]) -> str:
    """Return Markdown tables by machine: milliseconds of each contender, and this project's by the fastest peer's.

    A row is a run, since this project's figures differ between runs.
    """
    rows = [row for batches in results["models"].values() for peers in batches.values() for row in peers.values()]
    return by_machine([row for row in rows if "peer" in row], lambda on: _table(results, on))


def _table(results: dict[str, Any], on: str) -> str:
    names = ("zoo", *PEERS)
    lines = [f"| model, batch | {' | '.join(names)} | zoo / fastest peer |", "|---|" + "---:|" * (len(names) + 1)]
    for model in MODELS:
        for batch, peers in sorted(results["models"].get(model, {}).items(), key=lambda item: int(item[0])):
            runs: dict[str, dict[str, float]] = {}
            for name, row in peers.items():
                if "peer" in row and label(row["machine"]) == on:
                    times = runs.setdefault(row["when"], {"zoo": row["zoo"]["ms"]})
                    times[name] = row["peer"]["ms"]
            for _, times in sorted(runs.items()):
                cells = [f"{times[name]:.3g}" if name in times else "" for name in names]
                ratio = times["zoo"] / min(times[name] for name in PEERS if name in times)
                lines.append(f"| {model}, {batch} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def read() -> dict[str, Any]:
    return json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"models": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="*", help=f"names among {', '.join(MODELS)} (default: all)")
    add(
        "--peer", metavar="NAME=PYTHON", action="append", default=[],
        help=f"one of {', '.join(PEERS)}, and a Python that has it; without: print only",
    )  # fmt: skip
    add("--exporter", metavar="PYTHON", default=sys.executable, help="Python with the extra onnx (default: this one)")
    add("--batch", type=int, action="append", help="batch size (default: 1 and 8)")
    add("--again", action="store_true", help="measure points that are in the results again")
    add("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    add("--seconds", type=float, default=2, help="approximate length of a turn (default: 2)")
    add("--threads", type=int, default=0, help="processors per contender (default: all)")
    add("--patience", type=float, default=600, help="maximum seconds to compile (default: 600)")
    options = parser.parse_args()
    peers = dict(peer.partition("=")[::2] for peer in options.peer)
    unknown = [name for name in options.models if name not in MODELS] + [name for name in peers if name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; models: {', '.join(MODELS)}; peers: {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models or MODELS if peers else ():
            file = ""
            for batch in options.batch or BATCHES:
                results = read()
                known = results["models"].setdefault(model, {}).setdefault(str(batch), {})
                left = list(peers) if options.again else unmeasured(known, peers, hardware())
                if not left:
                    continue
                if not file and any(name in left for name in EXPORTED):
                    file = export(options.exporter, model, folder)
                print(f"{model}, batch {batch}:", flush=True)
                pythons = {"zoo": sys.executable, **{name: peers[name] or sys.executable for name in left}}
                try:
                    found = measure(model, batch, pythons, file, options)
                except ContenderError as error:
                    raise SystemExit(str(error)) from None
                merge(known, found)
                OUTPUT.write_text(json.dumps(results, indent=1) + "\n")
                for name, row in found.items():
                    if "peer" in row:
                        print(f"   {name} {row['peer']['ms']:.3g} ms, zoo {row['zoo']['ms']:.3g} ms")
    print(table(read()))
    if peers:
        write_page()


if __name__ == "__main__":
    main()
