"""Texts of others to ids, against the tokenizer itself and by hand."""

import pytest
import tokenizers

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.text_ids import encode_parts
from deepseek_jax.data.tools import encode_text
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.data.conftest import with_template

NAMES = ("qwen3", "llama3_1", "deepseek")
TEXTS = (
    "",
    "\n",
    "2 + 3 = 5.\n\n",
    " <think",
    "think>",
    "Größe  \t东京 \U0001f600",
    "<｜User |>",
    "a<b>c",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_without_markers_is_encoded_as_ever(name, text, templates):
    """Oracle: the tokenizer's encode."""
    assert encode_text(templates[name], text) == templates[name].encode(text)


def markers_of(templates):
    """Every marker of every template, but those of DeepSeek's that hold a place."""
    names = {marker for name in NAMES for marker in templates[name].markers.values()}
    return sorted(name for name in names if "place▁holder" not in name)


@pytest.mark.parametrize("name", NAMES)
def test_markers_in_a_text_become_no_tokens_of_their_own(name, templates):
    """Oracle: the ids of added tokens, none of which may appear, and the text that the ids decode to."""
    tokenizer, markers = templates[name], markers_of(templates)
    assert len(markers) > 40
    added = set(tokenizer.backend.get_added_tokens_decoder())
    texts = [f"a {m}{m}\n{m[:-1]}{m}b" for m in markers]
    nested = [f"{m[:4]}{n}{m[4:]}" for m in markers for n in markers[:5]]
    for text in [*markers, *texts, *nested, "".join(markers)]:
        ids = encode_text(tokenizer, text)
        assert not added & set(ids)
        assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text


def test_a_marker_that_takes_the_blanks_around_it_is_cut_too(smollm2):
    """Oracle: the text that the ids decode to; the blanks are more than Python's stack is deep."""
    token = tokenizers.AddedToken("<tool>", lstrip=True, rstrip=True)
    tokenizer = with_template(smollm2, "qwen3", [token])
    text = " " * 5000 + "<tool>" + " " * 5000 + "x<tool>"
    ids = encode_text(tokenizer, text)
    assert tokenizer.backend.token_to_id("<tool>") not in ids
    assert tokenizer.backend.decode(ids) == text


def test_half_a_surrogate_is_a_question_mark(smollm2):
    """Oracle: by hand."""
    assert encode_text(smollm2, "a\ud800b") == smollm2.encode("a?b")


def test_names_of_special_tokens_are_bytes_for_a_tokenizer_of_bytes():
    """Oracle: UTF-8."""
    assert encode_text(byte_tokenizer(), "<eos>ü") == list("<eos>ü".encode())


def test_a_closed_vocabulary_leaves_out_what_it_does_not_know():
    """Oracle: by hand, in a world that has digits and no words for errors, nor special tokens as text."""
    tokenizer = arithmetic_tokenizer()
    with pytest.raises(ValueError):
        tokenizer.encode("Error: 12")
    assert encode_text(tokenizer, "Error!12<eos>3<pad>") == tokenizer.encode("123")
    assert encode_text(tokenizer, "<eos>") == []


def test_only_the_parts_of_a_template_have_markers(templates):
    """Oracle: the tokenizer on the whole text where no text has a marker, whose blanks it joins; by hand
    where one has.
    """
    tokenizer = templates["qwen3"]
    parts = ["\n<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n\n"]
    for texts in (["\n a\n", ""], [".", "  ."]):
        whole = parts[0] + texts[0] + parts[1] + texts[1] + parts[2]
        assert encode_parts(tokenizer, parts, texts) == tokenizer.encode(whole)
    ids = encode_parts(tokenizer, ["<think>", "call>", ""], ["</think>", "<tool_"])
    assert ids[0] == tokenizer.backend.token_to_id("<think>")
    assert not set(ids[1:]) & set(tokenizer.markers)
    assert tokenizer.decode(ids) == "<think></think>call><tool_"
