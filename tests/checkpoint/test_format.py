"""Checkpoints: what is saved is loaded to the bit, and nothing else is."""

import dataclasses
import json
import os
import random
import shutil

import numpy as np
import pytest
from helpers import run_command

import zoo
from zoo import checkpoint, models
from zoo.checkpoint import CorruptCheckpointError
from zoo.checkpoint.manifest import write_manifest
from zoo.data.images.preprocess import Preprocess
from zoo.pretrained.weights import folder_of
from zoo.trees import flatten, merge, unflatten

PREPROCESS = Preprocess(
    size=(32, 32), resize=(28, 28), resize_mode="pad", channels="L", polarity="light-on-dark", mean=(0.1,), std=(0.3,)
)
CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint that is only read: (folder, model, variables)."""
    path = tmp_path_factory.mktemp("saved") / "lenet"
    model = zoo.create("lenet5", activation="tanh")
    variables = models.init(model, 3)
    zoo.save(path, model, variables, CLASSES, PREPROCESS, licence="CC0-1.0")
    return path, model, variables


@pytest.fixture
def copy(saved, tmp_path):
    """A checkpoint that may be broken."""
    return shutil.copytree(saved[0], tmp_path / "copy")


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def same_bits(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def test_a_checkpoint_is_enough(saved):
    path, model, variables = saved
    loaded = zoo.load(path)
    assert loaded.model == model and same_bits(loaded.variables, variables)
    assert loaded.card.preprocess == PREPROCESS and loaded.card.classes == CLASSES and loaded.card.licence == "CC0-1.0"
    assert {row["path"] for row in loaded.card.leaves} == set(flatten(variables))
    assert len(loaded.predict(np.zeros((3, 28, 28), np.uint8)[..., None])) == 3


SMALL = Preprocess((8, 8), (8, 8), channels="L", mean=(0.5,), std=(0.5,))
#: Paths of a checkpoint, from a folder `here` beside a folder `other` and its link.
PATHS = [
    "saved", "./saved", "../other/saved", "../here/../other/saved", "link/saved", "link/../other/saved",
    "other//saved/", "a b", "ü", "日本", "a..b", "..a", ".hidden", "x\ny", "%20", "#", "?", "*", "a@b", "a|b", "a:b",
    "-x", "$HOME", '"q"', "{b}", "a.lock", "tab\t", "n" * 200,
]  # fmt: skip


@pytest.mark.parametrize("absolute", [False, True])
def test_a_checkpoint_is_read_wherever_it_is(absolute, tmp_path, monkeypatch):
    """Relative and absolute, through "..", through links, and under any name; so is the state of a run."""
    for name in ("here", "here/other", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "link").symlink_to("../other")
    monkeypatch.chdir(tmp_path / "here")
    model = zoo.create("softmax", image_size=8)
    variables = models.init(model, 0)
    for path in PATHS:
        path = f"{tmp_path}/here/{path}" if absolute else path
        zoo.save(path, model, variables, CLASSES, SMALL)
        assert same_bits(zoo.load(path).variables, variables), path


@pytest.mark.parametrize("name", ["a\\b", "caf\udce9", "x.__lock"], ids=["backslash", "latin-1", "lock"])
def test_a_folder_whose_name_arrays_cannot_have_is_refused(name, tmp_path):
    """TensorStore would write to another folder, or fail."""
    model = zoo.create("softmax", image_size=8)
    with pytest.raises(ValueError, match="arrays cannot be in a folder of this name"):
        zoo.save(tmp_path / name, model, models.init(model, 0), CLASSES, SMALL)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_checkpoint_does_not_hold_where_it_was_made(saved):
    files = [file for file in saved[0].rglob("*") if file.is_file()]
    assert len(files) > 5 and not [file for file in files if str(saved[0].parent.name).encode() in file.read_bytes()]


def test_the_name_in_the_card_is_the_nearest_of_the_table():
    assert models.name_of(zoo.create("lenet5", num_classes=3)) == "lenet5"
    assert models.name_of(zoo.create("softmax", num_classes=3)) == "softmax"
    assert models.name_of(zoo.create("lenet5_1998")) == "lenet5_1998"


def test_runtime_fields_stay_out_of_the_card(saved, tmp_path):
    import jax.numpy as jnp

    _, model, variables = saved
    low = models.with_runtime(model, dtype=jnp.bfloat16)
    card = zoo.save(tmp_path / "low", low, variables, CLASSES, PREPROCESS)
    assert not set(card.fields) & set(models.RUNTIME_FIELDS)
    assert zoo.load(tmp_path / "low").model == model


def test_saving_again_replaces_the_whole(copy, saved):
    _, model, _ = saved
    other = models.init(model, 4)
    zoo.save(copy, model, other, CLASSES, PREPROCESS)
    assert same_bits(zoo.load(copy).variables, other)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_a_kill_between_the_two_renames_loses_nothing(copy, saved):
    copy.rename(copy.with_name(".copy.old"))
    assert same_bits(zoo.load(copy).variables, saved[2])
    assert [p.name for p in copy.parent.iterdir()] == [".copy.old"]  # reading changes nothing on the disk
    zoo.save(copy, saved[1], models.init(saved[1], 4), CLASSES, PREPROCESS)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_what_is_no_checkpoint_is_never_overwritten(saved, tmp_path):
    _, model, variables = saved
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    for name in ("thesis", "file"):
        with pytest.raises(ValueError, match=f"{name}: exists and is not a checkpoint"):
            zoo.save(tmp_path / name, model, variables, CLASSES, PREPROCESS)
    assert (tmp_path / "thesis" / "thesis.tex").exists() and (tmp_path / "file").exists()


def test_a_newer_checkpoint_in_its_place_is_read_instead(copy, saved, monkeypatch):
    """Reading while a training replaces the folder is no damage."""
    _, model, _ = saved
    check, other = checkpoint.manifest.check_manifest, models.init(model, 4)

    def replaced_meanwhile(path):
        monkeypatch.setattr(checkpoint.format, "check_manifest", check)
        zoo.save(copy, model, other, CLASSES, PREPROCESS)
        raise CorruptCheckpointError("what was read is gone")

    monkeypatch.setattr(checkpoint.format, "check_manifest", replaced_meanwhile)
    assert same_bits(zoo.load(copy).variables, other)


@pytest.mark.parametrize("flip", [*range(40), *(pytest.param(i, marks=pytest.mark.slow) for i in range(40, 200))])
def test_one_flipped_bit_anywhere_is_noticed(copy, flip):
    rng = random.Random(flip)
    files = sorted(p for p in copy.rglob("*") if p.is_file() and p.stat().st_size)
    # Every file in turn, then anywhere in proportion to size.
    file = files[flip] if flip < len(files) else rng.choices(files, [p.stat().st_size for p in files])[0]
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")) as error:
        checkpoint.load_checkpoint(copy)
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
        checkpoint.read_card(copy)
    assert "\n" not in str(error.value)


def test_an_edited_readme_is_accepted_on_request(copy, saved, capsys):
    text = (copy / "README.md").read_text() + "\nMade by Ada.\n"
    (copy / "README.md").write_text(text)
    with pytest.raises(checkpoint.CorruptCheckpointError, match=r"README.md has different content.*--accept-readme"):
        zoo.load(copy)
    code, out, err = run_command(capsys, "verify", copy, "--accept-readme")
    assert code == 0 and not err and "ok" in out and "README.md is not part of the manifest now" in out
    assert same_bits(zoo.load(copy).variables, saved[2]) and (copy / "README.md").read_text() == text


def test_a_checkpoint_without_its_readme_is_whole(copy, saved):
    (copy / "README.md").unlink()
    assert same_bits(zoo.load(copy).variables, saved[2])


def test_a_leaf_that_differs_from_the_card_is_named(copy):
    """Even when the manifest was made anew: the card has hashes of its own."""
    card = json.loads((copy / "card.json").read_text())
    card["leaves"][0]["sha256"] = "0" * 64
    (copy / "card.json").write_text(json.dumps(card))
    (copy / "manifest.json").unlink()
    checkpoint.manifest.write_manifest(copy)
    with pytest.raises(CorruptCheckpointError, match=card["leaves"][0]["path"]):
        checkpoint.load_checkpoint(copy)


def claim_zeros(folder, shape, chunk):
    """Replace the head's bias by an array without data, which TensorStore reads as zeros, and write a new manifest."""
    import tensorstore

    base = {"driver": "file", "path": f"{(folder / 'arrays' / 'state').absolute()}/"}
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "ocdbt", "base": base, "path": "params.head.bias/"},
            "metadata": {"shape": shape, "data_type": "float32", "chunk_grid": grid},
        },
        create=True, delete_existing=True,
    ).result()  # fmt: skip
    (folder / "manifest.json").unlink()
    write_manifest(folder)


