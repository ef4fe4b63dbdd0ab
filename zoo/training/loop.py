"""fit(): the spine. Data -> step -> evaluate -> checkpoint -> report.

Everything a run does follows from its config, and its position is the step number. A commit holds the whole state, so
a run that is killed and started again ends with the same bits as one that was left alone.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from zoo import checkpoint
from zoo.data.dataset import Dataset
from zoo.data.images.preprocess import Preprocess
from zoo.distributed import processes
from zoo.distributed.mesh import Parallelism
from zoo.inference.predict import Prediction, predict
from zoo.training import memory, report
from zoo.training import run as runs
from zoo.training.display import Display, duration
from zoo.training.finetune import InitCheckpoint, Phase
from zoo.training.plan import Plan, plan
from zoo.training.recipe import Recipe
from zoo.training.run import Logs, Progress
from zoo.training.step import TrainState, evaluated_variables, reset_optimizer


class Fitted(NamedTuple):
    """What `fit` returns: the best variables by `recipe.monitor`, their card, the rows of metrics.jsonl, the folder."""

    model: nn.Module
    variables: dict
    card: checkpoint.Card
    history: list[dict[str, Any]]
    workdir: Path

    def predict(self, images: Any, top: int = 5) -> list[Prediction]:
        """Classify images, as `predict` of what `zoo.load` returns does."""
        return predict(self.model, self.variables, self.card, images, top)


class InterruptedRunError(Exception):
    """A signal came; the state is saved. `signum` is the signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class DivergenceError(ValueError):
    """The loss is not finite."""


def fit(
    model: str | None,
    data: str | Dataset = "digits",
    recipe: Recipe | str | None = None,
    *,
    init: InitCheckpoint | None = None,
    fields: dict[str, Any] | None = None,
    data_dir: str | None = None,
    limit: int = 0,
    parallelism: Parallelism | None = None,
    auto_micro_batch: bool = False,
    workdir: str | Path | None = None,
    save_seconds: float = 60.0,
    save_steps: int = 0,
    command: str = "",
    quiet: bool = False,
    workers: int | None = None,
) -> Fitted:
    """Train, or resume, the run that the arguments describe, and return its best checkpoint.

    With several processes all must call this; the primary one writes.

    Args:
        model: name in MODELS; None for that of `init`.
        data: what `open_dataset` takes, or a Dataset.
        recipe: a Recipe, a name in RECIPES, or None for the default.
        init: the checkpoint to start from.
        fields: fields of the model to change.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0 for all.
        parallelism: the devices and how they share the work, all by default. It changes results by rounding only, and a
            run may resume on others.
        auto_micro_batch: if memory does not suffice, use the largest micro-batch that fits; it becomes part of the run.
        workdir: folder of the run; by default one under runs/.
        save_seconds: maximum number of seconds between saves of the state.
        save_steps: also save every this many steps; 0 to not.
        command: command line to record in the run.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory; None for one per processor.

    Raises:
        ValueError: for arguments that do not go together.
        OutOfMemoryError: before the first step, if it does not fit into memory.
        DivergenceError: if the loss is not finite.
        InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
    """
    job = plan(model, data, recipe, init=init, fields=fields, data_dir=data_dir, limit=limit, parallelism=parallelism)
    require_same_in_all_processes(job)
    quiet = quiet or not processes.is_primary()
    with Display(job.total_steps, job.batch_size, job.recipe.epochs, quiet=quiet) as display, ExitStack() as lock:
        if auto_micro_batch:
            workdir = runs.folder_of(workdir, job.config)
            job = memory.with_micro_batch(job, workdir, display.say)

        def open_run() -> tuple[str, bool]:
            folder = runs.open_folder(workdir, job.config, command, [runs.MICRO_BATCH] if auto_micro_batch else [])
            report.describe(job, folder, display.say)
            lock.enter_context(runs.locked(folder))
            if auto_micro_batch:
                runs.change_micro_batch(folder, job.recipe.micro_batch)
            return str(folder), (folder / runs.RESULTS).exists()

        name, finished = processes.run_on_primary(open_run)
        folder = Path(name)
        if finished:
            display.say(f"this run is finished; for another, change the seed, another option or the folder: {folder}")
            display.say(f"   try it: zoo predict {folder / runs.BEST} IMAGE …")
        else:
            last = None if auto_micro_batch else memory.last_step_of_a_new_run(job, folder, display.say)
            train(job, folder, display, save_seconds, save_steps, workers, last)
    return read_result(job, folder)


