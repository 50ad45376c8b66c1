"""The policy that a run starts from, after it is read."""

import dataclasses

from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.data.tokenizer import load_tokenizer, smollm2_gguf
from deepseek_jax.recipes.start import ending_turns
from tests.tiny import tiny_model


def test_a_base_that_learns_a_chat_template_ends_its_turns(tmp_path):
    """Oracle: by hand: the template's <|im_end|> and the document's end token, also once saved and read."""
    config, params = tiny_model("gqa")
    smollm2 = load_tokenizer(smollm2_gguf())
    end = smollm2.backend.token_to_id("<|im_end|>")
    base = dataclasses.replace(config, eos_token_id=0)
    ending = ending_turns(base, smollm2, "chat")
    assert ending.eos_ids == (0, end)
    assert ending_turns(ending, smollm2, "chat") is ending
    save_orbax(tmp_path / "params", ending, params)
    assert load_orbax(tmp_path / "params")[0].eos_ids == (0, end)
