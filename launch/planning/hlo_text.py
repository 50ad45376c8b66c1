"""Records of XLA's text of a compiled program: computations, operations, arrays.

`compiled.as_text()` returns this text.

Tests: tests/launch/planning/test_hlo.py.
"""

import functools
import math
import re
from typing import NamedTuple

HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
# Kinds of operations that pass an array on: as it is, rounded, or in another order
VIEWS = ("bitcast", "copy", "reshape", "convert", "transpose")


class Array(NamedTuple):
    """An array in the text.

    Attributes:
        dtype: XLA's name of the dtype.
        space: The kind of memory: 0 is the device's (HBM), 1 vector memory, 5 the host's. Others
            are for scalars and flags.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self):
        """Bytes, without the padding of tiled layouts."""
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or "0")[0])
        return math.prod(self.shape) * bits / 8

    @property
    def hbm_bytes(self):
        """Bytes in the device's memory; 0 for an array elsewhere."""
        return 0 if self.space else self.bytes


class Operation(NamedTuple):
    """One line of the text.

    Attributes:
        result: Its arrays; the arrays of a tuple are in order.
        operands: Names of operations.
        inside: The text in its parentheses.
        attributes: The text after its parentheses.
        is_root: True if the operation is the result of its computation.
    """

    name: str
    kind: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    def attribute(self, pattern: str):
        """Return what the pattern's group matches in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match and match[1]

    def called(self):
        """Return the name of the one computation that it calls, or None."""
        return self.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


class Computation(dict):
    """The operations of a computation, in order: {name: Operation}."""

    def arrays(self, names):
        """Return the result arrays of the operations with these names, in one list."""
        return [array for name in names for array in self[name].result]

    @functools.cached_property
    def root(self):
        """The operation that is the computation's result."""
        return next(operation for operation in self.values() if operation.is_root)

    @functools.cached_property
    def parameters(self):
        """The names of the parameters: {position: name}."""
        return {int(o.inside): o.name for o in self.values() if o.kind == "parameter"}

    @functools.cached_property
    def users(self):
        """The users of each operation: {name: [Operation that has it as an operand, once]}."""
        users: dict[str, list[Operation]] = {name: [] for name in self}
        for operation in self.values():
            for name in dict.fromkeys(operation.operands):
                users[name].append(operation)
        return users


def parse(text: str):
    """Parse the text of a program.

    Returns:
        ({name: Computation}, the name of the one that runs).

    Raises:
        ValueError: The text is not a program's.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    # A kernel's metadata has line breaks
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
    """Return (the text in the parentheses that open `text`, the text after them)."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[1 : match.start()], text[match.end() :]
    raise ValueError(f"no closing parenthesis in the program's line: {text[:100]}")


@functools.lru_cache(maxsize=2**14)
def arrays(text: str):
    """Return the Arrays in a result's text, as "(bf16[8,128]{1,0:T(8,128)S(1)}, u32[])".

    The arrays of a nested tuple are in the same flat tuple.
    """
    return tuple(
        Array(
            dtype,
            tuple(int(size.removeprefix("<=")) for size in shape.split(",") if size),
            int((re.search(r"S\((\d+)\)", layout) or "00")[1]),
        )
        for dtype, shape, layout in ARRAY.findall(text)
    )
