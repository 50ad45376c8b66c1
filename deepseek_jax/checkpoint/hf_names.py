"""Tables from Hugging Face's tensors to our parameters, for each model family, read both ways.

A line of a table is (tensor name, parameter path, spec). checkpoint/turn.py explains specs, and
`letter_sizes` has their letters.
"""

import functools

from deepseek_jax.checkpoint.turn import Place, parse
from deepseek_jax.models.config import ModelConfig

NORMS = [
    ("input_layernorm.weight", "attention_norm/scale", "d -> d"),
    ("post_attention_layernorm.weight", "ffn_norm/scale", "d -> d"),
]
GQA = [
    ("self_attn.q_proj.weight", "attention/q", "(h x) d -> d h x"),
    ("self_attn.k_proj.weight", "attention/k", "(k x) d -> d k x"),
    ("self_attn.v_proj.weight", "attention/v", "(k x) d -> d k x"),
    ("self_attn.o_proj.weight", "attention/out", "d (h x) -> h x d"),
]
QKV_BIAS = [
    ("self_attn.q_proj.bias", "attention/q_bias", "(h x) -> h x"),
    ("self_attn.k_proj.bias", "attention/k_bias", "(k x) -> k x"),
    ("self_attn.v_proj.bias", "attention/v_bias", "(k x) -> k x"),
]
QK_NORM = [
    ("self_attn.q_norm.weight", "attention/q_norm/scale", "x -> x"),
    ("self_attn.k_norm.weight", "attention/k_norm/scale", "x -> x"),
]
MLA_QUERY = [("self_attn.q_proj.weight", "attention/q", "(h n+~r) d -> d h n+r")]
MLA_LOW_RANK_QUERY = [
    ("self_attn.q_a_proj.weight", "attention/q_down", "q d -> d q"),
    ("self_attn.q_a_layernorm.weight", "attention/q_norm/scale", "q -> q"),
    ("self_attn.q_b_proj.weight", "attention/q_up", "(h n+~r) q -> q h n+r"),
]
INDEXER = [
    # An indexer's rotary pairs are half-split in the checkpoint too
    ("self_attn.indexer.wq_b.weight", "attention/indexer/q_up", "(j y) q -> q j y"),
    ("self_attn.indexer.wk.weight", "attention/indexer/k", "y d -> d y"),
    ("self_attn.indexer.k_norm.weight", "attention/indexer/k_norm/scale", "y -> y"),
    ("self_attn.indexer.k_norm.bias", "attention/indexer/k_norm/bias", "y -> y"),
    ("self_attn.indexer.weights_proj.weight", "attention/indexer/head_weights", "j d -> d j"),
]
MLA = [
    ("self_attn.kv_a_proj_with_mqa.weight", "attention/kv_down", "c+~r d -> d c+r"),
    ("self_attn.kv_a_layernorm.weight", "attention/kv_norm/scale", "c -> c"),
    ("self_attn.kv_b_proj.weight", "attention/k_up", "(h n+u) c -> c h n"),
    ("self_attn.kv_b_proj.weight", "attention/v_up", "(h n+u) c -> c h u"),
    ("self_attn.o_proj.weight", "attention/out", "d (h u) -> h u d"),
]
MLP = [
    ("mlp.gate_proj.weight", "ffn/gate_up", "f d -> d 0 f"),
    ("mlp.up_proj.weight", "ffn/gate_up", "f d -> d 1 f"),
    ("mlp.down_proj.weight", "ffn/down", "d f -> f d"),
]
MOE = [
    ("mlp.gate.weight", "ffn/router", "e d -> d e"),
    ("mlp.experts.{e}.gate_proj.weight", "ffn/gate_up", "f d -> e d 0 f"),
    ("mlp.experts.{e}.up_proj.weight", "ffn/gate_up", "f d -> e d 1 f"),
    ("mlp.experts.{e}.down_proj.weight", "ffn/down", "d f -> e f d"),
]
ROUTER_BIAS = [("mlp.gate.e_score_correction_bias", "ffn/router_bias", "e -> e")]
SHARED_EXPERTS = [
    ("mlp.shared_experts.gate_proj.weight", "ffn/shared/gate_up", "s d -> d 0 s"),
    ("mlp.shared_experts.up_proj.weight", "ffn/shared/gate_up", "s d -> d 1 s"),
    ("mlp.shared_experts.down_proj.weight", "ffn/shared/down", "d s -> s d"),
]
MTP = [
    ("enorm.weight", "embedding_norm/scale", "d -> d"),
    ("hnorm.weight", "hidden_norm/scale", "d -> d"),
    # z: the embedding's columns, then the hidden state's
    ("eh_proj.weight", "input", "d z -> z d"),
    ("shared_head.norm.weight", "head_norm/scale", "d -> d"),
]
EMBEDDING = [
    ("model.embed_tokens.weight", "embedding", "v d -> v d"),
    ("model.norm.weight", "final_norm/scale", "d -> d"),
]
HEAD = [("lm_head.weight", "head", "v d -> v d")]


