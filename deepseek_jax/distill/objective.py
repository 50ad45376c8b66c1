"""A student's objective on a batch: named loss terms and their weighted sum."""

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
from deepseek_jax.distill.divergences import DivergenceName, hard_loss, soft_loss
from deepseek_jax.distill.feature_distillation import hidden_state_loss, layer_map
from deepseek_jax.distill.relation_distillation import relation_loss
from deepseek_jax.distill.terms import OF_DATA, OF_FEATURES, OF_LOGITS
from deepseek_jax.distill.top_k import TopK, top_k_loss
from deepseek_jax.models.adapters import split
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import head_weight, last_attention, layer_states
from deepseek_jax.models.layers import decays, has_gradient
from deepseek_jax.trees import PyTree

# Keys of the trained parameters where the term "hidden" has a weight: the student's params, and the
# projections that are trained with them (init_projections)
STUDENT, PROJECTIONS = "student", "projections"
# Batch keys of the teacher's TopK
CACHED = ("top_ids", "top_logprobs", "dropped")
# Prefix of a batch key for rows that the student sampled
SAMPLED = "sampled_"


class ForwardOutputs(NamedTuple):
    """The outputs of a model's forward pass over some rows.

    Attributes:
        layers: [l b t d], hidden states after the compared layers, or None.
        attention: The result of last_attention, or None.
    """

    outputs: Outputs
    layers: jax.Array | None = None
    attention: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted loss terms that train a student.

    The hybrid loss of arXiv:1503.02531 is the weights {"soft": alpha, "hard": 1 - alpha}.

    A batch has the keys of next_token_loss, temperature float32[], and for some terms more keys:

    - soft from a cache: top_ids int32[b t k], top_logprobs float32[b t k] and dropped float32[b t].
    - matched and sorted: teacher_tokens and teacher_tokens_segment_ids int32[b s]; teacher_index
      int32[b t], the teacher's token in the same row that is aligned with each of the student's, -1
      if there is none; and exact bool[b t].
    - on_policy: the rows that the student sampled (tokens, ..., normalizer), under SAMPLED + key.

    Attributes:
        teacher: None if no term needs a teacher, or if the batch has its top k.
        weights: By name of terms.TERMS; a missing name is 0.
        divergence: For soft and matched, see divergences.
        beta: The parameter of divergence, see divergences.
        on_policy_divergence: For on_policy, see divergences.
        on_policy_beta: The parameter of on_policy_divergence.
        relation_heads: For relations, see relation_loss.
        vocab_size: Both heads are cut to this number of tokens; None for all.
        shared: For matched: the ids from shared_vocabulary.
        micro_batches: Number of parts of a batch; their losses add up.

    Raises:
        ValueError: If a soft or on_policy term compares two heads of different size.
    """

    student: ModelConfig
    teacher: ModelConfig | None
    weights: dict[str, float]
    divergence: DivergenceName = "forward_kl"
    beta: float | None = None
    on_policy_divergence: DivergenceName = "reverse_kl"
    on_policy_beta: float | None = None
    relation_heads: int = 1
    vocab_size: int | None = None
    shared: tuple[tuple[int, ...], ...] = ()
    micro_batches: int = 1

    def __post_init__(self):
        if self.teacher is None or not self._has("soft", "on_policy"):
            return
        student_size, teacher_size = (
            min(config.vocab_size, self.vocab_size or config.vocab_size)
            for config in (self.student, self.teacher)
        )
        if student_size != teacher_size:
            raise ValueError(
                f"vocab_size={self.vocab_size} leaves the teacher {teacher_size} logits and the student "
                f"{student_size}: set it to the tokens that they share, or weights.matched and "
                "weights.sorted for two tokenizers"
            )

    def loss(
        self, params: PyTree, batch: dict, rng: jax.Array | None = None, *, teacher_params: PyTree
    ) -> tuple[jax.Array, dict]:
        """Compute the loss of a batch, as the loss_fn of training.make_train_step.

        It draws nothing from rng.

        Returns:
            (loss float32[], metrics): the weighted sum, and each term before its weight. With soft
            from a cache, metrics also have soft_bound: the soft term over all tokens is larger by
            at most this.
        """
        teacher_params = jax.lax.stop_gradient(teacher_params)
        weighted_losses = []
        if self._has(*OF_DATA):
            student = self._read_student(without_projections(params), batch)
            teacher = self._read_teacher(teacher_params, batch)
            if self._has(*OF_LOGITS):
                terms = self._terms(batch)
                needs_teacher = any(term.against is None for term in terms.values())
                teacher_outputs = teacher.outputs if needs_teacher else None
                weighted_losses.append(mean_over_tokens(terms, student.outputs, teacher_outputs))
            weighted_losses.append(self._features(params, student, teacher, batch))
        if self._has("on_policy"):
            weighted_losses.append(self._on_policy(params, batch, teacher_params))
        if self._has("l2"):
            # Losses of micro-batches add up, but this one does not shrink with their rows: divide
            # it
            weighted_losses.append(self._weighted({"l2": l2_penalty(params) / self.micro_batches}))
        metrics = {name: mean for _, means in weighted_losses for name, mean in means.items()}
        total = sum((loss for loss, _ in weighted_losses), jnp.float32(0))
        return total, jax.lax.stop_gradient(metrics)

    def flops_per_token(self, sequence_length: int, *, cached: bool, frozen: bool) -> float:
        """Count the FLOPs that a token of a row needs.

        They are the student's update and, unless its targets are cached, the teacher's forward
        pass. Sampled rows do not count.

        Args:
            frozen: See costs.flops.training_flops.
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
        """Build the Term of each name in OF_LOGITS that has a weight: {name: Term}."""
        share_bt, weights, terms = token_weights(batch), self.weights, {}
        temperature = batch["temperature"]

        def with_divergence(loss):
            return functools.partial(loss, divergence=self.divergence, beta=self.beta)

        # A Partial is a pytree: the arrays that it binds reach shard_map and scan as arguments, not
        # constants
        if self._has("soft") and CACHED[0] in batch:
            top_k = TopK(*(batch[name] for name in CACHED))
            loss = Partial(with_divergence(top_k_loss), temperature=temperature)
            terms["soft"] = Term(loss, share_bt, weights["soft"], top_k)
        elif self._has("soft"):
            loss = Partial(with_divergence(soft_loss), temperature=temperature)
            terms["soft"] = Term(loss, share_bt, weights["soft"])
        if self._has("hard"):
            terms["hard"] = Term(Partial(hard_loss), share_bt, weights["hard"], batch["targets"])
        if self._has("matched", "sorted"):
            # Roll both to the position that predicts the token, see place_beside
            aligned_bt, exact_bt = place_beside(batch) >= 0, jnp.roll(batch["exact"], -1, axis=1)
        if self._has("matched"):
            shared_ids = tuple(jnp.array(ids, jnp.int32) for ids in self.shared)
            loss = with_divergence(shared_vocabulary_loss)
            loss = Partial(loss, temperature=temperature, shared=shared_ids)
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
            flat_pairs = [[x.reshape(*x.shape[:2], -1) for x in pair] for pair in pairs]
            losses = [
                relation_loss(*pair, batch["segment_ids"], relation_heads=self.relation_heads)
                for pair in flat_pairs
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
        teacher = self._read(self._teacher, teacher_params, rows).outputs
        term = Term(loss, token_weights(rows), self.weights["on_policy"])
        return mean_over_tokens({"on_policy": term}, student, teacher)

    def _read_student(self, params, batch):
        layers = range(self.student.num_hidden_layers) if self._has(*OF_FEATURES) else None
        return self._read(self.student, params, batch, layers)

    def _read_teacher(self, params, batch):
        """Return the teacher's ForwardOutputs, or None if no term needs the teacher in memory."""
        if self._has("matched", "sorted"):
            return ForwardOutputs(outputs_beside(self._teacher, params, batch))
        if self._has(*OF_FEATURES):
            layers = layer_map(self.student.num_hidden_layers, self._teacher.num_hidden_layers)
            return self._read(self._teacher, params, batch, layers)
        if self._has("soft") and CACHED[0] not in batch:
            return self._read(self._teacher, params, batch)
        return None

    @property
    def _teacher(self) -> ModelConfig:
        """The teacher's config, for a term that compares with it."""
        assert self.teacher is not None, "a term has a weight that needs a teacher"
        return self.teacher

    def _read(self, config: ModelConfig, params, batch, compared_layers=None):
        """Return a model's ForwardOutputs, with features if it has layers to compare."""
        keeps_layers = compared_layers is not None
        hidden, _, states = layer_states(
            config,
            params,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            keep_layers=keeps_layers,
        )
        # Rows past vocab_size belong to no token of the tokenizer
        outputs = Outputs(hidden, head_weight(config, params)[: self.vocab_size])
        if not keeps_layers:
            return ForwardOutputs(outputs)
        # Kept with the layers
        assert states is not None
        attention = None
        if self._has("relations"):
            attention = last_attention(config, params, states, batch["positions"])
        return ForwardOutputs(outputs, states[jnp.array(compared_layers)], attention)


def without_projections(params):
    """Return the student's own params."""
    has_projections = isinstance(params, dict) and PROJECTIONS in params
    return params[STUDENT] if has_projections else params


def token_weights(batch):
    """Return the weight of each target in a mean over the whole batch: float32[b t]."""
    weight_bt = jnp.where(batch["loss_mask"], batch.get("loss_weights", 1.0), 0.0)
    # Without any target all weights are 0: divide by 1, so that the mean is 0 and not NaN
    return weight_bt / jnp.where(batch["normalizer"] > 0, batch["normalizer"], 1)


def l2_penalty(params):
    """Compute half the sum of the squares of the weights that weight decay would decay: float32[].

    The gradient in a weight is the weight. Projections do not count, as they are dropped after
    training. Nor do parts that no term trains, and parameters that are frozen because an adapter is
    trained.
    """
    params, _ = split(without_projections(params))

    def square(path, leaf, is_decayed):
        return jnp.square(leaf).sum() if is_decayed and has_gradient(path) else jnp.float32(0)

    return 0.5 * sum(jax.tree.leaves(jax.tree.map_with_path(square, params, decays(params))))
