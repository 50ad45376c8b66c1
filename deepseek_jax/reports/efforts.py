"""Length and accuracy by reasoning effort, before and after training."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from deepseek_jax.files import whole_file
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.reports.answers import print_samples
from deepseek_jax.reports.page import FORMS
from deepseek_jax.reports.tables import stages_table

SCORES = "completion_length", "accuracy"
WAYS = "sampled", "greedy"


def report_efforts(console: Console, before: dict, after: dict, png_path: Path) -> None:
    """Print a table and samples, and draw the plot.

    Args:
        before: Effort -> result of evaluate_both.
        after: The same after training.
        png_path: Where process 0 draws the plot.
    """
    console.print(efforts_table(before, after))
    for effort in after:
        console.print(f"asked with effort {effort}")
        print_samples(console, before[effort]["sampled"], after[effort]["sampled"])
    if first_process():
        plot_efforts(before, after, png_path)


def efforts_table(before, after):
    """Build a rich Table with a row for each effort, before and after."""
    rows, forms = {}, {f"{name} {way}": FORMS.get(name, ".1%") for way in WAYS for name in SCORES}
    for effort in after:
        for when, measured in (("before", before), ("after", after)):
            rows[f"{effort} {when}"] = {
                f"{name} {way}": measured[effort][way]["scores"][name]
                for way in WAYS
                for name in SCORES
            }
    names = {score: score.replace("completion_", "").replace(" ", "\n") for score in forms}
    title = "held-out problems, by the effort that was asked for"
    return stages_table(rows, forms, names, title=title, first_column="effort")


def plot_efforts(before, after, png_path):
    """Draw the sampled answers' mean length and accuracy by effort, with 95% intervals, as PNG."""
    efforts = sorted(map(int, after))
    figure = Figure(figsize=(4.2 * len(SCORES), 3.2), layout="constrained")
    # This canvas needs no display and does not touch pyplot's global state
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(SCORES)), SCORES, strict=True):
        for when, measured in (("before", before), ("after", after)):
            scores = [measured[str(b)]["sampled"]["scores"][name] for b in efforts]
            (line,) = axes.plot(efforts, [mean for mean, _, _ in scores], marker="o", label=when)
            for effort, (_, low, high) in zip(efforts, scores, strict=True):
                axes.vlines(effort, low, high, color=line.get_color())
        axes.set(title=name.replace("_", " "), xlabel="effort asked for")
        axes.set_xticks(efforts)
        axes.grid(alpha=0.3)
        axes.legend()
    with whole_file(png_path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")