@pytest.mark.parametrize(
    ("shape", "chunk", "named"),
    [
        ([10**9], [10**6], "params/head/bias has a different shape"),
        ([10], [10**9], "10 values in chunks of 1,000,000,000"),
    ],
)
def test_arrays_are_not_read_before_their_sizes_are_known_to_be_right(copy, shape, chunk, named):
    """A few bytes can claim any number of zeros: reading them would take all memory."""
    claim_zeros(copy, shape, chunk)
    with pytest.raises(CorruptCheckpointError, match=f"copy/arrays: .*{named}"):
        zoo.load(copy)
    assert named in checkpoint.verify_checkpoint(copy)[-1]


def test_arrays_that_do_not_fit_into_memory_are_not_read(copy, monkeypatch):
    monkeypatch.setattr("zoo.checkpoint.format.available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"copy/arrays: its arrays take more than the available memory"):
        zoo.load(copy)


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_every_layout_of_orbax_is_read(copy, saved, ocdbt, zarr3, capfd):
    from orbax.checkpoint import v1

    shutil.rmtree(copy / "arrays")
    context = v1.Context()
    context.array.saving.use_ocdbt, context.array.saving.use_zarr3 = ocdbt, zarr3
    with context:
        v1.save(copy / "arrays", unflatten(leaves(saved[2])))
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    assert same_bits(zoo.load(copy).variables, saved[2])
    metadata = copy / "arrays" / "state" / "_METADATA"
    metadata.write_text(metadata.read_text().replace("np.ndarray", "scalar"))
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    capfd.readouterr()
    with pytest.raises(CorruptCheckpointError, match=r"copy/arrays: the arrays cannot be read \(ValueError\)"):
        zoo.load(copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["card.json", "manifest.json", "arrays"])
def test_missing_parts_are_named(copy, part):
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises(ValueError, match=part):
        zoo.load(copy)


def test_truncated_files_are_named(copy):
    file = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match=rf"{file.name} has \d+ bytes instead of"):
        zoo.load(copy)


