"""Reports of a run: its description before the start, its best checkpoint, results and figures at the end."""

import json
import shlex
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from zoo import checkpoint
from zoo.checkpoint.calibration import Calibration
from zoo.data.content_sketch import TRAINED_ON, describe_shared
from zoo.data.dataset import Dataset
from zoo.data.images.preprocess import POINT_SHAPE
from zoo.data.inspect import advice
from zoo.data.sources.listing import describe_left_out
from zoo.distributed import mesh, processes
from zoo.files import sync_file, write_atomically
from zoo.inference.evaluate import evaluate, evaluate_and_calibrate
from zoo.inference.evidence import describe_evidence
from zoo.inference.intervals import format_accuracy
from zoo.inference.metrics import Metrics, confusion_from_json
from zoo.inference.predict import Checkpoint
from zoo.text import counted, first_line
from zoo.training import finetune, progressive
from zoo.training import run as runs
from zoo.training.display import Display, format_count
from zoo.training.plan import Plan
from zoo.training.recipe import recipe_to_json
from zoo.training.request import Say
from zoo.training.run import Progress

#: Writes a page about a finished run and returns its file: (folder of the run, best checkpoint, data) -> file.
PageWriter = Callable[[Path, Checkpoint, Dataset], Path]

#: Name of that page in the folder of the run.
PAGE = "report.html"
#: Numbers of a split's results that are printed.
_PRINTED = ("accuracy", "examples", "loss", "macro_f1")

#: Number of updates below which hardly any network learns.
FEW_STEPS = 50


def describe(plan: Plan, say: Say) -> None:
    """Print the model, data, recipe and devices of a run."""
    height, width, channels = plan.preprocess.input_shape
    say(f"model: {plan.config.model}, {plan.num_parameters:,} parameters, images {height}x{width}x{channels}")
    for line in progressive.describe_sizes(plan.segments, plan.preprocess, plan.steps_per_epoch):
        say(f"       {line}")
    counts = ", ".join(f"{name} {len(split):,}" for name, split in plan.dataset.splits.items())
    say(f"data: {plan.dataset.name}, {plan.dataset.num_classes} classes; {counts}")
    for line in (*map(str, plan.dataset.notes), *describe_left_out(plan.dataset)):
        say(f"      {line}")
    for line in describe_advice(plan):
        say(f"      {line}")
    for line in describe_head(plan) if plan.config.head else (*describe_recipe(plan), *describe_parallelism(plan)):
        say(line)
    devices = ""
    if plan.parallelism.devices > 1:
        devices = f" x {plan.parallelism.devices}"
    elif jax.device_count() > 1:
        devices = f" (one of {jax.device_count()} devices)"
    say(f"run: {plan.place()} on {jax.devices()[0].device_kind}{devices}, {plan.recipe.precision}")


def describe_advice(plan: Plan) -> list[str]:
    """Return lines on too few images and on unbalanced classes, unless the plan takes care of them."""
    few = "" if plan.init is not None else advice.describe_few_images(plan.dataset)
    unbalanced = advice.describe_imbalance(plan.dataset) if plan.recipe.class_weights == "none" else ""
    return [line for line in (few, unbalanced) if line]


def describe_head(plan: Plan) -> list[str]:
    """Return lines on a run that fits only a head."""
    weights = ", classes weighted to balance" if plan.recipe.class_weights == "balanced" else ""
    return [
        f"head: softmax regression on frozen features of {plan.config.init}, L2 penalty chosen on validation{weights}"
    ]


