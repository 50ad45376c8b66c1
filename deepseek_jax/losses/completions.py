"""Log-probabilities of completions.

A group's prompt is computed once for the group, or once for each completion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.moe import Routing
from deepseek_jax.models.network import head_weight, hidden_states
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.ops.token_at import token_at
from deepseek_jax.parallel.tokens import over_tokens
from deepseek_jax.trees import PyTree


class PredictionInputs(NamedTuple):
    """The hidden states that predict the tokens of completions.

    Attributes:
        hidden: [b c d], after the final norm. A head scores these columns.
        targets: int32[b c], the token that each column predicts.
        first: The column that predicts a completion's first token. The columns of its other tokens
            follow.
        routing: A dict from keys of params to the models.Routing of the forward pass.
    """

    hidden: jax.Array
    targets: jax.Array
    first: int
    routing: dict[str, Routing]

    def spread(self, array_bt, fill=0):
        """Move values of the completions' tokens to the columns that predict them.

        Args:
            array_bt: [b t ...].
            fill: The value in all other columns.

        Returns:
            [b c ...].
        """
        columns_after = self.hidden.shape[1] - self.first - array_bt.shape[1]
        no_padding = [(0, 0)] * (array_bt.ndim - 2)
        return jnp.pad(
            array_bt, [(0, 0), (self.first, columns_after), *no_padding], constant_values=fill
        )


def completion_logprobs(
    config: Network, params: PyTree, batch: dict, *, temperature: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array, dict[str, Routing]]:
    """Score the tokens of each completion: log-probabilities, entropies and the routing.

    With p < b, a prompt and its completions are one row, [prompt, completion 1, ...]. A completion
    in it sees the prompt and itself. With p = b, each completion is a row of its own after its
    prompt. This takes more tokens, but attention works by blocks, and a row splits over the context
    axis. Results and gradients are equal.

    Args:
        batch: A dict of
            - prompt_ids int32[p s] and prompt_mask bool[p s], right-padded;
            - completion_ids int32[b t] and completion_mask bool[b t], right-padded, with b / p
              adjacent completions per prompt;
            - for conversations also observed_mask bool[b t], True on what the model read between
              its turns;
            - if the rollout recorded experts, prompt_experts uint16[p s l a] and completion_experts
              uint16[b t l a], see ops.routing.with_recorded;
            - if the rollout recorded candidates, candidates int32[b t n]. Distributions are over
              them only.
        temperature: A number or float32[].

    Returns:
        (logprobs float32[b t], entropy float32[b t], and a dict from keys of params to
        models.Routing). Both arrays are in nats, and undefined where completion_mask is False.
    """
    states, t = completion_states(config, params, batch), batch["completion_ids"].shape[1]
    candidates = batch.get("candidates")
    if candidates is not None:
        # A token's candidates stand where it is predicted, as its target does
        candidates = states.spread(candidates, fill=-1)
    targets = states.targets if candidates is None else (states.targets, candidates)
    head = head_weight(config, params)
    scores = over_tokens(token_logprobs, states.hidden, head, targets, temperature)
    logprobs, entropy = (score[:, states.first : states.first + t] for score in scores)
    return logprobs, entropy, states.routing


def completion_states(config: Network, params, batch):
    """Compute the hidden states that predict the tokens of completions.

    Args:
        batch: As in `completion_logprobs`.

    Returns:
        PredictionInputs. With p < b its columns are the completions, c = t. With p = b they are whole
        rows, c = s + t.
    """
    form = _own_rows if len(batch["prompt_ids"]) == len(batch["completion_ids"]) else _shared_rows
    return form(config, params, batch)


def _own_rows(config, params, batch):
    s = batch["prompt_ids"].shape[1]
    # Right-align prompts: completions then begin at one column, and predictions are a slice
    padding_b1 = s - batch["prompt_mask"].sum(-1, keepdims=True)
    from_bs = (jnp.arange(s) - padding_b1) % s
    prompt_ids = jnp.take_along_axis(batch["prompt_ids"], from_bs, axis=1)
    tokens = jnp.concatenate([prompt_ids, batch["completion_ids"]], axis=1)
    is_prompt_bs = jnp.arange(s) >= padding_b1
    segment_ids = jnp.concatenate([is_prompt_bs, _present(batch)], axis=1)
    experts = None
    if "prompt_experts" in batch:
        prompt_experts = jnp.take_along_axis(
            batch["prompt_experts"], from_bs[..., None, None], axis=1
        )
        experts = jnp.concatenate([prompt_experts, batch["completion_experts"]], axis=1)
    hidden, routing = hidden_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids.astype(jnp.int32),
        positions=jnp.maximum(jnp.arange(tokens.shape[1]) - padding_b1, 0),
        recorded_experts=_by_layer(experts),
    )
    # Predictions inside the prompt are computed and dropped. The row's tokens are split over
    # devices: to cut the row would move every hidden state
    return PredictionInputs(hidden, jnp.roll(tokens, -1, axis=1), s - 1, routing)


def _shared_rows(config, params, batch):
    p, s = batch["prompt_ids"].shape
    b, t = batch["completion_ids"].shape
    n = b // p
    prompt_length_p = batch["prompt_mask"].sum(-1)
    tokens = jnp.concatenate(
        [batch["prompt_ids"], batch["completion_ids"].reshape(p, n * t)], axis=1
    )
    # All real tokens are one segment: the layout of branches separates completions, not ids
    segment_ids = jnp.concatenate([batch["prompt_mask"], _present(batch).reshape(p, n * t)], axis=1)
    experts = None
    if "prompt_experts" in batch:
        completion_experts = batch["completion_experts"]
        completion_experts = completion_experts.reshape(p, n * t, *completion_experts.shape[2:])
        experts = jnp.concatenate([batch["prompt_experts"], completion_experts], axis=1)
    # A completion's positions continue its prompt's, without the padding between them
    completion_positions = prompt_length_p[:, None] + jnp.tile(jnp.arange(t), n)
    positions = jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(s), (p, s)), completion_positions], axis=1
    )

    hidden, routing = hidden_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids.astype(jnp.int32),
        positions=positions,
        branches=Branches(s, n),
        recorded_experts=_by_layer(experts),
    )
    d = hidden.shape[-1]
    # The prompt's last token predicts a completion's first; each token then predicts the next
    last_pd = token_at(hidden, prompt_length_p - 1)
    last_pn1d = jnp.broadcast_to(last_pd[:, None, None], (p, n, 1, d))
    before_pntd = jnp.concatenate([last_pn1d, hidden[:, s:].reshape(p, n, t, d)[:, :, :-1]], axis=2)
    return PredictionInputs(before_pntd.reshape(b, t, d), batch["completion_ids"], 0, routing)


def _present(batch):
    """Return where completions have tokens, sampled or observed: bool[b t]."""
    observed = batch.get("observed_mask")
    return batch["completion_mask"] if observed is None else batch["completion_mask"] | observed


def _by_layer(experts_btla):
    return None if experts_btla is None else jnp.moveaxis(experts_btla, 2, 0)
