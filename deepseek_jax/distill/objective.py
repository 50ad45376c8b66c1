"""A student after its teacher on a batch: the named terms of an objective, and their weighted sum."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.distill.cross_tokenizer import cross_tokenizer_distillation
from deepseek_jax.distill.feature_distillation import hidden_state_loss, layer_map
from deepseek_jax.distill.logit_distillation import dense_distillation, top_k_distillation
from deepseek_jax.distill.relation_distillation import relation_loss
from deepseek_jax.distill.terms import combine_terms
from deepseek_jax.distill.top_k import TopK
from deepseek_jax.models import ModelConfig, decays, head_weight, last_attention, layer_states
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel.tokens import over_tokens

# THE list of terms, each a mean over the tokens that are learned, but for the last
TERMS = {
    "soft": "the teacher's distribution: logit_distillation, dense or of its k likeliest tokens",
    "hard": "the text's own tokens: of a teacher's text sequence-level distillation (arXiv:1606.07947)",
    "hidden": "the teacher's hidden states: feature_distillation",
    "relations": "the last attention's queries, keys and values: relation_distillation",
    "matched": "of another tokenizer's teacher, tokens that align exactly: cross_tokenizer",
    "sorted": "of another tokenizer's teacher, the other aligned tokens: cross_tokenizer",
    "on_policy": "the teacher's distribution on text that the student samples (arXiv:2306.13649)",
    "l2": "half the sum of the squared weights, norms and biases left out",
}
OF_DATA = ("soft", "hard", "hidden", "relations", "matched", "sorted")  # need the batch's own rows
OF_TEACHER = ("soft", "hidden", "relations", "matched", "sorted", "on_policy")
PROJECTIONS = "projections"  # in the student's params while it is trained, see init_projections
CACHED = ("top_ids", "top_logprobs", "dropped")  # batch keys of the teacher's TopK
BOUND = "soft_bound"  # metric: of a teacher's top k, see top_k.dropped_mass_bound
SAMPLED = "sampled_"  # in front of a batch key: of the rows that the student sampled


class Shown(NamedTuple):
    """What a model shows of some rows. hidden: [b t d], after the final norm. head: [v d]. layers: [l b t d],
    behind the layers compared, or None. attention: last_attention's, or None."""

    hidden: jax.Array
    head: jax.Array
    layers: jax.Array | None
    attention: tuple | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a student is trained on, by weights: {name of TERMS: float}, those that count.

    teacher: None where no term asks one, or where its top k are in the batch. divergence, beta: of soft and
    matched; on_policy_divergence, on_policy_beta: of on_policy, both as divergences has them. vocab_size: how
    many tokens both heads are cut to, None for all. shared: of matched, from shared_vocabulary, as tuples.
    micro_batches: into how many parts a batch is cut, whose losses add up.

    A batch: as in next_token_loss, with temperature float32[]; for soft from a cache top_ids int32[b t k],
    top_logprobs float32[b t k] and dropped float32[b t]; for matched and sorted teacher_tokens and
    teacher_tokens_segment_ids int32[b s], teacher_index int32[b t], the teacher's token beside each of the
    student's in the same row, -1 for none, and exact bool[b t]; for on_policy the rows that were sampled,
    tokens, ..., normalizer, under SAMPLED + key.
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

    def loss(self, params, batch, teacher_params):
        """(loss float32[], metrics): the weighted sum, and each term before its weight; of soft from a cache
        soft_bound as well, by how much at most it is below the soft term of all tokens.

        soft and hard get their gradient from the same pass as their value, see chunks.weigh_chunks.
        """
        fast, terms = self._terms(params, batch, teacher_params, fast=True)
        rest = {name: weight for name, weight in self.weights.items() if name in terms}
        total, _ = combine_terms(rest, terms)
        metrics = terms if fast is None else terms | fast[1]
        return total if fast is None else total + fast[0], jax.lax.stop_gradient(metrics)

    def terms(self, params, batch, teacher_params):
        """Every term that counts, float32[] by name, each with a gradient of its own."""
        return self._terms(params, batch, teacher_params, fast=False)[1]

    def _terms(self, params, batch, teacher_params, fast):
        """((weighted sum, terms) of what logits give, or None, and the terms that are not in it)."""
        teacher_params = jax.lax.stop_gradient(teacher_params)
        terms, summed = {}, None
        if self._has(*OF_DATA):
            student = self._show(self.student, params, batch, self._student_layers())
            teacher = self._teacher(teacher_params, batch)
            if self._has("soft", "hard"):
                cached = [batch[name] for name in CACHED if name in batch]
                source = TopK(*cached) if cached else teacher
                found = _logit_terms(self, student, source, batch, fast)
                summed, terms = (found, {}) if fast else (None, found)
            terms |= self._feature_terms(params, student, teacher, batch)
            if self._has("matched", "sorted"):
                terms |= _cross_terms(self, student, teacher_params, batch)
        if self._has("on_policy"):
            terms["on_policy"] = self._on_policy(params, batch, teacher_params)
        if self._has("l2"):
            terms["l2"] = l2_penalty(params) / self.micro_batches
        return summed, terms

    def _has(self, *names):
        return any(self.weights.get(name) for name in names)

    def _show(self, config, params, batch, layers):
        options = {name: batch[name] for name in ("segment_ids", "positions")}
        keep = layers is not None
        hidden, _, states = layer_states(
            config, params, batch["tokens"], keep_layers=keep, **options
        )
        attention = None
        if self._has("relations") and keep:
            attention = last_attention(config, params, states, batch["positions"])
        chosen = states[jnp.array(layers)] if keep else None
        head = head_weight(config, params)[: self.vocab_size]
        return Shown(hidden, head, chosen, attention)

    def _student_layers(self):
        return range(self.student.num_hidden_layers) if self._has("hidden", "relations") else None

    def _teacher(self, teacher_params, batch):
        """Shown of the teacher, or None where no term asks one at hand."""
        features = self._has("hidden", "relations")
        if not features and (not self._has("soft") or CACHED[0] in batch):
            return None
        layers = None
        if features:
            layers = layer_map(self.student.num_hidden_layers, self.teacher.num_hidden_layers)
        return self._show(self.teacher, teacher_params, batch, layers)

    def _feature_terms(self, params, student, teacher, batch):
        weight_bt, terms = token_weights(batch), {}
        if self._has("hidden"):
            hidden_bt = hidden_state_loss(student.layers, teacher.layers, params[PROJECTIONS])
            terms["hidden"] = (weight_bt * hidden_bt).sum()
        if self._has("relations"):
            pairs = zip(student.attention, teacher.attention, strict=True)
            flat = [[x.reshape(*x.shape[:2], -1) for x in pair] for pair in pairs]
            kind = dict(relation_heads=self.relation_heads)
            losses = [relation_loss(*pair, batch["segment_ids"], **kind) for pair in flat]
            terms["relations"] = (weight_bt * sum(losses)).sum() / len(losses)
        return terms

    def _on_policy(self, params, batch, teacher_params):
        rows = {k.removeprefix(SAMPLED): v for k, v in batch.items() if k.startswith(SAMPLED)}
        rows["temperature"] = batch["temperature"]
        student = self._show(self.student, params, rows, None)
        teacher = self._show(self.teacher, teacher_params, rows, None)
        kind = dict(divergence=self.on_policy_divergence, beta=self.on_policy_beta)
        objective = dataclasses.replace(self, weights={"soft": 1.0}, **kind)
        return _logit_terms(objective, student, teacher, rows, fast=False)["soft"]


