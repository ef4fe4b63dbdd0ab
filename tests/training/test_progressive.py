"""Images that grow while training lasts, and results for another size than training's."""

import dataclasses
import io
import json

import numpy as np
import pytest
from helpers import make_plan, run_bits, train
from PIL import Image

import zoo
from zoo import cli, models
from zoo.data import loader
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.training import dry_run, loop, plots, progressive, report, run
from zoo.training import plan as planning
from zoo.training.recipe import Recipe, recipe_from_json
from zoo.training.recipes import RECIPES

PLAIN = Recipe(epochs=4, batch_size=10, learning_rate=0.01)
SMALL = {"blocks": (1,), "width": 2}
SEEN = Preprocess((16, 16), (20, 20))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, [(0, 100, 16)]),
        ({"progressive": (8, 12, 16)}, [(0, 33, 8), (33, 67, 12), (67, 100, 16)]),
        ({"progressive": (16,)}, [(0, 100, 16)]),
        ({"progressive": (8, 12, 16), "progressive_at": (1.0, 1.5)}, [(0, 25, 8), (25, 38, 12), (38, 100, 16)]),
        ({"progressive": (8, 16), "progressive_at": (0.001,)}, [(0, 100, 16)]),  # nothing is left of the first
    ],
)
def test_when_training_sees_which_size(fields, expected):
    parts = progressive.image_size_spans(dataclasses.replace(PLAIN, **fields), SEEN, 100, 25.0)
    assert [(part.start, part.stop, part.value.size[0]) for part in parts] == expected
    assert all(part.value.resize[0] == round(part.value.size[0] * 1.25) for part in parts)
    assert all(dataclasses.replace(part.value, size=(16, 16), resize=(20, 20)) == SEEN for part in parts)


def test_what_is_tested_at_another_size():
    assert progressive.eval_preprocess(PLAIN, SEEN) == SEEN
    assert progressive.eval_preprocess(dataclasses.replace(PLAIN, test_size=24), SEEN) == Preprocess((24, 24), (30, 30))
    assert RECIPES["rsb-a3"].test_size == RECIPES["torchvision-v2"].test_size == 224  # as their sources say


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"progressive": (16, 8)}, "increasing sizes"),
        ({"progressive": (0, 8)}, "increasing sizes"),
        ({"progressive": (8, 8)}, "increasing sizes"),
        ({"progressive": (8, 16), "image_size": 24}, "must end with image_size=24"),
        ({"progressive": (8, 16), "progressive_at": (1.0, 2.0)}, "1 increasing epochs"),
        ({"progressive": (8, 16), "progressive_at": (4.0,)}, "below epochs=4"),
        ({"progressive": (8, 12, 16), "progressive_at": (2.0, 2.0)}, "2 increasing epochs"),
        ({"progressive_at": (1.0,)}, "needs the sizes in progressive"),
        ({"test_size": -1}, "must not be negative"),
    ],
)
def test_fields_that_make_no_sense(fields, said):
    with pytest.raises(ValueError, match=f"recipe field .*{said}"):
        dataclasses.replace(PLAIN, **fields)


def test_a_recipe_goes_through_json():
    recipe = dataclasses.replace(PLAIN, progressive=(8, 16), progressive_at=(1.5,), test_size=24)
    assert (
        recipe_from_json(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe and recipe.final_image_size == 16
    )


@pytest.mark.parametrize("field", [{"progressive": (8, 16)}, {"test_size": 24}])
@pytest.mark.parametrize("name", ["softmax", "lenet5", "alexnet_small", "highway_conv"])
def test_models_that_are_bound_to_a_size_say_so(name, field):
    model = models.create(name, image_size=16)
    with pytest.raises(ValueError, match=rf"{next(iter(field))}=.*{name} .*16x16 pixels"):
        progressive.require_sizes_supported(model, dataclasses.replace(PLAIN, **field), SEEN)
    progressive.require_sizes_supported(model, dataclasses.replace(PLAIN, progressive=(16,), test_size=16), SEEN)


def test_a_size_that_is_too_small_is_said():
    grey = Preprocess((32, 32), (32, 32), channels="L", mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match=r"progressive=\(16, 32\): lenet5_1998 needs images of at least 32x32"):
        progressive.require_sizes_supported(
            models.create("lenet5_1998"), dataclasses.replace(PLAIN, progressive=(16, 32)), grey
        )


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
    """Encoded images that are read anew whenever they are wanted."""
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
        (in_memory, 6, [(6, 16)]),
        pytest.param(in_memory, 12, [(12, 16)], marks=pytest.mark.slow),
        pytest.param(streamed, 4, [(4, 8), (6, 16)], marks=pytest.mark.slow),
    ],
    ids=["between the sizes", "in the second", "in the first"],
)
def test_a_run_of_growing_images(make, moment, begun_after, tmp_path, monkeypatch, capsys):
    """16 steps: 6 of 8x8 pixels, then 16x16; everything is measured at 24x24. The larger step is
    compiled first, once, to know that its memory suffices. Stopped, it ends with the same bits."""
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
    watch(
        monkeypatch, planning, "train_batches", lambda *a, start_step, **k: trained.append((start_step, a[1].size[0]))
    )
    watch(monkeypatch, report, "evaluate", lambda *arguments, **more: tested.append(arguments[3].size[0]))

    def fit(name):
        return train("resnet20", data, GROWING, fields=SMALL, workdir=tmp_path / name, save_steps=moment)

    fitted = fit("alone")
    assert compiled == [16, 8] and trained == [(0, 8), (6, 16)] and set(tested) == {24} and len(tested) == 5 + 2
    assert fitted.card.preprocess.size == (24, 24) and fitted.card.recipe["progressive"] == [8, 16]
    said = capsys.readouterr().out
    assert "epochs 0 to 1.5: 8x8 pixels" in said and "checkpoint: 24x24 pixels" in said
    # The checkpoint says itself at which size it is used.
    result = zoo.evaluate(zoo.load(tmp_path / "alone" / "best"), data, "validation")
    assert result["loss"] == pytest.approx(min(row["validation_loss"] for row in fitted.history))

    commit = loop.Trainer.save

    def struck(trainer):
        commit(trainer)
        if trainer.progress.step == moment:
            raise Killed

    monkeypatch.setattr(loop.Trainer, "save", struck)
    with pytest.raises(Killed):
        fit("killed")
    monkeypatch.setattr(loop.Trainer, "save", commit)
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


def test_fine_tuning_keeps_the_tested_size(tmp_path):
    """What was trained from a checkpoint has the size that its card says, unless another is asked for."""
    model = models.create("resnet20", **SMALL, num_classes=2)
    zoo.save(tmp_path / "start", model, zoo.init(model, 0, (24, 24, 3)), ("0", "1"), Preprocess((24, 24), (24, 24)))
    start = zoo.api.open_init(tmp_path / "start")
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


def test_the_command_says_what_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "digits", "--limit", "64", "--model", "lenet5"]
    assert cli.main([*words, "--progressive", "16,20"]) == 2
    error = capsys.readouterr().err
    assert (
        len(error.splitlines()) == 1 and "progressive=(16, 20)" in error and "lenet5" in error and "not 16x16" in error
    )
    assert cli.main([*words, "--test-size", "40"]) == 2
    assert "test_size=40: " in capsys.readouterr().err and not list(tmp_path.iterdir())
