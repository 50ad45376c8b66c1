"""Train a reward model (arXiv:2501.12948, section 3.1), from a base model or a checkpoint.

base -> add a scalar head -> measure on held-out preferences -> train -> measure again -> report
"""

from deepseek_jax import reports
from deepseek_jax.recipes.kinds.prefer import Prefer
from deepseek_jax.recipes.kinds.preferences import Preferences
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.reward_model.report import report_trained
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = RewardModelSettings
CURVES = ("loss", "accuracy", "margin", "safe_probability", "grad_norm")


def stages(s: RewardModelSettings) -> list[Stage]:
    """List the stages: a base or a checkpoint, and the reward model that begins from it."""
    first = first_stage(s, s.data.template)
    trained = Prefer(
        "reward_model",
        s,
        ("before", "after"),
        preferences=Preferences(BILINGUAL),
        seed=s.seed,
        start=first.name,
        adapter=s.adapter,
        path="",
        label="",
        title="reward model",
    )
    return [first, trained]


def page(results: Results) -> reports.Page:
    """Build the page, with rewards of held-out preferences."""
    return reports.with_preferences(run_page(results, "Reward model"), results.contents())


def report(results: Results):
    """Draw the curves and print the scores; only process 0 does so."""
    report_trained(results, results.stages[-1], "held-out preferences", CURVES)
