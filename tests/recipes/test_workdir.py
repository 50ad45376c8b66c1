import contextlib
import json

import jax
import pytest
from ml_collections import ConfigDict

from deepseek_jax.checkpoint.folder import whole_folder
from deepseek_jax.data.stored import INCOMPLETE
from deepseek_jax.named_code import digest_of
from deepseek_jax.parallel import processes
from deepseek_jax.recipes import workdir
from deepseek_jax.recipes.owner import FIELDS
from deepseek_jax.recipes.workdir import CHECK, check_workdir, claim_workdir
from deepseek_jax.training.lineage import RECORD, run_stage


def config(**fields):
    return ConfigDict(dict(recipe="grpo", seed=0, rl=dict(lr=0.1, betas=(0.9, 0.95))) | fields)


def claim(folder, config, **how):
    """Begin a run there and end it."""
    with claim_workdir(folder, config, **how):
        pass


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_directory_is_claimed_with_its_config(tmp_path):
    """Oracle: config.json read back equals the config, and nothing else is there."""
    claim(tmp_path / "deep" / "run", config())
    saved = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert saved == {"recipe": "grpo", "seed": 0, "rl": {"lr": 0.1, "betas": [0.9, 0.95]}}
    assert len(contents(tmp_path)) == 1


def test_the_same_config_finds_its_directory_again(tmp_path):
    """Oracle: no error, and the file as it was."""
    claim(tmp_path, config())
    before = contents(tmp_path)
    claim(tmp_path, config())
    assert contents(tmp_path) == before


def test_code_that_has_changed_is_named_as_a_change_of_the_config(tmp_path, monkeypatch):
    """Oracle: the message, and the directory's bytes; the text as it was resumes."""
    monkeypatch.chdir(tmp_path)
    file, run = tmp_path / "my_rewards.py", tmp_path / "run"
    named = config().to_dict() | {"rewards": {"my_rewards.py:brief": 1.0}}
    named = ConfigDict(named, allow_dotted_keys=True)
    file.write_text("def brief(completion, example): return 1.0")
    recorded = lambda: {"code": {"my_rewards.py": digest_of("my_rewards.py:brief")}}  # noqa: E731
    claim(run, named, recorded=recorded())
    before = contents(run)
    assert json.loads((run / "config.json").read_text())["code"].keys() == {"my_rewards.py"}
    file.write_text("def brief(completion, example): return 2.0")
    with pytest.raises(ValueError, match=r"config.code.my_rewards.py: \"\w{16}\" -> \"\w{16}\""):
        claim(run, named, recorded=recorded())
    assert contents(run) == before
    file.write_text("def brief(completion, example): return 1.0")
    claim(run, named, recorded=recorded())


def test_another_config_is_refused_with_every_difference_and_nothing_is_touched(tmp_path):
    """Oracle: the differing fields by hand, and the directory's bytes."""
    claim(tmp_path, config(steps=5))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        claim(tmp_path, config(rl=dict(lr=0.2, betas=(0.9, 0.95)), name="new"))
    assert str(error.value).splitlines()[1:-1] == [
        '  config.name: absent -> "new"',
        "  config.rl.lr: 0.1 -> 0.2",
        "  config.steps: 5 -> absent",
    ]
    assert "--workdir" in str(error.value) and str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


def test_another_mesh_is_no_other_config(tmp_path):
    """Oracle: the new mesh in the file; another field is refused beside it, and named alone."""
    claim(tmp_path, config(mesh=dict(fsdp=8), xla_flags=""))
    claim(tmp_path, config(mesh=dict(data=4, expert=2), xla_flags="--flag"))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["mesh"] == dict(data=4, expert=2) and saved["xla_flags"] == "--flag"
    with pytest.raises(ValueError) as error:
        claim(tmp_path, config(mesh={}, xla_flags="", seed=1))
    assert str(error.value).splitlines()[1:-1] == ["  config.seed: 0 -> 1"]


