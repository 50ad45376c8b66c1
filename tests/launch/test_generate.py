"""launch/generate.py as a user starts it; what it shares with launch/train.py is tested there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_another_recipes_config_is_one_message_and_leaves_nothing(tmp_path):
    """Oracle: the message, the exit status and the folder."""
    program, config = ROOT / "launch" / "generate.py", ROOT / "configs" / "sft_small.py"
    ended = subprocess.run(
        [sys.executable, program, f"--config={config}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.strip() == "error: config.recipe='sft' is for launch/train.py"
    assert not list(tmp_path.iterdir())
