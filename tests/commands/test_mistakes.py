"""Mistakes at the command line: each is answered by one line that names it and says what to type. None trains."""

import json
import zipfile

import numpy as np
import pytest
from helpers import random_images, run_command
from PIL import Image

import zoo
from zoo.data.images.preprocess import Preprocess
from zoo.training.recipe import Recipe
from zoo.training.run import RunConfig

#: (command line, parts of the answer): "what is wrong" and "what to type".
MISTAKES = {
    # names of commands, options and values
    "trane --data photos": ("'trane'", "did you mean train?"),
    "convert net.pth": ("'convert'", "did you mean import?"),
    "train --batchsize 8": ("'--batchsize'", "did you mean --batch-size"),
    "train --learning_rate 0.1": ("'--learning_rate'", "did you mean --learning-rate?"),
    "train --early-stopping 5": ("'--early-stopping'", "did you mean --patience?"),
    "train --output runs/a": ("'--output'", "did you mean --workdir?"),
    "train --l2 0.0001": ("'--l2'", "write --set l2=VALUE"),
    "train --dropout=0.5 --model mlp": ("'--dropout=0.5'", "write --set dropout=0.5"),
    "train --resume": ("'--resume'", "the same command resumes a run"),
    "train --device cuda": ("'--device'", "zoo devices"),
    "train --val-split 0.2": ("'--val-split'", "held out"),
    "train model=lenet5 data=photos": ("'model=lenet5'", "did you mean --model lenet5?"),
    "data --data photos": ("'--data'", "write `zoo data DATA`"),
    "sweep --model mlp --grid epochs=1,2": ("'--grid'", "`zoo sweep --set FIELD=A,B`"),
    "sweep --model mlp --learning-rate 0.1,0.01": ("--learning-rate 0.1,0.01", "write --set learning_rate=0.1,0.01"),
    "train --xyzzy": ("'--xyzzy'", "see `zoo train --help`"),
    "sweep --model mlp learning_rate=0.1,1": ("'learning_rate=0.1,1'", "did you mean --set learning_rate=0.1,1?"),
    "eval CKPT --dropout 0.5": ("'--dropout'",),
    "train --learning-rate fast": ("--learning-rate 'fast'", "try 0.001"),
    f"train --learning-rate {'9x' * 3000}": ("--learning-rate '9x9x", "9x9…x9x9", "try 0.001"),
    "train --learning-rate=--": ("--learning-rate=--", "is not a value"),
    "import notes.txt --resize=--": ("--resize=--", "is not a value"),
    "train --learning-rate -0.1": ("--learning-rate -0.1", "must be positive"),
    "train --epochs 0": ("--epochs 0", "must be positive"),
    "train --seed 1.5": ("--seed '1.5'", "whole number"),
    "train --set dropuot=0.1": ("--set dropuot", "did you mean dropout?"),
    "train --set momentum=1.5": ("--set momentum=1.5", "[0, 1)"),
    "train --model renset18 --data photos": ("renset18", "did you mean resnet18"),
    "train --recipe imagnet --model lenet5": ("imagnet", "imagenet"),
    "train --augment rotat --model lenet5": ("rotat", "affine"),
    "train --optimizer adm --model lenet5": ("--optimizer", "did you mean adam"),
    "train --monitor acc --model lenet5": ("--monitor", "did you mean accuracy"),
    "train --init CKPT --data photos --freeze stgae1": ("freeze 'stgae1'", "stages"),
    "train --folds 1 --data photos": ("--folds '1'", "at least 2"),
    "train --folds 40 --data photos --model lenet5": ("40 folds", "--folds 6"),
    "train --group patient --data photos": ("--group patient", "--folds 5"),
    "train --image-size 4 --model lenet5": ("4x4", "at least 16x16"),
    "train --recipe bit-hyperrule --model lenet5 --epochs 3": ("--epochs 3", "--set warmup_epochs=0.3"),
    "train --micro-batch 7 --batch-size 32 --model lenet5": ("--micro-batch 7", "--batch-size"),
    "train --model lenet5 --data photos --workdir notes.txt/run": ("notes.txt/run: cannot be written", "--workdir"),
    "train --model lenet5 photos": ("'photos'", "--data photos"),
    # data
    "train --data phtos/": ("phtos", "did you mean photos"),
    "train --data photso/cat": ("photso/cat", "did you mean photos/cat"),
    "train --data table.csvv --model lenet5": ("table.csvv", "did you mean table.csv"),
    "train --data photos/cat/0.png": ("photos/cat/0.png", "is a single image", "zoo predict"),
    "train --data photos/cat": ("photos/cat", "give the folder photos"),
    "train --data empty": ("empty", "class folders"),
    "train --data same --model lenet5": ("all images are identical", "check"),
    "train --data pictures.zip": ("pictures.zip", "unpack"),
    "train --data notes.txt": ("notes.txt", "supported are"),
    "train --data wrong.csv": ("wrong.csv", "label"),
    "train --data tfds:": ("tfds:", "tfds:NAME"),
    "data phtos": ("phtos", "did you mean photos"),
    "data photos --sheet sheet.jpg": ("sheet.jpg", ".png"),
    # checkpoints
    "eval CKTP --data photos": ("CKTP", "did you mean CKPT"),
    "eval ~nobody-here --data photos": ("~", "no user"),
    "eval CKPT --data ~nobody-here": ("~", "no user"),
    "eval CKPT": ("CKPT", "--data"),
    "eval CKPT --data photos --split tset": ("'tset'", "test"),
    "eval CKPT --data birds": ("jay", "fine-tune it on these with `zoo train --init`"),
    "eval CKPT --data photos --tta tencrop": ("tencrop", "ten-crop"),
    "eval --data photos": ("CKPT", "zoo eval"),
    "eval photos CKPT": ("the checkpoint comes first", "zoo eval CKPT --data photos"),
    "eval lenet5-mnist CKPT --data photos": ("'CKPT'", "--data CKPT"),
    "eval photos --data CKPT": ("photos: is not a checkpoint", "zoo eval CKPT --data photos"),
    "eval CKPT photos": ("'photos'", "--data photos"),
    "predict CKPT/card.json photos": ("part of the checkpoint CKPT", "give that folder"),
    "compare phtos": ("phtos: no such folder", "did you mean photos?"),
    "export CKPT --to onxx": ("--to onxx", "did you mean onnx"),
    "predict CKPT photos/cat/99.png": ("photos/cat/99.png", "no such file"),
    "predict photos/cat/0.png CKPT": ("the checkpoint comes first", "zoo predict CKPT photos/cat/0.png"),
    "predict photos birds lenet5-mnist": ("photos: is not", "zoo predict lenet5-mnist photos birds"),
    "predict CKPT": ("IMAGE", "zoo predict"),
    "predict CKPT notes.txt": ("notes.txt", "JPEG or PNG"),
    "predict CKPT photos -o table.xlsx": ("table.xlsx", ".csv"),
    "predict CKPT photos --top 0": ("--top", "at least 1"),
    "probe CKPT": ("--data", "CKPT"),
    "probe notes.npz": ("notes.npz", "zoo features"),
    "features CKPT --data photos --at stage9 -o f.npz": ("'stage9'", "features"),
    "features CKPT --data photos -o f.csv": ("f.csv", ".npz"),
    "import notes.txt": ("notes.txt", "weight"),
    "export CKPT --to onnx net.onnx": ("'net.onnx'", "did you mean -o net.onnx?"),
    "export CKPT --onnx": ("zoo export CKPT --to safetensors|", "lenet5-mnist"),
    "predict photos": ("IMAGE|FOLDER", "zoo predict CKPT IMAGE|FOLDER", "lenet5-mnist"),
    "predict": ("zoo predict CKPT IMAGE|FOLDER", "zoo list --weights"),
    "show CKPT photos/cat/0.png -o x.png": ("--image photos/cat/0.png",),
    "show CKPT photos -o x.png": ("--features photos",),
    "info lenet5 more": ("unexpected argument 'more'", "zoo info NAME|CKPT"),
    "train --model lenet5 --seed a": ("--seed 'a'", "try 0"),
    "info lenet55": ("lenet55", "did you mean lenet5"),
    "verify nowhere": ("nowhere", "no such checkpoint"),
    "verify photos": ("photos", "checkpoint"),
    "list --recipe": ("'--recipe'", "did you mean --recipes"),
    # a word in the wrong place: the option that takes it, if the command has one
    "export net.onnx lenet5-mnist --to onnx": ("the checkpoint comes first", "zoo export lenet5-mnist -o net.onnx"),
    "show photos/cat/0.png lenet5-mnist -o x.png": ("zoo show lenet5-mnist --image photos/cat/0.png",),
    "verify photos lenet5-mnist": ("unexpected argument 'lenet5-mnist'", "write `zoo verify CKPT`"),
    "lr-find --model lenet5 lr.png": ("did you mean -o lr.png?",),
    "report CKPT page.html": ("did you mean -o page.html?",),
    "sweep --model lenet5 table.csv": ("did you mean --data table.csv?",),
    "serve CKPT photos": ("did you mean --data photos?",),
    # options that would have no effect
    "lr-find --config head/config.json": ("fits only a head", "--init RUN/best"),
    "sweep --config head/config.json": ("fits only a head", "--init RUN/best"),
    "data photos --augment flip": ("--augmented",),
    "data photos --recipe small": ("--augmented",),
    "data photos --image-size 8": ("--augmented",),
    "show CKPT --image photos/cat/0.png --at stage1 -o x.png": ("--at belongs to --features",),
    "show CKPT --image photos/cat/0.png --split test -o x.png": ("--split belongs to --unit and --features",),
    "show CKPT --limit 5 -o x.png": ("--limit belongs to --unit and --features",),
    "list --weights --recipes small": ("--weights and --recipes",),
    # values
    "sweep --model lenet5 --seed -1": ("--seed -1", "must not be negative"),
    "sweep --model lenet5 --seed one": ("--seed 'one'", "whole number"),
    "train --model mlp --set dropout={[]}": ("--set dropout '{[]}'", "float"),
    f"train --model mlp --set dropout={'-' * 3000}1": ("--set dropout", "float"),
    f"train --model mlp --set dropout={'9' * 310}": ("--set dropout", "float"),
}