def test_strange_files_among_the_arrays_are_named(copy):
    (copy / "arrays" / "stranger").write_bytes(b"x")
    (copy / "notes.txt").write_text("of one's own, beside the arrays, are welcome")
    with pytest.raises(CorruptCheckpointError, match="stranger is not listed"):
        zoo.load(copy)
    (copy / "arrays" / "stranger").unlink()
    zoo.load(copy)


@pytest.mark.parametrize(
    ("change", "answer"),
    [({"format": 99}, "newer version of the zoo"), ({"format": None}, "no format version"), ({"colour": 1}, "colour"),
     ({"model": "lenet6"}, "did you mean lenet5"), ({"fields": {"num_classes": 10, "depth": 3}}, "no field 'depth'"),
     ({"fields": {"num_classes": 7, "activation": "tanh", "image_size": 32}}, "10 class names .* 7"),
     ({"model": "mlp", "fields": {"image_size": 32}}, "missing params/hidden1/kernel")],
)  # fmt: skip
def test_cards_that_cannot_be_right_get_one_clear_line(copy, change, answer):
    card = json.loads((copy / "card.json").read_text()) | change
    (copy / "card.json").write_text(json.dumps(card))
    (copy / "manifest.json").unlink()
    checkpoint.manifest.write_manifest(copy)
    with pytest.raises(ValueError, match=answer) as error:
        zoo.load(copy)
    assert "\n" not in str(error.value)


def test_where_there_is_no_checkpoint(tmp_path, copy):
    with pytest.raises(FileNotFoundError, match="nowhere: no such checkpoint"):
        zoo.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no card\.json"):
        zoo.load(tmp_path)
    (tmp_path / "run").mkdir()
    copy.rename(tmp_path / "run" / "best")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*best"):
        zoo.load(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")  # the folder of a run stands for its best checkpoint
    assert zoo.load(tmp_path / "run").card == zoo.load(tmp_path / "run" / "best").card
    assert folder_of(tmp_path / "run") == tmp_path / "run" / "best"  # of `zoo push` and `zoo verify`
    (tmp_path / "run" / "best").rename(tmp_path / "run" / ".best.old")  # while it is replaced
    assert zoo.load(tmp_path / "run").card.classes
    (tmp_path / "run" / ".best.old").rename(tmp_path / "elsewhere")
    for read in (zoo.load, folder_of):
        with pytest.raises(ValueError, match="no best checkpoint yet"):
            read(tmp_path / "run")


def test_what_does_not_fit_the_model_is_not_saved(saved, tmp_path):
    _, model, variables = saved
    with pytest.raises(ValueError, match="2 class names for a model with 10"):
        zoo.save(tmp_path / "x", model, variables, ("a", "b"), PREPROCESS)
    lacking = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "head"}}
    with pytest.raises(ValueError, match=r"- missing params/head/bias.*- missing params/head/kernel"):
        zoo.save(tmp_path / "x", model, lacking, CLASSES, PREPROCESS)
    assert not (tmp_path / "x").exists()