def describe_recipe(plan: Plan) -> list[str]:
    """Return lines on the recipe, on how small data changes it, and on fine-tuning."""
    recipe, count = plan.recipe, len(plan.dataset.splits["train"])
    lines = [
        f"recipe: {recipe.optimizer}, learning rate {recipe.learning_rate:g} ({recipe.schedule}), "
        f"{format_count(recipe.epochs, 'epoch')} = {format_count(plan.total_steps, 'step')} of {plan.batch_size}; "
        f"{'; '.join(recipe.augment) or 'no augmentation'}"
    ]
    if plan.batch_size < recipe.batch_size:
        lines.append(
            f"      batch size {plan.batch_size:,} instead of {recipe.batch_size:,}: only {count:,} training images"
        )
    if plan.steps_per_epoch > count / plan.batch_size:
        lines.append(
            f"      an epoch has {recipe.min_epoch_steps} steps, more than one pass over this small data set "
            "(--set min_epoch_steps=0 for one pass)"
        )
    if recipe.patience and recipe.monitor == "last":
        lines.append(
            f"      Patience {recipe.patience} has no effect, since the last checkpoint is kept (monitor=last); choose "
            "--monitor accuracy."
        )
    if plan.total_steps < FEW_STEPS:
        lines.append(
            f"      Only {counted(plan.total_steps, 'update')}: too few to learn much. Lower --batch-size or raise "
            "--epochs."
        )
    if plan.init is not None:
        lines += plan.init.describe(plan.model, plan.preprocess, plan.dataset.class_names)
    elif recipe.freeze:
        lines.append(
            "      Frozen parts keep their random initial values, since training starts from scratch. Add --init CKPT."
        )
    params = plan.abstract_variables["params"]
    frozen = finetune.describe_frozen(plan.segments, plan.model, params, plan.steps_per_epoch)
    lines += [f"      {line}" for line in frozen]
    if plan.segments[-1].frozen and not recipe.freeze:
        lines.append("      Only the head is trained in so few epochs. Raise --epochs or use --head-epochs 0.")
    return lines


def describe_parallelism(plan: Plan) -> list[str]:
    """Return lines on the devices and how they share batch and parameters; none for a single device."""
    parallelism, recipe = plan.parallelism, plan.recipe
    if parallelism.is_single_device:
        return []
    count = f", {jax.process_count()} processes" if processes.is_multiprocess() else ""
    per_device = plan.batch_size // parallelism.devices
    lines = [
        f"devices: {parallelism}{count}; {per_device} of {plan.batch_size} images per device",
        f"      learning rate {recipe.learning_rate:g} for the whole batch; it is not scaled with the devices",
    ]
    if parallelism.splits_parameters:
        sharded = mesh.count_sharded(parallelism, plan.model, plan.abstract_variables["params"])
        lines.append(f"      {sharded:,} of {plan.num_parameters:,} parameters sharded, the others replicated")
    return lines


def evaluate_split(
    plan: Plan,
    variables: dict,
    name: str,
    display: Display,
    calibration: Calibration | None = None,
    check: Callable[[int], Any] = lambda done: None,
    workers: int | None = None,
) -> Metrics:
    """Evaluate variables of the run on one of its splits. `check` is called after every batch; it may raise."""
    split = plan.dataset.splits[name]
    show = display.show_evaluation(name, len(split))

    def on_batch(done: int) -> None:
        show(done)
        check(done)

    return evaluate(
        plan.eval_model, variables, split, plan.preprocess, plan.dataset.class_names, batch_size=plan.eval_batch_size,
        on_batch=on_batch, parallelism=plan.parallelism, calibration=calibration, workers=workers,
    )  # fmt: skip


def save_best(
    plan: Plan,
    variables: dict,
    progress: Progress,
    results: dict,
    calibration: Calibration | None = None,
    source: str = "",
) -> checkpoint.Card:
    """Write the run's best checkpoint.

    Args:
        plan: the run.
        variables: the best variables.
        progress: the run's progress, for the validation metrics of the best step.
        results: metrics per split, as JSON, that replace those of the row.
        calibration: fitted on the validation split at the end of training.
        source: how the checkpoint was made, if only a head was fitted.
    """
    row = next(row for row in progress.history if row["step"] == progress.best_step)
    made_with = runs.read_origin(plan.folder)
    validation = {key.removeprefix("validation_"): value for key, value in row.items() if key.startswith("validation_")}
    card = checkpoint.Card(
        model=plan.config.model,
        fields=plan.config.fields,
        classes=plan.dataset.class_names,
        preprocess=plan.preprocess,
        recipe=None if plan.config.head else recipe_to_json(plan.recipe),
        data={
            "source": plan.config.data,
            "limit": plan.config.limit,
            "notes": [str(n) for n in plan.dataset.notes],
            **(plan.config.fold.to_json() if plan.config.fold else {}),
            TRAINED_ON: plan.trained_on.to_json(),
        },
        metrics={"step": progress.best_step, "validation": validation, **results},
        versions=made_with["versions"] | {"git": made_with["git"] or "unknown"},
        licence=plan.init.card.licence if plan.init else "",
        source=source or "trained with jax-model-zoo" + (f" from {plan.init.origin}" if plan.init else ""),
        command=made_with["command"],
        calibration=calibration,
    )
    return checkpoint.save_checkpoint(plan.folder / runs.BEST, card, variables)


