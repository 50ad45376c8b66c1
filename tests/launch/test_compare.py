"""launch/compare.py as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import distill_small
from deepseek_jax.costs.chips import CHIPS, DEVICES
from deepseek_jax.models import build_model, count_params
from launch import compare
from launch.compare import SMALL, check_workload, named_models
from tests.in_process import launched

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "compare.py"


@pytest.mark.slow
def test_models_are_compared():
    """Oracle: SmolLM2-135M's published count; its cache, 30 layers of 3 heads of 64, twice, in bfloat16; and
    its batch 1 on 819 GB/s: 2 B a weight and 128 tokens of cache.
    """
    models = "--models=smollm2_135m,deepseek_v3_tiny"
    done = launched("compare", models, "--tpu=v5e", "--context_length=128", "--batch_size=4")
    assert done.status == 0, done.err
    cells = re.findall(r"^smollm2_135m +(.*)$", done.out, re.MULTILINE)
    assert cells[0].split()[0] == "134,515,008"
    assert cells[0].split()[-1] == f"{30 * 2 * 3 * 64 * 2:,}"
    bound = 819e9 / (2 * 134_515_008 + 128 * 23_040)
    assert cells[1].split()[:3] == ["1", "1", f"{bound:,.1f}"]


def test_nothing_is_said_of_accelerators_that_this_machine_lacks():
    """Oracle: stderr is empty, in the environment of a user who has not chosen a platform."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, SCRIPT, "--models=smollm2_135m"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""


def test_a_mistake_is_one_message_and_exit_status_two():
    """Oracle: the words a reader needs, no traceback."""
    done = launched("compare", "--models", "qwen2_tiny", "more")
    assert done.status == 2 and done.err == "error: more is not a flag; use --FLAG=VALUE\n"
    done = launched("compare", "--tpu=v5")
    assert done.status == 2 and "Traceback" not in done.err
    assert "--tpu=v5 is not a known chip; did you mean v5p?" in done.err and "tpu7x" in done.err


def test_mistakes_name_what_is_allowed():
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="deepseek_r1 is not in .*; did you mean deepseek_v3"):
        named_models(["deepseek_r1"])
    models = named_models(["deepseek_v3_tiny"])
    with pytest.raises(ValueError, match="--context_length=512 is more than the 256 of deepseek"):
        check_workload(models, 1, 512)
    with pytest.raises(ValueError, match="--batch_size=0 must be at least 1"):
        check_workload(models, 0, 128)


def test_what_is_measured_is_the_small_teacher_and_its_students():
    """Oracle: configs/distill_small.py, whose vocabulary is larger."""
    config = distill_small.get_config("teacher=made")
    models = [config.teacher.model, *(start.model for start in config.starts.values())]
    ours = {(m.model_type, m.hidden_size) for m in named_models(SMALL).values()}
    assert ours == {(m.model_type, m.hidden_size) for m in map(build_model, models)}


@pytest.mark.slow
def test_the_small_models_are_timed_in_turn(monkeypatch):
    """Oracle: their parameters, and a speed above 0 of each; the first's ratio is 1."""
    monkeypatch.setattr(compare, "NEW_TOKENS", 4)
    monkeypatch.setattr(compare, "REPEATS", 1)
    models = named_models(SMALL)
    table = compare.measured(models)
    names, parameters, _, speeds, ratios = (list(column.cells) for column in table.columns)
    assert names == list(SMALL)
    assert parameters == [f"{count_params(config):,}" for config in models.values()]
    assert all(float(speed.replace(",", "")) > 0 for speed in speeds) and float(ratios[0]) == 1


def test_a_device_is_its_share_of_a_chip():
    """Oracle: TPU7x by hand: two devices of 96 GiB and 3,690 GB/s; a v5p is one."""
    half = DEVICES["TPU7x"]
    assert half.hbm_bytes == 96 * 2**30 and half.hbm_bytes_per_second == 3690e9
    assert half.flops_per_second == 2307e12 / 2
    assert DEVICES["TPU v5"] == CHIPS["v5p"]
