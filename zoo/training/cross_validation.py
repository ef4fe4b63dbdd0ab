"""Cross-validation: one ordinary run per fold, each in a folder of its own, and a summary over all of them.

WORKDIR/fold1, WORKDIR/fold2, …   the runs, which are resumed like any other
WORKDIR/summary.json              written last
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from zoo.addresses import is_address, join_address, parent_of
from zoo.data.folds import Fold, choose_group_column
from zoo.distributed import processes
from zoo.files import write_atomically
from zoo.inference.evidence import describe_evidence
from zoo.inference.intervals import format_accuracy
from zoo.inference.metrics import Metrics, confusion_from_json, summarise
from zoo.stores import objects
from zoo.training import run as runs
from zoo.training.plan import Plan, make_plan
from zoo.training.report import advise_training
from zoo.training.request import Say, TrainRequest, with_open_data
from zoo.training.run_store import require_no_run

SUMMARY = "summary.json"


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Attributes:
        accuracies: test accuracy of each fold.
        metrics: metrics over the test images of all folds, each image counted once; without ROC-AUC and calibration
            error, because the scores come from several networks.
        folder: the folder with a run per fold; `zoo.load(folder / "fold1/best")` loads the first checkpoint.
        group: column whose images stay together; "" for none.
    """

    accuracies: tuple[float, ...]
    metrics: Metrics
    folder: Path
    group: str = ""

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation of the folds' accuracies."""
        return statistics.stdev(self.accuracies)

    def __str__(self) -> str:
        return (
            f"{len(self.accuracies)} folds: accuracy {100 * self.mean:.2f} ± {100 * self.std:.2f} % (mean ± standard "
            f"deviation); all images: {format_accuracy(self.metrics.accuracy, self.metrics.examples)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return {
            "folds": len(self.accuracies),
            "group": self.group,
            "mean_accuracy": self.mean,
            "std_accuracy": self.std,
            "accuracies": list(self.accuracies),
            "all_images": self.metrics.to_json(),
        }


def require_folds(folds: Any, option: str) -> int:
    """Return the number of folds, from a number or text.

    Raises:
        ValueError: beginning with `option`, unless it is a whole number of at least 2.
    """
    text = str(folds).strip()
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"{option} {folds!r} is not a whole number of at least 2; 5 and 10 are usual")
    return int(text)


def prepare(request: TrainRequest, group: str | None, say: Say) -> tuple[TrainRequest, str]:
    """Open the data once for all folds and resolve the model.

    Returns:
        The request for `fold_plan`, and the column whose images stay together or "".

    Raises:
        ValueError: as `make_plan`, and for a column that does not exist or is ambiguous.
    """
    request, dataset = with_open_data(request, say)
    return request, choose_group_column(dataset, group)


def fold_plan(request: TrainRequest, fold: Fold, folder: Path | None, say: Say = lambda line: None) -> Plan:
    """Return the plan of one fold; `folder` is that of all folds, None for the first fold to choose it."""
    request = dataclasses.replace(request, fold=fold, workdir=_shared_workdir(request, folder))
    return make_plan(request, say)


def _shared_workdir(request: TrainRequest, folder: Path | None) -> str | Path | None:
    """Return the folder or address of all folds."""
    return request.workdir if request.workdir and is_address(request.workdir) else folder or request.workdir


