"""Adapters against Hugging Face's library peft: its logits, its gradients, and its files, byte for byte."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from deepseek_jax.checkpoint import load_adapter, load_hf, save_adapter
from deepseek_jax.checkpoint.adapter import adapter_base
from deepseek_jax.checkpoint.adapter_names import to_tensors
from deepseek_jax.models import forward
from deepseek_jax.models.adapter_modules import adapter_axes
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import AdaptedParams, join, merged, split, with_adapter
from deepseek_jax.models.quantized import quantized
from tests.models.families import write_tiny_checkpoint
from tests.quick import others_slow
from tests.recipes.small import one_device

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LATENT = ["q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# family -> what peft adapts
TARGETS = {
    "qwen2_tied": dict(target_modules="all-linear"),
    "qwen3": dict(target_modules=["q_proj", "v_proj", "gate_proj"]),
    "deepseek_v3": dict(target_modules=LATENT, target_parameters=EXPERTS),
    "deepseek_v2": dict(target_modules=["q_proj"], target_parameters=EXPERTS[1:]),
}
# Sums of float32 products in other orders, as in tests/models/test_parity.py
LOGITS = 2e-5


def quietly_adapted(model, **targets):
    """A PeftModel with normal noise in both matrices of each module. It warns of what has no gate_up_proj."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **targets)
        )
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


@pytest.fixture(scope="module")
def adapted_of(tmp_path_factory):
    """family -> (PeftModel, its folder, the base's folder, ModelConfig, AdaptedParams), made once."""
    made = {}

    def adapted(family):
        if family not in made:
            base, folder = (
                tmp_path_factory.mktemp(f"{family}_{part}") for part in ("base", "lora")
            )
            theirs = quietly_adapted(write_tiny_checkpoint(family, base), **TARGETS[family])
            theirs.save_pretrained(folder)
            config, params = load_hf(base, mesh=one_device())
            ours = load_adapter(folder, config, params, one_device())
            made[family] = theirs, folder, base, config, ours
        return made[family]

    return adapted


def tokens():
    return np.random.default_rng(0).integers(0, 96, (2, 24))


@pytest.mark.parametrize("family", others_slow(TARGETS, "qwen3", "deepseek_v3"))
def test_logits_are_those_of_peft(adapted_of, family):
    """Oracle: peft, float32. Without the adapter the logits are others."""
    theirs, _, _, config, ours = adapted_of(family)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens())).logits.numpy()
    logits = jax.jit(lambda params: forward(config, params, tokens()))
    np.testing.assert_allclose(logits(ours), expected, atol=LOGITS, rtol=0)
    assert np.abs(logits(ours.base) - expected).max() > 100 * LOGITS


@pytest.mark.parametrize("family", others_slow(TARGETS, "qwen3"))
def test_gradients_of_the_matrices_are_those_of_peft(adapted_of, family):
    """Oracle: autograd through peft, tensor by tensor under its names, off by at most 1e-4 of the largest."""
    theirs, folder, base, config, ours = adapted_of(family)
    ids = torch.tensor(tokens())
    theirs.zero_grad()
    torch.nn.functional.cross_entropy(
        theirs(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()
    ).backward()
    trained, frozen = split(ours)

    @jax.jit
    @jax.grad
    def gradient(trained):
        logits = forward(config, join(trained, frozen), tokens()[:, :-1])
        targets = jnp.array(tokens()[:, 1:, None])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets, -1).mean()

    found, first = {}, {"dense_layers": 0, "moe_layers": config.num_dense_layers}
    for stack, modules in gradient(trained).items():
        for module, pair in modules.items():
            for index in range(len(pair["lora_a"])):
                both = (pair[name][index] for name in ("lora_a", "lora_b"))
                names = zip("AB", to_tensors(config, module, *both), strict=True)
                found |= {(first[stack] + index, module, name): x for name, x in names}
    expected = {}
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            layer, _, rest = name.partition("layers.")[2].partition(".")
            module, _, part = rest.partition(".lora_")
            # In this order peft wraps a module of experts: down_proj outside
            named = {"mlp.experts.base_layer": EXPERTS[0], "mlp.experts": EXPERTS[1]}
            expected[int(layer), named.get(module, module), part[0]] = weight.grad.numpy()
    assert found.keys() == expected.keys()
    for key, own in expected.items():
        np.testing.assert_allclose(found[key], own, atol=1e-4 * np.abs(own).max(), rtol=0)


@pytest.mark.parametrize("family", others_slow(TARGETS, "qwen3", "deepseek_v3"))
def test_a_folder_of_ours_is_one_of_peft(adapted_of, tmp_path, family):
    """Oracle: peft's own files, tensor by tensor, and the logits of the model that it loads from ours."""
    theirs, folder, base, config, ours = adapted_of(family)
    save_adapter(tmp_path / "ours", config, ours, base)
    written, expected = load_file(tmp_path / "ours" / TENSORS), load_file(folder / TENSORS)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in expected)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    with torch.no_grad():
        logits = [m(torch.tensor(tokens())).logits.numpy() for m in (again, theirs)]
    np.testing.assert_array_equal(*logits)


