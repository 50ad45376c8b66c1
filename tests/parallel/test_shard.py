import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import models
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.parallel import (
    MESH_AXES,
    RULES,
    batch_sharding,
    constrain,
    init_sharded,
    logical_names,
    make_mesh,
    partition_spec,
    put_batch,
    shardings,
)
from deepseek_jax.parallel.decoding import decoding_rules
from deepseek_jax.parallel.shard import (
    batch_parts,
    batch_share,
    check_batch,
    current_mesh,
    stored,
    use_rules,
)

TINY = ModelConfig(**models.deepseek_v3_tiny() | dict(num_nextn_predict_layers=1))
AXES = {"experts": ("layers", "experts", "embed", "mlp"), "scale": ("embed",)}
SHAPES = {
    "experts": jax.ShapeDtypeStruct((3, 4, 8, 6), jnp.float32),
    "scale": jax.ShapeDtypeStruct((8,), jnp.float32),
}


def test_every_row_of_the_table_names_mesh_axes():
    """Oracle: MESH_AXES."""
    for entry in RULES.values():
        assert entry is None or entry in MESH_AXES or set(entry) <= set(MESH_AXES)


def test_partition_spec_reads_the_table():
    """Oracle: the rows of RULES, by hand."""
    assert partition_spec(("first_layers", "embed", "heads")) == P(
        None, ("fsdp", "context"), "tensor"
    )
    rows = ("slice", "data", "fsdp", "expert")
    assert partition_spec(("batch", "seq", None)) == P(rows, "context", None)


def test_a_mesh_axis_used_twice_splits_the_first_dimension_only():
    """Oracle: a device axis cannot split one array twice; by hand."""
    assert partition_spec(("embed", "embed")) == P(("fsdp", "context"), None)
    assert partition_spec(("experts", "batch")) == P("expert", ("slice", "data", "fsdp"))
    assert partition_spec(("batch", "experts")) == P(("slice", "data", "fsdp", "expert"), None)


def test_a_weight_is_stored_in_parts_of_the_expert_axis_where_its_size_allows():
    """Oracle: RULES and STORED by hand: 12 heads do not split over expert=8, experts have that axis already,
    and in a rollout nothing is gathered.
    """
    mesh = make_mesh(data=1, expert=8)
    fsdp, tensor = ("fsdp", "context"), ("tensor", "expert")
    names = ("embed", "heads", "head_dim")
    assert stored(mesh, (8, 16, 4), names) == P(fsdp, tensor, None)
    assert stored(mesh, (8, 12, 4), names) == P(fsdp, "tensor", None)
    of_experts = stored(mesh, (8, 8, 16), ("experts", "embed", "mlp"))
    assert of_experts == P("expert", fsdp, "tensor")
    with use_rules(decoding_rules(mesh, 16, 1)):
        assert stored(mesh, (8, 16, 4), names) == P(None, ("fsdp", "context", "tensor"), None)


def test_an_unknown_logical_axis_is_refused():
    """Oracle: the message names the axis and the file to change."""
    with pytest.raises(ValueError, match=r"'head' has no row in deepseek_jax/parallel/rules.py"):
        partition_spec(("embed", "head"))


def test_logical_names_reads_what_linen_modules_declare():
    """Oracle: the names given to nn.with_partitioning, scanned layers in front."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, ("embed", "mlp"))
            return x @ self.param("kernel", init, (2, 2)), None

    layers = nn.scan(
        Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    boxed = jax.eval_shape(layers.init, jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert logical_names(boxed) == {"kernel": ("layers", "embed", "mlp")}


def test_a_parameter_without_axis_names_is_refused():
    """Oracle: the message names the parameter."""
    with pytest.raises(ValueError, match="parameter ffn/kernel has no axis names"):
        logical_names({"ffn": {"kernel": SHAPES["scale"]}})


def test_sharded_parameters_hold_their_own_slice_on_every_device():
    """Oracle: numpy slicing by the mesh coordinates of each device."""
    mesh = make_mesh(data=1, fsdp=2, expert=2, tensor=2)
    host = np.arange(3 * 4 * 8 * 6, dtype=np.float32).reshape(3, 4, 8, 6)
    array = jax.device_put(host, shardings(mesh, AXES, SHAPES)["experts"])
    for shard in array.addressable_shards:
        _, _, _, fsdp, expert, _, tensor = (
            int(i[0]) for i in np.nonzero(mesh.devices == shard.device)
        )
        wanted = host[:, 2 * expert :][:, :2, 4 * fsdp :][:, :, :4, 3 * tensor :][..., :3]
        np.testing.assert_array_equal(shard.data, wanted)


def test_a_size_that_does_not_split_names_parameter_axis_size_and_field():
    """Oracle: 4 experts over 8 devices, by hand."""
    mesh = make_mesh(data=1, expert=8)
    with pytest.raises(ValueError) as error:
        shardings(mesh, {"ffn": AXES}, {"ffn": SHAPES})
    assert str(error.value) == (
        "parameter ffn/experts: axis experts=4 does not split over mesh.expert=8; "
        "set mesh.expert to a divisor of 4"
    )


def test_a_shape_of_another_rank_than_its_names_is_refused():
    """Oracle: one name for two dimensions."""
    with pytest.raises(ValueError, match=r"scale has axes \('embed',\) but shape \(8, 2\)"):
        shardings(make_mesh(), {"scale": ("embed",)}, {"scale": np.zeros((8, 2))})


def test_put_batch_splits_rows_and_copies_scalars():
    """Oracle: the host arrays, and a quarter of the rows a device (tensor holds copies)."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = {"tokens": np.arange(16, dtype=np.int32).reshape(8, 2), "normalizer": np.float32(7)}
    placed = put_batch(mesh, batch)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert placed["tokens"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(2, 2)}
    assert placed["normalizer"] == 7 and placed["normalizer"].is_fully_replicated


