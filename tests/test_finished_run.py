"""The numbers that a finished run puts into configs/results, against the run's own files."""

import importlib
import json
import shutil

import numpy as np
import pytest

from deepseek_jax.evaluation.preference import pair_report
from deepseek_jax.recipes.distill.run import report_sweep as report_students
from deepseek_jax.recipes.experiment_file import set_field
from deepseek_jax.recipes.r1.findings import CLAIMS
from deepseek_jax.recipes.r1.findings import report_sweep as report_r1
from deepseek_jax.training.metrics import read_phases
from tests.benchmarks.finished_run import training_minutes
from tests.benchmarks.results import FOLDER, renew
from tests.recipes.small import LEARNS, longer_is_better, small_config

TINY = """
from tests.recipes.small import LEARNS, small_config

def get_config(arg):
    return small_config(**LEARNS)
"""
VERSION = "0123abc (2026-12-01)"
# By hand: one step of 6 s, ten of 3 s, four of 1.5 s: 42 s
METRICS = [
    {"step": 0, "phase": "first", "seconds": 6.0},
    {"step": 10, "phase": "first", "seconds": 3.0},
    {"step": 11, "phase": "first", "held_out_loss": 1.0},
    {"step": 3, "phase": "second", "seconds": 1.5},
]
MINUTES = 0.7


@pytest.fixture
def folder(tmp_path):
    """A copy of configs/results."""
    return shutil.copytree(FOLDER, tmp_path / "results")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def scores(**found):
    """The files of measurements: name -> what it found."""
    return {f"{name}/scores": content for name, content in found.items()}


def write_run(workdir, experiment, arg, files=None):
    """A finished run's config.json, metrics.jsonl and other files. experiment: a module of configs. files:
    path without .json -> content.
    """
    config = importlib.import_module(f"configs.{experiment}").get_config(arg)
    write(workdir / "config.json", json.loads(config.to_json()))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    for name, content in (files or {}).items():
        write(workdir / f"{name}.json", content)
    return workdir


def rows_of(folder, name, seed):
    rows = json.loads((folder / f"{name}.json").read_text())["rows"]
    return [row for row in rows if row["seed"] == seed]


@pytest.mark.slow
def test_a_grpo_runs_own_numbers_take_its_seeds_row(toys, tmp_path):
    """Oracle: the scores before and after, and metrics.jsonl, of a run at toy size."""
    workdir, folder = toys.run(small_config(**LEARNS), longer_is_better), tmp_path / "results"
    (tmp_path / "tiny.py").write_text(TINY)
    others = [{"seed": seed, "version": "old", "accuracy, sampled": 0.5} for seed in ("0", "1")]
    content = {"config": str(tmp_path / "tiny.py"), "command": "train", "rows": others}
    write(folder / "tiny.json", content)
    assert renew(workdir, VERSION, folder) == folder / "tiny.json"
    ours, other = json.loads((folder / "tiny.json").read_text())["rows"]
    assert other == others[1]
    files = [workdir / when / "scores.json" for when in ("before", "after")]
    measured = [json.loads(file.read_text()) for file in files]
    before, after = ({way: m["scores"] for way, m in each.items()} for each in measured)
    seconds = sum(
        r["seconds"] for steps in read_phases(workdir / "metrics.jsonl").values() for r in steps
    )
    assert ours.pop("version") == VERSION and ours.pop("seed") == "0"
    assert ours.pop("minutes") == pytest.approx(seconds / 60, abs=0.5)
    assert {name for name, _ in (cell.split(", ") for cell in ours)} == {
        name.replace("_", " ") for name in after["greedy"]
    }
    for cell, change in ours.items():
        name, way = cell.replace(" ", "_").split(",_")
        assert change == {"before": before[way][name], "after": after[way][name]}


def test_minutes_are_those_of_all_steps_of_all_phases(tmp_path):
    """Oracle: by hand, of METRICS."""
    assert training_minutes(write_run(tmp_path, "sft_small", None)) == MINUTES


