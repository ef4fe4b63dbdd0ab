"""fit(): the spine. Data -> step -> evaluate -> checkpoint -> report.

Everything a run does follows from its config, and its position is the step number. A commit holds the whole state, so
a run that is killed and started again ends with the same bits as one that was left alone.
"""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from zoo import checkpoint, models
from zoo.data.crop import device_augment
from zoo.data.loader import on_device, train_batches
from zoo.data.polarity import match_polarity
from zoo.data.preprocess import Preprocess, preprocess_for
from zoo.data.sources import Dataset, open_dataset, subset
from zoo.prediction import Prediction, predict
from zoo.training import finetune, report, sizes
from zoo.training import run as runs
from zoo.training.display import Display, duration
from zoo.training.evaluation import evaluate
from zoo.training.finetune import Phase, Start
from zoo.training.optim import make_optimizer
from zoo.training.parallel import compiled
from zoo.training.recipes import Recipe
from zoo.training.run import Config, Logs, Progress
from zoo.training.sizes import Stretch
from zoo.training.step import TrainState, create_state, evaluated_variables, make_train_step, restarted

_DTYPES = {"float32": jax.numpy.float32, "bfloat16": jax.numpy.bfloat16}


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


class Interrupted(Exception):
    """A signal came; the state is saved. `signum` is the signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class Diverged(ValueError):
    """The loss is not finite."""


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before the first step."""

    config: Config
    model: nn.Module
    dataset: Dataset
    preprocess: Preprocess
    """Of evaluation and of the card; `seen` has that of training."""
    batch_size: int
    steps_per_epoch: float
    total_steps: int
    phases: tuple[Phase, ...]
    stretches: tuple[Stretch, ...]
    abstract: dict
    """The variables' shapes and dtypes."""
    start: Start | None
    """The checkpoint that training starts from."""

    @property
    def evaluated(self) -> nn.Module:
        """The model as a checkpoint of it will be run: in float32, whatever it is trained in."""
        return models.with_runtime(self.model, dtype=jax.numpy.float32)

    @property
    def recipe(self) -> Recipe:
        return self.config.recipe

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (*self.preprocess.size, self.preprocess.num_channels)

    def batches(self, step: int = 0, workers: int | None = None) -> Generator[Any]:
        """What training sees from `step` on, on the device, in the size of that step. The host cuts the crops where
        `device_augment` says so."""
        split = self.dataset.splits["train"]
        recipe = self.recipe
        return on_device(
            train_batches(
                split, self.seen(step), batch_size=self.batch_size, seed=recipe.seed, start_step=step,
                augment=recipe.augment, workers=workers,
            )
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        return models.count_parameters(self.abstract)

    def phase(self, step: int) -> Phase:
        """The phase of the step that follows after `step` steps; after the last one, its own."""
        return next(phase for phase in self.phases if step < phase.stop or phase is self.phases[-1])

    def seen(self, step: int) -> Preprocess:
        """What training sees of an image in the step that follows after `step` steps."""
        return next(s.preprocess for s in self.stretches if step < s.stop or s is self.stretches[-1])

    def optimizer(self, phase: Phase) -> optax.GradientTransformation:
        return self._optimizer(phase)[0]

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, …, before what single parts have it multiplied with."""
        phase = self.phase(step)
        return float(self._optimizer(phase)[1](step - phase.start))

    def _optimizer(self, phase: Phase) -> tuple[optax.GradientTransformation, optax.Schedule]:
        rates = finetune.rates(self.recipe, self.model, self.abstract["params"])
        return make_optimizer(self.recipe, phase.stop - phase.start, self.steps_per_epoch, rates)

    def first_state(self) -> TrainState:
        """Before step 0."""
        first, start = self.phases[0], None
        if self.start is not None:
            start = partial(self.start.variables_for, self.model, self.preprocess, self.dataset.class_names)
        optimizer = self.optimizer(first)
        return create_state(self.model, optimizer, self.recipe, self.image_shape, start=start, frozen=first.frozen)

    def is_evaluation(self, step: int) -> bool:
        """Whether validation follows after `step` steps: every eval_every_epochs, and at the end."""
        every = self.steps_per_epoch * self.recipe.eval_every_epochs
        return step == self.total_steps or math.floor(step / every) > math.floor((step - 1) / every)


def plan(
    model: str | None, data: str | Dataset, recipe: Recipe | str | None = None, *, init: Start | None = None,
    fields: dict[str, Any] | None = None, data_dir: str | None = None, limit: int = 0,
) -> Plan:  # fmt: skip
    """Open the data and settle model, preprocess, phases. ValueError for what does not fit together.

    With `init`, model, fields and preprocess are its card's where nothing else is said.
    """
    model, fields = finetune.model_and_fields(init, model, fields or {})
    models.create(model, **fields)  # names are checked before data is read
    dataset = open_dataset(data, data_dir) if isinstance(data, (str, Path)) else data
    if "train" not in dataset.splits or "validation" not in dataset.splits:
        raise ValueError(f"{dataset.name}: has no training split; it can be evaluated, not trained on")
    if limit:
        dataset = limited(dataset, limit)
    if not isinstance(recipe, Recipe):
        recipe = finetune.recipe_for(recipe, init, model, dataset.name)

    fields.setdefault("num_classes", dataset.num_classes)
    if fields["num_classes"] != dataset.num_classes:
        raise ValueError(f"num_classes={fields['num_classes']}, but {dataset.name} has {dataset.num_classes} classes")
    network = models.create(model, **fields)
    if recipe.last_size and "image_size" in models.defining_fields(network):
        network = models.create(model, **{**fields, "image_size": recipe.last_size})
    fingerprint = dataset.fingerprint()
    if init:
        seen = init.preprocess(recipe.last_size, recipe.channels)
        dataset = match_polarity(dataset, seen.polarity)
    else:
        size = (recipe.last_size, recipe.last_size) if recipe.last_size else network.input_shape[:2]
        seen = preprocess_for(dataset, size, recipe.channels or getattr(network, "channels", None))
    network = models.with_runtime(network, dtype=_DTYPES[recipe.precision])
    # Tracing the model here finds what its fields or the image size make impossible before anything is written.
    abstract = models.abstract_variables(network, (*seen.size, seen.num_channels))
    sizes.check(network, recipe, seen)
    preprocess = sizes.tested(recipe, seen)
    if init:
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        init.variables_for(network, preprocess, dataset.class_names, blank)  # what does not fit is listed now

    count = len(dataset.splits["train"])
    batch_size = recipe.batch_size or count
    steps_per_epoch = max(count / batch_size, recipe.min_epoch_steps)
    total_steps = max(math.ceil(recipe.epochs * steps_per_epoch), 1)
    new_head = init is not None and init.has_new_rows(dataset.class_names)
    phases = finetune.phases(recipe, network, abstract, total_steps, steps_per_epoch, new_head)
    config = Config(
        model, models.defining_fields(network), dataset.name, recipe, limit, fingerprint, data_dir,
        *((init.spec, init.digest()) if init else ()),
    )  # fmt: skip
    return Plan(
        config, network, dataset, preprocess, batch_size, steps_per_epoch, total_steps, phases,
        sizes.stretches(recipe, seen, total_steps, steps_per_epoch), abstract, init,
    )  # fmt: skip


def limited(dataset: Dataset, limit: int) -> Dataset:
    """At most `limit` records of each split, taken at even distances."""

    def cut(split):
        if len(split) <= limit:
            return split
        mask = np.zeros(len(split), bool)
        mask[np.linspace(0, len(split) - 1, limit).round().astype(int)] = True
        return subset(split, mask)

    splits = {name: cut(split) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)


def class_weights(plan: Plan) -> tuple[float, ...] | None:
    """N / (K * count) for each class of the training split, where the recipe asks for it."""
    if plan.recipe.class_weights == "none":
        return None
    counts = np.bincount(plan.dataset.splits["train"].labels, minlength=plan.dataset.num_classes)
    return tuple(float(w) for w in counts.sum() / (len(counts) * np.maximum(counts, 1)))


def compile_step(plan: Plan, phase: Phase, seen: Preprocess, state: TrainState) -> Any:
    """The training step of a phase and a size of images, compiled ahead of time for this plan's shapes."""
    augment = device_augment(plan.dataset.splits["train"], seen, plan.recipe.augment)
    recipe = dataclasses.replace(plan.recipe, augment=augment)
    step = make_train_step(
        plan.model, recipe, seen, plan.optimizer(phase), class_weights=class_weights(plan),
        frozen=phase.frozen, unroll=jax.default_backend() == "cpu",
    )  # fmt: skip
    batch = {
        "image": jax.ShapeDtypeStruct((plan.batch_size, *seen.size, seen.num_channels), np.uint8),
        "label": jax.ShapeDtypeStruct((plan.batch_size,), np.int32),
        "weight": jax.ShapeDtypeStruct((plan.batch_size,), np.float32),
    }
    return compiled(step, donate=(0,)).lower(state, batch).compile()


def fit(
    model: str | None,
    data: str | Dataset = "digits",
    recipe: Recipe | str | None = None,
    *,
    init: Start | None = None,
    fields: dict[str, Any] | None = None,
    data_dir: str | None = None,
    limit: int = 0,
    workdir: str | Path | None = None,
    save_seconds: float = 60.0,
    save_steps: int = 0,
    command: str = "",
    quiet: bool = False,
    workers: int | None = None,
) -> Fitted:
    """Train, or go on with, the run that the arguments describe, and return its best checkpoint.

    model: a name of MODELS, `fields` changes its fields; None for that of `init`, the checkpoint to start from. data:
    what `open_dataset` takes, or a Dataset. recipe: a Recipe, a name of RECIPES, or None for the one that suits. The
    state is committed at least every `save_seconds`, and every `save_steps` steps if that is not 0. `workers` threads
    read data that is not kept in memory; None: one per processor. Raises ValueError for what does not fit together,
    Diverged for a loss that is not finite, Interrupted after SIGINT or SIGTERM.
    """
    job = plan(model, data, recipe, init=init, fields=fields, data_dir=data_dir, limit=limit)
    folder = runs.open_folder(workdir, job.config, command)
    with Display(job.total_steps, job.batch_size, job.recipe.epochs, quiet=quiet) as display:
        report.describe(job, folder, display.say)
        with runs.locked(folder):
            if (folder / runs.RESULTS).exists():
                display.say(
                    f"this run is finished; for another, change the seed, another option or the folder: {folder}"
                )
                display.say(f"   try it: zoo predict {folder / runs.BEST} IMAGE …")
            else:
                train(job, folder, display, save_seconds, save_steps, workers)
    card, variables = checkpoint.load_checkpoint(folder / runs.BEST)
    rows = read_rows(folder)
    return Fitted(job.evaluated, jax.device_put(variables), card, rows, folder)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


def train(
    job: Plan, folder: Path, display: Display, save_seconds: float, save_steps: int, workers: int | None = None
) -> None:
    """From the last commit (or step 0) to the end, then the report."""
    state, best, progress = resume(job, folder, job.first_state(), display.say)
    logs = Logs(folder, progress.history)
    trainer = Trainer(job, folder, display, logs, state, best, progress)
    first, began = progress.step, time.monotonic()
    try:
        with catch_signals() as caught:
            if not progress.stopped:
                trainer.run(caught, save_seconds, save_steps, workers)
        report.finish(job, folder, trainer.best, progress, display)
    finally:
        logs.close()
        runs.note_timing(folder, first, progress.step, job.batch_size, time.monotonic() - began)


def resume(job: Plan, folder: Path, state: TrainState, say: Callable) -> tuple[TrainState, dict, Progress]:
    """State, best variables and progress of the newest commit; those given where the run is new."""
    best = jax.device_get(evaluated_variables(state))

    def like(step: int) -> dict:
        phase = job.phase(step)
        return {"state": restarted(state, job.optimizer(phase), phase.frozen), "best": best}

    found = checkpoint.restore_state(folder / runs.CHECKPOINTS, like, say)
    if found is None:
        return state, best, Progress()
    arrays, saved = found
    progress = Progress(**saved)
    say(f"going on from step {progress.step:,} of {job.total_steps:,}")
    return jax.tree.map(jax.numpy.asarray, arrays["state"]), arrays["best"], progress


class Trainer:
    """The loop and what it holds between steps."""

    def __init__(self, job: Plan, folder: Path, display: Display, logs: Logs, state, best, progress: Progress):
        self.job, self.folder, self.display, self.logs = job, folder, display, logs
        self.state, self.best, self.progress = state, best, progress
        self.pending: list[tuple[int, dict]] = []
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
            self.state, metrics = step(self.state, batch)
            progress.step += 1
            self.pending.append((progress.step, metrics))
            if len(self.pending) > 2:  # the host stays two steps ahead of the device, no more
                self.settle(*self.pending.pop(0))
            if job.is_evaluation(progress.step):
                self.validate()
            before = phase, seen
            phase, seen = job.phase(progress.step), job.seen(progress.step)
            if (phase, seen) != before and not progress.stopped:
                if phase != before[0]:
                    self.state = restarted(self.state, job.optimizer(phase), phase.frozen)
                if seen != before[1]:
                    batches.close()
                    batches = job.batches(progress.step, workers)
                progress.stale = 0
                step = self.compile(phase, seen)
            due = save_steps and progress.step % save_steps == 0
            if due or progress.stopped or caught or time.monotonic() - self.committed >= save_seconds:
                self.commit()
            if caught and not progress.stopped:
                name = signal.Signals(caught[0]).name
                raise Interrupted(caught[0], f"{name}: saved at step {progress.step:,} of {job.total_steps:,}")

    def compile(self, phase: Phase, seen: Preprocess) -> Any:
        """The step of a phase and a size of images, compiled."""
        self.drain()
        size = " for {}x{} pixels".format(*seen.size) if len(self.job.stretches) > 1 else ""
        self.display.say(f"compiling the training step of {self.job.config.model}{size} …")
        began = time.monotonic()
        step = compile_step(self.job, phase, seen, self.state)
        self.display.say(f"compiled in {time.monotonic() - began:.1f} s")
        self.display.pause()
        return step

    def settle(self, step: int, metrics: dict) -> None:
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
        """Raise Diverged, saying what to try, unless the value is a number."""
        if math.isfinite(value):
            return
        kept = checkpoint.newest_commit(self.folder / runs.CHECKPOINTS)
        raise Diverged(
            f"the {what} is {value} at step {step:,} with learning rate {self.job.learning_rate(step - 1):.3g}; try "
            "a lower --learning-rate, --set warmup_epochs=1 or --set clip_norm=1 "
            f"({f'the last good state is {kept}' if kept else 'nothing was saved before'})"
        )

    def drain(self) -> None:
        for item in self.pending:
            self.settle(*item)
        self.pending.clear()

    def validate(self) -> None:
        """Evaluate on the validation split; keep the best, count the stale, stop early, write the row."""
        self.drain()
        job, progress = self.job, self.progress
        variables = evaluated_variables(self.state)
        split = job.dataset.splits["validation"]
        show = self.display.evaluating("validation", len(split))
        result = evaluate(job.evaluated, variables, split, job.preprocess, job.dataset.class_names, on_batch=show)
        self.display.pause()
        self.require_finite("validation loss", result["loss"], progress.step)
        score = monitor_score({**result, "last": progress.step}, job.recipe.monitor)
        better = progress.best_score is None or score > progress.best_score
        if better:
            progress.best_score, progress.best_step, progress.stale = score, progress.step, 0
            self.best = jax.device_get(variables)
        else:
            progress.stale += 1
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
        self.logs.add(row)
        self.display.say(
            f"epoch {epoch:.1f}/{job.recipe.epochs:g}  train loss {row['train_loss']:.4f} accuracy "
            f"{100 * row['train_accuracy']:.2f} %  validation loss {result['loss']:.4f} accuracy "
            f"{100 * result['accuracy']:.2f} %{'  best' if better else ''}"
            f"{self.display.speed()}"
        )
        if progress.step >= job.total_steps:
            progress.stopped = "all steps done"
        elif job.recipe.patience and progress.stale >= job.recipe.patience and self.in_last_part():
            progress.stopped = f"no better {job.recipe.monitor} in {progress.stale} evaluations"

    def in_last_part(self) -> bool:
        """Whether the last step was of the last phase and size: what is frozen, and the full size, have their turn."""
        job, last = self.job, self.progress.step - 1
        return job.phase(last) is job.phases[-1] and last >= job.stretches[-1].start

    def commit(self) -> None:
        """Save the whole state, then the best checkpoint."""
        self.drain()
        arrays = {"state": self.state, "best": self.best}
        checkpoint.save_state(self.folder / runs.CHECKPOINTS, self.progress.step, arrays, self.progress.to_json())
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


def dry_run(job: Plan) -> Iterator[str]:
    """Lines on shapes, parameters, memory and time; a few steps of a throw-away state are timed, nothing is kept."""
    phase, seen = job.phases[-1], job.seen(job.total_steps)  # the dearest, where parts are frozen or small at first
    state = restarted(job.first_state(), job.optimizer(phase), phase.frozen)
    began = time.monotonic()
    step = compile_step(job, phase, seen, state)
    yield f"compiled in {time.monotonic() - began:.1f} s"
    memory = step.memory_analysis()
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        own = memory.temp_size_in_bytes
        yield f"memory of a step: {held / 2**20:,.0f} MiB, of which {own / 2**20:,.0f} MiB for what passes through it"
    batches = job.batches(job.total_steps - 1)
    times = []
    for _ in range(4):
        batch, began = next(batches), time.monotonic()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - began)
    each = min(times[1:])
    about = "about" if len(job.stretches) == 1 else "at most"
    yield f"a step takes {1000 * each:,.0f} ms ({job.batch_size / each:,.0f} images/s); training {about} " + duration(
        each * job.total_steps
    )
    yield "dry run: nothing was trained or written"


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
