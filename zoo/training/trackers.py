"""Experiment trackers: rows, configuration and results of a run in Weights & Biases or MLflow as well.

A tracker repeats what the run's folder holds, so it decides nothing: a run that is resumed, with the same trackers or
others, continues the same run there and gets the rows that are missing.
"""

import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zoo.checkpoint.manifest import MAX_JSON
from zoo.checkpoint.schema import parse_json
from zoo.files import read_bounded, write_atomically
from zoo.suggest import did_you_mean
from zoo.text import first_line
from zoo.training import run as runs

#: File in the folder of a run: tracker -> {"id", "step", "finished"}.
STATE = "trackers.json"
#: Project of W&B and experiment of MLflow, unless the environment names another.
PROJECT = "jax-model-zoo"
#: Files of a run that a tracker gets beside its best checkpoint.
FILES = (runs.CONFIG, runs.METRICS, runs.RESULTS, "curves.png", "confusion.png", "report.html")
#: Parameters that MLflow takes at once.
MAX_PARAMS = 100
#: Keys of a row that are no metrics.
NOT_METRICS = ("step", "epoch", "best")


class Tracker(Protocol):
    """A run in an experiment tracker.

    Attributes:
        id: identifies the run when it is resumed.
        where: a line on where it is and how to open it.
    """

    id: str
    where: str

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of a step."""

    def finish(self, summary: Mapping[str, float], folder: Path) -> None:
        """Add final metrics, the files of the run's folder and its best checkpoint, and end the run."""

    def interrupt(self) -> None:
        """End the run as one that was interrupted or failed."""


class WandbTracker:
    """A run of Weights & Biases. WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_DIR have their usual meaning."""

    def __init__(self, folder: Path, config: Mapping[str, Any], name: str, group: str, run_id: str):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, id=run_id or secrets.token_hex(4), resume="allow",
            name=name, group=group or None, dir=os.environ.get("WANDB_DIR") or str(folder.resolve()),
            config=dict(config), settings=wandb.Settings(console="off", save_code=False, silent=True),
        )  # fmt: skip
        self.id = self.run.id
        files = Path(self.run.dir).parent
        offline = self.run.settings.mode == "offline"
        self.where = f"{files}; upload it with `wandb sync {files}`" if offline else str(self.run.url)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], folder: Path) -> None:
        import wandb

        self.run.summary.update(dict(summary))
        checkpoint = wandb.Artifact(f"checkpoint-{self.id}", type="model")
        for file in (folder / runs.BEST).rglob("*"):
            if file.is_file():
                checkpoint.add_file(str(file), file.relative_to(folder / runs.BEST).as_posix())
        files = wandb.Artifact(f"files-{self.id}", type="results")
        for file in existing_files(folder):
            files.add_file(str(file))
        for artifact in (checkpoint, files):
            self.run.log_artifact(artifact)
        self.run.finish()

    def interrupt(self) -> None:
        self.run.finish(exit_code=1)


class MlflowTracker:
    """A run of MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME have their usual meaning."""

    def __init__(self, folder: Path, config: Mapping[str, Any], name: str, group: str, run_id: str):
        import mlflow

        address = mlflow.get_tracking_uri()
        self.client = mlflow.MlflowClient(tracking_uri=address)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        if run_id:
            self.id = run_id
            self.client.update_run(run_id, status="RUNNING")
        else:
            found = self.client.get_experiment_by_name(experiment)
            place = found.experiment_id if found else self.client.create_experiment(experiment)
            tags = {"group": group} if group else {}
            self.id = self.client.create_run(place, run_name=name, tags=tags).info.run_id
            params = [mlflow.entities.Param(key, value) for key, value in flatten_config(config).items()]
            for start in range(0, len(params), MAX_PARAMS):
                self.client.log_batch(self.id, params=params[start : start + MAX_PARAMS])
        self.where = f"run {self.id} of experiment {experiment}; `mlflow ui --backend-store-uri {address}`"

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def finish(self, summary: Mapping[str, float], folder: Path) -> None:
        self.add(0, summary)
        self.client.log_artifacts(self.id, str(folder / runs.BEST), "checkpoint")
        for file in existing_files(folder):
            self.client.log_artifact(self.id, str(file))
        self.client.set_terminated(self.id)

    def interrupt(self) -> None:
        self.client.set_terminated(self.id, "KILLED")


#: name -> (package to install, its tracker).
TRACKERS: dict[str, tuple[str, Callable[..., Tracker]]] = {
    "wandb": ("wandb", WandbTracker),
    "mlflow": ("mlflow", MlflowTracker),
}


