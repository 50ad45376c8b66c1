"""The decoder: embedding, layers of attention and feed-forward, final norm, and its parameters."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from typing_extensions import override

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.gqa import GroupedQueryAttention
from deepseek_jax.models.layers import GatedMLP, RMSNorm, position_tables, weight
from deepseek_jax.models.mla import MultiHeadLatentAttention
from deepseek_jax.models.moe import MoE, Routing
from deepseek_jax.models.mtp import MultiTokenPrediction
from deepseek_jax.models.remat_policies import REMAT_POLICIES, RematPolicy
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.saved_names import LAYER_INPUT
from deepseek_jax.parallel.pipeline import pipeline, pipeline_stages
from deepseek_jax.parallel.shard import constrain
from deepseek_jax.trees import PyTree

# The logical axes that split the residual stream [b t d] between layers
ROWS = ("batch", "seq", None)


class Report(NamedTuple):
    """Report of one layer about a batch, or of several with a leading axis l.

    Attributes:
        routing: A models.Routing; None where nothing routes.
        indexer: float32[], the sum of ops.index_loss over real tokens; None where
            config.indexer_loss is "none".
        experts: int32[b t a], the experts of each token; None where nothing routes, and in
            training.
    """

    routing: Routing | None
    indexer: jax.Array | None
    experts: jax.Array | None = None


class DecoderLayer(nn.Module):
    """One layer: x + attention(norm(x)), then x + ffn(norm(x))."""

    config: ModelConfig
    is_moe: bool

    @override
    def setup(self):
        cfg = self.config
        self.attention_norm = RMSNorm(cfg, cfg.hidden_size)
        self.attention = (MultiHeadLatentAttention if cfg.is_mla else GroupedQueryAttention)(cfg)
        self.ffn_norm = RMSNorm(cfg, cfg.hidden_size)
        self.ffn = MoE(cfg) if self.is_moe else GatedMLP(cfg, cfg.intermediate_size)

    def _feed_forward(self, x, segment_ids=None, kept_experts=None):
        if self.is_moe:
            y, routing, experts, rounds = self.ffn(self.ffn_norm(x), segment_ids, kept_experts)
            if routing is not None:
                # A NaN balance (an earlier layer gave NaN) makes the load NaN, so the bias update skips this
                # layer
                routing = routing._replace(load=routing.load + 0 * routing.balance)
            return x + y, routing, experts, rounds
        return x + self.ffn(self.ffn_norm(x)), None, None, None

    def __call__(self, x_btd, rope, segment_ids, branches=None, recorded_experts=None):
        """Run the layer over rows, for a prefill.

        Args:
            x_btd: [b t d], the residual stream.
            rope: Cosines and sines, see layers.position_tables.
            segment_ids: int32[b t], 0 on padding.
            branches: An ops.branches.Branches, or None.
            recorded_experts: uint16[b t a], see MoE.__call__, or None.

        Returns:
            The residual stream [b t d], a Report, and the entries of the decoding cache.
        """
        normed_btd = self.attention_norm(x_btd)
        y_btd, cache_entries, indexer = self.attention(normed_btd, rope, segment_ids, branches)
        x_btd, routing, experts, _ = self._feed_forward(
            save_for_backward(x_btd + y_btd), segment_ids, recorded_experts
        )
        return x_btd, Report(routing, indexer, experts), cache_entries

    def train(
        self, x_btd, rope, segment_ids, branches: Branches | None, keep: bool, recorded_experts=None
    ):
        """Run the layer as a body of lax.scan, without a cache.

        Args:
            x_btd: [b t d], the residual stream.
            rope: Cosines and sines, see layers.position_tables.
            segment_ids: int32[b t], 0 on padding.
            branches: A Branches or None; static.
            keep: Return the layer's output for the caller to keep too; static.
            recorded_experts: uint16[b t a], see MoE.__call__, or None.

        Returns:
            The residual stream [b t d], and (Report, the residual stream if keep else None).
        """
        x_btd = checkpoint_name(constrain(x_btd, ROWS), LAYER_INPUT)
        x_btd, report, _ = self(x_btd, rope, segment_ids, branches, recorded_experts)
        x_btd = constrain(x_btd, ROWS)
        return x_btd, (report._replace(experts=None), x_btd if keep else None)

    def project(self, x_btd, rope):
        """Compute the queries, keys and values of the layer's attention, [b t heads size] each."""
        return self.attention.project(self.attention_norm(x_btd), rope)

    def decode(self, x_bd, rope, cache, write):
        """Run the layer on one new token of each sequence.

        Args:
            x_bd: [b d], the residual stream.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache.
            write: A cache.CacheWrite or cache.PositionWrite, with mask bool[b s].

        Returns:
            The residual stream [b d]; the cache; the tokens' experts int32[b a], or None; and the
            rounds of their exchange int32[devices], or None, see MoE.__call__.
        """
        y_bd, cache = self.attention.decode(self.attention_norm(x_bd), rope, cache, write)
        x_bd, _, experts, rounds = self._feed_forward(x_bd + y_bd)
        return x_bd, cache, None if experts is None else experts[:, 0], rounds

    def extend(self, x_btd, rope, cache, write):
        """Run the layer on t new tokens of each sequence.

        Args:
            x_btd: [b t d], the residual stream.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache.
            write: A cache.PositionWrite, with mask bool[b t s].

        Returns:
            The residual stream [b t d]; the cache; and the tokens' experts int32[b t a], or None.
        """
        y_btd, cache = self.attention.extend(self.attention_norm(x_btd), rope, cache, write)
        x_btd, _, experts, _ = self._feed_forward(x_btd + y_btd)
        return x_btd, cache, experts


