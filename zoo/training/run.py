"""A run: a folder that holds everything about one training, and can be continued from whatever moment it was killed at.

config.json        model, data and recipe; versions, command line, git revision
metrics.jsonl      one row per evaluation (no times in it: the same run gives the same bytes)
events.out.…       the same for TensorBoard
checkpoints/       the whole state, the newest few commits
best/              the checkpoint to use: card and arrays
results.json       written last: the run is finished
curves.png, confusion.png, timing.jsonl
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.checkpoint.format import upgrade_names
from zoo.files import sync_folder
from zoo.training.recipe import Recipe, recipe_from_json

MICRO_BATCH = "recipe.micro_batch"  # in a config's identity
CONFIG, METRICS, RESULTS, TIMING = "config.json", "metrics.jsonl", "results.json", "timing.jsonl"
STATE, BEST, LOCK = "state", "best", ".lock"


@dataclass(frozen=True)
class Config:
    """What a run is: two runs with equal configs give the same bits (on the same machine and versions)."""

    model: str
    fields: dict[str, Any]
    data: str
    recipe: Recipe
    limit: int = 0
    fingerprint: str = ""
    """Of the training and validation data: the same name may come to mean other data."""
    data_dir: str | None = None
    """Where the data lies; not part of what the run is."""
    init: str | None = None
    """The checkpoint that training starts from, as it was asked for; not part of what the run is."""
    init_digest: str | None = None
    """Of what training takes from it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "fields": self.fields},
            "data": {
                "source": self.data,
                "limit": self.limit,
                "fingerprint": self.fingerprint,
                "dir": self.data_dir,
            },
            "init": None if self.init is None else {"from": self.init, "sha256": self.init_digest},
            "recipe": dataclasses.asdict(self.recipe),
        }

    def identity(self) -> dict[str, Any]:
        """Flat and comparable: {"recipe.epochs": 20.0, …}, without what does not change the result."""
        whole = json.loads(json.dumps(self.to_json()))
        del whole["data"]["dir"], whole["recipe"]["source"]
        flat = {"model": whole["model"]["name"]}
        if whole["init"]:
            flat["init"] = whole["init"]["sha256"]
        for part in ("data", "recipe"):
            flat |= {f"{part}.{key}": value for key, value in whole[part].items()}
        return flat | {f"model.{key}": value for key, value in whole["model"]["fields"].items()}

    def default_name(self) -> str:
        """model-data-hash: another seed or learning rate is another run."""
        last = Path(self.data).stem if Path(self.data).exists() else self.data.split(":", 1)[-1]
        data = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower() or "data"
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.model}-{data}-{digest}"


def config_from_json(data: Any, where: str) -> Config:
    """The config in parsed JSON; ValueError naming `where` if it is none."""
    try:
        model, source, init = data["model"], data["data"], data["init"] or {}
        recipe = recipe_from_json(upgrade_names("recipe", data["recipe"]))  # of format 1, perhaps
        return Config(
            model["name"], dict(model["fields"]), source["source"], recipe, source["limit"], source["fingerprint"],
            source["dir"], init.get("from"), init.get("sha256"),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: is not the config of a run ({error})") from None


def read_config(file: str | Path) -> Config:
    """The config in RUN/config.json. FileNotFoundError, ValueError if it is not there or not one."""
    file = Path(file)
    if file.is_dir():
        file = file / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: there is no such config") from None
    except ValueError:
        raise ValueError(f"{file}: is not JSON") from None
    return config_from_json(data, str(file))


def folder_of(workdir: str | Path | None, config: Config) -> Path:
    """Where a run of this configuration is, or would be."""
    return Path(workdir) if workdir else Path("runs") / config.default_name()


def open_folder(workdir: str | Path | None, config: Config, command: str, but: Sequence[str] = ()) -> Path:
    """The run's folder, made or found. ValueError listing the differences if it holds another configuration.

    but: what of the identity may differ.
    """
    path = folder_of(workdir, config)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file; --workdir takes a folder")
    if (path / CONFIG).exists():
        require_same_run(path, config, but)
        return path
    leftovers = {f".{CONFIG}.tmp", LOCK}  # of a kill before the config was there
    if path.exists() and any(part.name not in leftovers for part in path.iterdir()):
        raise ValueError(f"{path}: is not empty and not a run; give another --workdir")
    path.mkdir(parents=True, exist_ok=True)
    made = {"command": command, "git": git_revision(), "versions": versions()}
    write_atomically(path / CONFIG, json.dumps({**config.to_json(), "made_with": made}, indent=1) + "\n")
    return path


def require_same_run(path: Path, config: Config, but: Sequence[str] = ()) -> None:
    """ValueError listing the differences, those in `but` aside, where the folder holds another run than `config`."""
    new, old = ({k: v for k, v in c.identity().items() if k not in but} for c in (config, read_config(path)))
    if lines := differences(new, old):
        further = f"; to train its result further, --init {path / BEST}" if (path / BEST).exists() else ""
        raise ValueError(f"{path} holds another run; {'; '.join(lines)}. Give another --workdir, or none{further}")


def change_micro_batch(folder: Path, size: int) -> None:
    """Write another micro-batch into the config of a run that has not begun to train; for who holds its lock."""
    file = folder / CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["recipe"]["micro_batch"] != size:
        config["recipe"]["micro_batch"] = size
        write_atomically(file, json.dumps(config, indent=1) + "\n")


def differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """A line for each key whose value differs: "recipe.seed is 1 here, 0 there"."""
    absent = "absent"
    keys = sorted(set(new) | set(old))
    return [f"{k} is {new.get(k, absent)} here, {old.get(k, absent)} there" for k in keys if new.get(k) != old.get(k)]


def write_atomically(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    sync_folder(file.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run's folder; ValueError if another is there (on systems that have such locks)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another process is training in this folder") from None
        yield


def note_timing(folder: Path, first: int, last: int, batch_size: int, seconds: float) -> None:
    """Append a line on the steps first..last, compilation and evaluation included, and the machine they ran on."""
    import jax

    device = jax.devices()[0].device_kind
    row = {
        "steps": [first, last],
        "seconds": round(seconds, 1),
        "images_per_second": round((last - first) * batch_size / max(seconds, 1e-9), 1),
        "device": device + (f", {os.cpu_count()} cores" if device == "cpu" else ""),
    }
    with open(folder / TIMING, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("jax-model-zoo", "jax", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """The commit of the code that runs, with "+changes" where the tree differs; None outside of a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass
class Progress:
    """What decides the future of a run beside the arrays; saved in the same commit."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: list[float] | None = None
    """What `monitor` compares: larger is better, element by element."""
    evals_without_improvement: int = 0
    """Evaluations in a row without a better score."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the training steps since the last evaluation."""
    stopped: str = ""
    """Why training is over; empty while it is not."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Logs:
    """metrics.jsonl and TensorBoard events, cut back to `rows` when a run goes on."""

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]]):
        self.folder, self.file = folder, folder / METRICS
        rows = list(rows)
        write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in rows))
        self.last = rows[-1]["step"] if rows else None
        self.writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # Events after the last row that stands are another life's: TensorBoard is told to forget them.
            purge = 0 if self.last is None else self.last + 1
            self.writer = SummaryWriter(str(self.folder), purge_step=purge, flush_secs=10)
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("step", "epoch", "best"):
                split, _, metric = key.partition("_")
                tag = f"{metric}/{split}" if split in ("train", "validation") else key
                self.writer.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
