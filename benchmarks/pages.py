"""Generated parts of pages that are written by hand."""


def replace_block(text: str, name: str, content: str) -> str:
    """Return the text of a page with other lines between <!-- name --> and the next <!-- end -->.

    Args:
        text: of the page.
        name: of the block.
        content: the new lines, without a line end.

    Raises:
        ValueError: if the page has no such block.
    """
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not start or not end:
        raise ValueError(f"the page has no block <!-- {name} --> … <!-- end -->")
    return f"{before}{start}{content}\n{end}{after}"
