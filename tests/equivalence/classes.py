"""The list: runs that must end alike, and a fault that each class has to notice."""

import dataclasses
from typing import NamedTuple

from tests.equivalence.runs import Run

# Parts of a program that no field of a config chooses
FORMS = "from deepseek_jax.ops.platform import FORMS, SIZES\n"
PLAIN_FORMS = """
for table in (FORMS, SIZES):
    table.update({name: {"any": row["any"]} for name, row in table.items()})
"""
BLOCKS = "SIZES.update(longest_whole_row={'any': 8}, attention_block={'any': 16})"
KERNELS = """
for name in ("attend", "grouped_matmul", "product_over_rows"):
    FORMS[name] = {"any": "interpreted"}
SIZES["longest_whole_row"] = {"any": 8}
"""
CHUNKS = "SIZES['logits_alive'] = {'any': 264 * 48}"
BACKWARDS = """
import jax
jax.devices = lambda *kind, _devices=jax.devices: _devices(*kind)[::-1]
"""
# How many processes score, whatever a reward asks for
SCORERS = """
from deepseek_jax.rewards.workers import WorkerPool
init = WorkerPool.__init__
WorkerPool.__init__ = lambda self, *args, **more: init(self, *args, **more | {"num_workers": 5})
"""
PIECES = "from deepseek_jax.rollout import turns\nturns.CHUNKS = (3, 5)"
# Leaves the text of the first update, and those of the plan's programs, in the work directory
PROGRAMS = """
import json
from pathlib import Path
from deepseek_jax.recipes import driver
from deepseek_jax.training.update import Update

FOLDER = Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])

def text(function, arguments):
    return function.trace(*arguments).lower().as_text()

def run(recipe, settings, of, *more, _run=driver.run):
    planned = driver.plan(recipe, settings, of.mesh)
    texts = [text(program.function, program.arguments) for program in planned]
    (FOLDER / "planned.json").write_text(json.dumps(texts))
    _run(recipe, settings, of, *more)

def call(self, *arguments, _call=Update.__call__):
    if not (FOLDER / "ran.txt").exists():
        (FOLDER / "ran.txt").write_text(text(self.jitted, arguments))
    return _call(self, *arguments)

driver.run, Update.__call__ = run, call
"""

PRETRAIN, GRPO, TALK = Run("pretrain"), Run("grpo"), Run("talk")
MESH = ("mesh={'fsdp': 2, 'expert': 2}",)
SPREAD = Run("pretrain", MESH, devices=4)
# Prompts are run in chunks that fill the slots, and split over the devices
PREFILLED = ("prefilled_positions",)
SIGNAL = "stopped by a signal at its first line, and resumed"


@dataclasses.dataclass(frozen=True)
class Class:
    """Runs that end alike. says: how `changed` differs from `plain`. bits: whether they are equal to the bit.
    other: metrics that one run has alone, or of other data.
    """

    says: str
    plain: Run
    changed: Run
    bits: bool = False
    other: tuple[str, ...] = ()


def on(axis: str) -> Class:
    """pretrain over two devices of a mesh's axis."""
    changed = Run("pretrain", (f"mesh={{'{axis}': 2}}",), devices=2)
    return Class(f"mesh.{axis}=2", PRETRAIN, changed)


def formed(says: str, before: str) -> Class:
    """pretrain with other forms of its operations."""
    return Class(says, PRETRAIN, Run("pretrain", before=FORMS + before))


AXES = "data", "fsdp", "expert", "context", "tensor", "pipeline", "slices"
CLASSES = {axis: on(axis) for axis in AXES} | {
    "mesh of GRPO": Class(
        f"{MESH[0]}, also for sampling",
        GRPO,
        Run("grpo", MESH, devices=4),
        # One device sends no token to another
        other=(*PREFILLED, "exchange_rounds"),
    ),
    "processes": Class(
        "two processes", SPREAD, dataclasses.replace(SPREAD, devices=2, processes=2)
    ),
    "order of devices": Class(
        "the last one first", SPREAD, dataclasses.replace(SPREAD, before=BACKWARDS), bits=True
    ),
    "micro-batches": Class(
        "micro_batch_size=2 of 8",
        PRETRAIN,
        Run("pretrain", ("stages.stage.micro_batch_size=2",)),
        # A held-out batch has the rows of a micro-batch
        other=("held_out_loss",),
    ),
    "micro-batches of GRPO": Class("micro_batches=2", GRPO, Run("grpo", ("micro_batches=2",))),
    "packing": Class(
        "one document a row",
        Run("rows"),
        Run("rows", ("data.packing=False", "stages.stage.batch_size=256")),
    ),
    "resumption": Class(SIGNAL, PRETRAIN, Run("pretrain", stops=True), bits=True),
    "resumption of conversations": Class(SIGNAL, TALK, Run("talk", stops=True), bits=True),
    "remat": Class("remat='full'", PRETRAIN, Run("pretrain", ("model.remat=full",))),
    "remat and scan": Class(
        "remat='selective', scan_layers=True",
        PRETRAIN,
        Run("pretrain", ("model.remat=selective", "model.scan_layers=True")),
    ),
    "chunks of logits": formed("48 tokens a chunk in place of 256", CHUNKS),
    "forms of a CPU": formed("the forms of any machine", PLAIN_FORMS),
    "attention by blocks": formed("blocks of 16 tokens", BLOCKS),
    "kernels": formed("attention and experts by Pallas, interpreted", KERNELS),
    "slots": Class("slots=3 of 8", GRPO, Run("grpo", ("rollout.slots=3",)), other=PREFILLED),
    "one turn": Class(
        "conversations of one turn in place of single answers",
        GRPO,
        Run("turn"),
        other=("turns", "tool_calls", "tool_errors", "truncated_turns", "rewritten_turns"),
    ),
    "kept caches": Class(
        "texts read into the caches 3 and 5 tokens at a time in place of 8, 32 and 128",
        TALK,
        Run("talk", before=PIECES),
    ),
    "workers of environments": Class(
        "conversation.workers=3 of 2", TALK, Run("talk", ("conversation.workers=3",)), bits=True
    ),
    "workers of rewards": Class("five of 2", GRPO, Run("grpo", before=SCORERS), bits=True),
    "run and plan": Class(
        "its update against the plan's, as text",
        SPREAD,
        dataclasses.replace(SPREAD, before=PROGRAMS),
        bits=True,
    ),
}