def test_put_batch_refuses_rows_that_do_not_split():
    """Oracle: 6 rows over 4 * 2 devices, by hand."""
    mesh = make_mesh(data=4, fsdp=2)
    with pytest.raises(ValueError) as error:
        put_batch(mesh, {"tokens": np.zeros((6, 2), np.int32)})
    assert str(error.value) == (
        "batch['tokens']: axis batch=6 does not split over mesh.data=4, "
        "mesh.fsdp=2; set their product to a divisor of 6"
    )


def test_batch_parts_is_what_the_rows_split_into():
    """Oracle: by hand, 2 * 2 of eight devices; tensor holds copies."""
    assert batch_parts(make_mesh(data=2, fsdp=2, tensor=2)) == 4


def test_constrain_places_under_a_mesh_and_changes_nothing_without():
    """Oracle: the sharding of partition_spec; the array itself."""
    x = jnp.ones((8, 4))
    assert constrain(x, ("batch", None)) is x
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
    assert placed.sharding.is_equivalent_to(batch_sharding(mesh), 2)


@pytest.mark.parametrize("sizes", [dict(fsdp=2, expert=2, tensor=2), dict(fsdp=8)])
def test_every_axis_of_a_deepseek_model_has_a_row_and_its_experts_split_eight_ways(sizes):
    """Oracle: an eighth of the routed experts' numbers on each of eight devices."""
    boxed = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
    params = nn.unbox(boxed)
    placed = shardings(make_mesh(**sizes), logical_names(boxed), params)
    assert jax.tree.structure(placed) == jax.tree.structure(params)
    experts = params["moe_layers"]["ffn"]["gate_up"].shape
    part = placed["moe_layers"]["ffn"]["gate_up"].shard_shape(experts)
    assert np.prod(part) * 8 == np.prod(experts)


def test_sharded_init_makes_the_parameters_of_an_unsharded_one_in_their_places():
    """Oracle: the same init on one device, same key."""
    init = functools.partial(init_params, TINY)
    mesh = make_mesh(fsdp=2, expert=2, tensor=2)
    params = init_sharded(mesh, init, jax.random.key(3))
    wanted = nn.unbox(jax.jit(init)(jax.random.key(3)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), params, wanted
    )
    boxed = jax.eval_shape(init, jax.random.key(3))
    places = shardings(mesh, logical_names(boxed), nn.unbox(boxed))
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, places)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (
            dict(tensor=8),
            dict(num_attention_heads=4),
            r"axis heads=4 .*mesh.tensor=8",
        ),
        (
            dict(expert=8),
            dict(n_routed_experts=12),
            r"axis experts=12 .*mesh.expert=8",
        ),
        (dict(pipeline=8), {}, r"moe_layers/.*axis layers=\d+ .*mesh.pipeline=8"),
        (dict(fsdp=8), dict(hidden_size=36), r"axis embed=36 .*mesh.fsdp=8"),
    ],
)
def test_a_model_that_does_not_split_is_refused_before_anything_compiles(sizes, changes, message):
    """Oracle: remainders by hand; the init was traced once, for its shapes, and not again to be compiled."""
    config = ModelConfig(**models.deepseek_v3_tiny() | changes)
    traced = []

    def init(rng):
        traced.append(rng)
        return init_params(config, rng)

    with pytest.raises(ValueError, match=message):
        init_sharded(make_mesh(**dict(data=1) | sizes), init, jax.random.key(0))
    assert len(traced) == 1


def test_a_process_alone_gives_all_rows():
    """Oracle: one process, one share."""
    assert batch_share(make_mesh(pipeline=2, data=2, tensor=2)) == (0, 1)


def test_a_batch_that_splits_wherever_it_is_cut_passes():
    """Oracle: 32 = 2 micro-batches * 4 of the pipeline * 2 * 2, by hand."""
    mesh = make_mesh(pipeline=2, data=2, expert=2)
    check_batch(mesh, 32, 7, micro_batches=2, pipeline_micro_batches=4)
    check_batch(mesh, 8, 7)  # as many micro-batches as stages


@pytest.mark.parametrize(
    ("sizes", "rows", "cuts", "message"),
    [
        (
            dict(data=4, fsdp=2),
            12,
            {},
            r"12 rows .*mesh.data=4 x mesh.fsdp=2; .* of 8",
        ),
        (
            dict(data=8),
            8,
            dict(micro_batches=2),
            r"into micro_batches=2 x mesh.data=8; .* of 16",
        ),
        (
            dict(pipeline=2, data=4),
            8,
            dict(pipeline_micro_batches=4),
            r"pipeline_micro_batches=4 x mesh.data=4; .* of 16",
        ),
        (dict(context=8, data=1), 8, {}, r"^sequence_length=12 .*mesh.context=8"),
    ],
)
def test_a_batch_that_does_not_split_names_the_fields(sizes, rows, cuts, message):
    """Oracle: remainders by hand."""
    with pytest.raises(ValueError, match=message):
        check_batch(make_mesh(**sizes), rows, 12, **cuts)


def test_a_batch_that_is_not_cut_has_a_row_for_each_device():
    """Oracle: by hand: eight rows on eight devices, in one part."""
    check_batch(make_mesh(), 8, 5)


def test_a_mesh_of_a_single_device_is_none():
    """Oracle: by hand, of one device and of two."""
    assert current_mesh() is None
    for devices in (1, 2):
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            assert (current_mesh() is not None) == (devices == 2)
