"""What a run will do, settled before its first step: data, model, preprocess, phases, layout; and its compiled step."""

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from zoo import models
from zoo.data.augment.host_crop import place_augmentation
from zoo.data.dataset import Dataset, limited
from zoo.data.images.measure import preprocess_for
from zoo.data.images.polarity import match_polarity
from zoo.data.images.preprocess import Preprocess
from zoo.data.loader import prefetch_to_device, train_batches
from zoo.data.sources import open_dataset
from zoo.distributed import compile, mesh
from zoo.distributed.mesh import Parallelism
from zoo.inference.evaluate import BATCH_SIZE
from zoo.training import finetune, progressive
from zoo.training.finetune import InitCheckpoint, Phase
from zoo.training.optim import make_optimizer
from zoo.training.progressive import Segment
from zoo.training.recipe import Recipe
from zoo.training.run import Config
from zoo.training.step import TrainState, create_state, make_train_step

_DTYPES = {"float32": jax.numpy.float32, "bfloat16": jax.numpy.bfloat16}


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
    stretches: tuple[Segment, ...]
    abstract: dict
    """The variables' shapes and dtypes."""
    start: InitCheckpoint | None
    """The checkpoint that training starts from."""
    parallelism: Parallelism = mesh.ONE_DEVICE
    """What of it runs where; no part of what the run is."""

    @property
    def evaluated(self) -> nn.Module:
        """The model as a checkpoint of it will be run: in float32 and plainly, however it is trained."""
        return models.with_runtime(self.model, dtype=jax.numpy.float32, remat=False)

    @property
    def recipe(self) -> Recipe:
        return self.config.recipe

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.preprocess.input_shape

    def batches(self, step: int = 0, workers: int | None = None) -> Generator[Any]:
        """What training sees from `step` on, on the device, in the size of that step.

        The host cuts the crops where `place_augmentation` says so.
        """
        split = self.dataset.splits["train"]
        seen = self.seen(step)
        rows = train_batches(
            split, seen, batch_size=self.batch_size, seed=self.recipe.seed, start_step=step,
            shard=mesh.process_shard(self.parallelism),
            crop=place_augmentation(split, seen, self.recipe.augment).host_crop, workers=workers,
        )  # fmt: skip
        return prefetch_to_device(
            rows, None if self.parallelism.is_single_device else partial(mesh.shard_batch, self.parallelism)
        )

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

    def placed(self, state: TrainState) -> TrainState:
        """A state where the parallelism wants it."""
        return mesh.shard_state(self.parallelism, self.model.family, state)

    @property
    def evaluation_batch(self) -> int:
        """Images that are evaluated at once: no more than a step takes where memory is short."""
        return min(self.recipe.micro_batch or BATCH_SIZE, BATCH_SIZE)

    def is_evaluation(self, step: int) -> bool:
        """Whether validation follows after `step` steps: every eval_every_epochs, and at the end."""
        every = self.steps_per_epoch * self.recipe.eval_every_epochs
        return step == self.total_steps or math.floor(step / every) > math.floor((step - 1) / every)


def plan(
    model: str | None, data: str | Dataset, recipe: Recipe | str | None = None, *, init: InitCheckpoint | None = None,
    fields: dict[str, Any] | None = None, data_dir: str | None = None, limit: int = 0,
    parallelism: Parallelism | None = None,
) -> Plan:  # fmt: skip
    """Open the data and settle model, preprocess, phases. ValueError for what does not fit together.

    With `init`, model, fields and preprocess default to those of its card. parallelism: all devices by default.
    """
    parallelism = parallelism or mesh.parallelism_for()
    model, fields = finetune.model_and_fields(init, model, fields or {})
    models.create(model, **fields)  # names are checked before data is read
    dataset = open_dataset(data, data_dir) if isinstance(data, (str, Path)) else data
    if dataset.num_classes < 2:
        raise ValueError(
            f"{dataset.name}: all images are of one class, {dataset.class_names[0]}; at least two are needed"
        )
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
    if recipe.remat and "remat" not in models.runtime_fields(network):
        raise ValueError(f"recipe field remat=True: {model} has no blocks whose activations could be computed again")
    network = models.with_runtime(network, dtype=_DTYPES[recipe.precision], remat=recipe.remat)
    # Tracing the model here finds what its fields or the image size make impossible before anything is written.
    abstract = models.abstract_variables(network, seen.input_shape)
    progressive.check(network, recipe, seen)
    preprocess = progressive.tested(recipe, seen)
    if init:
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        init.variables_for(network, preprocess, dataset.class_names, blank)  # what does not fit is listed now

    count = len(dataset.splits["train"])
    batch_size = recipe.batch_size or count
    if batch_size > count:  # all there are, or as many as devices can share
        batch_size = count // parallelism.devices * parallelism.devices or count
    mesh.check_batch(parallelism, batch_size, recipe.micro_batch)
    if parallelism.how == "pmap":
        mesh.check_pmap(parallelism, batch_size, recipe)
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
        progressive.stretches(recipe, seen, total_steps, steps_per_epoch), abstract, init, parallelism,
    )  # fmt: skip


def class_weights(plan: Plan) -> tuple[float, ...] | None:
    """N / (K * count) for each class of the training split, where the recipe asks for it."""
    if plan.recipe.class_weights == "none":
        return None
    counts = np.bincount(plan.dataset.splits["train"].labels, minlength=plan.dataset.num_classes)
    return tuple(float(w) for w in counts.sum() / (len(counts) * np.maximum(counts, 1)))


def compile_step(plan: Plan, phase: Phase, seen: Preprocess, state: TrainState) -> Any:
    """Compile the training step of a phase and an image size for the shapes and devices of this plan."""
    parallelism = plan.parallelism
    model = models.with_runtime(plan.model, axis_name=parallelism.axis_name)
    augment = place_augmentation(plan.dataset.splits["train"], seen, plan.recipe.augment).device
    recipe = dataclasses.replace(plan.recipe, augment=augment)
    step = make_train_step(
        model, recipe, seen, plan.optimizer(phase), class_weights=class_weights(plan),
        frozen=phase.frozen, axis_name=parallelism.axis_name, spread=partial(mesh.shard_microbatches, parallelism),
        gather=partial(mesh.gather_fsdp, parallelism, model.family),
        unroll=compile.max_unrolled_microbatches(),
    )  # fmt: skip
    batch = mesh.abstract_batch(parallelism, plan.batch_size, seen.input_shape)
    return compile.compile_train_step(step, parallelism, model.family, state, batch)