def finish(plan: Plan, best: dict, progress: Progress, display: Display, workers: int | None = None) -> None:
    """Evaluate the best variables on every held-out split, then write results.json and the figures.

    Args:
        plan: the run.
        best: the best variables on the host, as `checkpoint.snapshot` returns them.
        progress: the run's progress.
        display: where to print.
        workers: threads that read data which is not kept in memory.
    """
    best = checkpoint.on_devices(best)
    validation, calibration, reason = evaluate_and_calibrate(
        plan.eval_model, best, plan.dataset.splits["validation"], plan.preprocess, plan.dataset.class_names,
        "validation", batch_size=plan.eval_batch_size, parallelism=plan.parallelism,
        on_batch=display.show_evaluation("validation", len(plan.dataset.splits["validation"])), workers=workers,
    )  # fmt: skip
    results = {"validation": validation}
    if "test" in plan.dataset.splits:
        results["test"] = evaluate_split(plan, best, "test", display, calibration, workers=workers)
    brief = {name: {k: v for k, v in result.to_json().items() if k != "confusion"} for name, result in results.items()}
    whole = processes.gather_to_primary(best)
    processes.run_on_primary(lambda: save_best(plan, whole, progress, brief, calibration) and None)
    processes.run_on_primary(lambda: write_results(plan, progress, results, display, (calibration, reason)))


def draw_figures(plan: Plan, say: Say) -> None:
    """Draw those of curves.png and confusion.png that are missing, from the files of a finished run.

    A failure is reported and does not fail the run. A process that died between the results and the figures leaves
    them to the next call of the same command.
    """
    curves, confusion = plan.folder / "curves.png", plan.folder / "confusion.png"
    if (curves.exists() or plan.config.head) and confusion.exists():
        return
    for leftover in plan.folder.glob(".*.png.*.tmp"):
        leftover.unlink(missing_ok=True)
    try:
        from zoo.training import plots

        results = runs.read_results(plan.folder)
        shown = "test" if "test" in results else "validation"
        if not plan.config.head:
            plots.draw_curves(
                runs.read_history(plan.folder), curves, best_step=results["best_step"],
                title=f"{plan.config.model} on {plan.config.data}",
            )  # fmt: skip
        plots.draw_confusion(
            confusion_from_json(results[shown]["confusion"]), plan.dataset.class_names, confusion,
            title=f"{plan.config.model} on {plan.config.data}, {shown} split",
        )  # fmt: skip
    except Exception as error:
        reason = first_line(error)
        say(f"Figures of the run were not drawn: {reason:.200}")


def describe_init_overlap(plan: Plan) -> list[str]:
    """Return a line if the initial checkpoint was trained on test images."""
    earlier, test = plan.init.trained_on if plan.init else None, plan.dataset.splits.get("test")
    if plan.init is None or earlier is None or test is None:
        return []
    line = describe_shared(earlier, test, f"were trained on by {plan.init.spec}")
    return [f"test split: {line}"] if line else []


