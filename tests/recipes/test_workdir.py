import contextlib
import json

import jax
import pytest
from ml_collections import ConfigDict

from deepseek_jax.checkpoint.folder import whole_folder
from deepseek_jax.files import PARTIAL, whole_file
from deepseek_jax.named_code import digest_of
from deepseek_jax.parallel import processes
from deepseek_jax.recipes import workdir
from deepseek_jax.recipes.owner import FIELDS
from deepseek_jax.recipes.workdir import CHECK, check_workdir, claim_workdir
from deepseek_jax.training.lineage import FORMAT, RECORD, Inputs, run_stage


def config(**fields):
    return ConfigDict(dict(recipe="grpo", seed=0, rl=dict(lr=0.1, betas=(0.9, 0.95))) | fields)


def claim(folder, config, **how):
    """Begin a run there, which takes its config over, and end it: -> the differences."""
    with claim_workdir(folder, config, **how) as claimed:
        claimed.accept()
    return claimed.differences


def mark(folder):
    return json.loads((folder / "config.json").read_text())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_directory_is_claimed_with_its_config(tmp_path):
    """Oracle: config.json read back equals the config, and nothing else is there."""
    claim(tmp_path / "deep" / "run", config())
    saved = mark(tmp_path / "deep" / "run")
    assert saved == {"recipe": "grpo", "seed": 0, "rl": {"lr": 0.1, "betas": [0.9, 0.95]}}
    assert len(contents(tmp_path)) == 1


def test_the_same_config_finds_its_directory_again(tmp_path):
    """Oracle: no difference, and the file as it was."""
    assert claim(tmp_path, config()) == []
    before = contents(tmp_path)
    assert claim(tmp_path, config()) == []
    assert contents(tmp_path) == before


def test_code_that_has_changed_is_named_as_a_change_of_the_config(tmp_path, monkeypatch):
    """Oracle: the difference, and the digest in the mark; the text as it was is no difference."""
    monkeypatch.chdir(tmp_path)
    file, run = tmp_path / "my_rewards.py", tmp_path / "run"
    named = config().to_dict() | {"rewards": {"my_rewards.py:brief": 1.0}}
    named = ConfigDict(named, allow_dotted_keys=True)

    def recorded():
        return {"code": {"my_rewards.py": digest_of("my_rewards.py:brief")}}

    file.write_text("def brief(completion, example): return 1.0")
    first = recorded()
    claim(run, named, recorded=first)
    assert mark(run)["code"] == first["code"]
    before = contents(run)
    file.write_text("def brief(completion, example): return 2.0")
    with claim_workdir(run, named, recorded()) as claimed:
        pass
    old, new = first["code"]["my_rewards.py"], recorded()["code"]["my_rewards.py"]
    assert claimed.differences == [f'config.code.my_rewards.py: "{old}" -> "{new}"']
    assert contents(run) == before
    file.write_text("def brief(completion, example): return 1.0")
    assert claim(run, named, recorded=recorded()) == []


def test_another_config_has_every_difference_named_and_is_the_marks_once_it_is_accepted(tmp_path):
    """Oracle: the differing fields by hand; the directory's bytes before, the new config after."""
    claim(tmp_path, config(steps=5))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before, other = contents(tmp_path), config(rl=dict(lr=0.2, betas=(0.9, 0.95)), name="new")
    with claim_workdir(tmp_path, other) as claimed:
        pass
    assert claimed.differences == [
        'config.name: absent -> "new"',
        "config.rl.lr: 0.1 -> 0.2",
        "config.steps: 5 -> absent",
    ]
    assert contents(tmp_path) == before
    claim(tmp_path, other)
    assert mark(tmp_path) == json.loads(other.to_json())
    after = contents(tmp_path)
    assert after.pop(tmp_path / "config.json") != before.pop(tmp_path / "config.json")
    assert after == before


def test_another_mesh_is_no_difference(tmp_path):
    """Oracle: the new mesh in the file; another field beside it is named alone."""
    claim(tmp_path, config(mesh=dict(fsdp=8), xla_flags=""))
    moved = config(mesh=dict(data=4, expert=2), xla_flags="--flag")
    assert claim(tmp_path, moved) == []
    assert mark(tmp_path)["mesh"] == dict(data=4, expert=2)
    assert mark(tmp_path)["xla_flags"] == "--flag"
    assert claim(tmp_path, config(mesh={}, xla_flags="", seed=1)) == ["config.seed: 0 -> 1"]


