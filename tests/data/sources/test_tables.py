import json
import os

import numpy as np
import pytest
from helpers import assert_one_line, split_sizes
from photos import folder_of, photo

from zoo.data.dataset import Note
from zoo.data.sources import open_dataset
from zoo.data.sources.open import open_source
from zoo.data.sources.tables import COLUMNS


def names_of(split):
    return {split.name(i): int(split.labels[i]) for i in range(len(split))}


ROWS = [(f"images/{label}/{n}.png", label, split) for label in ("cat", "dog") for n, split in
        enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)]  # fmt: skip


def table(rows, header, separator=","):
    return "\n".join(separator.join(row) for row in ([header] if header else []) + rows) + "\n"


TABLES = {
    "a.csv": table(ROWS, ("path", "label", "split")),
    "b.csv": "\ufeff" + table(ROWS, ("File Name", "Class", "subset"), ";"),
    "c.tsv": table([(b, "x", a, c) for a, b, c in ROWS], ("category", "remark", "image_path", "Set"), "\t"),
    "d.jsonl": "\n\n".join(json.dumps({"image": a, "label": b, "split": c, "by": "me"}) for a, b, c in ROWS),
}


READ = {
    "a.csv": "read as a table with commas between cells: path from 'path', label from 'label', split from 'split'",
    "b.csv": "read as a table with semicolons between cells: path from 'File Name', label from 'Class', split from "
    "'subset'",
    "c.tsv": "read as a table with tabs between cells: path from 'image_path', label from 'category', split from "
    "'Set'; not used: 'remark'",
    "d.jsonl": "read as a table of JSON objects: path from 'image', label from 'label', split from 'split'; not used: "
    "'by'",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("table"), {"images/cat": 10, "images/dog": 10})


@pytest.mark.parametrize("name", TABLES)
def test_table_formats(name, pictures):
    (pictures / name).write_text(TABLES[name], encoding="utf-8")
    dataset = open_dataset(pictures / name)
    assert split_sizes(dataset) == {"train": 12, "validation": 4, "test": 4} and dataset.class_names == ("cat", "dog")
    assert names_of(dataset.splits["test"]) == {path: label == "dog" for path, label, split in ROWS if split == "test"}
    np.testing.assert_array_equal(dataset.splits["train"].read([0])[0], photo(24, 32, seed=0))
    assert dataset.notes == (Note("source", READ[name]),)


def test_a_table_of_two_columns_needs_no_header(pictures):
    (pictures / "plain.csv").write_text(table([row[:2] for row in ROWS], None))
    dataset = open_dataset(pictures / "plain.csv")
    assert split_sizes(dataset) == {"train": 14, "validation": 2, "test": 4}
    assert str(dataset.notes[0]) == "read as a table without a header: column 1 is the path, column 2 is the label"


def test_without_a_header_a_third_column_is_the_split(pictures):
    (pictures / "three.csv").write_text(table(ROWS, None))
    assert split_sizes(open_dataset(pictures / "three.csv")) == {"train": 12, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    "more, said",
    [
        ("images/dog/1.png,dog,test\n", ["line 2", "3 cells", "first line has 2"]),
        ("images/dog/1.png\n", ["line 2", "1 cells", "first line has 2"]),
    ],
)
def test_rows_without_a_header_must_have_one_length(more, said, pictures):
    (pictures / "ragged.csv").write_text("images/cat/0.png,cat\n" + more)
    with pytest.raises(ValueError) as caught:
        open_dataset(pictures / "ragged.csv")
    assert_one_line(caught, "ragged.csv", *said)


def test_a_third_column_without_a_header_must_be_a_split(pictures):
    (pictures / "odd.csv").write_text("images/cat/0.png,cat,train\nimages/dog/0.png,dog,0.93\n")
    with pytest.raises(ValueError) as caught:
        open_dataset(pictures / "odd.csv")
    assert_one_line(caught, "odd.csv, line 2", "'0.93'", "train, val or test")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_only_a_line_feed_ends_a_row(suffix, pictures):
    """str.splitlines ends lines at U+2028 and others, which are characters of a name like any other."""
    rows = [(a, b + "\u2028\u0085x", c) for a, b, c in ROWS]
    lines = (json.dumps(dict(zip(("path", "label", "split"), row, strict=True)), ensure_ascii=False) for row in rows)
    text = table(rows, ("path", "label", "split")) if suffix == "csv" else "\n".join(lines)
    (pictures / f"ends.{suffix}").write_text(text, encoding="utf-8")
    assert open_dataset(pictures / f"ends.{suffix}").class_names == tuple(f"{c}\\u2028\\x85x" for c in ("cat", "dog"))


