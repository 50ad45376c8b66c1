"""The list: runs that must end alike, and a fault that each class has to notice."""

import dataclasses

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
from deepseek_jax.rewards import workers
workers.make_processes = lambda number, *start, _make=workers.make_processes: _make(5, *start)
"""
PIECES = "from deepseek_jax.rollout import turns\nturns.CHUNKS = (3, 5)"
# Leaves the text of the first update, and those of the plan's programs, in the work directory
PROGRAMS = """
import json
from pathlib import Path
from deepseek_jax.recipes import driver
from deepseek_jax.training.update import Buffered

FOLDER = Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])

def text(function, arguments):
    return function.trace(*arguments).lower().as_text()

def run(job, _run=driver.run):
    planned = driver.plan(type(job)(job.settings, job.mesh))
    texts = [text(program.function, program.arguments) for program in planned]
    (FOLDER / "planned.json").write_text(json.dumps(texts))
    _run(job)

def call(self, *arguments, _call=Buffered.__call__):
    if not (FOLDER / "ran.txt").exists():
        (FOLDER / "ran.txt").write_text(text(self._jitted, arguments))
    return _call(self, *arguments)

driver.run, Buffered.__call__ = run, call
"""

PRETRAIN, GRPO, TALK = Run("pretrain"), Run("grpo"), Run("talk")
MESH = ("mesh={'fsdp': 2, 'expert': 2}",)
SPREAD = Run("pretrain", MESH, devices=4)
COUNTED = "turns tool_calls tool_errors truncated_turns rewritten_turns".split()


@dataclasses.dataclass(frozen=True)
class Fault:
    """A text that stands once in a file of deepseek_jax, and what takes its place."""

    file: str
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class Class:
    """Runs that end alike. says: how `changed` differs from `plain`. bits: whether they are equal to the bit.
    other: metrics that one run has alone, or of other data.
    """

    says: str
    plain: Run
    changed: Run
    fault: Fault
    bits: bool = False
    other: tuple[str, ...] = ()


def on(axis: str, fault: Fault):
    """pretrain over two devices of a mesh's axis."""
    run = Run("pretrain", (f"mesh={{'{axis}': 2}}",), devices=2)
    return Class(f"mesh.{axis}=2", PRETRAIN, run, fault)


def only_where(axis: str):
    """The head reads hidden states that are larger by 1e-4 where this axis has several devices."""
    old, new = ")(hidden, head, targets, *whole)", "hidden * (1 + 1e-4 * (mesh.shape['{}'] > 1))"
    return Fault("parallel/tokens.py", old, old.replace("hidden", new.format(axis), 1))


