"""Hints for misspelt names and paths."""

from pathlib import Path

import pytest

from zoo.suggest import did_you_mean, nearest_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("phtos", "photos"), ("phtos/", "photos"), ("phtos/cat", "photos/cat"), ("photos/cta", "photos/cat"),
     ("./phtos/cta", "photos/cat"), ("tabel.csv", "table.csv"), ("qqqq", ""), ("photos/qqqq", ""), (".hidde", "")],
)  # fmt: skip
def test_a_misspelt_path_is_matched_part_by_part(typed, meant, tmp_path, monkeypatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "table.csv").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_path(Path(typed)) == meant
    assert nearest_path(tmp_path / typed) == (str(tmp_path / meant) if meant else "")


def test_abbreviations_and_similar_names():
    assert did_you_mean("--lr", ["--learning-rate", "--seed"]) == "did you mean --learning-rate?"
    assert did_you_mean("--sed", ["--learning-rate", "--seed"]) == "did you mean --seed?"
    assert did_you_mean("zzz", ["a"]) == ""
