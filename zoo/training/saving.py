"""Saving the state of a run in a thread, so that training does not wait for the disk; and reading it again.

The loop copies the state from the devices to the host, which takes a fraction of a save, and goes on. The thread writes
and hashes the copy. There is one save at a time: the next one, a signal and the end wait for it.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import checkpoint
from zoo.checkpoint import Buffers, HostArray
from zoo.distributed import processes
from zoo.training import report
from zoo.training import run as runs
from zoo.training.plan import Plan
from zoo.training.request import Say
from zoo.training.run import Progress
from zoo.training.step import TrainState, eval_variables
from zoo.trees import flatten, unflatten


class Saver:
    """A thread that does one piece of work at a time. As a context it waits for the last one.

    An error of the thread is raised by the next call of `check`, `start` or `wait`.

    Args:
        after: called in the thread after each piece of work.
    """

    def __init__(self, after: Callable[[], Any] | None = None) -> None:
        self.after = after
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        #: Memory of the copy of the state, which all saves use in turn.
        self.buffers: Buffers = {}

    def reserve(self, state: TrainState) -> None:
        """Begin to make room for the copy of a state, so that the first save does not have to wait for it."""
        self.wait()
        self.buffers = checkpoint.reserve(state)
        self.thread = threading.Thread(target=_touch, args=(list(self.buffers.values()),), name="saving", daemon=True)
        self.thread.start()

    def start(self, work: Callable[[], Any]) -> None:
        """Wait for the work that is under way, then begin another one."""
        self.wait()
        self.thread = threading.Thread(target=self._run, args=(work,), name="saving", daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            work()
            if self.after is not None:
                self.after()
        except BaseException as error:  # raised in the thread that trains
            self.error = error

    def is_busy(self) -> bool:
        """Return True while work is under way."""
        return self.thread is not None and self.thread.is_alive()

    def check(self) -> None:
        """Raise the error of work that has failed; return at once if it is still under way."""
        if not self.is_busy():
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done, and raise its error."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.wait()
        elif self.thread is not None:  # the first error is the one that counts
            self.thread.join()


def _touch(arrays: list[np.ndarray]) -> None:
    """Write to new memory, which the system provides only then."""
    for array in arrays:
        np.copyto(array, 0)


def write_save(plan: Plan, arrays: dict[str, Any], progress: Progress, is_new_best: bool) -> None:
    """Write a save of a run and, if there is a new one, its best checkpoint.

    Args:
        plan: the run.
        arrays: {"state": …, "best": …} on the host, as `snapshot` returns them.
        progress: the progress at that step, which nobody changes any more.
        is_new_best: write the best checkpoint too.
    """
    save = checkpoint.save_state(
        plan.folder / runs.STATE, progress.step, arrays, progress.to_json(), exchange=processes.exchange
    )
    if is_new_best and processes.is_primary():
        report.save_best(plan, whole_variables(arrays["best"], save), progress, {})


def whole_variables(best: dict, save: Path) -> dict:
    """Return variables as whole NumPy arrays; parts that other processes hold are read from the save."""
    flat, read = flatten(best), None
    for path, leaf in flat.items():
        if isinstance(leaf, HostArray):
            whole = leaf.whole()
            if whole is None:
                read = read or flatten(checkpoint.read_arrays_of(save, "best"))
                whole = read[path]
            flat[path] = whole
    return {"params": {}, "batch_stats": {}, **unflatten(flat)}


def resume(plan: Plan, say: Say) -> tuple[TrainState, dict, Progress]:
    """Return (state, best variables, progress) of the latest intact save, or those of a new run.

    The best variables are on the host, as `snapshot` returns them.
    """

    def latest() -> str | None:
        save = checkpoint.latest_intact_save(plan.folder / runs.STATE, say)
        return None if save is None else save.name

    name = processes.run_on_primary(latest)
    if name is None:
        state = plan.first_state()
        return state, checkpoint.snapshot(eval_variables(state)), Progress()
    save = plan.folder / runs.STATE / name

    def like(step: int) -> dict:
        due = checkpoint.read_progress(save).get("evaluation_due")
        state = plan.abstract_state(plan.segment(step - 1 if due else step))
        return {"state": state, "best": eval_variables(state)}

    arrays, saved = checkpoint.read_state(save, like)
    progress = Progress.from_json(saved, str(save))
    say(f"Resuming at step {progress.step:,} of {plan.total_steps:,}")
    return jax.tree.map(jax.numpy.asarray, arrays["state"]), checkpoint.snapshot(arrays["best"]), progress
