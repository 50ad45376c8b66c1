"""Reading folders of DeepSeek-V4: released and transformers' ones, to the bit, by share, and every fault."""

import json
import pickle
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import Mesh
from safetensors.torch import save_file

from deepseek_jax.checkpoint import load_hf, load_params, load_v4
from deepseek_jax.checkpoint.hf_files import HFFiles
from deepseek_jax.checkpoint.share import by_parameter, steps
from deepseek_jax.checkpoint.tree import abstract_params, by_path
from deepseek_jax.checkpoint.v4_files import V4Files
from deepseek_jax.checkpoint.v4_names import tensors
from deepseek_jax.parallel import MESH_AXES, make_mesh
from tests.checkpoint import v4_released
from tests.checkpoint.test_share import Chip
from tests.checkpoint.v4_released import CONFIG, SCALES, WEIGHTS
from tests.models.v4 import tiny
from tests.processes import run_two
from tests.quick import others_slow

EXPERT = "layers.2.ffn.experts.3.w1"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """-> (folder, {name: torch tensor}): FP4 experts, FP8, a module of multi-token prediction."""
    folder = tmp_path_factory.mktemp("released")
    return folder, v4_released.write(folder)


@pytest.fixture(scope="module")
def whole(released):
    """{path: numpy array} of the parameters, read without a mesh."""
    return {path: np.asarray(leaf) for path, leaf in by_path(load_v4(released[0])[1]).items()}


def loaded_by_transformers(folder, c, named):
    """The state dict of transformers' model that reads {released name: float32 array} from a folder."""
    folder.mkdir()
    save_file(
        {name: torch.tensor(array) for name, array in named.items()}, folder / "model.safetensors"
    )
    raw = v4_released.config_json(c, "fp4", None, True)
    del raw["quantization_config"], raw["expert_dtype"]
    (folder / "config.json").write_text(json.dumps(raw))
    model, report = transformers.DeepseekV4ForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    return tiny.tensors(model)


def expected(tmp_path, stored):
    """Our parameters from the stored tensors: a loop decodes, transformers finds the places.

    transformers has no multi-token prediction. So its layer stands in as a fifth one of the trunk.
    """
    depth = CONFIG.num_hidden_layers
    weights = [n for n in stored if not n.endswith(".scale")]
    named = {name: v4_released.decoded(name, stored) for name in weights}
    trunk = {name: array for name, array in named.items() if not name.startswith("mtp.")}
    block = {
        name.replace("mtp.0", f"layers.{depth}"): array
        for name, array in named.items()
        if name.startswith(("mtp.0.attn", "mtp.0.ffn", "mtp.0.hc_attn", "mtp.0.hc_ffn"))
    }
    longer = tiny.config(
        hidden_size=CONFIG.hidden_size,
        moe_intermediate_size=CONFIG.moe_intermediate_size,
        num_hidden_layers=depth + 1,
        layer_types=(*CONFIG.layer_types, "sliding_attention"),
    )
    params = tiny.params(loaded_by_transformers(tmp_path / "hf", longer, trunk | block), longer)
    end = {name: named[f"mtp.0.hc_head_{name}"] for name in ("fn", "base", "scale")}
    params["mtp_0"] = dict(
        block=params.pop(f"layers_{depth}"),
        embedding_norm=dict(scale=named["mtp.0.enorm.weight"]),
        hidden_norm=dict(scale=named["mtp.0.hnorm.weight"]),
        embedding_input=named["mtp.0.e_proj.weight"].T,
        hidden_input=named["mtp.0.h_proj.weight"].T,
        head_norm=dict(scale=named["mtp.0.norm.weight"]),
        stream_end=tiny.stream_part(end, CONFIG),
    )
    return by_path(params)


@pytest.mark.parametrize("dtype", others_slow([None, "float32", "bfloat16"], None))
@pytest.mark.parametrize(
    ("experts", "expert_dtype"),
    others_slow([("fp4", True), ("fp8", True), ("fp8", False)], ("fp4", True), ("fp8", False)),
)
def test_a_released_folder_is_read_to_the_last_bit(tmp_path, experts, expert_dtype, dtype):
    """Oracle: a loop over tiles for the numbers, and transformers for their places. The third folder is a
    conversion to FP8 without expert_dtype in config.json.
    """
    stored = v4_released.write(tmp_path / "a", experts=experts, expert_dtype=expert_dtype)
    config, params = load_v4(tmp_path / "a", dtype=dtype)
    assert config.num_nextn_predict_layers == 1
    ours, wanted = by_path(params), expected(tmp_path, stored)
    assert ours.keys() == wanted.keys()
    for path, leaf in ours.items():
        # Codes, scales and bfloat16 numbers are exact in bfloat16, so one oracle holds for all dtypes
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), wanted[path], err_msg=path)