def test_a_card_that_nobody_could_have_written_is_refused_in_words(copy):
    """A manifest says no more than that the files are those that were written: by another version, perhaps."""
    card = json.loads((copy / "card.json").read_text())
    for broken, said in (
        ({**card, "preprocess": {**card["preprocess"], "tilt": 3}}, "for format 2: tilt"),
        ({**card, "preprocess": None}, "for format 2: preprocess"),
        ({**card, "leaves": [{"path": "x"}]}, "is not a table"),
        ({**card, "leaves": None}, "is not a table"),
        ({**card, "classes": None}, ".classes. is not a list"),
        ({**card, "classes": "abc"}, ".classes. is not a list"),
    ):
        (copy / "card.json").write_text(json.dumps(broken))
        assert [line.split()[0] for line in checkpoint.verify_checkpoint(copy)] == ["card.json"]
        (copy / "manifest.json").unlink()
        checkpoint.manifest.write_manifest(copy)
        with pytest.raises(ValueError, match=said):
            zoo.load(copy)


def test_a_checkpoint_is_the_current_folder(copy, monkeypatch, saved):
    monkeypatch.chdir(copy)
    assert checkpoint.verify_checkpoint(".") == [] and checkpoint.read_card(".").model == "lenet5"
    _, model, variables = saved
    zoo.save(".", model, variables, CLASSES, PREPROCESS)
    assert zoo.load(copy).card.classes == CLASSES


def test_half_precision_comes_back_in_the_models_own(tmp_path, saved):
    import jax
    import jax.numpy as jnp

    _, model, variables = saved
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    zoo.save(tmp_path / "half", model, half, CLASSES, PREPROCESS)
    assert {leaf.dtype for leaf in jax.tree.leaves(zoo.load(tmp_path / "half").variables)} == {jnp.dtype("float32")}
    counts = {**variables, "params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.int32), variables["params"])}
    with pytest.raises(ValueError, match=r"head/bias .*int32.*float32"):
        zoo.save(tmp_path / "x", model, counts, CLASSES, PREPROCESS)


def test_class_names_must_differ(tmp_path, saved):
    _, model, variables = saved
    with pytest.raises(ValueError, match="duplicate class names: a"):
        zoo.save(tmp_path / "x", model, variables, ("a", *CLASSES[:9]), PREPROCESS)


# --- merging ---------------------------------------------------------------------------------------------------


def made_of(**flat):
    """made_of(params__stem__kernel=3): a tree with a leaf of three zeros."""
    tree = {
        path.replace("__", "/"): np.zeros(value) if isinstance(value, int) else value for path, value in flat.items()
    }
    return unflatten(tree)


FRESH = made_of(params__stem__kernel=3, params__head__kernel=2, batch_stats__stem__mean=3)


def test_a_merge_takes_every_leaf_of_every_collection():
    saved = {"params": {"stem": {"kernel": np.ones(3)}, "head": {"kernel": np.ones(2)}},
             "batch_stats": {"stem": {"mean": np.ones(3)}}}  # fmt: skip
    merged = merge(FRESH, saved)
    assert all(leaf.all() for leaf in flatten(merged).values())
    headless = merge(FRESH, saved, skip=["params/head"])
    assert not headless["params"]["head"]["kernel"].any() and headless["batch_stats"]["stem"]["mean"].all()


def test_a_merge_renames_before_it_compares():
    saved = made_of(params__backbone__conv__kernel=3, params__head__kernel=2, batch_stats__backbone__conv__mean=3)
    assert merge(FRESH, saved, rename=[("backbone/conv", "stem")]).keys() == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("saved", "options", "lines"),
    [
        (made_of(params__stem__kernel=3, params__head__kernel=5), {},
         ["- missing batch_stats/stem/mean (3,)", "± params/head/kernel has shape (5,), the model expects (2,)"]),
        (made_of(params__stem__kernel=3, params__old__kernel=2, batch_stats__stem__mean=3), {},
         ["- missing params/head/kernel (2,)", "+ unexpected params/old/kernel (2,)"]),
        (FRESH, {"skip": ["params/hed"]}, ["skip 'params/hed' matches no leaf"]),
        (FRESH, {"rename": [("stam", "stem")]}, ["rename 'stam' changes no path"]),
        (FRESH, {"rename": [("head", "stem")]},
         ["rename 'head' maps several leaves to params/stem/kernel", "- missing params/head/kernel (2,)",
          "± params/stem/kernel has shape (2,), the model expects (3,)"]),
        (FRESH, {"skip": ["params/(head"]}, ["is not a regular expression"]),
    ],
)  # fmt: skip
def test_a_merge_lists_everything_unexplained(saved, options, lines):
    with pytest.raises(ValueError) as error:
        merge(FRESH, saved, **options)
    assert all(line in str(error.value) for line in lines)
    assert str(error.value).count(";") == len(lines) - 1  # and nothing else


def test_the_card_is_plain_json(saved):
    card = checkpoint.read_card(saved[0])
    assert checkpoint.card_from_json(json.loads(json.dumps(card.to_json())), "card") == card
    assert dataclasses.is_dataclass(card)
