"""Learning-rate range test: its suggestions, and `zoo lr-find`, which writes nothing into runs/."""

import json

import numpy as np
import pytest
from helpers import make_plan, random_images, run_command
from PIL import Image

import zoo
from zoo.data.sources import from_arrays
from zoo.training.lr_find import find_learning_rate, longest_valley, suggest_rates, with_growing_rate


def test_suggestions_lie_where_the_loss_falls():
    rates = np.logspace(-6, 1, 141)
    exponent = np.log10(rates)
    losses = 2.3 - 2 / (1 + np.exp(-4 * (exponent + 3))) + np.exp(3 * (exponent + 0.3))  # falls around 1e-3, then rises
    found = suggest_rates(rates, losses)
    assert 10**-3.5 < found["steepest"] < 10**-2.5
    lowest = rates[losses.argmin()]
    assert found["minimum"] == pytest.approx(lowest / 10)
    assert 1e-6 < found["valley"] < lowest


def test_the_steepest_fall_is_before_the_loss_explodes():
    """After it diverged, the loss of some networks falls back from 8 to 5 within a step."""
    rates = np.logspace(-6, 1, 141)
    losses = np.interp(np.log10(rates), [-6, -4, -2, -1, -0.5, -0.4, 1], [2.3, 2.2, 1.0, 0.9, 8.0, 5.0, 5.0])
    assert 0.9e-4 < suggest_rates(rates, losses)["steepest"] < 1e-2
    assert suggest_rates(rates, np.linspace(1, 3, 141))["steepest"] <= rates[15]  # never falls


def test_the_steepest_fall_is_not_in_the_noise_of_the_beginning():
    """There the average is over few batches: one of them decided it in a third of these curves."""
    rates = np.logspace(-7, 1, 100)
    exponent = np.log10(rates)
    for seed in range(20):
        losses = 2.3 - 2 / (1 + np.exp(-4 * (exponent + 2))) + np.exp(3 * (exponent - 0.3))
        losses += np.random.default_rng(seed).normal(0, 0.4, 100)
        losses[seed % 12] += 2
        weights = 0.98 ** np.arange(100)
        smoothed = [losses[n::-1] @ weights[: n + 1] / weights[: n + 1].sum() for n in range(100)]
        assert 1e-3 < suggest_rates(rates, np.array(smoothed))["steepest"] < 1


def test_a_loss_that_creeps_down_at_tiny_rates_does_not_count():
    """The average of Adam's losses falls a little at every step, from the first on."""
    rates = np.logspace(-7, 1, 100)
    exponent = np.log10(rates)
    losses = 0.7 - 0.6 / (1 + np.exp(-4 * (exponent + 2.5))) + np.exp(3 * (exponent - 0.3)) - 1e-4 * np.arange(100)
    assert 10**-3.5 < suggest_rates(rates, losses)["valley"] < 10**-1.5


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([3, 2, 1], (0, 2)), ([1, 2, 3], (0, 0)), ([5, 9, 4, 8, 3, 7, 9], (0, 4)), ([1], (0, 0)), ([2, 2, 2], (0, 0)),
     ([1, 9, 8, 7, 2, 6], (1, 4))],
)  # fmt: skip
def test_the_longest_valley_may_leave_out_points(losses, expected):
    assert longest_valley(losses) == expected


def data():
    images, labels = random_images(90, 8, 8)
    images[np.arange(90), 0, labels] = 255
    return from_arrays((images, labels))


def test_the_rate_grows_from_step_to_step_as_it_is_recorded():
    plan = make_plan("softmax", data(), zoo.Recipe(batch_size=7, warmup_epochs=2, head_lr=0.5, schedule="one-cycle"))
    grown = with_growing_rate(plan, 1e-4, 1.5)
    assert [grown.learning_rate(step) for step in (0, 1, 7)] == pytest.approx([1e-4, 1.5e-4, 1e-4 * 1.5**7], rel=1e-4)
    assert grown.recipe.head_lr / grown.recipe.learning_rate == pytest.approx(0.5 / plan.recipe.learning_rate)


def test_the_test_ends_when_the_loss_diverges_and_wrong_ranges_are_named():
    plan = make_plan("softmax", data(), zoo.Recipe(batch_size=20, optimizer="sgd"))
    result = find_learning_rate(plan, start=1e-4, stop=1e6, steps=60)
    assert 15 <= len(result.rates) < 60 and len(result.losses) == len(result.smoothed) == len(result.rates)
    assert result.rates[1] / result.rates[0] == pytest.approx(1e10 ** (1 / 59))
    assert 1e-4 < result.rate < 1e3 and result.trained == "the whole network"
    for arguments in ({"start": 1, "stop": 0.1}, {"start": 0.0}, {"steps": 3}, {"start": float("nan")}):
        with pytest.raises(ValueError, match="try"):
            find_learning_rate(plan, **arguments)


def test_the_command_draws_a_picture_and_writes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, labels = random_images(90, 8, 8)
    np.savez("data.npz", x_train=images, y_train=labels)
    words = ("lr-find", "--model", "softmax", "--data", "data.npz", "--batch-size", 20, "--steps", 20)
    code, out, err = run_command(capsys, *words, "-o", "lr.png")
    assert code == 0, err
    rate = out.split("suggested learning rate: ")[1].split()[0]
    assert f"zoo train --model softmax --data data.npz --batch-size 20 --learning-rate {rate}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "lr.png"]
    with Image.open("lr.png") as picture:
        assert picture.format == "PNG"
    code, out, _ = run_command(capsys, *words, "--json")
    assert code == 0 and set(json.loads(out)["suggestions"]) == {"valley", "steepest", "minimum"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data.npz"))  # no folder
    code, out, err = run_command(capsys, *words, "--set", "learning_rate=0.5")
    assert code == 0 and "suggested learning rate: " in out and "-o FILE.png" in err
    assert out.splitlines()[-1].startswith("try: zoo train") and "learning_rate=" not in out.splitlines()[-1]
    code, _, err = run_command(capsys, *words[:5], "-o", "lr.jpg")
    assert code == 2 and ".png" in err
