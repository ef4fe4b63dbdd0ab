"""Time single calls of inference, against what people deploy with: PyTorch, ONNX Runtime and OpenVINO.

    python -m benchmarks.latency --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python \\
        --peer onnxruntime=ENV/bin/python --peer openvino=ENV/bin/python
    python -m benchmarks.latency resnet50 --batch 1 --peer torch=ENV/bin/python --again
    python -m benchmarks.latency                                     # the table of the results so far

A call goes from images in memory to logits and waits for them, with one image or eight. This project runs as `zoo
predict` does, with batch norm folded; PyTorch in channels_last and inference mode, or compiled with frozen weights;
ONNX Runtime and OpenVINO run the files of `zoo export`, in float32. Those need the extra onnx, here or in the Python of
`--exporter`. The contenders alternate as in race.py, and every point is added to benchmarks/results/latency.json as
soon as it is measured; on the next call, points that have figures of all peers are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.race import MODELS, RESULTS, ROOT, ContenderError, Runner, write_page

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
    """Return {contender: {"ms", "best", "rounds"}}, or {"missing": reason} for one that cannot run."""
    shape, classes, _ = MODELS[model]
    asked = {
        "model": model, "training": False, "shape": shape, "classes": classes, "batch": batch,
        "threads": options.threads, "kept": False, "extra": {"file": file},
    }  # fmt: skip
    runners: dict[str, Runner] = {}
    found: dict[str, Any] = {}
    try:
        for name, python in pythons.items():
            try:
                runners[name] = Runner(name, python, asked, options.patience, "benchmarks.latency_peers")
            except (ContenderError, OSError) as error:
                found[name] = {"missing": str(error)}
                print(f"   {name}: {error}", flush=True)
        calls = {name: max(1, round(options.seconds / runner.ready["step"])) for name, runner in runners.items()}
        rounds: dict[str, list[float]] = {name: [] for name in runners}
        order = list(runners)
        for number in range(options.rounds):
            for name in order[number % len(order) :] + order[: number % len(order)]:
                rounds[name].append(round(1000 * runners[name].take(calls[name]) / calls[name], 3))
    finally:
        for runner in runners.values():
            runner.stop()
    return found | {
        name: {"ms": statistics.median(times), "best": min(times), "rounds": times} for name, times in rounds.items()
    }


def table(results: dict[str, Any]) -> str:
    """Return Markdown: milliseconds of each contender, and this project's relative to the fastest of the others."""
    names = ("zoo", *PEERS)
    lines = [f"| model, batch | {' | '.join(names)} | zoo / fastest peer |", "|---|" + "---:|" * (len(names) + 1)]
    for model in MODELS:
        for batch, row in sorted(results["models"].get(model, {}).items(), key=lambda item: int(item[0])):
            times = {name: row[name]["ms"] for name in names if "ms" in row.get(name, {})}
            peers = [times[name] for name in PEERS if name in times]
            ratio = f"{times['zoo'] / min(peers):.2f}" if peers and "zoo" in times else ""
            cells = [f"{times[name]:.3g}" if name in times else "" for name in names]
            lines.append(f"| {model}, {batch} | {' | '.join(cells)} | {ratio} |")
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
    pythons = {"zoo": sys.executable, **{name: python or sys.executable for name, python in peers.items()}}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models or MODELS if peers else ():
            file = ""
            for batch in options.batch or BATCHES:
                results = read()
                known = results["models"].get(model, {}).get(str(batch), {})
                if not options.again and known.keys() >= pythons.keys():
                    continue
                if not file and any(name in peers for name in EXPORTED):
                    file = export(options.exporter, model, folder)
                print(f"{model}, batch {batch}:", flush=True)
                load = round(os.getloadavg()[0], 2)
                row: dict[str, Any] = {"when": time.strftime("%Y-%m-%d %H:%M"), "load_before": load}
                row |= measure(model, batch, pythons, file, options)
                results["machine"] = machine()
                results["models"].setdefault(model, {})[str(batch)] = row
                OUTPUT.write_text(json.dumps(results, indent=1) + "\n")
                print("   " + "  ".join(f"{name} {row[name]['ms']:.3g} ms" for name in pythons if "ms" in row[name]))
    print(table(read()))
    if peers:
        write_page()


if __name__ == "__main__":
    main()
