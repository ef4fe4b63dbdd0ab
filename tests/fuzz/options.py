"""Absurd values of options: every command, every option that takes a value, each with a value that makes no sense.

    python -m tests.fuzz.options                      # every pair once
    python -m tests.fuzz.options --sample 300 --seed 1
    python -m tests.fuzz.options --command export

A command line must end by itself with 0, 1 or 2, in bounded time and memory, without a traceback, a control character
of the value or a file outside its folder; with 2 it must say one line that begins with the command's name.
"""

import argparse
import importlib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.faults import programs  # noqa: E402

#: A command line of each command that ends within a few seconds; options are added to it.
BASES: dict[str, str] = {
    "train": "--model mlp --set widths=(4,) --data photos --epochs 0.1 --workdir run --quiet --no-report",
    "eval": "CKPT --data photos",
    "predict": "CKPT photos/cat/0.png",
    "import": "weights.safetensors -o imported",
    "list": "",
    "info": "CKPT",
    "verify": "CKPT",
    "export": "CKPT -o exported.safetensors --to safetensors",
    "features": "CKPT --data photos -o f.npz",
    "probe": "CKPT --data photos",
    "report": "CKPT --data photos -o report.html",
    "show": "CKPT --image photos/cat/0.png -o shown.png",
    "data": "photos",
    "compare": "run1 run2",
    "lr-find": "--model mlp --set widths=(4,) --data photos -o rates.png --steps 20",
    "sweep": "--model mlp --data photos --workdir swept --seeds 1 --epochs 0.1",
    "serve": "CKPT --port 0",
    "devices": "",
    "push": "CKPT hf:ada/pets --dry-run",
    "launch": "-n 1 -- train --model mlp --data photos --epochs 0.1 --workdir launched --quiet",
}
#: Commands that do not end, or whose arguments are those of another.
EXCLUDED = {"serve", "launch"}

#: Values, by what they may break.
VALUES = (
    "", " ", "-1", "0", "-0.0", "1e300", "-1e300", "nan", "inf", "99999999999999999999999", "0x10", "1,2", "()",
    "[[[[[[[", "None", "true", "é" * 300, "a\nb", "\x1b[31mred", "%s%n", "{}", "../..", "/dev/null", "/dev/zero", "/",
    "/proc/self/mem", "=1", "x" * 5000, "𝟙", "1_000", ":", "tfds:", "hf:", "http://", "a=b=c", "'", '"', "\\", "**",
    "$(true)", "-", "--",
)  # fmt: skip

CPU_SECONDS, WALL_SECONDS, MEMORY = 90, 240.0, 6 * 2**30


def options_of(command: str) -> list[str]:
    """Return the options of a command that take a value, by their longest name."""
    from zoo import cli

    parser = argparse.ArgumentParser(command, allow_abbrev=False)
    importlib.import_module(f"zoo.commands.{cli.COMMANDS[command][0]}").add_arguments(parser)
    actions = [action for action in parser._actions if action.option_strings and action.nargs != 0]
    return [max(action.option_strings, key=len) for action in actions]