def test_a_run_with_tools_gives_how_its_conversations_changed(tmp_path, folder):
    """Oracle: the numbers of the run's files, written by hand; the digests of its tools, which a run records
    in its config.json, are no fields of its config.
    """
    cells = {when: [x] * 3 for when, x in (("before", 0.25), ("after", 0.75))}
    ways = ("sampled", "greedy")
    files = {w: {way: {"scores": {"accuracy": cell}} for way in ways} for w, cell in cells.items()}
    run = write_run(tmp_path / "run", "tools_small", "seed=5", scores(**files))
    config = json.loads((run / "config.json").read_text())
    write(run / "config.json", config | {"code": {"deepseek_jax.worlds.calculator.tools": "0"}})
    lines = [
        {"step": step, "phase": "grpo", "seconds": 6.0, "turns": 1 + calls, "tool_calls": calls}
        for step, calls in enumerate((0.25, 0.5, 1.0))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    renew(run, VERSION, folder)
    (row,) = rows_of(folder, "tools_small", "5")
    assert row == {
        "seed": "5",
        "minutes": 0.3,
        "accuracy, sampled": cells,
        "accuracy, greedy": cells,
        "calls": {"before": 0.25, "after": 1.0},
        "turns": {"before": 1.25, "after": 2.0},
        "version": VERSION,
    }


def test_a_fine_tuning_run_gives_its_loss_and_answers(tmp_path, folder):
    """Oracle: the numbers of the run's files, written by hand."""
    found = {when: {"accuracy": [x, x, x]} for when, x in (("before", 0.25), ("after", 0.75))}
    files = {
        when: {
            "loss": {"loss": [loss, loss, loss], "tokens": 9, "conversations": 3},
            "answers": {"sampled": {"scores": found[when]}, "greedy": {"scores": found[when]}},
        }
        for when, loss in (("before", 2.0), ("after", 1.0))
    }
    run = write_run(tmp_path / "run", "sft_small", "seed=5", scores(**files))
    renew(run, VERSION, folder)
    (row,) = rows_of(folder, "sft_small", "5")
    assert row == {
        "seed": "5",
        "minutes": MINUTES,
        "accuracy, sampled": {"before": [0.25] * 3, "after": [0.75] * 3},
        "accuracy, greedy": {"before": [0.25] * 3, "after": [0.75] * 3},
        "held-out loss": {"before": [2.0] * 3, "after": [1.0] * 3},
        "version": VERSION,
    }
    assert len(rows_of(folder, "sft_small", "0")) == 1


def test_a_pre_training_run_gives_a_row_for_each_stage_and_its_drafts(tmp_path, folder):
    """Oracle: the numbers of the run's files, written by hand."""
    losses = {"before": [5.0] * 3, "after": [1.5] * 3}
    files = {f"{s}_{when}": losses[when] for s in ("stage_1", "stage_2_long") for when in losses}
    files["drafts"] = {"acceptance": 0.5, "tokens_per_step": 1.5}
    renew(write_run(tmp_path / "run", "pretrain_small", None, scores(**files)), VERSION, folder)
    short, long, drafts = rows_of(folder, "pretrain_small", "0")
    for row, (name, length) in ((short, ("stage_1", 256)), (long, ("stage_2_long", 1024))):
        assert (row["stage"], row["tokens a row"]) == (name, length)
        assert row["held-out loss"] == losses
    assert (drafts["drafts accepted"], drafts["tokens a step"]) == (0.5, 1.5)


@pytest.mark.parametrize("name", ["reward_model_small", "judge_small"])
def test_a_reward_models_run_gives_what_it_says_of_pairs(tmp_path, folder, name):
    """Oracle: evaluation.preference's report, as the recipes write it."""
    rng = np.random.default_rng(0)
    files = {
        when: pair_report(rng.normal(gain, 1, 50), rng.normal(0, 1, 50))
        for when, gain in (("before", 0), ("after", 1))
    }
    stage = name.removesuffix("_small")
    of_stage = {f"{stage}/{when}": found for when, found in files.items()}
    renew(write_run(tmp_path / "run", name, None, of_stage), VERSION, folder)
    (row,) = rows_of(folder, name, "0")
    for score, value in files["after"].items():
        assert row[score.replace("_", " ")] == {"before": files["before"][score], "after": value}


def sweep(workdir, experiment, seeds):
    """The runs of a finished sweep over seeds: folders."""
    runs = [write_run(workdir / f"seed={seed}", experiment, f"seed={seed}") for seed in seeds]
    complete = {run.name: json.loads((run / "config.json").read_text()) for run in runs}
    write(workdir / "complete.json", complete)
    return runs


def test_a_sweep_of_r1_gives_its_findings(tmp_path, folder):
    """Oracle: findings.json, as the recipe writes it of three runs with random scores."""
    runs, rng = sweep(tmp_path, "r1_small", range(3)), np.random.default_rng(0)
    for run in runs:
        for stage in ("base", "zero", "reasoning", "sft", "scenarios"):
            names = ("pass@1", "cons@k", "language", "length", "helpful")
            values = {score: rng.random(8).tolist() for score in names}
            write(run / "measured" / stage / "scores.json", {"k": 16, "values": values})
    report_r1(tmp_path, runs)
    renew(tmp_path, VERSION, folder)
    rows = rows_of(folder, "r1_small", "0, 1, 2")
    found = json.loads((tmp_path / "findings.json").read_text())
    assert [row["form"] for row in rows] == [".1%", ".1f", *[".1%"] * 8] and len(rows) == len(
        CLAIMS
    )
    for row, cells, finding in zip(rows, found["rows"], found["findings"], strict=True):
        assert [row["this"], row["that"]] == finding["means"]
        assert row["difference"] == finding["difference"] and row["margin"] == finding["margin"]
        assert row["each run"] == {"by_run": finding["by_run"]}
        assert (row["finding"], row["verdict"], row["version"]) == (cells[0], cells[-1], VERSION)
        assert row["minutes"] == {"low": MINUTES, "high": MINUTES}


def test_one_seed_does_not_replace_what_three_gave_together(tmp_path, folder):
    """Oracle: the words a reader needs; the file as it was."""
    before = (folder / "distill_study.json").read_text()
    run = write_run(tmp_path / "run", "distill_study", None, {"findings": []})
    with pytest.raises(ValueError, match="finished run"):
        renew(tmp_path, VERSION, folder)
    finding = dict(title="a", means=[0, 1], comparison=dict(difference=[0, 0, 0], p_value=1))
    write(run / "findings.json", [finding | dict(by_run=[0], compute=1, verdict="won")])
    with pytest.raises(
        ValueError, match=r"has the seeds 0, but a row of distill_study.json combines 0, 1, 2;"
    ):
        renew(run, VERSION, folder)
    assert (folder / "distill_study.json").read_text() == before


def test_a_sweep_of_the_study_gives_its_comparisons(tmp_path, folder):
    """Oracle: findings.json, as the recipe writes it of answers by hand."""
    runs = sweep(tmp_path, "distill_study", range(3))
    pairs = json.loads((runs[0] / "config.json").read_text())["comparisons"]
    arms = sorted({arm for pair in pairs.values() for arm in pair})
    for index, run in enumerate(runs):
        shares = np.random.default_rng(index).random((len(arms), 10))
        answers = {arm: {"sum": list(own)} for arm, own in zip(arms, shares, strict=True)}
        compute = {arm: 1.0 + i for i, arm in enumerate(arms)}
        write(run / "answers.json", dict(answers=answers, compute=compute, comparisons=pairs))
    report_students(tmp_path, runs)
    renew(tmp_path, VERSION, folder)
    found = json.loads((tmp_path / "findings.json").read_text())
    rows = rows_of(folder, "distill_study", "0, 1, 2")
    for row, finding in zip(rows, found, strict=True):
        assert (row["finding"], row["verdict"]) == (finding["title"], finding["verdict"])
        assert [row["this"], row["that"]] == finding["means"] and row["compute"] == finding[
            "compute"
        ]
        assert row["difference"] == finding["comparison"]["difference"]
        assert row["p value"] == finding["comparison"]["p_value"]


ARMS = "pretrain_small_optimizers"


def write_arms(workdir, folder, losses):
    """Write a finished sweep of the optimizers, and an empty result in place of the real one.

    losses: {(kind, seed): (of the first stage, of the second)}. Logged lines are METRICS, and a gap of each
    step in the phase `first`.
    """
    gaps = [{"step": step, "phase": "first", "gap": gap} for step, gap in enumerate((9, 2, 1, 3))]
    complete = {}
    for (kind, seed), stages in losses.items():
        config = importlib.import_module("configs.pretrain_small").get_config(f"seed={seed}")
        fields = {f"stages.{stage}.optimizer.kind": kind for stage in config.stages}
        for field, value in fields.items():
            set_field(config, field, value)
        names = ",".join(f"{name}={value}" for name, value in (fields | {"seed": seed}).items())
        run = workdir / names
        for stage, loss in zip(config.stages, stages, strict=True):
            for when, more in (("before", 3.0), ("after", 0.0)):
                found = [loss + more, loss - 1, loss + 1]
                write(run / f"{stage}_{when}" / "scores.json", found)
        lines = [json.dumps(line) + "\n" for line in METRICS + gaps]
        (run / "metrics.jsonl").write_text("".join(lines))
        complete[names] = json.loads(config.to_json())
        write(run / "config.json", complete[names])
    write(workdir / "complete.json", complete)
    result = {"config": "configs/pretrain_small.py", "sweep": "configs/sweeps/optimizers.py"}
    result |= {"command": "sweep", "rows": [], "logged": {"gap": ["first", "gap", 0.5]}}
    write(folder / f"{ARMS}.json", result)


LOSSES = {
    **{("adamw", seed): (2.0 + seed, 1.0) for seed in range(3)},
    **{("muon", seed): (1.5 + 2 * seed, 0.5) for seed in range(3)},
}


def test_a_sweeps_arms_are_means_over_seeds_and_differences_by_seed(tmp_path, folder):
    """Oracle: by hand. t(2) is 4.3027, and of 2, 3, 4 the standard error is 1 / sqrt(3); the differences
    -0.5, 0.5, 1.5 have the same; the gap is the mean of its last two lines of four.
    """
    write_arms(tmp_path / "sweep", folder, LOSSES)
    assert renew(tmp_path / "sweep", VERSION, folder) == folder / f"{ARMS}.json"
    rows = rows_of(folder, ARMS, "0, 1, 2")
    arms = ["kind=adamw", "kind=muon", "kind=muon less kind=adamw"]
    assert [row["arm"] for row in rows] == [arm for arm in arms for _ in range(2)]
    assert [row["stage"] for row in rows] == ["stage_1", "stage_2_long"] * 3
    assert [row["tokens a row"] for row in rows] == [256, 1024] * 3
    half = 4.3027 / 3**0.5
    for row, mean, scale in ((rows[0], 3.0, 1), (rows[2], 3.5, 2), (rows[4], 0.5, 1)):
        expected = [mean, mean - scale * half, mean + scale * half]
        assert row["held-out loss"]["after"] == pytest.approx(expected, abs=1e-4)
    assert rows[2]["held-out loss"]["before"][0] == 6.5
    assert rows[5]["held-out loss"] == {"before": [-0.5] * 3, "after": [-0.5] * 3}
    assert [row["gap"] for row in rows] == [[2.0] * 3] * 4 + [[0.0] * 3] * 2
    assert [row.get("form") for row in rows] == [None] * 4 + ["+"] * 2
    assert all(row["minutes"] == {"low": MINUTES, "high": MINUTES} for row in rows)


def test_a_sweep_with_runs_missing_is_refused(tmp_path, folder):
    """Oracle: the words a reader needs: the run that is missing, and one whose numbers are others."""
    write_arms(tmp_path, folder, LOSSES)
    complete = json.loads((tmp_path / "complete.json").read_text())
    first, second, *_ = complete
    del complete[first]
    complete[second]["data"]["num_held_out"] = 9
    write(tmp_path / "complete.json", complete)
    with pytest.raises(
        ValueError, match=f"{ARMS} has 6 runs, .* its numbers: {first}, {second}; run"
    ):
        renew(tmp_path, VERSION, folder)


def test_a_distillation_gives_each_student_beside_its_start(tmp_path, folder):
    """Oracle: by hand, means of the shares of answers.json; every interval holds its mean."""
    halves, ones = (
        {"sum": [0.0, 1.0], "countdown": [1.0, 1.0]},
        {"sum": [1.0] * 2, "countdown": [1.0] * 2},
    )
    names = {
        "teacher": ones,
        "start qwen": halves,
        "start llama": halves,
        "qwen": ones,
        "llama": ones,
    }
    files = {"answers": dict(answers=names, compute={}, comparisons={})}
    arg = "teacher=runs/r1_small/scenarios/params"
    renew(write_run(tmp_path / "run", "distill_small", arg, files), VERSION, folder)
    teacher, *students = rows_of(folder, "distill_small", "0")
    assert teacher["policy"] == "teacher" and teacher["right answers"][0] == 1.0
    assert {row["policy"] for row in students} == {"qwen", "llama"}
    for row in students:
        change = row["right answers"]
        assert (change["before"][0], change["after"][0]) == (0.75, 1.0)
        assert row["sum"]["before"][0] == 0.5
        assert all(low <= mean <= high for mean, low, high in change.values())


def test_a_run_with_other_numbers_is_refused(tmp_path, folder):
    """Oracle: the words a reader needs: the nearest experiment, and the field."""
    run = write_run(tmp_path / "run", "sft_small", None)
    config = json.loads((run / "config.json").read_text())
    write(run / "config.json", config | {"num_steps": 9})
    with pytest.raises(
        ValueError, match="the nearest is sft_small, .* differs in config.num_steps$"
    ):
        renew(run, VERSION, folder)


def test_fields_that_the_command_overrides_are_free(tmp_path, folder):
    """Oracle: GSM8K's command, whose data lie elsewhere on every machine."""
    found = {"sampled": {"scores": {"accuracy": [0.5] * 3}}}
    files = scores(before=found, after=found)
    run = write_run(tmp_path / "run", "grpo_smollm2", "gsm8k", files)
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = "/elsewhere/train.jsonl"
    write(run / "config.json", config)
    assert renew(run, VERSION, folder).name == "grpo_smollm2_gsm8k.json"
    (row,) = rows_of(folder, "grpo_smollm2_gsm8k", "0")
    assert row["accuracy, sampled"] == {"before": [0.5] * 3, "after": [0.5] * 3}


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl", "judge/after.json"])
def test_a_run_that_is_not_finished_is_named_with_what_it_lacks(tmp_path, folder, missing):
    """Oracle: the words a reader needs."""
    files = {"judge/before": {"pairs": 9}, "judge/after": {"pairs": 9}}
    run = write_run(tmp_path / "run", "judge_small", None, files)
    (run / missing).unlink()
    place, _, name = f"run/{missing}".rpartition("/")
    with pytest.raises(
        ValueError, match=f"{place} has no {name}; give the folder of a finished run"
    ):
        renew(run, VERSION, folder)
