"""Published times of training steps, next to our prediction for our program on the same chips.

Each row is a step of pre-training in MaxText, on synthetic data, with Adam, and without multi-token
prediction. The mesh, the micro-batches and the policy of recomputation are our choice; rows, their
length and the devices are as published. The chips' constants are the same for all rows, and were
fitted to none (costs/chips.py). launch/pods.md has the table and says what is off.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from configs import models
from deepseek_jax.costs.chips import Chip
from deepseek_jax.models.remat_policies import RematName
from launch.planning.compiled import compile_programs
from launch.planning.hlo import Cost
from launch.planning.hlo_flops import GROUPED
from launch.planning.report import WIDTH
from launch.planning.roofline import Roofline, seconds_of
from launch.planning.summary import fits, held_at_once, narrow_table
from launch.planning.topology import planned_mesh, recipes_programs

# FLOPs of bfloat16 in a cycle: 8 matrix units of 128 x 128 (v5p) or 4 of 256 x 256, 2 FLOPs each. The clocks
# follow from the chips' peaks: 1.75, 1.75 and 2.2 GHz
FLOPS_IN_A_CYCLE = {"TPU v5": 2**18, "TPU v6 lite": 2**19, "TPU7x": 2**19}
# Why a clock shows more than the roofline, even for the same program
LEFT_OUT = (
    "the compiler's schedule: how much of the asynchronous collectives it hides",
    "products whose tiles do not fill the matrix unit",
    "links that two collectives want at once",
)
# How the two programs differ
DIFFERENT = (
    "MaxText saves other values of a layer, on the device or in the host's memory",
    "MaxText splits weights over all chips alone, not experts; we exchange tokens",
    "our buffer for routed tokens is a quarter larger than the balanced share",
    "MaxText routes at random on tpu7x, so that experts are balanced",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published step of pre-training, in bfloat16.

    Attributes:
        model: The fields of config.model.
        topology: As for launch/plan.py.
        rows: Rows of a batch.
        length: Tokens of a row.
        seconds: Seconds of a step.
        source: Where these numbers are published, in the repository AI-Hypercomputer/tpu-recipes,
            and the versions that ran.
        mesh: config.mesh, our choice.
        remat: config.model.remat, our choice.
        micro_batch_size: Rows with activations in memory at once, our choice; None for all.
    """

    name: str
    model: dict
    topology: str
    rows: int
    length: int
    seconds: float
    source: str
    mesh: dict
    remat: RematName
    micro_batch_size: int | None = None

    @property
    def tokens(self):
        """Tokens of a step."""
        return self.rows * self.length

    def off(self, predicted: float):
        """Return by how much a prediction is off, as a share of the published seconds."""
        return predicted / self.seconds - 1

    def config(self):
        """Return the ConfigDict of our step."""
        has_experts = "n_routed_experts" in self.model
        stage = dict(
            sequence_length=self.length,
            batch_size=self.rows,
            micro_batch_size=self.micro_batch_size,
            bias_update_speed=0.001 if has_experts else 0.0,
            num_steps=30,
            optimizer=dict(learning_rate=1e-4, moment_dtype="bfloat16"),
        )
        # Room for a quarter more tokens than a device's balanced share, as in configs/pretrain_v3.py
        experts = dict(expert_buffer=1.25, num_nextn_predict_layers=0, rope_scaling=None)
        return ConfigDict(
            dict(
                recipe="pretrain",
                seed=0,
                model=self.model | dict(remat=self.remat) | (experts if has_experts else {}),
                mesh=self.mesh,
                data=dict(sources=("arithmetic",)),
                stages=dict(step=stage),
            )
        )


