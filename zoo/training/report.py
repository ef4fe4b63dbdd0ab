"""What a run says about itself: before it starts, as checkpoint, and when it is finished."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from zoo import checkpoint
from zoo.data.listing import describe_left_out
from zoo.training import finetune, sizes
from zoo.training import run as runs
from zoo.training.display import Display, counted
from zoo.training.evaluation import evaluate
from zoo.training.run import Progress

if TYPE_CHECKING:
    from zoo.training.loop import Plan

FEW_STEPS = 50  # in which hardly any network learns


def describe(job: "Plan", folder: Path, say: Callable[[str], None]) -> None:
    """What is about to be trained, on what, how and where."""
    recipe = job.recipe
    counts = ", ".join(f"{name} {len(split):,}" for name, split in job.dataset.splits.items())
    height, width, channels = job.image_shape
    say(f"model: {job.config.model}, {job.parameters:,} parameters, images {height}x{width}x{channels}")
    for line in sizes.describe(job.stretches, job.preprocess, job.steps_per_epoch):
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
    if job.total_steps < FEW_STEPS:
        say("      so few updates teach a network little; a smaller --batch-size or more --epochs make more of them")
    if job.start is not None:
        for line in job.start.report(job.model, job.preprocess, job.dataset.class_names):
            say(line)
    for line in finetune.describe(job.phases, job.model, job.abstract["params"], job.steps_per_epoch):
        say(f"      {line}")
    others = f" (one of {jax.device_count()} devices)" if jax.device_count() > 1 else ""
    say(f"run: {folder} on {jax.devices()[0].device_kind}{others}, {recipe.precision}")


def save_best(job: "Plan", folder: Path, variables: dict, progress: Progress, results: dict) -> checkpoint.Card:
    row = next(row for row in progress.history if row["step"] == progress.best_step)
    made = json.loads((folder / runs.CONFIG).read_text())["made_with"]
    validation = {key.removeprefix("validation_"): value for key, value in row.items() if key.startswith("validation_")}
    card = checkpoint.Card(
        model=job.config.model,
        fields=job.config.fields,
        classes=job.dataset.class_names,
        preprocess=job.preprocess,
        recipe=dataclasses.asdict(job.recipe),
        data={"source": job.config.data, "limit": job.config.limit, "notes": list(job.dataset.notes)},
        metrics={"step": progress.best_step, "validation": validation, **results},
        versions=made["versions"] | {"git": made["git"] or "unknown"},
        licence=job.start.card.licence if job.start else "",
        source="trained with jax-model-zoo" + (f" from {job.start.origin}" if job.start else ""),
        command=made["command"],
    )
    return checkpoint.save_checkpoint(folder / runs.BEST, card, variables)


def finish(job: "Plan", folder: Path, best: dict, progress: Progress, display: Display) -> None:
    """Evaluate the best checkpoint on every held-out split, draw, and write results.json last."""
    from zoo.training import plots

    results = {}
    for name in ("validation", "test"):
        if name in job.dataset.splits:
            split = job.dataset.splits[name]
            show = display.evaluating(name, len(split))
            results[name] = evaluate(job.evaluated, best, split, job.preprocess, job.dataset.class_names, on_batch=show)
    brief = {name: {key: result[key] for key in result if key != "confusion"} for name, result in results.items()}
    save_best(job, folder, best, progress, brief)
    plots.draw_curves(progress.history, folder / "curves.png", best_step=progress.best_step)
    shown = "test" if "test" in results else "validation"
    plots.draw_confusion(
        results[shown]["confusion"], job.dataset.class_names, folder / "confusion.png",
        title=f"{job.config.model} on {job.config.data}, {shown} split",
    )  # fmt: skip
    summary = {"stopped": progress.stopped, "best_step": progress.best_step, **results}
    runs.write_atomically(folder / runs.RESULTS, json.dumps(summary, indent=1) + "\n")
    epoch = progress.best_step / job.steps_per_epoch
    display.say(f"{progress.stopped}; best after epoch {epoch:.1f} (step {progress.best_step:,})")
    for name, result in results.items():
        display.say(
            f"{name:>10}: accuracy {100 * result['accuracy']:.2f} %  loss {result['loss']:.4f}  macro F1 "
            f"{result['macro_f1']:.4f}  ({result['examples']:,} images)"
        )
    display.say(f"checkpoint: {folder / runs.BEST}\n   try it: zoo predict {folder / runs.BEST} IMAGE …")
