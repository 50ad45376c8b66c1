"""launch/convert.py, as a command and as a function."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deepseek_jax.checkpoint import load_hf
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from launch.convert import convert
from tests.checkpoint.test_adapter import quietly_adapted
from tests.checkpoint.test_store import flip, largest
from tests.in_process import launched
from tests.models.families import write_released_checkpoint, write_tiny_checkpoint
from tests.tiny import save_tiny_model


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_to_orbax_and_back_is_the_same_file(tmp_path):
    """Oracle: a conversion to Hugging Face without Orbax in between."""
    write_tiny_checkpoint("deepseek_v3", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "once")
    convert(tmp_path / "hf", tmp_path / "orbax", form="orbax")
    convert(tmp_path / "orbax", tmp_path / "back")
    assert weights(tmp_path / "back") == weights(tmp_path / "once")
    assert (tmp_path / "back" / "config.json").read_text() == (
        tmp_path / "once" / "config.json"
    ).read_text()


@pytest.mark.slow
def test_orbax_to_hf_like_the_released_folder_restores_its_fp8(tmp_path):
    """Oracle: a conversion that never left the released folder."""
    (tmp_path / "hf").mkdir()
    write_released_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "once", like=tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "orbax", form="orbax")
    convert(tmp_path / "orbax", tmp_path / "back", like=tmp_path / "hf")
    assert weights(tmp_path / "back") == weights(tmp_path / "once")


def test_like_has_no_meaning_for_orbax(tmp_path):
    """Oracle: an error that names the flags, before anything is read."""
    with pytest.raises(ValueError, match="--like and --fp8"):
        convert(tmp_path, tmp_path / "out", form="orbax", like=tmp_path)


@pytest.mark.slow
def test_a_gguf_file_becomes_a_folder_with_its_tokenizer(tmp_path):
    """Oracle: the file's own import and tokenizer."""
    path = smollm2_gguf()
    _, params = convert(path, tmp_path / "hf", dtype="bfloat16")
    _, again = load_hf(tmp_path / "hf")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    ids = [load_tokenizer(p).encode("1 + 2 = 3, naïve?") for p in (path, tmp_path / "hf")]
    assert ids[0] == ids[1]


def run(*arguments):
    return launched("convert", *arguments)


@pytest.mark.slow
def test_damaged_parameters_end_it_with_their_own_status(tmp_path):
    """Oracle: 7, in launch/README.md's table; the folder; nothing is written."""
    save_tiny_model(tmp_path / "it")
    flip(largest(tmp_path / "it" / "params" / "state" / "ocdbt.process_0"))
    done = run(f"--from={tmp_path / 'it'}", f"--to={tmp_path / 'out'}")
    assert done.status == 7
    assert done.err.splitlines()[-1].startswith(f"error: {tmp_path / 'it/params'} is damaged: ")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_the_command_writes_what_the_function_does(tmp_path):
    """Oracle: convert() with the same arguments."""
    write_tiny_checkpoint("qwen3", tmp_path / "hf")
    done = run(f"--from={tmp_path / 'hf'}", f"--to={tmp_path / 'a'}", "--dtype=bfloat16", "--fp8")
    assert done.status == 0, done.err
    assert "qwen3" in done.out
    convert(tmp_path / "hf", tmp_path / "b", fp8=True, dtype="bfloat16")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_mistake_is_one_message_and_status_2(tmp_path):
    """Oracle: by hand: a folder without config.json; no traceback."""
    done = run(f"--from={tmp_path}", f"--to={tmp_path / 'a'}")
    assert done.status == 2
    assert "config.json does not exist" in done.err and "Traceback" not in done.err
    assert done.err.startswith("error: ") and not (tmp_path / "a").exists()
    done = run(f"--from={tmp_path}", f"--to={tmp_path / 'a'}", "--format=gguf")
    assert done.status == 2 and "--format=gguf" in done.err and "Traceback" not in done.err


def test_an_adapter_is_merged_as_peft_merges_it(tmp_path):
    """Oracle: the weights that peft's merge_and_unload gives, under their names."""
    model = write_tiny_checkpoint("qwen3", tmp_path / "hf")
    targets = dict(target_modules=["q_proj", "up_proj"])
    adapted = quietly_adapted(model, **targets)
    adapted.save_pretrained(tmp_path / "adapter")
    convert(tmp_path / "hf", tmp_path / "merged", adapter=tmp_path / "adapter")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    expected = adapted.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-6)
        changed += not np.array_equal(found[name], tensor)
    assert changed == 2 * 3
    with pytest.raises(ValueError, match="no adapter in .*there is no adapter_config.json"):
        convert(tmp_path / "hf", tmp_path / "x", adapter=tmp_path / "hf")
    assert not (tmp_path / "x").exists()