def require_same_in_all_processes(job: Plan) -> None:
    """ValueError in all of them where one was told to train something else."""
    own = job.config.identity()
    lines = runs.differences(own, processes.run_on_primary(lambda: own))
    if any(processes.all_reduce_max(0, bool(lines))):
        said = "; ".join(lines) or "as another process says"
        raise ValueError(f"the processes do not train the same run: {said}. Give each the same command and data")


def read_result(job: Plan, folder: Path) -> Fitted:
    """What `fit` returns of a finished run."""
    rows = processes.run_on_primary(lambda: read_rows(folder))
    card, variables = checkpoint.load_checkpoint(folder / runs.BEST)
    return Fitted(job.evaluated, jax.device_put(variables), card, rows, folder)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


def train(
    job: Plan, folder: Path, display: Display, save_seconds: float, save_steps: int, workers: int | None = None,
    ahead: memory.Precompiled | None = None,
) -> None:  # fmt: skip
    """From the last commit (or step 0) to the end, then the report."""
    state, best, progress = resume(job, folder, job.first_state(), display.say)
    state = job.placed(state)
    logs = Logs(folder, progress.history) if processes.is_primary() else None
    trainer = Trainer(job, folder, display, logs, state, best, progress, ahead)
    first, began = progress.step, time.monotonic()
    try:
        with catch_signals() as caught:
            if not progress.stopped:
                trainer.run(caught, save_seconds, save_steps, workers)
        report.finish(job, folder, trainer.best, progress, display)
    finally:
        if logs is not None:
            logs.close()
            runs.note_timing(folder, first, progress.step, job.batch_size, time.monotonic() - began)


def resume(job: Plan, folder: Path, state: TrainState, say: Callable) -> tuple[TrainState, dict, Progress]:
    """State, best variables and progress of the newest commit; those given where the run is new."""
    best = jax.device_get(evaluated_variables(state))

    def like(step: int) -> dict:
        phase = job.phase(step)
        return {"state": reset_optimizer(state, job.optimizer(phase), phase.frozen), "best": best}

    def newest() -> str | None:
        found = checkpoint.latest_intact_save(folder / runs.STATE, say)
        return None if found is None else found.name

    name = processes.run_on_primary(newest)
    if name is None:
        return state, best, Progress()
    arrays, saved = checkpoint.read_state(folder / runs.STATE / name, like)
    progress = Progress(**saved)
    say(f"going on from step {progress.step:,} of {job.total_steps:,}")
    return jax.tree.map(jax.numpy.asarray, arrays["state"]), arrays["best"], progress