def test_a_base_on_the_hub_is_written_with_its_commit(adapted_of, tmp_path):
    """Oracle: peft's own reading of the folder."""
    _, _, _, config, ours = adapted_of("qwen2_tied")
    save_adapter(tmp_path / "ours", config, ours, f"org/name@{'0' * 40}")
    read = peft.PeftConfig.from_pretrained(str(tmp_path / "ours"))
    assert (read.base_model_name_or_path, read.revision) == ("org/name", "0" * 40)


def test_the_base_that_a_run_left_is_found_wherever_the_run_is(tmp_path):
    """Oracle: by hand: what the stage before left comes first; the name without it, or of peft's."""
    stage = tmp_path / "run" / "students" / "qwen"
    (stage / "adapter").mkdir(parents=True)
    (stage / "stage.json").write_text(json.dumps(dict(stage="students/qwen", start="starts/qwen")))
    (stage / "adapter" / CONFIG).write_text(json.dumps({"base_model_name_or_path": "/gone/params"}))
    (stage / "adapter" / "base.json").write_text("{}")
    assert adapter_base(stage / "adapter") == "/gone/params"
    base = tmp_path / "run" / "starts" / "qwen" / "params"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    assert adapter_base(stage / "adapter") == str(base)
    (stage / "adapter" / "base.json").unlink()
    assert adapter_base(stage / "adapter") == "/gone/params"


def test_a_folder_of_ours_that_peft_writes_anew_is_not_taken_for_a_damaged_one(
    adapted_of, tmp_path
):
    """Oracle: the tensors that peft wrote."""
    theirs, _, base, config, ours = adapted_of("qwen2_tied")
    save_adapter(
        tmp_path / "it",
        config,
        AdaptedParams(ours.base, jax.tree.map(jnp.zeros_like, ours.adapter), 1.0),
        base,
    )
    theirs.save_pretrained(tmp_path / "it")
    assert (tmp_path / "it" / "base.json").is_file()
    read = load_adapter(tmp_path / "it", config, ours.base, one_device())
    jax.tree.map(np.testing.assert_array_equal, read.adapter, ours.adapter)
    assert read.scale == ours.scale != 1.0


