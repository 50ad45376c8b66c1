"""The tokenizer of bytes, against str.encode."""

import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer

BYTES = byte_tokenizer()


def random_texts(n):
    """Texts of up to 40 characters of any plane but surrogates, half of them below U+0100."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        codes = [
            rng.integers(0x110000 if rng.random() < 0.5 else 256) for _ in range(rng.integers(40))
        ]
        yield "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)


def test_ids_are_the_bytes_of_utf_8_and_come_back_as_the_text():
    """Oracle: str.encode; 3,000 random texts, and every character below U+0100 and each byte once."""
    for text in [*random_texts(3000), "".join(map(chr, range(256))), "", "\r\n  \t"]:
        ids = BYTES.encode(text)
        assert ids == list(text.encode())
        assert BYTES.decode(ids) == text


@pytest.mark.parametrize("text", ["<eos>", "a<pad><fim_begin>", "<fim_hole><fim_end>", "<0x41>"])
def test_names_of_special_tokens_in_a_text_are_text(text):
    """Oracle: str.encode."""
    assert BYTES.encode(text) == list(text.encode())
    assert BYTES.decode(BYTES.encode(text)) == text


def test_special_tokens_follow_the_bytes_and_vanish_in_text():
    """Oracle: by hand; bytes that are no UTF-8 spoil nothing but themselves."""
    assert (BYTES.pad_id, BYTES.eos_id, BYTES.fim_ids) == (256, 257, (258, 259, 260))
    assert BYTES.vocab_size == 261 and BYTES.bos_id is None and BYTES.chat is None
    assert BYTES.decode([104, 257, 105, *range(256, 261)]) == "hi"
    assert BYTES.decode([0xFF, 65, 0xE2, 0x82]) == "\ufffdA\ufffd"


def test_half_of_a_surrogate_pair_is_refused():
    """Oracle: the message repeats the text."""
    with pytest.raises(ValueError, match="cannot encode 'a.ud800'"):
        BYTES.encode("a\ud800")
