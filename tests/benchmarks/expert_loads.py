"""How uneven experts' loads are at the start of pre-training: what model.expert_buffer and a stage's need.

python -m tests.benchmarks.expert_loads

The first 500 updates of configs/pretrain_small.py (4,096 tokens each, a constant batch), with its own 8
experts and with as many as V3-like models have, of smaller width. A device has an equal share of the experts;
a number is the load of the busiest device, in any layer and any update of the range, over the mean: the
expert_buffer with which nothing overflows. Loads of single devices' tokens, or of a micro-batch's, vary more.

The second table is of DeepSeek-V3's first update, simulated: random routers give each id of its vocabulary 8
of 256 experts, in 4 of 8 groups, and ids come with Zipf's frequencies; 32 devices, 58 layers.
"""

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import pretrain_small
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import build_model, random_params
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from deepseek_jax.training.schedule import Phase, stepwise
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import gradients_of, update_of
from deepseek_jax.worlds.registry import named_tokenizer

UPDATES, ROWS = 500, 16
# Each range ends before the next one's first update
RANGES = 0, 10, 50, 100, 200, 300, 400, UPDATES
# Experts -> (what differs of the model, numbers of devices). 64 and 256: V2-Lite's and V3's
SMALL = dict(moe_intermediate_size=32)
MODELS = {
    8: ({}, (4,)),
    64: (SMALL | dict(num_experts_per_tok=6, n_group=1, topk_group=1), (8, 32)),
    256: (SMALL | dict(num_experts_per_tok=8, n_group=8, topk_group=4), (8, 32)),
}
SPEEDS = 0.001, 0.01
# DeepSeek-V3's
VOCABULARY, LAYERS = 129_280, 58
FOLDER = Path(tempfile.gettempdir())


def loads_of(experts: int, more: dict, speed: float):
    """Tokens of each expert: float32[updates, layers, e]."""
    config = pretrain_small.get_config("fp8=False")
    config.model.update(more, n_routed_experts=experts)
    settings = build(PretrainSettings, config, "config")
    model, stage = build_model(settings.model), settings.stages["stage_1"]
    phases = (
        stage.optimizer.phases[0],
        Phase("constant", UPDATES - stage.optimizer.phases[0].steps, 2e-3),
    )
    tx = dataclasses.replace(stage.optimizer, phases=phases).make(UPDATES)

    def loss_fn(params, batch, rng):
        return next_token_loss(model, params, batch, mtp_weight=0.3)

    gradients = gradients_of(loss_fn, 1)
    move = update_of(tx, bias_update_speed=stepwise(speed))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, batch):
        (loss, metrics), grads = gradients(state, batch, jax.random.key(0))
        loads = [jnp.atleast_2d(r.load) for r in metrics["routing"].values()]
        return move(state, grads, metrics | {"loss": loss})[0], jnp.concatenate(loads)

    documents, _ = open_corpus(settings.data, FOLDER, settings.seed)
    rows = Rows(sequence_length=stage.sequence_length, batch_size=ROWS)
    batches = pack(documents, named_tokenizer(settings.data.tokenizer), rows, seed=settings.seed)
    state, found = TrainState.create(random_params(model), tx), []
    for batch in itertools.islice(batches, UPDATES):
        state, loads = update(state, batch)
        found.append(loads)
    return np.stack(found)


def busiest(loads, devices: int):
    """The load of the busiest of so many devices over the mean, in any layer: float32[updates]."""
    of_devices = loads.reshape(*loads.shape[:2], devices, -1).sum(-1)
    return (of_devices.max(-1) / of_devices.mean(-1)).max(-1)


def by_ids(ids: int):
    """Loads of the busiest of 32 devices over the mean, where experts depend on the id: float64[layers]."""
    frequency = 1 / np.arange(1, ids + 1)
    return np.array([_one_layer(frequency / frequency.sum(), seed) for seed in range(LAYERS)])


def _one_layer(share, seed):
    """One random router. share: of each id."""
    experts, groups, chosen, devices = 256, 8, 8, 32
    scores = np.random.default_rng(seed).normal(size=(len(share), groups, experts // groups))
    # A group scores by its best two, and four groups are open
    of_groups = np.sort(scores, -1)[..., -2:].sum(-1)
    is_open = of_groups >= np.sort(of_groups, -1)[:, [-4]]
    scores = np.where(is_open[..., None], scores, -np.inf).reshape(len(share), experts)
    best = np.argpartition(-scores, chosen, axis=1)[:, :chosen]
    load = np.bincount(best.ravel(), np.repeat(share, chosen), experts).reshape(devices, -1).sum(1)
    return load.max() / load.mean()


def main():
    ranges = list(itertools.pairwise(RANGES))
    names = " | ".join(f"{first} to {last - 1}" for first, last in ranges)
    print(f"| experts | devices | bias_update_speed | {names} |")
    print(f"|{'---|' * (3 + len(ranges))}")
    for experts, (more, splits) in MODELS.items():
        for speed in SPEEDS:
            loads = loads_of(experts, more, speed)
            for devices in splits:
                ratio = busiest(loads, devices)
                cells = " | ".join(f"{ratio[first:last].max():.2f}" for first, last in ranges)
                print(f"| {experts} | {devices} | {speed} | {cells} |", flush=True)
    loads = by_ids(VOCABULARY)
    print("\n| ids | median layer | 90% of layers | busiest layer |\n|---|---|---|---|")
    cells = " | ".join(f"{np.quantile(loads, share):.2f}" for share in (0.5, 0.9, 1))
    print(f"| {VOCABULARY:,} | {cells} |")


if __name__ == "__main__":
    main()
