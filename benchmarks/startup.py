"""Time the start: from the command to its help or to its first training step, cold and with a compilation cache.

    python -m benchmarks.startup                    # five rounds; results in benchmarks/results/startup.json

Every measurement is a process of its own, from before its start until `zoo --help` or `zoo predict` of one image has
ended, or until the first step of `python train.py` (LeNet-5 on digits) is done. "cold": nothing is compiled yet; "warm"
and "predict": the same command has run before. They alternate, and all rounds are recorded, each with its processor
time, which says more than the seconds do where other programs run as well. Python keeps the bytecode of this project,
as pip does when it installs a package. The targets are those for an idle machine with two cores.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.race import RESULTS, ROOT, write_page

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


def measured(words: list[str], **environment: str) -> tuple[dict[str, float], str]:
    """Run Python with these arguments; return its processor time and seconds until its end, and what it printed."""
    left_out = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**inherited, "BEGAN": str(began), **environment}, capture_output=True,
        text=True,
    )  # fmt: skip
    seconds, now = time.time() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"processor": round(processor, 3), "end": round(seconds, 3)}, done.stdout


def help_shown() -> dict[str, float]:
    return measured(["-m", "zoo.cli", "--help"])[0]


def predicted(cache: Path) -> dict[str, float]:
    return measured(["-m", "zoo.cli", "predict", "lenet5-mnist", "docs/digit.png"], XDG_CACHE_HOME=str(cache))[0]


def trained(cache: Path, arguments: list[str]) -> dict[str, float]:
    """Return the processor time, and the seconds from the start until each stage was done; the last is the step."""
    code = "from benchmarks.startup import first_step; first_step()"
    with tempfile.TemporaryDirectory() as folder:
        words = ["-c", code, "--quiet", "--workdir", f"{folder}/run", *arguments]
        times, printed = measured(words, XDG_CACHE_HOME=str(cache))
    return {"processor": times["processor"], **json.loads(printed.splitlines()[-1])}


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
    if options.output.parent == RESULTS:
        write_page()


if __name__ == "__main__":
    main()