def test_all_256_scales_are_powers_of_two_and_the_last_is_no_number(tmp_path):
    """Oracle: by hand: 2^(byte - 127), and NaN for 255; torch's e8m0. Rows in another order get their own."""
    stored = v4_released.write(tmp_path)
    stored["head.weight"] = torch.full((256, 16), 2, dtype=torch.int8)
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    stored["head.scale"] = bytes_.view(v4_released.E8M0)
    for name in (WEIGHTS, SCALES, v4_released.INDEX):
        (tmp_path / name).unlink()
    save_file(stored, tmp_path / "model.safetensors")
    rows = np.random.default_rng(0).permutation(256)
    files = V4Files(tmp_path)
    scale = files.read_rows("head.weight", rows)[1]
    by_hand = np.array([2.0 ** (byte - 127) for byte in range(255)] + [np.nan], np.float32)
    np.testing.assert_array_equal(scale[:, 0], by_hand[rows])
    np.testing.assert_array_equal(scale, stored["head.scale"][rows].float().numpy())
    assert files.shape("head.weight") == (256, 32)


def test_dtypes_are_the_checkpoints_own_and_some_are_always_float32(released):
    """Oracle: by hand, with the released dtypes: mixing, sinks, position biases and what chooses experts."""
    for dtype in (None, "bfloat16"):
        for path, leaf in by_path(load_v4(released[0], dtype=dtype)[1]).items():
            *_, part, name = ["", *path.split("/")]
            stays = part in ("attention_mixing", "ffn_mixing", "stream_end")
            stays |= name in ("sink_bias", "position_bias", "router_bias", "expert_table")
            assert leaf.dtype == (jnp.float32 if stays else jnp.bfloat16), path


@pytest.mark.parametrize("original", [True, False])
def test_a_folder_that_transformers_wrote_is_read(tmp_path, original):
    """Oracle: the tensors of its model, in both spellings of its names; it has no multi-token prediction."""
    model = tiny.hf_model()
    model.save_pretrained(tmp_path, save_original_format=original)
    config, params = load_v4(tmp_path)
    assert config.num_nextn_predict_layers == 0
    assert config.layers == tiny.config().layers
    assert config.rope_scaling == tiny.config().rope_scaling
    wanted = by_path(tiny.params(tiny.tensors(model), config))
    ours = by_path(params)
    assert ours.keys() == wanted.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


MESHES = [dict(expert=4, fsdp=2), dict(expert=2, fsdp=2, tensor=2), dict(fsdp=4)]


@pytest.mark.parametrize("sizes", others_slow(MESHES, MESHES[0]))
def test_parameters_land_sharded_on_a_mesh(released, whole, sizes):
    """Oracle: the read without a mesh, bit for bit; and experts over the axis expert."""
    mesh = make_mesh(**sizes)
    _, params = load_v4(released[0], mesh=mesh)
    for path, leaf in by_path(params).items():
        assert np.asarray(leaf).tobytes() == whole[path].tobytes(), path
    experts = params["layers_2"]["ffn"]["down"]
    assert experts.addressable_shards[0].data.shape[0] == 8 // sizes.get("expert", 1)


def counting(patch):
    """Count the bytes that are read from now on, by the file's name."""
    read, real = Counter(), HFFiles._read_into

    def count(self, file, offset, raw):
        read[file.name.rsplit("/")[-1]] += raw.nbytes
        return real(self, file, offset, raw)

    patch.setattr(HFFiles, "_read_into", count)
    return read


def expert_bytes(stored, experts):
    """By hand: {file: bytes} of these experts of all layers, codes and scales."""
    mine = [n for n in stored if any(f".experts.{i}." in n for i in experts)]
    return {
        file: sum(stored[n].nbytes for n in mine if n.endswith(".scale") == (file == SCALES))
        for file in (WEIGHTS, SCALES)
    }


