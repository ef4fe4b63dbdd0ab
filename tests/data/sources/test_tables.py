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


def test_a_table_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes("path,label\nü,b".encode("latin-1"))
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