def parse_trackers(names: str | Sequence[str], where: str = "--log") -> tuple[str, ...]:
    """Return the names of trackers, each once, from "wandb", "wandb,mlflow" or a list of names.

    Raises:
        ValueError: for an unknown name.
        ImportError: if the package of one is not installed.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    chosen = tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
    for name in chosen:
        if name not in TRACKERS:
            hint = did_you_mean(name, list(TRACKERS)) or f"choose from {', '.join(TRACKERS)}"
            raise ValueError(f"{where} {name}: {hint}; TensorBoard's files are always written")
        package = TRACKERS[name][0]
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{where} {name}: {package} is not installed; type pip install 'jax-model-zoo[{name}]'")
    return chosen


class Tracking:
    """The trackers of a run. One that fails is reported once and left out; the training goes on.

    Args:
        names: names in TRACKERS.
        folder: folder of the run.
        say: prints a line.
        is_fold: True for a fold of a cross-validation: it is grouped with the others.

    Raises:
        ValueError: if a tracker cannot be started.
    """

    def __init__(self, names: Sequence[str], folder: Path, say: Callable[[str], Any], is_fold: bool = False):
        self.folder, self.say = folder, say
        self.trackers: dict[str, Tracker] = {}
        self.state = read_state(folder) if names else {}
        group = folder.resolve().parent.name if is_fold else ""
        run_name = f"{group}-{folder.name}" if group else folder.resolve().name
        for name in names:
            before = self.state.get(name, {"id": "", "step": -1, "finished": False})
            if before["finished"]:
                say(f"{name}: this run was logged before (run {before['id']})")
                continue
            config = parse_json(read_bounded(folder / runs.CONFIG, MAX_JSON), str(folder / runs.CONFIG))
            try:
                tracker = TRACKERS[name][1](folder, config, run_name, group, before["id"])
            except Exception as error:  # its package may raise anything: no login, no network, another version
                self.interrupt()
                raise ValueError(f"--log {name}: {first_line(error):.300}") from None
            self.trackers[name], self.state[name] = tracker, {**before, "id": tracker.id}
            self._write()
            say(f"{name}: {tracker.where}")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add those rows of metrics.jsonl that the trackers do not have yet."""
        for row in rows if self.trackers else ():
            step, values = int(row["step"]), metrics_of(row)
            behind = [name for name in self.trackers if step > self.state[name]["step"]]
            for name in behind:
                if self._try(name, "add", step, values):
                    self.state[name]["step"] = step
            if behind:
                self._write()

    def finish(self) -> None:
        """Add results, files and the best checkpoint of the finished run."""
        if not self.trackers:
            return
        summary = summary_of(runs.read_results(self.folder))
        for name in list(self.trackers):
            if self._try(name, "finish", summary, self.folder):
                self.state[name]["finished"] = True
                del self.trackers[name]
        self._write()

    def interrupt(self) -> None:
        """End the runs that are not finished, so that they can be resumed."""
        for name in list(self.trackers):
            self._try(name, "interrupt")
        self.trackers.clear()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *error: object) -> None:
        self.interrupt()

    def _try(self, name: str, method: str, *arguments: Any) -> bool:
        """Call a method of a tracker; report its failure and leave the tracker out from then on."""
        try:
            getattr(self.trackers[name], method)(*arguments)
        except Exception as error:
            self.say(f"{name}: no longer logged: {first_line(error):.200}. Repeat the command later to log the rest.")
            del self.trackers[name]
            return False
        return True

    def _write(self) -> None:
        write_atomically(self.folder / STATE, json.dumps(self.state, indent=1) + "\n")


def read_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the trackers that a run has used: name -> {"id", "step", "finished"}; none from a damaged file."""
    try:
        data = parse_json(read_bounded(folder / STATE, MAX_JSON), STATE)
    except (OSError, ValueError):
        return {}
    kinds = {"id": str, "step": int, "finished": bool}
    return {
        name: entry
        for name, entry in (data.items() if isinstance(data, dict) else ())
        if name in TRACKERS and isinstance(entry, dict) and {key: type(value) for key, value in entry.items()} == kinds
    }


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl, as "train/loss", "validation/accuracy", "learning_rate", …"""
    values = {}
    for key, value in row.items():
        if isinstance(value, (int, float)) and key not in NOT_METRICS:
            split, _, metric = key.partition("_")
            values[f"{split}/{metric}" if split in ("train", "validation") else key] = float(value)
    return values


def summary_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of results.json, as "best/test/accuracy", …"""
    return {
        f"best/{split}/{key}": float(value)
        for split, metrics in results.items()
        if isinstance(metrics, dict)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as {"recipe.epochs": "20.0", …}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def existing_files(folder: Path) -> list[Path]:
    """Return those of FILES that a run has."""
    return [folder / name for name in FILES if (folder / name).exists()]
