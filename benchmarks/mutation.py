"""Small wrong changes to Python source, found on its syntax tree and written into its text.

Skipped: docstrings, type annotations, text for people (f-strings, messages of exceptions, prints and help texts),
`__all__`, `__version__`, and blocks that run only for type checkers or as a script.
"""

import ast
import random
import re
from collections import defaultdict
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: (r"\+", "-"), ast.Sub: ("-", "+"), ast.Mult: (r"\*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"), ast.Pow: (r"\*\*", "*"), ast.MatMult: ("@", "*"),
}  # fmt: skip
EXTREMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "ceil": "floor", "floor": "ceil", "any": "all", "all": "any",
}  # fmt: skip
#: Calls and keywords that carry text for people.
MESSAGE_CALLS = {"print", "warn", "write", "echo", "info", "debug", "error", "log", "add_parser", "set_title"}
MESSAGE_KEYWORDS = {"help", "metavar", "description", "epilog", "title", "label", "prog", "usage"}
CHOICE = re.compile(r"[\w./:=-]{1,24}")  # a string that selects something, unlike a sentence


@dataclass(frozen=True)
class Mutation:
    """A replacement of the bytes `start:stop` of a file; `lines` are those of the statement it changes."""

    kind: str
    line: int
    lines: tuple[int, int]
    start: int
    stop: int
    text: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.stop :]


