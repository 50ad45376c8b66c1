"""R1-Zero, and R1 in its four stages (arXiv:2501.12948), from one base model, on a toy world or on a user's
own data.

base -> R1-Zero: reinforcement alone, rewarded for right answers and their layout
base -> 1 cold-start fine-tuning on R1-Zero's readable traces -> Dev1
     -> 2 reasoning reinforcement, rewarded for a single language too -> Dev2
        -> rejection sampling: reasoning answers by rules, general ones by a judge (the base, fine-tuned)
base -> 3 fine-tuning on the accepted answers and on good answers to general questions -> Dev3
        Dev3 -> two reward models, of helpfulness and of safety
     -> 4 reinforcement for all scenarios, rewarded by rules and by the reward models -> R1
or (V4's last stage, arXiv:2606.19348), or also, to compare the two:
        Dev3 -> specialists, each reinforced on the questions of one task
     -> 4 distillation from a teacher of each task on the student's own samples -> R1, distilled
Every policy is measured on held-out questions.
"""

from pathlib import Path

from deepseek_jax.data.tasks import Task
from deepseek_jax.data.tokenizer import check_checkpoint
from deepseek_jax.distill.teacher_checks import check_questions, check_teacher
from deepseek_jax.distill.teacher_checks import check_rows as check_student_rows
from deepseek_jax.errors import at
from deepseek_jax.models import build_model
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.r1.findings import TABLE_WIDTH, report_sweep
from deepseek_jax.recipes.r1.programs import teacher_config
from deepseek_jax.recipes.r1.scores import FORMS
from deepseek_jax.recipes.r1.settings import PREFERENCE_STAGES, SPECIALISTS, R1Settings
from deepseek_jax.recipes.r1.stages import Stages, teacher_tokenizer
from deepseek_jax.recipes.reward_model.run import reward_model_table
from deepseek_jax.recipes.start import check_positions, check_rows, check_slots, starting_policy
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.reinforce.update import check_routing
from deepseek_jax.reinforce.update import check_rows as check_groups
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.run_page import write_report
from deepseek_jax.reports.tables import stages_table
from deepseek_jax.rollout.policy import Policy, check_room, check_vocabulary, fitting
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.own import own_world
from deepseek_jax.worlds.registry import find_world, named_tokenizer
from deepseek_jax.worlds.world import World

SETTINGS = R1Settings
# A changed config may resume in the same workdir: stages that depend on the change run again (see lineage)
REDOES_WHAT_CHANGED = True
TITLES = {
    "base": "base",
    "zero": "R1-Zero",
    "traces": "traces",
    "cold_start": "Dev1",
    "reasoning": "Dev2",
    "judge": "judge",
    "rejection": "accepted",
    "judged": "judged",
    "sft": "Dev3",
    "helpfulness_model": "helpfulness",
    "safety_model": "safety",
    "scenarios": "R1",
    "reasoning_teacher": "reasoning teacher",
    "general_teacher": "general teacher",
    "distilled": "R1, distilled",
}


