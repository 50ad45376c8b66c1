"""launch/doctor.py: its page, and a fault for each check that a sound machine does not have."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.models import mla
from deepseek_jax.ops.cpu import grouped_matmul as cpu
from deepseek_jax.ops.rehearsal import rehearse
from deepseek_jax.parallel import make_mesh, processes
from deepseek_jax.parallel.ragged import ragged_all_to_all
from launch import check, machine_checks
from launch.check import Check
from tests import in_process


@pytest.fixture
def traced_anew():
    """Forget programs before and after, so that a fault is in the program, and in no other test's."""
    jax.clear_caches()
    yield
    rehearse(None)


def failing():
    raise ValueError("it is broken; mend it")


def launched(monkeypatch, *checks):
    """doctor --json and doctor, with checks in place of those of the machine."""
    monkeypatch.setattr(machine_checks, "of_machine", lambda mesh, folder: list(checks))
    return in_process.launched("doctor", "--json"), in_process.launched("doctor")


def test_the_page_ends_with_the_number_of_checks(monkeypatch):
    """Oracle: by hand: four checks of the processes and one more, all of which hold; eight CPU devices."""
    (status, report, _), (other, out, _) = launched(monkeypatch, Check("thing", lambda: "sound"))
    assert status == other == 0
    lines = out.splitlines()
    assert lines[-2:] == [" 5 thing: sound", "5 of 5 checks hold"] and "8 x cpu" in lines[0]
    report = json.loads(report)
    names = ["devices", "versions", "place of the mesh", "collectives", "thing"]
    assert [one["check"] for one in report] == names
    assert all(one["holds"] for one in report) and report[-1]["found"] == "sound"


def test_the_first_check_that_does_not_hold_ends_the_page(monkeypatch):
    """Oracle: by hand: the words of its error, exit status 1; what comes after it is not looked at."""
    ends = launched(monkeypatch, Check("thing", failing), Check("other", lambda: "sound"))
    assert [end.status for end in ends] == [1, 1]
    said = "error: 4 checks hold, and the next does not: thing: it is broken; mend it"
    assert said in ends[1].err and "other" not in ends[1].out
    last = json.loads(ends[0].out)[-1]
    assert last["check"] == "thing" and not last["holds"]


def test_processes_that_order_their_devices_otherwise_are_named(monkeypatch):
    """Oracle: by hand: the second process has the devices the other way round."""
    other = ["far", list(range(8))[::-1]]
    monkeypatch.setattr(processes, "from_each", lambda value: [value, other])
    with pytest.raises(ValueError, match="order of the mesh's devices must be the same everywhere"):
        check._placement(make_mesh())


def test_a_host_with_little_memory_is_refused(monkeypatch):
    """Oracle: by hand: a million pages of 256 bytes."""
    assert machine_checks.host_memory().endswith("GiB")
    monkeypatch.setattr(os, "sysconf", dict(SC_PHYS_PAGES=2**20, SC_PAGE_SIZE=2**8).get)
    with pytest.raises(ValueError, match="0.2 GiB for 1 devices"):
        machine_checks.host_memory()


def test_messages_that_go_to_another_device_are_found(monkeypatch):
    """Oracle: by hand: what is meant for a device goes to the next one; without the fault all arrive."""
    mesh = make_mesh(fsdp=2)
    assert "8 x 8 messages" in machine_checks.exchange(mesh)

    def shifted(*arrays, axis_name):
        return jnp.roll(ragged_all_to_all(*arrays, axis_name=axis_name), 1, axis=0)

    monkeypatch.setattr(machine_checks, "ragged_all_to_all", shifted)
    with pytest.raises(
        ValueError, match="got 56 from device 0 .* should have got 0: devices are in"
    ):
        machine_checks.exchange(mesh)