def test_merged_weights_are_those_of_peft(adapted_of):
    """Oracle: the logits of peft's merge_and_unload, which computes each weight as we do."""
    theirs, _, base, config, ours = adapted_of("deepseek_v3")
    dense = jax.jit(merged)(ours)
    assert jax.tree.structure(dense) == jax.tree.structure(ours.base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    plain = quietly_adapted(model, **TARGETS["deepseek_v3"]).merge_and_unload()
    with torch.no_grad():
        expected = plain(torch.tensor(tokens())).logits.numpy()
    np.testing.assert_allclose(forward(config, dense, tokens()), expected, atol=LOGITS, rtol=0)


def test_a_new_adapter_changes_nothing_and_is_drawn_as_peft_draws(adapted_of):
    """Oracle: the base's logits, to the bit; and peft's draw, uniform within 1 / sqrt(inputs)."""
    _, _, _, config, ours = adapted_of("qwen2_tied")
    fresh = with_adapter(config, ours.base, AdapterSettings(rank=4, alpha=8.0), one_device(), 0)
    assert fresh.scale == 2
    same = [jax.jit(lambda p: forward(config, p, tokens()))(p) for p in (fresh, ours.base)]
    np.testing.assert_array_equal(*same)
    for pair in fresh.adapter["dense_layers"].values():
        inputs = np.prod(pair["lora_a"].shape[1:-1])
        size = np.abs(pair["lora_a"]).max() * inputs**0.5
        assert 0.98 < size <= 1 and not pair["lora_b"].any()
        # The variance of a uniform draw
        np.testing.assert_allclose(pair["lora_a"].var() * inputs, 1 / 3, rtol=0.1)


def refused(folder, config, params):
    with pytest.raises(ValueError) as error:
        load_adapter(folder, config, params, one_device())
    return str(error.value)


def changed_config(folder, to, **fields):
    shutil.copytree(folder, to)
    text = json.loads((to / CONFIG).read_text())
    (to / CONFIG).write_text(json.dumps(text | fields))
    return to


@pytest.mark.parametrize(
    "field, value",
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [1, 2]),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_its_field(adapted_of, tmp_path, field, value):
    """Oracle: fields of peft's config that change what the matrices mean."""
    _, folder, _, config, ours = adapted_of("qwen3")
    message = refused(changed_config(folder, tmp_path / "x", **{field: value}), config, ours.base)
    assert f"{CONFIG}: {field}={value!r} is not supported" in message


def test_two_scales_are_refused_and_rank_stabilised_ones_are_read(adapted_of, tmp_path):
    """Oracle: by hand, alpha over rank, or over its square root (arXiv:2312.03732)."""
    _, folder, _, config, ours = adapted_of("qwen3")
    two = changed_config(folder, tmp_path / "two", alpha_pattern={"q_proj": 12})
    assert "scale 'q_proj' by 4, and other modules by 2" in refused(two, config, ours.base)
    stable = changed_config(folder, tmp_path / "stable", use_rslora=True)
    found = load_adapter(stable, config, ours.base, one_device())
    np.testing.assert_allclose(found.scale, 6 / 3**0.5)


def test_a_missing_tensor_is_named(adapted_of, tmp_path):
    """Oracle: the name of the tensor that was removed."""
    _, folder, _, config, ours = adapted_of("deepseek_v3")
    shutil.copytree(folder, tmp_path / "x")
    tensors = load_file(folder / TENSORS)
    gone = "base_model.model.model.layers.1.self_attn.kv_b_proj.lora_B.weight"
    del tensors[gone]
    save_file(tensors, tmp_path / "x" / TENSORS)
    assert f"{gone} is missing" in refused(tmp_path / "x", config, ours.base)


@pytest.mark.parametrize(
    "fields, gone, words",
    [
        ({}, "q_proj", "self_attn.q_proj has no tensors, and adapter_config.json names it"),
        (dict(target_modules="all-linear"), "", "there are no tensors"),
        (dict(r=6), None, "self_attn.q_proj has rank 3, and adapter_config.json has r=6"),
        (dict(r=0), None, "r=0 must be a number above 0"),
        (dict(lora_alpha=float("inf")), None, "lora_alpha=inf must be a number above 0"),
        (dict(rank_pattern={"q_proj": 0}), None, "rank_pattern={'q_proj': 0} must have numbers"),
    ],
)
def test_a_folder_whose_tensors_are_not_those_of_its_config_is_refused(
    adapted_of, tmp_path, fields, gone, words
):
    """Oracle: the words a reader needs; without this the adapter would be another, and nobody would know."""
    _, folder, _, config, ours = adapted_of("qwen3")
    made = changed_config(folder, tmp_path / "x", **fields)
    tensors = load_file(folder / TENSORS)
    kept = {name: x for name, x in tensors.items() if gone is None or gone not in name}
    save_file(kept, made / TENSORS)
    assert words in refused(made, config, ours.base)


def copied(params):
    """A copy for a function that donates it."""
    return jax.tree.map(jnp.copy, params)


def test_an_adapter_of_another_base_is_refused(adapted_of, tmp_path, capsys):
    """Oracle: another architecture, other sizes, and the same sizes with one other number."""
    _, folder, _, _, _ = adapted_of("qwen3")
    _, _, base, config, ours = adapted_of("qwen2_tied")
    assert "the adapter belongs to another base" in refused(folder, config, ours.base)
    _, _, _, latent, of_v3 = adapted_of("deepseek_v3")
    assert "mlp.gate_proj can have no adapter in this model" in refused(folder, latent, of_v3.base)
    save_adapter(tmp_path / "own", config, ours, base)
    load_adapter(tmp_path / "own", config, ours.base, one_device())
    scale = ours.base["final_norm"]["scale"].at[3].add(0.1)
    other = ours.base | {"final_norm": {"scale": scale}}
    assert f"trained beside the parameters in {base}" in refused(tmp_path / "own", config, other)
    # Its norms and embedding are the base's own
    twice = refused(tmp_path / "own", config, jax.jit(merged)(ours))
    assert "or have been merged with an adapter" in twice
    # Half of them cannot be compared: said, not refused
    load_adapter(tmp_path / "own", config, quantized(copied(ours.base)), one_device())
    assert "beside weights that are not rounded, and these are in int8" in capsys.readouterr().out


def test_a_folder_without_an_adapter_is_named(adapted_of, tmp_path):
    """Oracle: the file that is not there."""
    _, _, _, config, ours = adapted_of("qwen3")
    assert f"there is no {CONFIG}" in refused(tmp_path, config, ours.base)


def test_a_target_that_does_not_exist_is_named_with_those_that_do(adapted_of):
    """Oracle: the modules of the family, by hand."""
    config = adapted_of("deepseek_v3")[3]
    with pytest.raises(ValueError, match="^targets=\\[\\] trains nothing"):
        adapter_axes(config, ())
    with pytest.raises(ValueError, match="'q_proj' is not a module of this model; .*q_a_proj"):
        adapter_axes(config, ("q_proj",))
    assert {module for _, module in adapter_axes(config, ("all-linear",))} == {
        f"self_attn.{name}" for name in LATENT
    }
    assert set(adapter_axes(config, ("experts.down_proj",))) == {("moe_layers", EXPERTS[1])}
