"""The tokenizer inside a .gguf file, without PyTorch."""

import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import transformers

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer
from deepseek_jax.data.read_tokenizer import load_tokenizer
from tests.quick import others_slow

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "Naïve  users paid $1,072.50;\n\tisn't that so?<|im_end|>",
    "1234567890 12 + 7=19, 3.14159 and 2026-11-24 at 09:30",
    "x1y22z333, v2.0, #4, (5), -6, 7%",
    "  leading, trailing  ",
    "\n\n\ttabs\t\tand\r\nlines\n",
    "   \n  ",
    "",
    "日本語, 한국어, Ελληνικά, العربية, 😀👨‍👩‍👧 é",
    "<|im_start|>user\n12 * 3<|im_end|>\n<|endoftext|><repo_name>a/b<file_sep><im_start>",
    "I'll, we've, they'd, I'M, don't’t",
    "def f(x):\n    return {'a': [x ** 2, None]}  # 2\n",
    "\\frac{1}{2} \\boxed{42} <think>6</think> <answer>7</answer>",
)


@pytest.fixture(scope="module")
def theirs():
    path = smollm2_gguf()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(smollm2, theirs, text):
    """Oracle: transformers' own reading of the file, by way of PyTorch."""
    ids = theirs(text).input_ids
    assert smollm2.encode(text) == smollm2.chat(text).input_ids == ids
    assert smollm2.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_rendered_chat_is_that_of_transformers(smollm2, theirs):
    """Oracle: transformers' own reading of the file; with and without a system message."""
    user = {"role": "user", "content": "What is 12 + 7?"}
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user]):
        for whole in (True, False):
            ours, other = (
                t.apply_chat_template(messages, add_generation_prompt=whole)["input_ids"]
                for t in (smollm2.chat, theirs)
            )
            assert ours == other


def test_special_tokens_and_vocabulary_are_those_of_transformers(smollm2, theirs):
    """Oracle: transformers' own reading of the file, and by hand: id 2 ends a turn."""
    assert smollm2.chat.special_tokens_map == theirs.special_tokens_map
    assert smollm2.chat.get_vocab() == theirs.get_vocab()
    assert set(smollm2.chat.all_special_ids) == set(theirs.all_special_ids)
    assert (smollm2.eos_id, smollm2.pad_id, smollm2.bos_id) == (2, 2, None)
    assert smollm2.vocab_size == 49152


def test_a_digit_is_cut_off_before_the_white_space_ahead_of_it(smollm2):
    """Oracle: by hand, llama.cpp's rule: first every digit of any script, then GPT-2's expression."""
    spell = smollm2.chat.convert_ids_to_tokens
    assert spell(smollm2.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
    assert spell(smollm2.encode("\n\n1")) == ["ĊĊ", "1"]
    assert spell(smollm2.encode(" 3")) == ["Ġ", "3"]


def write_gguf(path, *, leave_out=(), **changed):
    """A .gguf file with a tokenizer of seven tokens and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    kinds = gguf.TokenType
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": ["<s>", "</s>", "a", "b", "ab", "1", "<a1>"],
        "token_type": [kinds.CONTROL] * 2 + [kinds.NORMAL] * 4 + [kinds.USER_DEFINED],
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": False,
    } | changed
    add = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32}
    for key in metadata.keys() - set(leave_out):
        value = metadata[key]
        add.get(type(value), writer.add_bool)(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_merges_control_and_user_defined_tokens_act_as_the_file_says(tmp_path):
    """Oracle: by hand; a user-defined token is found whole and, being text, is decoded too."""
    tokenizer = load_tokenizer(write_gguf(tmp_path / "a.gguf"))
    ids = [4, 5, 5, 6, 3, 2, 1]
    assert tokenizer.encode("ab11<a1>ba</s>") == ids
    assert tokenizer.decode(ids) == "ab11<a1>ba"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.chat) == (
        1,
        1,
        None,
        None,
    )


def test_bos_goes_first_where_the_file_says_so(tmp_path):
    """Oracle: by hand."""
    path = write_gguf(tmp_path / "a.gguf", add_bos_token=True)
    assert gguf_tokenizer(path)("ab").input_ids == [0, 4]
    assert load_tokenizer(path).bos_id == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(pre="llama-bpe"),
            r"a\.gguf: tokenizer.ggml.pre='llama-bpe' is not read, only 'smollm'",
        ),
        (dict(model="llama"), "tokenizer.ggml.model='llama' is not read, only 'gpt2'"),
        (dict(leave_out=["pre", "merges"]), "lacks .*ggml.pre, tokenizer.ggml.merges"),
        (dict(leave_out=["bos_token_id"], add_bos_token=True), "lacks .*ggml.bos_token_id"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, change, words):
    """Oracle: the message names what the file says and what is read."""
    with pytest.raises(ValueError, match=words):
        gguf_tokenizer(write_gguf(tmp_path / "a.gguf", **change))


WITHOUT_PYTORCH = """
import sys
sys.modules["torch"] = None
from deepseek_jax.checkpoint import load_gguf
from deepseek_jax.data.chat import render_prompt
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
tokenizer = load_tokenizer(smollm2_gguf())
assert len(render_prompt(tokenizer, "What is 2 + 3?", template="chat")) > 20
if sys.argv[1] == "weights":
    config, params = load_gguf(smollm2_gguf(), dtype="bfloat16")
    assert tokenizer.vocab_size == config.vocab_size == len(params["embedding"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", others_slow(["chat", "weights"], "chat"))
def test_a_gguf_file_is_read_without_pytorch(what):
    """Oracle: a process in which `import torch` fails; the tokenizer and its chat, and the weights."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, what], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
