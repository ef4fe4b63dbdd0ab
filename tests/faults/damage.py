"""Damaged files: every flipped bit and every truncation is noticed, by name, or changes nothing."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stopped(BaseException):
    """Ends a training as a kill would."""


def flip(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data))
    return data[:position] + bytes([data[position] ^ (1 << rng.randrange(8))]) + data[position + 1 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def lengthen(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(1 + rng.randrange(64))


def blank(data: bytes, rng: random.Random) -> bytes:
    """Zero a block, as a disk does that lost it."""
    start = rng.randrange(len(data)) // 512 * 512
    return data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]


KINDS = (flip, flip, truncate, lengthen, blank)


def damage_each(
    folder: Path,
    count: int,
    check: Callable[[str], str],
    seed: int = 0,
    exclude: Callable[[str], bool] = lambda n: False,
) -> tuple[Counter, list[str]]:
    """Damage a file of a folder, check, and restore the folder, `count` times, going round all files.

    Args:
        folder: the folder.
        count: number of kinds of damage.
        check: returns what happened, given the file's name: "noticed", "harmless" or anything else, which is a fault.
        seed: seed of the damage.
        exclude: returns True for files that are left alone.

    Returns:
        (count of each result, a line per fault).
    """
    rng, results, faults = random.Random(seed), Counter(), []
    kept = folder.with_name(f"{folder.name}-intact")
    shutil.copytree(folder, kept)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if (folder / name).stat().st_size and not exclude(name)]
    for number in range(count):
        name, kind = names[number % len(names)], rng.choice(KINDS)
        data = (folder / name).read_bytes()
        damaged = kind(data, rng)
        if damaged == data:
            continue
        (folder / name).write_bytes(damaged)
        result = check(name)
        results[result.split(":")[0]] += 1
        if result not in ("noticed", "harmless"):
            faults.append(f"{name}, {kind.__name__} number {number}: {result}")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        if (number + 1) % 50 == 0:
            print(f"{number + 1:,} of {count:,}: {dict(results)}", flush=True)
    return results, faults


def one_line(error: Exception, folder: Path, *names: str) -> str:
    """Return "noticed" if an error is one line that names the folder or a file, else what is wrong with it."""
    text = str(error)
    if "\n" in text or not isinstance(error, (ValueError, OSError)):
        return f"bad error: {type(error).__name__} {text[:200]!r}"
    if not any(name in text for name in (folder.name, *names)):
        return f"unnamed: {text[:200]!r}"
    return "noticed"


def damage_checkpoint(folder: Path, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Load a checkpoint after each damage. It is refused in one line, or equal."""
    import numpy as np

    from zoo import checkpoint
    from zoo.trees import flatten

    card, variables = checkpoint.load_checkpoint(folder)
    leaves = flatten(variables)

    def check(name: str) -> str:
        try:
            found_card, found = checkpoint.load_checkpoint(folder)
        except Exception as error:
            return one_line(error, folder, name)
        same = found_card == card and all(np.array_equal(leaf, leaves[path]) for path, leaf in flatten(found).items())
        return "harmless" if same else "silently different"

    return damage_each(folder, count, check, seed)


def damage_run(folder: Path, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Resume a run after each damage. It is refused in one line, or ends with the bits of an undisturbed run."""
    from helpers import run_bits

    from zoo.training import loop, report

    plan = _tiny_plan(folder)
    step: list[Any] = []
    original_compile, original_draw = loop.compile_segment, report.draw_figures
    loop.compile_segment = lambda *arguments: step[0] if step else step.append(original_compile(*arguments)) or step[0]
    report.draw_figures = lambda *arguments: None  # most of the time, and not damaged
    try:
        loop.fit(plan, quiet=True)
        want = run_bits(folder)
        shutil.rmtree(folder)
        _train_partly(plan)

        def check(name: str) -> str:
            try:
                loop.fit(plan, quiet=True)
                found = run_bits(folder)
            except Exception as error:
                return one_line(error, folder, name)
            different = sorted(key for key in want if found[key] != want[key])
            return f"silently different: {different}" if different else "harmless"

        return damage_each(folder, count, check, seed, exclude=lambda name: name.startswith("events."))
    finally:
        loop.compile_segment, report.draw_figures = original_compile, original_draw


def _tiny_plan(folder: Path) -> Any:
    from helpers import make_plan, random_images

    from zoo.data.sources import from_arrays
    from zoo.training.recipe import Recipe

    data = from_arrays(
        random_images(40, 8, 8), validation=random_images(12, 8, 8), test=random_images(9, 8, 8), name="made"
    )
    recipe = Recipe(epochs=3, batch_size=10, learning_rate=0.01, ema=0.9)
    return make_plan("mlp", data, recipe, fields={"widths": (4,), "image_size": 8}, workdir=folder)


def _train_partly(plan: Any) -> None:
    """Train until two saves and a best checkpoint exist, then stop as if killed."""
    from zoo.training import loop

    process = loop.Trainer.process_metrics

    def process_or_stop(trainer: Any, number: int, metrics: dict) -> None:
        process(trainer, number, metrics)
        if number == plan.total_steps - 1:
            raise Stopped

    loop.Trainer.process_metrics = process_or_stop
    try:
        loop.fit(plan, quiet=True, save_steps=3)
    except Stopped:
        pass
    finally:
        loop.Trainer.process_metrics = process
