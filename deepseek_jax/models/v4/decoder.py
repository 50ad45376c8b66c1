"""DeepSeek-V4's decoder, and functions of its parameters: hidden states, later tokens, logits.

arXiv:2606.19348. Open this file to run a model: `forward` returns logits.

Tests: tests/models/v4/test_cache.py, tests/models/v4/test_parity.py,
tests/models/v4/test_rows.py.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from typing_extensions import override

from deepseek_jax.models.decoder import Report, checkpoint_policy, segment_positions
from deepseek_jax.models.layers import RMSNorm, weight
from deepseek_jax.models.remat_policies import REMAT_POLICIES
from deepseek_jax.models.v4.attention import WindowAttention
from deepseek_jax.models.v4.cache import LayerCache, as_rings
from deepseek_jax.models.v4.compressor import Places, places, step_places
from deepseek_jax.models.v4.config import MTP_LAYER, LayerKind, V4Config, repeating
from deepseek_jax.models.v4.moe import MoE
from deepseek_jax.models.v4.mtp import MultiTokenPrediction
from deepseek_jax.models.v4.streams import StreamEnd, StreamMixing
from deepseek_jax.ops import streams
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.saved_names import LAYER_INPUT
from deepseek_jax.parallel.decoding import own_rows
from deepseek_jax.parallel.pipeline import pipeline_stages
from deepseek_jax.parallel.shard import constrain
from deepseek_jax.trees import PyTree

# The logical axes that split the residual streams [b t z d] between layers
STREAMS = ("batch", "seq", None, None)


class Rows(NamedTuple):
    """Tokens and places of a batch, which all layers read.

    Attributes:
        tokens: int32[b t].
        places: The compressor.Places of each rate of the model.
    """

    tokens: jax.Array
    places: dict[int, Places]


class Step(NamedTuple):
    """The latest token of each sequence in a decoding step, which all layers read.

    Attributes:
        tokens: int32[b 1].
        positions: int32[b 1].
        places: The compressor.step_places of each rate of the model.
    """

    tokens: jax.Array
    positions: jax.Array
    places: dict[int, Places]


class States(NamedTuple):
    """What the layers leave.

    Attributes:
        hidden: [b t d], after the final norm.
        streams: [b t z d], before they are collapsed, for multi-token prediction.
        reports: A models.decoder.Report of real tokens for each layer, by its key in params.
            indexer is None without an indexer, and where config.indexer_loss is "none".
    """

    hidden: jax.Array
    streams: jax.Array
    reports: dict[str, Report]


class DecoderLayer(nn.Module):
    """One layer: attention, then experts, each of which reads and writes the residual streams."""

    config: V4Config
    kind: LayerKind

    @override
    def setup(self):
        cfg = self.config
        self.attention_mixing = StreamMixing(cfg)
        self.attention_norm = RMSNorm(cfg, cfg.hidden_size)
        self.attention = WindowAttention(cfg, self.kind)
        self.ffn_mixing = StreamMixing(cfg)
        self.ffn_norm = RMSNorm(cfg, cfg.hidden_size)
        self.ffn = MoE(cfg, self.kind.has_table)

    def __call__(self, streams_btzd, rows: Rows):
        """Run the layer over rows.

        Returns:
            The streams [b t z d], a models.decoder.Report, and a LayerCache of whole rows.
        """
        at = rows.places[self.kind.rate]
        streams_btzd = checkpoint_name(constrain(streams_btzd, STREAMS), LAYER_INPUT)
        x_btd, mixing = self._attention_input(streams_btzd)
        y_btd, indexer_loss, remembered = self.attention(x_btd, at)
        streams_btzd = streams.write(streams_btzd, y_btd, mixing)
        streams_btzd, routing = self._feed_forward(streams_btzd, rows.tokens, at.segment_ids)
        return streams_btzd, Report(routing, indexer_loss), remembered

    def decode(self, streams_b1zd, step: Step, cache: LayerCache):
        """Run the layer on one token of each sequence: return the streams [b 1 z d] and the cache."""
        at = step.places[self.kind.rate]
        x_b1d, mixing = self._attention_input(streams_b1zd)
        y_b1d, cache = self.attention.decode(x_b1d, step.positions, at, cache)
        streams_b1zd = streams.write(streams_b1zd, y_b1d, mixing)
        return self._feed_forward(streams_b1zd, step.tokens, at.segment_ids)[0], cache

    def _attention_input(self, streams_btzd):
        mixing = self.attention_mixing(streams_btzd)
        return self.attention_norm(streams.read(streams_btzd, mixing.read)), mixing

    def _feed_forward(self, streams_btzd, tokens, segment_ids):
        mixing = self.ffn_mixing(streams_btzd)
        x_btd = self.ffn_norm(streams.read(streams_btzd, mixing.read))
        y_btd, routing = self.ffn(x_btd, tokens, segment_ids)
        return streams.write(streams_btzd, y_btd, mixing), routing


def _training_layer(config: V4Config, looped: bool = False):
    """Return the class DecoderLayer, which recomputes as config.remat says.

    Args:
        config: The model.
        looped: See models.decoder.
    """
    if config.remat == "none":
        return DecoderLayer
    policy = checkpoint_policy(REMAT_POLICIES[config.remat])
    return nn.remat(DecoderLayer, prevent_cse=not looped, policy=policy)


class Decoder(nn.Module):
    """The whole decoder without its output head's product: embedding, layers, final norm.

    Layers differ, so that each has its own parameters and nothing is stacked.
    """

    config: V4Config

    @override
    def setup(self):
        cfg = self.config
        d, v = cfg.hidden_size, cfg.vocab_size
        self.embedding = weight(self, "embedding", vocab=v, embed=d)
        layer = _training_layer(cfg)
        self.layers = [layer(cfg, kind) for kind in cfg.layers]
        self.stream_end = StreamEnd(cfg)
        self.final_norm = RMSNorm(cfg, d)
        self.head = weight(self, "head", vocab=v, embed=d)
        self.mtp = [
            MultiTokenPrediction(cfg, layer(cfg, MTP_LAYER))
            for _ in range(cfg.num_nextn_predict_layers)
        ]

    def __call__(self, tokens, positions, segment_ids) -> States:
        """Run the decoder over rows, int32[b t] each, up to the final norm."""
        if pipeline_stages() > 1:
            raise ValueError(
                f"mesh.pipeline={pipeline_stages()}: stages of a pipeline run one program, and the "
                "layers of DeepSeek-V4 differ in their attention; set mesh.pipeline to 1"
            )
        cfg = self.config
        first, period = len(cfg.layers), 1
        # Init creates the parameters of every layer
        if cfg.scan_layers and not self.is_initializing():
            first, period = repeating(cfg.layers)
        rows = self._rows({kind.rate for kind in cfg.layers}, tokens, positions, segment_ids)
        streams_btzd, reports = self._first_streams(self._embed(tokens)), {}
        for layer in self.layers[:first]:
            streams_btzd, reports[layer.name], _ = layer(streams_btzd, rows)
        if first < len(self.layers):
            streams_btzd, more = self._scan(self.layers[first:], period, streams_btzd, rows)
            reports |= more
        return States(self._hidden(streams_btzd), streams_btzd, reports)

    def _scan(self, repeated, period, streams_btzd, rows):
        """Run equal groups of layers as one loop: return the streams, and Reports."""
        by_place = [repeated[place::period] for place in range(period)]
        stacks = [
            jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *(x.variables["params"] for x in layers)
            )
            for layers in by_place
        ]
        layer_class = _training_layer(self.config, looped=True)
        # parent=None: apply gets a slice of the stacks in place of this module's parameters
        group = [layer_class(self.config, layers[0].kind, parent=None) for layers in by_place]

        def run_group(streams_btzd, params):
            reports = []
            for layer, layer_params in zip(group, params, strict=True):
                variables = {"params": layer_params}
                streams_btzd, report, _ = layer.apply(variables, streams_btzd, rows)
                reports.append(report)
            return streams_btzd, reports

        streams_btzd, reports = jax.lax.scan(run_group, streams_btzd, stacks)
        return streams_btzd, {
            layer.name: jax.tree.map(lambda x, n=n: x[n], report)
            for layers, report in zip(by_place, reports, strict=True)
            for n, layer in enumerate(layers)
        }

    def prefill(self, tokens, lengths):
        """Run prompts, see the function prefill."""
        at_t = jnp.arange(tokens.shape[1])
        segment_ids = (at_t < lengths[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(at_t, tokens.shape)
        streams_btzd, _, remembered = self._run(tokens, positions, segment_ids)
        caches = [
            as_rings(self.config, kind, rows, lengths)
            for kind, rows in zip(self.config.layers, remembered, strict=True)
        ]
        last_b111 = (lengths - 1)[:, None, None, None]
        last_b1zd = jnp.take_along_axis(streams_btzd, last_b111, axis=1)
        return self._hidden(last_b1zd)[:, 0], caches

    def decode(self, tokens_b, positions_b, caches):
        """Run one token of each sequence, see the function decode."""
        positions_b1 = positions_b[:, None]
        rates = {kind.rate for kind in self.config.layers}
        by_rate = {rate: step_places(self.config, rate, positions_b1) for rate in rates}
        step = Step(tokens_b[:, None], positions_b1, by_rate)
        # The table stays where it is: a step reads few of its rows
        embedding_b1d = jnp.take(self.embedding, step.tokens, axis=0).astype(self.config.dtype)
        streams_b1zd, written = self._first_streams(embedding_b1d), []
        for layer, cache in zip(self.layers, caches, strict=True):
            streams_b1zd, cache = layer.decode(own_rows(streams_b1zd), step, cache)
            written.append(cache)
        return self._hidden(streams_b1zd)[:, 0], written

    def _run(self, tokens, positions, segment_ids):
        """Run the layers: return the streams [b t z d], Reports by layer, and LayerCaches."""
        rates = {kind.rate for kind in self.config.layers}
        rows = self._rows(rates, tokens, positions, segment_ids)
        streams_btzd, reports, remembered = self._first_streams(self._embed(tokens)), {}, []
        for layer in self.layers:
            streams_btzd, reports[layer.name], cache = layer(streams_btzd, rows)
            remembered.append(cache)
        return streams_btzd, reports, remembered

    def _first_streams(self, embedding_btd):
        # Every stream begins as the embedding
        b, t, d = embedding_btd.shape
        return jnp.broadcast_to(embedding_btd[:, :, None], (b, t, self.config.hc_mult, d))

    def _embed(self, tokens):
        # Gather the whole table, so that each device can look up its own tokens
        table_vd = constrain(self.embedding, (None, None))
        return jnp.take(table_vd, tokens, axis=0).astype(self.config.dtype)

    def _hidden(self, streams_btzd):
        return self.final_norm(self.stream_end(streams_btzd))

    def _rows(self, rates, tokens, positions, segment_ids):
        # Once for all layers of a rate
        by_rate = {rate: places(self.config, rate, positions, segment_ids) for rate in rates}
        return Rows(tokens, by_rate)

    def predict_further(self, depth, streams_btzd, next_tokens, positions, segment_ids):
        """Run multi-token prediction module `depth`, see the function predict_further."""
        rows = self._rows({MTP_LAYER.rate}, next_tokens, positions, segment_ids)
        embedding_btd = self._embed(next_tokens)
        return self.mtp[depth](embedding_btd, streams_btzd, rows)

    def touch(self, tokens):
        """Call every part once: init creates the parameters of the parts that it calls."""
        ones = jnp.ones_like(tokens)
        states = self(tokens, ones, ones)
        for depth in range(self.config.num_nextn_predict_layers):
            self.predict_further(depth, states.streams, tokens, ones, ones)


def init_params(config: V4Config, rng: jax.Array) -> PyTree:
    """Create random float32 parameters: normal(initializer_range) weights, unit norms, zero biases.

    Returns:
        Linen's boxed tree: flax.linen.unbox gives the arrays, parallel.shard reads the axis names.
    """
    return Decoder(config).init(rng, jnp.zeros((1, 1), jnp.int32), method="touch")["params"]


def run_layers(
    config: V4Config,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> States:
    """Run the decoder up to its final norm, for a loss or a reward.

    Args:
        config: The model.
        params: Its parameters.
        tokens: int32[b t].
        segment_ids: int32[b t], 0 on padding, elsewhere one number for each packed document: no
            token sees another segment. Default: one document in each row.
        positions: int32[b t]. Default: count from 0 in each segment.
    """
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = segment_positions(segment_ids)
    return Decoder(config).apply({"params": params}, tokens, positions, segment_ids)


def predict_further(
    config: V4Config,
    params: PyTree,
    depth: int,
    streams: jax.Array,
    next_tokens: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, jax.Array, Report]:
    """Run multi-token prediction module `depth` (arXiv:2412.19437, section 2.2).

    Args:
        config: The model.
        params: Its parameters.
        depth: The module's number, from 0.
        streams: [b t z d], from run_layers or from the module before.
        next_tokens: int32[b t], the tokens depth + 1 ahead.
        segment_ids: int32[b t], 0 where the document has no token that far ahead.
        positions: int32[b t], the positions of `streams`.

    Returns:
        The hidden states [b t d] for the same output head, the streams [b t z d], and a
        models.decoder.Report.
    """
    arguments = depth, streams, next_tokens, positions, segment_ids
    return Decoder(config).apply({"params": params}, *arguments, method="predict_further")


def forward(
    config: V4Config,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Return the logits of every next token, float32[b t v]. Arguments are as in run_layers."""
    states = run_layers(config, params, tokens, segment_ids=segment_ids, positions=positions)
    return dot("btd,vd->btv", states.hidden, params["head"], jnp.float32)


def prefill(config: V4Config, params: PyTree, tokens: jax.Array, lengths: jax.Array):
    """Run prompts, for decoding.

    Args:
        config: The model.
        params: Its parameters.
        tokens: int32[b t], right-padded.
        lengths: int32[b], at least 1.

    Returns:
        The hidden states [b d] of each last token, after the final norm; and each layer's
        cache.LayerCache, with t // rate entries.
    """
    return Decoder(config).apply({"params": params}, tokens, lengths, method="prefill")


def decode(
    config: V4Config,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    caches: list[LayerCache],
):
    """Run one token of each sequence, each at its own position.

    Args:
        config: The model.
        params: Its parameters.
        tokens: int32[b].
        positions: int32[b].
        caches: Of each layer; they have all earlier tokens of the sequences.

    Returns:
        The hidden states [b d] after the final norm, and the caches with these tokens.
    """
    arguments = tokens, positions, caches
    return Decoder(config).apply({"params": params}, *arguments, method="decode")