def call_name(node: ast.AST) -> str:
    """Return the last part of a called name: `write` for `file.write(…)`."""
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes):
        self.source = source
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.mutations: list[Mutation] = []
        self.lines = (1, 1)
        self.bound: set[str] = set()  # names that the current function has bound so far
        self.axis = False

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.offsets[node.lineno - 1] + node.col_offset
        return start, self.offsets[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, stop = self.span(node)
        return self.source[start:stop].decode()

    def add(self, kind: str, start: int, stop: int, text: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.mutations.append(Mutation(kind, line, self.lines, start, stop, text))

    def replace(self, kind: str, node: ast.AST, text: str) -> None:
        self.add(kind, *self.span(node), text)

    def between(self, kind: str, left: ast.AST, right: ast.AST, pattern: str, text: str) -> None:
        """Replace an operator between two operands."""
        start, stop = self.span(left)[1], self.span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:stop])
        if match := re.search(pattern.encode(), gap):
            self.add(kind, start + match.start(), start + match.end(), text)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            self.lines = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno)
        super().visit(node)

    # Statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, header = self.bound, self.lines
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            first = len(self.mutations)
            self.visit(default)
            self.mutations[first:] = [
                Mutation("default argument", m.line, m.lines, m.start, m.stop, m.text) for m in self.mutations[first:]
            ]
        for decorator in node.decorator_list:
            self.lines = header
            self.visit(decorator)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.bound = {argument.arg for argument in arguments}
        for statement in node.body:
            self.visit(statement)
        self.bound = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.body)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant) or call_name(node.value) in MESSAGE_CALLS:
            return
        if isinstance(node.value, ast.Call):
            self.replace("deleted statement", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        if {"__all__", "__version__"} & set(names):
            return
        stored = [isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets]
        if all(stored) or set(names) <= self.bound:  # the first binding of a name is needed by whatever follows
            self.replace("deleted statement", node, "pass")
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                self.visit(target)
        self.bound |= set(names)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace("deleted statement", node, "pass")
        if type(node.op) in ARITHMETIC and not self.textual(node.value):
            pattern, text = ARITHMETIC[type(node.op)]
            self.between("arithmetic", node.target, node.value, pattern, text)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.replace("return None", node.value, "None")
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        self.visit(node.test)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test) or "__main__" in ast.dump(node.test):
            return
        self.negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    # Expressions

    def negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
            self.replace("negation", test, f"(not {self.text(test)})")

    def textual(self, *nodes: ast.expr) -> bool:
        """Return True if an operand is text or a list, where another operator would only raise TypeError."""
        return any(
            isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str))
            or (isinstance(node, ast.BinOp) and self.textual(node.left, node.right))
            for node in nodes
        )

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            pattern, text = COMPARISONS[type(operator)]
            self.between("comparison", left, right, pattern, text)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC and not self.textual(node.left, node.right):
            pattern, text = ARITHMETIC[type(node.op)]
            self.between("arithmetic", node.left, node.right, pattern, text)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("and/or", left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.replace("negation", node, self.text(node.operand))
        elif isinstance(node.op, ast.USub):
            self.replace("arithmetic", node, self.text(node.operand))
        self.visit(node.operand)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("constant", node, str(not value))
        elif isinstance(value, int):
            for other in sorted({value + 1, value - 1, 2 * value, 0} - {value}):
                self.replace("axis" if self.axis else "constant", node, str(other))
        elif isinstance(value, float):
            for other in sorted({2 * value, value / 2, 0.0, 1.0} - {value}):
                self.replace("constant", node, repr(other))
        elif isinstance(value, str) and CHOICE.fullmatch(value):
            self.replace("string", node, f'"{value}_x"')

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in EXTREMES:
            self.replace("min/max", node, EXTREMES[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in EXTREMES:
            stop = self.span(node)[1]
            self.add("min/max", stop - len(node.attr), stop, EXTREMES[node.attr])
        self.visit(node.value)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in filter(None, (node.lower, node.upper)):
            for sign in "+-":
                self.replace("slice", bound, f"({self.text(bound)}) {sign} 1")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if call_name(node) in MESSAGE_CALLS:
            return
        for left, right in zip(node.args, node.args[1:], strict=False):
            same = type(left) is type(right) and isinstance(left, ast.Name | ast.Attribute | ast.Constant)
            if same and self.text(left) != self.text(right):
                start, stop = self.span(left)[0], self.span(right)[1]
                middle = self.source[self.span(left)[1] : self.span(right)[0]].decode()
                self.add("swapped arguments", start, stop, self.text(right) + middle + self.text(left))
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                self.visit(keyword.value)
            elif keyword.arg not in MESSAGE_KEYWORDS:
                start, stop = self.span(keyword)
                comma = re.match(rb"\s*,", self.source[stop:])
                self.add("removed keyword", start, stop + (comma.end() if comma else 0), "")
                self.axis = keyword.arg in ("axis", "axes", "feature_axes", "axis_name")
                self.visit(keyword.value)
                self.axis = False


def find_mutations(source: bytes) -> list[Mutation]:
    """Return every mutation of a file; `is_valid` says whether one leaves a program."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return finder.mutations


def is_valid(mutation: Mutation, source: bytes) -> bool:
    """Return True if the mutated file is Python still, and a different program."""
    try:
        return ast.dump(ast.parse(mutation.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def code_lines(source: bytes) -> int:
    """Count lines that hold code: no blank lines, comments or docstrings."""
    documentation = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.decode().splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and i not in documentation for i, line in lines)


def draw(sources: dict[str, bytes], count: int, seed: int) -> list[tuple[str, Mutation]]:
    """Draw a stratified random sample of mutations, in random order.

    Modules get shares proportional to their lines of code (largest remainders first). Within a module a line is drawn,
    then a kind of mutation possible on it, then one of that kind: tables of numbers do not crowd out the rest.

    Args:
        sources: The content of every file, by its path.
        count: Number of mutations. Fewer are returned if the files have fewer lines to change.
        seed: Random seed.

    Returns:
        Pairs of path and mutation, at most one for a line.
    """
    rng = random.Random(seed)
    sizes = {path: code_lines(source) for path, source in sources.items()}
    exact = {path: count * size / sum(sizes.values()) for path, size in sizes.items()}
    shares = {path: int(share) for path, share in exact.items()}
    remainders = sorted(exact, key=lambda path: (shares[path] - exact[path], path))
    for path in remainders[: count - sum(shares.values())]:
        shares[path] += 1
    drawn = []
    for path in sorted(sources):
        lines: dict[int, dict[str, list[Mutation]]] = defaultdict(lambda: defaultdict(list))
        for mutation in find_mutations(sources[path]):
            lines[mutation.line][mutation.kind].append(mutation)
        taken = 0
        for line in rng.sample(sorted(lines), len(lines)):
            mutation = rng.choice(lines[line][rng.choice(sorted(lines[line]))])
            if taken < shares[path] and is_valid(mutation, sources[path]):
                drawn.append((path, mutation))
                taken += 1
    rng.shuffle(drawn)
    return drawn
