"""THE table: which mesh axis splits each logical axis. A new strategy is a new table."""

# From the slowest link to the fastest. slice: TPU slices over the data-centre network; pipeline: stages of
# layers; context: the tokens of a row; the other names are the usual ones.
MESH_AXES = ("slice", "pipeline", "data", "fsdp", "expert", "context", "tensor")

# fmt: off
RULES = dict(
    batch=("slice", "data", "fsdp", "expert"),
    slots=MESH_AXES,                                # of a rollout, see parallel.decoding
    seq="context",
    seq_of_head=("context", "tensor", "pipeline"),  # the output head's tokens: no device does them twice
    layers="pipeline",
    first_layers=None,                              # dense layers before DeepSeek's MoE layers: on all stages
    embed=("fsdp", "context"),
    embed_and_hidden=None,                          # both inputs that an MTP module projects down to embed
    q_lora="fsdp",
    kv_lora="fsdp",
    latent=None,                                    # the result of a projection down to q_lora or kv_lora
    heads="tensor",
    kv_heads="tensor",
    attention_heads=("tensor", "context"),          # inside attention, which needs whole rows
    queries=("context", "tensor"),                  # of the indexer, which needs whole rows of keys
    index_heads=None,                               # a device scores its own queries with all of them
    index_head_dim=None,
    head_dim=None,
    gate_up=None,                                   # the two halves of a gated MLP's first product
    mlp="tensor",
    experts="expert",
    vocab="tensor",
)

# A weight's dimensions that are stored in more parts, where their size allows it. They are gathered before a
# product, as embed is, and no device stores what another one stores
STORED = dict.fromkeys(("heads", "kv_heads", "index_heads", "mlp"), "expert")
# fmt: on
