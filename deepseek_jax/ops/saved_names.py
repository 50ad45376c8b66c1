"""Names of a layer's values, by which a remat policy saves them or moves them to the host. Without jax."""

# What remat="selective" saves, see ops.remat.save_for_backward
SAVED = "saved_for_backward"
# What attention by blocks has to compute before its gradient, which remat="attention" saves
ATTENDED = "attended"
# x [b t d] before a layer, which remat="offload" moves to the host
LAYER_INPUT = "layer_input"