@pytest.mark.parametrize(
    "other, recorded, words",
    [
        (dict(recipe="r1"), {}, 'config.recipe: "grpo" -> "r1"'),
        ({}, {"rehearsed": "v5e"}, 'config.rehearsed: absent -> "v5e"'),
    ],
)
def test_the_directory_of_another_recipe_or_of_a_rehearsal_is_refused(
    tmp_path, other, recorded, words
):
    """Oracle: the differing fields by hand, other fields among them, and the directory's bytes."""
    claim(tmp_path, config(steps=5))
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        claim(tmp_path, config(steps=6, **other), recorded=recorded)
    first, *fields, last = str(error.value).splitlines()
    assert first == f"{tmp_path} belongs to another config, and is left as it is:"
    assert fields == [f"  {words}", "  config.steps: 5 -> 6"] and "--workdir" in last
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stage", ["base", "measured/students/qwen"])
def test_a_run_of_an_older_version_is_refused_and_left_as_it_is(tmp_path, stage):
    """Oracle: the file and the formats in the message, and the directory's bytes."""
    claim(tmp_path, config(recipe="r1", steps=5))
    made = Inputs({"settings": 1})
    run_stage(tmp_path, stage, made, lambda folder: (folder / "result").write_text("it"))
    path = tmp_path / stage / RECORD
    record = json.loads(path.read_text())
    claim(tmp_path, config(recipe="r1", steps=5))
    # Records of the first format had no such field
    del record["format"]
    path.write_text(json.dumps(record))
    # What a killed run left of a save
    with whole_folder(tmp_path / stage / "params") as partial:
        pass
    partial.mkdir()
    (partial / "array").write_text("ha")
    before = contents(tmp_path)
    with pytest.raises(ValueError) as refused:
        claim(tmp_path, config(recipe="r1", steps=6))
    said = str(refused.value)
    words = f"{path} has format 1, and this version writes format {FORMAT}"
    assert words in said and "--workdir" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("notes.txt", "is not empty"),
        ("inner/notes.txt", "is not empty"),
        ("../run", "cannot be a directory: .*File exists"),
    ],
)
def test_a_directory_of_something_else_is_refused_and_left_untouched(tmp_path, name, words):
    """Oracle: the message names the flag, and the bytes stay; a file in the directory's place too."""
    file = (tmp_path / "run" / name).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"--workdir={tmp_path / 'run'} {words}"):
        claim(tmp_path / "run", config())
    assert contents(tmp_path) == before


