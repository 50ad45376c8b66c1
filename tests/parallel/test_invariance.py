"""An update is the same however it is split into parts and over devices: tests.parallel.updates on eight
devices against the plain path on one.
"""

import jax
import numpy as np
import pytest

from deepseek_jax.ops.platform import SIZES
from deepseek_jax.parallel import make_mesh
from tests.parallel.updates import SPEED, V3_2, check, host_params, make_batch, one_update, plain
from tests.quick import others_slow

MESHES = {
    "one device": None,
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "expert": dict(expert=8),
    "tensor": dict(tensor=8),
    "context": dict(context=8),
    "pipeline": dict(pipeline=2, data=4),
    "fsdp, expert, tensor": dict(fsdp=2, expert=2, tensor=2),
    "pipeline, expert, context": dict(pipeline=2, data=1, expert=2, context=2),
    "slices, pipeline, expert": dict(slices=2, pipeline=2, data=1, expert=2),
}
MIXED = list(MESHES)[-3:]
PLAIN = dict(mesh="one device", micro_batches=1, packed=True, remat="none", scan_layers=False)
FACTORS = dict(
    mesh=list(MESHES),
    micro_batches=[1, 2, 4],
    packed=[True, False],
    remat=["none", "full"],
    scan_layers=[False, True],
)


def combinations():
    """Each mesh with the other factors as in PLAIN, with each of them changed alone, and with all changed.
    The product of all factors has 240, which take an hour.
    """
    for mesh in MESHES:
        alone = PLAIN | dict(mesh=mesh)
        yield alone
        for name, values in FACTORS.items():
            others = values if name != "mesh" else ()
            yield from (alone | {name: value} for value in others if value != PLAIN[name])
        yield dict(mesh=mesh, micro_batches=4, packed=False, remat="full", scan_layers=True)


def chosen():
    """Each mesh of several axes with all the other factors changed, and each value of those alone."""
    for name, values in FACTORS.items():
        others = values if name != "mesh" else ()
        yield from (PLAIN | {name: value} for value in others if value != PLAIN[name])
    for mesh, micro_batches in zip(MIXED, (4, 2, 2), strict=True):
        others = dict(packed=False, remat="full", scan_layers=True)
        yield dict(mesh=mesh, micro_batches=micro_batches, **others)


def name_of(how):
    return ", ".join(f"{name} {value}" for name, value in how.items() if value != PLAIN[name])


def check_combination(mesh, **how):
    sizes = MESHES[mesh] or dict(data=1, devices=jax.devices()[:1])
    check(*one_update(make_mesh(**sizes), **how), plain())


# Slices, a pipeline and experts, with every other factor changed
QUICK = dict(mesh=MIXED[-1], micro_batches=2, packed=False, remat="full", scan_layers=True)


@pytest.mark.parametrize("how", others_slow(list(chosen()), QUICK), ids=name_of)
def test_the_update_is_that_of_one_device(how):
    """Oracle: the plain path, see updates.check."""
    check_combination(**how)


@pytest.mark.slow
def test_the_update_does_not_depend_on_the_order_of_the_devices():
    """Oracle: the plain path, as above; experts, rows and weights lie on devices in an order by chance."""
    devices = np.random.default_rng(0).permutation(np.array(jax.devices(), object)).tolist()
    mesh = make_mesh(data=1, fsdp=2, expert=2, context=2, devices=devices)
    assert list(mesh.devices.flat) == devices != jax.devices()
    rest = {name: value for name, value in PLAIN.items() if name != "mesh"}
    check(*one_update(mesh, **rest), plain())


@pytest.mark.slow
@pytest.mark.parametrize("how", list(combinations()), ids=name_of)
def test_every_combination_gives_the_update_of_one_device(how):
    """Oracle: the plain path, as above."""
    check_combination(**how)


SPARSE = [PLAIN | dict(mesh=mesh) for mesh in MESHES]
SPARSE += [
    dict(mesh=mesh, micro_batches=2, packed=False, remat=remat, scan_layers=True)
    for mesh, remat in zip(MIXED, ("full", "attention", "selective"), strict=True)
]


@pytest.mark.slow
@pytest.mark.parametrize("how", SPARSE, ids=name_of)
def test_sparse_attention_and_its_indexer_learn_as_on_one_device(how):
    """Oracle: the plain path of V3.2, whose indexers' losses and gradients are among what is compared."""
    sizes = MESHES[how["mesh"]] or dict(data=1, devices=jax.devices()[:1])
    rest = {name: value for name, value in how.items() if name != "mesh"}
    check(*one_update(make_mesh(**sizes), **rest, model="V3.2"), plain("V3.2"))


@pytest.mark.slow
@pytest.mark.parametrize("how", SPARSE, ids=name_of)
def test_gathered_keys_learn_as_masked_ones_on_one_device(monkeypatch, how):
    """Oracle: the plain path of V3.2, whose queries mask the keys that they do not select. Blocks of three
    queries.
    """
    wanted = plain("V3.2")
    monkeypatch.setitem(SIZES, "keys_to_gather_from", {"any": 2})
    monkeypatch.setitem(SIZES, "selected_rows_alive", {"any": 3 * V3_2["index_topk"]})
    sizes = MESHES[how["mesh"]] or dict(data=1, devices=jax.devices()[:1])
    rest = {name: value for name, value in how.items() if name != "mesh"}
    check(*one_update(make_mesh(**sizes), **rest, model="V3.2"), wanted)


def test_the_plain_update_moves_every_bias_and_feeds_every_parameter():
    """Oracle: invariants of the reference itself: it would prove nothing with idle parts. Each real token has
    two experts in each of three layers.
    """
    metrics, gradients, params = plain()
    tokens = make_batch(packed=True)["num_tokens"]
    counts = metrics["counts"]
    assert (counts["moe_layers"].sum(-1) == 2 * tokens).all() and counts["moe_layers"].shape[0] == 2
    assert 0 < counts["mtp_0"].sum() <= 2 * tokens
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert (path[-1].key == "router_bias") != bool(np.abs(leaf).max() > 0), path
    for stack in ("moe_layers", "mtp_0"):
        pair = [
            tree[stack].get("block", tree[stack])["ffn"]["router_bias"]
            for tree in (params, host_params())
        ]
        assert np.abs(pair[0] - pair[1]).max() > SPEED / 2
