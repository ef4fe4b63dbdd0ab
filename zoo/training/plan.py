"""From a request to a plan: everything about a training run that is decided before its first step.

The command line and `zoo.fit` build the same TrainRequest. `make_plan` resolves model, recipe, data, preprocessing, who
crops, timeline and micro-batch, each exactly once, with `request.py` for what the request alone decides; `loop.fit`
runs the Plan.
"""

import dataclasses
import math
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from zoo import models
from zoo.addresses import join_address
from zoo.data.augment.host_crop import place_augmentation
from zoo.data.content_sketch import ContentSketch, sketch_of
from zoo.data.dataset import Dataset
from zoo.data.folds import take_fold
from zoo.data.images.measure import adapt_preprocess, preprocess_for, with_normalisation
from zoo.data.images.polarity import note_polarity
from zoo.data.images.preprocess import POINT_SHAPE, Preprocess
from zoo.data.sources.points import holds_points
from zoo.distributed import compile, mesh, pmap, processes
from zoo.distributed.mesh import Parallelism
from zoo.inference.evaluate import BATCH_SIZE, require_memory
from zoo.training import batches, finetune, memory, progressive, run_store
from zoo.training import run as runs
from zoo.training.finetune import InitCheckpoint
from zoo.training.optim import make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.recipes import RULES
from zoo.training.request import (
    Say,
    TrainRequest,
    apply_rule,
    needs_default_model,
    open_data,
    record_limit,
    requested_fold,
    resolve_settings,
    with_default_model,
)
from zoo.training.run import RunConfig
from zoo.training.step import (
    TrainState,
    abstract_state,
    create_state,
    make_train_step,
    reset_optimizer,
)
from zoo.training.timeline import Segment, build_timeline, optimizer_span, segment_at

#: Pixels of an image from which memory is estimated before its preprocessing is measured.
LARGE_IMAGE = 2**20
#: Largest number of steps: the state counts them in an int32.
MAX_STEPS = 2**31 - 1

_DTYPES = {"float32": jax.numpy.float32, "bfloat16": jax.numpy.bfloat16}


