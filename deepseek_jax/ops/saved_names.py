"""Names of a layer's values, by which a remat policy saves them or moves them to the host.

This module imports no jax.

Tests: tests/models/test_decoder.py.
"""

# Values that remat="selective" saves, see ops.remat.save_for_backward
SAVED = "saved_for_backward"
# Results of blockwise attention that its gradient needs: remat="attention" saves them
ATTENDED = "attended"
# x [b t d] before a layer, which remat="offload" moves to the host
LAYER_INPUT = "layer_input"
