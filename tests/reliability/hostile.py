"""Hostile completions: texts that no rule may pay, and programs that no sandbox may let through."""

# name -> completion. None states the answer 3. FILE stands for a path that nothing may create
TEXTS = {
    "import": "__import__('os').system('touch FILE')",
    "import_in_fstring": "f\"{__import__('os').system('touch FILE')}\"",
    "open": "open('FILE', 'w').write('x')",
    "getattr": "().__class__.__base__.__subclasses__()",
    "walrus": "(x := 5)",
    "lambda": "(lambda: 5)()",
    "list": "[5]*9**9",
    "names": "True",
    "latex_input": r"\input{/etc/passwd}\write18{touch FILE}",
    "sympify": "Symbol('x').__class__.mro()[-1].__subclasses__()",
    "power_tower": "9**9**9",
    "power_tower_of_fractions": "(1/3)**(9**9)",
    "negative_tower": "2**-(9**9**9)",
    "latex_tower": "9^{9^{9^9}}",
    "factorials": "((9!)!)!",
    "exponent": "10**1000000000",
    "float_exponent": "1e999999999",
    "digits": "9" * 30_000,
    "parentheses": "(" * 15_000 + ")" * 10_000,
    "brackets": "[" * 30_000,
    "minuses": "-" * 99 + "1",
    "deep": "(" * 45 + "1" + ")" * 45,
    "boxes": r"\boxed{" * 10_000,
    "nested_boxes": r"\boxed{" * 10_000 + "}" * 10_000,
    "texts": r"\text{" * 10_000,
    "fractions": r"\frac{1}{" * 5_000 + "1" + "}" * 5_000,
    "roots": r"\sqrt{" * 5_000 + "2" + "}" * 5_000,
    "tags": "<answer>" * 4_000,
    "closing_tags": "</answer>" * 4_000,
    "thoughts": "<think>" * 4_000 + "5",
    "hashes": "####" * 8_000,
    "spaces": "1" + " " * 30_000 + "2",
    "thousands": "1" + ",111" * 8_000 + "1",
    "signs": "+-" * 10_000,
    "dollars": "$" * 30_000,
    "null": "5\x00",
    "surrogate": "\ud8005\udfff",
    "surrogates": "\ud800" * 10_000,
    "other_digits": "\u0663, \uff13, \U0001d7d1 or \u4e09",
    "mixed_digits": "\u06633",
    "unclosed_thought": "<think>so it is 3",
    "thought": r"<think>\boxed{3} <answer>3</answer> #### 3</think> no idea",
}


def texts(file):
    """TEXTS, with the path of `file` in those that would create it."""
    return {name: text.replace("FILE", str(file)) for name, text in TEXTS.items()}


PROGRAMS = {  # name -> program; each would print 42 if it got through
    "endless_loop": "while True:\n    pass",
    "uncatchable": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "big_integer": "print(len(str(10 ** (10 ** 8))))\nprint(42)",
    "memory_at_once": "x = bytearray(10 ** 10)\nprint(42)",
    "memory_bomb": "x = []\nwhile True:\n    x.append('a' * 10 ** 7)",
    "endless_print": "while True:\n    print('x' * 1000)",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)\nprint(42)",
    "read_file": "print(open('/etc/hostname').read())\nprint(42)",
    "write_file": "open('/usr/x', 'w').write('x')\nprint(42)",
    "system": "print(__import__('os').system('ls /work /root /home || exit 1'))\nprint(42)",
    "environment": "import os\nos.listdir(os.environ['HOME'])\nprint(42)",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nprint(42)",
    "fork_bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "kill_everyone": "import os\nos.kill(-1, 9)\nprint(42)",
    "exit": "import os\nos._exit(0)",
    "deep_source": "x = " + "[" * 5000 + "]" * 5000 + "\nprint(42)",
}
