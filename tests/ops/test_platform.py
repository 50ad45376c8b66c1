"""Which machine a program is for, and which forms enter it."""

import contextlib
import dataclasses
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.ops.attention import attend, attend_latent
from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.platform import SIZES, choose, form_of, platform
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import decode, steps
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from tests.parallel.updates import V3, make_batch
from tests.quick import others_slow
from tests.tiny import CONFIGS

PROMPTS, PROMPT_ROOM, ROOM = 2, 16, 24
# A row of packed documents, and weights that are multiplied by few rows and by many
LARGE_V3 = ModelConfig(**V3, dtype="bfloat16", remat="selective", scan_layers=True)
SMALL_QWEN = dataclasses.replace(CONFIGS["gqa"], dtype="bfloat16", remat="selective")


def products():
    """The text of grouped_matmul as it is traced now."""
    arrays = jnp.ones((8, 2)), jnp.ones((2, 2, 3)), jnp.array([4, 4])
    return lambda: str(jax.make_jaxpr(lambda *a: grouped_matmul(*a))(*arrays))


def test_the_device_that_a_program_is_traced_for_says_what_it_is_made_of():
    """Oracle: by hand: conftest's backend is a CPU; a default device, however it is given, stands before it;
    the grouped product takes its form for TPU there and the one for CPU here.
    """
    traced = products()
    assert platform() == "cpu" and "ragged_dot" not in traced()
    with jax.default_device("tpu"):
        assert platform() == "tpu" and "ragged_dot" in traced()
    with jax.default_device(jax.devices()[1]):
        assert platform() == "cpu" and "ragged_dot" not in traced()
    assert platform() == "cpu"


def test_an_implementation_that_an_op_does_not_have_is_refused():
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        choose("grouped_matmul", "dense", ragged=None, pieces=None)
    words = "grouped_matmul has no implementation='dense'; it has ragged, pieces"
    assert words == str(error.value)


def test_a_kernel_for_tpus_is_refused_elsewhere():
    """Oracle: the words a reader needs; on a TPU it is taken."""
    forms = dict(ragged=1, megablox=2, interpreted=3)
    with pytest.raises(ValueError) as error:
        choose("grouped_matmul", "megablox", **forms)
    assert str(error.value) == (
        "grouped_matmul: implementation='megablox' is a kernel for TPUs, and this program is for a cpu; "
        "leave it out, or set it to one of ragged, interpreted"
    )
    with jax.default_device("tpu"):
        assert choose("grouped_matmul", "megablox", **forms) == 2


def test_an_exchange_that_xla_does_not_compile_for_a_cpu_is_refused_there():
    """Oracle: the words a reader needs; on a GPU and on a TPU it is taken."""
    forms = dict(gathered=1, ragged=2)
    with pytest.raises(ValueError) as error:
        choose("ragged_all_to_all", "ragged", **forms)
    assert str(error.value) == (
        "ragged_all_to_all: implementation='ragged' is not for CPUs, and this program is for a cpu; "
        "leave it out, or set it to one of gathered"
    )
    for machine in ("gpu", "tpu"):
        with jax.default_device(machine):
            assert choose("ragged_all_to_all", "ragged", **forms) == 2


def test_a_tpu_takes_its_own_form_of_the_shapes_that_suit_it():
    """Oracle: by hand: where they do not, that of any machine; a form that is named is taken, and a CPU asks
    for no shapes.
    """
    forms = dict(ragged=1, megablox=2, pieces=3)
    with jax.default_device("tpu"):
        for suits, implementation, form in (
            (lambda: True, None, 2),
            (lambda: False, None, 1),
            (lambda: False, "megablox", 2),
        ):
            assert choose("grouped_matmul", implementation, suits, **forms) == form
        assert choose("grouped_matmul", **forms) == 2
    assert choose("grouped_matmul", None, lambda: False, **forms) == 3


def test_forms_of_one_cpu_enter_no_program_of_several():
    """Oracle: by hand: without a mesh, on a mesh of one device, on one of two, and on a GPU."""
    assert form_of("einsum") == "matrices"
    for devices, form in ((1, "matrices"), (2, "plain")):
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            assert form_of("einsum") == form
    with jax.default_device("gpu"):
        assert form_of("einsum") == "plain"