def cross_validate(
    request: TrainRequest,
    folds: int,
    group: str | None,
    run_plan: Callable[[Plan], Any],
    say: Say = lambda line: None,
) -> CrossValidation:
    """Train on each fold in turn, or resume, and summarise the test results.

    With several processes all must call this together.

    Args:
        request: the runs; its data are pooled and divided into folds.
        folds: number of folds.
        group: column whose images stay together, "none", or None to choose it by its name.
        run_plan: trains a plan to its end or resumes it, such as `loop.fit`.
        say: called with each line of progress.

    Raises:
        ValueError: for too few images or groups, or if the folder holds something else.
    """
    request, column = prepare(request, group, say)
    folder: Path | None = None
    folders: list[Path] = []
    class_names: Sequence[str] = ()
    address = chance_advice = ""
    for index in range(1, folds + 1):
        plan = fold_plan(request, Fold(index, folds, column), folder, say)
        if folder is None:
            folder = plan.folder.parent
            processes.run_on_primary(partial(require_folder, folder))
            if plan.address:
                processes.run_on_primary(partial(require_no_run, parent_of(plan.address)))
        say(f"Fold {index} of {folds}")
        run_plan(plan)
        folders.append(plan.folder)
        class_names, address = plan.dataset.class_names, plan.address
        chance_advice = advise_training(plan.init is not None, plan.config.head)
        del plan  # and its images, up to gigabytes
    assert folder is not None
    results = [processes.run_on_primary(partial(read_test_result, each)) for each in folders]
    accuracies = tuple(result["accuracy"] for result in results)
    result = CrossValidation(accuracies, pool_results(results, class_names), folder, column)
    processes.run_on_primary(lambda: write_summary(result))
    summary = str(folder / SUMMARY)
    if address:
        summary = join_address(parent_of(address), SUMMARY)
        processes.run_on_primary(lambda: objects.write(summary, (folder / SUMMARY).read_bytes()))
    for line in describe(result, summary, chance_advice):
        say(line)
    return result


def require_folder(folder: Path) -> None:
    """Raise ValueError unless a folder is new, empty, or holds the runs of a cross-validation only."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; --workdir takes a folder")
    if (folder / runs.CONFIG).exists():
        raise ValueError(f"{folder}: holds a single run; choose another --workdir for the folds")
    others = (
        [path.name for path in folder.iterdir() if path.name != SUMMARY and not path.name.startswith(".")]
        if folder.exists()
        else []
    )
    if others and not any(name.startswith("fold") for name in others):
        raise ValueError(f"{folder}: is not empty and holds no folds; choose another --workdir")


def read_test_result(folder: Path) -> dict[str, Any]:
    """Return the metrics of the test split that a finished run has written."""
    return runs.read_split_result(folder, "test")


def pool_results(results: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Metrics:
    """Return the metrics over the examples of several results together.

    Args:
        results: the JSON of metrics on disjoint test splits.
        class_names: one name per class.
    """
    examples = np.array([result["examples"] for result in results])
    confusion = reduce(np.add, (confusion_from_json(result["confusion"]) for result in results))
    support = np.sum([[row["support"] for row in result["per_class"]] for result in results], axis=0)

    def total(name: str) -> float:
        return float(sum(result[name] * count for result, count in zip(results, examples, strict=True)))

    sums = {
        "loss": total("loss"), "weight": examples.sum(), "top1": round(total("accuracy")), "top5": round(total("top5")),
        "confusion": confusion, "invalid": support - confusion.sum(axis=1),
    }  # fmt: skip
    return summarise(sums, class_names)


def write_summary(result: CrossValidation) -> None:
    """Write summary.json, the last file of a cross-validation."""
    write_atomically(result.folder / SUMMARY, json.dumps(result.to_json(), indent=1) + "\n")


def describe(result: CrossValidation, summary: str, chance_advice: str) -> list[str]:
    """Return lines on a cross-validation.

    Args:
        result: its result.
        summary: path or address of its summary.json.
        chance_advice: what to try if the result is no better than chance.
    """
    metrics = result.metrics
    lines = [
        f"{len(result.accuracies)} folds: accuracy {100 * result.mean:.2f} ± {100 * result.std:.2f} % (mean ± standard "
        f"deviation; {', '.join(f'{100 * accuracy:.2f}' for accuracy in result.accuracies)})",
        f"all images: accuracy {format_accuracy(metrics.accuracy, metrics.examples)}  loss {metrics.loss:.4f}  "
        f"macro F1 {metrics.macro_f1:.4f}",
        *describe_evidence(metrics, "Collect more images.", chance_advice),
        f"summary: {summary}; to train on all but a test split, repeat the command without --folds",
    ]  # fmt: skip
    return lines
