"""The two stages that make a dataset (arXiv:2501.12948, appendix B.3.3): a teacher answers every question,
and filters sift the answers. With other filters, the same answers are sifted again.
"""

import dataclasses

from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.errors import at
from deepseek_jax.named_code import code_digests
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.measure import answering_programs
from deepseek_jax.recipes.stage import Answering, Kind
from deepseek_jax.synthesis.sift import write_sifted


def sampling_inputs(settings: GenerateSettings, examples: list, n: int, scored: bool):
    """The inputs of the hash of a stage's samples, besides the teacher's parameters."""
    data = settings.data
    shown = {"template": data.template, "opening": data.opening, "seed": settings.seed, "n": n}
    shown |= {"sampling": settings.sampling, "chunk": settings.chunk_size}
    if settings.adapter is not None:
        shown["adapter"] = fingerprint(settings.adapter)
    if scored:
        shown |= {"rewards": settings.rewards, "models": settings.reward_models}
        shown["code"] = code_digests(settings)
        if settings.converses:
            shown["tools"] = [*settings.tools, settings.environment, settings.conversation]
    return {"settings": shown, "data": examples}


def _ask_covers(work: Work):
    examples, _ = work.job.augmented
    n = work.settings.sampling.samples_per_prompt
    return sampling_inputs(work.settings, examples, n, scored=True)


def _ask_compiles(work: Work):
    """The answers of one teacher, on the devices of its processes, and what reward models and judges make of
    them there.
    """
    settings, sampling = work.settings, work.settings.sampling
    asked = Answering(
        sampling,
        settings.chunk_size,
        sampling.samples_per_prompt,
        sampling.max_prompt_length,
        # A base is pre-trained in float32; a checkpoint is read in the dtype that it computes in
        dtype="float32" if settings.init_from is None else work.config.dtype,
        scored=True,
        turns=settings.most_turns(),
    )
    return answering_programs(work, asked)


def _ask_run(work: Work):
    """Leaves the chunks in the stage's folder."""
    examples, _ = work.job.augmented
    n = work.settings.sampling.samples_per_prompt
    work.job.answer(work.folder, examples, n, work.job.rewards)


ASK = Kind(
    lambda work: None,
    _ask_compiles,
    _ask_run,
    _ask_covers,
    # The teacher skips chunks that are there
    is_left=lambda folder: False,
    is_policy=False,
)


def _sift_covers(work: Work):
    return {"settings": [work.settings.keep, work.job.accuracy], "data": work.job.measured_on}


def _sift_run(work: Work):
    """Leaves the dataset in the stage's folder."""
    job = work.job
    with at("config"):
        settings = dataclasses.replace(work.settings, accuracy=job.accuracy)
        write_sifted(settings, job.made[work.stage.reads[0]].folder, job.evaluation, work.folder)


SIFT = Kind(
    lambda work: None,
    lambda work: [],
    _sift_run,
    _sift_covers,
    is_left=lambda folder: False,
    is_policy=False,
)