def run(settings: R1Settings, run: Run):
    """Run the recipe, or resume it.

    Each stage has a folder with stage.json, the hashes of its inputs (see lineage), and params, which
    launch/convert.py reads.
    """
    with at("config"):
        world = _world(settings)
        policy = _shared_policy(settings, world, run.mesh)
        _check(settings, policy, run.mesh)
        reasoning, general = _tasks(settings, world, policy)
        questions = {"reasoning": reasoning.train, "general": general.train}
        if settings.distilled is not None:
            with at("distilled"):
                _check_distilled(settings, policy, questions, run.mesh)
    stages = Stages(settings, world, policy, run)
    # Before the first stage, so that a wrong block of a judge or a reward model raises now
    pairs = None if settings.judge is None else stages.judged_pairs()
    preferences = {name: stages.preferences(name) for name in settings.reward_models()}
    names = {name: name.replace("@k", f"@{settings.evaluation.samples}") for name in FORMS}
    scores, workdir = {}, run.folder
    titles = titles_of(settings)

    def report():
        write_report(workdir, f"R1 in {workdir.name}", titles, FORMS, names)

    def measured(stage):
        questions = reasoning.held_out, general.held_out
        scores[TITLES[stage.name]] = stages.measured(stage, *questions)["scores"]
        # After every stage, so that the page can be read before the run ends
        report()
        return stage

    base = measured(stages.base())
    zero = measured(stages.zero(base, reasoning.train))
    traces = stages.traces(zero, reasoning.train)
    dev1 = measured(stages.cold_start(base, traces, reasoning, general))
    dev2 = measured(stages.reasoning(dev1, reasoning.train))
    judges = [] if pairs is None else [stages.judge(base, pairs)]
    accepted = [stages.rejection(dev2, reasoning.train)]
    accepted += [stages.judged(dev2, judge, general.train) for judge in judges]
    dev3 = measured(stages.sft(base, accepted, reasoning, general))
    models = [stages.reward_model(name, dev3, *found) for name, found in preferences.items()]
    for model in (*judges, *models):
        make_console().print(reward_model_table(f"{model.name}, held out", model.folder))
    if settings.scenarios is not None:
        measured(stages.scenarios(dev3, models, reasoning.train, general.train))
    if settings.distilled is not None:
        earlier = {stage.name: stage for stage in (zero, dev1, dev2, dev3)}
        for name, task in SPECIALISTS.items():
            if getattr(settings, name) is not None:
                earlier[name] = measured(stages.specialist(name, dev3, models, questions[task]))
        measured(stages.distilled(dev3, earlier, questions))
    run.writer.close()
    # A world may lack scores, such as one whose questions name no language
    forms = {name: form for name, form in FORMS.items() if any(name in s for s in scores.values())}
    make_console(width=TABLE_WIDTH).print(stages_table(scores, forms, names))
    # Over this run alone; launch/sweep.py tests the findings over several seeds
    report_sweep(workdir, [workdir], settings.last_stages())
    # Again, because the page has the findings too
    report()
    say(f"complete; report.html, and a folder of each stage's lineage and params, are in {workdir}")


def titles_of(settings: R1Settings):
    """{stage: its name on the page} of the stages that a config has. A base may be a checkpoint."""
    there = {"base", *(name for name in TITLES if getattr(settings, name) is not None)}
    return {name: title for name, title in TITLES.items() if name in there}