PUBLISHED = (
    Published(
        "DeepSeek-V3, 512 v5p",
        models.deepseek_v3(),
        "v5p:8x8x8",
        rows=512 * 6,
        length=8192,
        seconds=90.668,
        source="training/v5p/DeepSeek3-671B-MaxText: MaxText 3eb77db, JAX 0.7.0",
        mesh=dict(data=1, fsdp=16, expert=32),
        micro_batch_size=512,
        remat="attention",
    ),
    # A core of tpu7x has half of a chip's memory, and is a device
    Published(
        "DeepSeek-V3, 128 tpu7x",
        models.deepseek_v3(),
        "tpu7x:4x4x8",
        rows=256 * 8,
        length=4096,
        seconds=27.02,
        source="training/ironwood/README.md at 0797d9c: random routing",
        mesh=dict(data=1, fsdp=8, expert=32),
        micro_batch_size=1024,
        remat="full",
    ),
    Published(
        "Llama 405B, 512 v5p",
        models.llama3_1_405b(),
        "v5p:8x8x8",
        rows=512 * 2,
        length=8192,
        seconds=131.474,
        source="training/v5p/Llama3.1-405B-MaxText: MaxText 3eb77db, JAX 0.7.0",
        mesh=dict(fsdp=512),
        remat="offload",
    ),
    Published(
        "Llama 405B, 256 tpu7x",
        models.llama3_1_405b(),
        "tpu7x:4x8x8",
        rows=512 * 3,
        length=8192,
        seconds=98.34,
        source="training/ironwood/README.md at 0797d9c",
        mesh=dict(fsdp=512),
        micro_batch_size=512,
        remat="offload",
    ),
    Published(
        "Llama 70B, 64 tpu7x",
        models.r1_distill_llama_70b(),
        "tpu7x:4x4x4",
        rows=128 * 2,
        length=8192,
        seconds=12.20,
        source="training/ironwood/README.md at 0797d9c",
        mesh=dict(fsdp=128),
        remat="attention",
    ),
    Published(
        "Llama 70B 128K, 256 tpu7x",
        models.r1_distill_llama_70b(),
        "tpu7x:4x8x8",
        rows=64,
        length=131072,
        seconds=34.02,
        source="training/ironwood/README.md at 0797d9c: context over 8 cores",
        mesh=dict(fsdp=64, context=8),
        remat="attention",
    ),
    Published(
        "Llama 8B, 256 v6e",
        models.r1_distill_llama_8b(),
        "v6e:16x16",
        rows=256 * 4,
        length=8192,
        seconds=4.546,
        source="training/trillium/Llama3.1-8B-MaxText/v6e-256: tpu-recipes-v0.1.4, JAX 0.6.1",
        mesh=dict(fsdp=256),
        remat="attention",
    ),
    Published(
        "Llama 70B, 256 v6e",
        models.r1_distill_llama_70b(),
        "v6e:16x16",
        rows=256 * 5,
        length=8192,
        seconds=42.656,
        source="training/trillium/Llama3.1-70B-MaxText/v6e-256: tpu-recipes-v0.1.4, JAX 0.6.1",
        mesh=dict(fsdp=256),
        micro_batch_size=256,
        remat="offload",
    ),
)


def published(cache: Path | None):
    """Print the table of published steps next to our predictions.

    Args:
        cache: The folder of compiled plans; None for no cache.

    Returns:
        Whether our programs of these steps fit.
    """
    table, notes, fitting = published_table(), [], []
    for row in PUBLISHED:
        mesh, chip = planned_mesh(row.topology, row.mesh, row.model)
        [program] = recipes_programs(row.config(), mesh)
        [(_, compiled)] = compile_programs([program], cache)
        seconds = seconds_of(program, compiled, chip)
        fitting.append(fits(program, compiled, chip))
        note = f"{row.name}: {row.source}; {row.rows:,} rows x {row.length:,}"
        if seconds is None:
            table.add_row(row.name, f"{row.seconds:.1f}")
            notes.append(f"{note}; our program does not compile: {compiled.refusal}")
        else:
            table.add_row(*cells(row, compiled.cost, seconds.call, chip))
            held = held_at_once(program, compiled) / chip.hbm_bytes
            notes.append(f"{note}; ours holds {held:.0%} of a device's memory")
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(note)
    for title, lines in {"left out": LEFT_OUT, "different": DIFFERENT}.items():
        console.print(f"{title}: {'; '.join(lines)}")
    return all(fitting)


def published_table():
    """Return the rich Table without rows."""
    # No line is wider than the page, because a caption does not wrap
    caption = (
        "likely: the longest of work with its latency, HBM and hidden; then waits and their latency.\n"
        "cycles: the same with XLA's cycles for the work, and kernels at the peak. off: over published.\n"
        "work: operations, by the peaks. hidden, waits: collectives that other work hides, and others."
    )
    table = narrow_table("seconds of published steps", caption)
    table.add_column("step", no_wrap=True)
    predicted = "at\nleast", "likely", "off", "cycles", "off"
    for name in ("pub-\nlished", *predicted, "work", "HBM", "hidden", "waits"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def cells(row: Published, cost: Cost, seconds: Roofline, chip: Chip):
    """Return the table's cells of a step."""
    cycles = by_cycles(cost, seconds, chip)
    predicted = (f"{seconds.at_least:.1f}", *_off(row, seconds.likely), *_off(row, cycles))
    parts = seconds.operations, seconds.memory, seconds.asynchronous, seconds.waited
    return row.name, f"{row.seconds:.1f}", *predicted, *(f"{part:.1f}" for part in parts)


def _off(row, predicted):
    return f"{predicted:.1f}", f"{row.off(predicted):+.0%}"


def by_cycles(cost: Cost, seconds: Roofline, chip: Chip):
    """Return the likely seconds with XLA's estimates of its operations in place of the peaks.

    XLA gives none for kernels, which count at the peak, nor for collectives.
    """
    kernels = sum(
        flops
        for label, flops in cost.flops.items()
        if label.startswith(GROUPED) or " x " not in label
    )
    cycles = cost.cycles + kernels / FLOPS_IN_A_CYCLE[chip.device_kind]
    work = cycles * FLOPS_IN_A_CYCLE[chip.device_kind] / chip.flops_per_second
    overlapped_seconds = max(work, seconds.memory, seconds.asynchronous)
    return overlapped_seconds + seconds.waited + seconds.collective_latency