@dataclass(frozen=True, eq=False)
class Plan:
    """A fully resolved training run.

    Attributes:
        config: the configuration, as written into the run.
        folder: the run's folder.
        model: the network as it is trained.
        dataset: the data.
        preprocess: preprocessing of evaluation and of the checkpoint; each segment has that of training.
        batch_size: images per step over all devices.
        steps_per_epoch: may be fractional.
        total_steps: number of steps.
        segments: the timeline.
        abstract_variables: shapes and dtypes of the variables.
        class_weights: factor on the loss of each class, or None.
        init: the checkpoint that training starts from.
        parallelism: the devices and how they share the work; not part of the run's identity.
        device_data: when the training images stay on the devices, see `zoo.distributed.resident.CHOICES`; not part of
            the run's identity.
        precompiled: a segment and its compiled step, if it was compiled to choose the micro-batch.
        address: the run's place in an object store, of which `folder` is the working copy; "" for a run on disk.
    """

    config: RunConfig
    folder: Path
    model: nn.Module
    dataset: Dataset
    preprocess: Preprocess
    batch_size: int
    steps_per_epoch: float
    total_steps: int
    segments: tuple[Segment, ...]
    abstract_variables: dict
    class_weights: tuple[float, ...] | None
    init: InitCheckpoint | None
    parallelism: Parallelism = mesh.SINGLE_DEVICE
    device_data: str = "auto"
    precompiled: tuple[Segment, Any] | None = None
    address: str = ""

    def place(self, *names: str) -> str:
        """Return the path or address of the run, or of something in it, as users type it."""
        return join_address(self.address, *names) if self.address else str(self.folder.joinpath(*names))

    @property
    def recipe(self) -> Recipe:
        return self.config.recipe

    @property
    def eval_model(self) -> nn.Module:
        """The network as a checkpoint runs it: in float32, without rematerialisation."""
        return models.with_runtime(self.model, dtype=jax.numpy.float32, remat=False)

    @cached_property
    def trained_on(self) -> ContentSketch:
        """Sketch of the training images, and of those of the initial checkpoint if its card has one."""
        own = sketch_of(self.dataset.splits["train"])
        earlier = self.init.trained_on if self.init else None
        return own.merge(earlier) if earlier else own

    @property
    def num_parameters(self) -> int:
        return models.count_parameters(self.abstract_variables)

    @property
    def eval_batch_size(self) -> int:
        """Images per evaluation batch: no more than a micro-batch, which was chosen for lack of memory."""
        return min(self.recipe.micro_batch or BATCH_SIZE, BATCH_SIZE)

    def describe_batch(self) -> str:
        """Return "N images", with the batch size of the recipe if the data have fewer images."""
        return memory.describe_images(self.batch_size, self.recipe.batch_size)

    def batches(self, step: int = 0, workers: int | None = None, step_bytes: int = 0) -> Generator[Any]:
        """Yield training batches on the device from `step` on, in the image size of that step.

        Args:
            step: number of completed steps.
            workers: threads that read data which is not kept in memory.
            step_bytes: bytes per device that steps need beside the state.
        """
        return batches.train_batches_on_devices(
            self.dataset.splits["train"], self.segment(step), self.recipe, self.batch_size, self.parallelism,
            self.device_data, step, workers, step_bytes,
        )  # fmt: skip

    def segment(self, step: int) -> Segment:
        """Return the segment of the step that follows `step` completed steps; after the last step, the last segment."""
        return segment_at(self.segments, step)

    def optimizer(self, segment: Segment) -> optax.GradientTransformation:
        return self._optimizer_and_schedule(segment)[0]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, …, before the multipliers of single stages."""
        segment = self.segment(step)
        start, _ = optimizer_span(self.segments, segment)
        return float(self._optimizer_and_schedule(segment)[1](step - start))

    def _optimizer_and_schedule(self, segment: Segment) -> tuple[optax.GradientTransformation, optax.Schedule]:
        multipliers = finetune.learning_rate_multipliers(self.recipe, self.model, self.abstract_variables["params"])
        start, stop = optimizer_span(self.segments, segment)
        return make_optimizer(self.recipe, stop - start, self.steps_per_epoch, multipliers)

    def shardings(self, tree: Any) -> Any:
        """Return the sharding of every leaf of variables or state; None if parameters are not split among devices."""
        if not self.parallelism.splits_parameters:
            return None
        return mesh.shardings(self.parallelism, self.model, tree, self.abstract_variables["params"])

    def abstract_state(self, segment: Segment) -> TrainState:
        """Return the shapes and dtypes of the state within a segment, and the shardings if parameters are split."""
        state = abstract_state(self.abstract_variables, self.optimizer(segment), self.recipe, segment.frozen)
        placed = self.shardings(state)
        return state if placed is None else jax.tree.map(mesh.with_sharding, state, placed)

    def first_state(self) -> TrainState:
        """Return the state before step 0: sharded if parameters are split among devices, else on one device."""
        first, start = self.segments[0], None
        if self.init is not None:
            start = partial(self.init.variables_for, self.model, self.preprocess, self.dataset.class_names)
        elif hasattr(self.model, "initialise_from_images"):
            sample = batches.sample_images(self.dataset.splits["train"], self.segments[-1].preprocess)
            start = partial(self.model.initialise_from_images, images=sample)
        return create_state(
            self.model, self.optimizer(first), self.recipe, self.preprocess.input_shape, start=start,
            frozen=first.frozen, shardings=self.shardings,
        )  # fmt: skip

    def require_memory(self) -> None:
        """Raise OutOfMemoryError, from shapes alone, if the state, a batch or an evaluation do not fit into memory."""
        segment = self.segments[-1]
        state = self.abstract_state(segment)
        memory.require_room(
            state.variables, (state.opt_state, state.ema), self.batch_size,
            self.recipe.micro_batch or self.batch_size, segment.preprocess.input_shape, self.parallelism,
            self.recipe.batch_size,
        )  # fmt: skip
        examples = len(self.dataset.splits["validation"])
        require_memory(
            self.eval_model, self.abstract_variables, examples, self.preprocess, self.eval_batch_size,
            parallelism=self.parallelism, images="validation images",
            advice="lower --image-size or --micro-batch (evaluation takes as many images at a time)",
        )  # fmt: skip

    def largest_step(self) -> tuple[Segment, TrainState]:
        """Return the last segment and a throw-away state for it: earlier ones may freeze layers or shrink images."""
        segment = self.segments[-1]
        return segment, self.shard_state(self.reset_optimizer(self.first_state(), segment))

    def reset_optimizer(self, state: TrainState, segment: Segment) -> TrainState:
        """Return the state with the fresh optimiser of a segment."""
        return reset_optimizer(state, self.optimizer(segment), segment.frozen, self.shardings)

    def shard_state(self, state: TrainState) -> TrainState:
        """Place a state on the devices."""
        return mesh.shard_state(self.parallelism, self.model, state)

    def compile_step(self, segment: Segment, state: TrainState) -> Any:
        """Compile the training step of a segment for the shapes and devices of this plan."""
        model = models.with_runtime(self.model, axis_name=self.parallelism.axis_name)
        step = make_train_step(
            model, self.recipe, segment.preprocess, self.optimizer(segment),
            augmentation=segment.augmentation.device, class_weights=self.class_weights, frozen=segment.frozen,
            axis_name=self.parallelism.axis_name,
            shard_microbatches=partial(mesh.shard_microbatches, self.parallelism),
            gather=partial(mesh.gather_fsdp, self.parallelism, model),
            unroll=compile.max_unrolled_microbatches(),
            warmup_steps=round(self.recipe.warmup_epochs * self.steps_per_epoch),
        )  # fmt: skip
        batch = mesh.abstract_batch(self.parallelism, self.batch_size, segment.preprocess.input_shape)
        return compile.compile_train_step(step, self.parallelism, model, state, batch)

    def compile_within_memory(self, segment: Segment, state: TrainState) -> tuple[Any, memory.Shortage | None]:
        """Return (compiled step, None), or (None, shortage) if it does not fit into the devices' memory."""
        return memory.try_compile(partial(self.compile_step, segment, state), self.parallelism)

    def fitting_micro_batch(self, shortage: memory.Shortage, say: Say) -> "Plan | None":
        """Return this plan with the largest micro-batch whose step fits into memory, precompiled; None if none does."""
        segment, state = self.largest_step()
        current, devices = self.recipe.micro_batch or self.batch_size, self.parallelism.devices
        sizes = [size for size in range(devices, current, devices) if self.recipe.batch_size % size == 0]
        result = memory.find_micro_batch(
            lambda size: self.with_micro_batch(size).compile_step(segment, state),
            sizes[::-1], current, shortage, self.parallelism, say,
        )  # fmt: skip
        if result is None:
            return None
        size, step = result
        return dataclasses.replace(self.with_micro_batch(size), precompiled=(segment, step))

    def with_micro_batch(self, micro_batch: int) -> "Plan":
        recipe = dataclasses.replace(self.recipe, micro_batch=micro_batch)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, recipe=recipe))

    def is_eval_step(self, step: int) -> bool:
        """Return True if validation follows after `step` steps: every eval_every_epochs, and after the last step."""
        every = max(self.steps_per_epoch * self.recipe.eval_every_epochs, 1)
        return step == self.total_steps or math.floor(step / every) > math.floor((step - 1) / every)


