"""Text from files of unknown origin as part of one line."""

import errno

import pytest

from zoo.text import display_width, error_line, escape, first_line, is_finite, one_line, pad, renamed_in_errors


@pytest.mark.parametrize(
    ("name", "shown"),
    [("two\nlines", r"two\nlines"), ("a\tb\r", r"a\tb\r"), ("\x1b[2J", r"\x1b[2J"), ("\x9b31m", r"\x9b31m"),
     ("\u202egnp.exe", r"\u202egnp.exe"), ("\u2028", r"\u2028"), ("caf\udce9", r"caf\udce9"),
     ("a b é 東京 🐝", "a b é 東京 🐝")],
)  # fmt: skip
def test_names_are_escaped(name, shown):
    assert escape(name) == shown and escape(name).isprintable()


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("cat", 3), ("é", 1), ("e\u0301", 1), ("猫", 2), ("ＡＢ", 4), ("ｱ", 1), ("한글", 4)]
)
def test_columns_of_a_terminal(text, columns):
    assert display_width(text) == columns and display_width(pad(text, 6)) == 6 and pad(text, 6).startswith(text)


def test_a_message_becomes_one_line():
    assert one_line("  one\n  two\t three\r\n") == "one two three"
    assert one_line(ValueError("\x1b[31mred")) == r"\x1b[31mred"
    assert one_line(KeyError()) == "KeyError" and one_line(ValueError(" \n")) == "ValueError"


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = one_line(f"begin {'x' * 10_000} end", 100)
    assert line.startswith("begin x") and line.endswith("x end") and " … " in line and len(line) < 100
    assert one_line("x" * 100, 100) == "x" * 100


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n first\x07 \nsecond")) == r"first\x07"
    assert first_line(ValueError("  one\ntwo")) == "one" and first_line(MemoryError()) == "MemoryError"


def test_finite_numbers_are_those_that_a_float_can_hold():
    assert is_finite(0) and is_finite(-1e308) and is_finite(10**308) and is_finite(1e-320)
    assert not any(map(is_finite, (float("nan"), float("inf"), -float("inf"), 10**309, -(10**400))))


def test_an_error_line_names_the_file_of_the_system():
    error = OSError(errno.ENOENT, "No such file or directory", "two\nlines")
    assert error_line(error) == r"two\nlines: no such file or directory"
    assert error_line(ValueError("a\nb \x1b[2J")) == r"a b \x1b[2J"


class MismatchError(ValueError):
    def __init__(self, message, fields):
        super().__init__(message)
        self.fields = fields


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MismatchError("/copy/x: is wrong", {"depth": 18}), "gs://b/x: is wrong"),
        (OSError(errno.EIO, "process 1: /copy/x: lost", "/copy/x/y"), "gs://b/x/y: process 1: gs://b/x: lost"),
        (ValueError("of something else"), "of something else"),
    ],
)
def test_a_local_copy_is_renamed_in_errors_of_any_type(error, text):
    """The cause, which tells if another attempt may succeed, stays."""
    cause = ConnectionError("lost")
    with pytest.raises(type(error)) as caught, renamed_in_errors("/copy/x", "gs://b/x"):
        raise error from cause
    assert error_line(caught.value) == text
    assert caught.value is error and error.__cause__ is cause