def test_a_file_system_that_loses_a_byte_is_found(monkeypatch, tmp_path):
    """Oracle: by hand: a byte of the largest file is another; without the fault nothing is left."""
    mesh = make_mesh()
    assert str(tmp_path) in machine_checks.checkpoint(mesh, tmp_path)
    assert not list(tmp_path.iterdir())
    written = Store.close

    def close(store):
        written(store)
        files = [path for path in Path(store.folder).rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)

    monkeypatch.setattr(Store, "close", close)
    with pytest.raises(Exception) as error:
        machine_checks.checkpoint(mesh, tmp_path)
    assert "damaged" in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["result", "plain"])
def test_a_number_that_is_not_finite_is_infinitely_off(place):
    """Oracle: by hand, in either form: a NaN is below every limit, and max passes over it."""
    given = dict(result=np.ones(3), plain=np.ones(3))
    assert machine_checks.apart(**given) == 0
    given[place][1] = np.nan
    assert machine_checks.apart(**given) == np.inf


def test_operands_that_are_rounded_are_found(monkeypatch):
    """Oracle: by hand: bfloat16 keeps 8 bits: a product is off by a thousandth."""
    machine_checks.exact_products()
    exact = machine_checks.dot

    def rounded(spec, x, w):
        return exact(spec, jax.lax.reduce_precision(x, 8, 7), w)

    monkeypatch.setattr(machine_checks, "dot", rounded)
    with pytest.raises(ValueError, match="operands were rounded: a product"):
        machine_checks.exact_products()


def test_a_kernel_with_a_fault_is_named(monkeypatch, traced_anew):
    """Oracle: by hand: the experts' product on a CPU loses a hundredth of its last column."""
    whole = cpu.pieces

    def faulty(*arrays):
        out = whole(*arrays)
        return out.at[:, -1].multiply(0.9)

    (case,) = (one for one in machine_checks.cases() if one.op == "grouped_matmul")
    monkeypatch.setattr(machine_checks, "cases", lambda: [case])
    assert "grouped_matmul=pieces off by" in machine_checks.forms()
    jax.clear_caches()
    monkeypatch.setattr(cpu, "pieces", faulty)
    with pytest.raises(
        ValueError, match="grouped_matmul as 'pieces' is off from 'ragged' by .*e-02"
    ):
        machine_checks.forms()


def test_an_update_with_a_fault_is_found(monkeypatch, traced_anew):
    """Oracle: by hand: the experts' product on a CPU gives half, and so does its gradient."""
    whole = cpu.pieces
    monkeypatch.setattr(machine_checks, "LENGTH", 64)
    monkeypatch.setattr(cpu, "pieces", lambda *arrays: whole(*arrays) / 2)
    with pytest.raises(ValueError, match="the gradient in float32 is off from plain forms"):
        machine_checks.update()


@pytest.mark.slow
def test_a_sampler_with_a_fault_is_found(monkeypatch, traced_anew):
    """Oracle: by hand: attention over the cache has another scale than attention over a row."""
    whole = mla.attend_latent

    def faulty(*arrays, scale, **options):
        return whole(*arrays, scale=2 * scale, **options)

    monkeypatch.setattr(mla, "attend_latent", faulty)
    with pytest.raises(
        ValueError, match="the sampler and a forward pass are .* nats a token apart"
    ):
        machine_checks.sampling("float32")


@pytest.mark.slow
@pytest.mark.parametrize("machine", [None, "v5e", "tpu7x", "gpu"])
def test_all_checks_hold(machine, tmp_path, traced_anew):
    """Oracle: plain forms and numpy, by the doctor's own limits; the forms that FORMS has for the machine."""
    flags = [] if machine is None else [f"--rehearse={machine}"]
    status, out, err = in_process.launched("doctor", f"--workdir={tmp_path}", *flags)
    assert status == 0, err
    assert out.splitlines()[-1] == "12 of 12 checks hold"
    kernels = "attend=splash", "attend_latent=kernel", "grouped_matmul=megablox", "quantize=kernel"
    for kernel in kernels:
        assert (kernel in out) == (machine in ("v5e", "tpu7x"))