def token_weights(batch):
    """What each target counts in a mean over the whole batch: float32[b t]."""
    weight_bt = jnp.where(batch["loss_mask"], batch.get("loss_weights", 1.0), 0.0)
    return weight_bt / jnp.maximum(batch["normalizer"], 1)


def l2_penalty(params):
    """Half the sum of the squares of what weight decay would decay: float32[]. Its gradient is the weight.

    Projections, which are dropped after training, do not count.
    """
    params = {name: leaf for name, leaf in params.items() if name != PROJECTIONS}
    masked = jax.tree.map(
        lambda leaf, use: jnp.square(leaf).sum() if use else jnp.float32(0), params, decays(params)
    )
    return 0.5 * sum(jax.tree.leaves(masked))


def _logit_terms(objective, student, teacher, batch, fast):
    """soft and hard, those that count: by name, or with fast (their weighted sum, by name)."""
    names = [name for name in ("soft", "hard") if objective.weights.get(name)]
    counts = [objective.weights.get(name) for name in ("soft", "hard")]
    weight_bt = token_weights(batch)
    tokens = {"targets": batch["targets"], "weight": weight_bt, "teacher": teacher}
    whole = {"temperature": batch["temperature"]}
    kind = dict(divergence=objective.divergence, beta=objective.beta)
    score = top_k_distillation
    if isinstance(teacher, Shown):
        score, tokens["teacher"], whole["teacher_head"] = (
            dense_distillation,
            teacher.hidden,
            teacher.head,
        )

    def of_tokens(hidden, head, tokens, whole):
        if "soft" not in names:
            hard_m = -token_logprobs(hidden, head, tokens["targets"])[0]
            return counts[1] * tokens["weight"] * hard_m, hard_m, hard_m
        weights = [w * tokens["weight"] if w else None for w in counts] if fast else None
        taught = tokens["teacher"]
        results = score(hidden, head, tokens["targets"], taught, weights=weights, **whole, **kind)
        return results if fast else (jnp.zeros(len(hidden)), *results)

    total, *found = over_tokens(of_tokens, student.hidden, student.head, tokens, whole)
    found = dict(zip(("soft", "hard", BOUND), found, strict=False))
    terms = {name: (weight_bt * found[name]).sum() for name in names}
    if not fast:
        return terms
    shown = terms | ({BOUND: (weight_bt * found[BOUND]).sum()} if BOUND in found else {})
    return total.sum(), shown


