"""THE table: which mesh axis splits each logical axis. A new strategy is a new table."""

MESH_AXES = ("data", "fsdp", "expert", "tensor")  # slowest link to fastest

RULES = dict(
    batch=("data", "fsdp", "expert"),
    seq=None,
    layers=None,
    embed="fsdp",
    embed_and_hidden=None,  # what an MTP module projects down to embed
    q_lora=None,
    kv_lora=None,
    heads="tensor",
    kv_heads="tensor",
    head_dim=None,
    gate_up=None,  # the two halves of a gated MLP's first product
    mlp="tensor",
    experts="expert",
    vocab="tensor",
)
