"""The real tokenizer that several tests here read; loading it takes seconds, so once."""

import pytest

from deepseek_jax.data.tokenizer import load_tokenizer, smollm2_gguf


@pytest.fixture(scope="session")
def smollm2():
    return load_tokenizer(smollm2_gguf())
