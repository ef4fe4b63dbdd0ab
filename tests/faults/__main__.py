"""Run the long form of the fault tests and print its figures.

python -m tests.faults                          # everything: about an hour on two cores
python -m tests.faults kills --mode plain --kills 100
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import kills, long_run, programs
from .damage import damage_checkpoint, damage_run
from .endings import ENDINGS, all_endings
from .modes import MODES, make_images


def say(line: str) -> None:
    print(line, flush=True)


def run_kills(options: argparse.Namespace, folder: Path) -> int:
    faults = 0
    for name in options.mode or MODES:
        place = folder / name.replace(" ", "-")
        result = kills.storm(name, options.kills, place, folder / "images", seed=options.seed, say=say)
        say(f"{name}: {result}")
        faults += len(result.faults)
    return faults


def run_damage(options: argparse.Namespace, folder: Path) -> int:
    """Damage a released checkpoint and a run, each in a process of its own, because this one must not use JAX."""
    released = folder / "lenet5-mnist"
    shutil.copytree(programs.ROOT / "checkpoints" / "lenet5-mnist", released, dirs_exist_ok=True)
    faults = 0
    for what, damage, place, count in (
        ("released checkpoint", damage_checkpoint, released, options.checkpoint_damages),
        ("run", damage_run, folder / "damaged-run", options.run_damages),
    ):
        answer = folder / "damage.json"

        def work(damage=damage, place=place, count=count, answer=answer) -> None:
            answer.write_text(json.dumps(damage(place, count, options.seed)))

        program = programs.start((), folder, name="damage", call=work)
        shown, began = "", time.monotonic()
        while program.poll() is None:
            time.sleep(1)
            line = (program.said().strip().splitlines() or [""])[-1]
            if line != shown and time.monotonic() - began > 30:
                say(f"{what}: {line}")
                shown, began = line, time.monotonic()
        if program.code:
            raise RuntimeError(program.complained())
        results, lines = json.loads(answer.read_text())
        say(f"{what}: {sum(results.values())} kinds of damage: {results}")
        for line in lines:
            say(f"  {line}")
        faults += len(lines)
    return faults


def run_endings(options: argparse.Namespace, folder: Path) -> int:
    faults = 0
    for name, lines, seconds in all_endings(folder / "endings", tuple(options.ending or ()), options.quick):
        say(f"{name}: {len(lines)} faults in {seconds:.0f} s")
        for line in lines:
            say(f"  {line}")
        faults += len(lines)
    return faults


def run_long(options: argparse.Namespace, folder: Path) -> int:
    for name, values in long_run.summarise(long_run.long_run(folder / "long", options.steps, say=say)).items():
        say(f"{name}: {values}")
    return 0


PARTS = {"kills": run_kills, "damage": run_damage, "endings": run_endings, "long-run": run_long}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--mode", action="append", choices=MODES, help="modes of the kill storm (default: all)")
    parser.add_argument("--kills", type=int, default=100, help="kills per mode (default: 100)")
    parser.add_argument("--checkpoint-damages", type=int, default=200, help="of a released checkpoint (default: 200)")
    parser.add_argument("--run-damages", type=int, default=1000, help="of a run (default: 1,000)")
    parser.add_argument("--ending", action="append", choices=ENDINGS, help="kinds of endings (default: all)")
    parser.add_argument("--steps", type=int, default=10**6, help="steps of the long run (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all moments and positions")
    parser.add_argument("--folder", type=Path, help="folder for runs (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a few of each, in seconds")
    options = parser.parse_args()
    if options.quick:
        options.mode, options.kills, options.checkpoint_damages, options.run_damages = ["mixup"], 2, 15, 6
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {unknown.pop()}; choose from {', '.join(PARTS)}")
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="zoo-faults-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(programs.ROOT / "tests"))  # of helpers.py
    programs.prepare(folder / "cache")
    make_images(folder / "images")
    faults = sum(PARTS[part](options, folder) for part in options.parts or PARTS)
    say(f"faults: {faults}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
