"""launch/train.py --rehearse: runs on CPU devices that compute as TPUs and GPUs would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.errors import Fault
from deepseek_jax.models import build_model, forward, random_params
from deepseek_jax.ops import dot, grouped_matmul, low_rank
from deepseek_jax.ops.platform import FORMS, forms_taken, plain_forms
from deepseek_jax.ops.rehearsal import rehearse
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.reinforce.update import LARGEST_MEAN_GAP
from deepseek_jax.rollout import generate
from deepseek_jax.training.metrics import read_phases
from tests.conftest import COLLECTIVES_WAIT
from tests.recipes.small import run_recipe, small_config

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "launch" / "pods.md"
# {a run of configs/rehearsal.py: the machine}, in the order of the guide's table
RUNS = {
    "stage=pretrain,mesh=context,fp8": "v5p",
    "stage=pretrain,mesh=tensor,selection": "v5p",
    "stage=sft,mesh=tensor": "tpu7x",
    "stage=grpo,mesh=context,fp8,selection": "tpu7x",
    "stage=grpo,mesh=tensor": "v5p",
}


@pytest.fixture(autouse=True)
def this_machine_again():
    yield
    rehearse(None)


@pytest.mark.parametrize("machine", ["v5e", pytest.param("gpu", marks=pytest.mark.slow)])
def test_sampler_and_update_agree_where_default_products_round(machine, monkeypatch, tmp_path):
    """Oracle: the run's own limit of the gap between sampler and update, which the rounding of a default
    product passes at the first update.
    """
    rehearse(machine)
    run_recipe(grpo, small_config(), tmp_path / "exact")
    gaps = [
        r["sampler_gap_mean"]
        for r in read_phases(tmp_path / "exact" / "metrics.jsonl")["grpo"]
        if "sampler_gap_mean" in r
    ]
    assert len(gaps) == 2 and max(gaps) < 1e-6
    rehearse(machine)
    shutil.copytree(tmp_path / "exact" / "pretrain", tmp_path / "rounded" / "pretrain")
    for module in (dot, low_rank, grouped_matmul):
        monkeypatch.setattr(module, "precision_of", lambda x: None)
    with pytest.raises(Fault, match="at step 0 sampler_gap_mean is .*, above 1.0e-04"):
        run_recipe(grpo, small_config(), tmp_path / "rounded")


def launched_apart(folder, config, machine, *fields):
    """What a rehearsal on eight devices prints, in a process without conftest's flags: its emulated kernels
    would take minutes uncompiled.
    """
    flags = "--xla_force_host_platform_device_count=8", *COLLECTIVES_WAIT
    end = subprocess.run(
        [sys.executable, ROOT / "launch" / "train.py", f"--config={config}", *fields]
        + [f"--rehearse={machine}", f"--workdir={folder / 'run'}"],
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
    )
    assert end.returncode == 0, end.stderr
    return end.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arg", RUNS)
def test_whole_runs_take_the_kernels(arg, tmp_path):
    """Oracle: the table of launch/pods.md, which names the forms of each run."""
    out = launched_apart(tmp_path, f"{ROOT / 'configs' / 'rehearsal.py'}:{arg}", RUNS[arg])
    taken = re.search(r"that ran: (.*)", " ".join(out.split()))[1]
    for op, form in forms_of(arg):
        assert f"{op}={form}" in taken, taken


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["v5e", "gpu"])
@pytest.mark.parametrize("config", ["grpo_small", "tools_small"])
def test_the_first_commands_run_end_to_end(config, machine, tmp_path):
    """Oracle: exit status 0; the run's own limits, which float32 products that round pass at step 0."""
    fields = "--config.base.num_steps=60", "--config.num_steps=3", "--config.mesh={'data': 8}"
    out = launched_apart(tmp_path, config, machine, *fields)
    assert "complete" in out


@pytest.mark.slow
def test_kernels_score_and_choose_as_plain_forms_do():
    """Oracle: plain forms, of the same parameters in bfloat16: log-probabilities within the run's own limit
    of a gap; the greedy choice after each of 32 prefixes, but for logits that bfloat16 does not tell apart.
    """
    config = build_model(models.deepseek_v3_tiled())
    params, rng = random_params(config), np.random.default_rng(0)
    tokens = jnp.array(rng.integers(0, config.vocab_size, (1, 1152)), jnp.int32)
    prompts = [tokens[0, :n].tolist() for n in range(1, 33)]
    rehearse("v5p")

    def both():
        logits_btv = jax.jit(lambda p: forward(config, p, tokens).astype(jnp.float32))(params)
        rollout = generate(
            config, params, prompts, max_completion_length=96, temperature=0.0, slots=32
        )
        return jax.nn.log_softmax(logits_btv), rollout.completion_ids[:, 0]

    logprobs_btv, chosen = both()
    assert "attend=splash" in forms_taken() and "attend_latent=kernel" in forms_taken()
    jax.clear_caches()
    with plain_forms():
        plain_btv, plainly = both()
    gap_btv = np.abs(logprobs_btv - plain_btv)
    assert gap_btv.mean() < LARGEST_MEAN_GAP["bfloat16"]
    assert (chosen == plainly).mean() > 0.9


def forms_of(arg):
    """The (op, form)s of a run in the table of launch/pods.md."""
    (row,) = re.findall(rf"^\| `{re.escape(arg)}` \| [^|]+ \| (.*) \|$", GUIDE.read_text(), re.M)
    return [tuple(cell.split("=")) for cell in re.findall(r"`([^`]+)`", row)]


def test_every_kernel_runs_in_a_whole_run():
    """Oracle: the rows of FORMS that a TPU alone has; the machine of each run, in the guide."""
    found = {pair for arg in RUNS for pair in forms_of(arg)}
    own = {(op, by[kind]) for op, by in FORMS.items() for kind in ("tpu", "tpu7x") if kind in by}
    assert own - found == set()
    for arg, machine in RUNS.items():
        assert f"| `{arg}` | {machine} |" in GUIDE.read_text()
