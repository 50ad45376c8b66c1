"""THE table: which mesh axis splits each logical axis. A new strategy is a new table."""

# Slowest link to fastest. slice: over the data-centre network; pipeline: stages of layers; context: tokens of
# a row; the others as everywhere.
MESH_AXES = ("slice", "pipeline", "data", "fsdp", "expert", "context", "tensor")

RULES = dict(
    batch=("slice", "data", "fsdp", "expert"),
    seq="context",
    seq_of_head=(
        "context",
        "tensor",
        "pipeline",
    ),  # the output head's tokens: nobody does them twice
    layers="pipeline",
    first_layers=None,  # the dense ones before DeepSeek's MoE layers: on every stage
    embed=("fsdp", "context"),
    embed_and_hidden=None,  # what an MTP module projects down to embed
    q_lora="fsdp",
    kv_lora="fsdp",
    heads="tensor",
    kv_heads="tensor",
    attention_heads=("tensor", "context"),  # within attention, which needs whole rows
    head_dim=None,
    gate_up=None,  # the two halves of a gated MLP's first product
    mlp="tensor",
    experts="expert",
    vocab="tensor",
)