def test_a_recipe_that_redoes_what_changed_takes_its_directory_over(tmp_path):
    """Oracle: the new config in the file; another recipe's directory is refused all the same."""
    claim(tmp_path, config(recipe="r1", steps=5), may_change=True)
    claim(tmp_path, config(recipe="r1", steps=6), may_change=True)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="belongs to another config"):
        claim(tmp_path, config(recipe="grpo", steps=6), may_change=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stage", ["base", "measured/students/qwen"])
def test_a_run_of_an_older_version_is_refused_and_left_as_it_is(tmp_path, stage):
    """Oracle: the file and the formats in the message, and the directory's bytes: also where
    another config could take the mark over.
    """
    claim(tmp_path, config(recipe="r1", steps=5), may_change=True)
    run_stage(tmp_path, stage, {"settings": 1}, lambda folder: (folder / "result").write_text("it"))
    path = tmp_path / stage / RECORD
    record = json.loads(path.read_text())
    claim(tmp_path, config(recipe="r1", steps=5), may_change=True)
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
        claim(tmp_path, config(recipe="r1", steps=6), may_change=True)
    said = str(refused.value)
    assert f"{path} has format 1, and this version writes format 2" in said and "--workdir" in said
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
    (tmp_path / "config.json.tmp").write_text('{"rec')
    claim(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_killed_process_left_of_its_last_save_is_removed(tmp_path):
    """Oracle: the files that are there: a folder that was not complete is gone, the others stay."""
    claim(tmp_path, config())
    with whole_folder(tmp_path / "stage" / "params") as partial:
        (partial / "array").write_text("whole")
    # As a process leaves it that is killed within the block
    partial.mkdir()
    (partial / "array").write_text("ha")
    claim(tmp_path, config())
    assert [path.name for path in (tmp_path / "stage").rglob("*")] == ["params", "array"]


def test_a_block_that_becomes_a_number_is_a_difference(tmp_path):
    """Oracle: the fields by hand."""
    claim(tmp_path, config(model={}))
    with pytest.raises(ValueError, match=r"config\.model: {} -> 1"):
        claim(tmp_path, config(model=1))


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
            check_workdir(tmp_path / place, config()) as folder,
        ):
            folder.mkdir()
            (folder / "built").write_text("data")
            if end is not None:
                raise end
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_check_leaves_a_run_as_it_is(tmp_path):
    """Oracle: its bytes, also where another config may take its directory over; what may not is refused."""
    claim(tmp_path, config())
    partial = tmp_path / "data" / f"x{INCOMPLETE.strip('*')}"
    partial.mkdir(parents=True)
    (partial / "half").write_text("half")
    before = contents(tmp_path)
    with check_workdir(tmp_path, config(seed=1), may_change=True):
        pass
    with pytest.raises(ValueError, match="belongs to another config"):
        with check_workdir(tmp_path, config(seed=1)):
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
        for name in ("data/corpus/1.0.0/texts", "judge/data/x", "text/stage.json"):
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
    """Oracle: refused as long as the first is at work, even with a config that may take the mark over."""
    with claim_workdir(tmp_path, config()):
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=f"another process is at work in {tmp_path}"):
            claim(tmp_path, config(seed=1), may_change=True)
        assert contents(tmp_path) == before
    claim(tmp_path, config(seed=1), may_change=True)


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

    for first, words in ((["theirs", None], place), ([None, "is busy"], "is busy")):
        gathering(first)
        with pytest.raises(ValueError, match=words):
            workdir._check_shared(tmp_path, None, None, lambda: None)
    gathering(["another", None])
    with pytest.raises(ValueError, match="of process 1 on b, 2 on "):
        workdir._check_shared(tmp_path, None, None, lambda: None)


def test_only_process_zero_writes(tmp_path, monkeypatch):
    """Oracle: an empty directory, where this process believes it is number 1."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    claim(tmp_path / "run", config())
    assert not list(tmp_path.iterdir())
