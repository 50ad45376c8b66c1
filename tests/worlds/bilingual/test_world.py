"""The bilingual world's record."""

import pytest

from deepseek_jax.data.preferences import render_record
from deepseek_jax.worlds.bilingual.examples import bilingual_examples
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from deepseek_jax.worlds.bilingual.world import preference_records


@pytest.mark.parametrize("kind, what", [("helpfulness", "preferences"), ("safety", "safety")])
def test_the_small_worlds_preferences_are_rendered_whole(kind, what):
    """Oracle: the tokenizer's own decoding, and the end token, once, at the end."""
    examples = bilingual_examples(what, num_train=20, num_held_out=4, seed=0).train
    tokenizer = bilingual_tokenizer()
    for index, record in enumerate(preference_records(kind, examples)):
        rows = render_record(tokenizer, record, index, template="{question}\n")
        question = record["messages"][0]["content"]
        for ids, response in zip(rows, record["responses"], strict=True):
            assert tokenizer.decode(ids) == f"{question}\n{response}"
            assert ids.index(tokenizer.eos_id) == len(ids) - 1
        if kind == "safety":
            assert record["safe"] == (examples[index]["safe"] == 1.0)
