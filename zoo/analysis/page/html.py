"""HTML that cannot be broken by names: text is escaped unless an element was built here."""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.text import printable

_EMPTY = {"img", "meta", "br", "hr", "input", "link"}


class Markup(str):
    """HTML built by `element`; everything else that becomes a child is escaped."""


def escape(text: Any) -> Markup:
    """Return text as HTML, with control characters made visible."""
    return Markup(html.escape(printable(str(text)), quote=True))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        tag: name of the element.
        *children: elements, text, or lists of them; None is left out.
        **attributes: values are escaped; None and False are left out, True stands alone. `class_` is class, and other
            underscores are hyphens.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        parts.append(f" {name}" if value is True else f' {name}="{escape(value)}"')
    inside = "".join(_flatten(children))
    return Markup("".join(parts) + (">" if tag in _EMPTY else f">{inside}</{tag}>"))


def _flatten(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, (list, tuple)):
            yield from _flatten(child)
        else:
            yield child if isinstance(child, Markup) else escape(child)


def table(
    caption: str, header: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: bool = True, class_: str = ""
) -> Markup:
    """Return a table that scrolls sideways if it is too wide; the first column names the rows.

    Args:
        caption: read out by screen readers, and the name of the region that scrolls.
        header: titles of the columns.
        rows: cells; the first cell of a row is its header.
        numbers: align the other cells to the right.
        class_: class of the table.
    """
    kind = "number" if numbers else None
    head = element(
        "tr", [element("th", cell, scope="col", class_=kind if column else None) for column, cell in enumerate(header)]
    )
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell, class_=kind) for cell in row[1:]])
        for row in rows
    ]
    content = element("table", element("caption", caption), element("thead", head), element("tbody", body),
                      class_=class_ or None)  # fmt: skip
    return scrolling(caption, content)


def scrolling(name: str, *children: Any) -> Markup:
    """Return a region that scrolls sideways and that the keyboard reaches."""
    return element("div", *children, class_="scroll", tabindex="0", role="region", aria_label=name)


def picture(uri: str, alt: str, width: int, height: int, class_: str = "pixels") -> Markup:
    """Return an image, in the given size in CSS pixels."""
    return element("img", src=uri, alt=alt, width=width, height=height, class_=class_)


def document(title: str, style: str, *body: Any, script: str = "", images: str = "data:", connect: str = "") -> str:
    """Return a whole page. Its policy allows no source but itself.

    Args:
        title: title of the page.
        style: style sheet.
        *body: the elements of the body.
        script: a script, or "" for none.
        images: sources of images.
        connect: sources that the script may request, or "" for none.
    """
    policy = {
        "default-src": "'none'",
        "img-src": images,
        "style-src": f"'sha256-{_digest(style)}'",
        "script-src": f"'sha256-{_digest(script)}'" if script else "",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    rules = "; ".join(f"{name} {value}" for name, value in policy.items() if value)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=rules),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(style)),
    )
    tail = element("script", Markup(script)) if script else None
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body, tail), lang='en')}\n"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
