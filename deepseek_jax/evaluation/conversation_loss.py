"""Held-out loss of conversations, with an interval over conversations."""

import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.losses.next_token import target_logprobs
from deepseek_jax.models.network_config import Network
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.training.run import leave_if_asked
from deepseek_jax.trees import PyTree


class ConversationLoss:
    """Negative log-likelihood of the targets in some packed conversations.

    The training weights of the conversations are ignored.

    Args:
        batches: See data.conversations.pack_conversations. Every process has all rows of each
            batch, and there are at least two conversations.
    """

    def __init__(self, config: Network, batches: Iterable[dict], mesh: Mesh):
        self.batches, self.mesh = batches, mesh
        # Replicated, so that every process can read all log-probabilities
        everywhere = NamedSharding(mesh, PartitionSpec())
        score = functools.partial(target_logprobs, config)
        # Segments are summed in numpy: on the device the sums would need one segment per token
        self._logprobs = jax.jit(lambda *args: score(*args)[0], out_shardings=everywhere)

    def __call__(self, params):
        """Measure the params on the batches.

        Returns:
            A dict: loss, [mean, low, high] in nats per token; tokens and conversations, their
            counts. The mean is over tokens. Its 95% interval treats conversations as the samples,
            see ratio_interval.
        """
        losses, counts = self._of(params, self.batches)
        return {
            "loss": list(ratio_interval(losses, counts)),
            "tokens": int(counts.sum()),
            "conversations": len(counts),
        }

    def by_conversation(self, params: PyTree, batches: Iterable[dict]) -> np.ndarray:
        """Return the mean loss of each conversation in other batches: float64[n], nats a token."""
        losses, counts = self._of(params, batches)
        return losses / counts

    def _of(self, params, batches):
        losses, counts = zip(*(self._sums(params, batch) for batch in batches), strict=True)
        return np.concatenate(losses), np.concatenate(counts)

    def _sums(self, params, batch):
        """Sum the losses of a batch by conversation: float64[n] nats, and int[n] targets."""
        leave_if_asked("the measurement")
        logprobs = np.asarray(self._logprobs(params, put_share(self.mesh, batch)), np.float64)
        # Segments count from 1 in every row: shift each row so that no two conversations share a
        # number
        width = batch["segment_ids"].max() + 1
        segments = batch["segment_ids"] + width * np.arange(len(batch["tokens"]))[:, None]
        counted = segments[batch["loss_mask"]]
        counts = np.bincount(counted)
        losses = np.bincount(counted, weights=-logprobs[batch["loss_mask"]])
        # bincount has a 0 for each number that no conversation of this batch has
        return losses[counts > 0], counts[counts > 0]


def ratio_interval(totals, counts):
    """Return sum(totals) / sum(counts) and the 95% interval of its linear approximation.

    The approximation is in Cochran, Sampling Techniques, 1977, section 2.11.

    Args:
        totals: Numbers [n], of n independent samples.
        counts: Numbers [n], of the same samples.

    Returns:
        (mean, low, high).
    """
    ratio = totals.sum() / counts.sum()
    return mean_interval(ratio + (totals - ratio * counts) / counts.mean())
