"""The real tokenizers that several tests here read; loading one takes seconds, so once."""

import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.tokenizer import deepseek_tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def smollm2():
    return load_tokenizer(smollm2_gguf())


@pytest.fixture(scope="session")
def deepseek():
    return deepseek_tokenizer()
