"""The folder of a training run, which can be resumed after a kill at any moment.

config.json        model, data and recipe; versions, command line and git revision with their hash
metrics.jsonl      one row per evaluation (without times: the same run gives the same bytes)
events.out.…       the same for TensorBoard
state/             the latest saves of the whole training state
best/              the checkpoint to use: card and arrays
results.json       written last: the run is finished
trackers.json      the run's place in W&B or MLflow, if it has one (`--log`)
curves.png, confusion.png
timing.jsonl       one row per session: steps, seconds, images per second, device
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import checkpoint
from zoo.addresses import is_address, join_address, parse_address
from zoo.checkpoint import schema
from zoo.checkpoint.format import upgrade_names
from zoo.checkpoint.manifest import FORMAT, MAX_JSON, require_readable
from zoo.checkpoint.remote import RUN_CONFIG
from zoo.checkpoint.run_state import latest_save
from zoo.checkpoint.schema import parse_json
from zoo.data.folds import Fold
from zoo.files import locked, read_bounded, write_atomically
from zoo.stores import objects
from zoo.text import escape, one_line
from zoo.training.recipe import Recipe, recipe_from_json, recipe_to_json

CONFIG, BEST = RUN_CONFIG, checkpoint.BEST
METRICS, RESULTS, TIMING = "metrics.jsonl", "results.json", "timing.jsonl"
STATE, LOCK = "state", ".lock"

#: Name of the state folder in runs of format 1.
STATE_OF_FORMAT_1 = "checkpoints"

#: Number of differences that a message lists.
MAX_DIFFERENCES = 3

#: What a difference between two hashes means.
_HASHED = {
    "data.fingerprint": "the images or labels of the data differ",
    "init": "it started from another checkpoint",
}

#: Key of the micro-batch in the identity of a run.
MICRO_BATCH = "recipe.micro_batch"


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run. Runs of equal configuration give the same bits on the same machine and versions.

    Attributes:
        model: name in MODELS.
        fields: the fields that define the model's function.
        data: name of the data set.
        recipe: the hyperparameters.
        limit: maximum number of records per split; 0 for all.
        fingerprint: sha256 of the training and validation data, since a name may come to mean other data.
        data_dir: folder of TensorFlow Datasets; not part of the identity.
        init: name of the initial checkpoint; not part of the identity.
        init_digest: sha256 of what training takes from the initial checkpoint.
        fold: the fold of a cross-validation, whose test split is not trained on; None for the splits of the data.
        head: "linear" if only a linear head was fitted to frozen features (`zoo train --quick`); the recipe then has no
            other part than `class_weights`.
    """

    model: str
    fields: dict[str, Any]
    data: str
    recipe: Recipe
    limit: int = 0
    fingerprint: str = ""
    data_dir: str | None = None
    init: str | None = None
    init_digest: str | None = None
    fold: Fold | None = None
    head: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "fields": self.fields},
            "data": {
                "source": self.data,
                "limit": self.limit,
                "fingerprint": self.fingerprint,
                "dir": self.data_dir,
                **(self.fold.to_json() if self.fold else {}),
            },
            "init": None if self.init is None else {"from": self.init, "sha256": self.init_digest},
            "recipe": {"class_weights": self.recipe.class_weights} if self.head else recipe_to_json(self.recipe),
            **({"head": self.head} if self.head else {}),
            "format": FORMAT,
        }

    def identity(self) -> dict[str, Any]:
        """Return everything that changes the result, flat: {"recipe.epochs": 20.0, …}."""
        nested = json.loads(json.dumps(self.to_json()))
        del nested["data"]["dir"]
        nested["recipe"].pop("source", None)
        flat = {"model": nested["model"]["name"]}
        if self.head:
            flat["head"] = self.head
        if nested["init"]:
            flat["init"] = nested["init"]["sha256"]
        for part in ("data", "recipe"):
            flat |= {f"{part}.{key}": value for key, value in nested[part].items()}
        return flat | {f"model.{key}": value for key, value in nested["model"]["fields"].items()}

    def default_name(self) -> str:
        """Return "model-data-hash"; any change of the identity gives another name."""
        name = Path(self.data).stem if os.path.exists(self.data) else self.data.split(":", 1)[-1]
        data = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "data"
        return f"{self.model}-{data}-{_hash(self.identity())[:8]}" + (f"-{self.fold.count}-folds" if self.fold else "")


