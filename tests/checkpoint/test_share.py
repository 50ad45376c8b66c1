"""What each process reads of a checkpoint: its share to the byte, and the same parameters as a whole read."""

import dataclasses
import pickle
import threading
import time
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file

from configs import models
from deepseek_jax.checkpoint import fill as filling
from deepseek_jax.checkpoint import load_hf
from deepseek_jax.checkpoint.fill import Step, fill, read_ahead
from deepseek_jax.checkpoint.hf_files import HFFiles
from deepseek_jax.checkpoint.hf_names import copies, is_projection, tensors
from deepseek_jax.checkpoint.share import steps, while_read
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.checkpoint.turn import parse
from deepseek_jax.models import ModelConfig, count_params
from deepseek_jax.parallel import MESH_AXES, make_mesh
from tests.checkpoint.share_bytes import share_bytes
from tests.models.families import write_released_checkpoint
from tests.processes import run_two
from tests.quick import others_slow

# File of write_released_checkpoint with all tensors but the scales, and the file with these
WEIGHTS, SCALES = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
# Eight devices, the first four of process 0, in the order of the mesh fsdp=2, expert=4
CROSSING = {"fsdp": [0, 1, 2, 3, 4, 5, 6, 7], "expert": [0, 1, 4, 5, 2, 3, 6, 7]}

ONE_OF_TWO = """
import pickle, sys
import jax
import numpy as np
process, port, folder, altered, wanted = int(sys.argv[1]), *sys.argv[2:6]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.checkpoint import load_hf
from deepseek_jax.checkpoint.hf_files import HFFiles
from tests.checkpoint.share_bytes import share_bytes
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.parallel import make_mesh
from tests.checkpoint.test_share import CROSSING, SCALES, WEIGHTS, counted, copied_bytes, own_bytes

with open(wanted, "rb") as file:
    whole = pickle.load(file)
for axis, order in CROSSING.items():
    mesh = make_mesh(fsdp=2, expert=4, devices=[jax.devices()[i] for i in order])
    config, params, read = counted(folder, mesh)
    expected = own_bytes(folder, config, axis, process)
    shown = axis, read, expected
    # Weights that are stored over expert too are split further, where that crosses the processes, and are
    # read in parts, each with the scales of its own blocks
    least = 1.0 if axis == "fsdp" else 0.8
    assert least * expected[WEIGHTS] <= read[WEIGHTS] <= expected[WEIGHTS], shown
    assert expected[SCALES] <= read[SCALES] <= 2 * expected[SCALES], shown
    planned = share_bytes(config, HFFiles(folder).dtype, mesh, process)
    assert planned == read.total() - copied_bytes(folder, config, parts=2), (axis, planned, read)
    for path, leaf in by_path(params).items():
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == whole[path][shard.index].tobytes(), path
    print("equal", axis, flush=True)
try:
    load_hf(altered, mesh=mesh)
except ValueError as error:
    print("equal", str(error).split()[0], flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a jax.Device as a sharding asks for."""

    id: int
    process_index: int
    # The newest JAX describes a mesh by these
    platform: str = "tpu"
    device_kind: str = "TPU v5p"


def counted(folder, mesh):
    """load_hf: -> (config, params, Counter of the bytes that were read, by the file's name)."""
    read, real = Counter(), HFFiles._read_into

    def count(self, file, offset, raw):
        read[file.name.rsplit("/")[-1]] += raw.nbytes
        return real(self, file, offset, raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFFiles, "_read_into", count)
        return *load_hf(folder, mesh=mesh), read


def copied_bytes(folder, config, parts):
    """What one of `parts` processes reads to compare copies: its rows of the copy and of the original."""
    files = HFFiles(folder)
    sizes = [np.prod(files.shape(name)) * files.dtype(name).itemsize for name in copies(config)]
    return 2 * sum(sizes) // parts