# --- from request to plan --------------------------------------------------------------------------------------------


def make_plan(request: TrainRequest, say: Say = lambda line: None) -> Plan:
    """Resolve a request.

    With several processes all must call this together.

    Args:
        request: the request.
        say: called with each line of progress while steps are compiled to choose a micro-batch.

    Raises:
        ValueError: naming the option or field and valid values.
        OutOfMemoryError: if no micro-batch fits into memory.
    """
    parallelism = request.parallelism or mesh.parse_parallelism()
    opened = None
    if needs_default_model(request):
        opened = open_data(request, say)
        request = with_default_model(request, opened, say)
    if isinstance(request.recipe, str) and request.recipe in RULES:
        opened = open_data(request, say) if opened is None else opened
        fold = requested_fold(request)
        request = dataclasses.replace(
            request, recipe=apply_rule(request.recipe, take_fold(opened, fold) if fold else opened)
        )
    name, fields, recipe, auto_micro_batch = resolve_settings(request)
    dataset = open_data(request, say) if opened is None else opened
    if fold := requested_fold(request):
        dataset = take_fold(dataset, fold)
    fields.setdefault("num_classes", dataset.num_classes)
    if fields["num_classes"] != dataset.num_classes:
        raise ValueError(f"num_classes={fields['num_classes']}, but {dataset.name} has {dataset.num_classes} classes")
    fingerprint = dataset.fingerprint()
    network, train_preprocess = _resolve_network(request.init, name, fields, recipe, dataset, parallelism)
    if request.init:
        dataset = note_polarity(dataset, train_preprocess.polarity)
    abstract = models.abstract_variables(network, train_preprocess.input_shape)  # raises if the sizes are impossible
    progressive.require_sizes_supported(network, recipe, train_preprocess)
    preprocess = progressive.eval_preprocess(recipe, train_preprocess)
    if request.init:
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        request.init.variables_for(network, preprocess, dataset.class_names, blank)  # raises for what does not match

    train = dataset.splits["train"]
    batch_size = _resolve_batch_size(recipe, len(train), parallelism)
    if parallelism.is_pmap:
        micro_batch = "auto" if auto_micro_batch else recipe.micro_batch
        pmap.require_supported(batch_size, parallelism.devices, micro_batch, recipe.augment)
    steps_per_epoch = max(len(train) / batch_size, recipe.min_epoch_steps)
    total_steps = _resolve_total_steps(recipe, steps_per_epoch)
    new_head = request.init is not None and request.init.needs_new_rows(dataset.class_names)
    segments = build_timeline(
        finetune.frozen_spans(recipe, network, abstract, total_steps, steps_per_epoch, new_head),
        progressive.image_size_spans(recipe, train_preprocess, total_steps, steps_per_epoch),
        lambda preprocess: place_augmentation(train, preprocess, recipe.augment),
    )
    config = RunConfig(
        name, models.card_fields(name, network), dataset.name, recipe, record_limit(request), fingerprint,
        request.data_dir or (request.base.data_dir if request.base else None),
        None if request.init is None else request.init.spec,
        None if request.init is None else request.init.digest(), fold, request.head,
    )  # fmt: skip
    _require_same_in_all_processes(config)
    folder, address = run_store.place_of_run(request.workdir, config, request.runs_folder)
    plan = Plan(
        config, folder, network, dataset, preprocess, batch_size, steps_per_epoch, total_steps, segments, abstract,
        _balanced_weights(recipe, dataset), request.init, parallelism, request.device_data, address=address,
    )  # fmt: skip
    batches.require_device_data(request.device_data, dataset, segments, parallelism)
    plan.require_memory()
    return _resolve_micro_batch(plan, say) if auto_micro_batch else plan


