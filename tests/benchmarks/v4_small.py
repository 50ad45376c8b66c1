"""DeepSeek-V4 beside DeepSeek-V3 at equal parameters and tokens: losses, accuracies, bytes of caches.

python -m tests.benchmarks.v4_small RUN ...      # finished runs of configs/v4_small.py, of both networks

It writes configs/results/v4_small.json: a row for each network, with means and 95% t intervals over its
seeds. The loss is of the base, on documents of the world that are drawn anew. Caches are those of one
sequence, counted by their shapes.
"""

import itertools
import json
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.evaluation import mean_interval
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import count_params
from deepseek_jax.models.cache import empty_cache
from deepseek_jax.models.v4.cache import empty_caches
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.recipes.run_record import read_run_record
from deepseek_jax.recipes.workdir import read_mark
from deepseek_jax.rollout import load_policy
from deepseek_jax.worlds.registry import find_corpus
from tests.benchmarks.results import FOLDER, as_text

NAMES = {"deepseek_v3": "V3", "deepseek_v4": "V4"}
# Documents of a held-out loss; two lengths of a sequence, whose difference is what a token adds
DOCUMENTS, BATCHES, LENGTHS = 2000, 20, (64, 128)


def held_out_loss(policy, settings):
    """The loss of documents that no run learns, in nats a token."""
    _, make_documents = find_corpus("arithmetic")
    documents = make_documents(num_documents=DOCUMENTS, seed=10**6 + settings["seed"])
    base = settings["base"]
    rows = Rows(sequence_length=base["sequence_length"], batch_size=base["batch_size"])
    batches = itertools.islice(pack(documents, policy.tokenizer, rows, seed=0), BATCHES)
    loss_fn = jax.jit(lambda params, batch: next_token_loss(policy.config, params, batch)[0])
    return statistics.mean(float(loss_fn(policy.params, batch)) for batch in batches)


def cache_numbers(model, length):
    """Numbers in the caches of one sequence."""

    def caches():
        if isinstance(model, V4Config):
            return empty_caches(model, 1, length, jnp.float32)
        return [empty_cache(model, 1, length, jnp.float32) for _ in range(model.num_hidden_layers)]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(caches)))


def measured(run: Path):
    """(network, its facts, the numbers of a run)."""
    settings, _ = read_mark(run)
    policy = load_policy(run / "pretrain" / "params")
    model = policy.config
    short, long = (cache_numbers(model, length) for length in LENGTHS)
    facts = {
        "network": NAMES[model.model_type],
        "parameters": count_params(model),
        "numbers a token": (long - short) // (LENGTHS[1] - LENGTHS[0]),
        "numbers of 64 tokens": short,
    }
    starts = read_run_record(run)["starts"]
    facts["version"] = f"{starts[-1]['commit'][:7]} ({starts[-1]['date']})"
    seconds = sum(start["seconds"] for start in starts)
    numbers = {"held-out loss of the base": held_out_loss(policy, settings)}
    for when in ("before", "after"):
        ways = json.loads((run / when / "scores.json").read_text())
        for way in ("sampled", "greedy"):
            numbers[f"accuracy, {way}", when] = ways[way]["scores"]["accuracy"][0]
    return facts, numbers, seconds / 60


def rows_of(runs):
    """A row for each network."""
    by_network = {}
    for run in runs:
        facts, numbers, minutes = measured(run)
        by_network.setdefault(facts["network"], (facts, [], []))
        by_network[facts["network"]][1].append(numbers)
        by_network[facts["network"]][2].append(minutes)
    for facts, numbers, minutes in by_network.values():
        over = {name: list(mean_interval([n[name] for n in numbers])) for name in numbers[0]}
        row = facts | {"minutes": {"low": round(min(minutes)), "high": round(max(minutes))}}
        for name, interval in over.items():
            if isinstance(name, tuple):
                row.setdefault(name[0], {})[name[1]] = interval
            else:
                row[name] = interval
        yield row


if __name__ == "__main__":
    path = FOLDER / "v4_small.json"
    result = json.loads(path.read_text())
    result["rows"] = list(rows_of(map(Path, sys.argv[1:])))
    path.write_text(as_text(result))
    print(path)