def own_bytes(folder, config, axis, process):
    """By hand, for the meshes of CROSSING: what a process reads, as `counted` counts it, of weights that are
    not stored over expert as well.

    fsdp halves the rows of every tensor; only the router's bias has no axis that it splits. expert splits the
    experts into four, and the rows of the router and of its bias.
    """
    files = HFFiles(folder)
    read = Counter({WEIGHTS: copied_bytes(folder, config, parts=2)})
    for name in tensors(config):
        rows, *columns = files.shape(name)
        halves = [process] if axis == "fsdp" else [0, 1]
        share = len(halves) / 2
        if ".experts." in name and axis == "expert":
            share = int(name.split(".experts.")[1].split(".")[0]) // 8 == process
        if "correction_bias" in name:
            share = 1 if axis == "fsdp" else 1 / 2
        if name.endswith("mlp.gate.weight"):
            share = 1 / 2
        read[WEIGHTS] += int(rows * np.prod(columns) * files.dtype(name).itemsize * share)
        if files.dtype(name).itemsize == 1 and share:
            for half in halves:
                # Every block of 128 rows that one of the half's rows lies in
                blocks = {row // 128 for row in range(half * rows // 2, (half + 1) * rows // 2)}
                # Keys and values, in the same rows, are two parameters: each reads its own scales
                times = 2 if "kv_b_proj" in name else 1
                read[SCALES] += times * len(blocks) * -(-columns[0] // 128) * 4
    return read


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """-> (folder, {path: numpy array} of its parameters, read without a mesh)."""
    folder = tmp_path_factory.mktemp("released")
    write_released_checkpoint(folder)
    _, params = load_hf(folder)
    return folder, {path: np.asarray(leaf) for path, leaf in by_path(params).items()}


@pytest.mark.slow
def test_each_of_two_processes_reads_its_share(released, tmp_path):
    """Oracle: the bytes of the weights by hand, own_bytes; and one process's parameters, bit for bit. In a
    second folder a row that only process 1 compares differs from its original: both processes raise.
    """
    folder, whole = released
    (tmp_path / "wanted").write_bytes(pickle.dumps(whole))
    altered = tmp_path / "altered"
    altered.mkdir()
    for path in folder.iterdir():
        (altered / path.name).write_bytes(path.read_bytes())
    stored, name = load_file(folder / WEIGHTS), "model.layers.3.shared_head.head.weight"
    stored[name][-1] += 1
    save_file(stored, altered / WEIGHTS, metadata={"format": "pt"})
    codes, outputs = run_two(
        ONE_OF_TWO,
        *(folder, altered, tmp_path / "wanted"),
        xla_flags="--xla_force_host_platform_device_count=4",
    )
    assert codes == [0, 0], outputs
    for output in outputs:
        lines = [line for line in output.splitlines() if line.startswith("equal")]
        assert lines == [f"equal {word}" for word in (*CROSSING, name)]


SIZES = [
    # 6 heads do not split over 4: rows of every head, out of order where they are rotary
    dict(fsdp=4, expert=2),
    # 20 rows of q_a_proj do not split over 8: every device cuts its columns from whole rows
    dict(fsdp=2, context=4),
    dict(pipeline=2, fsdp=2, tensor=2),
]


@pytest.mark.parametrize("sizes", others_slow(SIZES, SIZES[0]))
def test_a_mesh_reads_each_row_once_and_gives_the_same_parameters(released, sizes):
    """Oracle: the parameters without a mesh, bit for bit; and the size of the tensors, which 8 devices read
    once together, but for the copies: embedding and head are read once more to compare them.
    """
    folder, whole = released
    config, params, read = counted(folder, make_mesh(**sizes))
    for path, leaf in by_path(params).items():
        assert np.asarray(leaf).tobytes() == whole[path].tobytes(), path
    # The file has the copies in it; their originals are read twice
    every = sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())
    assert read[WEIGHTS] == every + copied_bytes(folder, config, parts=1) // 2


@pytest.mark.parametrize("rows", [[130, 5, 3, 4], []], ids=str)
def test_rows_are_read_in_the_order_asked_for(released, rows):
    """Oracle: safetensors' own reader, and the scales of blocks 1, 0, 0 and 0 of 128 rows."""
    name = "model.layers.0.mlp.gate_proj.weight"
    stored = load_file(released[0] / WEIGHTS)[name][rows].view(torch.uint8)
    blocks = load_file(released[0] / SCALES)[f"{name}_scale_inv"][[1, 0, 0, 0][: len(rows)]]
    values, scale = HFFiles(released[0]).read_rows(name, np.array(rows, int))
    np.testing.assert_array_equal(values.view(np.uint8), stored)
    np.testing.assert_array_equal(scale, blocks)


def test_rows_are_exchanged_for_columns_along_two_axes():
    """Oracle: the turned tensor. Rows split over 8 devices stand in for two axes of the columns."""
    mesh = make_mesh(fsdp=2, tensor=4)
    turn = parse("d (h u) -> h u d", dict(d=16, h=4, u=6))
    tensor = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    source = SimpleNamespace(
        READS=2, dtype=lambda name: tensor.dtype, read_rows=lambda name, rows: (tensor[rows], None)
    )
    place = NamedSharding(mesh, PartitionSpec("tensor", "fsdp", None))
    leaf = jax.ShapeDtypeStruct((4, 6, 16), jnp.float32, sharding=place)
    stored = {(None, None, None): ("out", turn)}
    assert [move.row for move in while_read(leaf, turn)[1]] == [2, 2]
    asked = (Step("out", *step) for step in steps(leaf, stored, mesh.devices.flat))
    found = fill(leaf, stored, read_ahead(source, asked))
    np.testing.assert_array_equal(found, turn.to_parameter(tensor))


@pytest.fixture
def slow_reads(monkeypatch):
    """Reads that take 20 ms each where they may overlap, as on a network, and 1 ms where there is little
    room: [most at once, most bytes at once, all].
    """
    lock, under_way, most = threading.Lock(), [0, 0], [0, 0, 0]
    real = HFFiles.read_rows

    def read_rows(self, name, rows):
        size = len(rows) * np.prod(self.shape(name)[1:], dtype=int) * self.dtype(name).itemsize
        with lock:
            under_way[:] = under_way[0] + 1, under_way[1] + size
            most[:] = max(most[0], under_way[0]), max(most[1], under_way[1]), most[2] + 1
        if self.READS > 1:
            time.sleep(0.02 if filling.AHEAD_BYTES >= 2**28 else 0.001)
        found = real(self, name, rows)
        with lock:
            under_way[:] = under_way[0] - 1, under_way[1] - size
        return found

    monkeypatch.setattr(HFFiles, "read_rows", read_rows)
    return most


def test_reads_that_take_long_overlap(released, slow_reads, monkeypatch):
    """Oracle: the parameters of reads one after the other, bit for bit; 16 reads under way at once, and as
    many in all. With room for the largest read, no more bytes than that.
    """
    plain, found = {}, {}
    for name, reads, room in (("plain", 1, 2**28), ("ahead", 16, 2**28), ("little", 16, 51_200)):
        monkeypatch.setattr(HFFiles, "READS", reads)
        monkeypatch.setattr(filling, "AHEAD_BYTES", room)
        slow_reads[:] = 0, 0, 0
        began = time.perf_counter()
        params = load_hf(released[0], mesh=make_mesh(fsdp=2, expert=4))[1]
        found[name] = (*slow_reads, time.perf_counter() - began)
        plain = plain or params
        jax.tree.map(np.testing.assert_array_equal, params, plain)
    print("most at once, bytes at once, reads, seconds:", found)
    assert found["plain"][0] == 1 and found["ahead"][0] == 16
    assert found["plain"][2] == found["ahead"][2] == found["little"][2]
    assert found["plain"][1] == found["little"][1] == 51_200 < found["ahead"][1]


def test_a_host_of_256_reads_its_share_of_deepseek_v3():
    """Oracle: by hand: a host of 2 x 2 chips has 1/16 of fsdp=32 and 1/16 of expert=32, so it reads 1/256 of
    the experts, and of the weights into and out of heads and MLPs, and 1/16 of all else, which is replicated
    over expert. First exactly, without scales, then as released: one byte a weight in the projections, and a
    few scales more than its share of them.
    """
    config = ModelConfig(**{**models.deepseek_v3(), "rope_scaling": None})
    fsdp, expert = np.divmod(np.arange(1024), 32)
    devices = [
        Chip(id=int(32 * i + j), process_index=int(i // 2 * 16 + j // 2))
        for i, j in zip(fsdp, expert, strict=True)
    ]
    mesh = Mesh(np.array(devices).reshape(1, 1, 1, 32, 32, 1, 1), MESH_AXES)
    experts = 59 * 256 * 3 * 7168 * 2048
    heads = 62 * 128 * (1536 * 192 + 2 * 512 * 128 + 128 * 7168)
    mlps = 3 * 7168 * (3 * 18432 + 59 * 2048)
    small = count_params(config) - experts - heads - mlps
    weights = (experts + heads + mlps) // 256 + small // 16
    assert share_bytes(config, lambda name: np.dtype(jnp.bfloat16), mesh, 77) == 2 * weights
    fp8, bfloat16 = np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.bfloat16)
    read = share_bytes(config, lambda name: fp8 if is_projection(name) else bfloat16, mesh, 77)
    # Embedding, head, the input of the MTP layer and the routers are bfloat16; norms are too small to matter
    wide = 2 * 129280 * 7168 + 2 * 7168 * 7168 + 59 * 256 * 7168
    assert 1 < read / (weights + wide / 16) < 1.001
    assert 2.97e9 < read < 2.99e9