def test_a_claim_that_was_cut_short_can_be_made_again(tmp_path):
    """Oracle: config.json alone, though a half-written one lay there."""
    (tmp_path / f".config.json{PARTIAL}0").write_text('{"rec')
    claim(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_killed_process_left_of_its_last_save_is_removed(tmp_path):
    """Oracle: the files that are there: a folder and a file that were not complete are gone, others stay."""
    claim(tmp_path, config())
    with whole_folder(tmp_path / "stage" / "params") as partial:
        (partial / "array").write_text("whole")
    # As a process leaves it that is killed within the block
    partial.mkdir()
    (partial / "array").write_text("ha")
    with whole_file(tmp_path / "stage" / "scores.json") as partial:
        partial.write_text("[1]")
    partial.write_text("[")
    claim(tmp_path, config())
    left = {path.name for path in (tmp_path / "stage").rglob("*")}
    assert left == {"params", "array", "scores.json"}


def test_a_block_that_becomes_a_number_is_a_difference(tmp_path):
    """Oracle: the fields by hand."""
    claim(tmp_path, config(model={}))
    assert claim(tmp_path, config(model=1)) == ["config.model: {} -> 1"]


def test_a_failed_start_gives_the_directory_back(tmp_path):
    """Oracle: another config may then claim the name."""
    with pytest.raises(KeyError), claim_workdir(tmp_path / "run", config()):
        raise KeyError("a field")
    assert not contents(tmp_path)
    claim(tmp_path / "run", config(seed=1))
    assert contents(tmp_path)


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
def test_a_check_leaves_nothing_of_a_directory_that_was_not_there(tmp_path, end):
    """Oracle: by hand: no folder, its parents included, however the check ends; one that was there stays."""
    (tmp_path / "there").mkdir()
    for place in ("runs/deep/run", "there"):
        with (
            contextlib.suppress(end or OSError),
            check_workdir(tmp_path / place, config()) as (folder, _),
        ):
            folder.mkdir()
            (folder / "built").write_text("data")
            if end is not None:
                raise end
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_check_leaves_a_run_as_it_is(tmp_path):
    """Oracle: its bytes, and the difference of another config; another recipe is refused."""
    claim(tmp_path, config())
    partial = tmp_path / "data" / f".x{PARTIAL}0"
    partial.mkdir(parents=True)
    (partial / "half").write_text("half")
    before = contents(tmp_path)
    with check_workdir(tmp_path, config(seed=1)) as (_, claimed):
        assert claimed.differences == ["config.seed: 0 -> 1"]
    with pytest.raises(ValueError, match="belongs to another config"):
        with check_workdir(tmp_path, config(recipe="r1")):
            pass
    assert contents(tmp_path) == before


def test_what_a_killed_check_left_is_in_the_way_of_no_run(tmp_path):
    """Oracle: by hand: the folder of a check, which another config's run removes."""
    (tmp_path / CHECK).mkdir()
    (tmp_path / CHECK / "half").write_text("half")
    with check_workdir(tmp_path, config()):
        pass
    (tmp_path / CHECK).mkdir()
    claim(tmp_path, config(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_start_that_fails_after_it_built_data_gives_the_directory_back(tmp_path):
    """Oracle: an empty directory, which a corrected config can claim; empty folders go too."""
    with pytest.raises(ValueError, match="no such file"), claim_workdir(tmp_path, config()):
        for name in ("data/corpus/1.0.0/texts", "judge/data/x", "text/stage.json", "run.json"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("built")
        (tmp_path / "tensorboard").mkdir()
        raise ValueError("no such file")
    assert not list(tmp_path.iterdir())
    claim(tmp_path, config(seed=1))


@pytest.mark.parametrize("left", ["in an earlier run", "before it failed"])
def test_a_directory_with_results_is_not_given_back(tmp_path, left):
    """Oracle: its files by name."""
    if left == "in an earlier run":
        claim(tmp_path, config())
    with pytest.raises(KeyError), claim_workdir(tmp_path, config()):
        if left == "before it failed":
            (tmp_path / "metrics.jsonl").write_text("{}\n")
        raise KeyError("a field")
    assert (tmp_path / "config.json").exists()


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path):
    """Oracle: refused as long as the first is at work, with its own config and with another one."""
    with claim_workdir(tmp_path, config()):
        before = contents(tmp_path)
        for seed in (0, 1):
            with pytest.raises(ValueError, match=f"another process is at work in {tmp_path}"):
                claim(tmp_path, config(seed=seed))
        assert contents(tmp_path) == before
    claim(tmp_path, config(seed=1))


def test_a_process_that_does_not_share_the_directory_is_named_to_all(tmp_path, monkeypatch):
    """Oracle: by hand, the answers of three processes, of which 1 sees nothing, as process 2 gathers them;
    and the outcome of process 0, which all raise.
    """
    (tmp_path / "owner.json").write_text(json.dumps(dict.fromkeys(FIELDS, "theirs")))
    monkeypatch.setattr(processes, "first_process", lambda: False)
    monkeypatch.setattr(workdir, "SHARED_SECONDS", 0.0)
    place = "--workdir=/shared of process 0 on a is not the directory of process 1 on b: "

    def gathering(first):
        answers = iter([[first], None])

        def from_each(value):
            if (known := next(answers)) is not None:
                return known
            return [[True, "a", "/shared", None], [False, "b", "/own", None], value]

        monkeypatch.setattr(processes, "from_each", from_each)

    for first, words in ((["theirs", None, []], place), ([None, "is busy", []], "is busy")):
        gathering(first)
        with pytest.raises(ValueError, match=words):
            workdir._check_shared(tmp_path, None, None, [], lambda: None)
    gathering(["another", None, []])
    with pytest.raises(ValueError, match="of process 1 on b, 2 on "):
        workdir._check_shared(tmp_path, None, None, [], lambda: None)


def test_all_processes_know_the_differences_that_the_first_one_sees(tmp_path, monkeypatch):
    """Oracle: by hand, as process 1 gathers them."""
    (tmp_path / "owner.json").write_text(json.dumps(dict.fromkeys(FIELDS, "theirs")))
    monkeypatch.setattr(processes, "first_process", lambda: False)
    answers = iter([[["theirs", None, ["config.seed: 0 -> 1"]]], [[True, "a", "/shared", None]]])
    monkeypatch.setattr(processes, "from_each", lambda value: next(answers))
    found = workdir._check_shared(tmp_path, None, None, [], lambda: None)
    assert found == ["config.seed: 0 -> 1"]


def test_only_process_zero_writes(tmp_path, monkeypatch):
    """Oracle: an empty directory, where this process believes it is number 1."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    claim(tmp_path / "run", config())
    assert not list(tmp_path.iterdir())