def _resolve_network(
    init: InitCheckpoint | None,
    name: str,
    fields: dict[str, Any],
    recipe: Recipe,
    dataset: Dataset,
    parallelism: Parallelism,
) -> tuple[nn.Module, Preprocess]:
    """Return the network as it is trained and the Preprocess of the end of training."""
    network, side = models.create(name, **fields), recipe.final_image_size
    if side and "image_size" in models.defining_fields(network):
        network = models.create(name, **{**fields, "image_size": side})
    if holds_points(dataset) and not init:
        network = _network_of_points(name, fields, side, dataset)
    if init:
        preprocess = adapt_preprocess(init.preprocess(side, recipe.channels), dataset)
        preprocess = with_normalisation(preprocess, recipe.normalisation, dataset)
    else:
        size = (side, side) if side else network.input_shape[:2]
        _require_room_early(network, size, recipe, len(dataset.splits["train"]), parallelism)
        preprocess = preprocess_for(dataset, size, recipe.channels or getattr(network, "channels", None))
        preprocess = with_normalisation(preprocess, recipe.normalisation or getattr(network, "normalisation", ""))
    if recipe.interpolation:
        preprocess = dataclasses.replace(preprocess, interpolation=recipe.interpolation)
    if recipe.remat and "remat" not in models.runtime_fields(network):
        raise ValueError(f"recipe field remat=True: {name} has no blocks to rematerialise")
    return models.with_runtime(network, dtype=_DTYPES[recipe.precision], remat=recipe.remat), preprocess


def _network_of_points(name: str, fields: dict[str, Any], side: int, dataset: Dataset) -> nn.Module:
    """Return the network for points, which only networks of dense layers can read."""
    if "image_width" not in models.defining_fields(models.create(name)):
        raise ValueError(f"{dataset.name}: holds points, which {name} cannot read; use --model mlp or softmax")
    if side:
        raise ValueError(f"--image-size {side}: {dataset.name} holds points, which cannot be resized; leave it out")
    return models.create(name, **{**fields, "image_size": POINT_SHAPE[0], "image_width": POINT_SHAPE[1]})


