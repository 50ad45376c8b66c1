"""A generative reward model (arXiv:2412.19437, section 5.2.1): fine-tuned to compare two answers, to grade
them and to say which one is better, told in order.

base -> verdicts on held-out pairs -> fine-tune on judgements -> verdicts again -> report.
"""

import functools
import json

import numpy as np

from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.data.conversations import pack_conversations, render_numbered
from deepseek_jax.data.corpus import PackedDocuments
from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.reward_model.run import reward_model_table
from deepseek_jax.recipes.reward_model.settings import JudgeSettings
from deepseek_jax.recipes.sft.run import fine_tune
from deepseek_jax.recipes.start import check_positions, check_rows, starting_policy
from deepseek_jax.reinforce.model_rewards import JUDGE, make_judge
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.remembered import remembered
from deepseek_jax.worlds.bilingual.builders import bilingual_examples
from deepseek_jax.worlds.bilingual.judgements import judge_conversations

SETTINGS = JudgeSettings
PHASE = "judge"


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of JudgeSettings' fields.

    Leaves the judge in workdir/params, for config.reward_models.NAME.path of another run.
    """
    settings = build(JudgeSettings, config, "config")
    check_rows(settings, mesh)
    policy, params, tokenizer = starting_policy(settings, mesh)
    check_positions(settings, policy)
    pairs = judged_pairs(settings, workdir / "data")
    check_lengths(settings, tokenizer, pairs, "config")
    running = dict(writer=MetricsWriter(workdir), should_stop=should_stop)
    if params is None:
        base, seed = settings.base, settings.seed
        params = train_base(policy, base, tokenizer, mesh, workdir, seed=seed, **running)
    start = dict(tokenizer=tokenizer, tokenizer_name=settings.init_from or settings.base.corpus)
    train_judge(settings, policy, params, pairs, mesh, workdir, **start, **running)
    running["writer"].close()
    _report(workdir)


def judged_pairs(settings, folder):
    """The bilingual world's pairs to learn from and held out, written below `folder` as a dataset: a Task.

    settings: JudgeTrainingSettings.
    """
    sizes = dict(num_train=settings.data.num_train, num_held_out=settings.data.num_held_out)
    return bilingual_examples("preferences", folder, seed=settings.seed, **sizes)


def check_lengths(settings, tokenizer, pairs, path):
    """Raise ValueError where a judgement does not fit a row. settings: of the config block `path`."""
    conversations = judge_conversations(pairs.train, settings.seed)
    template, limit = settings.data.template, settings.sequence_length
    render = functools.partial(render_numbered, tokenizer, template=template)
    longest = max(len(render(c, i)[0]) for i, c in enumerate(conversations))
    if longest > limit:
        raise ValueError(
            f"{path}.sequence_length={limit} is below the {longest} tokens of the longest judgement; raise it"
        )


def train_judge(
    settings,
    policy,
    params,
    pairs,
    mesh,
    folder,
    *,
    tokenizer,
    tokenizer_name,
    writer,
    should_stop,
    phase=PHASE,
):
    """A policy's params, which are used up, to a judge in folder/params. Resumes from folder, where
    before.json and after.json tell what it said of the held-out pairs before and after.

    settings: JudgeTrainingSettings. pairs: judged_pairs'. tokenizer_name: as of
    model_rewards.named_tokenizer.
    """
    about = dict(
        template=settings.data.template,
        tokenizer=tokenizer_name,
        max_completion_length=settings.max_completion_length,
    )
    measure = functools.partial(_measure, policy, tokenizer, about, settings.slots, pairs.held_out)
    remembered(folder / "before.json", lambda: measure(params))
    source = _packed(settings, tokenizer, judge_conversations(pairs.train, settings.seed), mesh)
    running = dict(phase=phase, writer=writer, should_stop=should_stop)
    params = fine_tune(settings, policy, params, source, mesh, folder / PHASE, **running)
    remembered(folder / "after.json", lambda: measure(params))
    if not (folder / "params").exists():
        save_orbax(folder / "params", policy, params)
    if first_process():
        (folder / "params" / JUDGE).write_text(json.dumps(about, indent=2) + "\n")


def _packed(settings, tokenizer, conversations, mesh):
    share, shares = batch_share(mesh)
    packed = pack_conversations(
        conversations,
        tokenizer,
        template=settings.data.template,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        seed=settings.seed,
        process_index=share,
        process_count=shares,
    )
    sizes = ((0, settings.batch_size),)
    return PackedDocuments(
        packed,
        mesh,
        batch_sizes=sizes,
        quantum=settings.batch_size,
        scalars={},
        evaluate=None,
        eval_every=1,
    )


def _measure(policy, tokenizer, about, slots, examples, params):
    """What the judge says of held-out pairs, each asked about in both orders: name -> [mean, low, high], 95%.

    accuracy: the share of pairs whose chosen answer wins when it stands first in every other pair and second
    in the rest; accuracy_of_both: whose chosen answer wins in both orders; same_verdict: on which both orders
    agree; no_verdict: on which one of them has none.
    """
    judge = make_judge(policy, params, tokenizer, about, slots)
    pairs = [(e["question"], e["chosen"], e["rejected"]) for e in examples]
    forth = judge.verdicts(pairs)
    back = judge.verdicts([(question, b, a) for question, a, b in pairs])
    first = np.array([verdict == 1 for verdict in forth])
    second = np.array([verdict == 2 for verdict in back])
    none = np.array([None in verdicts for verdicts in zip(forth, back, strict=True)])
    alternating = np.where(np.arange(len(pairs)) % 2 == 0, first, second)
    scores = {
        "accuracy": alternating,
        "accuracy_of_both": first & second,
        "same_verdict": (first == second) & ~none,
        "no_verdict": none,
    }
    return {name: list(interval) for name, interval in summarise(scores).items()} | {
        "pairs": len(pairs)
    }


def _report(workdir):
    """Draw and print what the training left. Process 0 alone."""
    if not first_process():
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=("loss",))
    console, folder = make_console(), workdir / "params"
    console.print(reward_model_table("verdicts on held-out pairs", workdir))
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
    console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")
