"""The table of shardings: which mesh axis splits each logical axis.

A new strategy is a new table.
"""

# From the slowest link to the fastest. slice: TPU slices, joined by the data-centre network; pipeline: stages
# of layers; context: the tokens of a row; the other names are the usual ones.
MESH_AXES = ("slice", "pipeline", "data", "fsdp", "expert", "context", "tensor")

# The mesh axes that split an axis, as in an entry of a PartitionSpec
Entry = str | tuple[str, ...] | None

# fmt: off
RULES: dict[str, Entry] = dict(
    batch=("slice", "data", "fsdp", "expert"),
    slots=MESH_AXES,                                # a rollout's sequences, see parallel.decoding
    seq="context",
    seq_of_head=("context", "tensor", "pipeline"),  # the output head's tokens: no device does them twice
    layers="pipeline",
    first_layers=None,                              # the dense layers before MoE layers: on all stages
    embed=("fsdp", "context"),
    embed_and_hidden=None,                          # an MTP module's two inputs, which it projects to embed
    q_lora="fsdp",
    kv_lora="fsdp",
    latent=None,                                    # the result of a projection down to q_lora or kv_lora
    heads="tensor",
    kv_heads="tensor",
    attention_heads=("tensor", "context"),          # inside attention, which needs whole rows
    queries=("context", "tensor"),                  # inside the indexer, which needs whole rows of keys
    index_heads=None,                               # a device scores its own queries with all index heads
    index_head_dim=None,
    head_dim=None,
    gate_up=None,                                   # the two halves of a gated MLP's first product
    mlp="tensor",
    experts="expert",
    vocab="tensor",
    # DeepSeek-V4
    out_groups="tensor",                            # groups of heads, which are projected together
    group_heads=None,
    out_lora="fsdp",
    window=None,                                    # a token's place in a compressor's window
    series=None,                                    # a compressor's two series
    streams=None,                                   # residual streams, and their coefficients
    mixes=None,
    choices=None,                                   # a token's experts in a table
    embed_out=None,                                 # the result of a projection of embed, as wide
)

# Logical axes of weights that this mesh axis splits too while they are stored, if their size allows it, so
# that no two devices store the same numbers. They are gathered before a product, as embed is
STORED = dict.fromkeys(("heads", "kv_heads", "index_heads", "mlp"), "expert")
# fmt: on