def fill(folder):
    """Make folders of photographs, tables and files of other kinds, and a checkpoint of cats and dogs."""
    images = random_images(24, 20, 20)[0]
    for kind, names in (("photos", ("cat", "dog")), ("birds", ("jay", "owl"))):
        for k, name in enumerate(names):
            (folder / kind / name).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(images[6 * k + i]).save(folder / kind / name / f"{i}.png")
    for name in ("a", "b"):
        (folder / "same" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(images[0]).save(folder / "same" / name / f"{i}.png")
    (folder / "empty").mkdir()
    (folder / "head").mkdir()
    head = RunConfig("resnet18", {"num_classes": 2}, "photos", Recipe(), init="CKPT", init_digest="0", head="linear")
    (folder / "head/config.json").write_text(json.dumps(head.to_json()))
    (folder / "table.csv").write_text("path,label\nphotos/cat/0.png,cat\nphotos/dog/0.png,dog\n")
    (folder / "wrong.csv").write_text("path,colour\nphotos/cat/0.png,red\nphotos/dog/0.png,blue\n")
    (folder / "notes.txt").write_text("buy milk\n")
    (folder / "notes.npz").write_text("buy milk\n")
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        archive.write(folder / "photos/cat/0.png", "cat/0.png")
    model = zoo.create("softmax", image_size=8, num_classes=2)
    preprocess = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.5,), std=(0.5,))
    zoo.save(folder / "CKPT", model, zoo.init(model, 0, (8, 8, 1)), ("cat", "dog"), preprocess)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    fill(folder)
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_one_line(line, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    code, _, err = run_command(capsys, *line.split())
    answer = [part for part in err.splitlines() if "LEAKAGE" not in part]
    assert code == 2 and len(answer) == 1 and "Traceback" not in err, err
    assert len(answer[0]) < 400, err
    for part in MISTAKES[line]:
        assert part in answer[0], answer[0]
    assert sorted(place.rglob("*")) == before  # nothing is left behind


def test_a_path_with_a_space_stays_whole(capsys):
    code, _, err = run_command(capsys, "eval", "lenet5-mnist", "../my photos")
    assert code == 2 and "unexpected argument '../my photos'; did you mean --data '../my photos'?" in err


def test_there_are_many_and_they_concern_every_command():
    assert len(MISTAKES) >= 30
    assert {"train", "eval", "predict", "probe", "data", "import", "export", "features", "info", "verify", "list"} <= {
        line.split()[0] for line in MISTAKES
    }


def test_mistakes_in_python(place, monkeypatch):
    """One line for arguments in the wrong place, too."""
    monkeypatch.chdir(place)
    images, labels = random_images(20, 8, 8, classes=2)
    calls = {
        "zoo.create": lambda: zoo.init("lenet5", 0),
        "zoo.fit('lenet5', (images, labels))": lambda: zoo.fit((images, labels), "lenet5"),
        "zoo.fit(model, (images, labels))": lambda: zoo.fit(images, labels),
        "tuple (images, labels)": lambda: zoo.fit("lenet5", [images, labels]),
    }
    for part, call in calls.items():
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value) and part.replace('"', "'") in str(error.value).replace('"', "'"), (
            error.value
        )
    assert np.shape(images) == (20, 8, 8)
