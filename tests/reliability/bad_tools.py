"""Mistakes in tools, environments and their limits, before anything compiles; see bad_inputs.py."""

from tests.reliability.bad_own import code
from tests.reliability.goods import both, copied

TOOLS = "train tools_small --config.tools=('mine.py:f',)"
ENVIRONMENT = "train guess_small --config.environment=mine.py:E"
EVALUATE = "evaluate --checkpoint=model --data=calculator "
GENERATE = "generate generate_small --config.tools=('deepseek_jax.worlds.calculator.tools:add',)"
FORM = (
    "give it type hints and a docstring: what it does, and Args: with a line NAME: MEANING for each"
)
HINTS = 'def f(a):\n    """Double.\n\n    Args:\n        a: A number.\n    """\n    return a\n'
MEANT = HINTS.replace("f(a)", "f(a: int) -> int")
STEP = "    def step(self, text: str) -> str | None:\n        return None\n"
RESET = "    def reset(self, **row):\n        return None\n"
REWARD = "    def get_reward(self) -> float:\n        return 1.0\n"
# A game, whose reward config.rewards has to name
PAID = f"{ENVIRONMENT} --config.rewards={{'E':1.0}} --config.accuracy=E"
# Recipes that hold no conversations
OTHERS = ("r1_small", "distill_small", "sft_small", "pretrain_small", "reward_model_small")

TOOLS_AND_LIMITS = [
    (TOOLS, "config.tools.0: there is no file mine.py, of mine.py:f, in "),
    (TOOLS, f"config.tools: mine.py:f: Argument a is missing a type hint...{FORM}", code(HINTS)),
    (
        TOOLS,
        f"config.tools: mine.py:f: ...because it has no docstring!...{FORM}",
        code("def f(a: int): return a"),
    ),
    (
        "train tools_small --config.tools=('mine.py:f','mine.py:f')",
        "config.tools: mine.py:f has a tool f, and so has mine.py:f; rename one of the two",
        code(MEANT),
    ),
    (TOOLS, "config.tools: mine.py has no function f; it has g", code("def g(): pass")),
    (
        "train tools_small --config.tools=('calculator',)",
        "config.tools: 'calculator' names no code; or bring your own: FILE.py:NAME",
    ),
    (ENVIRONMENT, "config.environment: there is no file mine.py, of mine.py:E, in "),
    (
        ENVIRONMENT,
        "config.environment: mine.py:E has no method reset; define reset(self, **columns)",
        code("class E:\n" + STEP),
    ),
    (
        ENVIRONMENT,
        "config.environment: mine.py:E takes arguments: missing a required argument: 'size'",
        code("class E:\n    def __init__(self, size): pass\n" + RESET + STEP),
    ),
    # The first conversation
    (
        f"{TOOLS} --check",
        "config.tools: mine.py:f: every call fails: ...; let it take each argument by name, without * or /",
        code(MEANT.replace("f(a:", "f(*a:")),
    ),
    (
        TOOLS,
        "config.tools: mine.py:f: every call fails: ...positional...",
        code(MEANT.replace("a: int", "a: int, /")),
    ),
    (
        f"{PAID} --check",
        "config.environment: reset returned 3; return a text, or None (mine.py)",
        code("class E:\n    def reset(self, **row): return 3\n" + STEP + REWARD),
    ),
    (
        f"{PAID} --check",
        "config.environment: reset failed: mine.py, line 2: ZeroDivisionError: division by zero",
        code("class E:\n    def reset(self, **row): 1 / 0\n" + STEP + REWARD),
    ),
    (
        f"{PAID} --check",
        "config.environment: reset of mine.py gets every column (question, answer, number): ...; take those",
        code("class E:\n    def reset(self): pass\n" + STEP + REWARD),
    ),
    (
        PAID,
        "config.environment: step returned int; return a text, or None to end",
        code("class E:\n" + RESET + STEP.replace("None\n", "3\n") + REWARD),
    ),
    (
        f"{PAID} --check",
        "config.environment: get_reward failed: mine.py: TypeError: ...missing 1 required",
        code("class E:\n" + RESET + STEP + REWARD.replace("self", "self, turn")),
    ),
    (
        PAID,
        "config.environment: get_reward returned None; return a finite number (mine.py)",
        code("class E:\n" + RESET + STEP + REWARD.replace("1.0", "None")),
    ),
    (
        PAID,
        "config.environment: get_reward returned 1e+30; rewards must be within +-1e+06: scale it",
        code("class E:\n" + RESET + STEP + REWARD.replace("1.0", "1e30")),
    ),
    (
        "generate generate_small --config.environment=mine.py:E",
        "config.environment: reset returned 3; return a text, or None (mine.py)",
        code("class E:\n    def reset(self, **row): return 3\n" + STEP),
    ),
    (
        f"{EVALUATE}--environment=mine.py:E",
        "--environment: reset returned 3; return a text, or None (mine.py)",
        both(copied("model"), code("class E:\n    def reset(self, **row): return 3\n" + STEP)),
    ),
    (
        "train guess_small --config.rewards={'guessed':1.0}",
        "config.rewards: ...'GuessNumber' is not used; give GuessNumber=WEIGHT",
    ),
    (
        ENVIRONMENT,
        "config.rewards.GuessNumber=1.0 is not of a reward; allowed:",
        code("class E:\n" + RESET + STEP),
    ),
    (
        "train grpo_small --config.conversation={'turns':3}",
        "config: conversation is given, but neither tools nor environment",
    ),
    (
        "train tools_small --config.conversation.turn_length=49",
        "config.conversation.turn_length=49 is above rollout.max_completion_length=48",
    ),
    ("train tools_small --config.conversation.turns=0", "config.conversation.turns=0 must be at"),
    (
        "train tools_small --config.conversation={'truns':3}",
        "config.conversation.truns is not a field; did you mean turns?",
    ),
    *((f"train {name} --config.tools=('mine.py:f',)", "config.tools is not a field") for name in OTHERS),
    (f"{EVALUATE}--tools=mine.py:f", "--tools.0: there is no file mine.py, of mine.py:f, in "),
    (
        f"{EVALUATE}--tools=mine.py:f",
        f"--tools: mine.py:f: Argument a is missing a type hint...{FORM}",
        both(copied("model"), code(HINTS)),
    ),
    (f"{EVALUATE}--conversation=turns=3", "config: conversation is given, but neither"),
    (f"{EVALUATE}--conversation=turns", "--conversation=turns: write turns=4,turn_length=256"),
    (
        f"{GENERATE} --config.conversation={{'turn_length':9999}}",
        "config.conversation.turn_length=9999 is above sampling.max_completion_length=",
    ),
    (
        "generate generate_small --config.environment=mine.py:E",
        "config.environment: mine.py:E has no method reset",
        code("class E:\n" + STEP),
    ),
]  # fmt: skip
