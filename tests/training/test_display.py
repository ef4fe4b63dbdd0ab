"""Progress of a run: its rate, when a line is printed, and what the line says."""

import re
import sys

import pytest

from zoo.training import display
from zoo.training.display import Display, format_count, format_duration


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_of_training_alone(clock):
    """Neither the slow first steps nor a pause between steps counts."""
    progress = Display(100, 32, 2, quiet=True)
    assert progress.rate == 0 and progress.speed() == ""
    for step in range(1, 20):
        clock[0] += 50.0 if step <= 2 else 0.5
        progress.add_data_wait(0.125)
        progress.update(step, 1.0)
        if step == 2:
            assert progress.rate == 0  # the steps after a compilation are not timed
        if step == 10:
            progress.pause()
            clock[0] += 1000
    assert progress.rate == pytest.approx(64)
    assert progress.speed() == "  64 images/s, 25 % waiting for data"
    for step in range(20, 100):  # other work on the machine
        clock[0] += 4.0
        progress.update(step, 1.0)
    assert progress.rate == pytest.approx(8, rel=0.02)
    assert progress.speed().endswith(" 0 % waiting for data")


def test_a_step_has_half_its_weight_after_half_a_minute(clock):
    progress = Display(100, 10, 2, quiet=True)
    for step in range(1, 5):
        clock[0] += 1.0
        progress.update(step, 1.0)
    clock[0] += 30.0
    progress.update(5, 1.0)
    recent = 1 + 2 ** (-1 / display.HALF_LIFE)  # the two steps of a second that are timed
    assert progress.rate == pytest.approx(10 * (0.5 * recent + 1) / (0.5 * recent + 30))


def test_a_line_every_quarter_of_a_minute(clock, capsys):
    progress = Display(400, 32, 2)
    for step in range(1, 101):
        clock[0] += 1
        progress.update(step, 1.23456)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0] == "  epoch 0.1/2  32 images/s, 0 % waiting for data  6m25s left  loss 1.235"
    assert [re.search(r"epoch ([\d.]+)/", line)[1] for line in lines] == ["0.1", "0.1", "0.2", "0.3", "0.4", "0.5"]


def test_lines_of_a_long_run_are_further_apart(clock, capsys):
    progress = Display(7200, 32, 2)
    for step in range(1, 7200):
        clock[0] += 1
        progress.update(step, 1.0)
    assert 60 < len(capsys.readouterr().out.splitlines()) < 120


def test_without_a_rate_the_time_left_is_unknown(clock, capsys):
    progress = Display(10, 32, 2)
    clock[0] += 100
    progress.update(1, 0.5)
    assert capsys.readouterr().out == "  epoch 0.2/2  ? left  loss 0.500\n"


def test_progress_of_an_evaluation(clock, capsys):
    show = Display(100, 32, 2).show_evaluation("validation", 5000)
    for done in (256, 512, 768):
        clock[0] += 10
        show(done)
    assert capsys.readouterr().out == "  validation 512 of 5,000\n"


def test_quiet_prints_nothing(clock, capsys):
    with Display(10, 32, 2, quiet=True) as progress:
        for step in range(1, 11):
            clock[0] += 100
            progress.update(step, 1.0)
            progress.show_evaluation("test", 5)(3)
        progress.say("a line")
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Display(10, 32, 5) as progress:
        for step in range(1, 5):
            clock[0] += 0.5
            progress.update(step, 2.0)
        (task,) = progress.bar.tasks
        assert (task.completed, task.total, task.fields["epoch"]) == (4, 10, "2.0/5")
        assert task.fields["text"] == "loss 2.000" and "64 images/s" in task.fields["rate"]
        clock[0] += 0.05  # sooner than the bar is drawn again
        progress.update(5, 3.0)
        assert progress.bar.tasks[0].completed == 4
        clock[0] += 0.2
        progress.show_evaluation("test", 1000)(500)
        assert progress.bar.tasks[0].fields["text"] == "test 500 of 1,000"
        progress.say("a line that stays [bold]")
        assert progress.bar.live.is_started
    assert not progress.bar.live.is_started
    assert "a line that stays [bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 epochs"), (1, "1 epoch"), (1.0, "1 epoch"), (0.5, "0.5 epochs"), (2, "2 epochs"), (1234, "1,234 epochs")],
)
def test_counts(count, text):
    assert format_count(count, "epoch") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (60, "1m00s"), (95, "1m35s"), (3599, "59m59s"), (3600, "1h00m"),
     (3661, "1h01m"), (86_400 + 5 * 60, "24h05m")],
)  # fmt: skip
def test_durations(seconds, text):
    assert format_duration(seconds) == text
