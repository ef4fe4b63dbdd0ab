"""Image sizes that grow during training, and another size for evaluation."""

import dataclasses
import io

import numpy as np
import pytest
from helpers import make_plan, run_bits, train
from PIL import Image

import zoo
from zoo import cli, models
from zoo.data import loader
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.training import batches, dry_run, loop, plots, progressive, report, run
from zoo.training import plan as planning
from zoo.training.recipe import Recipe
from zoo.training.recipes import RECIPES
from zoo.training.timeline import Span, build_timeline

PLAIN = Recipe(epochs=4, batch_size=10, learning_rate=0.01)
SMALL = {"blocks": (1,), "width": 2}
TRAINED = Preprocess((16, 16), (20, 20))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [(0, 100, 16)]),
        ({"progressive": (8, 12, 16)}, [(0, 33, 8), (33, 67, 12), (67, 100, 16)]),
        ({"progressive": (16,)}, [(0, 100, 16)]),
        ({"progressive": (8, 12, 16), "progressive_at": (1.0, 1.5)}, [(0, 25, 8), (25, 38, 12), (38, 100, 16)]),
        ({"progressive": (8, 12, 16), "progressive_at": (1.0, 3.99)}, [(0, 25, 8), (25, 100, 12)]),  # the last is empty
        ({"progressive": (8, 16), "progressive_at": (3.97,)}, [(0, 99, 8), (99, 100, 16)]),
        ({"progressive": (8, 16), "progressive_at": (0.001,)}, [(0, 100, 16)]),  # the first is empty
    ],
)
def test_image_size_spans(fields, expected):
    parts = progressive.image_size_spans(dataclasses.replace(PLAIN, **fields), TRAINED, 100, 25.0)
    assert [(part.start, part.stop, part.value.size[0]) for part in parts] == expected
    assert all(part.value.resize[0] == round(part.value.size[0] * 1.25) for part in parts)
    assert all(dataclasses.replace(part.value, size=(16, 16), resize=(20, 20)) == TRAINED for part in parts)


def test_evaluation_at_another_size():
    assert progressive.eval_preprocess(PLAIN, TRAINED) == TRAINED
    assert progressive.eval_preprocess(dataclasses.replace(PLAIN, test_size=24), TRAINED) == Preprocess(
        (24, 24), (30, 30)
    )
    assert RECIPES["rsb-a3"].test_size == RECIPES["torchvision-v2"].test_size == 224


@pytest.mark.parametrize("field", [{"progressive": (8, 16)}, {"test_size": 24}])
@pytest.mark.parametrize("name", ["softmax", "lenet5", "alexnet_small", "highway_conv"])
def test_models_of_a_fixed_image_size_are_refused(name, field):
    model = models.create(name, image_size=16)
    with pytest.raises(ValueError, match=rf"{next(iter(field))}=.*{name} .*16x16 pixels"):
        progressive.require_sizes_supported(model, dataclasses.replace(PLAIN, **field), TRAINED)
    progressive.require_sizes_supported(model, dataclasses.replace(PLAIN, progressive=(16,), test_size=16), TRAINED)


def test_too_small_a_size_is_refused():
    grey = Preprocess((32, 32), (32, 32), channels="L", mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match=r"progressive=\(16, 32\): lenet5_1998 needs images of at least 32x32"):
        progressive.require_sizes_supported(
            models.create("lenet5_1998"), dataclasses.replace(PLAIN, progressive=(16, 32)), grey
        )


def test_sizes_are_described():
    """A line for each size, though freezing may divide it, and one for evaluation; none if all sizes are equal."""
    small, large = Preprocess((8, 8), (10, 10)), Preprocess((16, 12), (16, 12))
    frozen = [Span(0, 20, frozenset({"a"})), Span(20, 100, frozenset())]
    sizes = [Span(0, 50, small), Span(50, 100, large)]
    segments = build_timeline(frozen, sizes, lambda preprocess: None)
    lines = progressive.describe_sizes(segments, TRAINED, 25.0)
    assert lines == [
        "epochs 0 to 2: 8x8 pixels", "epochs 2 to 4: 16x12 pixels", "validation, test and checkpoint: 16x16 pixels",
    ]  # fmt: skip
    same = build_timeline(frozen, [Span(0, 100, TRAINED)], lambda preprocess: None)
    assert progressive.describe_sizes(same, TRAINED, 25.0) == []
    assert len(progressive.describe_sizes(same, small, 25.0)) == 2


# --- a run ------------------------------------------------------------------------------------------------------------

GROWING = dataclasses.replace(
    PLAIN, progressive=(8, 16), progressive_at=(1.6,), test_size=24, ema=0.9, patience=1, monitor="loss",
    augment=("resized_crop(area=0.5)", "flip"), eval_every_epochs=0.8,
)  # fmt: skip