def pairs(commands: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (command, option, value)."""
    for command in commands:
        for option in options_of(command):
            for value in VALUES:
                yield command, option, value


def fill(folder: Path) -> None:
    """Make what the command lines of BASES read. Runs in a process of its own, because it uses JAX."""
    import numpy as np
    from PIL import Image

    from zoo import cli

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(12):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{k}.png")
    assert (
        cli.main(["export", "resnet20-cifar10", "--to", "safetensors", "-o", str(folder / "weights.safetensors")]) == 0
    )
    for run in ("run1", "run2"):
        words = [*BASES["train"].split()[:-2], "--seed", run[-1], "--workdir", str(folder / run)]
        assert cli.main(["train", *words, "--data", str(folder / "photos")]) == 0
    shutil.copytree(folder / "run1" / "best", folder / "CKPT")


def problems(command: str, value: str, program: programs.Program, folder: Path, before: set[str]) -> list[str]:
    """Return what is wrong with how a command line ended."""
    out, err = program.said(), program.complained()
    found = []
    if program.code not in (0, 1, 2):
        found.append(f"ended with {program.code}: {err[-200:]!r}")
    if "Traceback (most recent call last)" in out + err:
        found.append(f"traceback: {err.strip().splitlines()[-1][:200]!r}")
    lines = [line for line in err.splitlines() if line.strip()]
    if program.code == 2 and not (lines and lines[-1].startswith(f"zoo {command}: ")):
        found.append(f"ends with 2, but says {lines[-1:]!r:.200}")
    if program.code == 2 and len(lines) > 3:
        found.append(f"{len(lines)} lines of stderr: {err[:300]!r}")
    if any(len(line) > 2000 for line in lines):
        found.append("a line of more than 2,000 characters")
    if "\x1b" in value and "\x1b[31m" in out + err:
        found.append("the escape reaches the terminal")
    beside = {path.name for path in folder.parent.iterdir()} - before
    if beside:
        found.append(f"wrote outside of its folder: {sorted(beside)[:3]}")
    return found


def require_bases(commands: list[str], template: Path, folder: Path) -> None:
    """Raise SystemExit unless the command lines without absurd options do their work."""
    for command in sorted(set(commands) - {"push"}):  # which finds no Hub
        shutil.copytree(template, folder)
        program = programs.start([command, *BASES[command].split()], folder)
        if program.wait(WALL_SECONDS):
            raise SystemExit(f"zoo {command} {BASES[command]}: ends with {program.code}: {program.complained()[-300:]}")
        shutil.rmtree(folder)


def check(command: str, option: str, value: str, template: Path, folder: Path) -> tuple[int | None, list[str]]:
    """Run a command line in a copy of `template`; return (exit code, what is wrong)."""
    shutil.copytree(template, folder)
    before = {path.name for path in folder.parent.iterdir()}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

    words = [command, *BASES[command].split(), f"{option}={value}" if option.startswith("--") else f"{option}{value}"]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    program = programs.start(words, folder, environment=nowhere, before=limit)
    try:
        program.wait(WALL_SECONDS)
        found = problems(command, value, program, folder, before)
    except TimeoutError:
        found = [f"no end after {WALL_SECONDS:g} s"]
    shutil.rmtree(folder, ignore_errors=True)
    return program.code, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.options", description=__doc__.splitlines()[0])
    parser.add_argument("--command", action="append", choices=sorted(set(BASES) - EXCLUDED), help="default: all")
    parser.add_argument("--option", action="append", help="only these options")
    parser.add_argument("--sample", type=int, default=0, help="number of command lines (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="zoo-options-"))
    programs.prepare(place / "cache")
    template = place / "template"
    template.mkdir()
    filled = programs.start((), template, call=lambda: fill(template))
    if filled.wait():
        raise SystemExit(filled.complained())
    commands = arguments.command or sorted(set(BASES) - EXCLUDED)
    require_bases(commands, template, place / "base")
    lines = list(pairs(commands))
    lines = [line for line in lines if not arguments.option or line[1] in arguments.option]
    if arguments.sample:
        lines = random.Random(arguments.seed).sample(lines, min(arguments.sample, len(lines)))
    codes: Counter = Counter()
    faults, begin, shown = 0, time.monotonic(), time.monotonic()
    for number, (command, option, value) in enumerate(lines):
        code, found = check(command, option, value, template, place / "box" / str(number))
        codes[code] += 1
        for line in found:
            faults += 1
            print(f"zoo {command} {option}={value!r:.60}: {line}", flush=True)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"{number + 1:,} of {len(lines):,}, {shown - begin:.0f} s, {faults} faults", flush=True)
    seconds = time.monotonic() - begin
    print(f"{len(lines):,} command lines in {seconds:.0f} s; exit codes {dict(codes)}; {faults} faults", flush=True)
    shutil.rmtree(place)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
