"""Time the start: from the command to its help or to its first training step, cold and with a compilation cache.

    python -m benchmarks.startup                    # five rounds; results in benchmarks/results/startup.json

Every measurement is a process of its own, from before its start until `zoo --help` or `zoo predict` of one image has
ended, or until the first step of `python train.py` (LeNet-5 on digits) is done. "cold": nothing is compiled yet; "warm"
and "predict": the same command has run before. They alternate, and all rounds are recorded. The targets are those for
an idle machine with two cores.
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

from benchmarks.machine import machine
from benchmarks.race import RESULTS, ROOT

#: Measurement -> seconds it may take.
TARGETS = {"help": 1.0, "cold": 5.0, "warm": 2.5, "predict": 1.5}


def first_step() -> None:
    """Train as train.py does, but report the times after the first step and exit."""
    began = float(os.environ["BEGAN"])
    marks = {"python": time.time() - began}
    from zoo.cli import run
    from zoo.training import plan as planning

    marks["imports"] = time.time() - began
    make_plan, compile_step = planning.make_plan, planning.Plan.compile_step

    def planned(*args, **kwargs):
        job = make_plan(*args, **kwargs)
        marks["plan"] = time.time() - began
        return job

    def compiled(*args):
        import jax

        marks["state"] = time.time() - began
        step = compile_step(*args)
        marks["compiled"] = time.time() - began

        class Stepped:
            """The compiled step, with all its other attributes."""

            def __getattr__(self, name):
                return getattr(step, name)

            def __call__(self, *args):
                jax.block_until_ready(step(*args))
                marks["step"] = time.time() - began
                print(json.dumps({name: round(seconds, 3) for name, seconds in marks.items()}), flush=True)
                os._exit(0)

        return Stepped()

    planning.make_plan, planning.Plan.compile_step = planned, compiled
    run(["train", *sys.argv[1:]])


def help_shown() -> dict[str, float]:
    began = time.time()
    subprocess.run([sys.executable, "-m", "zoo.cli", "--help"], check=True, capture_output=True, cwd=ROOT)
    return {"end": round(time.time() - began, 3)}


def predicted(cache: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "zoo.cli", "predict", "lenet5-mnist", "docs/digit.png"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    began = time.time()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT, env={**environment, "XDG_CACHE_HOME": str(cache)})
    return {"end": round(time.time() - began, 3)}


def trained(cache: Path, arguments: list[str]) -> dict[str, float]:
    """Return the seconds from the start until each stage was done; the last is the first step."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {"XDG_CACHE_HOME": str(cache), "BEGAN": str(time.time())}
        code = "from benchmarks.startup import first_step; first_step()"
        done = subprocess.run(
            [sys.executable, "-c", code, "--quiet", "--workdir", f"{folder}/run", *arguments], cwd=ROOT,
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    parser.add_argument(
        "train", metavar="ARGUMENT", nargs="*", help="arguments of train.py, after --, such as --model resnet20"
    )
    options = parser.parse_args()
    results: dict = {
        "machine": machine(), "when": time.strftime("%Y-%m-%d %H:%M"), "load_before": round(os.getloadavg()[0], 2),
        "command": ["train.py", *options.train],
    }  # fmt: skip
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in TARGETS}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            rounds["help"].append(help_shown())
            rounds["cold"].append(trained(Path(cache), options.train))
            rounds["warm"].append(trained(Path(cache), options.train))
            predicted(Path(cache))
            rounds["predict"].append(predicted(Path(cache)))
    for name, found in rounds.items():
        middle = {mark: round(statistics.median(each[mark] for each in found), 2) for mark in found[0]}
        seconds = list(middle.values())[-1]
        results[name] = {"seconds": seconds, "target": TARGETS[name], "median_marks": middle, "rounds": found}
        print(f"{name}: {seconds:.2f} s (target {TARGETS[name]:g} s)  {middle}")
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