CLASSES = {
    "micro-batches": Class(
        "micro_batch_size=2 of 8",
        PRETRAIN,
        Run("pretrain", ("stages.stage.micro_batch_size=2",)),
        # Within the tolerance of each tensor: the mean alone shows it
        Fault(
            "training/micro_batches.py",
            "t + g.astype(jnp.float32)",
            "t + 1.000003 * g.astype(jnp.float32)",
        ),
        # Held-out batches have the rows of a micro-batch
        other=("held_out_loss",),
    ),
    "micro-batches, GRPO": Class(
        "micro_batches=2",
        GRPO,
        Run("grpo", ("micro_batches=2",)),
        Fault(
            "losses/grpo.py",
            'jnp.maximum(batch["num_completions"], 1)',
            "jnp.maximum(mask_bt.any(-1).sum(), 1)",
        ),
    ),
    "data": on("data", only_where("data")),
    "fsdp": on(
        "fsdp",
        Fault(
            "parallel/gather.py",
            "cotangent = cotangent.astype(jnp.float32)",
            "cotangent = cotangent.astype(jnp.bfloat16).astype(jnp.float32)",
        ),
    ),
    "expert": on(
        "expert",
        Fault(
            "parallel/dispatch.py",
            "capacity = len(x_md) * min(experts_ma.shape[1], held)",
            "capacity = len(x_md)",
        ),
    ),
    "context": on("context", only_where("context")),
    "tensor": on(
        "tensor",
        Fault(
            "parallel/dispatch.py",
            "jax.lax.psum(y_md.astype(jnp.float32), partial_over)",
            "jax.lax.psum(y_md.astype(jnp.bfloat16).astype(jnp.float32), partial_over)",
        ),
    ),
    "pipeline": on(
        "pipeline",
        Fault(
            "parallel/pipeline.py",
            "(index >= stage_s) & (index < stage_s + micro_batches)",
            "(index >= stage_s)",
        ),
    ),
    "slices": on("slices", only_where("slice")),
    "mesh, GRPO": Class(
        "mesh.fsdp=2, expert=2, also for sampling",
        GRPO,
        Run("grpo", MESH, devices=4),
        Fault(
            "parallel/round_trip.py",
            "expert_e < device * own_experts",
            "expert_e <= device * own_experts",
        ),
    ),
    "processes": Class(
        "two processes of two devices",
        SPREAD,
        dataclasses.replace(SPREAD, devices=2, processes=2),
        Fault("data/batches.py", "np.float32)) / copies", "np.float32)) / shares"),
    ),
    "resumption": Class(
        "stopped by a signal after its first step, and resumed",
        PRETRAIN,
        Run("pretrain", stops=True),
        Fault(
            "training/loop.py",
            'source.set_state(checkpoint["data"]["source"])',
            "source.get_state()",
        ),
        bits=True,
    ),
    "resumption, conversations": Class(
        "stopped by a signal after its first step, and resumed",
        TALK,
        Run("talk", stops=True),
        Fault("reinforce/groups.py", 'self.position = state["position"]', "self.position = 0"),
        bits=True,
    ),
    "packing": Class(
        "data.packing=False: one document a row",
        Run("rows"),
        Run("rows", ("data.packing=False", "stages.stage.batch_size=256")),
        Fault(
            "ops/attention.py",
            "mask_bts = before_ts & (segment_ids[:, :, None] == segment_ids[:, None, :])",
            "mask_bts = before_ts & (segment_ids[:, None, :] > 0)",
        ),
    ),
    "remat": Class(
        "remat='full'",
        PRETRAIN,
        Run("pretrain", ("model.remat=full",)),
        Fault(
            "models/decoder.py",
            "normed_btd = self.attention_norm(x_btd)",
            "normed_btd = self.attention_norm(x_btd) * (1 + 1e-4 * (self.config.remat == 'full'))",
        ),
    ),
    "remat, scanned": Class(
        "remat='selective', scan_layers=True",
        PRETRAIN,
        Run("pretrain", ("model.remat=selective", "model.scan_layers=True")),
        Fault(
            "models/decoder.py",
            "x_btd, report, _ = self(x_btd, rope",
            "x_btd, report, _ = self(x_btd * (1 + 1e-4 * self.config.scan_layers), rope",
        ),
    ),
    "chunks of logits": Class(
        "chunks of 48 tokens in place of 256",
        PRETRAIN,
        Run("pretrain", before=FORMS + CHUNKS),
        Fault(
            "ops/logprobs.py",
            "logits_mv = again_mv if recomputed",
            "logits_mv = again_mv.astype(jnp.bfloat16).astype(jnp.float32) if recomputed",
        ),
    ),
    "slots": Class(
        "rollout.slots=3 of 8",
        GRPO,
        Run("grpo", ("rollout.slots=3",)),
        Fault("rollout/steps.py", "keys=jnp.where(seats, keys, slots.keys)", "keys=slots.keys"),
    ),
    "kept caches": Class(
        "texts read into the caches in pieces of 3 and 5 tokens in place of 8, 32 and 128",
        TALK,
        Run("talk", before=PIECES),
        Fault(
            "rollout/turns.py",
            "jnp.arange(room) <= index_bc[..., None]",
            "jnp.arange(room) <= index_bc[..., -1:, None]",
        ),
    ),
    "one turn": Class(
        "conversation.turns=1 in place of single answers",
        GRPO,
        Run("turn"),
        Fault("rollout/turns.py", "jnp.arange(room) <= index_b1)", "jnp.arange(room) < index_b1)"),
        other=tuple(COUNTED),
    ),
    "workers of environments": Class(
        "conversation.workers=3 of 2",
        TALK,
        Run("talk", ("conversation.workers=3",)),
        Fault(
            "environments/worker.py",
            "    random.seed(number)",
            "    count or random.seed(number)",
        ),
        bits=True,
    ),
    "workers of rewards": Class(
        "five processes of 2",
        GRPO,
        Run("grpo", before=SCORERS),
        Fault(
            "rewards/workers.py",
            "future.exception() or future.result() for key, future in futures.items()",
            "future.result() for key, future in zip(futures, set(futures.values()), strict=True)",
        ),
        bits=True,
    ),
    "order of devices": Class(
        "the last device first",
        SPREAD,
        dataclasses.replace(SPREAD, before=BACKWARDS),
        Fault(
            "parallel/shard.py",
            '_check_splits(mesh, f"batch[{name!r}]: axis batch", size, rows.spec[0])',
            "value = value[:: -1 if mesh.devices.flat[0].id else 1]",
        ),
        bits=True,
    ),
    "forms of a CPU": Class(
        "the forms and sizes of any machine",
        PRETRAIN,
        Run("pretrain", before=FORMS + PLAIN_FORMS),
        Fault(
            "ops/cpu/grouped_matmul.py",
            'product = einsum("pd,pf->df", left_pd, jnp.where(own_p1, right_pf, 0))',
            'product = einsum("pd,pf->df", left_pd, right_pf)',
        ),
    ),
    "attention by blocks": Class(
        "blocks of 16 tokens",
        PRETRAIN,
        Run("pretrain", before=FORMS + BLOCKS),
        Fault(
            "ops/attention.py",
            "total = shrunk * total + weights_bkms.sum(-1, keepdims=True)",
            "total = total + weights_bkms.sum(-1, keepdims=True)",
        ),
    ),
    "kernels": Class(
        "attention and experts by Pallas, interpreted",
        PRETRAIN,
        Run("pretrain", before=FORMS + KERNELS),
        Fault(
            "ops/pallas/attention.py",
            "[(0, 0), (0, padding)]).astype(jnp.int32)",
            "[(0, 0), (0, padding)]).astype(jnp.int32) * 0",
        ),
    ),
    "run and plan": Class(
        "the plan's text of the update",
        SPREAD,
        dataclasses.replace(SPREAD, before=PROGRAMS),
        Fault(
            "recipes/kinds/pretrain.py",
            "rows = max(rows for _, rows in stage.batch_sizes())",
            "rows = 2 * max(rows for _, rows in stage.batch_sizes())",
        ),
        bits=True,
    ),
}
