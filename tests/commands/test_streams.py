"""The program with a lost reader, a narrow locale, a closed output."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import text
from zoo.commands import streams

ROOT = Path(__file__).parents[2]
SMALL = ["--model", "softmax", "--data", "digits", "--limit", "60", "--epochs", "2"]


def test_training_ends_as_usual_without_a_reader_in_an_ascii_locale(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline().startswith(b"model: softmax")
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0 and b"Traceback" not in errors and b"Exception ignored" not in errors
    assert (tmp_path / "run" / "results.json").stat().st_size > 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_text_is_discarded_once_the_pipe_is_broken():
    reader, writer = os.pipe()
    stream = streams._Escaping(os.fdopen(writer, "w", encoding="utf-8"), persistent=True)
    stream.write("read\n")
    stream.flush()
    assert os.read(reader, 100) == b"read\n"
    os.close(reader)
    for _ in range(3):
        assert stream.write("lost\n") == 5
        stream.flush()
    stream.close()  # nothing is left in the buffer that could fail


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-"])
def test_an_error_that_cannot_be_written_keeps_the_exit_code(to, tmp_path):
    command = f"'{sys.executable}' -m zoo.cli verify nowhere {to}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 2


def test_a_closed_stream_discards_and_a_narrow_one_escapes(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", narrow)
    streams.prepare_streams()
    print("…")
    print("caf\xe9 …", file=sys.stderr, flush=True)
    assert narrow.buffer.getvalue() == rb"caf\xe9 \u2026" + b"\n"
    print("\x1b[31m", file=sys.stderr, flush=True)
    assert narrow.buffer.getvalue().endswith(rb"\x1b[31m" + b"\n")
    text.unescaped(sys.stderr).write("\x1b[0m")  # as a progress bar writes
    sys.stderr.flush()
    assert narrow.buffer.getvalue().endswith(b"\x1b[0m")
    sys.stdout.close()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("a\tb\n", "a\tb\n"), ("\x1b]0;title\x07", r"\x1b]0;title\x07"), ("\r12 done", "\r12 done"), ("12\r", "12\r"),
     ("a\rb", r"a\rb"), ("\u202egnp.exe", r"\u202egnp.exe"), ("\x9b31m", r"\x9b31m"),
     ("Zürich 東京 🐝", "Zürich 東京 🐝"),
     ("\x00", r"\x00"), ("\x7f", r"\x7f")],
)  # fmt: skip
def test_control_characters_are_escaped(raw, shown):
    assert text.printable(raw) == shown


@pytest.mark.parametrize("value", ["=1+1", "+1+1", "-A1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_taken_for_a_formula(value):
    assert text.csv_cell(value) == f"'{value}"


@pytest.mark.parametrize("value", ["bee", "1-2", "", "'=x", "-1", "+2.5", -1, 0.5, None])
def test_other_cells_stay(value):
    assert text.csv_cell(value) is value


def test_leaving_writes_what_is_buffered_and_gives_the_code():
    code = "from zoo.commands.streams import leave; print('text', end=''); leave(130)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (130, b"text")
