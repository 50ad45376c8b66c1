"""Log-probabilities of completions; the prompt of each group is computed once."""

import jax.numpy as jnp

from deepseek_jax.models import Branches, ModelConfig, head_weight, hidden_states
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel.tokens import over_tokens


def completion_logprobs(config: ModelConfig, params, batch, *, temperature=1.0):
    """Score each completion's tokens: (logprobs float32[b t], entropy float32[b t], Routing or None).

    batch: prompt_ids int32[p s] and prompt_mask bool[p s], right-padded; completion_ids int32[b t] and
    completion_mask bool[b t], right-padded, b / p adjacent completions a prompt. temperature: a number or
    float32[]. Both results are in nats and undefined where completion_mask is False.
    A prompt and its completions are one row, [prompt, completion 1, ...]: a completion sees the prompt and
    itself. Logits are computed only where they predict a completion's token. The results and their
    gradients equal those of one row for each [prompt, completion].
    """
    p, s = batch["prompt_ids"].shape
    b, t = batch["completion_ids"].shape
    n = b // p
    prompt_length_p = batch["prompt_mask"].sum(-1)
    tokens = jnp.concatenate(
        [batch["prompt_ids"], batch["completion_ids"].reshape(p, n * t)], axis=1
    )
    # All real tokens are one segment: the layout of branches, not ids, separates completions
    segment_ids = jnp.concatenate(
        [batch["prompt_mask"], batch["completion_mask"].reshape(p, n * t)], axis=1
    )
    # A completion's positions continue its prompt's, without the padding between them
    after_prompt = prompt_length_p[:, None] + jnp.tile(jnp.arange(t), n)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(s), (p, s)), after_prompt], axis=1)

    hidden, routing = hidden_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids.astype(jnp.int32),
        positions=positions,
        branches=Branches(s, n),
    )
    d = hidden.shape[-1]
    # The first token of a completion is predicted by the prompt's last one, the others by the token before
    last_pd = jnp.take_along_axis(hidden, (prompt_length_p - 1)[:, None, None], axis=1)
    last_pn1d = jnp.broadcast_to(last_pd[:, None], (p, n, 1, d))
    before_pntd = jnp.concatenate([last_pn1d, hidden[:, s:].reshape(p, n, t, d)[:, :, :-1]], axis=2)
    logprobs, entropy = over_tokens(
        _token_logprobs,
        before_pntd.reshape(b, t, d),
        head_weight(config, params),
        batch["completion_ids"],
        temperature,
    )
    return logprobs, entropy, routing


def _token_logprobs(hidden_md, head_vd, target_m, temperature):
    return token_logprobs(hidden_md, head_vd, target_m, temperature=temperature)
