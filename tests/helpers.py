"""Helpers that several test files share."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo import checkpoint, cli
from zoo.stores import objects
from zoo.training import loop, plan, run
from zoo.training.request import TrainRequest
from zoo.trees import flatten


def relative_error(actual: Any, expected: Any) -> float:
    """Return the largest absolute difference as a fraction of the largest expected magnitude."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def random_images(count: int, *shape: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct random images, uint8 [count, *shape] (6 x 5 by default), and labels 0, 1, 2, 0, …"""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *(shape or (6, 5))), np.uint8), np.arange(count) % classes


def split_sizes(dataset: Any) -> dict[str, int]:
    """Return the number of records in each split."""
    return {name: len(split) for name, split in dataset.splits.items()}


def flip_bit(data: bytes, position: int | None = None) -> bytes:
    """Return the bytes with one bit flipped, a third of the way through by default."""
    position = len(data) // 3 if position is None else position
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def assert_one_line(caught: Any, *parts: str) -> None:
    """Assert that the message of a caught exception is one line that contains these parts."""
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def run_command(capsys, *words: Any) -> tuple[int, str, str]:
    """Run a command line in this process and return (exit code, stdout, stderr)."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


class Killed(BaseException):
    """Ends a block of `killed_after`."""


@contextmanager
def killed_after(monkeypatch, count: int) -> Iterator[list[int]]:
    """End the block, as a kill would, at the change of an object in a store after `count` ones.

    Yields a list with the number of changes that were left, which is negative if the block was ended.
    """
    left = [count]

    def change(original, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("write", "upload", "copy", "remove"):
            patch.setattr(objects, name, partial(change, getattr(objects, name)))
        yield left


def run_bits(folder: Path) -> dict[str, Any]:
    """Return everything about a finished run that must be equal to the bit: state, best checkpoint, logs, results."""
    save = checkpoint.latest_save(folder / run.STATE)
    state = flatten(checkpoint.read_arrays_of(save))
    card, best = checkpoint.load_checkpoint(folder / run.BEST)
    return {
        "state": {path: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for path, leaf in state.items()},
        "progress": (save / checkpoint.run_state.PROGRESS).read_bytes(),
        "best": {path: leaf.tobytes() for path, leaf in flatten(best).items()},
        "card": card,
        "metrics": (folder / run.METRICS).read_bytes(),
        "results": (folder / run.RESULTS).read_bytes(),
        "figures": {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))},
    }


def make_plan(model: str | None, data: Any, recipe: Any = None, *, auto_micro_batch: bool = False, **arguments: Any):
    """Return the plan of a run; the arguments are those of TrainRequest."""
    changes = {"micro_batch": "auto"} if auto_micro_batch else {}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    return plan.make_plan(TrainRequest(model, data, recipe, changes=changes, **arguments))


def train(model: str | None, data: Any, recipe: Any = None, **arguments: Any):
    """Train or resume a run; the arguments are those of TrainRequest and loop.fit."""
    options = {
        key: arguments.pop(key)
        for key in ("save_seconds", "save_steps", "command", "quiet", "workers")
        if key in arguments
    }
    return loop.fit(make_plan(model, data, recipe, **arguments), **options)
