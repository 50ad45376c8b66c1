"""The table of axes, the other way round."""

from deepseek_jax.parallel.rules import MESH_AXES, RULES

SPLIT = {
    "slice": "batch slots",
    "pipeline": "slots seq_of_head layers",
    "data": "batch slots",
    "fsdp": "batch slots embed q_lora kv_lora out_lora",
    "expert": "batch slots experts",
    "context": "slots seq seq_of_head embed attention_heads queries",
    "tensor": "slots seq_of_head heads kv_heads attention_heads queries mlp vocab out_groups",
}
WHOLE = "first_layers embed_and_hidden latent index_heads index_head_dim head_dim gate_up"
WHOLE += " group_heads window series streams mixes choices embed_out"


def test_each_mesh_axis_splits_the_dimensions_that_it_should():
    """Oracle: by hand, by mesh axis; and the dimensions that nothing splits."""
    names = set(WHOLE.split()).union(*(dims.split() for dims in SPLIT.values()))
    assert RULES.keys() == names and MESH_AXES == tuple(SPLIT)
    for axis, dims in SPLIT.items():
        split = {name for name, rule in RULES.items() if axis in (rule, *(rule or ()))}
        assert split == set(dims.split()), axis
    assert {name for name, rule in RULES.items() if rule is None} == set(WHOLE.split())
