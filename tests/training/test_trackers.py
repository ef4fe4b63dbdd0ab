"""`--log`: rows, configuration and files of a run in W&B and MLflow, read back where these are installed."""

import importlib.util
import json
import struct

import numpy as np
import pytest
from helpers import run_command

import zoo
from zoo.stores import objects
from zoo.training import run as runs
from zoo.training import trackers
from zoo.training.trackers import Tracking, parse_trackers

ROWS = [
    {"step": k, "epoch": k / 2, "learning_rate": 0.5, "train_loss": 1.5 / k, "validation_accuracy": k / 8, "best": True}
    for k in (1, 2, 3, 4)
]


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run, without arrays."""
    folder = tmp_path / "my-run"
    (folder / runs.BEST / "arrays").mkdir(parents=True)
    (folder / runs.BEST / "card.json").write_text("{}")
    (folder / runs.BEST / "arrays" / "a").write_bytes(b"1")
    config = {"model": {"name": "lenet5", "fields": {"width": 1.5}}, "recipe": {"epochs": 2.0, "augment": ["flip"]}}
    (folder / runs.CONFIG).write_text(json.dumps(config))
    results = {
        "stopped": "all steps done",
        "best_step": 4,
        "test": {"accuracy": 0.75, "roc_auc": None, "per_class": []},
    }
    (folder / runs.RESULTS).write_text(json.dumps(results))
    return folder


class Recorder:
    """A tracker in memory; `broken` names methods that fail."""

    runs: dict = {}  # noqa: RUF012
    broken: set = set()  # noqa: RUF012

    def __init__(self, folder, config, name, group, run_id):
        self.id, self.where = run_id or f"id{len(self.runs)}", "nowhere"
        self.run = self.runs.setdefault(
            self.id, {"name": name, "group": group, "config": config, "rows": [], "ends": []}
        )

    def _do(self, method):
        if method in self.broken:
            raise RuntimeError(f"no network\nfor {method}")

    def add(self, step, values):
        self._do("add")
        self.run["rows"].append((step, values))

    def finish(self, summary, folder):
        self._do("finish")
        self.run["ends"].append(summary)

    def interrupt(self):
        self.run["ends"].append("interrupted")


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "runs", {})
    monkeypatch.setattr(Recorder, "broken", set())
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("numpy", Recorder))
    return Recorder


def test_a_resumed_run_continues_the_same_run_without_repeating_rows(folder, recorder):
    with pytest.raises(KeyboardInterrupt), Tracking(["wandb"], folder, print) as tracking:
        tracking.add(ROWS[:1])
        tracking.add(ROWS[1:3])
        raise KeyboardInterrupt
    lines = []
    for _ in range(2):  # the second finds it finished
        with Tracking(["wandb"], folder, lines.append) as tracking:
            tracking.add(ROWS)
            tracking.finish()
    (run,) = recorder.runs.values()
    assert [step for step, _ in run["rows"]] == [1, 2, 3, 4]
    assert run["rows"][1][1] == {"learning_rate": 0.5, "train/loss": 0.75, "validation/accuracy": 0.25}
    assert run["ends"] == ["interrupted", {"best/test/accuracy": 0.75}]
    assert run["name"] == "my-run" and run["config"]["recipe"]["epochs"] == 2.0
    assert "was logged before" in lines[-1] and len(lines) == 2


def test_a_tracker_that_fails_does_not_end_the_training(folder, recorder):
    lines = []
    recorder.broken.add("add")
    with Tracking(["wandb"], folder, lines.append, is_fold=True) as tracking:
        tracking.add(ROWS)
        tracking.finish()
    assert len(lines) == 2 and "wandb: no longer logged: no network. Repeat the command" in lines[1]
    recorder.broken.clear()
    with Tracking(["wandb"], folder, lines.append) as tracking:
        tracking.add(ROWS)
        tracking.finish()
    (run,) = recorder.runs.values()
    assert [step for step, _ in run["rows"]] == [1, 2, 3, 4] and run["group"] == folder.parent.name
    assert run["name"] == f"{folder.parent.name}-my-run"


def test_a_tracker_that_cannot_start_is_named(folder, recorder, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("numpy", fail))
    with pytest.raises(ValueError, match=r"--log mlflow: No API key configured\.$"):
        Tracking(["wandb", "mlflow"], folder, print)
    assert [run["ends"] for run in recorder.runs.values()] == [["interrupted"]]
    for damaged in ("", "[]", '{"wandb": {"id": 3}}', '{"other": {}}'):
        (folder / trackers.STATE).write_text(damaged)
        assert trackers.read_state(folder) == {}


def test_names_of_trackers(recorder, monkeypatch, capsys, tmp_path):
    assert parse_trackers("wandb, wandb") == ("wandb",) and parse_trackers("") == () and parse_trackers([]) == ()
    with pytest.raises(ValueError, match="--log wanbd: did you mean wandb"):
        parse_trackers("wanbd")
    with pytest.raises(ValueError, match=r"--log tensorboard.*always written"):
        parse_trackers("tensorboard")
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("no_such_package", Recorder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.train.start_jax", lambda: None)
    code, _, err = run_command(capsys, "train", "--data", "digits", "--model", "softmax", "--log", "wandb,mlflow")
    assert code == 2 and not list(tmp_path.iterdir())
    assert err.splitlines() == [
        "zoo train: --log mlflow: no_such_package is not installed; type pip install 'jax-model-zoo[mlflow]'"
    ]


def test_a_training_logs_its_rows_results_and_config(recorder, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    data = (images, np.arange(40) % 2)
    fitted = zoo.fit("softmax", data, epochs=2, workdir=tmp_path / "run", quiet=True, log="wandb")
    (run,) = recorder.runs.values()
    assert [step for step, _ in run["rows"]] == [row["step"] for row in fitted.history]
    assert run["rows"][-1][1]["validation/loss"] == fitted.history[-1]["validation_loss"]
    assert run["ends"][0]["best/test/accuracy"] == fitted.card.metrics["test"]["accuracy"]
    assert run["config"]["model"]["name"] == "softmax" and run["config"]["recipe"]["epochs"] == 2.0


@pytest.mark.parametrize("function", ["fit", "fit_head"])
def test_a_store_knows_that_a_run_was_logged(function, recorder):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    data, address = (images, np.arange(40) % 2), f"memory://trackers/{function}"
    if function == "fit":
        zoo.fit("softmax", data, epochs=1, workdir=address, quiet=True, log="wandb")
    else:
        zoo.fit_head(data, init="lenet5-mnist", workdir=address, quiet=True, log="wandb")
    assert json.loads(objects.read(f"{address}/{trackers.STATE}"))["wandb"]["finished"]


def twice(folder, name):
    """Log a run that is interrupted after two rows and resumed, and return its id."""
    with pytest.raises(KeyboardInterrupt), Tracking([name], folder, print) as tracking:
        tracking.add(ROWS[:2])
        raise KeyboardInterrupt
    with Tracking([name], folder, print) as tracking:
        tracking.add(ROWS)
        tracking.finish()
    return trackers.read_state(folder)[name]["id"]


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
@pytest.mark.filterwarnings("ignore")  # of MLflow's imports
def test_mlflow_reads_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    import mlflow

    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    run_id = twice(folder, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == run_id and run.info.run_name == "my-run" and run.info.status == "FINISHED"
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]
    assert history == [(row["step"], row["train_loss"]) for row in ROWS]
    assert run.data.metrics["best/test/accuracy"] == 0.75
    assert run.data.params["recipe.epochs"] == "2.0" and run.data.params["recipe.augment"] == '["flip"]'
    names = {entry.path for entry in client.list_artifacts(run_id)}
    assert names == {"checkpoint", runs.CONFIG, runs.RESULTS}
    assert {entry.path for entry in client.list_artifacts(run_id, "checkpoint")} == {
        "checkpoint/card.json", "checkpoint/arrays",
    }  # fmt: skip


def offline_records(file):
    """Yield the records of an offline run, parsed with W&B's own messages; the file has LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""  # a header of 7 bytes
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:  # the rest was never written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")  # of W&B's imports
def test_wandb_has_the_run_offline(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    run_id = twice(folder, "wandb")
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{run_id}"}
    records = [record for file in files for record in offline_records(file)]
    started = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in started} == {run_id}
    assert started[0].project == trackers.PROJECT and started[0].display_name == "my-run"
    config = {item.key: json.loads(item.value_json) for item in started[0].config.update}
    assert config["recipe"] == {"epochs": 2.0, "augment": ["flip"]}
    history = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append((row["_step"], row["train/loss"]))
    assert history == [(row["step"], row["train_loss"]) for row in ROWS]
    artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")} or {
        record.request.log_artifact.artifact.type: record.request.log_artifact.artifact
        for record in records if record.request.HasField("log_artifact")
    }  # fmt: skip
    assert {entry.path for entry in artifacts["model"].manifest.contents} == {"card.json", "arrays/a"}
    assert {entry.path for entry in artifacts["results"].manifest.contents} == {runs.CONFIG, runs.RESULTS}
    summaries = [item for record in records if record.HasField("summary") for item in record.summary.update]
    assert any("best/test/accuracy" in (item.key, *item.nested_key) and item.value_json == "0.75" for item in summaries)
