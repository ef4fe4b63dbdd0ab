"""A renderer of formulas as MathML, which browsers draw themselves: no scripts, no network.

The converter is that of docutils, which every Sphinx has.
"""

import inspect
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def _convert(node: nodes.Node, block: bool) -> str:
    text = node.astext()
    if block and r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    # Before docutils 0.21 the second parameter was `inline`.
    inverted = "inline" in inspect.signature(latex2mathml.tex2mathml).parameters
    return latex2mathml.tex2mathml(text, block != inverted)


def inline(self: Any, node: nodes.Node) -> None:
    self.body.append(_convert(node, block=False))
    raise nodes.SkipNode


def display(self: Any, node: nodes.Node) -> None:
    self.body.append(f"<div class='math-block'>{_convert(node, block=True)}</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
