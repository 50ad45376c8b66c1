"""How many of the keys that neighbouring queries select are the same: would one gather do for all of them?

python -m tests.benchmarks.shared_keys runs/v32_small

In a finished run of configs/v32_small.py. A number is the size of the union of the selections of 32 or 64
neighbouring queries, over the sum of their sizes, in the second half of the rows, where a query selects an
eighth to a quarter of the keys that it sees. Rows are held-out ones of the run's data. "by chance" is what
as many random selections from those keys have: the row is so short that no union is large.
"""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np

from configs import v32_small
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.models import hidden_states, indexer
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer

NEIGHBOURS, ROWS = (32, 64), 4


def selections(run: Path):
    """Slots that the queries of a few rows select: int32[layers, b, t, k]."""
    config = v32_small.get_config()
    settings = build(PretrainSettings, config, "config")
    _, held_out = open_corpus(settings.data, run, settings.seed)
    stage = settings.stages["stage_2_sparse"]
    rows = Rows(sequence_length=stage.sequence_length, batch_size=ROWS)
    tokenizer = named_tokenizer(settings.data.tokenizer)
    batch = next(itertools.islice(pack(held_out, tokenizer, rows, seed=0), 1))
    model, params = load_orbax(run / "stage_2_sparse" / "params")
    found, save = [], indexer._save_selection

    def keep(slots):
        jax.debug.callback(lambda slots: found.append(np.asarray(slots)), slots, ordered=True)
        return save(slots)

    indexer._save_selection = keep
    hidden, _ = jax.jit(hidden_states, static_argnums=0)(
        model, params, batch["tokens"], segment_ids=batch["segment_ids"]
    )
    jax.block_until_ready(hidden)
    jax.effects_barrier()
    return np.stack(found)


def shared(slots, neighbours: int, seed: int = 0):
    """(union over sum, the same of random selections) of blocks of queries: float64[blocks] each."""
    rng, found = np.random.default_rng(seed), []
    for block in slots.reshape(-1, neighbours, slots.shape[-1]):
        # The first queries of a document select fewer keys
        if (block >= 0).all():
            keys = np.arange(block.min(), block.max() + 1)
            chance = np.stack([rng.choice(keys, block.shape[1], replace=False) for _ in block])
            found.append([len(np.unique(each)) / block.size for each in (block, chance)])
    return np.array(found).T


def main():
    """Print the table."""
    slots = selections(Path(sys.argv[1]))
    slots = slots[:, :, slots.shape[2] // 2 :]
    print("| neighbours | median | least | most | median by chance |\n|---|---|---|---|---|")
    for neighbours in NEIGHBOURS:
        ratios, chance = shared(slots, neighbours)
        numbers = np.median(ratios), ratios.min(), ratios.max(), np.median(chance)
        print("|", " | ".join([str(neighbours), *(f"{number:.2f}" for number in numbers)]), "|")


if __name__ == "__main__":
    main()
