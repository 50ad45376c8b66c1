import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from deepseek_jax.parallel import MESH_AXES, make_mesh
from deepseek_jax.parallel.mesh import MeshSettings, group_mesh, mesh_of
from tests.parallel.slices import Device, slice_of


def test_minus_one_takes_the_devices_that_the_other_axes_leave():
    """Oracle: 8 devices / (2 * 2) = 2, by hand."""
    ones = dict.fromkeys(MESH_AXES, 1)
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == ones | dict(data=2, fsdp=2, tensor=2)
    assert dict(make_mesh(data=1, expert=-1).shape) == ones | dict(expert=8)
    assert dict(make_mesh(slices=2, pipeline=2).shape) == ones | dict(slice=2, pipeline=2, data=2)
    assert make_mesh(**dataclasses.asdict(MeshSettings())) == make_mesh()
    assert dict(make_mesh().shape) == ones | dict(data=8)


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


@pytest.mark.parametrize(("sides", "fsdp"), [((4, 4, 20), 10), ((4, 4, 28), 32), ((4, 4, 12), 6)])
def test_sizes_that_cut_a_side_in_unlike_parts_lie_on_the_torus(sides, fsdp):
    """Oracle: every device once. jax's mesh_utils fails with the first two."""
    devices = [Device(coords=at) for at in itertools.product(*map(range, sides))]
    mesh = make_mesh(fsdp=fsdp, devices=devices)
    assert mesh.shape["fsdp"] == fsdp and set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize("topology", ["v5p:4x4x8", "v5e:8x16", "v5e:2x4", "tpu7x:2x2x2"])
def test_the_placement_depends_on_sizes_and_coordinates_alone(topology):
    """Oracle: the devices shuffled, and with other processes."""
    devices = slice_of(topology)
    mesh = make_mesh(fsdp=2, expert=4, devices=devices)
    shuffled = np.random.default_rng(0).permutation(np.array(devices, object)).tolist()
    assert make_mesh(fsdp=2, expert=4, devices=shuffled) == mesh
    others = [dataclasses.replace(device, process_index=0) for device in shuffled]
    at = [(device.coords, device.core_on_chip) for device in mesh.devices.flat]
    others = make_mesh(fsdp=2, expert=4, devices=others).devices.flat
    assert [(device.coords, device.core_on_chip) for device in others] == at


def test_each_slice_has_the_placement_of_a_single_one():
    """Oracle: the mesh of one slice; the first slice comes first, whatever the order of the devices."""
    first, second = slice_of("v5p:4x4x4"), slice_of("v5p:4x4x4", 1)
    one = make_mesh(fsdp=4, expert=8, devices=first)
    both = make_mesh(slices=2, fsdp=4, expert=8, devices=[*second, *first])
    np.testing.assert_array_equal(both.devices[:1], one.devices)
    coords = [device.coords for device in one.devices.flat]
    assert [device.coords for device in both.devices[1].flat] == coords
    assert {device.slice_index for device in both.devices[1].flat} == {1}


def test_slices_of_unlike_size_are_refused():
    """Oracle: by hand: 60 and 68 chips."""
    devices = slice_of("v5p:4x4x4") + slice_of("v5p:4x4x4", 1)
    devices = [
        dataclasses.replace(device, slice_index=int(number >= 60))
        for number, device in enumerate(devices)
    ]
    with pytest.raises(ValueError, match="unlike size: one has 60 devices"):
        make_mesh(slices=2, devices=devices)


def test_tpus_without_a_box_are_taken_in_their_order_and_it_is_said_once(capsys):
    """Oracle: the list itself; the line names how many devices there are."""
    devices = slice_of("v5p:2x2x2")[:6]
    for _ in range(2):
        assert list(make_mesh(fsdp=3, data=2, devices=devices).devices.flat) == devices
    assert capsys.readouterr().out.count("coordinates of 6 TPU devices fill no box") == 1


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What meshes read of a GPU."""

    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"
    process_index: int = 0


def test_gpus_are_taken_by_their_ids_in_silence(capsys):
    """Oracle: jax's mesh_utils."""
    gpus = [Gpu(number) for number in (2, 0, 3, 1)]
    mesh = make_mesh(fsdp=2, data=2, devices=gpus)
    expected = mesh_utils.create_device_mesh([1, 1, 2, 2, 1, 1, 1], gpus)
    np.testing.assert_array_equal(mesh.devices, expected)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("axis", ["pipeline", "fsdp", "expert", "context", "tensor"])
def test_a_mesh_of_some_devices_has_the_sizes_of_the_whole(axis):
    """Oracle: by hand: four of eight devices; the axis keeps its two, and data takes the rest."""
    found = mesh_of(make_mesh(**{axis: 2}), jax.devices()[:4])
    assert dict(found.shape) == dict.fromkeys(MESH_AXES, 1) | {"data": 2, axis: 2}


def test_a_group_of_processes_has_a_mesh_of_its_own_devices(monkeypatch):
    """Oracle: by hand: four processes of two devices, in groups of two; all of them have the mesh itself."""
    gpus = [Gpu(number, process_index=number // 2) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: gpus)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    mesh = make_mesh(fsdp=2, tensor=2, devices=gpus)
    for process, own in ((1, gpus[:4]), (3, gpus[4:])):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found = group_mesh(mesh, 2)
        assert list(found.devices.flat) == own and found.shape["fsdp"] == 2
    assert group_mesh(mesh, 4) is mesh
    with pytest.raises(
        ValueError, match="4 processes do not split into groups of 3; .* divisor of 4"
    ):
        group_mesh(mesh, 3)
    with pytest.raises(ValueError, match="^groups of 1 processes: .*fsdp=2, tensor=2 make 4"):
        group_mesh(mesh, 1)
