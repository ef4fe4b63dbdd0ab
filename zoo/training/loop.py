"""The training loop: run a plan, or resume it, and return its best checkpoint.

A batch's life: `Plan.batches` draws its records from (seed, step), decodes and crops them on the host and moves them to
the devices one batch ahead; the compiled step of the segment augments, normalises, computes gradients and updates the
TrainState; its metrics are read a step or two later. After every `eval_every_epochs` the validation split is evaluated,
the best variables are kept and a row is logged; the whole state is saved at intervals. Everything follows from the
configuration and the step number, so a run that is killed and resumed ends with the same bits as an undisturbed one.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn

import jax

from zoo import checkpoint
from zoo.distributed import processes, watch
from zoo.inference.metrics import Metrics
from zoo.inference.predict import Checkpoint
from zoo.training import memory, report
from zoo.training import run as runs
from zoo.training.display import Display
from zoo.training.interruption import REPORT_SECONDS, Caught, InterruptedRunError, catch_signals
from zoo.training.plan import Plan
from zoo.training.report import PageWriter
from zoo.training.request import Say
from zoo.training.run import Logs, Progress
from zoo.training.run_store import RunStore, open_store
from zoo.training.saving import Saver, resume, write_save
from zoo.training.step import TrainState, eval_variables
from zoo.training.timeline import Segment
from zoo.training.trackers import Tracking

#: Validation metrics written into each row of metrics.jsonl.
ROW_METRICS = ("loss", "accuracy", "top5", "macro_f1", "roc_auc", "ece")


class DivergenceError(ValueError):
    """Raised when the loss, the objective or the parameter update is not finite."""


def fit(
    plan: Plan,
    *,
    save_seconds: float = 60.0,
    save_steps: int = 0,
    command: str = "",
    quiet: bool = False,
    workers: int | None = None,
    caught: Caught | None = None,
    write_page: PageWriter | None = None,
    log: Sequence[str] = (),
    rephrase: Callable[[str], str] = str,
) -> Checkpoint:
    """Run a plan, or resume it, and return its best checkpoint.

    With several processes all must call this; the primary one writes.

    Args:
        plan: the run.
        save_seconds: maximum number of seconds between saves of the state.
        save_steps: also save after every `save_steps` steps; 0: by time only.
        command: command line to record in the run.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory; None for one per processor. They affect speed only.
        caught: signals that end the run, which the caller catches; None to catch them while training.
        write_page: writes the page of the finished run; None for none. The page builds on modules above this one.
        log: names of experiment trackers that get the run as well, as `parse_trackers` returns them.
        rephrase: applied to printed lines, as in `Display`.

    Raises:
        ValueError: if the folder holds another run, or a tracker cannot be started.
        OutOfMemoryError: before the first step, if a step does not fit into memory.
        DivergenceError: if the loss is not finite.
        InterruptedRunError: after a signal in SIGNALS, once the state is saved.
    """
    quiet = quiet or not processes.is_primary()
    if caught is not None:
        caught.is_complete = False  # of an earlier run of the same program, such as another fold
    with ExitStack() as stack:
        display = stack.enter_context(
            Display(plan.total_steps, plan.batch_size, plan.recipe.epochs, quiet=quiet, rephrase=rephrase)
        )
        tracking: list[Tracking] = []  # of the primary process
        stores: list[RunStore] = []  # that of a run in an object store, in the primary process

        def push() -> None:
            for store in stores:
                store.push()

        def open_run() -> bool:
            if plan.address:
                stores.append(stack.enter_context(open_store(plan.address, plan.folder, display.say)))
            runs.open_folder(plan.folder, plan.config, command)
            report.describe(plan, display.say)
            stack.enter_context(runs.lock_folder(plan.folder))
            runs.upgrade_folder(plan.folder)
            runs.record_micro_batch(plan.folder, plan.recipe.micro_batch)
            tracking.append(stack.enter_context(Tracking(log, plan.folder, display.say, plan.config.fold is not None)))
            push()
            return runs.is_finished(plan.folder)

        is_finished = processes.run_on_primary(open_run)
        folder = "the user's cache folder (XDG_CACHE_HOME)" if plan.address else "--workdir"
        processes.require_visible(plan.folder / runs.CONFIG, f"{folder} must be on a file system that all hosts share")
        if is_finished:
            changes = "the seed, another option or --workdir"
            processes.run_on_primary(lambda: report.say_finished(plan, changes, display.say))
            processes.run_on_primary(lambda: report.draw_figures(plan, display.say))
        else:
            train(plan, display, save_seconds, save_steps, workers, caught, next(iter(tracking), None), push)
        doing = "writing the report"
        leaving = nullcontext() if caught is None else caught.nothing_unsaved(doing, REPORT_SECONDS)
        with leaving, watch.exempt(doing):
            result = read_result(plan)
            if write_page is not None:
                processes.run_on_primary(lambda: report.write_page(plan, result, write_page, display.say))
            processes.run_on_primary(push)
            for trackers in tracking:
                trackers.add(result.history)
                trackers.finish()
            if log:
                processes.run_on_primary(push)  # that the trackers have it all
            if caught is not None:
                caught.is_complete = True
    return result


def read_result(plan: Plan) -> Checkpoint:
    """Return the best checkpoint of a finished run, with its history and folder."""
    history = processes.run_on_primary(lambda: runs.read_history(plan.folder))
    card, variables = checkpoint.load_checkpoint(plan.folder / runs.BEST)
    return Checkpoint(plan.eval_model, jax.device_put(variables), card, tuple(history), plan.folder)


def train(
    plan: Plan,
    display: Display,
    save_seconds: float,
    save_steps: int,
    workers: int | None,
    caught: Caught | None,
    tracking: Tracking | None = None,
    push: Callable[[], Any] | None = None,
) -> None:
    """Train from the latest save, or from step 0, to the end and write the report."""
    precompiled = plan.precompiled or precompile_largest(plan, display.say)
    state, best, progress = resume(plan, display.say)
    state = plan.shard_state(state)
    logs = Logs(plan.folder, progress.history, tracking.add if tracking else None) if processes.is_primary() else None
    first_step, start_time = progress.step, time.monotonic()
    try:
        with catch_signals() if caught is None else nullcontext(caught) as caught, Saver(push) as saver:
            trainer = Trainer(plan, display, logs, state, best, progress, precompiled, caught, saver)
            if not progress.stopped:
                with caught.at_work():
                    trainer.run(save_seconds, save_steps, workers)
        doing = "evaluating the finished training"  # on large test splits for longer than processes may stand still
        best = trainer.best
        del trainer, state  # the devices need room for the best variables
        with caught.nothing_unsaved(doing, REPORT_SECONDS), watch.exempt(doing):
            report.finish(plan, best, progress, display, workers)
    finally:
        if logs is not None:
            logs.close()
            seconds = time.monotonic() - start_time
            with suppress(OSError):  # it would hide the error that ended the training
                runs.append_timing(plan.folder, first_step, progress.step, plan.batch_size, seconds)


def precompile_largest(plan: Plan, say: Say) -> tuple[Segment, Any] | None:
    """Compile the last segment of a new run first, to check that it fits into memory before anything is trained.

    Returns None for a run of a single segment, a run that has begun, or if the available memory is unknown.
    """
    if len(plan.segments) == 1 or memory.available_bytes(plan.parallelism) is None:
        return None
    if not processes.run_on_primary(lambda: checkpoint.latest_save(plan.folder / runs.STATE) is None):
        return None
    segment, state = plan.largest_step()
    say("Compiling the largest phase first to check that it fits in memory")
    return segment, compile_segment(plan, segment, state, say)


def compile_segment(plan: Plan, segment: Segment, state: TrainState, say: Say) -> Any:
    """Compile the step of a segment.

    Raises:
        OutOfMemoryError: with the micro-batch that fits, if the step does not fit into memory.
    """
    size = " for {}x{} pixels".format(*segment.preprocess.size) if has_several_sizes(plan) else ""
    say(f"Compiling the training step of {plan.config.model}{size} …")
    start = time.monotonic()
    step, shortage = plan.compile_within_memory(segment, state)
    say(f"Compiled in {time.monotonic() - start:.1f} s")
    if shortage is None:
        return step
    if plan.parallelism.is_pmap:
        advice = "drop --parallel pmap and use --micro-batch auto, which takes the largest that fits"
    else:
        say("Not enough memory; searching for a micro-batch that fits …")
        fitting = plan.fitting_micro_batch(shortage, say)
        advice = memory.advise(fitting.recipe.micro_batch if fitting else None)
    raise memory.OutOfMemoryError(memory.describe_shortage(shortage, plan.describe_batch(), advice))


def has_several_sizes(plan: Plan) -> bool:
    """Return True if the image size changes during training."""
    return len({segment.preprocess.size for segment in plan.segments}) > 1


class Trainer:
    """The loop and the values it holds between steps."""

    def __init__(
        self,
        plan: Plan,
        display: Display,
        logs: Logs | None,
        state: TrainState,
        best: dict,
        progress: Progress,
        precompiled: tuple[Segment, Any] | None = None,
        caught: Caught | None = None,
        saver: Saver | None = None,
    ):
        self.plan, self.display, self.logs = plan, display, logs
        self.state, self.best, self.progress = state, best, progress
        self.precompiled = precompiled
        self.caught = Caught() if caught is None else caught
        self.saver = Saver() if saver is None else saver
        self.in_flight: list[tuple[int, dict]] = []  # (step, metrics on the device), oldest first
        self.max_in_flight = 1
        self.step_bytes = 0  # per device, of the largest step known
        self.workers: int | None = None  # threads that read data
        self.exported_step = -1  # the best step that best/ holds
        self.save_time = time.monotonic()
        self.compare_flags = processes.PeriodicMax()
        self.compare_evaluations = processes.PeriodicMax()
        self.evaluation_batches = 0
        self.evaluation_compiled = False

    def run(self, save_seconds: float, save_steps: int, workers: int | None) -> None:
        """Train until the plan ends, patience runs out or a signal arrives."""
        plan, progress, self.workers = self.plan, self.progress, workers
        segment = plan.segment(progress.step - 1 if progress.evaluation_due else progress.step)
        if progress.evaluation_due:
            self.validate()
            segment = self.next_segment(segment)
            self.save_if_due(save_seconds, save_steps)
        if progress.stopped:
            return
        self.saver.reserve(self.state)
        step = self.compile(segment)
        batches = plan.batches(progress.step, workers, self.step_bytes)
        while not progress.stopped:
            start = time.monotonic()
            batch = next(batches)
            self.display.add_data_wait(time.monotonic() - start)
            self.wait_for_slot()
            self.state, metrics = step(self.state, batch)
            progress.step += 1
            watch.advance(f"step {progress.step:,}")
            self.in_flight.append((progress.step, metrics))
            if plan.is_eval_step(progress.step):
                self.validate()
            previous, segment = segment, self.next_segment(segment)
            if segment != previous:
                batches.close()  # what they keep on the devices may be in the way of a larger step
                if self.caught.leave:  # compiling cannot be interrupted by a save
                    self.save()
                    self.finish_save()
                step = self.compile(segment)
                batches = plan.batches(progress.step, workers, self.step_bytes)
            self.save_if_due(save_seconds, save_steps)

    def next_segment(self, segment: Segment) -> Segment:
        """Return the segment of the next step; the optimiser starts anew with some."""
        plan, progress = self.plan, self.progress
        if progress.step != segment.stop or progress.stopped:
            return segment
        segment = plan.segment(progress.step)
        if segment.fresh_optimizer:
            self.state = plan.shard_state(plan.reset_optimizer(self.state, segment))
        progress.evals_without_improvement = 0
        return segment

    def save_if_due(self, save_seconds: float, save_steps: int) -> None:
        """Save at intervals, at the end and after a signal, which then raises InterruptedRunError."""
        progress = self.progress
        due = save_steps and progress.step % save_steps == 0
        # The next save waits for the one before, so that training need not. Only the primary process is asked: it
        # writes the best checkpoint too, and so takes longest.
        idle = processes.is_primary() and not self.saver.is_busy()
        overdue = idle and time.monotonic() - self.save_time >= save_seconds
        own = self.caught[0] if self.caught else 0
        signum, overdue_anywhere = self.compare_flags(progress.step, own, overdue)
        if not signum and processes.reached_preemption(progress.step):
            signum = signal.SIGTERM
        self.saver.check()
        if due or progress.stopped or signum or overdue_anywhere:
            self.save()
        if progress.stopped or signum:
            self.finish_save()
        if signum and not progress.stopped:
            self.end_interrupted(signum)

    def end_interrupted(self, signum: int) -> NoReturn:
        """Raise InterruptedRunError, once all processes have saved."""
        if self.plan.address:
            self.caught.is_saving = True  # leaving the store takes its time
        processes.wait_for_others("interrupted")
        message = f"saved at step {self.progress.step:,} of {self.plan.total_steps:,} ({signal.Signals(signum).name})"
        self.caught.is_complete = True  # the process ends by this exception, however long that takes
        raise InterruptedRunError(signum, message)

    def compile(self, segment: Segment) -> Any:
        """Return the compiled step of a segment. Nothing is unsaved."""
        self.flush()
        if self.precompiled and self.precompiled[0] == segment:
            step = self.precompiled[1]
        else:
            with self.caught.nothing_unsaved("compiling"), watch.exempt("compiling"):
                step = compile_segment(self.plan, segment, self.state, self.display.say)
        self.display.pause()
        self.max_in_flight = memory.max_in_flight(step)
        largest = self.precompiled[1] if self.precompiled else step
        self.step_bytes = max(memory.required_bytes(each) or 0 for each in (step, largest))
        return step

    def wait_for_slot(self) -> None:
        """Wait until another step may be dispatched."""
        if len(self.in_flight) == self.max_in_flight:
            self.process_metrics(*self.in_flight.pop(0))
            if self.max_in_flight == 1:
                time.sleep(memory.FREE_DELAY)

    def flush(self) -> None:
        """Wait for all dispatched steps."""
        for step, metrics in self.in_flight:
            self.process_metrics(step, metrics)
        self.in_flight.clear()

    def process_metrics(self, step: int, metrics: dict) -> None:
        """Read the metrics of a step, add them up and check that they are finite."""
        metrics = jax.device_get(metrics)
        loss = float(metrics["loss"])
        for name in ("loss", "objective", "update"):
            self.require_finite(name, float(metrics[name]), step)
        examples = int(metrics["examples"])
        new = {"loss": loss * examples, "top1": int(metrics["top1"]), "examples": examples}
        self.progress.sums = {key: self.progress.sums.get(key, 0) + value for key, value in new.items()}
        self.display.update(step, loss)

    def require_finite(self, name: str, value: float, step: int) -> None:
        """Raise DivergenceError, with advice, unless the value is finite."""
        if math.isfinite(value):
            return
        self.saver.wait()
        save = checkpoint.latest_save(self.plan.folder / runs.STATE)
        raise DivergenceError(
            f"the {name} is {value} at step {step:,} with learning rate {self.plan.learning_rate(step - 1):.3g}; try "
            "a lower --learning-rate, --set warmup_epochs=1 or --set clip_norm=1 "
            f"({f'last save: {save}' if save else 'nothing was saved before'})"
        )

    def validate(self) -> None:
        """Evaluate the validation split, keep the best variables, log a row and stop when training is over."""
        self.flush()
        plan, progress = self.plan, self.progress
        progress.evaluation_due = True
        variables = eval_variables(self.state)
        metrics = self.evaluate(variables)
        self.display.pause()
        self.require_finite("validation loss", metrics.loss, progress.step)
        score = monitor_score(metrics, plan.recipe.monitor, progress.step)
        is_best = progress.best_score is None or score > progress.best_score
        if is_best:
            progress.best_score, progress.best_step, progress.evals_without_improvement = score, progress.step, 0
            self.best = checkpoint.snapshot(variables)
        else:
            progress.evals_without_improvement += 1
        self.log(metrics, is_best)
        progress.evaluation_due = False
        if progress.step >= plan.total_steps:
            progress.stopped = "all steps done"
        elif self.is_out_of_patience():
            evals = progress.evals_without_improvement
            progress.stopped = f"no improvement of {plan.recipe.monitor} in {evals} evaluations"

    def evaluate(self, variables: dict) -> Metrics:
        """Evaluate the validation split. After a signal, save that this is still to be done and stop."""
        with ExitStack() as stack:
            if self.caught.leave and not self.evaluation_compiled:  # compiling cannot be interrupted by a save
                self.save()
                self.finish_save()
                stack.enter_context(self.caught.nothing_unsaved("compiling the evaluation"))
                stack.enter_context(watch.exempt("compiling the evaluation"))

            def check(done: int) -> None:
                stack.close()
                self.evaluation_compiled = True
                self.evaluation_batches += 1
                watch.advance(f"validation after step {self.progress.step:,}")
                own = self.caught[0] if self.caught else 0
                (signum,) = self.compare_evaluations(self.evaluation_batches, own)
                if signum:
                    self.save()
                    self.finish_save()
                    self.end_interrupted(signum)

            return report.evaluate_split(
                self.plan, variables, "validation", self.display, check=check, workers=self.workers
            )

    def log(self, metrics: Metrics, is_best: bool) -> None:
        """Write a row of metrics.jsonl and print it."""
        plan, progress = self.plan, self.progress
        sums, epoch = progress.sums, progress.step / plan.steps_per_epoch
        row = {
            "step": progress.step,
            "epoch": round(epoch, 4),
            "learning_rate": plan.learning_rate(progress.step - 1),
            "train_loss": sums["loss"] / sums["examples"],
            "train_accuracy": sums["top1"] / sums["examples"],
            **{f"validation_{name}": getattr(metrics, name) for name in ROW_METRICS},
            "best": is_best,
        }
        progress.sums = {}
        progress.history.append(row)
        if self.logs is not None:
            self.logs.add(row)
        self.display.say(
            f"epoch {min(epoch, plan.recipe.epochs):.1f}/{plan.recipe.epochs:g}  "
            f"train loss {row['train_loss']:.4f} accuracy {100 * row['train_accuracy']:.2f} %  "
            f"validation loss {metrics.loss:.4f} accuracy {100 * metrics.accuracy:.2f} %"
            f"{'  best' if is_best else ''}{self.display.speed()}"
        )

    def is_out_of_patience(self) -> bool:
        """Return True if training should stop early. Only the last segment counts: frozen parts and the full image size
        must have been trained."""
        patience = self.plan.recipe.patience
        in_last_segment = self.progress.step - 1 >= self.plan.segments[-1].start
        return bool(patience) and self.progress.evals_without_improvement >= patience and in_last_segment

    def save(self) -> None:
        """Begin to save the whole state, and the best checkpoint if it changed, once the save before is done."""
        with self.caught.saving(), watch.exempt("saving"):
            self.flush()
            self.saver.wait()
            progress = self.progress.copy()
            is_new_best = bool(progress.history) and self.exported_step != progress.best_step
            state = checkpoint.snapshot(self.state, owned_only=True, buffers=self.saver.buffers)
            arrays = {"state": state, "best": self.best}
            self.saver.start(partial(write_save, self.plan, arrays, progress, is_new_best))
            self.exported_step = progress.best_step if is_new_best else self.exported_step
            self.save_time = time.monotonic()
            self.display.pause()

    def finish_save(self) -> None:
        """Wait until the state is saved."""
        with self.caught.saving(), watch.exempt("saving"):
            self.saver.wait()
            self.display.pause()


def monitor_score(metrics: Metrics, monitor: str, step: int) -> list[float]:
    """Return what is compared to find the best checkpoint, larger being better: the monitored metric, then -loss.

    Raises:
        ValueError: if the metric cannot be computed on this validation split.
    """
    if monitor == "loss":
        return [-metrics.loss]
    value = step if monitor == "last" else getattr(metrics, monitor)
    if value is None:
        raise ValueError(f"monitor={monitor} cannot be computed on this validation split: {'; '.join(metrics.notes)}")
    return [value, -metrics.loss]