def test_a_tpu_is_known_by_its_first_device(monkeypatch):
    """Oracle: by hand: of two kinds of TPU, tpu7x multiplies E4M3."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for kind, form in (("TPU7x", "float8_e4m3fn"), ("TPU v5", "bfloat16")):
        device = types.SimpleNamespace(device_kind=kind)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert form_of("fp8_operands") == form


def test_sizes_are_the_powers_of_two_of_the_memory_that_they_take():
    """Oracle: by hand: MiB of float32 for scores and logits; blocks and tiles divide each other evenly."""
    mib = {
        name: {machine: 4 * size / 2**20 for machine, size in SIZES[name].items()}
        for name in ("index_scores_alive", "logits_alive")
    }
    assert mib["index_scores_alive"] == {"any": 64, "cpu": 4, "tpu": 256}
    assert mib["logits_alive"] == {"any": 64, "tpu": 512}
    for sizes in SIZES.values():
        for size in jax.tree.leaves(sizes):
            assert size & (size - 1) == 0


def attention(head):
    def attended(q, k, v, ids):
        return attend(q, k, v, scale=0.1, segment_ids=ids)

    heads = [jax.ShapeDtypeStruct((1, 2048, 2, head), jnp.bfloat16)] * 3
    return attended, [*heads, jax.ShapeDtypeStruct((1, 2048), jnp.int32)]


def latent_decoding(heads=16, latent=128, cache=256):
    def attended(*arrays):
        return attend_latent(*arrays[:-1], kv_lora_rank=latent, scale=0.1, mask=arrays[-1])

    shapes = (2, heads, latent + 64), (2, cache, latent + 64)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return attended, [*arrays, jax.ShapeDtypeStruct((2, cache), bool)]


def experts(d=128, f=128):
    shapes = ((256, d), jnp.bfloat16), ((4, d, f), jnp.float32), ((4,), jnp.int32)
    return grouped_matmul, [jax.ShapeDtypeStruct(*shape) for shape in shapes]


@pytest.mark.parametrize(
    "op, wide, narrow",
    [
        (attention, dict(head=64), [dict(head=32)]),
        (latent_decoding, {}, [dict(heads=8), dict(latent=64), dict(cache=200)]),
        (experts, {}, [dict(d=32), dict(f=32)]),
    ],
)
def test_a_kernel_is_for_sizes_that_fill_its_tiles(op, wide, narrow):
    """Oracle: whether the program that is traced for a TPU calls a kernel of Pallas."""
    with jax.default_device("tpu"):
        calls = [
            "pallas_call" in str(jax.make_jaxpr(function)(*arrays))
            for function, arrays in (op(**sizes) for sizes in (wide, *narrow))
        ]
    assert calls == [True] + [False] * len(narrow)


def update(config):
    """The gradient of a batch's loss, multi-token prediction too where there is one."""
    weights = dict(mtp_weight=0.3) if config.num_nextn_predict_layers else {}

    def gradient(params, batch):
        return jax.grad(lambda p: next_token_loss(config, p, batch, **weights)[0])(params)

    return gradient, (shapes_of_params(config), make_batch(packed=True))


def shapes_of_params(config):
    return nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def rollout(config):
    """Prefill, seat and decode, speculatively where the model can."""
    how = Decoding(config, drafts=config.num_nextn_predict_layers > 0)
    fixed = how, Sampling(), ()

    def run(params, tokens, lengths):
        weights = decode.decoding_weights(how, params)
        tables = decode.rotations(config, ROOM)
        slots = decode.empty_slots(how, PROMPTS, PROMPT_ROOM, *[ROOM - PROMPT_ROOM] * 2)
        prefilled = decode.prefill(how, weights, tables, tokens, lengths)._replace(experts=None)
        seats, prompts = jnp.ones(PROMPTS, bool), jnp.arange(PROMPTS)
        seating = steps.Seating(seats, prompts, lengths, slots.keys)
        slots = decode.seat(*fixed, slots, seating, prefilled)
        return decode.decode(*fixed, weights, tables, slots, PROMPTS)

    prompts = jax.ShapeDtypeStruct((PROMPTS, PROMPT_ROOM), jnp.int32)
    return run, (shapes_of_params(config), prompts, jax.ShapeDtypeStruct((PROMPTS,), jnp.int32))


@contextlib.contextmanager
def entered():
    """Collect the files whose functions are called."""
    files, before = set(), sys.gettrace()
    # For calls alone: sys.setprofile takes the time of returns and of C's functions too
    sys.settrace(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    try:
        yield files
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("config", others_slow([LARGE_V3, SMALL_QWEN], LARGE_V3))
@pytest.mark.parametrize("program", others_slow([update, rollout], update))
@pytest.mark.parametrize(
    "kind, lowered",
    others_slow([("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")], ("tpu", "tpu")),
)
def test_forms_for_a_cpu_enter_programs_for_a_cpu_alone(
    monkeypatch, kind, lowered, program, config
):
    """Oracle: the files of all functions that run while a program is traced and lowered for a machine."""
    function, arguments = program(config)
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: kind)
    with entered() as files:
        jax.jit(function).trace(*arguments).lower(lowering_platforms=(lowered,))
    ops = {Path(file).parent.name for file in files if "deepseek_jax/ops" in file}
    # The kernels are asked on a TPU whether they take these shapes
    others = {"cpu": {"cpu"}, "tpu": {"pallas"} & ops, "gpu": set()}[kind]
    assert ops == {"ops"} | others
