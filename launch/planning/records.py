"""Records of a compiled program in a plan: its memory and its costs.

Tests: tests/launch/planning/test_report.py.
"""

import dataclasses

from jax.sharding import PartitionSpec

from launch.planning.hlo import Cost

# The fields of a CompiledProgram that are Costs
COSTS = "cost", "token", "two_rounds"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, for one program.

    Attributes:
        arguments: The arguments.
        updated: The part of the arguments that results replace.
        results: The results.
        temporaries: The temporary arrays.
        peak: The most that is alive at once.
    """

    arguments: int
    updated: int
    results: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A program as compiled for one device, or the compiler's refusal.

    Attributes:
        memory: None after a refusal.
        cost: The Cost of a call; for a program that decodes, without its tokens.
        token: The Cost of one turn of the decoding loop; None for a program that does not decode.
        two_rounds: The Cost of a turn that exchanges experts' rows in two rounds
            (parallel.round_trip). None without such rounds.
        specs: The PartitionSpecs of the results.
        refusal: Why the compiler refuses the program; None if it does not.
        seconds: Seconds that the compiler took; None for a result from the cache.
    """

    memory: Memory | None = None
    cost: Cost | None = None
    token: Cost | None = None
    two_rounds: Cost | None = None
    specs: tuple[PartitionSpec, ...] = ()
    refusal: str | None = None
    seconds: float | None = dataclasses.field(default=None, compare=False)

    @property
    def costs(self):
        """The fields in COSTS: {name: Cost or None}."""
        return {name: getattr(self, name) for name in COSTS}

    @property
    def main(self):
        """The Cost of the part (a call or a token) that the Program's tokens and flops describe."""
        return self.token or self.cost
