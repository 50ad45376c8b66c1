"""What a plan keeps of a compiled program."""

import dataclasses

from launch.planning.hlo import Cost

# The Costs of a Compiled
COSTS = "cost", "token", "two_rounds"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: a program's arguments, those of them that its results take the place of, results,
    temporaries, and the most that is alive at once.
    """

    arguments: int
    updated: int
    results: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as compiled for one device, or the compiler's refusal. cost: of a call; token: of one turn of
    its loop where it decodes, None elsewhere; two_rounds: of a turn in which experts' rows are exchanged in
    two rounds (parallel.round_trip), None without such rounds. specs: of the results' shardings. seconds: of
    the compiler; None for what was in the cache.
    """

    memory: Memory | None = None
    cost: Cost | None = None
    token: Cost | None = None
    two_rounds: Cost | None = None
    specs: tuple = ()
    refusal: str | None = None
    seconds: float | None = dataclasses.field(default=None, compare=False)

    @property
    def costs(self):
        """{name: Cost or None} of COSTS."""
        return {name: getattr(self, name) for name in COSTS}

    @property
    def main(self):
        """The Cost that the Program's tokens and flops belong to."""
        return self.token or self.cost
