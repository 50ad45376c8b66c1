"""Tables from DeepSeek-V4's tensors to the parameters of models.v4, in the three spellings of its folders.

A line is (released name, name in transformers, parameter path, spec). checkpoint/turn.py explains specs,
and `_letter_sizes` has their letters. arXiv:2606.19348 has no names: these are those of the released
checkpoints and of transformers' DeepseekV4ForCausalLM.
"""

import functools
from collections.abc import Iterable
from typing import Literal

from deepseek_jax.checkpoint.turn import Place, parse
from deepseek_jax.models.v4.config import CSA, MTP_LAYER, LayerKind, V4Config

# "mixed" is what transformers' save_pretrained writes by default: the released names after its prefix,
# except for MIXED. With save_original_format=False it writes "transformers"
Spelling = Literal["released", "mixed", "transformers"]
MIXED = {
    "attn.kv_norm.weight": "attn.norm.weight",
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
TOP = [
    ("embed.weight", "model.embed_tokens.weight", "embedding", "v d -> v d"),
    ("head.weight", "lm_head.weight", "head", "v d -> v d"),
    ("norm.weight", "model.norm.weight", "final_norm/scale", "d -> d"),
    ("hc_head_fn", "model.hc_head.hc_fn", "stream_end/mix", "b (s d) -> s d b"),
    ("hc_head_base", "model.hc_head.hc_base", "stream_end/base_bias", "b -> b"),
    ("hc_head_scale", "model.hc_head.hc_scale", "stream_end/scale", "o -> o"),
]
# Released folders alone have these, so transformers has no name for them
MTP = [
    ("enorm.weight", "", "embedding_norm/scale", "d -> d"),
    ("hnorm.weight", "", "hidden_norm/scale", "d -> d"),
    ("e_proj.weight", "", "embedding_input", "x d -> d x"),
    ("h_proj.weight", "", "hidden_input", "x d -> d x"),
    ("norm.weight", "", "head_norm/scale", "d -> d"),
    ("hc_head_fn", "", "stream_end/mix", "b (s d) -> s d b"),
    ("hc_head_base", "", "stream_end/base_bias", "b -> b"),
    ("hc_head_scale", "", "stream_end/scale", "o -> o"),
]
LAYER = [
    ("hc_attn_fn", "attn_hc.fn", "attention_mixing/mix", "k (s d) -> s d k"),
    ("hc_attn_base", "attn_hc.base", "attention_mixing/base_bias", "k -> k"),
    ("hc_attn_scale", "attn_hc.scale", "attention_mixing/scale", "i -> i"),
    ("attn_norm.weight", "input_layernorm.weight", "attention_norm/scale", "d -> d"),
    ("attn.wq_a.weight", "self_attn.q_a_proj.weight", "attention/q_down", "q d -> d q"),
    ("attn.q_norm.weight", "self_attn.q_a_norm.weight", "attention/q_norm/scale", "q -> q"),
    ("attn.wq_b.weight", "self_attn.q_b_proj.weight", "attention/q_up", "(h n+~r) q -> q h n+r"),
    ("attn.wkv.weight", "self_attn.kv_proj.weight", "attention/kv", "n+~r d -> d n+r"),
    ("attn.kv_norm.weight", "self_attn.kv_norm.weight", "attention/kv_norm/scale", "n+~r -> n+r"),
    ("attn.attn_sink", "self_attn.sinks", "attention/sink_bias", "h -> h"),
    (
        "attn.wo_a.weight",
        "self_attn.o_a_proj.weight",
        "attention/out_down",
        "(g c) (p n+~r) -> g p n+r c",
    ),
    ("attn.wo_b.weight", "self_attn.o_b_proj.weight", "attention/out_up", "d (g c) -> g c d"),
    ("hc_ffn_fn", "ffn_hc.fn", "ffn_mixing/mix", "k (s d) -> s d k"),
    ("hc_ffn_base", "ffn_hc.base", "ffn_mixing/base_bias", "k -> k"),
    ("hc_ffn_scale", "ffn_hc.scale", "ffn_mixing/scale", "i -> i"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm/scale", "d -> d"),
    ("ffn.gate.weight", "mlp.gate.weight", "ffn/router", "e d -> d e"),
    (
        "ffn.shared_experts.w1.weight",
        "mlp.shared_experts.gate_proj.weight",
        "ffn/shared/gate_up",
        "f d -> d 0 f",
    ),
    (
        "ffn.shared_experts.w3.weight",
        "mlp.shared_experts.up_proj.weight",
        "ffn/shared/gate_up",
        "f d -> d 1 f",
    ),
    (
        "ffn.shared_experts.w2.weight",
        "mlp.shared_experts.down_proj.weight",
        "ffn/shared/down",
        "d f -> f d",
    ),
]
# z: the series of the compressor; w: the tokens of its window
COMPRESSOR = [
    ("wkv.weight", "kv_proj.weight", "kv", "(z n+~r) d -> d z n+r"),
    ("wgate.weight", "gate_proj.weight", "gate", "(z n+~r) d -> d z n+r"),
    ("ape", "position_bias", "position_bias", "w (z n+~r) -> w z n+r"),
    ("norm.weight", "kv_norm.weight", "norm/scale", "n+~r -> n+r"),
]
INDEXER = [
    ("wq_b.weight", "q_b_proj.weight", "q_up", "(j n+~r) q -> q j n+r"),
    ("weights_proj.weight", "scorer.weights_proj.weight", "head_weights", "j d -> d j"),
]
TABLE = [("ffn.gate.tid2eid", "mlp.gate.tid2eid", "ffn/expert_table", "v a -> v a")]
BIAS = [("ffn.gate.bias", "mlp.gate.e_score_correction_bias", "ffn/router_bias", "e -> e")]
# A tensor for each expert, and one for all of them in transformers
EXPERTS = [
    ("ffn.experts.{e}.w1.weight", "", "ffn/gate_up", "f d -> e d 0 f"),
    ("ffn.experts.{e}.w3.weight", "", "ffn/gate_up", "f d -> e d 1 f"),
    ("ffn.experts.{e}.w2.weight", "", "ffn/down", "d f -> e f d"),
]
# t: gate and up
JOINED_EXPERTS = [
    ("", "mlp.experts.gate_up_proj", "ffn/gate_up", "e (t f) d -> e d t f"),
    ("", "mlp.experts.down_proj", "ffn/down", "e d f -> e f d"),
]
# Modules of multi-token prediction stand below this; in a later release a drafter does
MTP_PREFIX = "mtp."


def tensors(config: V4Config, spelling: Spelling = "released") -> dict[str, list[Place]]:
    """Map every tensor of a folder of this config to its places in the parameters.

    Returns:
        As hf_names.tensors.
    """
    places: dict[str, list[Place]] = {}
    _add(places, config, config.head_dim, TOP, spelling, "", "")
    for layer, kind in enumerate(config.layers):
        prefix = f"layers.{layer}." if spelling == "released" else f"model.layers.{layer}."
        _add_layer(places, config, kind, spelling, prefix, f"layers_{layer}/")
    for depth in range(config.num_nextn_predict_layers):
        prefix, root = f"{MTP_PREFIX}{depth}.", f"mtp_{depth}/"
        _add(places, config, config.head_dim, MTP, "released", prefix, root)
        _add_layer(places, config, MTP_LAYER, "released", prefix, f"{root}block/")
    return places


def spelling_of(names: Iterable[str]) -> Spelling:
    """Recognise the spelling of a folder's tensors; "released" if it is none of the three."""
    names = set(names)
    if MIXED["embed.weight"] not in names:
        return "released"
    return "transformers" if any(".self_attn." in name for name in names) else "mixed"


def _add_layer(places, config, kind: LayerKind, spelling, prefix, root):
    experts = JOINED_EXPERTS if spelling == "transformers" else EXPERTS
    table = LAYER + experts + (TABLE if kind.has_table else BIAS)
    _add(places, config, config.head_dim, table, spelling, prefix, root)
    if kind.rate:
        names = "attn.compressor.", "self_attn.compressor.", "attention/compressor/"
        table, series = _below(names, COMPRESSOR), 1 + (kind.attention == CSA)
        _add(places, config, config.head_dim, table, spelling, prefix, root, w=kind.rate, z=series)
    if kind.attention == CSA:
        # The release has the indexer next to the compressor, and transformers has it within
        names = "attn.indexer.", "self_attn.compressor.indexer.", "attention/indexer/"
        table = _below(names, INDEXER)
        names = names[0] + "compressor.", names[1], names[2] + "compressor/"
        table += _below(names, COMPRESSOR)
        _add(places, config, config.index_head_dim, table, spelling, prefix, root, w=kind.rate, z=2)


def _below(prefixes, table):
    """Put prefixes before the released name, the name in transformers, and the path of each line."""
    return [
        (*(prefix + name for prefix, name in zip(prefixes, line, strict=False)), line[-1])
        for line in table
    ]


def _add(places, config, width, table, spelling, prefix, root, **window):
    """Add a table's tensors to places; a name with "{e}" is one tensor for each expert.

    Args:
        places: The dict that `tensors` returns.
        config: The model.
        width: The width of a head, with its rotary numbers.
        table: A table of this file.
        spelling: The spelling of names.
        prefix: Beginning of the tensors' names.
        root: Beginning of the parameters' paths.
        **window: The sizes w and z of a compressor.
    """
    axis_sizes = tuple({**_letter_sizes(config, width), **window}.items())
    for released, theirs, path, spec in table:
        name = theirs if spelling == "transformers" else released
        if spelling == "mixed":
            name = MIXED.get(released, released)
        turn = _turn(spec, axis_sizes)
        for expert in range(config.n_routed_experts) if "{e}" in name else [None]:
            letters = {":": None, "e": expert}
            index = tuple(letters[i] if isinstance(i, str) else i for i in turn.index)
            full_name = prefix + name.format(e=expert)
            places.setdefault(full_name, []).append(Place(root + path, index, turn))


def _letter_sizes(config, width):
    """Return {letter of the specs: size}; width is as in _add."""
    c = config
    return dict(
        d=c.hidden_size,
        x=c.hidden_size,
        v=c.vocab_size,
        h=c.num_attention_heads,
        n=width - c.qk_rope_head_dim,
        r=c.qk_rope_head_dim,
        q=c.q_lora_rank,
        g=c.o_groups,
        p=c.num_attention_heads // c.o_groups,
        c=c.o_lora_rank,
        j=c.index_n_heads,
        f=c.moe_intermediate_size,
        t=2,
        e=c.n_routed_experts,
        a=c.num_experts_per_tok,
        s=c.hc_mult,
        b=c.hc_mult,
        k=c.hc_mult * (c.hc_mult + 2),
        i=3,
        o=1,
    )


# Layers and experts repeat a few dozen specs
@functools.cache
def _turn(spec, axis_sizes):
    return parse(spec, dict(axis_sizes))
