"""The first and the last lines that a run prints: what it is about to do, and what came out of it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import count_params
from deepseek_jax.parallel.processes import say
from deepseek_jax.programs import command
from deepseek_jax.progress import duration
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.reports.page import Page
from deepseek_jax.training.settings import LoopSettings

# Columns of a line
WIDTH = 80


def say_wrapped(text: str, indent: str = ""):
    """Print a text in lines of at most WIDTH columns; all but the first are indented."""
    say(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent="  "))


def say_plan(stages: list[Stage], configs: Mapping[str, Network]):
    """Print what a run is about to do: its models, their parameters, its stages and their steps."""
    # Stages may give one model other options, such as a dtype
    texts = [_described_model(config) for config in dict.fromkeys(configs.values())]
    for text in dict.fromkeys(texts):
        say(f"model: {text}")
    steps = ", ".join(
        f"{stage.name} {stage.settings.num_steps:,}"
        for stage in stages
        if not stage.measures and isinstance(stage.settings, LoopSettings)
    )
    text = f"{len(stages)} stages" + (f"; steps of training: {steps}" if steps else "")
    say_wrapped(text)


def say_end(stages: list[Stage], result: str | None, folder: Path, page: Page, seconds: float):
    """Print the first score before and after, how long it took, and how to go on.

    Args:
        result: The name of the stage that the run is for; None for several.
        seconds: What this start took; 0 if it found the run complete.
    """
    took = f" in {duration(seconds)}" if seconds else ", and was before this start"
    say(f"complete: {len(stages)} of {len(stages)} stages{took}")
    for before, after in page.compared:
        # A recipe may measure what is no score
        for score, (mean, *_) in list(page.scores[after].items())[:1]:
            start = page.scores.get(before or "", {}).get(score)
            means = [mean] if start is None else [start[0], mean]
            texts = [format(number, page.form_of(score)) for number in means]
            say(f"  {after}: {page.title_of(score)} {' -> '.join(texts)}")
    say(f"  page: {folder / 'report.html'}")
    if any(stage.name == result and stage.leaves_policy for stage in stages):
        say(f"  chat: {command('chat')} {folder}")


def _described_model(config: Network) -> str:
    layers = config.num_hidden_layers
    counts = f"{layers} layer{'' if layers == 1 else 's'}, {_shortened(count_params(config))}"
    return f"{config.model_type}, {counts} parameters"


def _shortened(number: int) -> str:
    """Return a number as in "1,234,567" or "671.0 billion"."""
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= 10 * size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"