def _cross_terms(objective, student, teacher_params, batch):
    """matched and sorted, those that count: sums over their own tokens, divided by all learned ones."""
    config = objective.teacher
    hidden_bsd, _, _ = layer_states(
        config,
        teacher_params,
        batch["teacher_tokens"],
        segment_ids=batch["teacher_tokens_segment_ids"],
        keep_layers=False,
    )
    beside_bt = jnp.roll(batch["teacher_index"], -1, axis=1)  # of the target, not of the token
    exact_bt = jnp.roll(batch["exact"], -1, axis=1)
    aligned_bt = beside_bt > 0  # the first token of a text is predicted by nothing
    before_bt = jnp.maximum(beside_bt - 1, 0)
    tokens = {
        "targets": batch["targets"],
        "teacher": jnp.take_along_axis(hidden_bsd, before_bt[..., None], axis=1),
    }
    shared = tuple(jnp.array(ids, jnp.int32) for ids in objective.shared)
    whole = {"head": head_weight(config, teacher_params), "temperature": batch["temperature"]}
    kind = dict(divergence=objective.divergence, beta=objective.beta)

    def of_tokens(hidden, head, tokens, whole):
        teacher = tokens["teacher"], whole["head"]
        kind_at = kind | {"temperature": whole["temperature"]}
        return cross_tokenizer_distillation(
            hidden, head, tokens["targets"], *teacher, shared, **kind_at
        )

    matched, in_order, _ = over_tokens(of_tokens, student.hidden, student.head, tokens, whole)
    weight_bt, terms = token_weights(batch), {}
    if objective.weights.get("matched"):
        terms["matched"] = jnp.where(aligned_bt & exact_bt, weight_bt * matched, 0.0).sum()
    if objective.weights.get("sorted"):
        terms["sorted"] = jnp.where(aligned_bt & ~exact_bt, weight_bt * in_order, 0.0).sum()
    return terms
