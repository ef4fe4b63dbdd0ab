"""Helpers that several test files share."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo import checkpoint, cli
from zoo.checkpoint import format as checkpoint_format
from zoo.checkpoint.manifest import ARRAYS
from zoo.training import run
from zoo.trees import flatten


def relative_error(actual: Any, expected: Any) -> float:
    """Return the largest absolute difference as a fraction of the largest expected magnitude."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def run_command(capsys, *words: Any) -> tuple[int, str, str]:
    """Run a command line in this process and return (exit code, stdout, stderr)."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def run_bits(folder: Path) -> dict[str, Any]:
    """Return everything about a finished run that must be equal to the bit: state, best checkpoint, logs, results."""
    save = checkpoint.latest_save(folder / run.STATE)
    state = flatten(checkpoint_format.read_arrays(save / ARRAYS))
    card, best = checkpoint.load_checkpoint(folder / run.BEST)
    return {
        "state": {path: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for path, leaf in state.items()},
        "progress": (save / checkpoint.run_state.PROGRESS).read_bytes(),
        "best": {path: leaf.tobytes() for path, leaf in flatten(best).items()},
        "preprocess": card.preprocess,
        "metrics": (folder / run.METRICS).read_bytes(),
        "results": (folder / run.RESULTS).read_bytes(),
    }
