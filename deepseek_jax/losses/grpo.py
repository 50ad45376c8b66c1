"""Group Relative Policy Optimisation and its variants: the clipped loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.settings import BY_TOKENS, GrpoOptions
from deepseek_jax.models.network_config import Network

# Metrics that are means over all tokens of a batch
PER_TOKEN = (
    *("entropy", "ratio_mean", "kl", "clip_fraction", "clip_fraction_low", "clip_fraction_high"),
    *("off_policy_fraction", "importance_weight_mean", "sampler_gap_mean", "sampler_gap_share"),
)
# Keep exp finite: inf * 0 would make a NaN
MAX_LOG_RATIO = 20.0
# A large difference, in nats, between two programs that compute a log-probability in float32.
# Rounding makes only 3e-5
LARGE_GAP = 1e-2

# How many different marks rows can have
MARKS = 1009


def make_grpo_loss(
    config: Network, options: GrpoOptions, *, max_completion_length: int
) -> Callable:
    """Build the loss_fn(params, batch, rng) -> (loss, metrics) for training.make_train_step.

    loss_fn's batch is grpo_loss's, with prompt_ids, prompt_mask and completion_ids and, if the
    sampler's temperature was not 1, temperature float32[].

    Args:
        max_completion_length: The longest completion of any batch.
    """

    def loss_fn(params, batch, rng):
        temperature = batch.get("temperature", 1.0)
        scored = completion_logprobs(config, params, batch, temperature=temperature)
        logprobs, entropy, routings = scored
        loss, metrics = grpo_loss(
            logprobs, entropy, batch, options, max_completion_length=max_completion_length
        )
        if routings:
            metrics["routing"] = routings
        return loss, metrics

    return loss_fn


def grpo_loss(
    logprobs: jax.Array,
    entropy: jax.Array,
    batch: dict,
    options: GrpoOptions,
    *,
    max_completion_length: int,
) -> tuple[jax.Array, dict]:
    """Return the negated clipped surrogate, plus options.kl_coef times the KL to the reference.

    Masked positions of the batch may hold anything, even NaN. A completion without tokens
    contributes nothing.

    Args:
        logprobs: float32[b t], nats, of the completions' tokens under the policy.
        entropy: float32[b t], nats, at the same tokens.
        batch: A dict of
            - completion_mask bool[b t], advantages float32[b], sampler_logprobs float32[b t];
            - num_tokens and num_completions, float32[], of the whole global batch, so that
              micro-batches add up;
            - old_logprobs float32[b t]; absent while the policy has not moved (the ratio is exactly
              1);
            - ref_logprobs float32[b t], needed if options.kl_coef > 0;
            - kl_weight float32[b], a factor of options.kl_coef; absent: 1;
            - completion_ids int32[b t], optional, for the metric marked_advantages.
        max_completion_length: The constant divisor of dr_grpo.

    Returns:
        (loss float32[], metrics). Metrics are float32[] and divided by num_tokens, so that
        micro-batches add up here too. Three are not divided:
        - sampler_gap_max, a maximum;
        - learned_tokens, the number of tokens in the loss;
        - marked_advantages, the sum of advantages, each times its row's mark (see row_marks).

    Raises:
        ValueError: If max_completion_length is below 1, or if kl_coef is above 0 and the batch has
            no ref_logprobs.
    """
    if max_completion_length < 1:
        raise ValueError(f"max_completion_length={max_completion_length} must be at least 1")
    mask_bt = batch["completion_mask"]
    # Mask before any arithmetic: a NaN in padding would reach the gradient as 0 * NaN
    advantage_b1 = jnp.where(mask_bt.any(-1), batch["advantages"], 0.0)[:, None]
    logprobs, sampler_bt = _masked(logprobs, mask_bt), _masked(batch["sampler_logprobs"], mask_bt)
    # Without old_logprobs the ratio is 1, but still has the gradient of logprobs
    old_bt = _masked(batch.get("old_logprobs", jax.lax.stop_gradient(logprobs)), mask_bt)
    gap_bt = jnp.abs(old_bt - sampler_bt)

    ratio_bt = _ratio(logprobs - old_bt, mask_bt, options.loss_type)
    surrogate_bt, clipped = _surrogate(ratio_bt, logprobs, advantage_b1, options)
    per_token = {"entropy": entropy, "ratio_mean": ratio_bt} | clipped
    if options.off_policy_limit is not None:
        drift_b1 = (sampler_bt - logprobs).sum(-1, keepdims=True) / _lengths(mask_bt)
        off_b1 = (advantage_b1 < 0) & (drift_b1 > options.off_policy_limit)
        surrogate_bt = jnp.where(off_b1, 0.0, surrogate_bt)
        per_token["off_policy_fraction"] = jnp.broadcast_to(off_b1, mask_bt.shape)
    if options.importance_cap is not None:
        weight_bt = jnp.minimum(jnp.exp(old_bt - sampler_bt), options.importance_cap)
        surrogate_bt = jax.lax.stop_gradient(weight_bt) * surrogate_bt
        per_token["importance_weight_mean"] = weight_bt
    loss_bt = -surrogate_bt
    if options.kl_coef:
        kl_bt = k3_kl(logprobs, _masked(_reference(batch, options.kl_coef), mask_bt))
        per_token["kl"] = kl_bt
        if options.unbiased_kl:
            kl_bt *= _token_ratio(logprobs - old_bt)
        if "kl_weight" in batch:
            kl_bt *= batch["kl_weight"][:, None]
        loss_bt += options.kl_coef * kl_bt

    loss = _normalise(loss_bt, mask_bt, batch, options.loss_type, max_completion_length)
    num_tokens = jnp.maximum(batch["num_tokens"], 1)
    metrics = {name: _masked(x, mask_bt).sum() / num_tokens for name, x in per_token.items()}
    metrics["learned_tokens"] = mask_bt.sum().astype(jnp.float32)
    if "completion_ids" in batch:
        marks_b = row_marks(batch["completion_ids"], mask_bt)
        metrics["marked_advantages"] = (advantage_b1[:, 0] * marks_b).sum()
    metrics["clip_fraction"] = metrics["clip_fraction_low"] + metrics["clip_fraction_high"]
    metrics |= {
        "sampler_gap_mean": gap_bt.sum() / num_tokens,
        "sampler_gap_share": (gap_bt > LARGE_GAP).sum() / num_tokens,
        "sampler_gap_max": gap_bt.max(),
    }
    return loss, jax.lax.stop_gradient(metrics)


def row_marks(completion_ids, completion_mask):
    """Return a number in [0, 1) for each completion, computed from its tokens: float32[b].

    The arrays may be numpy's or jax's. The sum of advantages, each times its row's mark, shows
    whether advantages are in the rows of their completions. With the row's number in place of the
    mark it would not: a group's advantages sum to 0, so whole groups might change places.
    """
    # uint32 wraps in the same way on host and device
    sums_b = (completion_ids * completion_mask).astype("uint32").sum(-1, dtype="uint32")
    return (sums_b % MARKS).astype("float32") / MARKS


def metric_weights(batch, options: GrpoOptions):
    """Return how many tokens or completions of a batch each metric is a mean over.

    Weighted by these numbers, the metrics of several batches become means over all of them.

    Returns:
        {metric: float32[]} for the metrics in PER_TOKEN and for the loss.
    """
    tokens = batch["num_tokens"]
    of_loss = tokens if options.loss_type in BY_TOKENS else batch["num_completions"]
    return dict.fromkeys(PER_TOKEN, tokens) | {"loss": of_loss}


def _surrogate(ratio_bt, logprobs, advantage_b1, options):
    """Return the surrogate float32[b t], and metrics of clipping.

    The metrics are {name: bool[b t]}, True where clipping ends or limits the gradient.
    """
    low, high = options.clip_range()
    too_high_bt = (ratio_bt > high) & (advantage_b1 > 0)
    if options.loss_type == "cispo":
        weight_bt = jax.lax.stop_gradient(jnp.minimum(ratio_bt, high))
        surrogate_bt = weight_bt * advantage_b1 * logprobs
        too_high_bt = ratio_bt > high
    else:
        clipped_bt, whole_bt = jnp.clip(ratio_bt, low, high), ratio_bt
        if options.ratio_cap is not None:
            whole_bt = jnp.minimum(ratio_bt, options.ratio_cap)
            too_high_bt |= (ratio_bt > options.ratio_cap) & (advantage_b1 < 0)
        # The minimum is pessimistic: clipping limits gains. It limits a loss only by ratio_cap
        surrogate_bt = jnp.minimum(whole_bt * advantage_b1, clipped_bt * advantage_b1)
    # With a positive advantage the minimum is the unclipped term
    too_low_bt = (ratio_bt < low) & (advantage_b1 < 0)
    return surrogate_bt, {"clip_fraction_low": too_low_bt, "clip_fraction_high": too_high_bt}


def k3_kl(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """Estimate KL(policy || reference) at sampled tokens: exp(d) - d - 1 with d = ref - policy.

    arXiv:2402.03300, eq. 4. d is clipped to +-20: beyond that, exp(d) of one token would dominate
    the batch.

    Args:
        logprobs: float32[...], under the policy.
        ref_logprobs: float32[...], under the reference.

    Returns:
        float32[...] >= 0, nats.
    """
    d = jnp.clip(ref_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1: near d = 0, exp(d) - 1 would lose its digits to rounding
    return jnp.expm1(d) - d


def _masked(x_bt, mask_bt):
    return jnp.where(mask_bt, x_bt, 0.0)


def _lengths(mask_bt):
    return jnp.maximum(mask_bt.sum(-1, keepdims=True), 1)


def _ratio(log_ratio_bt, mask_bt, loss_type):
    """Return pi / pi_old of each token; for gspo, the geometric mean of its completion's ratios."""
    if loss_type == "gspo":
        # Padding adds 0 to the sum: both log-probabilities are masked to 0 there
        mean_b1 = log_ratio_bt.sum(-1, keepdims=True) / _lengths(mask_bt)
        log_ratio_bt = jnp.broadcast_to(mean_b1, log_ratio_bt.shape)
    return _token_ratio(log_ratio_bt)


def _token_ratio(log_ratio_bt):
    return jnp.exp(jnp.clip(log_ratio_bt, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _normalise(loss_bt, mask_bt, batch, loss_type, max_completion_length):
    """Sum over real tokens and divide by the loss type's normaliser, of the global batch."""
    loss_bt = _masked(loss_bt, mask_bt)
    if loss_type in BY_TOKENS:
        return loss_bt.sum() / jnp.maximum(batch["num_tokens"], 1)
    num_completions = jnp.maximum(batch["num_completions"], 1)
    if loss_type == "dr_grpo":
        return loss_bt.sum() / (num_completions * max_completion_length)
    return (loss_bt / _lengths(mask_bt)).sum() / num_completions


def _reference(batch, kl_coef):
    if "ref_logprobs" not in batch:
        raise ValueError(
            f"kl_coef={kl_coef} needs ref_logprobs in the batch, which holds "
            f"{', '.join(sorted(batch))}; keep a reference policy or set kl_coef to 0."
        )
    return batch["ref_logprobs"]
