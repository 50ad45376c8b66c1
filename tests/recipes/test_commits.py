"""Names on the hub in a config: the run records their commits, and a later start reads the same files."""

import json

import pytest
from ml_collections import ConfigDict

from deepseek_jax.data.questions import read_questions
from deepseek_jax.recipes.commits import with_commits
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from deepseek_jax.recipes.experiment import opened
from deepseek_jax.recipes.workdir import MARKER, claim_workdir, read_mark
from deepseek_jax.settings import build
from deepseek_jax.synthesis.settings import KeepSettings
from tests.hub_server import served_hub, used_here
from tests.recipes.small import small_config


@pytest.fixture
def hub(tmp_path):
    with served_hub() as hub, used_here(hub, tmp_path / "home"):
        yield hub


def push(hub, answer):
    """A commit of one question with this answer."""
    line = json.dumps({"question": "What is 2 + 3?", "answer": answer})
    return hub.push("org/sums", {"train.jsonl": line}, kind="dataset")


def config_of(path):
    config = small_config()
    config.data.path = path
    return config


def answers(config, folder):
    """What the questions of this config's run in a folder have as answers."""
    return [e["answer"] for e in read_questions(opened(config, folder).settings.data.path)]


def test_a_run_that_resumes_reads_the_commit_that_it_began_with(hub, tmp_path):
    """Oracle: the answers of the first commit, after the branch has moved; another run reads the second."""
    config, folder = config_of("org/sums"), tmp_path / "run"
    commit = push(hub, "5")
    found = opened(config, folder)
    assert found.recorded["hub"] == {"dataset": {"org/sums": f"org/sums@{commit}"}}
    with claim_workdir(folder, config, recorded=found.recorded):
        pass
    push(hub, "6")
    assert answers(config, folder) == ["5"] and answers(config, tmp_path / "other") == ["6"]
    # The mark has the name as it was given, so that another revision is another config
    mark, commits = read_mark(folder)
    assert mark["data"]["path"] == "org/sums" and commits == found.recorded["hub"]
    moved = config_of("org/sums@other")
    hub.push("org/sums", {"train.jsonl": "{}"}, kind="dataset", revision="other")
    again = opened(moved, folder)
    with claim_workdir(folder, moved, recorded=again.recorded) as claim:
        assert 'config.data.path: "org/sums" -> "org/sums@other"' in claim.differences


def test_a_config_without_names_on_the_hub_asks_nobody(hub, tmp_path):
    """Oracle: the hub's requests, and the mark, which is the config alone."""
    config = config_of(None)
    found = opened(config, tmp_path / "run")
    with claim_workdir(tmp_path / "run", config, recorded=found.recorded):
        pass
    assert not hub.requests and not any(found.recorded.values())
    assert json.loads((tmp_path / "run" / MARKER).read_text()) == json.loads(config.to_json())


def test_names_in_lists_get_their_commits_and_paths_stay(hub, tmp_path):
    """Oracle: by hand."""
    commit = push(hub, "5")
    model = hub.push("org/model", {"config.json": "{}"})
    fields = dict(recipe="evaluate", checkpoint="org/model", data=("arithmetic", "org/sums"))
    config = ConfigDict(fields)
    settings = build(EvaluateSettings, config, "config")
    found, commits = with_commits(config, settings, {})
    assert found.data == ("arithmetic", f"org/sums@{commit}")
    assert found.checkpoint == f"org/model@{model}" and set(commits) == {"model", "dataset"}
    assert config.to_dict() == fields


def test_a_name_of_a_model_and_of_data_has_a_commit_of_each(hub):
    """Oracle: by hand: the hub has two repositories of that name."""
    data = push(hub, "5")
    model = hub.push("org/sums", {"config.json": "{}"})
    config = ConfigDict(dict(recipe="evaluate", checkpoint="org/sums", data=("org/sums",)))
    found, _ = with_commits(config, build(EvaluateSettings, config, "config"), {})
    assert found.checkpoint == f"org/sums@{model}" and found.data == (f"org/sums@{data}",)


def test_evaluation_sets_that_decontaminate_get_their_commits(hub):
    """Oracle: by hand; held_out is no name on the hub, and a split stands after a revision."""
    commit = push(hub, "5")
    names = ("held_out", "org/sums", "pages@test", "org/sums@main@test")
    fields = dict(at_least={}, max_per_prompt=1, decontaminate=names)
    config = ConfigDict(fields)
    found, commits = with_commits(config, build(KeepSettings, config, "config.keep"), {})
    assert found.decontaminate == ("held_out", f"org/sums@{commit}", *names[2:])
    assert commits == {"dataset": {"org/sums": f"org/sums@{commit}"}}


def test_a_name_that_is_not_there_is_told_with_its_field(hub, tmp_path):
    """Oracle: the message."""
    with pytest.raises(ValueError, match="^config.data.path: .*org/nothing"):
        opened(config_of("org/nothing"), tmp_path / "run")
