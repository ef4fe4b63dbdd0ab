"""The logs of a run, read by TensorBoard itself where it is installed."""

import pytest

from zoo.training.run import Logs

ROWS = [
    {"step": 1, "epoch": 0.5, "learning_rate": 0.5, "train_loss": 1.5, "validation_accuracy": 0.25},
    {"step": 2, "epoch": 1.0, "learning_rate": 0.25, "train_loss": 0.75, "validation_accuracy": 0.5},
]


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's imports
def test_tensorboard_reads_the_logs(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logs = Logs(tmp_path, [])
    for row in ROWS:
        logs.add(row)
    logs.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["accuracy/validation", "learning_rate", "loss/train"]
    for tag, key in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [(r["step"], r[key]) for r in ROWS]
