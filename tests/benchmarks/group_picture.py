"""The picture of GRPO's groups in README.md: completions of one question, with rewards and advantages.

python -m tests.benchmarks.group_picture                        # draw configs/results/grpo_groups.jsonl
python -m tests.benchmarks.group_picture RUN STEP STEP STEP     # first take these steps from a run

The lines of that file are a run's completions.jsonl's, of each step the first group that it kept, with the
commit that gave the run. The pictures, grpo_groups_light.svg and grpo_groups_dark.svg, are beside it.
"""

import json
import sys
from html import escape
from pathlib import Path

from deepseek_jax.training.completions import read_completions
from tests.benchmarks.results import FOLDER, revision

GROUPS = FOLDER / "grpo_groups.jsonl"
# CSS pixels: GitHub's column is 890 wide. A row is one completion
PANEL, GAP, ROW, HEAD = 280, 22, 19, 58
# Characters of a completion that fit; where the reward is, and advantage 0; the width of an advantage of 1
CHARACTERS, REWARD, ZERO, UNIT = 25, 182, 242, 14
THEMES = {
    "light": dict(ink="#1f2328", soft="#59636e", line="#d1d9e0", up="#1a7f37", down="#cf222e"),
    "dark": dict(ink="#f0f6fc", soft="#9198a1", line="#3d444d", up="#3fb950", down="#f85149"),
}
STYLE = (
    "text {{ font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: {ink} }} "
    ".head {{ font: 600 13px system-ui, sans-serif }} "
    ".soft {{ font: 11px system-ui, sans-serif; fill: {soft} }} "
    ".up {{ fill: {up} }} .down {{ fill: {down} }} line {{ stroke: {line} }}"
)


def taken(run: Path, steps: list[int]) -> list[dict]:
    """The first group that a run of GRPO kept at each of these steps, as lines of GROUPS.

    Raises ValueError for a step of which the run kept no group.
    """
    lines = read_completions(run / "completions.jsonl", phase="grpo")
    first = {line["step"]: line for line in reversed(lines)}
    if missing := [step for step in steps if step not in first]:
        raise ValueError(f"{run} kept no group of step {missing}; it has {sorted(first)}")
    return [first[step] | {"version": revision()} for step in steps]


def picture(groups: list[dict], theme: dict) -> str:
    """The SVG of groups, panel by panel, from left to right."""
    width = len(groups) * (PANEL + GAP) - GAP
    height = HEAD + ROW * max(len(group["completions"]) for group in groups) + 24
    panels = "".join(_panel(group, i * (PANEL + GAP)) for i, group in enumerate(groups))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{escape(in_words(groups))}</title>'
        f"<style>{STYLE.format(**theme)}</style>{panels}</svg>\n"
    )


def in_words(groups: list[dict]) -> str:
    """What the picture shows, for readers who do not see it."""
    said = []
    for group in groups:
        rewards = [row["reward"] for row in group["completions"]]
        paid = sum(reward > 0 for reward in rewards)
        said.append(
            f"step {group['step']}, {group['prompt']}: {paid} of {len(rewards)} answers are right"
        )
    return "; ".join(said)


def _panel(group, left):
    rewards = [row["reward"] for row in group["completions"]]
    right, number = sum(reward > 0 for reward in rewards), len(rewards)
    bottom = HEAD + ROW * number
    parts = [
        _text(0, 14, f"Step {group['step']}: {group['prompt']}", "head"),
        _text(0, 42, f"{right} of {number} answers are right", "soft"),
        _text(REWARD, 42, "reward", "soft", "middle"),
        _text(ZERO, 42, "advantage", "soft", "middle"),
        f'<line x1="{ZERO}" x2="{ZERO}" y1="{HEAD - 8}" y2="{bottom - 4}"/>',
    ]
    for i, row in enumerate(group["completions"]):
        parts += _row(row, HEAD + ROW * i)
    if not any(row["advantage"] for row in group["completions"]):
        parts.append(_text(0, bottom + 14, "equal rewards: nothing left to learn here", "soft"))
    return f'<g transform="translate({left} 0)">{"".join(parts)}</g>'


def _row(row, top):
    text, advantage = row["text"].strip(), row["advantage"]
    text = text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
    kind, width = ("up" if advantage > 0 else "down"), max(abs(advantage) * UNIT, 1)
    reward_kind = "up" if row["reward"] > 0 else "down"
    left = ZERO - width * (advantage < 0)
    bar = f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="9"/>'
    return [
        _text(0, top + 9, text),
        _text(REWARD, top + 9, f"{row['reward']:g}", reward_kind, "middle"),
        bar if advantage else "",
    ]


def _text(x, y, text, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def pictures(groups: list[dict]) -> dict[Path, str]:
    """{file: its SVG} of the groups, for each of THEMES."""
    return {
        GROUPS.with_name(f"{GROUPS.stem}_{name}.svg"): picture(groups, theme)
        for name, theme in THEMES.items()
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        run, *steps = sys.argv[1:]
        lines = taken(Path(run), [int(step) for step in steps])
        GROUPS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path, svg in pictures(read_completions(GROUPS)).items():
        path.write_text(svg)
        print(f"{path.name}: written")