def config_from_json(data: Any, where: str) -> RunConfig:
    """Build a configuration from parsed JSON of format 1 or 2.

    Raises:
        ValueError: naming `where`, if the JSON is not a run's configuration.
    """
    try:
        version = data.get("format", 1)
        require_readable(version, where)
        model, source, init = data["model"], data["data"], data["init"] or {}
        recipe = upgrade_names("recipe", data["recipe"]) if version == 1 else data["recipe"]
        values = (
            model["name"], model["fields"], source["source"], recipe, source["limit"], source["fingerprint"],
            source["dir"], init.get("from"), init.get("sha256"),
        )  # fmt: skip
        head = data.get("head", "")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: is not the configuration of a run ({one_line(error, 200)})") from None
    for (name, (is_valid, expected)), value in zip(_CONFIG.items(), values, strict=True):
        if not is_valid(value):
            raise ValueError(f"{where}: {name!r} is not {expected}")
    if not schema.is_text(head):
        raise ValueError(f"{where}: 'head' is not a text")
    try:
        name, fields, data_name, recipe_fields, limit, fingerprint, data_dir, start, digest = values
        return RunConfig(
            name, fields, data_name, recipe_from_json(recipe_fields), limit, fingerprint, data_dir, start, digest,
            Fold.from_json(source), head,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: {one_line(error)}") from None


def _is_optional_text(value: Any) -> bool:
    return value is None or schema.is_text(value)


#: Checks of the attributes of a RunConfig in its JSON, in their order.
_CONFIG: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.name": (schema.is_text, "a name"),
    "model.fields": (schema.is_fields, "a table of numbers, words and lists of them"),
    "data.source": (schema.is_text, "a name"),
    "recipe": (schema.is_record, "a table"),
    "data.limit": (schema.is_integer, "a whole number"),
    "data.fingerprint": (schema.is_text, "a text"),
    "data.dir": (_is_optional_text, "a folder or null"),
    "init.from": (_is_optional_text, "a name or null"),
    "init.sha256": (_is_optional_text, "a text or null"),
}


