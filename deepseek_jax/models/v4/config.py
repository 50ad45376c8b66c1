"""V4Config: DeepSeek-V4's network as a checkpoint's config.json describes it, and its checks."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from deepseek_jax.models.config import (
    ExpertBuffer,
    ExpertSizes,
    IndexerLoss,
    IndexerSizes,
    RopeScaling,
    as_ids,
)
from deepseek_jax.models.remat_policies import Remat
from deepseek_jax.settings import Count, Natural, NonNegative, Positive, build

AttentionKind = Literal[
    "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
]
WINDOW: AttentionKind = "sliding_attention"
CSA: AttentionKind = "compressed_sparse_attention"
HCA: AttentionKind = "heavily_compressed_attention"
# The entries of the released compress_ratios: how many tokens become one entry
KIND_OF: dict[int, AttentionKind] = {0: WINDOW, 4: CSA, 128: HCA}
# What the decoder always does: config.json may omit these fields, but not contradict them
FIXED = {
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}

# Fields of V4Config that say how to run the network, and that no config.json has
HOW_TO_RUN = (
    "dtype",
    "scan_layers",
    "remat",
    "expert_buffer",
    "indexer_loss",
    "release_rounding",
)


class LayerKind(NamedTuple):
    """What one layer is.

    Attributes:
        attention: WINDOW for the window alone, or what it attends to besides the window.
        rate: The tokens that become one entry; 0 without a compressor.
        has_table: True if a table of token ids chooses the experts, and not the router.
    """

    attention: AttentionKind
    rate: int
    has_table: bool


# The layer of multi-token prediction
MTP_LAYER = LayerKind(WINDOW, 0, has_table=False)


# Frozen, hence hashable: jit takes it as a static argument
@dataclasses.dataclass(frozen=True)
class V4Config:
    """A decoder of DeepSeek-V4 (arXiv:2606.19348). Field names are Hugging Face's.

    Attributes:
        vocab_size: Rows of the embedding, at least the tokens of the tokenizer.
        hidden_size: The width of a residual stream.
        num_hidden_layers: Layers, without those of multi-token prediction.
        num_attention_heads: Heads of queries; keys have one.
        head_dim: The width of a head, and of a compressed entry.
        qk_rope_head_dim: The last dimensions of a head, which are rotated.
        q_lora_rank: The rank of compressed queries.
        o_groups, o_lora_rank: Groups of heads whose outputs are projected together, and the rank to
            which each group is projected.
        sliding_window: The tokens that every query sees, with itself.
        index_n_heads, index_head_dim: The heads of the lightning indexer and their width.
        index_topk: Entries that a query attends to in a CSA layer, chosen by the indexer.
        n_routed_experts: Experts that a router chooses from.
        num_experts_per_tok: Routed experts of a token.
        moe_intermediate_size: The width of an expert, and of the one shared expert.
        routed_scaling_factor: A factor on the weights of a token's experts.
        compress_ratios: 0, 4 or 128 for each layer, and 0 for each layer of multi-token prediction.
        layer_types, compress_rates: In place of compress_ratios, for other ratios: the AttentionKind
            of each layer, and (kind, ratio) for each compressed kind.
        num_hash_layers: The first layers, in which a table chooses the experts.
        swiglu_limit: The clamp of every expert, see ops.gated_mlp.swiglu.
        hc_mult: Residual streams.
        hc_sinkhorn_iters, hc_eps: See ops.streams.sinkhorn.
        num_nextn_predict_layers: Modules of multi-token prediction.
        rope_theta: The base of the rotary frequencies in layers without a compressor.
        compress_rope_theta, rope_scaling: Base and YaRN's scaling in layers with a compressor.
        max_position_embeddings: The longest row, in tokens.
        rms_norm_eps: The epsilon of every RMSNorm.
        initializer_range: The standard deviation of random matrices.
        bos_token_id, eos_token_id: The tokens that begin and end a text.
        model_type: The architecture.
        dtype: The compute dtype, "float32" or "bfloat16". The dtype of parameters does not depend
            on it, nor do the parts that are float32 in every dtype: the coefficients of the streams
            and their sums, the routers' scores, the softmax of attention, the compressors' pooling
            and the indexers' scores.
        scan_layers: Compile one group of layers in place of all, where kinds of layers repeat, see
            repeating. The program then has a second copy of their weights.
        remat: The part of a layer that the backward pass recomputes, a key of
            remat_policies.REMAT_POLICIES; "none" recomputes nothing. A layer's input is its
            streams.
        expert_buffer: The room that a TPU has to receive tokens for its experts, see ModelConfig.
        indexer_loss: What the indexers learn from, see models.config.INDEXER_LOSSES; "keys" there
            are entries here.
        release_rounding: Round keys and the indexers' operands and scores as the released inference
            code does, see ops.release_rounding. For parity with it: it has no gradient. Products of
            Linear layers are not rounded.

    Raises:
        ValueError: Naming the field, if sizes do not fit each other.
    """

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    head_dim: Count
    qk_rope_head_dim: Count
    q_lora_rank: Count
    o_groups: Count
    o_lora_rank: Count
    sliding_window: Count
    index_n_heads: Count
    index_head_dim: Count
    index_topk: Count
    n_routed_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    routed_scaling_factor: Positive
    compress_ratios: tuple[Natural, ...] | None = None
    layer_types: tuple[AttentionKind, ...] | None = None
    compress_rates: tuple[tuple[AttentionKind, Count], ...] | None = None
    num_hash_layers: Natural = 0
    swiglu_limit: Positive = 10.0
    hc_mult: Count = 4
    hc_sinkhorn_iters: Count = 20
    hc_eps: Positive = 1e-6
    num_nextn_predict_layers: Natural = 0
    rope_theta: Positive = 10000.0
    compress_rope_theta: Positive = 160000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: Count = 4096
    rms_norm_eps: NonNegative = 1e-6
    initializer_range: NonNegative = 0.02
    bos_token_id: Natural | None = None
    eos_token_id: Natural | tuple[Natural, ...] | None = None
    model_type: Literal["deepseek_v4"] = "deepseek_v4"
    # How to run it, see HOW_TO_RUN
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    expert_buffer: ExpertBuffer | None = None
    indexer_loss: IndexerLoss = "none"
    release_rounding: bool = False

    # Facts that differ between ModelConfigs
    is_mla: ClassVar[bool] = False
    tie_word_embeddings: ClassVar[bool] = False
    fp8: ClassVar[bool] = False
    pipeline_micro_batches: ClassVar[None] = None
    has_router_bias: ClassVar[bool] = True

    def __post_init__(self):
        if (self.compress_ratios is None) == (self.layer_types is None):
            raise ValueError(
                "compress_ratios, or layer_types with compress_rates, say what each layer attends "
                "to; set one of them, and not both"
            )
        if self.compress_ratios is None:
            self._check_types()
        else:
            self._check_ratios()
        self._check_sizes()
        if self.indexer_loss != "none" and not self.has_indexer:
            raise ValueError(
                f"indexer_loss={self.indexer_loss!r} trains indexers, and no layer has one; set "
                "indexer_loss to 'none'"
            )

    def _check_ratios(self):
        ratios, layers = self.compress_ratios or (), self.num_hidden_layers
        if self.compress_rates is not None:
            raise ValueError(
                "compress_rates belongs to layer_types; leave it out beside compress_ratios"
            )
        if len(ratios) < layers:
            raise ValueError(
                f"compress_ratios has {len(ratios)} entries for num_hidden_layers={layers}; give "
                "one for each layer"
            )
        for ratio in ratios[:layers]:
            if ratio not in KIND_OF:
                raise ValueError(
                    f"compress_ratios: {ratio} is not one of {', '.join(map(str, KIND_OF))}; for "
                    "other ratios set layer_types and compress_rates"
                )
        if any(ratios[layers:]):
            raise ValueError(
                f"compress_ratios ends with {', '.join(map(str, ratios[layers:]))} after the "
                f"num_hidden_layers={layers} layers: multi-token prediction compresses nothing; set "
                "these entries to 0"
            )

    def _check_types(self):
        types, rates = self.layer_types or (), dict(self.compress_rates or ())
        if len(types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(types)} entries for num_hidden_layers="
                f"{self.num_hidden_layers}; give one for each layer"
            )
        if WINDOW in rates:
            raise ValueError(
                f"compress_rates has a ratio for {WINDOW!r}, which has none; leave it out"
            )
        for kind in sorted({*types} - {WINDOW}):
            if kind not in KIND_OF.values():
                raise ValueError(
                    f"layer_types: {kind!r} is not one of {', '.join(KIND_OF.values())}"
                )
            if kind not in rates:
                raise ValueError(f"compress_rates has no ratio for {kind!r}; add it")

    def _check_sizes(self):
        r = self.qk_rope_head_dim
        if r % 2:
            raise ValueError(f"qk_rope_head_dim={r} is the rotary width; set it to an even number")
        for name in ("head_dim", "index_head_dim"):
            if getattr(self, name) < r:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no room for the qk_rope_head_dim={r} rotary "
                    f"numbers; raise {name}"
                )
        if self.release_rounding:
            self._check_blocks()
        if self.num_attention_heads % self.o_groups:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"o_groups={self.o_groups}; change o_groups"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds "
                f"n_routed_experts={self.n_routed_experts}; lower it"
            )
        if self.num_hash_layers > self.num_hidden_layers:
            raise ValueError(
                f"num_hash_layers={self.num_hash_layers} exceeds "
                f"num_hidden_layers={self.num_hidden_layers}; lower it"
            )
        if self.rope_scaling is not None and self.rope_scaling.rope_type != "yarn":
            raise ValueError(
                f"rope_scaling.rope_type={self.rope_scaling.rope_type!r} is not 'yarn', the only "
                "one of DeepSeek-V4; set it to 'yarn', or leave rope_scaling out"
            )

    def _check_blocks(self):
        x, r, y = self.head_dim, self.qk_rope_head_dim, self.index_head_dim
        # The blocks of ops.release_rounding
        if (x - r) % 64:
            raise ValueError(
                f"release_rounding=True rounds the head_dim={x} minus qk_rope_head_dim={r} numbers "
                f"of a key in blocks of 64; set release_rounding to False"
            )
        if y < 32 or y & (y - 1):
            raise ValueError(
                f"release_rounding=True rounds the index_head_dim={y} numbers of an index key in "
                f"blocks of 32, after a rotation of a power of two; set release_rounding "
                "to False"
            )

    @property
    def num_moe_layers(self) -> int:
        """The number of layers with experts: all."""
        return self.num_hidden_layers

    @property
    def has_indexer(self) -> bool:
        """True if a layer has an indexer."""
        return CSA in {kind.attention for kind in self.layers}

    @property
    def indexer(self) -> IndexerSizes:
        """The sizes of an indexer."""
        return IndexerSizes(
            self.q_lora_rank, self.index_n_heads, self.index_head_dim, self.index_topk
        )

    @property
    def experts(self) -> ExpertSizes:
        """The sizes of a layer's experts."""
        return ExpertSizes(
            self.n_routed_experts, self.num_experts_per_tok, self.moe_intermediate_size
        )

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a completion, as a tuple; empty if there are none."""
        return as_ids(self.eos_token_id)

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The LayerKind of each layer; layers of multi-token prediction are not among them."""
        if self.compress_ratios is not None:
            ratios = self.compress_ratios[: self.num_hidden_layers]
            kinds = [(KIND_OF[ratio], ratio) for ratio in ratios]
        else:
            rates = {**dict(self.compress_rates or ()), WINDOW: 0}
            kinds = [(kind, rates[kind]) for kind in self.layer_types or ()]
        return tuple(
            LayerKind(*kind, has_table=layer < self.num_hash_layers)
            for layer, kind in enumerate(kinds)
        )


