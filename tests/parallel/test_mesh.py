import dataclasses
import itertools

import pytest

from deepseek_jax.parallel import MESH_AXES, make_mesh


def test_minus_one_takes_the_devices_that_the_other_axes_leave():
    """Oracle: 8 devices / (2 * 2) = 2, by hand."""
    ones = dict.fromkeys(MESH_AXES, 1)
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == ones | dict(data=2, fsdp=2, tensor=2)
    assert dict(make_mesh(data=1, expert=-1).shape) == ones | dict(expert=8)
    assert dict(make_mesh(slices=2, pipeline=2).shape) == ones | dict(slice=2, pipeline=2, data=2)


def test_every_device_lies_on_the_mesh_once_in_the_order_of_the_axes():
    """Oracle: on one CPU host devices are laid out in order of id."""
    mesh = make_mesh(data=1, fsdp=2, expert=2, tensor=2)
    assert mesh.axis_names == MESH_AXES
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=3), r"^data=3 make 3, which does not equal the 8 devices"),
        (dict(data=4), r"make 4, which does not equal the 8 devices"),
        (dict(tensor=3), r"^tensor=3 make 3, which does not divide the 8 devices"),
        (dict(tensor=16), r"make 16, which does not divide"),
        (dict(data=0), r"^data=0: give a positive size, or -1"),
        (dict(slices=3), r"^slices=3.* make 3, which does not divide"),
        (dict(fsdp=-1), r"^data, fsdp are all -1"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    """Oracle: 8 devices, by hand; the message names the argument."""
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What mesh_utils reads of a TPU."""

    coords: tuple
    platform: str = "tpu"
    device_kind: str = "TPU v5p"
    core_on_chip: int = 0
    slice_index: int = 0
    process_index: int = 0


@pytest.mark.parametrize(("sides", "fsdp", "remedy"), [((4, 4, 20), 10, 20), ((4, 4, 28), 32, 16)])
def test_sizes_that_jax_cannot_lay_over_a_torus_are_refused_with_a_remedy(sides, fsdp, remedy):
    """Oracle: by hand: 2 x 5 of a side of 20, and 4 x 4 x 2 of sides of 28, could be cut, and jax fails with
    "cannot reshape" and a TypeError; products of whole sides, as the message says, can be laid.
    """
    devices = [Chip(coords=at) for at in itertools.product(*map(range, sides))]
    with pytest.raises(ValueError, match=f"^data=.*, fsdp={fsdp} cannot be .* whole sides of the"):
        make_mesh(fsdp=fsdp, devices=devices)
    assert make_mesh(fsdp=remedy, devices=devices).shape["fsdp"] == remedy