def read_config(file: str | Path) -> RunConfig:
    """Read the configuration of a run from its folder or its config.json, on disk or at an address.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a run's configuration.
    """
    if is_address(file):
        address = parse_address(file)
        address = address if address.endswith(".json") else join_address(address, CONFIG)
        return config_from_json(parse_json(objects.read(address), address), address)
    file = Path(file)
    if file.is_dir():
        file = file / CONFIG
    try:
        data = parse_json(read_bounded(file, MAX_JSON), str(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such configuration") from None
    return config_from_json(data, str(file))


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the command, git revision and versions that a run's configuration records.

    Raises:
        ValueError: naming the file, if it has no such record, or not the one that was written. Cards repeat it, and a
            damaged card would be valid. Runs from before there was a hash are believed.
    """
    file = folder / CONFIG
    data = parse_json(read_bounded(file, MAX_JSON), str(file))
    made_with = data.get("made_with") if isinstance(data, dict) else None
    if not isinstance(made_with, dict) or not isinstance(made_with.get("versions"), dict):
        raise ValueError(f"{file}: does not record the command and versions of the run")
    made_with = dict(made_with)
    digest = made_with.pop("sha256", None)
    if digest not in (None, _hash(made_with)):
        raise ValueError(
            f"{file}: 'made_with' (command and versions) has changed since it was written: restore it from a copy. "
            "If you edited it, remove its 'sha256'"
        )
    return {"command": made_with.get("command", ""), "git": made_with.get("git"), "versions": made_with["versions"]}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- the folder ------------------------------------------------------------------------------------------------------


def run_folder(workdir: str | Path | None, config: RunConfig, parent: str | Path = "runs") -> Path:
    """Return the folder of a run: `workdir` or one in `parent`, named after the configuration; a fold has one in it."""
    folder = Path(workdir) if workdir else Path(parent) / config.default_name()
    return folder / f"fold{config.fold.index}" if config.fold else folder


def open_folder(path: Path, config: RunConfig, command: str) -> Path:
    """Create the folder of a run, or open an existing one of the same configuration.

    Raises:
        ValueError: listing the differences, if the folder holds another run, or naming it, if it is not a run.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file; --workdir takes a folder")
    if (path / CONFIG).exists():
        require_same_run(path, config)
        read_origin(path)  # now rather than in the first evaluation
        return path
    leftovers = {f".{CONFIG}.tmp", LOCK}  # of a process killed before it wrote the configuration
    if (path / "fold1" / CONFIG).exists():
        raise ValueError(f"{path}: holds the folds of a cross-validation; add --folds, or choose another --workdir")
    if path.exists() and any(part.name not in leftovers for part in path.iterdir()):
        raise ValueError(f"{path}: is not empty and not a run; choose another --workdir")
    made_with: dict[str, Any] = {"command": command, "git": git_revision(), "versions": versions()}
    made_with["sha256"] = _hash(made_with)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / CONFIG, json.dumps({**config.to_json(), "made_with": made_with}, indent=1) + "\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{path}: cannot be written ({reason}); choose another folder with --workdir") from None
    return path


def upgrade_folder(path: Path) -> None:
    """Rename the state folder of a format 1 run. The caller holds the run's lock."""
    if (path / STATE_OF_FORMAT_1).is_dir() and not (path / STATE).exists():
        (path / STATE_OF_FORMAT_1).rename(path / STATE)


def lock_folder(path: Path) -> AbstractContextManager:
    """Return a context in which no other process can train in the run's folder."""
    return locked(path / LOCK, f"{path}: another process is training in this folder")


def has_saved_state(path: Path) -> bool:
    """Return True if the run has saved its state at least once."""
    return any(latest_save(path / name) is not None for name in (STATE, STATE_OF_FORMAT_1))


def recorded_micro_batch(path: Path) -> int | None:
    """Return the micro-batch that a run uses; None if it has not begun, so that another may still be chosen."""
    if not (path / CONFIG).exists():
        return None
    micro_batch = read_config(path).recipe.micro_batch
    return micro_batch if micro_batch or has_saved_state(path) else None


def is_finished(path: Path) -> bool:
    """Return True if the run has written its results. A damaged or empty file counts as none: it is written again."""
    try:
        read_results(path)
    except (OSError, ValueError):
        return False
    return True


def require_same_run(path: Path, config: RunConfig) -> None:
    """Raise ValueError listing the differences if the folder holds another run than `config`.

    The micro-batch may differ until the run has saved its state: a run that did not fit into memory has lost nothing.
    The path of the data may differ if it leads to the same place, or does so as far as can be seen from another folder.
    """
    recorded = read_config(path)
    ignored = set() if has_saved_state(path) or is_finished(path) else {MICRO_BATCH}
    if config.fingerprint == recorded.fingerprint and _same_place(config.data, recorded.data):
        ignored.add("data.source")
    new, old = ({key: value for key, value in c.identity().items() if key not in ignored} for c in (config, recorded))
    if lines := differences(new, old):
        if len(lines) > MAX_DIFFERENCES:
            lines = [*lines[:MAX_DIFFERENCES], f"and {len(lines) - MAX_DIFFERENCES} other differences"]
        further = f"; to train its result further, use --init {path / BEST}" if (path / BEST).exists() else ""
        if all(key.startswith(("recipe.", "model.")) for key in {*new, *old} if new.get(key) != old.get(key)):
            further += f"; `zoo train --config {path / CONFIG} --workdir {path}` resumes it as it was begun"
        raise ValueError(f"{path} holds another run: {'; '.join(lines)}. Choose another --workdir, or none{further}")


def _same_place(path: str, recorded: str) -> bool:
    """Return True if both are one file or folder; of a recorded path that is not here, only the name is compared."""
    if not os.path.exists(path):
        return path == recorded
    if os.path.exists(recorded):
        return os.path.samefile(path, recorded)
    return Path(recorded).name in (Path(path).name, Path(path).resolve().name)


def record_micro_batch(path: Path, micro_batch: int) -> None:
    """Write the micro-batch into the configuration of a run that has not begun. The caller holds the run's lock."""
    file = path / CONFIG
    config = parse_json(read_bounded(file, MAX_JSON), str(file))
    if config["recipe"]["micro_batch"] != micro_batch:
        config["recipe"]["micro_batch"] = micro_batch
        write_atomically(file, json.dumps(config, indent=1) + "\n")


def differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Return a line for each key whose value differs: "recipe.seed is 1, not 0". Model and data come first."""
    keys = sorted({*new, *old}, key=lambda key: (key != "model", key != "data.source", key == "data.fingerprint", key))

    def value(of: dict[str, Any], key: str) -> str:
        text = str(of.get(key, "absent"))
        return text if len(text) <= 40 else f"{text[:39]}…"

    return [
        _HASHED[key] if key in _HASHED and key in old and key in new
        else f"{key} is {value(old, key)}, not {value(new, key)}"
        for key in keys if new.get(key) != old.get(key)
    ]  # fmt: skip


def append_timing(path: Path, first: int, last: int, batch_size: int, seconds: float) -> None:
    """Append a row on the steps first..last, including compilation and evaluation, and the device they ran on."""
    import jax

    device = jax.devices()[0].device_kind
    row = {
        "steps": [first, last],
        "seconds": round(seconds, 1),
        "images_per_second": round((last - first) * batch_size / max(seconds, 1e-9), 1),
        "device": device + (f", {os.cpu_count()} cores" if device == "cpu" else ""),
    }
    with open(path / TIMING, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Return the contents of results.json: "stopped", "best_step", and the metrics of each held-out split.

    Raises:
        OSError: the file cannot be read.
        ValueError: naming the file, if it does not hold the results of a run.
    """
    file = path / RESULTS
    results = parse_json(read_bounded(file, MAX_JSON), str(file))
    valid = schema.is_metrics(results) and schema.is_integer(results.get("best_step"))
    if not valid or not schema.is_text(results.get("stopped")):
        raise ValueError(f"{file}: does not hold the results of a run")
    return dict(results)


def read_split_result(path: Path, split: str) -> dict[str, Any]:
    """Return the metrics of one split in results.json, as `Metrics.to_json` gave them.

    Raises:
        OSError: the file cannot be read.
        ValueError: naming the file, if it does not hold these metrics.
    """
    result = read_results(path).get(split) or {}
    is_whole = all(isinstance(result.get(name), list) for name in ("confusion", "per_class"))
    if not is_whole or not _are_numbers(result.get(name) for name in ("accuracy", "loss", "top5", "examples")):
        raise ValueError(f"{path / RESULTS}: does not hold the metrics of the {split} split")
    return dict(result)


def read_best_score(path: Path, metric: str) -> float:
    """Return a validation metric of the best checkpoint of a finished run, from metrics.jsonl.

    Raises:
        OSError: a file cannot be read.
        ValueError: naming the file, if it does not hold the metric.
    """
    step = read_results(path)["best_step"]
    value = next((row.get(f"validation_{metric}") for row in read_history(path) if row["step"] == step), None)
    if value is None:
        raise ValueError(f"{path / METRICS}: does not hold the validation {metric} of step {step:,}, the best one")
    return float(value)


def read_timing(path: Path) -> list[dict[str, Any]]:
    """Return the rows of timing.jsonl, one for each process that trained the run; [] without the file.

    Raises:
        ValueError: naming the file, if a line is not a row of `append_timing`.
    """
    try:
        rows = _read_lines(path / TIMING)
    except FileNotFoundError:
        return []
    for number, row in enumerate(rows, 1):
        steps = row["steps"] if isinstance(row.get("steps"), list) else []
        numbers = [*steps, row.get("seconds"), row.get("images_per_second")]
        if len(steps) != 2 or not _are_numbers(numbers) or not schema.is_text(row.get("device")):
            names = "steps, seconds, images_per_second and device"
            raise ValueError(f"{path / TIMING}, line {number}: is not a row of {names}")
    return rows


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl.

    Raises:
        ValueError: naming the file, if a line is not a row of numbers with its step.
    """
    rows = _read_lines(path / METRICS)
    for number, row in enumerate(rows, 1):
        if not schema.is_integer(row.get("step")) or not _are_numbers(v for v in row.values() if v is not None):
            raise ValueError(f"{path / METRICS}, line {number}: is not a row of numbers with its step")
    return rows


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one a line."""
    rows = []
    for number, line in enumerate(read_bounded(file, MAX_JSON).splitlines(), 1):
        row = parse_json(line, f"{file}, line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: is not a JSON object")
        rows.append(row)
    return rows


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("jax-model-zoo", "jax", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def git_revision() -> str | None:
    """Return the commit of the running code, with "+changes" if the tree is modified; None outside a git checkout."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(source)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass
class Progress:
    """The part of a run's state that is not arrays; saved together with them.

    Attributes:
        step: number of steps done.
        history: the rows of metrics.jsonl.
        best_step: step of the best evaluation.
        best_score: its score, compared element by element; larger is better.
        evals_without_improvement: consecutive evaluations without a better score.
        sums: training metrics summed since the last evaluation.
        stopped: the reason why training ended; "" while it runs.
        evaluation_due: True if the evaluation after `step` was interrupted and is still to be done.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: list[float] | None = None
    evals_without_improvement: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    evaluation_due: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields themselves: copying a long history would take longer than writing it."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        if not self.evaluation_due:  # unknown to earlier versions
            del fields["evaluation_due"]
        return fields

    def copy(self) -> "Progress":
        """Return a copy that does not change when training goes on; rows of the history never do."""
        return dataclasses.replace(self, history=list(self.history), sums=dict(self.sums))

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "progress.json") -> "Progress":
        """Build the progress from JSON of format 1 or 2.

        Raises:
            ValueError: naming a field that is unknown or of another type.
        """
        if not isinstance(data, dict):
            raise ValueError(f"{where}: is not a table")
        if "stale" in data:  # format 1
            data = {**data, "evals_without_improvement": data["stale"]}
            del data["stale"]
        for name, value in data.items():
            if name not in _PROGRESS or not _PROGRESS[name](value):
                raise ValueError(f"{where}: {escape(name)!r:.80} is unknown or of another type")
        return cls(**data)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


#: Checks of the fields of Progress.
_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "step": schema.is_integer,
    "history": lambda rows: isinstance(rows, list) and all(map(schema.is_record, rows)),
    "best_step": schema.is_integer,
    "best_score": lambda score: score is None or (isinstance(score, list) and _are_numbers(score)),
    "evals_without_improvement": schema.is_integer,
    "sums": lambda sums: schema.is_record(sums) and _are_numbers(sums.values()),
    "stopped": schema.is_text,
    "evaluation_due": lambda value: isinstance(value, bool),
}


class Logs:
    """Writer of metrics.jsonl and TensorBoard events, truncated to `rows` when a run resumes.

    Args:
        folder: folder of the run.
        rows: the rows so far.
        track: gets rows that are added, and those so far.
    """

    def __init__(
        self, folder: Path, rows: Iterable[dict[str, Any]], track: Callable[[list[dict[str, Any]]], Any] | None = None
    ):
        self.folder, self.file, self.track = folder, folder / METRICS, track
        rows = list(rows)
        write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in rows))
        self.last = rows[-1]["step"] if rows else None
        self.writer: Any = None
        if track is not None:
            track(rows)

    def add(self, row: dict[str, Any]) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # Tell TensorBoard to drop events that an earlier process wrote after the last saved row.
            purge = 0 if self.last is None else self.last + 1
            self.writer = SummaryWriter(str(self.folder), purge_step=purge, flush_secs=10)
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("step", "epoch", "best"):
                split, _, metric = key.partition("_")
                tag = f"{metric}/{split}" if split in ("train", "validation") else key
                self.writer.add_scalar(tag, value, row["step"])
        if self.track is not None:
            self.track([row])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
