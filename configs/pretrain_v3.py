"""DeepSeek-V3's pre-training as published: 14.8T tokens, then contexts of 32K and 128K.

python launch/train.py --config=configs/pretrain_v3.py
python launch/plan.py --config=configs/pretrain_v3.py --topology=v5p:8x8x16       # does it fit?

The numbers are from arXiv:2412.19437, section 4. For a long context add :context=32k or
:context=128k, and --config.init_from=WORKDIR of the previous run. Set config.data.sources to your
data.

Some numbers are not published, and are ours: Adam's eps, the steps in which the batch grows, the
room for experts' tokens, and the meshes, of 1024 chips each.

Three things differ from the paper.
(1) Documents of a row do not attend to each other; the paper does not mask them.
(2) The balance loss is per document, not per packed row, so it does not depend on which documents
share a row.
(3) Matrix products are in bfloat16. :fp8 rounds their operands as published (ops/fp8_dot.py), and
saves time only on chips that multiply FP8 (of the TPUs, tpu7x).
"""

from ml_collections import ConfigDict, config_dict

from configs import models
from configs.common import batch_ramp, parse_arg, updates_until

TERA, GIGA = 10**12, 10**9
LENGTH = 4096
LAST_RATE = 7.3e-6
# Section 4.2; moments are in bfloat16 as in section 3.3.3
OPTIMIZER = dict(b1=0.9, b2=0.95, weight_decay=0.1, max_grad_norm=1.0, moment_dtype="bfloat16")


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, context="4k", fp8=False)
    c = ConfigDict(dict(recipe="pretrain", seed=arg.seed))
    # A long context starts from the previous run
    c.init_from = config_dict.placeholder(str)
    # Section 4.2: a standard deviation of 0.006. YaRN is only for long contexts (section 4.3)
    c.model = models.deepseek_v3() | dict(rope_scaling=None, initializer_range=0.006, fp8=arg.fp8)
    # Room for a quarter more than a device's balanced share of tokens; by default there is room for
    # the worst case
    c.model.expert_buffer = 1.25
    # A device has 4096 tokens of a micro-batch, so there is room to save what products compute
    c.model.remat = "selective"
    c.data = dict(sources=("/data/text/1.0.0",), tokenizer="deepseek", fim_rate=0.1)
    # The number of documents. With about 700 tokens each, a reader's share has twice as many tokens
    # as it puts into eval_batches
    c.data.num_held_out = 100_000
    # One reader for each host of four chips, or for each row of a micro-batch if it has fewer rows
    if arg.context == "4k":
        c.data.readers = 256
        c.mesh = dict(data=1, fsdp=32, expert=32)
        c.stages = dict(stage_1=from_scratch())
    elif arg.context == "32k":
        c.data.readers = 128
        c.mesh = dict(data=1, fsdp=4, expert=32, context=8)
        c.stages = dict(stage_2_32k=long_context(32_768, rows=1920, at_once=128))
    elif arg.context == "128k":
        c.data.readers = 32
        c.mesh = dict(data=1, expert=32, context=32)
        c.stages = dict(stage_3_128k=long_context(131_072, rows=480, at_once=32))
    else:
        raise ValueError(f"context={arg.context!r} is not published; allowed: 4k, 32k, 128k")
    for stage in c.stages.values():
        stage.update(dict(balance_weight=1e-4, log_every=10, eval_every=1000, save_every=1000))
        # 1000 updates take most of a day. A dozen checkpoints of the first stage stay, to go back
        # to
        stage.checkpoints = dict(minutes=60, keep_every=20_000)
        # A run of two months skips a bad stretch of documents, so that it need not wait for a
        # person
        stage.faults = dict(nonfinite=10)
    return c


def from_scratch():
    """Return the 4K stage. Published schedules count tokens, here they count updates.

    The batch grows, so an update has more tokens later.
    """
    rows = batch_ramp(3072, 15360, quantum=3072, ramp_tokens=469 * GIGA, sequence_length=LENGTH)

    def after(tokens):
        return updates_until(tokens, rows, sequence_length=LENGTH)

    ends = [2000, *map(after, (10 * TERA, 14_300 * GIGA, 14_633 * GIGA, 14_800 * GIGA))]
    steps = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    # Section 4.2: warm-up, constant up to 10T tokens, a cosine over 4.3T, then 333B and 167B at
    # constant rates
    phases = [
        dict(kind="linear", steps=steps[0], to=2.2e-4),
        dict(kind="constant", steps=steps[1]),
        dict(kind="cosine", steps=steps[2], to=2.2e-5),
        dict(kind="constant", steps=steps[3]),
        dict(kind="constant", steps=steps[4], to=LAST_RATE),
    ]
    return dict(
        sequence_length=LENGTH,
        batch_size=rows,
        micro_batch_size=1024,
        num_steps=ends[-1],
        optimizer=OPTIMIZER | dict(phases=phases),
        # Both change after the same numbers of tokens as in section 4.2: 10T and 14.3T
        mtp_weight=((0, 0.3), (after(10 * TERA), 0.1)),
        bias_update_speed=((0, 0.001), (after(14_300 * GIGA), 0.0)),
        # Ours, not published. Routers are random at first and follow the frequencies of tokens
        # until the bias has balanced them. They give the busiest device of a layer up to 2.2 times
        # its share (tests/benchmarks/expert_loads.py)
        expert_buffer=((0, 2.5), (1000, 1.25)),
    )


def long_context(length, rows, at_once):
    """Return a long-context stage: 1000 updates at the last learning rate, with YaRN."""
    return dict(
        sequence_length=length,
        batch_size=rows,
        micro_batch_size=at_once,
        num_steps=1000,
        optimizer=OPTIMIZER | dict(learning_rate=LAST_RATE),
        mtp_weight=0.1,
        bias_update_speed=0.0,
        rope_scaling=dict(models.YARN, mscale=1.0, mscale_all_dim=1.0),
    )
