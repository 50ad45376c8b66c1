"""A trained reward model as a reward: it reads completions in batches, on the mesh.

Only this file of the room imports jax. No other file here imports this one, so that workers start
without jax.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.data.preferences import RewardKind
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.reward import predict_rewards
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.rewards.judge import reader_text
from deepseek_jax.trees import PyTree

# Padded length of the shortest rows in tokens. Longer rows double it, so that few shapes are
# compiled
SHORTEST = 64


class RewardModel:
    """Reward by a trained reward model (arXiv:2501.12948, section 3.1).

    Pass it to rewards.Rewards(..., models={NAME: it}).

    Args:
        config: The reward model's config, see models.reward.
        params: Its parameters, see models.reward.
        render: render(example, text) -> ids of the question, the text and the end token. It raises
            ValueError for a text that it cannot render.
        mesh: The mesh on which the model runs.
        kind: "helpfulness" scores the text for the reader, after the last </think>, by the raw
            reward. "safety" scores the whole completion by the probability that it is safe (the
            paper does not give the unit).
        batch_size: Rows in a batch, which are split over the mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: PyTree,
        render: Callable[[Mapping, str], list[int]],
        mesh: Mesh,
        *,
        kind: RewardKind,
        batch_size: int,
    ):
        self.config, self.params, self.render, self.mesh = config, params, render, mesh
        self.kind, self.batch_size = kind, batch_size

        self._rewards = jitted_rewards(config, mesh, kind)

    def score(
        self, examples: Sequence[Mapping], completions: Sequence[str]
    ) -> list[float | ValueError]:
        """Score completions with the reward model.

        Every process passes all completions, and gets all rewards.

        Returns:
            For each completion a float, or a ValueError if it cannot be read.
        """
        results = [self._read(*pair) for pair in zip(examples, completions, strict=True)]
        order = [i for i, ids in enumerate(results) if not isinstance(ids, ValueError)]
        # Rows of similar length share a batch, which leaves little padding
        order.sort(key=lambda i: len(results[i]))
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
        """Return the rewards of up to batch_size rows of ids: float32[len(rows)]."""
        length = padded_length(max(map(len, rows)))
        # Copies of the first row fill the batch to batch_size rows, so each length has only one
        # shape
        batch = right_padded(rows + rows[:1] * (self.batch_size - len(rows)), length)
        with jax.set_mesh(self.mesh):
            rewards = self._rewards(self.params, put_share(self.mesh, batch))
        return np.asarray(rewards)[: len(rows)]


def jitted_rewards(
    config: ModelConfig, mesh: Mesh, kind: RewardKind = "helpfulness"
) -> jax.stages.Wrapped:
    """Return the jitted function (params, batch) -> float32[b] that RewardModel calls.

    The arguments are as in RewardModel. `batch` is a result of right_padded.
    """

    def rewards(params, batch):
        reward_b = predict_rewards(config, params, batch["tokens"], batch["segment_ids"])[0]
        return jax.nn.sigmoid(reward_b) if kind == "safety" else reward_b

    # Replicated, so that every process can read all rewards
    return jax.jit(rewards, out_shardings=NamedSharding(mesh, PartitionSpec()))


def padded_length(longest: int) -> int:
    """Return the length to which rows are padded if their longest has `longest` tokens."""
    length = SHORTEST
    while length < longest:
        length *= 2
    return length


def right_padded(rows: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
    """Return lists of ids as a batch, padded on the right to `length` tokens.

    Returns:
        {"tokens": int32[b t], "segment_ids": int32[b t]}, with segment 1 on ids and 0 on padding.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([[len(ids)] for ids in rows])
    return {"tokens": tokens, "segment_ids": (np.arange(length) < lengths).astype(np.int32)}
