"""Small faults of a source file: an operator, sign, comparison, axis, constant, mask or keyword changes."""

import ast
import dataclasses
import re
from collections import Counter
from pathlib import Path

OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
}
MASKS = {ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")}
COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
AXES = {"axis", "axes", "axis1", "axis2", "dim"}
# Their integers are axes
AXIS_CALLS = set(
    "sum mean max min any all prod argmax argmin cumsum cumprod sort argsort softmax log_softmax logsumexp "
    "concatenate stack expand_dims take take_along_axis swapaxes moveaxis squeeze split flip roll".split()
)
# What these are given is wording
WORDING = {"print", "warn", "warning", "info", "debug", "error", "exception"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault. path: of the file, from the package's folder. function: where it is, "" outside of all.

    line: the text of its line, stripped; number: the line's number now. begin, end: byte offsets of what
    `new` replaces. copy: which one of the same name, from 0.
    """

    path: str
    function: str
    line: str
    kind: str
    old: str
    new: str
    number: int
    begin: int
    end: int
    copy: int = 0

    @property
    def name(self):
        """By the function and the text of the line, so that a moved line keeps what is recorded of it."""
        which = f" (number {self.copy + 1})" if self.copy else ""
        return f"{self.path} {self.function}: {self.line} | {self.old} -> {self.new}{which}"

    def planted(self, source: bytes) -> bytes:
        return source[: self.begin] + self.new.encode() + source[self.end :]


def mutants_of(path: Path, package: Path) -> list[Mutant]:
    """Every Mutant of a source file, in the order of its lines. Raises SyntaxError."""
    source = path.read_bytes()
    finder = _Finder(source, str(path.relative_to(package)))
    finder.visit(ast.parse(source))
    times, named = Counter(), []
    for mutant in sorted(finder.found, key=lambda each: (each.begin, each.end, each.new)):
        named.append(dataclasses.replace(mutant, copy=times[mutant.name]))
        times[mutant.name] += 1
    return named


class _Finder(ast.NodeVisitor):
    """Gathers the mutants of a file. Wording, annotations, decorators and checks by assert are left alone."""

    def __init__(self, source, path):
        self.source, self.path, self.found = source, path, []
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.within = []

    def add(self, kind, node, begin, end, new):
        line = self.lines[node.lineno - 1].decode().strip()
        old = " ".join(self.source[begin:end].decode().split())
        function = ".".join(self.within)
        mutant = Mutant(self.path, function, line, kind, old, new, node.lineno, begin, end)
        if mutant.old != new:
            self.found.append(mutant)

    def span(self, node):
        begin = self.starts[node.lineno - 1] + node.col_offset
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        begin, end = self.span(node)
        return self.source[begin:end].decode()

    def between(self, kind, node, left, right, old, new):
        """Replace the operator that stands between two operands."""
        begin, end = self.span(left)[1], self.span(right)[0]
        pattern = r"\s+".join(map(re.escape, old.split()))
        match = re.search(pattern.encode(), self.source[begin:end])
        if match:
            self.add(kind, node, begin + match.start(), begin + match.end(), new)

    def visit_FunctionDef(self, node):
        self.within.append(node.name)
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.within.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self.within.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.within.pop()

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    def visit_Raise(self, node):
        pass

    visit_Assert = visit_JoinedStr = visit_Import = visit_ImportFrom = visit_Raise

    def visit_BinOp(self, node):
        kinds = {"operator": OPERATORS, "mask": MASKS}
        texts = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict)
        of_text = any(
            isinstance(side, texts)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        for kind, table in kinds.items():
            if type(node.op) in table and not of_text:
                self.between(kind, node, node.left, node.right, *table[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in OPERATORS and not isinstance(
            node.value, ast.List | ast.ListComp | ast.JoinedStr
        ):
            self.between("operator", node, node.target, node.value, *OPERATORS[type(node.op)])
        self.visit(node.value)

    def visit_If(self, node):
        # A program that runs where it is imported ends any test: to catch that says nothing
        if ast.unparse(node.test) == "__name__ == '__main__'":
            for statement in node.body:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Compare(self, node):
        for left, op, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            self.between("comparison", node, left, right, *COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("mask", node, left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return self.constant(node, -node.operand.value)
        kind = "sign" if isinstance(node.op, ast.USub | ast.UAdd) else "mask"
        self.add(kind, node, *self.span(node), self.text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node):
        self.constant(node, node.value)

    def constant(self, node, value, axis=False):
        begin, end = self.span(node)
        if isinstance(value, bool):
            self.add("constant", node, begin, end, str(not value))
        elif axis and isinstance(value, int):
            self.add("axis", node, begin, end, str(value - 1 if value else 1))
        elif isinstance(value, int | float):
            changed = value + 1 if isinstance(value, int) else 2 * value or 1.0
            self.add("constant", node, begin, end, repr(changed))

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in WORDING:
            return
        if name == "stop_gradient":
            self.add("stop_gradient", node, *self.span(node), f"({self.text(node.args[0])})")
        if name == "where" and len(node.args) == 3:
            first, second = map(self.text, node.args[1:])
            begin, end = self.span(node.args[1])[0], self.span(node.args[2])[1]
            self.add("mask", node.args[1], begin, end, f"{second}, {first}")
        self.visit(node.func)
        for argument in node.args:
            self.argument(argument, name in AXIS_CALLS)
        # zip's strict checks that lengths are equal: where they are, it changes nothing
        for position, keyword in enumerate(node.keywords if name != "zip" else ()):
            # An axis or a mode that is the default is said for the reader: left out, it changes nothing
            if keyword.arg and keyword.arg not in AXES | {"mode"}:
                self.without(node, position)
            self.argument(keyword.value, keyword.arg in AXES)

    def argument(self, node, is_axis):
        for part in node.elts if is_axis and isinstance(node, ast.Tuple) else [node]:
            if isinstance(part, ast.UnaryOp) and isinstance(part.operand, ast.Constant):
                self.constant(part, -part.operand.value, is_axis)
            elif isinstance(part, ast.Constant):
                self.constant(part, part.value, is_axis)
            else:
                self.visit(part)

    def without(self, node, position):
        """Leave a keyword out of a call, with the comma behind it."""
        begin, end = self.span(node.keywords[position])
        comma = re.match(rb"\s*,\s*", self.source[end:])
        self.add("keyword", node.keywords[position], begin, end + (comma.end() if comma else 0), "")