def photos(count, side=40):
    rng = np.random.default_rng(count)
    labels = np.arange(count) % 2
    return (rng.integers(0, 100, (count, side, side, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8), labels


def in_memory(folder):
    return from_arrays(photos(40), validation=photos(12), test=photos(10), name="made")


def streamed(folder):
    """Return the folder of encoded images that are read anew in each epoch."""
    for split, count in (("train", 40), ("val", 12), ("test", 10)):
        for n, (image, label) in enumerate(zip(*photos(count), strict=True)):
            place = folder / "photos" / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            (place / f"{n}.png").write_bytes(buffer.getvalue())
    return str(folder / "photos")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("make", "moment", "begun_after"),
    [
        pytest.param(in_memory, 6, [(6, 16)], marks=pytest.mark.slow),
        pytest.param(in_memory, 12, [(12, 16)], marks=pytest.mark.slow),
        pytest.param(streamed, 4, [(4, 8), (6, 16)], marks=pytest.mark.slow),
    ],
    ids=["between the sizes", "in the second", "in the first"],
)
def test_a_run_over_two_image_sizes(make, moment, begun_after, tmp_path, monkeypatch, capsys):
    """16 steps: 6 of 8x8 pixels, then 16x16, evaluated at 24x24. The larger step is compiled first, once, to check
    its memory. A run that is killed and resumed ends with the same bits."""
    if make is streamed:
        monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    for drawing in ("draw_curves", "draw_confusion"):
        monkeypatch.setattr(plots, drawing, lambda *arguments, **more: None)
    data, compiled, trained, tested = make(tmp_path), [], [], []
    watch(
        monkeypatch,
        planning.Plan,
        "compile_step",
        lambda plan, segment, state: compiled.append(segment.preprocess.size[0]),
    )
    watch(monkeypatch, batches, "train_batches", lambda *a, start_step, **k: trained.append((start_step, a[1].size[0])))
    watch(monkeypatch, report, "evaluate", lambda *arguments, **more: tested.append(arguments[3].size[0]))

    def fit(name):
        return train("resnet20", data, GROWING, fields=SMALL, workdir=tmp_path / name, save_steps=moment)

    fitted = fit("alone")
    assert compiled == [16, 8] and trained == [(0, 8), (6, 16)] and set(tested) == {24}
    assert len(tested) == 5 + 1  # the test split; validation is evaluated with the calibration
    assert fitted.card.preprocess.size == (24, 24) and fitted.card.recipe["progressive"] == [8, 16]
    said = capsys.readouterr().out
    assert "epochs 0 to 1.5: 8x8 pixels" in said and "checkpoint: 24x24 pixels" in said
    result = zoo.evaluate(zoo.load(tmp_path / "alone" / "best"), data, "validation")
    assert result["loss"] == pytest.approx(min(row["validation_loss"] for row in fitted.history))

    save = loop.Trainer.save

    def save_and_die(trainer):
        save(trainer)
        if trainer.progress.step == moment:
            raise Killed

    monkeypatch.setattr(loop.Trainer, "save", save_and_die)
    with pytest.raises(Killed):
        fit("killed")
    monkeypatch.setattr(loop.Trainer, "save", save)
    trained.clear()
    fit("killed")
    assert trained == begun_after
    assert run_bits(tmp_path / "killed") == run_bits(tmp_path / "alone")


def watch(monkeypatch, module, name, note):
    original = getattr(module, name)

    def noted(*arguments, **more):
        note(*arguments, **more)
        return original(*arguments, **more)

    monkeypatch.setattr(module, name, noted)


def test_patience_waits_for_the_last_size(tmp_path):
    """Evaluations at small image sizes do not count."""
    recipe = dataclasses.replace(GROWING, patience=1)
    plan = make_plan("resnet20", in_memory(tmp_path), recipe, fields=SMALL)
    trainers = [
        loop.Trainer(plan, None, None, None, {}, run.Progress(step=step, evals_without_improvement=1))
        for step in (5, 6, 7, 16)
    ]
    assert [trainer.is_out_of_patience() for trainer in trainers] == [False, False, True, True]


def test_fine_tuning_keeps_the_size_of_the_checkpoint(tmp_path):
    """Without a size of its own a recipe trains and evaluates at that of the card."""
    model = models.create("resnet20", **SMALL, num_classes=2)
    zoo.save(tmp_path / "start", model, zoo.init(model, 0, (24, 24, 3)), ("0", "1"), Preprocess((24, 24), (24, 24)))
    start = zoo.loading.open_init(tmp_path / "start")
    plan = make_plan(None, in_memory(tmp_path), PLAIN, init=start)
    assert plan.preprocess.size == plan.segment(0).preprocess.size == (24, 24)
    plan = make_plan(
        None, in_memory(tmp_path), dataclasses.replace(PLAIN, progressive=(8, 16), test_size=20), init=start
    )
    assert [plan.segment(n).preprocess.size[0] for n in (0, 15, 99)] == [8, 16, 16] and plan.preprocess.size == (20, 20)


def test_a_dry_run_is_of_the_largest_size(tmp_path):
    plan = make_plan("resnet20", in_memory(tmp_path), GROWING, fields=SMALL)
    lines: list[str] = []
    dry_run.dry_run(plan, lines.append)
    assert any("Time per step" in line and "at most" in line for line in lines)


def test_the_command_line_names_sizes_that_do_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "digits", "--limit", "64", "--model", "lenet5"]
    assert cli.main([*words, "--progressive", "16,20"]) == 2
    error = capsys.readouterr().err
    assert (
        len(error.splitlines()) == 1 and "progressive=(16, 20)" in error and "lenet5" in error and "not 16x16" in error
    )
    assert cli.main([*words, "--test-size", "40"]) == 2
    assert "test_size=40: " in capsys.readouterr().err and not list(tmp_path.iterdir())
