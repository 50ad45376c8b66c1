"""Report a run that has trained a reward model or a judge.

Slow tests: tests/recipes/reward_model/test_run.py.
"""

from deepseek_jax import reports
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.stage import Stage


def report_trained(results: Results, stage: Stage, title: str, curves: tuple[str, ...]):
    """Draw the curves of a stage and print its scores; only process 0 does so.

    Args:
        results: The results of the run.
        stage: The stage that trained the reward model or judge.
        title: The title of the table of scores.
        curves: The names of the metrics to draw.
    """
    if not first_process():
        return
    workdir, console = results.folder, reports.make_console()
    metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
    reports.plot_curves(metrics, picture, phase=stage.name, names=curves)
    console.print(reports.reward_model_table(title, workdir / stage.name))
    console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {workdir}")
