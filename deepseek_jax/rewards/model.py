"""A trained reward model as a reward: it reads completions in batches, on the mesh.

The one file of this room that imports jax; nothing else here imports it, so that worker processes do without.
"""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.models.reward import predict_rewards
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.rewards.judge import reader_text

SHORTEST = 64  # tokens of the shortest rows; longer ones double, so that few shapes are compiled


class RewardModel:
    """A reward for rewards.Rewards(..., models={NAME: it}), by arXiv:2501.12948, section 3.1.

    config, params: of models.reward. render(example, text) -> ids of question, text and end token; raises
    ValueError for what it cannot read. kind: "helpfulness" scores what is for the reader alone, the text
    behind the last </think>, by the reward itself; "safety" the whole completion, by the probability of its
    being safe (the paper does not say in what unit). batch_size: rows at once, which split over the mesh.
    """

    def __init__(self, config, params, render, mesh, *, kind, batch_size):
        self.config, self.params, self.render, self.mesh = config, params, render, mesh
        self.kind, self.batch_size = kind, batch_size

        def rewards(params, batch):
            reward_b = predict_rewards(config, params, batch["tokens"], batch["segment_ids"])[0]
            return jax.nn.sigmoid(reward_b) if kind == "safety" else reward_b

        everywhere = NamedSharding(mesh, PartitionSpec())
        self._rewards = jax.jit(rewards, out_shardings=everywhere)

    def score(self, examples, completions):
        """One float per completion, or the ValueError of one that cannot be read, as in Rewards._part.

        Every process gives all completions, and gets all rewards.
        """
        results = [self._read(*pair) for pair in zip(examples, completions, strict=True)]
        order = [i for i, ids in enumerate(results) if not isinstance(ids, ValueError)]
        order.sort(key=lambda i: len(results[i]))  # like lengths side by side: little padding
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for i, reward in zip(rows, self._batch([results[i] for i in rows]), strict=True):
                results[i] = float(reward)
        return results

    def _read(self, example, completion):
        text = reader_text(completion) if self.kind == "helpfulness" else completion
        try:
            ids = self.render(example, text)
        except ValueError as error:
            return error
        limit = self.config.max_position_embeddings
        if len(ids) > limit:
            return ValueError(f"{len(ids)} tokens are beyond the reward model's {limit} positions")
        return ids

    def _batch(self, rows):
        """The rewards of up to batch_size rows of ids: float32[len(rows)]."""
        length = SHORTEST
        while length < max(map(len, rows)):
            length *= 2
        batch = right_padded(rows + rows[:1] * (self.batch_size - len(rows)), length)
        share, shares = batch_share(self.mesh)
        batch = {name: np.split(array, shares)[share] for name, array in batch.items()}
        with jax.set_mesh(self.mesh):
            rewards = self._rewards(self.params, put_batch(self.mesh, batch))
        return np.asarray(rewards)[: len(rows)]


def right_padded(rows, length):
    """Lists of ids as a batch: tokens int32[b t], and segment_ids int32[b t], 1 on them and 0 behind."""
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([[len(ids)] for ids in rows])
    return {"tokens": tokens, "segment_ids": (np.arange(length) < lengths).astype(np.int32)}