def test_a_process_reads_the_bytes_of_its_experts_alone(released, monkeypatch):
    """Oracle: by hand: one byte for two numbers and one for each scale, of two experts in eight. The devices
    are of two processes; what the second one is to read is read here.
    """
    folder, stored = released
    chips = [Chip(id=i, process_index=i // 2) for i in range(8)]
    mesh = Mesh(np.array(chips).reshape(1, 1, 1, 1, 8, 1, 1), MESH_AXES)
    assert mesh.shape["expert"] == 8
    files, leaves = V4Files(folder), abstract_params(CONFIG, mesh=mesh)
    read = counting(monkeypatch)
    for path, tensor_turns in by_parameter(tensors(CONFIG)).items():
        if path.endswith(("ffn/gate_up", "ffn/down")) and "shared" not in path:
            for _, pieces in steps(leaves[path], tensor_turns, chips[2:4]):
                for piece, _ in pieces:
                    files.read_rows(piece.name, piece.rows)
    assert read == expert_bytes(stored, (2, 3))


ONE_OF_TWO = """
import pickle, sys
import jax
import numpy as np
import pytest
process, port, folder, wanted = int(sys.argv[1]), *sys.argv[2:5]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.checkpoint import load_v4
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.parallel import make_mesh
from tests.checkpoint.test_v4_import import counting

with open(wanted, "rb") as file:
    whole = pickle.load(file)
with pytest.MonkeyPatch.context() as patch:
    read = counting(patch)
    _, params = load_v4(folder, mesh=make_mesh(expert=8))
for path, leaf in by_path(params).items():
    for shard in leaf.addressable_shards:
        assert np.asarray(shard.data).tobytes() == whole[path][shard.index].tobytes(), path
print("read", read.total(), flush=True)
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_its_half_of_the_experts(released, whole, tmp_path):
    """Oracle: the parameters of one process, bit for bit; and the bytes by hand: all that is no expert, at
    most once, and half of the experts. The table of token ids is read once more, to check it.
    """
    folder, stored = released
    (tmp_path / "wanted").write_bytes(pickle.dumps(whole))
    codes, outputs = run_two(
        ONE_OF_TWO,
        *(folder, tmp_path / "wanted"),
        xla_flags="--xla_force_host_platform_device_count=4",
    )
    assert codes == [0, 0], outputs
    every = sum(tensor.nbytes for tensor in stored.values())
    table = sum(tensor.nbytes for name, tensor in stored.items() if "tid2eid" in name)
    experts = sum(expert_bytes(stored, range(8)).values())
    for output in outputs:
        read = int(output.split("read ")[1].split()[0])
        assert experts // 2 < read <= every - experts // 2 + table
        print("bytes of", every, "experts", experts, "read", read)


def test_a_drafter_is_read_past_by_name_with_one_line(tmp_path, capfd):
    """Oracle: by hand: a config.json that still says one module; no module; the trunk of a folder that has
    none; and the number of tensors without scales.
    """
    v4_released.write(tmp_path / "a", later="dspark")
    config, params = load_v4(tmp_path / "a")
    lines = [line for line in capfd.readouterr().out.splitlines() if "DSpark" in line]
    assert len(lines) == 1 and "mtp." in lines[0]
    below = [n for n in v4_released.all_tensors(CONFIG, later="dspark") if n.startswith("mtp.")]
    assert f"{len(below)} tensors" in lines[0]
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    assert raw["num_nextn_predict_layers"] == 1 and config.num_nextn_predict_layers == 0
    v4_released.write(tmp_path / "b", later=None)
    same_config, same = load_v4(tmp_path / "b")
    assert same_config == config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))
    assert "DSpark" not in capfd.readouterr().out


def rewrite(folder, stored, change):
    """Copy a folder with one change to {name: tensor}, in one file."""
    folder.mkdir(exist_ok=True)
    changed = dict(stored)
    change(changed)
    save_file(changed, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(v4_released.config_json(CONFIG, "fp4", "mtp", True))
    )


def without(name):
    return lambda named: named.pop(name)


def replaced(name, change):
    def edit(named):
        named[name] = change(named[name].clone())

    return edit


def first_entry(value):
    def edit(table):
        table[5, 1] = value
        return table

    return edit


FAULTS = {
    "no scale of FP4": (
        without(f"{EXPERT}.scale"),
        [f"{EXPERT}.scale is missing", f"{EXPERT}.weight", "FP4"],
    ),
    "no scale of FP8": (
        without("layers.1.attn.wq_a.scale"),
        ["layers.1.attn.wq_a.scale is missing", "layers.1.attn.wq_a.weight", "FP8"],
    ),
    "a scale of another shape": (
        replaced(f"{EXPERT}.scale", lambda scale: scale[:, :4].contiguous()),
        [f"{EXPERT}.scale", "(80, 4)", "(80, 5)", "1 x 32"],
    ),
    "scales as numbers": (
        replaced(f"{EXPERT}.scale", lambda scale: scale.view(torch.uint8).float()),
        [f"{EXPERT}.scale", "float32", "float8_e8m0fnu"],
    ),
    "a scale without its tensor": (
        without("layers.1.attn.wq_a.weight"),
        ["layers.1.attn.wq_a.weight", "missing"],
    ),
    "no tensor": (
        without("layers.3.attn.attn_sink"),
        ["layers.3.attn.attn_sink is missing", "of shape [4]"],
    ),
    "no tensor of the later layer": (without("mtp.0.e_proj.weight"), ["mtp.0.e_proj"]),
    "a tensor too many": (
        lambda named: named.update({"layers.0.ffn.gate.bias": torch.zeros(8)}),
        ["layers.0.ffn.gate.bias [8]", "no tensor of a deepseek_v4 model"],
    ),
    "codes of another shape": (
        replaced(f"{EXPERT}.weight", lambda codes: codes[:79].contiguous()),
        [f"{EXPERT}.scale", "(79, 160)"],
    ),
    "a sink too many": (
        replaced("layers.3.attn.attn_sink", lambda sink: torch.cat([sink, sink])),
        ["layers.3.attn.attn_sink", "[8]", "[4]"],
    ),
    "a table of another vocabulary": (
        replaced("layers.0.ffn.gate.tid2eid", lambda table: table[:90].contiguous()),
        ["layers.0.ffn.gate.tid2eid", "[90, 3]", "[96, 3]"],
    ),
    "an expert after the last": (
        replaced("layers.0.ffn.gate.tid2eid", first_entry(8)),
        ["layers.0.ffn.gate.tid2eid", "token 5", "expert 8", "n_routed_experts=8"],
    ),
    "an expert before the first": (
        replaced("layers.0.ffn.gate.tid2eid", first_entry(-1)),
        ["layers.0.ffn.gate.tid2eid", "expert -1"],
    ),
    "a table of fractions": (
        replaced("layers.0.ffn.gate.tid2eid", torch.Tensor.float),
        ["layers.0.ffn.gate.tid2eid", "float32", "integers"],
    ),
    "a tensor of integers": (
        replaced("layers.1.ffn.gate.bias", torch.Tensor.int),
        ["layers.1.ffn.gate.bias", "int32", "floating-point"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_before_anything_compiles(released, tmp_path, fault, monkeypatch):
    """Oracle: by hand: the tensor, the file, and what was found and is allowed; no number is placed."""
    change, words = FAULTS[fault]
    rewrite(tmp_path / "a", released[1], change)
    monkeypatch.setattr(jax, "jit", None)
    monkeypatch.setattr(jnp, "zeros", None)
    with pytest.raises(ValueError) as error:
        load_v4(tmp_path / "a")
    for word in [*words, str(tmp_path / "a" / "model.safetensors")]:
        assert word in str(error.value), error.value


@pytest.mark.parametrize("name", [f"{EXPERT}.scale", "layers.1.attn.wq_a.scale"])
def test_a_scale_that_is_no_number_is_named(released, tmp_path, name):
    """Oracle: the tensor that has the byte 255, and its file."""
    broken = replaced(
        name, lambda scale: torch.full_like(scale.view(torch.uint8), 255).view(scale.dtype)
    )
    rewrite(tmp_path / "a", released[1], broken)
    with pytest.raises(ValueError, match="not finite") as error:
        load_v4(tmp_path / "a")
    assert name.replace("scale", "weight") in str(error.value)


def test_v4_1_is_refused_by_name(released, tmp_path):
    """Oracle: the name in the message, of this reader."""
    rewrite(tmp_path / "a", released[1], lambda named: None)
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw | dict(model_type="deepseek_v41")))
    with pytest.raises(ValueError, match="DeepSeek-V4.1"):
        load_v4(tmp_path / "a")


def test_the_reader_of_other_folders_names_this_one_and_load_params_takes_it(released):
    """Oracle: the name of the function; its own result."""
    with pytest.raises(ValueError, match="checkpoint.load_v4"):
        load_hf(released[0])
    ours, theirs = load_params(released[0]), load_v4(released[0])
    assert ours[0] == theirs[0]
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
