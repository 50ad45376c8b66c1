"""Published times of training steps, next to our prediction for our program on the same chips."""

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.program import Program
from deepseek_jax.recipes.experiment_file import set_field
from launch.config_file import load_config
from launch.planning.compiled import compile_programs
from launch.planning.program_table import program_table
from launch.planning.report import WIDTH
from launch.planning.roofline import Roofline, seconds_of, share_of_peak
from launch.planning.summary import fits
from launch.planning.topology import planned_mesh, recipes_programs

# Why a clock shows more than the roofline, even for the same program
LEFT_OUT = (
    "the compiler's schedule: how much of the asynchronous collectives it hides",
    "products whose tiles do not fill the matrix unit",
    "links that two collectives want at once",
)
# How the two programs differ
DIFFERENT = (
    "MaxText keeps layers' inputs, on v5p attention's outputs too, in the host's memory",
    "our buffer for routed tokens is a quarter larger than the balanced share: gathers read empty rows too",
    "MaxText splits weights over all chips alone, not experts",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published step of DeepSeek-V3's pre-training: bfloat16, synthetic data, no MTP.

    Attributes:
        topology: As for launch/plan.py.
        rows: Rows of a batch.
        length: Tokens of a row.
        seconds: Seconds of a step.
        source: Where these numbers are published.
        mesh: Our choice for the field of configs/pretrain_v3.py.
        micro_batch_size: As `mesh`.
        remat: As `mesh`.
    """

    name: str
    topology: str
    rows: int
    length: int
    seconds: float
    source: str
    mesh: dict
    micro_batch_size: int
    remat: str

    @property
    def tokens(self):
        """Tokens of a step."""
        return self.rows * self.length

    def factor(self, predicted: float):
        """Return the published seconds over the predicted seconds."""
        return self.seconds / predicted

    def fields(self):
        """Return the fields of configs/pretrain_v3.py that give the step: {dotted field: value}."""
        stage = dict(
            sequence_length=self.length,
            batch_size=self.rows,
            micro_batch_size=self.micro_batch_size,
            mtp_weight=0.0,
        )
        return {
            "mesh": self.mesh,
            "model.num_nextn_predict_layers": 0,
            "model.remat": self.remat,
            **{f"stages.stage_1.{name}": value for name, value in stage.items()},
        }


# From MaxText's recipes in the repository AI-Hypercomputer/tpu-recipes
PUBLISHED = (
    Published(
        "512 v5p chips",
        "v5p:8x8x8",
        rows=512 * 6,
        length=8192,
        seconds=90.668,
        source="training/v5p/DeepSeek3-671B-MaxText: 25,165,824 tokens a step, float32 weights",
        mesh=dict(data=1, fsdp=16, expert=32),
        micro_batch_size=512,
        remat="attention",
    ),
    Published(
        "128 tpu7x chips",
        "tpu7x:4x4x8",
        rows=256 * 8,
        length=4096,
        seconds=27.02,
        source="training/ironwood/deepseek3-671b/4k-bf16-tpu7x-4x4x8: random routing",
        mesh=dict(data=1, fsdp=8, expert=32),
        micro_batch_size=256,
        # A core has half of a chip's memory
        remat="full",
    ),
)


def published(cache: Path | None):
    """Print each published step next to our prediction.

    Args:
        cache: The folder of compiled plans; None for no cache.

    Returns:
        Whether our programs of these steps fit.
    """
    fitting = []
    for row in PUBLISHED:
        config = load_config("pretrain_v3")
        for field, value in row.fields().items():
            set_field(config, field, value)
        mesh, chip = planned_mesh(row.topology, config.mesh, config.model)
        (program,) = recipes_programs(config, mesh)
        fitting.append(print_published(row, program, chip, cache))
    return all(fitting)


def print_published(row: Published, program: Program, chip: Chip, cache: Path | None):
    """Compile our program of a published step, and print both times.

    Returns:
        Whether the program fits.
    """
    console = Console(width=WIDTH, soft_wrap=True)
    [(_, compiled)] = compile_programs([program], cache)
    seconds = seconds_of(program, compiled, chip)
    console.print(program_table(program, compiled, seconds, chip))
    if seconds is not None:
        console.print(published_table(row, program, seconds.call, chip))
    return fits(program, compiled, chip)


def published_table(row: Published, program: Program, seconds: Roofline, chip: Chip):
    """Return a rich Table of the predicted and the published time, and why they differ."""
    table = Table(title=row.name, show_header=False, title_justify="left")
    table.add_row("source", row.source)
    table.add_row("tokens a step", f"{row.tokens:,} = {row.rows:,} rows x {row.length:,}")
    table.add_row("published", f"{row.seconds:.2f} s, {_mfu(program, row.seconds, chip)}")
    for name, predicted in {"at least": seconds.at_least, "likely": seconds.likely}.items():
        text = f"{predicted:.2f} s, {_mfu(program, predicted, chip)}; published is "
        table.add_row(f"predicted, {name}", f"{text}{row.factor(predicted):.2f} times that")
    for line in LEFT_OUT:
        table.add_row("left out", line)
    for line in DIFFERENT:
        table.add_row("different", line)
    return table


def _mfu(program, seconds, chip):
    return f"MFU {share_of_peak(program.flops, seconds, chip, program.mesh.size):.1%}"