class Trainer:
    """The loop and what it holds between steps."""

    def __init__(
        self, job: Plan, folder: Path, display: Display, logs: Logs | None, state, best, progress: Progress,
        ahead: memory.Precompiled | None = None,
    ):  # fmt: skip
        self.job, self.folder, self.display, self.logs = job, folder, display, logs
        self.state, self.best, self.progress = state, best, progress
        self.in_flight: list[tuple[int, dict]] = []
        self.max_in_flight = 1
        self.ahead = ahead
        self.exported = -1  # the best step that best/ holds
        self.committed = time.monotonic()

    def run(self, caught: list[int], save_seconds: float, save_steps: int, workers: int | None) -> None:
        job, progress = self.job, self.progress
        phase, seen = job.phase(progress.step), job.seen(progress.step)
        step = self.compile(phase, seen)
        batches = job.batches(progress.step, workers)
        while not progress.stopped:
            began = time.monotonic()
            batch = next(batches)
            self.display.waited(time.monotonic() - began)
            self.wait_for_slot()
            self.state, metrics = step(self.state, batch)
            progress.step += 1
            self.in_flight.append((progress.step, metrics))
            if job.is_evaluation(progress.step):
                self.validate()
            before = phase, seen
            phase, seen = job.phase(progress.step), job.seen(progress.step)
            if (phase, seen) != before and not progress.stopped:
                if phase != before[0]:
                    self.state = job.placed(reset_optimizer(self.state, job.optimizer(phase), phase.frozen))
                if seen != before[1]:
                    batches.close()
                    batches = job.batches(progress.step, workers)
                progress.evals_without_improvement = 0
                step = self.compile(phase, seen)
            due = save_steps and progress.step % save_steps == 0
            waited = time.monotonic() - self.committed >= save_seconds
            signum, late = processes.all_reduce_max(progress.step, caught[0] if caught else 0, waited)
            if due or progress.stopped or signum or late:
                self.commit()
            if signum and not progress.stopped:
                name = signal.Signals(signum).name
                raise InterruptedRunError(signum, f"{name}: saved at step {progress.step:,} of {job.total_steps:,}")

    def compile(self, phase: Phase, seen: Preprocess) -> Any:
        """The step of a phase and a size of images, compiled."""
        self.flush()
        if self.ahead and (self.ahead.phase, self.ahead.seen) == (phase, seen):
            step = self.ahead.step
        else:
            step = memory.compile_that_fits(self.job, phase, seen, self.state, self.display.say)
        self.display.pause()
        self.max_in_flight = memory.max_in_flight(step)
        return step

    def wait_for_slot(self) -> None:
        """Wait until another step may be dispatched."""
        if len(self.in_flight) == self.max_in_flight:
            self.process_metrics(*self.in_flight.pop(0))
            if self.max_in_flight == 1:
                time.sleep(memory.FREED_WITHIN)

    def process_metrics(self, step: int, metrics: dict) -> None:
        """Take one step's metrics to the host, and stop where the loss is not finite."""
        metrics = jax.device_get(metrics)
        loss = float(metrics["loss"])
        for what, value in (("loss", loss), ("objective", metrics["objective"]), ("update", metrics["update"])):
            self.require_finite(what, float(value), step)
        examples = int(metrics["examples"])
        new = {"loss": loss * examples, "top1": int(metrics["top1"]), "examples": examples}
        self.progress.sums = {key: self.progress.sums.get(key, 0) + value for key, value in new.items()}
        self.display.update(step, loss)

    def require_finite(self, what: str, value: float, step: int) -> None:
        """Raise DivergenceError, saying what to try, unless the value is a number."""
        if math.isfinite(value):
            return
        kept = checkpoint.latest_save(self.folder / runs.STATE)
        raise DivergenceError(
            f"the {what} is {value} at step {step:,} with learning rate {self.job.learning_rate(step - 1):.3g}; try "
            "a lower --learning-rate, --set warmup_epochs=1 or --set clip_norm=1 "
            f"({f'the last good state is {kept}' if kept else 'nothing was saved before'})"
        )

    def flush(self) -> None:
        for item in self.in_flight:
            self.process_metrics(*item)
        self.in_flight.clear()

    def validate(self) -> None:
        """Evaluate on the validation split; keep the best, count the stale, stop early, write the row."""
        self.flush()
        job, progress = self.job, self.progress
        variables = processes.gather_to_host(evaluated_variables(self.state))
        result = report.evaluated(job, variables, "validation", self.display)
        self.display.pause()
        self.require_finite("validation loss", result["loss"], progress.step)
        score = monitor_score({**result, "last": progress.step}, job.recipe.monitor)
        better = progress.best_score is None or score > progress.best_score
        if better:
            progress.best_score, progress.best_step, progress.evals_without_improvement = score, progress.step, 0
            self.best = variables
        else:
            progress.evals_without_improvement += 1
        sums, epoch = progress.sums, progress.step / job.steps_per_epoch
        row = {
            "step": progress.step,
            "epoch": round(epoch, 4),
            "learning_rate": job.learning_rate(progress.step - 1),
            "train_loss": sums["loss"] / sums["examples"],
            "train_accuracy": sums["top1"] / sums["examples"],
            **{f"validation_{key}": result[key] for key in ("loss", "accuracy", "top5", "macro_f1", "roc_auc", "ece")},
            "best": better,
        }
        progress.sums = {}
        progress.history.append(row)
        if self.logs is not None:
            self.logs.add(row)
        shown = f"{min(epoch, job.recipe.epochs):.1f}/{job.recipe.epochs:g}"
        self.display.say(
            f"epoch {shown}  train loss {row['train_loss']:.4f} accuracy "
            f"{100 * row['train_accuracy']:.2f} %  validation loss {result['loss']:.4f} accuracy "
            f"{100 * result['accuracy']:.2f} %{'  best' if better else ''}"
            f"{self.display.speed()}"
        )
        if progress.step >= job.total_steps:
            progress.stopped = "all steps done"
        elif job.recipe.patience and progress.evals_without_improvement >= job.recipe.patience and self.in_last_part():
            progress.stopped = f"no better {job.recipe.monitor} in {progress.evals_without_improvement} evaluations"

    def in_last_part(self) -> bool:
        """Whether the last step was of the last phase and size: what is frozen, and the full size, have their turn."""
        job, last = self.job, self.progress.step - 1
        return job.phase(last) is job.phases[-1] and last >= job.stretches[-1].start

    def commit(self) -> None:
        """Save the whole state, then the best checkpoint."""
        self.flush()
        state = processes.gather_to_host(self.state) if processes.is_multiprocess() else self.state
        arrays = {"state": state, "best": self.best}
        checkpoint.save_state(self.folder / runs.STATE, self.progress.step, arrays, self.progress.to_json())
        if self.progress.history and self.exported != self.progress.best_step:
            report.save_best(self.job, self.folder, self.best, self.progress, {})
            self.exported = self.progress.best_step
        self.committed = time.monotonic()
        self.display.pause()