def repeating(kinds: Sequence[LayerKind]) -> tuple[int, int]:
    """Return (first, period): the last layers, from `first` on, repeat in groups of `period`.

    Of several such groups it is the one that covers most layers, and the smallest. first is the
    number of layers if none repeat.
    """
    first, best = len(kinds), 1
    for period in range(1, len(kinds) // 2 + 1):
        begin = len(kinds) - period
        while begin >= period and kinds[begin - period : begin] == kinds[-period:]:
            begin -= period
        if begin < min(first, len(kinds) - period):
            first, best = begin, period
    return first, best


def parse_config(raw: dict) -> V4Config:
    """Read the V4Config of a released config.json, which may have fields of other readers.

    Raises:
        ValueError: Naming the field, for another architecture, for what the decoder does not do, and
            as V4Config does.
    """
    model_type = raw.get("model_type")
    if model_type != "deepseek_v4":
        hint = "is not 'deepseek_v4'; give a checkpoint of DeepSeek-V4"
        if model_type == "deepseek_v41":
            hint = (
                "is DeepSeek-V4.1, another architecture: its keys are shared between layers, and it "
                "reads n-gram tables. It is not supported; give a checkpoint of DeepSeek-V4"
            )
        raise ValueError(f"model_type={model_type!r} {hint}")
    for name, value in FIXED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{name}={raw[name]!r} is not supported; DeepSeek-V4 has {value!r}")
    names = {field.name for field in dataclasses.fields(V4Config)} - {*HOW_TO_RUN}
    fields = {name: value for name, value in raw.items() if name in names and value is not None}
    if scaling := fields.get("rope_scaling"):
        # The released files say "type", as transformers 4 did
        scaling = {"rope_type" if name == "type" else name: x for name, x in scaling.items()}
        fields["rope_scaling"] = scaling
    return build(V4Config, fields, "config")