# One object for each RematPolicy: jax traces again for a policy that is another object
@functools.cache
def checkpoint_policy(remat: RematPolicy):
    """Return the policy of jax.checkpoint for a RematPolicy; None saves only the layer's input."""
    if remat.saves_products:
        # Products with weights have no batch axes. Products of queries, keys and values have them, and are
        # recomputed
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if remat.offloads:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(remat.saves),
            names_which_can_be_offloaded=list(remat.offloads),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*remat.saves) if remat.saves else None


def _training_layer(config: ModelConfig, looped: bool = False):
    """Return the class DecoderLayer, with a `train` that recomputes as config.remat says.

    Args:
        config: The model.
        looped: True if the forward and the backward pass are separate loops of the program. The
            compiler cannot merge a recomputation with its original (CSE) across loops, so remat
            need not prevent it.
    """
    if config.remat == "none":
        return DecoderLayer
    return nn.remat(
        DecoderLayer,
        methods=["train"],
        # branches and keep; self is argument 0
        static_argnums=(4, 5),
        prevent_cse=not looped,
        policy=checkpoint_policy(REMAT_POLICIES[config.remat]),
    )


class Decoder(nn.Module):
    """The whole decoder without its output head's product: embedding, layers, final norm.

    Dense layers come before MoE layers. Each of the two stacks has its layers' parameters stacked
    on axis 0.
    """

    config: ModelConfig

    @override
    def setup(self):
        cfg = self.config
        d, v = cfg.hidden_size, cfg.vocab_size
        self.embedding = weight(self, "embedding", vocab=v, embed=d)
        self.dense_layers = self._stack(cfg.num_dense_layers, is_moe=False)
        self.moe_layers = self._stack(cfg.num_moe_layers, is_moe=True)
        self.final_norm = RMSNorm(cfg, d)
        if not cfg.tie_word_embeddings:
            self.head = weight(self, "head", vocab=v, embed=d)
        self.mtp = [
            MultiTokenPrediction(cfg, _training_layer(cfg)(cfg, is_moe=True))
            for _ in range(cfg.num_nextn_predict_layers)
        ]

    def _stack(self, length, is_moe):
        if not length:
            return None
        cfg = self.config
        # Pipeline stages split only the last stack, so the layer axes of the two stacks have different names
        name = "layers" if is_moe or not cfg.num_moe_layers else "first_layers"
        # XLA unrolls a loop of one turn
        looped = cfg.scan_layers and length > 1
        scanned_layer = nn.scan(
            _training_layer(cfg, looped),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            # The arguments of `train`: only the last, kept, has an axis of layers
            in_axes=(*[nn.broadcast] * 4, 0),
            length=length,
            # A scan even when it is unrolled, so that the parameters are stacked either way
            unroll=1 if cfg.scan_layers else length,
            metadata_params={nn.PARTITION_NAME: name},
            # The check traces the layer a second time. Init needs it: without it, a seed gives other numbers
            check_constancy_invariants=self.is_initializing(),
            methods=["train"],
        )
        return scanned_layer(cfg, is_moe)

    def __call__(self, tokens, positions, segment_ids, branches, keep_layers, recorded_experts):
        """Run the decoder over rows, up to the final norm.

        Args:
            tokens: int32[b t].
            positions: int32[b t].
            segment_ids: int32[b t], 0 on padding.
            branches: A Branches or None.
            keep_layers: Return the residual stream after each layer too.
            recorded_experts: uint16[l b t a], experts in the MoE layers, see
                ops.routing.with_recorded, or None.

        Returns:
            The hidden states [b t d] after the final norm; a Report, with routing of each MoE layer
            and indexer of every layer; and the residual stream after each layer, [l b t d], if
            keep_layers, else None.
        """
        # Computed once: every layer rotates by the same angles
        rope = position_tables(self.config, positions)
        x_btd = self._embed(tokens)
        reports, states = [], []
        for stack in filter(None, (self.dense_layers, self.moe_layers)):
            # Only the last stack is split into stages. During init it has no parameters to split yet
            in_stages = stack is (self.moe_layers or self.dense_layers) and pipeline_stages() > 1
            train = self._train_in_stages if in_stages and not self.is_initializing() else _train
            stack_experts = recorded_experts if stack is self.moe_layers else None
            arguments = x_btd, rope, segment_ids, branches, keep_layers, stack_experts
            x_btd, (report, x_lbtd) = train(stack, *arguments)
            reports.append(report)
            states.append(x_lbtd)
        indexer_losses = [report.indexer for report in reports if report.indexer is not None]
        # Dense layers come first and do not route, so the last stack has all the routing
        report = Report(
            reports[-1].routing, jnp.concatenate(indexer_losses) if indexer_losses else None
        )
        return self.final_norm(x_btd), report, jnp.concatenate(states) if keep_layers else None

    def _embed(self, tokens):
        # Gather the whole table, so that each device can look up its own tokens
        table_vd = constrain(self.embedding, (None, None))
        return jnp.take(table_vd, tokens, axis=0).astype(self.config.dtype)

    def _train_in_stages(
        self, stack, x_btd, rope, segment_ids, branches, keep_layers, kept_experts
    ):
        """Run stack.train with the layers split over the mesh's pipeline stages."""
        cfg = self.config
        if keep_layers:
            raise ValueError(
                "the hidden states of single layers do not leave a pipeline's stages; set mesh.pipeline to 1"
            )
        if kept_experts is not None:
            raise ValueError(
                "experts that a rollout kept do not enter a pipeline's stages; set keep_routing to False, or "
                "mesh.pipeline to 1"
            )
        # parent=None: apply gets a slice of the stacked parameters instead of this module's parameters.
        # looped: pipeline scans over its turns, whatever scan_layers is
        layer = _training_layer(cfg, looped=True)(cfg, stack is self.moe_layers, parent=None)

        def run_stage(params, carry):
            def one_layer(x_btd, layer_params):
                arguments = x_btd, carry["rope"], carry["segment_ids"], branches, False
                return layer.apply({"params": layer_params}, *arguments, method="train")

            unroll = 1 if cfg.scan_layers else len(jax.tree.leaves(params)[0])
            x_btd, (report, _) = jax.lax.scan(one_layer, carry["x"], params, unroll=unroll)
            return carry | {"x": x_btd}, report

        if cfg.expert_buffer is not None:
            # The stages run as one program under vmap, which computes both branches of a condition
            raise ValueError(
                f"model.expert_buffer={cfg.expert_buffer} does not go with "
                f"mesh.pipeline={pipeline_stages()}: every layer would exchange its tokens twice; leave one "
                "of them out"
            )
        carry = {"x": x_btd, "rope": rope, "segment_ids": segment_ids}
        micro_batches = cfg.pipeline_micro_batches or pipeline_stages()
        x_btd, report = pipeline(run_stage, stack.variables["params"], carry, micro_batches)
        return x_btd, (report, None)

    def predict_further(self, depth, hidden_btd, next_tokens, positions, segment_ids):
        """Run multi-token prediction module `depth` (arXiv:2412.19437, eqs. 21-22).

        Args:
            depth: The module's number, from 0.
            hidden_btd: [b t d], after the final norm, or from module depth - 1.
            next_tokens: int32[b t], the tokens depth + 1 ahead.
            positions: int32[b t].
            segment_ids: int32[b t].

        Returns:
            The hidden states [b t d] for the head, and a Report.
        """
        embedding_btd = self._embed(next_tokens)
        rope = position_tables(self.config, positions)
        return self.mtp[depth](embedding_btd, hidden_btd, rope, segment_ids)

    def touch(self, tokens):
        """Call every part once: init creates the parameters of the parts that it calls."""
        ones = jnp.ones_like(tokens)
        hidden, _, _ = self(tokens, ones, ones, None, False, None)
        for depth in range(self.config.num_nextn_predict_layers):
            self.predict_further(depth, hidden, tokens, ones, ones)


def _train(stack, *arguments):
    return stack.train(*arguments)


def init_params(config: ModelConfig, rng: jax.Array) -> PyTree:
    """Create random float32 parameters: normal(initializer_range) weights, unit norms, zero biases.

    Returns:
        Linen's boxed tree: flax.linen.unbox gives the arrays, parallel.shard reads the axis names.
    """
    return Decoder(config).init(rng, jnp.zeros((1, 1), jnp.int32), method="touch")["params"]


def segment_positions(segment_ids):
    """Count positions from 0 in each segment: int32[b t] -> int32[b t]."""
    t = segment_ids.shape[1]
    index_t = jnp.arange(t, dtype=jnp.int32)
    begins_bt = jnp.pad(
        segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    # The running maximum is the index of the latest beginning
    start_bt = jnp.maximum.accumulate(jnp.where(begins_bt, index_t, 0), axis=1)
    return index_t - start_bt
