"""What weighs the exchange of experts' tokens, and the meshes that it moves."""

import pytest

from configs import models
from deepseek_jax.costs.exchange import exchange_of, ratio_of
from deepseek_jax.models import build_model
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.torus import busiest_link
from tests.configs import snapshots
from tests.launch.planning.test_placement_seconds import LINE
from tests.parallel.slices import jax_mesh, slice_of

V3, MINI = models.deepseek_v3(), models.deepseek_v3_mini()


def test_v3s_exchange_is_what_the_compiler_made_of_its_pre_training():
    """Oracle: the bytes of the snapshot, those over expert against gathers and sums along fsdp; the ratio is
    within a third of theirs, and exactly that of the whole number that all others are multiples of.
    """
    sent = {"expert": 0.0, "fsdp": 0.0}
    for line in snapshots.kept("pretrain_v3", "stage_1")[1]:
        kind, axes, gigabytes = LINE.fullmatch(line).groups()
        if axes in sent and kind != "all-reduce":
            sent[axes] += float(gigabytes.replace(",", ""))
    assert ratio_of(build_model(V3), 32) == pytest.approx(sent["expert"] / sent["fsdp"], rel=1 / 3)
    assert exchange_of(V3)(32) == pytest.approx(1, rel=1e-3)


def test_what_no_experts_describe_weighs_as_v3():
    """Oracle: by hand: a dense model, and a block that names no architecture."""
    assert exchange_of(models.qwen2_tiny())(4) == exchange_of({"dtype": "bfloat16"})(4) == 1.0


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:4x4"])
def test_small_experts_lie_as_their_exchange_wants(topology):
    """Oracle: the links of jax's mesh and of a mesh placed for V3, by our formula, which test_torus.py holds
    to links that are counted: with weights so small the exchange takes the shorter way of the two.
    """
    devices = slice_of(topology)
    sizes = dict(data=1, fsdp=len(devices) // 4, expert=4)
    ours = make_mesh(**sizes, devices=devices, exchange=exchange_of(MINI))
    others = make_mesh(**sizes, devices=devices), jax_mesh(ours.shape, devices)
    link, *rest = (busiest_link("all-to-all", ("expert",), mesh) for mesh in (ours, *others))
    assert link == min(rest) == pytest.approx(2 / 3)
    assert exchange_of(MINI)(4) > 2