def check_data(settings: R1Settings, mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        world = _world(settings)
        task = world.questions[world.reasoning].make(settings.seed, settings.evaluation.num_puzzles)
    return f"world {world.name}: {len(task.train)} reasoning questions"


def _world(settings: R1Settings):
    """The World of config.world, or that of the user's own data."""
    if settings.data is None:
        return find_world(settings.world)
    data = settings.data
    with at("data"):
        return own_world(data.reasoning, data.rule, data.general, template=data.template)


def _shared_policy(settings: R1Settings, world: World, mesh):
    """The Policy that all stages share, without params."""
    if settings.init_from is not None:
        # The params are dropped, because each stage reads its own from disk
        return starting_policy(settings, mesh, world.template).at(None)
    config, tokenizer = build_model(settings.model), named_tokenizer(settings.base.corpus)
    check_vocabulary(config, tokenizer)
    with at("base"):
        settings.base.check(config, mesh)
    return Policy(config, None, tokenizer, world.template)


def _check(settings: R1Settings, policy: Policy, mesh):
    """Raise ValueError where a stage cannot run, before the first one does."""
    for name, stage in settings.reinforced().items():
        # The reward models are not trained yet; their names are enough to check the rewards
        models = dict.fromkeys(settings.models_for(name))
        with at(name), scenario_rewards(stage, models):
            check_groups(stage, mesh)
            check_routing(stage, policy.config, mesh)
    check_slots(settings, mesh)
    pipeline = policy.config.pipeline_micro_batches
    for name in ("cold_start", "sft", *PREFERENCE_STAGES):
        if (stage := getattr(settings, name)) is not None:
            with at(name):
                check_positions(stage, policy.config)
                check_rows(stage, mesh, pipeline)


def _check_distilled(settings: R1Settings, policy: Policy, questions: dict, mesh):
    """Raise ValueError where the student cannot learn from a teacher, before any stage runs.

    questions: task -> examples with prompt_ids.
    """
    taught = settings.distilled
    check_student_rows(taught, mesh)
    configs = {}
    for name, teacher in taught.teachers.items():
        with at(f"teachers.{name}"):
            if teacher.path is not None:
                check_checkpoint(teacher.path)
            configs[name] = teacher_config(teacher, settings, policy.config)
            tokenizer = teacher_tokenizer(teacher, policy.tokenizer)
            check_teacher(policy.config, policy.tokenizer, configs[name], tokenizer)
    check_questions(taught, configs, questions)


def _tasks(settings: R1Settings, world: World, policy: Policy):
    """(reasoning, general): Tasks whose examples carry their prompt_ids. Without general questions the second
    is empty.

    Raises ValueError where prompts and completions exceed the model's positions, and where a stage needs
    more questions than there are.
    """
    sizes = {
        world.reasoning: settings.evaluation.num_puzzles,
        world.general: settings.evaluation.num_requests,
    }
    tasks = []
    for name, number in sizes.items():
        task = Task([], []) if name is None else world.questions[name].make(settings.seed, number)
        tasks.append(Task(policy.with_prompts(task.train), policy.with_prompts(task.held_out)))
    for name, stage in (settings.reinforced() | settings.distilling()).items():
        rollout = stage.rollout
        for task in filter(lambda task: task.train, tasks):
            with at(f"{name}.rollout"):
                asked = fitting(task.train, rollout.max_prompt_length, "training")
                check_room(policy.config, asked, rollout.longest())
    _check_numbers(settings, *(len(task.train) for task in tasks))
    _check_answers(settings, policy, *tasks)
    return tasks


def _check_answers(settings: R1Settings, policy: Policy, reasoning: Task, general: Task):
    """Raise ValueError where the answers that a stage samples exceed the model's positions."""
    asked = {"evaluation": [*reasoning.held_out, *general.held_out]}
    for name in ("traces", "rejection"):
        asked[name] = reasoning.train[: getattr(settings, name).num_prompts]
    if settings.judged is not None:
        last = len(general.train) - settings.judged.num_prompts
        # What a judge reads is made of two answers
        asked |= {"judged": general.train[last:], "judge": ()}
    for name, questions in asked.items():
        with at(name):
            check_room(policy.config, questions, getattr(settings, name).max_completion_length)


def _check_numbers(settings: R1Settings, reasoning: int, general: int):
    """Raise ValueError where a stage needs more than the `reasoning` or `general` training questions."""
    data = {"cold_start": settings.cold_start.data, "sft": settings.sft.data}
    wanted = {f"{name}.data.num_puzzles": shown.num_puzzles for name, shown in data.items()}
    for name in ("traces", "rejection"):
        wanted |= {f"{name}.num_prompts": getattr(settings, name).num_prompts}
    _check_available(wanted, reasoning, "reasoning questions")
    wanted = {f"{name}.data.num_requests": shown.num_requests for name, shown in data.items()}
    _check_available(wanted, general, "general questions")
    # judged takes the last general questions; the fine-tunings learn the answers of the first ones
    if settings.judged is not None:
        unanswered = general - max(wanted.values())
        wanted = {"judged.num_prompts": settings.judged.num_prompts}
        _check_available(wanted, unanswered, "general questions whose answers are not learned from")


def _check_available(wanted: dict[str, int], available: int, what: str):
    for field, number in wanted.items():
        if not 0 <= number <= available:
            raise ValueError(
                f"{field}={number} must be within 0..{available}, the {what} to train on"
            )
