"""Reads the results of a finished run from the files in its work directory.

Minutes are those of the training steps alone, from metrics.jsonl.
"""

import json
import math

import numpy as np

from deepseek_jax.evaluation import mean_interval, share_interval
from deepseek_jax.recipes.r1.scores import FORMS
from deepseek_jax.recipes.stage import SCORES
from deepseek_jax.recipes.workdir import MARKER, REHEARSED, read_mark
from deepseek_jax.training.metrics import read_phases
from tests.benchmarks.run_config import experiment_of, sweep_of

WHEN = "before", "after"
# What the tables call the policies of R1's stages
POLICIES = dict(base="base", zero="R1-Zero", cold_start="Dev1", reasoning="Dev2", sft="Dev3")
POLICIES |= dict(scenarios="R1", distilled="R1, distilled")
POLICIES |= dict(reasoning_teacher="teacher of reasoning", general_teacher="general teacher")
SWEEP = "complete.json"  # written by launch/sweep.py: name of a run -> its config


def read(workdir, results):
    """(experiment's name, rows) of a finished run or of a sweep.

    results: name -> content of configs/results/NAME.json. Raises ValueError for a folder without a run, an
    unfinished run, and a run whose config is not one of the experiments'.
    """
    if (workdir / SWEEP).exists():
        complete = _json(workdir / SWEEP)
        name, runs = sweep_of(complete, results)
        if name is not None:
            return name, _arms(workdir, runs, results[name].get("logged", {}))
        runs = [workdir / name for name in complete]
    else:
        runs = [workdir]
    # The digests of a run's own code are no fields of its config
    for run in runs:
        if machine := _json(run / MARKER).get(REHEARSED):
            raise ValueError(f"{run} is a rehearsal of {machine}; give the folder of a run")
    configs = [read_mark(run)[0] for run in runs]
    names = {experiment_of(config, results) for run, config in zip(runs, configs, strict=True)}
    if len(names) > 1:
        raise ValueError(f"{workdir} has runs of several experiments: {', '.join(sorted(names))}")
    name, recipe = names.pop(), configs[0]["recipe"]
    if recipe == "r1":
        return name, _with_facts(runs, configs, _claims(workdir))
    if configs[0].get("comparisons"):
        return name, _with_facts(runs, configs, _comparisons(workdir))
    rows, changing = [], results[name].get("changing", {})
    for run, config in zip(runs, configs, strict=True):
        own = {column: _changed(run, *of) for column, of in changing.items()}
        made = [row | own for row in READERS[recipe](run, config)]
        rows += _with_facts([run], [config], made)
    return name, rows


def _arms(workdir, runs, logged):
    """The rows of a sweep: those of a run for each arm, which is the runs that differ in their seed alone,
    with means and 95% t intervals over the seeds, and those of each other arm less the first, by seed.

    runs: list of launch.sweeps.runs.Run. logged: column -> [phase, metric, share]: the mean over the last
    share of the metric's lines.
    """
    arms = {}
    for run in runs:
        folder, fields = workdir / run.name, dict(run.overrides)
        seed = fields.pop("seed")
        rows = READERS[run.config["recipe"]](folder, run.config)
        own = {column: _logged(folder, *of) for column, of in logged.items()}
        arms.setdefault(_arm(fields), {})[seed] = [row | own for row in rows]
    named = {name: {"arm": name} if name else {} for name in arms}
    means = [named[arm] | row for arm, by_seed in arms.items() for row in _over(by_seed.values())]
    (first, base), *others = arms.items()
    for name, by_seed in others:
        changes = [[_less(a, b) for a, b in zip(by_seed[s], base[s], strict=True)] for s in base]
        label = {"arm": f"{name} less {first}", "form": "+"}
        means += [label | row for row in _over(changes)]
    folders = [workdir / run.name for run in runs]
    return _with_facts(folders, [run.config for run in runs], means)


def _arm(fields):
    """The name of an arm by its overrides, "" without any. {"a.kind": 1, "b.kind": 1} is "kind=1"."""
    words = [f"{name.rpartition('.')[2]}={value}" for name, value in fields.items()]
    return ", ".join(dict.fromkeys(words))


def _over(by_seed):
    """Rows of several runs as one list of rows: of numbers the mean and its interval over the runs."""
    return [
        {name: _combined([row[name] for row in rows]) for name in rows[0]}
        for rows in zip(*by_seed, strict=True)
    ]


def _combined(cells):
    if isinstance(cells[0], dict):
        return {part: _combined([cell[part] for cell in cells]) for part in cells[0]}
    # A name, or a size
    if isinstance(cells[0], (str, int)):
        assert len(set(cells)) == 1, cells
        return cells[0]
    return list(mean_interval([_number(cell) for cell in cells]))


def _less(row, other):
    """The cells of a row less those of another one: of means, without their intervals."""
    return {name: _difference(cell, other[name]) for name, cell in row.items()}


def _difference(cell, other):
    if isinstance(cell, dict):
        return {part: _difference(value, other[part]) for part, value in cell.items()}
    if isinstance(cell, (str, int)):
        return cell
    return _number(cell) - _number(other)


def _number(cell):
    """A cell's number, or the mean of its interval."""
    return float(cell[0] if isinstance(cell, list) else cell)


def _logged(workdir, phase, metric, share):
    """The mean of a metric over the last share of its lines in metrics.jsonl."""
    values = _values(workdir, phase, metric)
    return float(np.mean(values[-math.ceil(share * len(values)) :]))


def _changed(workdir, phase, metric):
    """A metric in its first line and in its last one."""
    values = _values(workdir, phase, metric)
    return _change(values[0], values[-1])


