"""launch/generate.py as a user starts it; what it shares with launch/train.py is tested there."""

import contextlib
from pathlib import Path

from tests.in_process import launched

ROOT = Path(__file__).resolve().parents[2]


def test_another_recipes_config_is_one_message_and_leaves_nothing(tmp_path):
    """Oracle: the message, the exit status and the folder."""
    with contextlib.chdir(tmp_path):
        end = launched("generate", f"--config={ROOT}/configs/sft_small.py")
    assert (
        end.status == 2 and end.err.strip() == "error: config.recipe='sft' is for launch/train.py"
    )
    assert not list(tmp_path.iterdir())
