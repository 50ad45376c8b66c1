"""Every program takes ~ for the home folder, wherever it takes a path."""

import shutil

import pytest

from tests.in_process import launched
from tests.quick import others_slow
from tests.reliability.bad_checkpoints import GOOD, TUNE
from tests.reliability.goods import goods, swept
from tests.reliability.test_bad_input import arguments

CASES = [
    TUNE.replace("=model", "=~/model").replace("=good", "=~/good")
    + " --config.rewards={'correct':1.0} --check",
    "train pretrain_small --config.mesh={'data':4,'tensor':2} --config.data.sources=['~/pages'] "
    "--config.data.weights=[1.0] --config.data.num_held_out=20 --config.data.tokenizer=~/model "
    "--config.data.fim_rate=0.0 --config.data.eval_batches=2 --config.stages.stage_1.batch_size=8 "
    "--config.stages.stage_1.sequence_length=8 --config.stages.stage_2_long.sequence_length=8 --check",
    "convert --from=~/model --to=~/made",
    "sweep sft_small --sweep=~/sweep.py --dry_run",
    "train sft_small --check",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    goods(folder)
    GOOD(folder, folder)
    swept("[{'seed': 1}]")(folder, folder)
    return folder


@pytest.mark.parametrize("line", others_slow(CASES, CASES[0], *CASES[2:]))
def test_no_program_makes_a_folder_of_the_name_of_a_home(line, home, tmp_path, monkeypatch):
    """Oracle: exit status 0, what it leaves in the home folder, which a check does not, and nothing in the
    working one.
    """
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    program, given = arguments(line)
    shutil.rmtree(home / "made", ignore_errors=True)
    given = [each.replace("--workdir=w", "--workdir=~/made") for each in given]
    end = launched(program, *given)
    assert end.status == 0, end.err
    assert not list(tmp_path.iterdir())
    assert (home / "made").is_dir() == (program == "convert")
    if program == "sweep":
        assert f"--workdir={home}/made/seed=1" in end.out