def write_page(plan: Plan, result: Checkpoint, writer: PageWriter, say: Say) -> None:
    """Write the page of a finished run unless it is there. A failure is reported and does not fail the run."""
    try:
        file = plan.folder / PAGE
        say(f"report: {plan.place((file if file.exists() else writer(plan.folder, result, plan.dataset)).name)}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"The page of the run was not written: {reason:.200}. Try `zoo report {plan.place()}`")


def describe_test(results: Mapping[str, Metrics], chance_advice: str) -> list[str]:
    """Return lines on a test split that is small, and on a result that is no better than chance, with this advice."""
    if "test" not in results:
        return []
    return describe_evidence(results["test"], "Add --folds 5 to test on every image once.", chance_advice)


def advise_training(is_fine_tuned: bool, head: str) -> str:
    """Return what to try if a result is no better than chance; `head` as in the configuration of the run."""
    if head:
        return "Check the labels with `zoo data`, or try another --init."
    others = "" if is_fine_tuned else ", or fine-tune with --init"
    return f"Check the labels with `zoo data`, try a lower --learning-rate or more --epochs{others}."


def describe_calibration(calibration: Calibration | None, reason: str, results: Mapping[str, Metrics]) -> list[str]:
    """Return lines on the temperature, and on the calibration error that it had before and has now."""
    if calibration is None:
        return [f"Probabilities are not calibrated: {reason}"]
    if reason:
        return [f"Probabilities are not calibrated (temperature 1): {reason}"]
    errors = []
    for name, result in results.items():
        before = (result.uncalibrated or {}).get("ece")
        if before is not None and result.ece is not None:
            errors.append(f"{name} {100 * before:.2f} % -> {100 * result.ece:.2f} %")
    images = "validation images" if calibration.split == "validation" else f"images by {calibration.split}"
    return [
        f"Temperature {calibration.temperature:.3f}, fitted on {calibration.examples:,} {images}; calibration error: "
        f"{', '.join(errors)}"
    ]


def write_results(
    plan: Plan,
    progress: Progress,
    results: dict[str, Metrics],
    display: Display,
    calibrated: tuple[Calibration | None, str] | None = None,
) -> None:
    """Write results.json and then the figures, and print the results."""
    summary = {"stopped": progress.stopped, "best_step": progress.best_step}
    summary |= {name: result.to_json() for name, result in results.items()}
    sync_file(plan.folder / runs.METRICS)  # a finished run does not write lost rows again
    write_atomically(plan.folder / runs.RESULTS, json.dumps(summary, indent=1) + "\n")
    draw_figures(plan, display.say)
    say_results(plan, summary, display.say)
    lines = describe_calibration(*calibrated, results) if calibrated else []
    test_lines = (
        [] if plan.config.fold else describe_test(results, advise_training(plan.init is not None, plan.config.head))
    )
    for line in (*lines, *describe_init_overlap(plan), *test_lines):
        display.say(line)
    say_checkpoint(plan, display.say)


def say_finished(plan: Plan, others: str, say: Say) -> None:
    """Print the results of a run that was finished before; `others` says what changes it to another run."""
    say(f"This run is finished: {plan.place()}. For another one, change {others}.")
    say_results(plan, runs.read_results(plan.folder), say)
    say_checkpoint(plan, say)


def say_results(plan: Plan, results: Mapping[str, Any], say: Say) -> None:
    """Print why training stopped, which checkpoint is the best and its results, from the contents of results.json."""
    epoch = min(results["best_step"] / plan.steps_per_epoch, plan.recipe.epochs)
    best = "" if plan.config.head else f"; best checkpoint: epoch {epoch:.1f} (step {results['best_step']:,})"
    say(f"{results['stopped']}{best}")
    for name, result in results.items():
        if isinstance(result, Mapping) and all(isinstance(result.get(key), int | float) for key in _PRINTED):
            figures = [f"accuracy {format_accuracy(result['accuracy'], result['examples'])}"]
            figures += [f"{label} {result[key]:.4f}" for label, key in (("loss", "loss"), ("macro F1", "macro_f1"))]
            say(f"{name:>10}: {'  '.join(figures)}")


def say_checkpoint(plan: Plan, say: Say) -> None:
    """Print where the best checkpoint and the curves of a finished run are."""
    say(f"checkpoint: {plan.place(runs.BEST)}")
    if plan.preprocess.size != POINT_SHAPE:  # no image file holds points
        say(f"   try it: zoo predict {shlex.quote(plan.place(runs.BEST))} IMAGE …")
    if not plan.config.head:  # which has no curves
        missing = "" if find_spec("tensorboard") else "  (pip install tensorboard)"
        say(f"  curves: tensorboard --logdir {shlex.quote(plan.place())}{missing}")