def _values(workdir, phase, metric):
    records = read_phases(_finished(workdir / "metrics.jsonl"))[phase]
    return [record[metric] for record in records if record.get(metric) is not None]


def _with_facts(runs, configs, rows):
    """The rows, with the seeds and the minutes of their runs."""
    seeds = ", ".join(str(seed) for seed in sorted({config["seed"] for config in configs}))
    minutes = sorted(map(training_minutes, runs))
    ends = {"low": minutes[0], "high": minutes[-1]} if len(minutes) > 1 else minutes[0]
    return [{"seed": seeds, "minutes": ends} | row for row in rows]


def training_minutes(workdir):
    """The minutes of a run's training steps. In metrics.jsonl `seconds` is the mean over the steps since the
    previous line.
    """
    seconds = 0.0
    for records in read_phases(_finished(workdir / "metrics.jsonl")).values():
        done = 0
        for record in records:
            if "seconds" in record:
                seconds += record["seconds"] * (record["step"] + 1 - done)
                done = record["step"] + 1
    return round(seconds / 60, 1)


def _grpo(workdir, config):
    """The scores before and after training, for both ways of decoding: a row, or one for each effort."""
    before, after = _before_and_after(workdir)
    if config.get("effort") is None:
        return [_answers(before, after)]
    return [{"effort": effort} | _answers(before[effort], after[effort]) for effort in after]


def _sft(workdir, config):
    """One row: the scores, and the held-out loss, before and after training."""
    before, after = _before_and_after(workdir)
    row = _answers(before["answers"], after["answers"])
    return [row | {"held-out loss": _change(before["loss"]["loss"], after["loss"]["loss"])}]


def _pretrain(workdir, config):
    """A row for each stage, and one for speculative decoding if the run measured it."""
    rows = []
    for name, stage in config["stages"].items():
        loss = _change(*_before_and_after(workdir, prefix=f"{name}_"))
        row = {"stage": name, "tokens a row": stage["sequence_length"], "held-out loss": loss}
        rows.append(row)
    path = workdir / "drafts" / SCORES
    if drafts := _json(path) if path.exists() else None:
        row = {"drafts accepted": drafts["acceptance"], "tokens a step": drafts["tokens_per_step"]}
        rows.append({"stage": "speculative decoding"} | row)
    return rows


def _preferences(workdir, config):
    """One row: scores of a reward model or a judge on held-out pairs, before and after training."""
    # In the folder of the stage that trains it, which has the recipe's name
    before, after = (_json(workdir / config["recipe"] / f"{when}.json") for when in WHEN)
    return [{name.replace("_", " "): _change(before[name], after[name]) for name in after}]


def _distill(workdir, config):
    """A row for the teacher, if there is one, and one for each student with its start."""
    found = _json(workdir / "answers.json")["answers"]
    answers = {name: _shares(tasks) for name, tasks in found.items()}
    rows = [{"policy": "teacher"} | answers["teacher"]] if "teacher" in answers else []
    for block in ("students", "reinforced"):
        for name, student in config.get(block, {}).items():
            before, after = answers[f"start {student['start']}"], answers[name]
            scores = {task: _change(before[task], after[task]) for task in after}
            rows.append({"policy": name} | scores)
    return rows


def _claims(workdir):
    """A row for each of R1's findings."""
    found = _json(workdir / "findings.json")
    rows = []
    for cells, finding in zip(found["rows"], found["findings"], strict=True):
        sides = finding["ours"], finding["theirs"]
        score = next(side[1] for side in sides if isinstance(side, list))
        row = {"finding": cells[0], "form": FORMS[score]} | _compared(finding)
        named = zip(("this", "that"), sides, strict=True)
        policies = {column: POLICIES[side[0]] for column, side in named if isinstance(side, list)}
        rows.append(row | {"policies": policies, "margin": finding["margin"], "verdict": cells[-1]})
    return rows


def _comparisons(workdir):
    """A row for each of a distillation's comparisons."""
    rows = []
    for finding in _json(workdir / "findings.json"):
        compared = _compared(finding | finding["comparison"])
        own = {"compute": finding["compute"], "verdict": finding["verdict"]}
        rows.append({"finding": finding["title"], "form": ".1%"} | compared | own)
    return rows


def _compared(finding):
    this, that = finding["means"]
    return {
        "this": this,
        "that": that,
        "difference": finding["difference"],
        "each run": {"by_run": finding["by_run"]},
        "p value": finding["p_value"],
    }


def _answers(before, after):
    """Scores before and after, by way of decoding, from two results of evaluation.held_out.evaluate."""
    return {
        f"{name.replace('_', ' ')}, {way}": _change(before[way]["scores"][name], score)
        for way, measured in after.items()
        for name, score in measured["scores"].items()
    }


def _shares(tasks):
    """The share of right answers, over all tasks and in each, with intervals over questions."""
    found = {"right answers": sum(tasks.values(), [])} | tasks
    return {name: list(share_interval(shares)) for name, shares in found.items()}


def _before_and_after(workdir, prefix=""):
    return (_json(workdir / f"{prefix}{when}" / SCORES) for when in WHEN)


def _change(before, after):
    return {"before": before, "after": after}


def _json(path):
    return json.loads(_finished(path).read_text())


def _finished(path):
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}; give the folder of a finished run")
    return path


READERS = {
    "distill": _distill,
    "grpo": _grpo,
    "judge": _preferences,
    "pretrain": _pretrain,
    "reward_model": _preferences,
    "sft": _sft,
}
