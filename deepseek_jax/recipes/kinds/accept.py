"""A stage of rejection sampling (arXiv:2501.12948, appendix B.3.3): a policy answers, and what is accepted
becomes text to learn from.
"""

from deepseek_jax.named_code import digest_of
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.measure import answering_programs
from deepseek_jax.recipes.stage import Answering, Kind, Made
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.rollout.policy import check_room
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted

# In the stage's folder
FILE = "accepted.jsonl"


def _check(work: Work):
    check_room(work.config, (), work.settings.max_completion_length)


def _check_data(work: Work):
    work.job.check_prompts(work)


def _covers(work: Work):
    rule = work.job.rule()
    settings = work.job.about(work.settings) | {"seed": work.seed, "rule": [rule, digest_of(rule)]}
    return {"settings": settings, "data": work.job.asked(work)}


def _compiles(work: Work):
    settings, dtype = work.settings, work.job.sampling_dtype(work)
    number, n = settings.num_prompts, settings.samples_per_prompt
    return answering_programs(work, Answering(settings, number, n, dtype=dtype, scored=True))


def _run(work: Work):
    """Leaves what was accepted in the stage's folder."""
    models = load_model_rewards(work.job.models(work), work.mesh, work.config.expert_buffer)
    with work.at():
        policy = work.job.load_to_answer(work.stage.start)
        sample_accepted(
            work.settings,
            policy,
            policy.ask(work.job.asked(work), Limit(work.settings.max_completion_length)),
            work.folder / FILE,
            rule=work.job.rule(),
            seed=work.seed,
            judge=models.get("judge"),
        )


def accepted_by(made: dict[str, Made], names):
    """The examples that the stages `names` have accepted: [dict]. made: of job.LineageJob."""
    return [line for name in names for line in read_accepted(made[name].folder / FILE)]


ACCEPT = Kind(
    _check,
    _compiles,
    _run,
    _covers,
    _check_data,
    # sample_accepted writes the file whole: if it exists, it is complete
    is_left=lambda folder: (folder / FILE).exists(),
    is_policy=False,
)
