"""README.md's reading list: what to read in which order, and how long it is.

python -m tests.benchmarks.results writes it, because files grow.
"""

import ast
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# (file, what it is, where to look first, the functions to skip, by their names)
FILES = (
    ("deepseek_jax/minimal.py", "V3 and GRPO on one page", "", ""),
    ("configs/grpo_small.py", "the numbers of an experiment", "", ""),
    ("deepseek_jax/ops/routing.py", "an equation as a pure function", "route", "load_metrics"),
    ("deepseek_jax/parallel/rules.py", "the table of where arrays live", "", ""),
    ("deepseek_jax/models/layers.py", "weights, norms, SwiGLU", "weight", "position_tables"),
    ("deepseek_jax/models/mla.py", "latent attention", "_expand", "decode extend _step _attend_cache"),
    ("deepseek_jax/models/moe.py", "experts", "MoE", "_token_step"),
    ("deepseek_jax/models/decoder.py", "one decoder for all", "DecoderLayer", "decode extend"),
    ("deepseek_jax/losses/grpo.py", "GRPO and its variants", "grpo_loss", "row_marks metric_weights"),
    ("deepseek_jax/training/update.py", "the only update", "make_train_step", "locate jit_placed"),
    ("deepseek_jax/training/loop.py", "the only training loop", "_train", "_resume _best"),
    ("deepseek_jax/rollout/engine.py", "from questions to completions", "run", "exchanged turns_of"),
    ("deepseek_jax/reinforce/groups.py", "from completions to advantages", "next", "get_state set_state"),
    ("deepseek_jax/distill/objective.py", "what a student learns", "loss", "_features l2_penalty"),
    ("deepseek_jax/recipes/driver.py", "plans and runs a list of stages", "run", "check_drops describe"),
    ("deepseek_jax/recipes/grpo/run.py", "such a list", "stages", "page report"),
    ("deepseek_jax/recipes/r1/run.py", "R1's list", "stages", ""),
)  # fmt: skip
# Lines a minute, an assumption
PACE = 15


def reading() -> str:
    """The list as a table, whose last row has the sums.

    Lines are those of a file without what is to be skipped, rounded up to tens; minutes are at PACE.
    """
    heads = ("file", "what it is", "where to look", "lines", "minutes")
    rows, total = [], 0
    for name, what, look, skipped in FILES:
        lines = math.ceil(lines_to_read(ROOT / name, skipped.split()) / 10) * 10
        total += lines
        hints = ("look at", look), ("skip", skipped)
        link = f"[{name.removeprefix('deepseek_jax/')}]({name})"
        where = [f"{verb} {_code(names)}" for verb, names in hints if names]
        rows.append((link, what, ", ".join(where), lines, round(lines / PACE)))
    rows.append(("all", "", "", f"{total:,}", sum(minutes for *_, minutes in rows)))
    table = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in table)


def _code(names):
    return ", ".join(f"`{name}`" for name in names.split())


def lines_to_read(path: Path, skipped: list[str]) -> int:
    """The lines of a file without those of the functions to skip. KeyError: a function is not there."""
    text = path.read_text()
    sizes = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    return len(text.splitlines()) - sum(sizes[name] for name in skipped)