def test_an_impossible_file_name_is_left_out(pictures):
    (pictures / "odd.jsonl").write_text(TABLES["d.jsonl"] + '\n{"image": "\\ud800", "label": "cat", "split": "test"}')
    (line,) = open_dataset(pictures / "odd.jsonl").left_out
    assert line.startswith("\\ud800: ")


def test_a_missing_file_is_left_out(pictures):
    (pictures / "more.csv").write_text(TABLES["a.csv"] + "images/gone.png,cat,test\n")
    dataset = open_dataset(pictures / "more.csv")
    assert dataset.left_out == ("images/gone.png: no such file",) and split_sizes(dataset)["test"] == 4


def test_json_labels_may_be_whole_numbers(pictures):
    (pictures / "numbers.jsonl").write_text(
        "\n".join(json.dumps({"path": a, "label": 7 + (b == "dog")}) for a, b, _ in ROWS)
    )
    assert open_dataset(pictures / "numbers.jsonl").class_names == ("7", "8")


WRONG_TABLES = {
    "columns": ("w.csv", "a,b\n1,2\n", ["no path column among a, b"]),
    "two paths": ("w.csv", "path,file,label\n1,2,3\n", ["path and file may both be the path"]),
    "no label": ("w.csv", "path,label\nimages/cat/0.png,\n", ["line 2", "no label"]),
    "cells": ("w.csv", "path,label\na,b,c\n", ["line 2", "3 cells"]),
    "split": ("w.csv", "path,label,split\na,b,later\n", ["line 2", "'later'", "train, val or test"]),
    "empty": ("w.csv", "", ["no rows"]),
    "not json": ("w.jsonl", '{"path": "a", "label": "b"}\n[1]\n', ["line 2", "not a JSON object"]),
    "a list": ("w.jsonl", '{"path": "a", "label": ["b"]}\n', ["line 1", "'label' must be text or a whole number"]),
    "true": ("w.jsonl", '{"path": "a", "label": true}\n', ["line 1", "'label' must be text or a whole number"]),
    "null": ("w.jsonl", '{"path": "a", "label": null}\n', ["line 1", "has no label"]),
    "deep": ("w.jsonl", "[" * 200_000, ["line 1", "not a JSON object"]),
    "nul": ("w.jsonl", '{"path": "a\\u0000b", "label": "c"}\n', ["line 1", "NUL"]),
    "nul in csv": ("w.csv", "path,label\na\0b,c\n", ["line 2", "NUL"]),
}


@pytest.mark.parametrize("what", WRONG_TABLES)
def test_invalid_tables(what, tmp_path):
    name, text, said = WRONG_TABLES[what]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / name)
    assert_one_line(caught, name, *said)


@pytest.mark.parametrize("role", COLUMNS)
def test_column_names(role, pictures):
    """Every spelling in any case and with separators; the rows name files that exist."""
    base = {"path": "images/cat/0.png", "label": "cat", "split": "test"}
    for n, spelling in enumerate(COLUMNS[role]):
        for name in (spelling, spelling.upper(), f"{spelling[:1]}_{spelling[1:]}" if len(spelling) > 1 else spelling):
            row = {key if key != role else name: value for key, value in base.items()}
            (pictures / f"columns-{role}-{n}.jsonl").write_text(json.dumps(row))
            source = open_source(pictures / f"columns-{role}-{n}.jsonl")
            assert (source.store.names, source.labels, source.splits) == (("images/cat/0.png",), ("cat",), ("test",))


