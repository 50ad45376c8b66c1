"""A student's objective on a batch: named terms and their weighted sum."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from deepseek_jax.costs.flops import attended_keys, forward_flops, useful_flops
from deepseek_jax.distill.chunks import Outputs, Term, mean_over_tokens
from deepseek_jax.distill.cross_tokenizer import (
    outputs_beside,
    place_beside,
    shared_vocabulary_loss,
    sorted_probability_loss,
)
from deepseek_jax.distill.divergences import hard_loss, soft_loss
from deepseek_jax.distill.feature_distillation import hidden_state_loss, layer_map
from deepseek_jax.distill.relation_distillation import relation_loss
from deepseek_jax.distill.terms import OF_DATA, OF_FEATURES, OF_LOGITS
from deepseek_jax.distill.top_k import TopK, top_k_loss
from deepseek_jax.models import (
    ModelConfig,
    decays,
    has_gradient,
    head_weight,
    last_attention,
    layer_states,
)
from deepseek_jax.models.adapters import split

# Where the term "hidden" has a weight, the keys of the student's params and of the projections that are
# trained with them, see init_projections
STUDENT, PROJECTIONS = "student", "projections"
# The batch keys of the teacher's TopK
CACHED = ("top_ids", "top_logprobs", "dropped")
# The prefix of the batch keys of rows that the student sampled
SAMPLED = "sampled_"


class Reading(NamedTuple):
    """A model's forward pass over some rows. layers: [l b t d], hidden states after the compared layers, or
    None. attention: the result of last_attention, or None.
    """

    outputs: Outputs
    layers: jax.Array | None = None
    attention: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted terms that train a student. weights: {name of terms.TERMS: float}, without a name for 0.
    The hybrid loss of arXiv:1503.02531 is {"soft": alpha, "hard": 1 - alpha}.

    teacher: None where no term needs one, or where its top k are in the batch. divergence, beta: for soft and
    matched; on_policy_divergence, on_policy_beta: for on_policy; see divergences. vocab_size: both heads are
    cut to this number of tokens, None for all. shared: for matched, from shared_vocabulary, as tuples.
    micro_batches: the number of parts of a batch; their losses add up.

    A batch: as in next_token_loss, with temperature float32[]; for soft from a cache top_ids int32[b t k],
    top_logprobs float32[b t k] and dropped float32[b t]; for matched and sorted teacher_tokens and
    teacher_tokens_segment_ids int32[b s], teacher_index int32[b t], the teacher's token aligned with each of
    the student's in the same row, -1 for none, and exact bool[b t]; for on_policy the sampled rows, tokens,
    ..., normalizer, under SAMPLED + key.
    """

    student: ModelConfig
    teacher: ModelConfig | None
    weights: dict
    divergence: str = "forward_kl"
    beta: float | None = None
    on_policy_divergence: str = "reverse_kl"
    on_policy_beta: float | None = None
    relation_heads: int = 1
    vocab_size: int | None = None
    shared: tuple = ()
    micro_batches: int = 1

    def __post_init__(self):
        if self.teacher is None or not self._has("soft", "on_policy"):
            return
        own, theirs = (
            min(config.vocab_size, self.vocab_size or config.vocab_size)
            for config in (self.student, self.teacher)
        )
        if own != theirs:
            raise ValueError(
                f"vocab_size={self.vocab_size} leaves the teacher {theirs} logits and the student {own}: set "
                "it to the tokens that they share, or weights.matched and weights.sorted for two tokenizers"
            )

    def loss(self, params, batch, rng=None, *, teacher_params):
        """The loss_fn of training.make_train_step, which draws nothing from rng.

        Returns (loss float32[], metrics): the weighted sum, and each term before its weight. With soft from a
        cache also soft_bound: at most so much is missing from the soft term of all tokens.
        """
        teacher_params = jax.lax.stop_gradient(teacher_params)
        parts = []
        if self._has(*OF_DATA):
            student = self._read_student(without_projections(params), batch)
            teacher = self._read_teacher(teacher_params, batch)
            if self._has(*OF_LOGITS):
                terms = self._terms(batch)
                compared = any(term.against is None for term in terms.values())
                taught = teacher.outputs if compared else None
                parts.append(mean_over_tokens(terms, student.outputs, taught))
            parts.append(self._features(params, student, teacher, batch))
        if self._has("on_policy"):
            parts.append(self._on_policy(params, batch, teacher_params))
        if self._has("l2"):
            # Losses of micro-batches add up, and this one does not shrink with their rows
            parts.append(self._weighted({"l2": l2_penalty(params) / self.micro_batches}))
        metrics = {name: mean for _, means in parts for name, mean in means.items()}
        return sum(loss for loss, _ in parts), jax.lax.stop_gradient(metrics)

    def flops_per_token(self, sequence_length: int, *, cached: bool, frozen: bool):
        """The FLOPs that a token of a row needs: the student's update and the teacher's forward pass, if its
        targets are not cached. Sampled rows do not count. frozen: see costs.flops.training_flops.
        """
        flops = useful_flops(self.student, sequence_length, trains_mtp=False, frozen=frozen)
        if self.teacher is None or cached:
            return flops
        attended = attended_keys(self.teacher, sequence_length)
        return flops + forward_flops(self.teacher, sequence_length / 2, attended=attended)

    def _has(self, *names):
        return any(self.weights.get(name) for name in names)

    def _weighted(self, means):
        total = sum((self.weights[name] * mean for name, mean in means.items()), jnp.float32(0))
        return total, means

    def _terms(self, batch):
        """The terms of OF_LOGITS that have a weight: {name: Term}."""
        share_bt, weights, terms = token_weights(batch), self.weights, {}
        temperature = batch["temperature"]

        def chosen(loss):
            return functools.partial(loss, divergence=self.divergence, beta=self.beta)

        # A Partial is a pytree: arrays bound by it reach shard_map and scan as arguments, not constants
        if self._has("soft") and CACHED[0] in batch:
            top_k = TopK(*(batch[name] for name in CACHED))
            loss = Partial(chosen(top_k_loss), temperature=temperature)
            terms["soft"] = Term(loss, share_bt, weights["soft"], top_k)
        elif self._has("soft"):
            loss = Partial(chosen(soft_loss), temperature=temperature)
            terms["soft"] = Term(loss, share_bt, weights["soft"])
        if self._has("hard"):
            terms["hard"] = Term(Partial(hard_loss), share_bt, weights["hard"], batch["targets"])
        if self._has("matched", "sorted"):
            # Both at the position that predicts the token, see place_beside
            aligned_bt, exact_bt = place_beside(batch) >= 0, jnp.roll(batch["exact"], -1, axis=1)
        if self._has("matched"):
            shared = tuple(jnp.array(ids, jnp.int32) for ids in self.shared)
            loss = chosen(shared_vocabulary_loss)
            loss = Partial(loss, temperature=temperature, shared=shared)
            terms["matched"] = Term(loss, share_bt * (aligned_bt & exact_bt), weights["matched"])
        if self._has("sorted"):
            share_bt = share_bt * (aligned_bt & ~exact_bt)
            terms["sorted"] = Term(Partial(sorted_probability_loss), share_bt, weights["sorted"])
        return terms

    def _features(self, params, student, teacher, batch):
        weight_bt, means = token_weights(batch), {}
        if self._has("hidden"):
            hidden_bt = hidden_state_loss(student.layers, teacher.layers, params[PROJECTIONS])
            means["hidden"] = (weight_bt * hidden_bt).sum()
        if self._has("relations"):
            pairs = zip(student.attention, teacher.attention, strict=True)
            flat = [[x.reshape(*x.shape[:2], -1) for x in pair] for pair in pairs]
            losses = [
                relation_loss(*pair, batch["segment_ids"], relation_heads=self.relation_heads)
                for pair in flat
            ]
            means["relations"] = (weight_bt * sum(losses)).sum() / len(losses)
        return self._weighted(means)

    def _on_policy(self, params, batch, teacher_params):
        # The samples are data: sampling has no gradient (arXiv:2306.13649, section 3)
        rows = {k.removeprefix(SAMPLED): v for k, v in batch.items() if k.startswith(SAMPLED)}
        loss = functools.partial(
            soft_loss, divergence=self.on_policy_divergence, beta=self.on_policy_beta
        )
        loss = Partial(loss, temperature=batch["temperature"])
        student = self._read(self.student, without_projections(params), rows).outputs
        teacher = self._read(self.teacher, teacher_params, rows).outputs
        term = Term(loss, token_weights(rows), self.weights["on_policy"])
        return mean_over_tokens({"on_policy": term}, student, teacher)

    def _read_student(self, params, batch):
        compared = range(self.student.num_hidden_layers) if self._has(*OF_FEATURES) else None
        return self._read(self.student, params, batch, compared)

    def _read_teacher(self, params, batch):
        """Reading of the teacher, or None where no term needs it in memory."""
        if self._has("matched", "sorted"):
            return Reading(outputs_beside(self.teacher, params, batch))
        if self._has(*OF_FEATURES):
            layers = layer_map(self.student.num_hidden_layers, self.teacher.num_hidden_layers)
            return self._read(self.teacher, params, batch, layers)
        if self._has("soft") and CACHED[0] not in batch:
            return self._read(self.teacher, params, batch)
        return None

    def _read(self, config: ModelConfig, params, batch, compared=None):
        """Reading of a model, with features if it has layers to compare."""
        keep = compared is not None
        hidden, _, states = layer_states(
            config,
            params,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            keep_layers=keep,
        )
        # Rows past vocab_size belong to no token of the tokenizer
        outputs = Outputs(hidden, head_weight(config, params)[: self.vocab_size])
        if not keep:
            return Reading(outputs)
        attention = None
        if self._has("relations"):
            attention = last_attention(config, params, states, batch["positions"])
        return Reading(outputs, states[jnp.array(compared)], attention)


def without_projections(params):
    """The student's own params."""
    with_them = isinstance(params, dict) and PROJECTIONS in params
    return params[STUDENT] if with_them else params


def token_weights(batch):
    """The weight of each target in a mean over the whole batch: float32[b t]."""
    weight_bt = jnp.where(batch["loss_mask"], batch.get("loss_weights", 1.0), 0.0)
    # Without any target all weights are 0: divide by 1, and the mean is 0, not NaN
    return weight_bt / jnp.where(batch["normalizer"] > 0, batch["normalizer"], 1)


def l2_penalty(params):
    """Half the sum of the squares of the weights that weight decay would decay: float32[].

    The gradient in a weight is the weight. Projections are dropped after training and do not count, nor do
    parts that no term trains, and frozen parameters beside an adapter.
    """
    params, _ = split(without_projections(params))

    def square(path, leaf, use):
        return jnp.square(leaf).sum() if use and has_gradient(path) else jnp.float32(0)

    return 0.5 * sum(jax.tree.leaves(jax.tree.map_with_path(square, params, decays(params))))
