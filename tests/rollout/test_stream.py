"""Answers token by token, against whole answers of the engine."""

import itertools

import jax
import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import engine, generate
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.stream import stream, text_pieces
from tests.compilations import compilations
from tests.quick import others_slow
from tests.tiny import CONFIGS, VOCAB, tiny_model

RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(0, VOCAB, length).tolist() for length in (3, 14, 33)]
EOS = (3, 11, 19)
LENGTH = 12


def whole(kind, prompt, sampling, seed=0):
    """The tokens of one completion, by the engine."""
    rollout = generate(
        *tiny_model(kind),
        [prompt],
        max_completion_length=LENGTH,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        eos_ids=EOS,
        seed=seed,
    )
    return rollout.completion_ids[0][rollout.completion_mask[0]].tolist()


def streamed(kind, prompt, sampling, seed=0, length=LENGTH):
    model = tiny_model(kind)
    tokens = stream(*model, prompt, sampling, max_completion_length=length, eos_ids=EOS, seed=seed)
    return list(tokens)


@pytest.mark.parametrize("kind", others_slow(CONFIGS, "mla_moe"))
def test_tokens_come_one_by_one_as_the_engine_samples_them(kind):
    """Oracle: generation.generate, greedy and sampled, of prompts of several lengths."""
    for prompt, sampling in itertools.product(PROMPTS, (Sampling(0.0), Sampling(0.8, 0.9))):
        assert streamed(kind, prompt, sampling, 5) == whole(kind, prompt, sampling, 5)


@pytest.mark.slow
def test_a_mesh_gives_the_same_tokens():
    """Oracle: a single device."""
    alone = streamed("mla_moe", PROMPTS[0], Sampling(0.8), 2)
    with jax.set_mesh(make_mesh(data=-1, expert=2)):
        assert streamed("mla_moe", PROMPTS[0], Sampling(0.8), 2) == alone


def test_caches_that_grow_on_the_way_change_nothing(monkeypatch):
    """Oracle: the engine with room from the start."""
    expected = whole("gqa", PROMPTS[1], Sampling(0.8), 1)
    monkeypatch.setattr(engine, "FIRST_ROOM", 2)
    monkeypatch.setattr(engine, "GROWTH", 2)
    assert len(expected) > 2 and streamed("gqa", PROMPTS[1], Sampling(0.8), 1) == expected


def test_a_conversation_that_grows_compiles_at_every_doubling_alone():
    """Oracle: what JAX is asked to compile: prompts of 17 to 32 tokens have one size."""
    prompts = [[1] * length for length in (17, 18, 25, 32)]
    counts = []
    for prompt in prompts:
        with compilations() as compiled:
            streamed("gqa", prompt, Sampling(0.0))
        counts.append(len(compiled))
    assert counts[0] and counts[1:] == [0, 0, 0]


def test_an_answer_ends_with_the_positions_of_the_model():
    """Oracle: by hand: 128 positions after 120 tokens of prompt leave 8, and after 128 none."""
    config, params = tiny_model("gqa")
    tokens = stream(config, params, [1] * 120, Sampling(0.0), max_completion_length=50, seed=0)
    assert len(list(tokens)) == 8
    tokens = stream(config, params, [1] * 128, Sampling(0.0), max_completion_length=50, seed=0)
    with pytest.raises(ValueError, match=r"^prompt 0 has 128 tokens; .*allows 127"):
        next(tokens)


def test_the_pieces_of_a_text_are_whole_characters():
    """Oracle: the text itself, whose characters have one to four bytes, a byte a token; and what decode gives
    for a character that the end cuts off.
    """
    tokenizer, text = byte_tokenizer(), "aé€😀\ufffd, b😀"
    ids = tokenizer.encode(text)
    pieces = list(text_pieces(tokenizer, [*ids, tokenizer.eos_id]))
    assert len(pieces) == len(ids) + 2 and "".join(pieces) == text
    assert [piece for piece in pieces if piece][:4] == ["a", "é", "€", "😀"]
    cut = list(text_pieces(tokenizer, ids[:-1]))
    assert "".join(cut) == tokenizer.decode(ids[:-1]) and "\ufffd" in cut[-1]
