"""Fitting a linear head to frozen features in the time of one pass over the images: `zoo train --quick`.

The features of every image are computed once. A softmax classifier on them, with an L2 penalty chosen on the validation
split, becomes the network's head. The run's folder has the same files as that of any other run.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import loading
from zoo.analysis.features import Features, compute_features
from zoo.analysis.linear_head import head_variables, model_with_classes
from zoo.analysis.probe import STRENGTHS, ClassWeights, ProbeResult, evaluate_head, fit_on_validation
from zoo.arguments import check_types
from zoo.data.dataset import Dataset
from zoo.data.sources import from_arrays, names_data
from zoo.distributed import mesh, processes
from zoo.inference.metrics import Metrics
from zoo.inference.predict import Checkpoint
from zoo.training import loop, report
from zoo.training import run as runs
from zoo.training.display import LINE_INTERVAL, Display, format_duration
from zoo.training.plan import Plan, make_plan
from zoo.training.recipe import Recipe
from zoo.training.request import TrainRequest
from zoo.training.run import Logs, Progress
from zoo.training.run_store import open_store
from zoo.training.settings import in_terms_of_arguments, naming_arguments, say_arguments
from zoo.training.trackers import Tracking, parse_trackers

#: Kind of head, as `RunConfig.head` names it.
LINEAR = "linear"


@check_types()
@naming_arguments
def fit_head(
    data: str | Path | Dataset | tuple,
    *,
    init: str | Path | Checkpoint | None = None,
    class_weights: ClassWeights = "none",
    workdir: str | Path | None = None,
    data_dir: str | Path | None = None,
    limit: int = 0,
    quiet: bool = False,
    workers: int | None = None,
    log: str | Sequence[str] = (),
) -> Checkpoint:
    """Fit a linear head to the frozen features of a network, as `zoo train --quick` does.

    Args:
        data: a name or folder that `open_dataset` takes, a Dataset, or arrays (images, labels).
        init: the Checkpoint, or a folder or name that `load` takes; by default pretrained weights that suit the images,
            torchvision's ResNet-18 for photographs.
        class_weights: "balanced" weights each example by N / (K * number of examples of its class).
        workdir: folder of the run; by default one under runs/.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0 for all.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory; they affect speed only.
        log: experiment trackers that get the run as well: "wandb", "mlflow" or a list of both.

    Returns:
        The checkpoint, with `history` (one row) and `workdir`.

    Raises:
        ValueError: naming an argument and valid values.
        ConnectionError: if the pretrained weights are not on this machine and cannot be downloaded.

    Example:
        >>> checkpoint = zoo.fit_head("photos/")
        >>> checkpoint.predict("photo.jpg")
    """
    if loading.is_checkpoint(data) and not names_data(data):
        raise ValueError(f"fit_head: {data!r} is a checkpoint, not data; write zoo.fit_head(data, init={data!r})")
    request = TrainRequest(
        data=from_arrays(data) if isinstance(data, tuple) else data,
        init=None if init is None else loading.open_init(init),
        changes={"class_weights": class_weights},
        data_dir=None if data_dir is None else os.fspath(data_dir),
        limit=limit,
        workdir=workdir,
        open_init=loading.open_init,
        head=LINEAR,
    )
    trackers = parse_trackers(log, "fit_head: log")
    plan = make_plan(prepare(request), say_arguments(quiet))
    return fit_plan(plan, quiet=quiet, workers=workers, log=trackers, rephrase=in_terms_of_arguments)


def prepare(request: TrainRequest) -> TrainRequest:
    """Return the request as a head is fitted: on one device, the body frozen, nothing augmented.

    Raises:
        ValueError: for a network without a head that could be fitted, or with several processes.
    """
    if processes.is_multiprocess():
        raise ValueError("a head is fitted in a single process; start it without a launcher")
    if request.init is not None:
        model_with_classes(request.init.card.model, request.init.card.fields, len(request.init.card.classes) or 2)
    recipe = dataclasses.replace(request.base.recipe if request.base else Recipe(), freeze=("body",))
    return dataclasses.replace(request, recipe=recipe, parallelism=mesh.SINGLE_DEVICE)


def fit_plan(
    plan: Plan,
    *,
    command: str = "",
    quiet: bool = False,
    workers: int | None = None,
    log: Sequence[str] = (),
    rephrase: Callable[[str], str] = str,
) -> Checkpoint:
    """Fit a linear head as a run with a folder of its own, and return the checkpoint.

    Args:
        plan: the plan of a request that `prepare` returned. Of its recipe only `class_weights` is used.
        command: command line to record in the run.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory.
        log: names of experiment trackers, as `parse_trackers` returns them.
        rephrase: applied to printed lines, as in `Display`.

    Raises:
        ValueError: if the folder holds another run.
    """
    with Display(1, 1, 1, quiet=quiet, live=False, rephrase=rephrase) as display, ExitStack() as stack:
        store = stack.enter_context(open_store(plan.address, plan.folder, display.say)) if plan.address else None
        runs.open_folder(plan.folder, plan.config, command)
        report.describe(plan, display.say)
        stack.enter_context(runs.lock_folder(plan.folder))
        tracking = stack.enter_context(Tracking(log, plan.folder, display.say, plan.config.fold is not None))
        push = store.push if store else lambda: None
        push()  # first of all the configuration, which names the run in the store
        if runs.is_finished(plan.folder):
            report.say_finished(plan, "an option or --workdir", display.say)
            report.draw_figures(plan, display.say)
        else:
            _fit(plan, display, workers)
        push()
        result = loop.read_result(plan)
        tracking.add(result.history)
        tracking.finish()
        if log:
            push()  # that the trackers have it all
    return result


def _fit(plan: Plan, display: Display, workers: int | None) -> None:
    """Compute the features, fit the head and write checkpoint, metrics and results."""
    start = time.monotonic()
    model, preprocess, shape = plan.eval_model, plan.preprocess, plan.preprocess.input_shape
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract_variables)
    init = plan.init
    if init is None:
        raise ValueError("a head is fitted to the features of a checkpoint; give one with --init")
    variables = init.variables_for(model, preprocess, plan.dataset.class_names, blank)
    total = sum(map(len, plan.dataset.splits.values()))
    arrays = compute_features(
        model, variables, preprocess, plan.dataset, on_batch=_progress("features of image", total, display),
        batch_size=plan.eval_batch_size, workers=workers,
    )  # fmt: skip
    display.say(f"Computed the features of {total:,} images in {format_duration(time.monotonic() - start)}")
    features = Features(arrays, tuple(plan.dataset.class_names), f"features of {plan.config.model}")
    fitted = fit_on_validation(
        features, class_weights=plan.recipe.class_weights, on_fit=_progress("penalty", len(STRENGTHS), display)
    )
    variables = head_variables(model, shape, variables, fitted.kernel, fitted.bias, plan.config.model)
    progress = Progress(history=[_row(features, fitted)], stopped="Head fitted")
    results = _results(fitted)
    Logs(plan.folder, progress.history).close()
    brief = {name: {k: v for k, v in result.to_json().items() if k != "confusion"} for name, result in results.items()}
    source = (
        f"linear softmax head on frozen features of {init.origin}, fitted with jax-model-zoo; penalty C "
        f"{fitted.strength:g} per 1,000 examples, chosen on the validation split"
    )
    report.save_best(plan, variables, progress, brief, fitted.calibration, source)
    report.write_results(plan, progress, results, display, (fitted.calibration, fitted.uncalibrated))
    runs.append_timing(plan.folder, 0, 1, total, time.monotonic() - start)


def _row(features: Features, fitted: ProbeResult) -> dict[str, Any]:
    """Return the row of metrics.jsonl."""
    train = evaluate_head(fitted, *features.splits["train"])
    validation = evaluate_head(fitted, *features.splits["validation"])
    return {
        "step": 0,
        "epoch": 0.0,
        "penalty": fitted.strength,
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        **{f"validation_{name}": getattr(validation, name) for name in loop.ROW_METRICS},
        "best": True,
    }


def _results(fitted: ProbeResult) -> dict[str, Metrics]:
    validation = fitted.validation or fitted.metrics
    return {"validation": validation, **({"test": fitted.metrics} if fitted.split == "test" else {})}


def _progress(label: str, total: int, display: Display) -> Callable[[int], None]:
    """Return a function that shows a count: on a terminal ten times per second, else in lines, seconds apart."""
    shown_at = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown_at
        if display.quiet:
            return
        now, live = time.monotonic(), sys.stderr.isatty()
        if now - shown_at < (0.1 if live else LINE_INTERVAL):
            return
        shown_at = now
        text = f"{label} {done:,} of {total:,}"
        if live:
            print(f"\r{text}", end="\r", file=sys.stderr, flush=True)
        else:
            display.say(f"  {text}")

    return show
