"""Lists of names in messages; escapes are tested with the streams and the commands that print them."""

from zoo.text import first_few


def test_first_few():
    assert first_few([]) == "" and first_few(list("abcde")) == "a, b, c, d, e"
    assert first_few(list("abcdef")) == "a, b, c, d, e and 1 more" and first_few(list("abc"), 2) == "a, b and 1 more"
    assert first_few(["a"] * 1005).endswith("and 1,000 more")
