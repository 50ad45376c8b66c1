"""XLA's text of a compiled program (`compiled.as_text()`), as records: computations, operations, arrays."""

import functools
import math
import re
from typing import NamedTuple

HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
# What hands an array on as it is, or rounds or reorders it on the way
VIEWS = ("bitcast", "copy", "reshape", "convert", "transpose")


class Array(NamedTuple):
    """space: of memory: 0 is the device's (HBM), 1 vector memory, 5 the host's, others scalars and flags."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self):
        """Without the padding of tiled layouts."""
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or "0")[0])
        return math.prod(self.shape) * bits / 8

    @property
    def hbm_bytes(self):
        return 0 if self.space else self.bytes


class Operation(NamedTuple):
    """One line. result: its arrays, a tuple's in order. inside: the text in its parentheses."""

    name: str
    kind: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    def attribute(self, pattern: str):
        """What the pattern's group matches in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match and match[1]

    def called(self):
        """The name of the one computation that it calls, or None."""
        return self.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


class Computation(dict):
    """{name: Operation}, in order."""

    def arrays(self, names):
        return [array for name in names for array in self[name].result]

    @functools.cached_property
    def root(self):
        return next(operation for operation in self.values() if operation.is_root)

    @functools.cached_property
    def parameters(self):
        """{position: name}"""
        return {int(o.inside): o.name for o in self.values() if o.kind == "parameter"}

    @functools.cached_property
    def users(self):
        """{name: [Operation that has it as an operand, once]}"""
        users = {name: [] for name in self}
        for operation in self.values():
            for name in dict.fromkeys(operation.operands):
                users[name].append(operation)
        return users


def parse(text: str):
    """({name: Computation}, the name of the one that runs)."""
    computations, entry, current = {}, None, None
    # A kernel's metadata breaks its line
    text = re.sub(r'\n(?="|\}\})', " ", text)
    for line in text.splitlines():
        if line.startswith(" "):
            match = LINE.match(line)
            if match and current is not None:
                current[match[2]] = _operation(match[2], match[3], bool(match[1]))
            continue
        match = HEAD.match(line)
        current = computations.setdefault(match[2], Computation()) if match else None
        if match and match[1]:
            entry = match[2]
    if entry is None:
        raise ValueError("the text has no ENTRY computation; give what compiled.as_text() returns")
    return computations, entry


def _operation(name, text, is_root):
    if text.startswith("("):
        result, text = _parenthesised(text)
    else:
        result, _, text = text.partition(" ")
    kind, bracket, text = text.strip().partition("(")
    inside, attributes = _parenthesised(bracket + text)
    operands = () if kind == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Operation(name, kind, arrays(result), operands, inside, attributes, is_root)


def _parenthesised(text):
    """(what is in the parentheses that open the text, what comes after them)."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[1 : match.start()], text[match.end() :]
    raise ValueError(f"no closing parenthesis in the program's line: {text[:100]}")


@functools.lru_cache(maxsize=2**14)
def arrays(text: str):
    """The Arrays of a result's text, as "(bf16[8,128]{1,0:T(8,128)S(1)}, u32[])"; a nested tuple's flat."""
    return tuple(
        Array(
            dtype,
            tuple(int(size.removeprefix("<=")) for size in shape.split(",") if size),
            int((re.search(r"S\((\d+)\)", layout) or "00")[1]),
        )
        for dtype, shape, layout in ARRAY.findall(text)
    )
