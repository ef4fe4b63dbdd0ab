"""What a run says about itself: before it starts, as checkpoint, and when it is finished."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax

from zoo import checkpoint
from zoo.data.sources.listing import describe_left_out
from zoo.distributed import mesh, processes
from zoo.inference.evaluate import evaluate
from zoo.training import finetune, progressive
from zoo.training import run as runs
from zoo.training.display import Display, counted
from zoo.training.plan import Plan
from zoo.training.run import Progress

FEW_STEPS = 50  # in which hardly any network learns


def describe(job: Plan, folder: Path, say: Callable[[str], None]) -> None:
    """What is about to be trained, on what, how and where."""
    recipe = job.recipe
    counts = ", ".join(f"{name} {len(split):,}" for name, split in job.dataset.splits.items())
    height, width, channels = job.image_shape
    say(f"model: {job.config.model}, {job.parameters:,} parameters, images {height}x{width}x{channels}")
    for line in progressive.describe(job.stretches, job.preprocess, job.steps_per_epoch):
        say(f"       {line}")
    say(f"data: {job.dataset.name}, {job.dataset.num_classes} classes; {counts}")
    for note in job.dataset.notes:
        say(f"      {note}")
    for line in describe_left_out(job.dataset):
        say(f"      {line}")
    say(
        f"recipe: {recipe.optimizer}, rate {recipe.learning_rate:g} ({recipe.schedule}), "
        f"{counted(recipe.epochs, 'epoch')} = {counted(job.total_steps, 'step')} of {job.batch_size}; "
        f"{'; '.join(recipe.augment) or 'no augmentation'}"
    )
    count = len(job.dataset.splits["train"])
    if job.batch_size < recipe.batch_size:
        say(f"      {recipe.batch_size:,} are more than the {count:,} training images: a batch is {job.batch_size:,}")
    if job.steps_per_epoch > count / job.batch_size:
        least = recipe.min_epoch_steps
        say(f"      with so little data an epoch is {least} steps (--set min_epoch_steps=0: one pass over the data)")
    if job.total_steps < FEW_STEPS:
        say("      so few updates teach a network little; a smaller --batch-size or more --epochs make more of them")
    if job.start is not None:
        for line in job.start.report(job.model, job.preprocess, job.dataset.class_names):
            say(line)
    for line in finetune.describe(job.phases, job.model, job.abstract["params"], job.steps_per_epoch):
        say(f"      {line}")
    if job.phases[-1].frozen and not recipe.freeze:
        say("      in so few epochs nothing else learns; more --epochs, or --head-epochs 0, train the rest too")
    for line in describe_layout(job):
        say(line)
    others = f" (one of {jax.device_count()} devices)" if job.parallelism.devices < jax.device_count() else ""
    if job.parallelism.devices > 1:
        others = f" x {job.parallelism.devices}"
    say(f"run: {folder} on {jax.devices()[0].device_kind}{others}, {recipe.precision}")


def describe_layout(job: Plan) -> list[str]:
    """Lines on what lies where, and what that does to batch and learning rate; none for one device."""
    parallelism, recipe = job.parallelism, job.recipe
    if parallelism.is_single_device:
        return []
    where = f", {jax.process_count()} processes" if processes.is_multiprocess() else ""
    lines = [
        f"devices: {parallelism}{where}; the batch of {job.batch_size} is "
        f"{job.batch_size // parallelism.devices} images on each",
        f"      the learning rate {recipe.learning_rate:g} is for the whole batch; it is not scaled with devices",
    ]
    cut = mesh.count_sharded(parallelism, job.model.family, job.abstract["params"])
    if dict(parallelism.axes).keys() & {"model", "fsdp"}:
        lines.append(f"      {cut:,} of {job.parameters:,} parameters are cut among devices, the rest is on each")
    return lines


def save_best(job: Plan, folder: Path, variables: dict, progress: Progress, results: dict) -> checkpoint.Card:
    row = next(row for row in progress.history if row["step"] == progress.best_step)
    made = json.loads((folder / runs.CONFIG).read_text())["made_with"]
    validation = {key.removeprefix("validation_"): value for key, value in row.items() if key.startswith("validation_")}
    card = checkpoint.Card(
        model=job.config.model,
        fields=job.config.fields,
        classes=job.dataset.class_names,
        preprocess=job.preprocess,
        recipe=dataclasses.asdict(job.recipe),
        data={"source": job.config.data, "limit": job.config.limit, "notes": [str(note) for note in job.dataset.notes]},
        metrics={"step": progress.best_step, "validation": validation, **results},
        versions=made["versions"] | {"git": made["git"] or "unknown"},
        licence=job.start.card.licence if job.start else "",
        source="trained with jax-model-zoo" + (f" from {job.start.origin}" if job.start else ""),
        command=made["command"],
    )
    return checkpoint.save_checkpoint(folder / runs.BEST, card, variables)


def evaluated(job: Plan, variables: dict, name: str, display: Display) -> dict:
    """Every metric of variables of the run on one of its splits."""
    split = job.dataset.splits[name]
    return evaluate(
        job.evaluated, variables, split, job.preprocess, job.dataset.class_names, batch_size=job.evaluation_batch,
        on_batch=display.evaluating(name, len(split)), parallelism=job.parallelism,
    )  # fmt: skip


def finish(job: Plan, folder: Path, best: dict, progress: Progress, display: Display) -> None:
    """Evaluate the best checkpoint on every held-out split, draw, and write results.json last."""
    results = {}
    for name in ("validation", "test"):
        if name in job.dataset.splits:
            results[name] = evaluated(job, best, name, display)
    brief = {name: {key: result[key] for key in result if key != "confusion"} for name, result in results.items()}
    save_best(job, folder, best, progress, brief)
    processes.run_on_primary(lambda: write_results(job, folder, progress, results, display))


def write_results(job: Plan, folder: Path, progress: Progress, results: dict, display: Display) -> None:
    """The pictures, and results.json last."""
    from zoo.training import plots

    plots.draw_curves(progress.history, folder / "curves.png", best_step=progress.best_step)
    shown = "test" if "test" in results else "validation"
    plots.draw_confusion(
        results[shown]["confusion"], job.dataset.class_names, folder / "confusion.png",
        title=f"{job.config.model} on {job.config.data}, {shown} split",
    )  # fmt: skip
    summary = {"stopped": progress.stopped, "best_step": progress.best_step, **results}
    runs.write_atomically(folder / runs.RESULTS, json.dumps(summary, indent=1) + "\n")
    epoch = min(progress.best_step / job.steps_per_epoch, job.recipe.epochs)
    display.say(f"{progress.stopped}; best after epoch {epoch:.1f} (step {progress.best_step:,})")
    for name, result in results.items():
        display.say(
            f"{name:>10}: accuracy {100 * result['accuracy']:.2f} %  loss {result['loss']:.4f}  macro F1 "
            f"{result['macro_f1']:.4f}  ({result['examples']:,} images)"
        )
    display.say(f"checkpoint: {folder / runs.BEST}\n   try it: zoo predict {folder / runs.BEST} IMAGE …")