class Fault(NamedTuple):
    """A text that stands once in a file of deepseek_jax, and what takes its place."""

    file: str
    old: str
    new: str


# class | fields of a Fault. That of micro-batches is within the tolerance: the drift alone shows it
PLANTED = """
data | parallel/tokens.py | )(hidden, | )(hidden * (1 + 1e-4 * (mesh.shape["data"] > 1)),
fsdp | parallel/gather.py | cotangent.astype(jnp.float32) | cotangent.astype(jnp.bfloat16) + jnp.float32(0)
expert | parallel/dispatch.py | len(x_md) * min(experts_ma.shape[1], local_experts) | len(x_md)
context | parallel/tokens.py | )(hidden, | )(hidden * (1 + 1e-4 * (mesh.shape["context"] > 1)),
tensor | parallel/dispatch.py | psum(y_md.astype(jnp.float32) | psum(y_md.astype("bfloat16") + jnp.float32(0)
pipeline | parallel/pipeline.py | (index < stage_s + micro_batches) | (index >= 0)
slices | parallel/tokens.py | )(hidden, | )(hidden * (1 + 1e-4 * (mesh.shape["slice"] > 1)),
mesh of GRPO | parallel/trip.py | expert_e < device * own_experts | expert_e <= device * own_experts
processes | data/batches.py | np.float32)) / copies | np.float32)) / num_shares
order of devices | parallel/shard.py | sharding, value) | sharding, value[:: -bool(jax.devices()[0].id) or 1])
micro-batches | training/micro_batches.py | t + g.astype | t + 1.000003 * g.astype
micro-batches of GRPO | losses/grpo.py | maximum(batch["num_completions"] | maximum(mask_bt.any(-1).sum()
packing | ops/attention.py | segment_ids[:, :, None] == | 0 * segment_ids[:, :, None] <
resumption | training/loop.py | source.set_state(checkpoint | source.get_state(), (checkpoint
resumption of conversations | reinforce/groups.py | self.position = state["position"] | self.position = 0
remat | models/decoder.py | normed_btd = self | normed_btd = (1 + 1e-4 * (self.config.remat == "full")) * self
remat and scan | models/decoder.py | = self(x_btd, | = self(x_btd * (1 + 1e-4 * self.config.scan_layers),
chunks of logits | ops/logprobs.py | = again_mv if | = again_mv.astype(jnp.bfloat16).astype(jnp.float32) if
forms of a CPU | ops/cpu/grouped_matmul.py | left_pd, jnp.where(own_p1, right_pf, 0) | left_pd, right_pf
attention by blocks | ops/attention.py | rescale * weight_sum + weights | weight_sum + weights
kernels | ops/pallas/attention.py | (0, padding)]).astype(jnp.int32) | (0, padding)]).astype(jnp.int32) * 0
slots | rollout/steps.py | keys=jnp.where(seats, keys, slots.keys) | keys=slots.keys
one turn | rollout/steps.py | completion_room) <= index_b1 | completion_room) < index_b1
kept caches | rollout/turns.py | <= index_bc[..., None] | <= index_bc[:, -1:, None] + 0 * index_bc[..., None]
workers of environments | environments/worker.py | {seed} {count} | {seed} {len(_state.environments)}
workers of rewards | rewards/workers.py | results[job.key] = result | results[len(results)] = result
run and plan | recipes/kinds/pretrain.py | rows = max( | rows = 2 * max(
"""
FAULTS = {
    name: Fault(*fields)
    for name, *fields in (line.split(" | ") for line in PLANTED.strip().splitlines())
}
