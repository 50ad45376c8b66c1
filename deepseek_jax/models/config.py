"""ModelConfig: the network as a checkpoint's config.json describes it, and its checks."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from deepseek_jax.models.remat_policies import Remat
from deepseek_jax.settings import (
    Between,
    Count,
    Natural,
    NonNegative,
    Positive,
    Rising,
    Step,
)

ModelType = Literal["deepseek_v3", "deepseek_v32", "deepseek_v2", "qwen2", "qwen3", "llama"]
ATTENTION_OF: dict[ModelType, Literal["mla", "gqa"]] = {
    "deepseek_v3": "mla",
    "deepseek_v32": "mla",
    "deepseek_v2": "mla",
    "qwen2": "gqa",
    "qwen3": "gqa",
    "llama": "gqa",
}
ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "linear": ("factor",),
}

# The values of indexer_loss: what the lightning indexer learns from, and what attention sees
# (DeepSeek-V3.2-Exp, section 2.1)
IndexerLoss = Literal["none", "dense", "sparse"]
INDEXER_LOSSES: dict[IndexerLoss, str] = {
    "none": "nothing; attention sees the selected keys",
    "dense": "attention over all keys, which it sees: the warm-up before anything is selected",
    "sparse": "attention over the selected keys",
}
# In units of an even share of the tokens: 1 is room for a perfectly balanced router
ExpertBuffer = Annotated[float, Between(1)]
# One number, or pairs (first step, number): a number is valid from its first step on
ExpertBufferBySteps = ExpertBuffer | Annotated[tuple[tuple[Step, ExpertBuffer], ...], Rising()]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Hugging Face's rope_scaling: how rotary frequencies extend the original context.

    Attributes:
        rope_type: A key of ROPE_FIELDS: "yarn", "llama3" or "linear".
        factor: How many times longer the context becomes.
        original_max_position_embeddings: Tokens of the original context.
        beta_fast, beta_slow: YaRN's rotations at which interpolation begins and is complete.
        mscale, mscale_all_dim: DeepSeek's factors on YaRN's correction of the softmax.
        attention_factor: Replaces that correction.
        low_freq_factor, high_freq_factor: Llama 3's bounds between interpolated and other frequencies.

    Raises:
        ValueError: For an unknown rope_type, or if a field of ROPE_FIELDS is missing.
    """

    rope_type: str
    factor: Positive
    original_max_position_embeddings: Count | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: NonNegative | None = None
    mscale_all_dim: NonNegative | None = None
    attention_factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None

    def __post_init__(self):
        if self.rope_type not in ROPE_FIELDS:
            raise ValueError(
                f"rope_type={self.rope_type!r} is not one of {sorted(ROPE_FIELDS)}; "
                "for plain rotary positions leave rope_scaling out"
            )
        missing = [name for name in ROPE_FIELDS[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rope_type={self.rope_type!r} needs {', '.join(missing)}; set them")


class LatentSizes(NamedTuple):
    """The sizes of multi-head latent attention, see ModelConfig.latent."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


class IndexerSizes(NamedTuple):
    """The sizes of a lightning indexer, see ModelConfig.indexer."""

    q_lora_rank: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int


class GroupedSizes(NamedTuple):
    """The sizes of grouped-query attention, see ModelConfig.grouped."""

    num_key_value_heads: int
    head_dim: int


class ExpertSizes(NamedTuple):
    """The sizes of an MoE layer, see ModelConfig.experts."""

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int


# Frozen, hence hashable: jit takes it as a static argument
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One decoder: DeepSeek-V3.2, V3 or V2, Qwen2 or Qwen3, or Llama.

    Field names are Hugging Face's. The attributes from dtype on say how to run the network and do
    not change its parameters.

    Attributes:
        model_type: The architecture.
        vocab_size: Rows of the embedding, at least the tokens of the tokenizer.
        hidden_size: The width of the residual stream.
        intermediate_size: The width of a dense MLP.
        num_hidden_layers: Layers, without those of multi-token prediction.
        num_attention_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values of grouped-query attention.
        head_dim: The width of a head of grouped-query attention.
        q_lora_rank: The rank of compressed queries; None does not compress them.
        kv_lora_rank: The rank of compressed keys and values, which the cache holds.
        qk_nope_head_dim, qk_rope_head_dim: The parts of a query or key without and with positions.
        v_head_dim: The width of a head's values.
        index_n_heads, index_head_dim: The heads of the lightning indexer and their width.
        index_topk: Keys that a query attends to, chosen by the indexer.
        n_routed_experts: Experts that a router chooses from; None for dense MLPs only.
        n_shared_experts: Experts that every token uses.
        num_experts_per_tok: Routed experts of a token.
        moe_intermediate_size: The width of an expert.
        first_k_dense_replace: The first layers, which have a dense MLP.
        n_group, topk_group: Groups of experts, and how many of them a token may choose from.
        scoring_func: How router logits become affinities.
        norm_topk_prob: Whether the weights of a token's experts are scaled to sum to 1.
        routed_scaling_factor: A factor on these weights.
        num_nextn_predict_layers: Modules of multi-token prediction.
        rope_theta: The base of the rotary frequencies.
        max_position_embeddings: The longest row, in tokens.
        rms_norm_eps: The epsilon of every RMSNorm.
        tie_word_embeddings: Whether the output head is the embedding.
        initializer_range: The standard deviation of random matrices.
        bos_token_id, eos_token_id: The tokens that begin and end a text.
        dtype: The compute dtype, "float32" or "bfloat16". The dtype of parameters does not depend
            on it.
        scan_layers: Compile one layer instead of all of them, which is faster to compile.
        fp8: Round the operands of the Linear layers' products to E4M3, forward and backward
            (arXiv:2412.19437, section 3.3).
        remat: The part of a layer that the backward pass recomputes, a key of
            remat_policies.REMAT_POLICIES; "none" recomputes nothing.
        pipeline_micro_batches: The number of parts in which a batch's rows pass through the
            pipeline stages of the mesh. Default: the number of stages.
        expert_buffer: The room that a TPU has to receive tokens for its experts, in units of an
            even share of the tokens, see parallel.dispatch.expert_parallel. Default: room for the
            worst case.
        indexer_loss: What losses.next_token trains the indexer on, see INDEXER_LOSSES.

    Raises:
        ValueError: Naming the field, if sizes do not fit each other or the model_type needs other
            fields.
    """

    model_type: ModelType
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    # Multi-head latent attention
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None
    # The lightning indexer, which selects the index_topk keys that a query attends to
    index_n_heads: Count | None = None
    index_head_dim: Count | None = None
    index_topk: Count | None = None
    # Mixture of experts
    n_routed_experts: Count | None = None
    n_shared_experts: Natural = 0
    num_experts_per_tok: Count | None = None
    moe_intermediate_size: Count | None = None
    first_k_dense_replace: Natural = 0
    n_group: Count = 1
    topk_group: Count = 1
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    # Multi-token prediction
    num_nextn_predict_layers: Natural = 0
    # The rest of the network
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: Count = 4096
    rms_norm_eps: NonNegative = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: NonNegative = 0.02
    bos_token_id: Natural | None = None
    eos_token_id: Natural | tuple[Natural, ...] | None = None
    # How to run it
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    fp8: bool = False
    remat: Remat = "none"
    pipeline_micro_batches: Count | None = None
    expert_buffer: ExpertBuffer | None = None
    indexer_loss: IndexerLoss = "none"

    def __post_init__(self):
        for name in ("num_key_value_heads", "head_dim"):
            if getattr(self, name) is None and not self.is_mla:
                if name == "head_dim" and self.hidden_size % self.num_attention_heads:
                    raise ValueError(
                        f"hidden_size={self.hidden_size} is not a multiple of "
                        f"num_attention_heads={self.num_attention_heads}; "
                        "change one of them, or set head_dim"
                    )
                default = (self.num_attention_heads, self.hidden_size // self.num_attention_heads)
                # A frozen dataclass can set its own fields only this way
                object.__setattr__(self, name, default[name == "head_dim"])
        self._check_attention()
        self._check_indexer()
        if self.n_routed_experts:
            self._check_experts()
        elif self.num_nextn_predict_layers:
            raise ValueError(
                f"num_nextn_predict_layers={self.num_nextn_predict_layers} needs n_routed_experts: "
                "a prediction module's block is an MoE layer; set n_routed_experts, or "
                "num_nextn_predict_layers to 0"
            )

    def _require(self, *names):
        missing = [name for name in names if not getattr(self, name)]
        if missing:
            raise ValueError(f"model_type={self.model_type!r} needs {', '.join(missing)}; set them")

    def _check_attention(self):
        if self.is_mla:
            self._require("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        elif self.num_attention_heads % self.grouped.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; change num_key_value_heads"
            )
        if self.rope_dim % 2:
            name = "qk_rope_head_dim" if self.is_mla else "head_dim"
            raise ValueError(
                f"{name}={self.rope_dim} is the rotary width; set it to an even number"
            )

    def _check_indexer(self):
        fields = ("index_n_heads", "index_head_dim", "index_topk")
        if not self.has_indexer:
            for name in fields:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)} is of an indexer, and a model with "
                        f"model_type={self.model_type!r} has none; set model_type to 'deepseek_v32', or "
                        f"leave {name} out"
                    )
            if self.indexer_loss != "none":
                raise ValueError(
                    f"indexer_loss={self.indexer_loss!r} trains an indexer, and a model with "
                    f"model_type={self.model_type!r} has none; set indexer_loss to 'none'"
                )
            return
        self._require("q_lora_rank", *fields)
        if self.indexer.index_head_dim < self.latent.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim={self.index_head_dim} has no room for the qk_rope_head_dim="
                f"{self.qk_rope_head_dim} rotary numbers; raise index_head_dim"
            )
        if self.indexer.index_topk > self.max_position_embeddings:
            raise ValueError(
                f"index_topk={self.index_topk} is more than the max_position_embeddings="
                f"{self.max_position_embeddings} tokens of the longest row; lower index_topk"
            )

    def _check_experts(self):
        self._require("num_experts_per_tok", "moe_intermediate_size")
        e, g = self.experts.n_routed_experts, self.n_group
        if e % g or self.topk_group > g:
            raise ValueError(
                f"n_routed_experts={e} must be a multiple of n_group={g}, and "
                f"topk_group={self.topk_group} at most n_group"
            )
        if self.experts.num_experts_per_tok > e // g * self.topk_group:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the "
                f"{e // g * self.topk_group} experts of topk_group={self.topk_group} groups; "
                "lower it or raise topk_group"
            )
        if self.scoring_func == "sigmoid" and g > 1 and e // g < 2:
            raise ValueError(
                f"n_group={g} leaves {e // g} expert to a group, but a group's score is the sum of its best "
                "two; lower n_group"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} is not within "
                f"0..{self.num_hidden_layers}, the num_hidden_layers"
            )

    @property
    def is_mla(self) -> bool:
        """True if attention is multi-head latent attention; else it is grouped-query attention."""
        return ATTENTION_OF[self.model_type] == "mla"

    @property
    def latent(self) -> LatentSizes:
        """The sizes of latent attention, for a model that has it."""
        return self._sizes(LatentSizes)

    @property
    def indexer(self) -> IndexerSizes:
        """The sizes of the lightning indexer, for a model that has one."""
        return self._sizes(IndexerSizes)

    @property
    def grouped(self) -> GroupedSizes:
        """The sizes of grouped-query attention, for a model that has it."""
        return self._sizes(GroupedSizes)

    @property
    def experts(self) -> ExpertSizes:
        """The sizes of MoE layers, for a model that has them."""
        return self._sizes(ExpertSizes)

    def _sizes(self, record):
        """Read a record of sizes from this config. Only q_lora_rank may be None."""
        fields = {name: getattr(self, name) for name in record._fields}
        missing = [name for name, size in fields.items() if size is None]
        assert set(missing) <= {"q_lora_rank"}, f"a {self.model_type} model has no {missing[0]}"
        return record(**fields)

    @property
    def has_qkv_bias(self) -> bool:
        """True if the q, k and v projections have biases (Qwen2)."""
        return self.model_type == "qwen2"

    @property
    def has_qk_norm(self) -> bool:
        """True if queries and keys are normed per head (Qwen3)."""
        return self.model_type == "qwen3"

    @property
    def has_router_bias(self) -> bool:
        """True if a bias balances the router without an auxiliary loss (DeepSeek-V3 and V3.2)."""
        return self.model_type in ("deepseek_v3", "deepseek_v32")

    @property
    def has_indexer(self) -> bool:
        """True if a lightning indexer selects keys (DeepSeek-V3.2)."""
        return self.model_type == "deepseek_v32"

    def selects(self, keys: float) -> bool:
        """Return True if queries select among the keys of a row of `keys` tokens.

        They do where the model has an indexer, indexer_loss is not "dense", and the row is longer
        than index_topk.
        """
        return self.has_indexer and self.indexer_loss != "dense" and keys > self.indexer.index_topk

    @property
    def num_dense_layers(self) -> int:
        """Number of layers with a dense MLP; they come first."""
        return self.first_k_dense_replace if self.n_routed_experts else self.num_hidden_layers

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with routed experts; they come last."""
        return self.num_hidden_layers - self.num_dense_layers

    @property
    def rope_dim(self) -> int:
        """Number of each head's dimensions that rotary positions rotate."""
        return self.latent.qk_rope_head_dim if self.is_mla else self.grouped.head_dim

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a completion, as a tuple; empty if there are none."""
        return as_ids(self.eos_token_id)


def as_ids(eos: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids of config.json's eos_token_id as a tuple; () if there are none."""
    # Not "if eos": token 0 may be an end token
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The fields of ModelConfig that say how to run it.

    config.model has only these if a checkpoint describes the network. ModelConfig explains them.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    fp8: bool = False
    remat: Remat = "none"
    pipeline_micro_batches: Count | None = None
    expert_buffer: ExpertBuffer | None = None
    indexer_loss: IndexerLoss = "none"


HOW_TO_RUN = frozenset(field.name for field in dataclasses.fields(RunSettings))
# Fields that a run may set to other values than its checkpoint
OF_THE_RUN = HOW_TO_RUN | {
    "initializer_range",
    "max_position_embeddings",
    "num_nextn_predict_layers",
    "bos_token_id",
    "eos_token_id",
}


def how_to_run(block: dict) -> dict:
    """Return the fields of RunSettings in a block that may have fields of the architecture too."""
    return {name: value for name, value in block.items() if name in HOW_TO_RUN}


def names_architecture(block: dict) -> bool:
    """Return True if a block describes a whole network, and not only RunSettings."""
    return "model_type" in block
