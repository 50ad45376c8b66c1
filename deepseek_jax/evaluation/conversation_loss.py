"""How likely a model finds what was said in conversations that it did not learn from."""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.losses.next_token import target_logprobs
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.shard import batch_share


class ConversationLoss:
    """Negative log-likelihood of the targets of some packed conversations.

    batches: as of data.conversations.pack_conversations, all rows of each on every process; they must hold
    two conversations. What they count in training makes no difference here.
    """

    def __init__(self, config, batches, mesh):
        self.batches, self.mesh = batches, mesh
        everywhere = NamedSharding(mesh, PartitionSpec())
        score = functools.partial(target_logprobs, config)
        # [b t] floats leave the device, where sums of segments would need as many segments as tokens
        self._logprobs = jax.jit(lambda *args: score(*args)[0], out_shardings=everywhere)

    def __call__(self, params):
        """-> dict: loss, [mean, low, high] in nats a token, and what it is over, tokens and conversations.

        The mean is over all tokens alike; its 95% interval is that of conversations, see ratio_interval.
        """
        losses, counts = self._of(params, self.batches)
        return {
            "loss": list(ratio_interval(losses, counts)),
            "tokens": int(counts.sum()),
            "conversations": len(counts),
        }

    def by_conversation(self, params, batches):
        """float64[n]: the mean of each conversation of other batches, in nats a token."""
        losses, counts = self._of(params, batches)
        return losses / counts

    def _of(self, params, batches):
        losses, counts = zip(*(self._sums(params, batch) for batch in batches), strict=True)
        return np.concatenate(losses), np.concatenate(counts)

    def _sums(self, params, batch):
        """Of each conversation of a batch: float64[n] nats, and int[n] targets."""
        share, shares = batch_share(self.mesh)
        part = {k: np.split(v, shares)[share] if v.ndim else v for k, v in batch.items()}
        logprobs = np.asarray(self._logprobs(params, put_batch(self.mesh, part)), np.float64)
        width = batch["segment_ids"].max() + 1
        segments = batch["segment_ids"] + width * np.arange(len(batch["tokens"]))[:, None]
        counted = segments[batch["loss_mask"]]
        counts = np.bincount(counted)
        losses = np.bincount(counted, weights=-logprobs[batch["loss_mask"]])
        return losses[counts > 0], counts[counts > 0]


def ratio_interval(totals, counts):
    """(mean, low, high) of sum(totals) / sum(counts), with the 95% interval that its linear part has
    (Cochran, Sampling Techniques, 1977, section 2.11). totals, counts: numbers [n], of n independent samples.
    """
    ratio = totals.sum() / counts.sum()
    return mean_interval(ratio + (totals - ratio * counts) / counts.mean())