def _require_room_early(
    network: nn.Module, size: tuple[int, int], recipe: Recipe, num_records: int, parallelism: Parallelism
) -> None:
    """Raise OutOfMemoryError before a large preprocessing is measured, which takes minutes, if training cannot fit."""
    if size[0] * size[1] <= LARGE_IMAGE:
        return
    variables: dict[str, Any] = {"params": {}}
    if "image_size" in models.defining_fields(network):  # others have the same variables at any size
        with suppress(ValueError):
            variables = models.abstract_variables(network, (*size, 1))
    batch_size = min(recipe.batch_size or num_records, num_records)
    memory.require_room(
        variables, (), batch_size, recipe.micro_batch or batch_size, (*size, 1), parallelism, recipe.batch_size
    )


def _resolve_batch_size(recipe: Recipe, num_records: int, parallelism: Parallelism) -> int:
    """Return the images per step: at most all records, or as many of them as divide among the devices."""
    batch_size = recipe.batch_size or num_records
    if batch_size > num_records:
        batch_size = num_records // parallelism.devices * parallelism.devices or num_records
    mesh.require_divisible(parallelism, batch_size, recipe.micro_batch)
    return batch_size


def _resolve_total_steps(recipe: Recipe, steps_per_epoch: float) -> int:
    steps = math.ceil(round(recipe.epochs * steps_per_epoch, 6))  # 500 / 3 * 3 is 500 steps, not 501
    if steps > MAX_STEPS:
        raise ValueError(
            f"recipe field epochs={recipe.epochs:g}: {steps:.3g} steps of {recipe.batch_size} images, at most "
            f"{MAX_STEPS:,} can be counted; lower epochs"
            + (" or min_epoch_steps" if steps_per_epoch == recipe.min_epoch_steps else "")
        )
    return max(steps, 1)


def _balanced_weights(recipe: Recipe, dataset: Dataset) -> tuple[float, ...] | None:
    """Return N / (K * count) for each class of the training split, if the recipe asks for it."""
    if recipe.class_weights == "none":
        return None
    counts = np.bincount(dataset.splits["train"].labels, minlength=dataset.num_classes)
    return tuple(float(w) for w in counts.sum() / (len(counts) * np.maximum(counts, 1)))


def _require_same_in_all_processes(config: RunConfig) -> None:
    """Raise ValueError in all processes if one of them was asked for another run."""
    own = config.identity()
    lines = runs.differences(processes.run_on_primary(lambda: own), own)
    if any(processes.all_reduce_max(bool(lines))):
        text = "; ".join(lines) or "reported by another process"
        raise ValueError(f"the processes have different configurations: {text}. Give each the same command and data")


def _resolve_micro_batch(plan: Plan, say: Say) -> Plan:
    """Return the plan with the micro-batch that its run began with, or for a new run the largest that fits."""

    def recorded() -> int | None:
        if plan.address:
            return run_store.recorded_micro_batch(plan.address)
        if (plan.folder / runs.CONFIG).exists():
            micro_batch = runs.recorded_micro_batch(plan.folder)
            runs.require_same_run(plan.folder, plan.with_micro_batch(micro_batch or 0).config)
            return micro_batch
        return None

    size = processes.run_on_primary(recorded)
    if size is not None:
        plan = plan.with_micro_batch(size)
    else:
        say("Compiling the training step to measure its memory …")
        segment, state = plan.largest_step()
        step, shortage = plan.compile_within_memory(segment, state)
        if shortage is None:
            plan = dataclasses.replace(plan, precompiled=(segment, step))
        else:
            fitting = plan.fitting_micro_batch(shortage, say)
            if fitting is None:
                message = memory.describe_shortage(shortage, plan.describe_batch(), memory.advise(None))
                raise memory.OutOfMemoryError(message)
            plan = fitting
    mesh.require_divisible(plan.parallelism, plan.batch_size, plan.recipe.micro_batch)
    size = plan.recipe.micro_batch
    say(f"Micro-batch {size}, gradients are accumulated" if size else "No micro-batch needed: the whole batch fits")
    return plan