@pytest.mark.parametrize(
    "name, text, labels",
    [
        ("a.csv", "path;label\na;b,c\n", ("b,c",)),  # the separator of the first line counts
        ("a.csv", "path,label\na,b;c\n", ("b;c",)),
        ("a.csv", "path\tlabel\na\tb\n", ("b",)),
        ("a.tab", "path\tlabel\na\tb,c\n", ("b,c",)),
        ("a.TSV", "path\tlabel\n\na\t b \n \t \n", ("b",)),  # empty lines, spaces around cells
        ("a.csv", 'path,label\n"a,1","b ""c"""\n', ('b "c"',)),
        ("a.csv", '"path";"label";"x, y";"u, v"\na;b;1;2\n', ("b",)),  # not the separators within quotes
        ("a.csv", 'a.png;"b, c, d"\n', ("b, c, d",)),
        ("a.NDJSON", '{"path": "a", "label": "b"}\n', ("b",)),
        ("a.jsonl", '\n{"path": "a", "label": 0, "x": null}\n\n{"label": "c", "path": "d"}', ("0", "c")),
    ],
)
def test_separators_quotes_and_empty_lines(name, text, labels, tmp_path):
    (tmp_path / name).write_text(text)
    assert open_source(tmp_path / name).labels == labels


@pytest.mark.parametrize(
    "text, place",
    [
        ('path,label\n"a,b\n', ""),  # a quote that is not closed
        ("path,label\na,b\n\nc,\n", ", line 4"),
        ("path,label\na,b\n,c\n", ", line 3"),
        ('path,label\n"a\nb",c\nd\n', ", line 4"),  # lines of the file, not rows
    ],
)
def test_errors_name_the_line_of_the_file(text, place, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / "a.csv")
    assert_one_line(caught, f"{tmp_path / 'a.csv'}{place}: ")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_a_table_that_is_not_utf_8(encoding, tmp_path):
    (tmp_path / "a.csv").write_bytes("path,label\nü,b".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.csv: .*UTF-8"):
        open_source(tmp_path / "a.csv")


def test_a_header_whose_first_name_is_a_file_is_a_row_only_with_two_or_three_columns(tmp_path):
    (tmp_path / "path").write_bytes(b"")
    (tmp_path / "a.csv").write_text("path,label,split,more\nx,y,train,z\n")
    assert open_source(tmp_path / "a.csv").labels == ("y",)
    (tmp_path / "b.csv").write_text("path,label\nx,y\n")
    assert open_source(tmp_path / "b.csv").labels == ("label", "y")


def test_a_table_changes_its_stamp(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nx,y\n")
    before = open_source(tmp_path / "a.csv").stamp
    os.utime(tmp_path / "a.csv", ns=(0, 10**18))
    assert open_source(tmp_path / "a.csv").stamp != before


# --- tables of other systems ------------------------------------------------------------------------------------------


def rows_for(*columns, cells=lambda n: ()):
    """Return the text of a table of the 20 pictures: header, path with `/`, class, and further cells of row n."""
    lines = [",".join(columns)]
    for n, (path, label, _) in enumerate(ROWS):
        lines.append(",".join(map(str, (path, label, *cells(n)))))
    return "\n".join(lines)


SYSTEMS = {
    "backslashes": rows_for("path", "label").replace("/", "\\"),
    "a drive": rows_for("path", "label").replace("images/", r"C:\Users\me\images/"),
    "without ending": rows_for("id", "label").replace(".png", ""),
    "another folder": rows_for("Image", "Label").replace("images/", "data/images/"),
    "without the folder": rows_for("file_name", "class").replace("images/", ""),
    "other case": rows_for("path", "label").replace(".png", ".PNG"),
    "Excel": "sep=;\r\n" + rows_for("path", "label").replace(",", ";").replace("\n", "\r\n"),
    "bars": rows_for("path", "label").replace(",", "|"),
    "no header, backslashes": rows_for().lstrip("\n").replace("/", "\\"),
    "spaces around": rows_for("path", "label").replace(",", " , "),
    "labels in two spellings": rows_for("path", "label").replace("0.png,cat", "0.png,Cat "),
    "an index": "\n".join(f"{n if n else ''},{line}" for n, line in enumerate(rows_for("path", "label").split("\n"))),
    "one-hot": rows_for("image", "cat", "dog", cells=lambda n: (int(n >= 10),)).replace(",cat,1", ",0,1")
    .replace(",cat,0", ",1.0,0.0").replace(",dog,1", ",0,1"),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", SYSTEMS)
def test_tables_of_other_systems(kind, encoding, pictures):
    name = f"{kind.replace(' ', '-')}-{encoding}.csv"
    (pictures / name).write_bytes(SYSTEMS[kind].encode(encoding))
    source = open_source(pictures / name)
    assert list(source.store.names) == [path for path, _, _ in ROWS]
    dataset = open_dataset(pictures / name)
    assert dataset.class_names == ("cat", "dog") and sum(split_sizes(dataset).values()) == 20
    for split in dataset.splits.values():
        assert all(("dog" in path) == label for path, label in names_of(split).items())


FLAGS = {
    "is_valid": (lambda n: (n % 5 == 0,), {"validation": 4}),
    "is_test": (lambda n: (int(n % 5 == 0),), {"test": 4}),
    "is_train": (lambda n: ("yes" if n % 5 else "no",), {"test": 4}),
    "isVal,IsTest": (lambda n: ("FT"[n % 5 == 0], "FT"[n % 5 == 1]), {"validation": 4, "test": 4}),
    # A row without a flag is in the split that has no column
    "is_train,is_valid": (lambda n: ("FT"[n % 5 > 1], "FT"[n % 5 == 0]), {"validation": 4, "test": 4}),
    "is_test,is_train": (lambda n: ("FT"[n % 5 == 0], "FT"[n % 5 > 1]), {"validation": 4, "test": 4}),
    "is_train,is_valid,is_test": (
        lambda n: ("FT"[n % 5 > 1], "FT"[n % 5 == 0], "FT"[n % 5 == 1]),
        {"validation": 4, "test": 4},
    ),
}


@pytest.mark.parametrize("columns", FLAGS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_columns_of_flags(columns, suffix, pictures):
    cells, expected = FLAGS[columns]
    path = pictures / f"flags-{columns.replace(',', '-')}.{suffix}"
    text = rows_for("path", "label", columns, cells=cells)
    if suffix == "jsonl":
        keys = ["path", "label", *columns.split(",")]
        text = "\n".join(json.dumps(dict(zip(keys, [*ROWS[n][:2], *cells(n)], strict=True))) for n in range(20))
    path.write_text(text)
    splits = open_source(path).splits
    counts = {split: splits.count(split) for split in ("validation", "test") if split in splits}
    assert counts == expected and splits.count("train") == 20 - sum(expected.values())


@pytest.mark.parametrize("cells", [lambda n: (n % 5,), lambda n: (f"0{n % 3}",)])
def test_numbers_of_folds_are_not_splits(cells, pictures):
    (pictures / "folds.csv").write_text(rows_for("path", "label", "fold", cells=cells))
    source = open_source(pictures / "folds.csv")
    assert set(source.splits) == {""} and len(source.labels) == 20
    assert any(note.kind == "unused" and "folds 0" in note for note in source.notes)


def test_a_column_of_folds_beside_a_column_of_splits(pictures):
    (pictures / "both.csv").write_text(rows_for("path", "label", "fold", "split", cells=lambda n: (n % 5, ROWS[n][2])))
    assert open_source(pictures / "both.csv").splits == tuple(
        {"val": "validation"}.get(split, split) for _, _, split in ROWS
    )


def test_splits_named_in_a_column_of_folds(pictures):
    (pictures / "named.csv").write_text(rows_for("path", "label", "fold", cells=lambda n: (ROWS[n][2],)))
    assert open_source(pictures / "named.csv").splits.count("validation") == 4


def test_test_rows_without_labels_are_not_used(pictures):
    lines = [f"{path},{'' if split == 'test' else label},{split}" for path, label, split in ROWS]
    (pictures / "kaggle.csv").write_text("\n".join(["path,label,split", *lines]))
    source = open_source(pictures / "kaggle.csv")
    assert set(source.splits) == {"train", "validation"} and len(source.labels) == 16
    assert any("4 rows of the test split" in note and note.kind == "unused" for note in source.notes)


def test_repeated_rows_are_used_once(pictures):
    (pictures / "twice.csv").write_text(rows_for("path", "label") + "\nimages/dog/9.png,dog\nimages/dog/9,dog")
    with pytest.raises(ValueError, match=r"both mean the file images/dog/9\.png"):
        open_source(pictures / "twice.csv")
    for again in ("images/dog/9.png", "./images/dog/9.png", "images//cat/../dog/9.png"):
        (pictures / "twice.csv").write_text(f"{rows_for('path', 'label')}\n{again},dog")
        source = open_source(pictures / "twice.csv")
        assert len(source.labels) == 20 and any("1 rows that repeat" in note for note in source.notes)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("path,label\na,cat\na,dog\n", ["line 3: a has the class dog, but cat in line 2"]),
        ("path,label,split\na,cat,train\na,cat,test\n", ["line 3: a has the split test, but train in line 2"]),
        ("path,label\na,nan\n", ["line 2: has no label ('nan')"]),
        ("path,label\na,<NA>\n", ["line 2: has no label ('<NA>')"]),
        ("path,label,split\na,b,trian\n", ["line 2: unknown split 'trian'", "did you mean 'train'?"]),
        ("path,label,split\na,b,\n", ["line 2: unknown split ''", "use train, val or test"]),
        ("path,label,is_valid\na,b,maybe\n", ["line 2: 'maybe' must be true or false"]),
        ("path,label,is_valid,is_test\na,b,1,1\n", ["line 2: is both validation and test"]),
        (
            "path,label,is_valid,is_test,is_train\na,b,0,0,1\nc,b,0,0,0\n",
            ["line 3: is in none of train, validation, test"],
        ),
        ("path,label,split\na,b,0\n", ["line 2: unknown split '0'"]),
        ("image,cat,dog\na,1,1\n", ["line 2: has cat and dog; every image must have one class"]),
        ("image,cat,dog\na,1,0\nb,0,0\n", ["line 3: has no class"]),
        ("image,cat,dog\na,1,2\n", ["no label column among image, cat, dog"]),
        ("id,image_id,label\na,b,c\n", ["id and image_id may both be the path"]),
    ],
)
def test_invalid_rows(text, parts, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / "t.csv")
    assert_one_line(caught, "t.csv", *parts)


def test_weak_names_of_columns_count_only_without_others(tmp_path):
    (tmp_path / "t.csv").write_text("id,path,tag,label\n1,a,x,b\n")
    source = open_source(tmp_path / "t.csv")
    assert (source.store.names, source.labels) == (("a",), ("b",))


def test_joined_labels_in_a_table(pictures):
    (pictures / "joined.csv").write_text(rows_for("path", "label") + "\nimages/dog/10.png,cat|dog")
    (pictures / "images/dog/10.png").write_bytes((pictures / "images/dog/9.png").read_bytes() + b"x")
    with pytest.raises(ValueError) as caught:
        open_dataset(pictures / "joined.csv")
    assert_one_line(caught, "joined.csv: the label 'cat|dog' joins several classes")
    (pictures / "images/dog/10.png").unlink()


@pytest.mark.parametrize("name", ["t.csv", "t.tar", "t.npz", "t"])
def test_pipes_are_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / name)
    assert_one_line(caught, str(tmp_path / name), "pipe")
    with pytest.raises(ValueError, match="/dev/zero: is a pipe, a socket or a device"):
        open_source("/dev/zero")


def test_a_pipe_in_a_table_is_left_out(pictures):
    os.mkfifo(pictures / "pipe.png")
    (pictures / "pipe.csv").write_text(rows_for("path", "label") + "\npipe.png,dog")
    dataset = open_dataset(pictures / "pipe.csv")
    assert dataset.left_out == ("pipe.png: is not a file",) and sum(split_sizes(dataset).values()) == 20
    (pictures / "pipe.png").unlink()


@pytest.mark.parametrize("name", ["train.csv", "train_labels.csv", "Training-set.csv"])
def test_ids_that_train_and_test_have_in_common(name, tmp_path):
    """As in competitions: train/1.png and test/1.png, and a table of the former."""
    folder_of(tmp_path, {"train": 3, "test": 3}, size=(4, 4))
    (tmp_path / name).write_text("name,label\n0,a\n1,b\n2,a\n")
    assert open_source(tmp_path / name).store.names == ("train/0.png", "train/1.png", "train/2.png")
    (tmp_path / name).rename(tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"'0' may mean test/0\.png or train/0\.png"):
        open_source(tmp_path / "labels.csv")


def test_a_column_of_splits_with_another_name(pictures):
    lines = [f"{path},{label},{split},x" for path, label, split in ROWS]
    (pictures / "stage.csv").write_text("\n".join(["path,label,stage,more", *lines]))
    source = open_source(pictures / "stage.csv")
    assert source.splits.count("test") == 4 and "split from 'stage'" in source.notes[0]
    (pictures / "stage.csv").write_text("\n".join(["path,label,stage,more", *lines]).replace(",val,", ",later,"))
    assert set(open_source(pictures / "stage.csv").splits) == {""}
