"""Which parameters a loss trains, and which decay, by their names."""

import jax
import numpy as np

from deepseek_jax.models.layers import decays, has_gradient

TREE = {
    "layers": {
        "ffn": {"router": 0, "router_bias": 0},
        "attention": {"q_bias": 0, "norm": {"scale": 0}},
        "indexer": {"q": 0},
    },
    "mtp_0": {"input": 0},
}


def named(tree):
    """{the names along a leaf's path: the leaf}"""
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_a_loss_trains_what_its_parts_name_and_no_bias_of_a_router():
    """Oracle: by hand, also where the params stand below another key, as a student's do."""
    parts = {
        (): set(),
        ("mtp",): {"input"},
        ("indexer",): {"q"},
        ("mtp", "indexer"): {"input", "q"},
    }
    for given, also in parts.items():
        for tree in (TREE, {"student": TREE}):
            found = jax.tree.map_with_path(
                lambda path, _, given=given: has_gradient(path, given), tree
            )
            trained = {path[-1] for path, is_trained in named(found).items() if is_trained}
            assert trained == {"router", "q_bias", "scale"} | also


def test_weights_decay_and_neither_scales_nor_biases():
    """Oracle: by hand."""
    found = named(decays(jax.tree.map(np.zeros_like, TREE)))
    assert {path[-1] for path, is_weight in found.items() if is_weight} == {"router", "q", "input"}
