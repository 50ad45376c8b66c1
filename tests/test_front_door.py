"""What README.md's first screen states, its picture and its diagrams."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs import r1_small
from configs.sweeps import grpo_papers
from deepseek_jax.recipes.r1.run import stages
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.settings import build
from deepseek_jax.training.completions import read_completions
from tests.benchmarks import group_picture, reading_list, results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_picture_is_drawn_from_the_committed_groups():
    """Oracle: the files, drawn anew."""
    for path, svg in group_picture.pictures(read_completions(group_picture.GROUPS)).items():
        assert path.read_text() == svg and f'="configs/results/{path.name}"' in README


def test_the_pictures_advantages_are_those_of_its_rewards():
    """Oracle: GRPO's definition by hand, (r - mean) / std of the group, in numpy; equal rewards give 0."""
    groups = read_completions(group_picture.GROUPS)
    assert [group["step"] for group in groups][0::2] == [0, 99]
    for group in groups:
        rewards, advantages = (
            np.array([row[name] for row in group["completions"]])
            for name in ("reward", "advantage")
        )
        std = rewards.std(ddof=1)
        wanted = (rewards - rewards.mean()) / std if std else np.zeros(8)
        # float32, and an epsilon beside the deviation
        np.testing.assert_allclose(advantages, wanted, atol=1e-3)
    assert len(advantages) == 8 and not advantages.any()


def test_a_step_without_a_kept_group_is_named(tmp_path):
    """Oracle: by hand."""
    (tmp_path / "completions.jsonl").write_text(group_picture.GROUPS.read_text())
    taken = group_picture.taken(tmp_path, [3])
    assert [line["prompt"] for line in taken] == ["What is 6 + 3 + 6?"]
    with pytest.raises(ValueError, match=r"no group of step \[7\]; it has \[0, 3, 99\]"):
        group_picture.taken(tmp_path, [3, 7])


def test_the_first_table_says_what_other_files_say():
    """Oracle: the results, the guides' tables, and the sweep's file."""
    share, number = re.search(r"catch ([\d.]+%) of (\d+) planted faults", README).groups()
    row = re.search(r"^\| all \|.*$", (ROOT / "tests" / "README.md").read_text(), re.M)[0]
    assert f"| all | {number} |" in row and f" {share} |" in row
    r1 = json.loads((results.FOLDER / "r1_small.json").read_text())
    verdicts = [row["verdict"] for row in r1["rows"]]
    assert (len(verdicts), verdicts.count("reproduced")) == (10, 9) and "nine of ten" in README
    low, high = re.search(r"1,024 chips, (\d+) to (\d+) s an", README).groups()
    plans = "".join(path.read_text() for path in sorted((ROOT / "launch").glob("*.md")))
    row = re.search(r"^\| DeepSeek-V3, R1-Zero to 65,536 tokens \|.*$", plans, re.M)[0]
    assert "v5p:8x8x16" in row and f"| {low}, {high} |" in row and 8 * 8 * 16 == 1024
    lines = int(re.search(r"GRPO in (\d+) lines", README)[1])
    assert lines == len((ROOT / "deepseek_jax" / "minimal.py").read_text().splitlines())
    arms = {json.dumps(arm | {"seed": 0}) for arm in grpo_papers.sweep(None)}
    assert len(arms) - 1 == 5 and "five variants of GRPO are [one sweep]" in README


def test_the_reading_list_adds_up_and_names_what_is_there():
    """Oracle: the table's own rows; the definitions of each file. A day's reading takes at most six hours."""
    table = results.BLOCK.search(README[README.index("<!-- results: reading") :])[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| [")]
    lines, minutes = (sum(int(row[i]) for row in rows) for i in (-2, -1))
    assert f"| {lines:,} | {minutes} |" in table and 120 < minutes <= 360
    for name, _, look, _ in reading_list.FILES:
        assert not look or re.search(rf"(def|class) {look}\b", (ROOT / name).read_text()), name


def arrows(text):
    """The arrows of a block of mermaid, as pairs of names: "a & b --> c" are two."""
    found = set()
    for line in text.splitlines()[1:]:
        groups = [
            {re.match(r"\w+", part.strip())[0] for part in group.split("&")}
            for group in line.split("-->")
        ]
        for left, right in zip(groups, groups[1:], strict=False):
            found |= {(a, b) for a in left for b in right}
    return found


def test_r1s_diagram_has_the_arrows_of_its_list():
    """Oracle: the recipe's list of stages; what only measures is left out."""
    blocks = re.findall(r"```mermaid\n(.*?)```", README, re.S)
    settings = build(R1Settings, r1_small.get_config(), "config")
    listed = [stage for stage in stages(settings) if not stage.measures]
    wanted = {
        (name, stage.name) for stage in listed for name in (stage.start, *stage.reads) if name
    }
    assert arrows(blocks[-1]) == wanted and len(wanted) == 17