def layer_table(config: ModelConfig, is_moe: bool):
    """Return the table of one layer.

    Args:
        is_moe: Whether the layer has routed experts.
    """
    if config.is_mla:
        attention = (MLA_LOW_RANK_QUERY if config.q_lora_rank else MLA_QUERY) + MLA
        attention = attention + INDEXER * config.has_indexer
    else:
        attention = GQA + QKV_BIAS * config.has_qkv_bias + QK_NORM * config.has_qk_norm
    if not is_moe:
        return NORMS + attention + MLP
    shared_experts = SHARED_EXPERTS if config.n_shared_experts else []
    return NORMS + attention + MOE + ROUTER_BIAS * config.has_router_bias + shared_experts


def letter_sizes(config: ModelConfig, is_moe: bool):
    """Return {letter of the specs: size}.

    Args:
        is_moe: Whether the layer has routed experts. In such a layer `f` is the size of one expert.
    """
    c = config
    return dict(
        d=c.hidden_size,
        z=2 * c.hidden_size,
        v=c.vocab_size,
        h=c.num_attention_heads,
        k=c.num_key_value_heads,
        x=c.head_dim,
        n=c.qk_nope_head_dim,
        r=c.qk_rope_head_dim,
        u=c.v_head_dim,
        q=c.q_lora_rank,
        c=c.kv_lora_rank,
        j=c.index_n_heads,
        y=c.index_head_dim,
        f=c.moe_intermediate_size if is_moe else c.intermediate_size,
        s=c.n_shared_experts * c.experts.moe_intermediate_size if is_moe else 0,
        e=c.n_routed_experts,
    )


def tensors(config: ModelConfig) -> dict[str, list[Place]]:
    """Map every tensor of a checkpoint of this config to its places in the parameters.

    Returns:
        {tensor name: [Place, ...]}, in the order of the layers. Together the places fill every
        parameter exactly once. A tensor with two places is split between them.
    """
    places: dict[str, list[Place]] = {}
    first_moe, layers = config.num_dense_layers, config.num_hidden_layers
    _add(places, config, False, EMBEDDING, "", "")
    for layer in range(layers):
        is_moe = layer >= first_moe
        root, index = ("moe_layers", layer - first_moe) if is_moe else ("dense_layers", layer)
        _add(
            places,
            config,
            is_moe,
            layer_table(config, is_moe),
            f"model.layers.{layer}.",
            f"{root}/",
            l=index,
        )
    if not config.tie_word_embeddings:
        _add(places, config, False, HEAD, "", "")
    for depth in range(config.num_nextn_predict_layers):
        prefix, root = f"model.layers.{layers + depth}.", f"mtp_{depth}/"
        _add(places, config, True, MTP, prefix, root)
        _add(places, config, True, layer_table(config, True), prefix, f"{root}block/")
    return places


def copies(config: ModelConfig):
    """Map each tensor that repeats another one of the checkpoint to that other tensor.

    A multi-token prediction layer repeats the embedding and the head. A tied head repeats the
    embedding, and is usually omitted.

    Returns:
        {tensor name: name of the tensor that it must equal}.
    """
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    originals = {"lm_head.weight": embedding} if config.tie_word_embeddings else {}
    for depth in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + depth}."
        originals[f"{prefix}embed_tokens.weight"] = embedding
        originals[f"{prefix}shared_head.head.weight"] = head
    return originals


def is_projection(name: str) -> bool:
    """Return whether the released FP8 checkpoints quantise this tensor.

    They quantise the matrices of attention and of every MLP, and an indexer's queries and keys.
    """
    # Not quantised: eh_proj, which joins embedding and hidden state, and an indexer's head weights
    if "eh_proj" in name or "weights_proj" in name:
        return False
    return name.endswith(
        ("_proj.weight", "_proj_with_mqa.weight", "indexer.wq_b.weight", "indexer.wk.weight")
    )


def _add(places, config, is_moe, table, prefix, root, **index):
    """Add a table's tensors to places; a name with "{e}" is one tensor for each expert.

    Args:
        places: The dict that `tensors` returns.
        table: From layer_table, or another table of this file.
        prefix: Beginning of the tensors' names.
        root: Beginning of the parameters' paths.
        index: l, the layer's position in its stack; nothing for parameters outside of a stack.
    """
    axis_sizes = tuple(letter_sizes(config, is_moe).items())
    for name, path, spec in table:
        # Parameters of stacked layers have a leading axis l
        turn = _turn(spec.replace("-> ", "-> l ") if index else spec, axis_sizes)
        # "{e}" in a name: Hugging Face has one tensor for each expert
        for expert in range(config.n_routed_experts) if "{e}" in name else [None]:
            letter_indices = dict(index, e=expert)
            place_index = tuple(None if i == ":" else letter_indices.get(i, i) for i in turn.index)
            full_name = prefix + name.format(e=expert)
            places.setdefault(full_name, []).append(Place(root + path, place_index, turn))


# A big model has tens of thousands of tensors and a few dozen specs
@functools.cache
def _turn(spec, axis_sizes):
    return parse(spec, dict(axis_sizes))