def monitor_score(result: dict[str, Any], monitor: str) -> list[float]:
    """What is compared, larger being better: the monitored metric, then minus the loss."""
    if monitor == "loss":
        return [-result["loss"]]
    if result[monitor] is None:
        raise ValueError(f"monitor={monitor} cannot be computed on this validation split: {'; '.join(result['notes'])}")
    return [result[monitor], -result["loss"]]


def dry_run(job: Plan, say: Callable[[str], None], *, auto_micro_batch: bool = False) -> None:
    """Say shapes, parameters, memory and time; a few steps of a throw-away state are timed, nothing is kept."""
    if auto_micro_batch:
        job = memory.with_micro_batch_that_fits(job, say)
        say(f"micro-batch: {job.recipe.micro_batch or 'none, the whole batch fits'}")
    phase, state, seen = memory.largest_step(job)
    step = memory.compile_that_fits(job, phase, seen, state, say)
    analysis = step.memory_analysis()
    if analysis is not None:
        held = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes
        own = analysis.temp_size_in_bytes
        where = " on each device" if job.parallelism.devices > 1 else ""
        say(
            f"memory of a step{where}: {held / 2**20:,.0f} MiB, of which {own / 2**20:,.0f} MiB for what passes "
            "through it"
        )
    batches = job.batches(job.total_steps - 1)
    times = []
    for _ in range(4):
        batch, began = next(batches), time.monotonic()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - began)
    each = min(times[1:])
    about = "about" if len(job.stretches) == 1 else "at most"
    whole = duration(each * job.total_steps)
    say(f"a step takes {1000 * each:,.0f} ms ({job.batch_size / each:,.0f} images/s); training {about} {whole}")
    say("dry run: nothing was trained or written")


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to, once; a second signal ends the process the usual way."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(signum: int, frame: Any) -> None:
        caught.append(signum)
        signal.signal(signum, previous[signum])

    previous = {int(signum): signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in previous:
        signal.signal(signum, note)
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
