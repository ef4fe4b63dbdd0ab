"""The diagram of a network as SVG: blocks, branches and shapes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoo.analysis.page.html import Markup, element
from zoo.models.graph import ACTIVATIONS, IMAGE, Graph, Node

WIDTH, HEIGHT = 196, 40  # pixels of a box
COLUMN, ROW = WIDTH + 22, HEIGHT + 26
TITLE = 24
MARGIN = 24
SIDE_GAP = 70  # between the network and its auxiliary heads

STYLE = """svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1d2126}.small{font-size:10.5px;fill:#5a626c}
.title{font-weight:600}.frame{fill:#f5f6f8;stroke:#d5dae0}.box{stroke:#4b5563;fill:#fff}.conv{fill:#dbe8f8}
.dense{fill:#fde7d3}.pool{fill:#dff3e4}.join{fill:#f3e3f8}.io{fill:#eceef1}.edge{fill:none;stroke:#6b7280;stroke-width:1.3}
.skip{stroke:#7e22ce}"""

_KINDS = {
    "Conv": "conv", "PartialConv": "conv", "ConvPool": "conv", "Dense": "dense", "MaxPool": "pool", "AvgPool": "pool",
    "Mean": "pool", "Subsampling": "pool", "Subsample": "pool", "Add": "join", "Multiply": "join",
    "Concatenate": "join", IMAGE: "io",
}  # fmt: skip
_NAMES = {"Add": "+", "Multiply": "×", "Concatenate": "concatenate", "Mean": "mean over positions", IMAGE: "image"}


@dataclass(frozen=True)
class Box:
    """One box: a node with the norms and activations that follow it and that nothing else reads."""

    path: str
    kind: str
    text: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    column: int = 0
    row: int = 0


@dataclass(frozen=True)
class Block:
    """The boxes of one part of the network; `repeats` equal parts follow each other."""

    title: str
    boxes: tuple[Box, ...]
    repeats: int = 1
    is_side: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Return the number of columns and rows."""
        return 1 + max(box.column for box in self.boxes), 1 + max(box.row for box in self.boxes)


def diagram(graph: Graph, title: str) -> str:
    """Draw a network from the top down, as an SVG file.

    Equal blocks that follow each other are drawn once, with their number. Auxiliary heads stand beside the network.

    Args:
        graph: the graph of the network (`zoo.models.graph.trace`).
        title: title of the drawing.
    """
    merged, boxes = merge(graph)
    blocks = [place(block) for block in collapse(split_blocks(boxes, merged[graph.logits]))]
    columns = max(block.size[0] for block in blocks if not block.is_side)
    side = [block.size[0] for block in blocks if block.is_side]
    width = 2 * MARGIN + columns * COLUMN + (SIDE_GAP + max(side) * COLUMN if side else 0)
    places: dict[str, tuple[float, float]] = {}
    frames, top, bottom = [], float(MARGIN + TITLE), 0.0
    for block in blocks:
        span, rows = block.size
        has_frame = len(block.boxes) > 1
        left = MARGIN + (columns - span) * COLUMN / 2
        start = top
        if block.is_side:
            left = MARGIN + columns * COLUMN + SIDE_GAP
            start = max(places[name][1] for box in block.boxes for name in box.inputs if name in places) + ROW
        inner = start + (TITLE if has_frame else 0)
        for box in block.boxes:
            places[box.path] = (left + box.column * COLUMN + (COLUMN - WIDTH) / 2, inner + box.row * ROW)
        end = inner + (rows - 1) * ROW + HEIGHT
        if has_frame:
            frames.append(_frame(block, left, start, span * COLUMN, end - start + 10))
        bottom = max(bottom, end + 10)
        if not block.is_side:
            top = end + (30 if has_frame else 20)
    edges = [edge for block in blocks for box in block.boxes for edge in _edges(box, block, places)]
    drawn = [_draw(box, *places[box.path]) for block in blocks for box in block.boxes]
    heading = element("text", title, x=MARGIN, y=MARGIN, class_="title")
    height = round(bottom + MARGIN)
    return element(
        "svg", element("title", title), element("style", Markup(STYLE)), heading, frames, edges, drawn,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {round(width)} {height}", width=round(width), height=height,
        role="img",
    )  # fmt: skip


def merge(graph: Graph) -> tuple[dict[str, str], list[Box]]:
    """Return (node -> its box, boxes in order). A norm or activation joins the layer before it if it alone reads it."""
    readers = Counter(path for node in graph.nodes.values() for path in node.inputs)
    following = {*ACTIVATIONS.values(), "BatchNorm", "ResponseNorm"}
    owner: dict[str, str] = {}
    boxes: dict[str, Box] = {}
    for node in graph.nodes.values():
        before = owner[node.inputs[0]] if node.inputs else ""
        joins = node.kind in following and len(node.inputs) == 1 and readers[node.inputs[0]] == 1
        if joins and boxes[before].kind != IMAGE:
            owner[node.path] = before
            text = {"BatchNorm": "norm", "ResponseNorm": "response norm"}.get(node.kind, node.kind)
            boxes[before] = replace(boxes[before], text=f"{boxes[before].text}, {text}", shape=node.output)
            continue
        owner[node.path] = node.path
        inputs = tuple(dict.fromkeys(owner[path] for path in node.inputs))
        boxes[node.path] = Box(node.path, node.kind, _label(node), node.output, inputs)
    return owner, list(boxes.values())


def _label(node: Node) -> str:
    names = {"MaxPool": "max pool", "AvgPool": "average pool", "BatchNorm": "norm", "ResponseNorm": "response norm"}
    last = node.path.rpartition("/")[2]
    name = _NAMES.get(node.kind) or names.get(node.kind) or (node.kind if node.kind in ACTIVATIONS.values() else last)
    if last == "conv" and "/" in node.path:
        name = node.path.split("/")[-2]
    elif last in ("depthwise", "pointwise"):
        name = "/".join(node.path.split("/")[-2:])
    if node.kind == "Subsample":
        name = "every pixel"
    return f"{name} {node.detail}".strip()


def split_blocks(boxes: Sequence[Box], logits: str) -> list[Block]:
    """Group consecutive boxes of one module; those that do not lead to the logits are auxiliary heads."""
    inputs = {box.path: box.inputs for box in boxes}
    used: set[str] = set()
    waiting = [logits]
    while waiting:
        path = waiting.pop()
        if path not in used:
            used.add(path)
            waiting += inputs[path]
    groups: list[tuple[str, bool, list[Box]]] = []
    for box in boxes:
        name = box.path.split("/")[0] if "/" in box.path else ""
        is_side = box.path not in used
        if groups and name and groups[-1][:2] == (name, is_side):
            groups[-1][2].append(box)
        else:
            groups.append((name, is_side, [box]))
    return [Block(name or group[0].path, tuple(group), is_side=is_side) for name, is_side, group in groups]


def _signature(block: Block) -> tuple:
    """Return what equal blocks share: boxes, shapes and connections, with inputs from outside replaced."""
    number = {box.path: i for i, box in enumerate(block.boxes)}
    return tuple(
        (box.kind, box.text, box.shape, tuple(number.get(path, -1) for path in box.inputs)) for box in block.boxes
    )


def collapse(blocks: Sequence[Block]) -> list[Block]:
    """Join equal blocks that follow each other into one with their number, and connect what follows to it."""
    result: list[Block] = []
    renamed: dict[str, str] = {}
    for block in blocks:
        boxes = tuple(
            replace(box, inputs=tuple(dict.fromkeys(renamed.get(path, path) for path in box.inputs)))
            for box in block.boxes
        )
        block = replace(block, boxes=boxes)
        last = result[-1] if result else None
        equal = last and len(boxes) > 1 and not block.is_side and _signature(last) == _signature(block)
        if last and equal and _reads_only(block, last):
            renamed |= {new.path: old.path for new, old in zip(boxes, last.boxes, strict=True)}
            result[-1] = replace(last, repeats=last.repeats + 1)
            continue
        result.append(block)
    return result


def _reads_only(block: Block, before: Block) -> bool:
    """Return True if a block reads nothing but itself and the last box of the block before it."""
    own = {box.path for box in block.boxes} | {before.boxes[-1].path}
    return all(path in own for box in block.boxes for path in box.inputs)


def place(block: Block) -> Block:
    """Give every box of a block a column, one for each branch, and a row."""
    columns: dict[str, int] = {}
    rows: dict[str, int] = {}
    taken: set[str] = set()
    free = 0
    for box in block.boxes:
        inside = [path for path in box.inputs if path in columns]
        rows[box.path] = 1 + max((rows[path] for path in inside), default=-1)
        heir = [path for path in inside if path not in taken]
        if heir:
            columns[box.path] = min(columns[path] for path in heir)
            taken |= set(heir)
        else:
            columns[box.path] = free
        free = max(free, columns[box.path] + 1)
    # A box whose place is taken, as that of a second branch that is shorter, moves to a new column.
    used: set[tuple[int, int]] = set()
    for box in block.boxes:
        while (columns[box.path], rows[box.path]) in used:
            columns[box.path] += 1
        used.add((columns[box.path], rows[box.path]))
    return replace(
        block, boxes=tuple(replace(box, column=columns[box.path], row=rows[box.path]) for box in block.boxes)
    )


def _frame(block: Block, left: float, top: float, width: float, height: float) -> Markup:
    times = f"  ×{block.repeats}" if block.repeats > 1 else ""
    return element(
        "g",
        element("rect", x=f"{left - 6:g}", y=f"{top - 4:g}", width=f"{width + 12:g}", height=f"{height + 6:g}", rx=9,
                class_="frame"),
        element("text", block.title + times, x=f"{left + 4:g}", y=f"{top + 13:g}", class_="title"),
    )  # fmt: skip


def _draw(box: Box, left: float, top: float) -> Markup:
    shape = "×".join(map(str, box.shape))
    text = box.text if len(box.text) <= 32 else box.text[:31] + "…"
    middle = left + WIDTH / 2
    return element(
        "g",
        element("title", f"{box.path}: {box.kind}, output {shape}"),
        element("rect", x=f"{left:g}", y=f"{top:g}", width=WIDTH, height=HEIGHT, rx=6,
                class_=f"box {_KINDS.get(box.kind, '')}".strip()),
        element("text", text, x=f"{middle:g}", y=f"{top + 17:g}", text_anchor="middle"),
        element("text", shape, x=f"{middle:g}", y=f"{top + 32:g}", text_anchor="middle", class_="small"),
    )  # fmt: skip


def _edges(box: Box, block: Block, places: dict[str, tuple[float, float]]) -> list[Markup]:
    """Return the lines from the inputs of a box; those that pass other boxes go around them."""
    x, y = places[box.path]
    lines = []
    own = {other.path: other for other in block.boxes}
    for path in box.inputs:
        start, height = places[path]
        a, b = start + WIDTH / 2, height + HEIGHT
        end = x + WIDTH / 2
        passes = (path in own and box.row - own[path].row > 1) or (path not in own and box.row > 0)
        if passes and not block.is_side:
            aside = x + WIDTH + 8 if len({other.column for other in block.boxes}) == 1 else x + WIDTH + 10
            middle = y + HEIGHT / 2
            lines.append(element("path", d=f"M{a:g} {b:g} C{a:g} {b + 16:g} {aside:g} {b - 4:g} {aside:g} {b + 22:g} "
                                           f"L{aside:g} {middle - 8:g} Q{aside:g} {middle:g} {x + WIDTH:g} {middle:g}",
                                 class_="edge skip"))  # fmt: skip
        elif block.is_side and path not in own:
            middle = height + HEIGHT / 2
            lines.append(element("path", d=f"M{start + WIDTH:g} {middle:g} C{end:g} {middle:g} {end:g} {middle:g} "
                                           f"{end:g} {y:g}", class_="edge"))  # fmt: skip
        else:
            bend = min(max((y - b) / 2, 6), 20)
            lines.append(element("path", d=f"M{a:g} {b:g} C{a:g} {b + bend:g} {end:g} {y - bend:g} {end:g} {y:g}",
                                 class_="edge"))  # fmt: skip
    return lines
