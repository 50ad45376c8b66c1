"""Small programs for the program reward's tests: right and wrong ones."""

from deepseek_jax.rewards.program import find_sandbox


def fenced(program):
    """A completion that gives the program."""
    return f"<think>hm</think> So:\n```python\n{program}\n```\n"


def works(name):
    """Does the sandbox work here?"""
    try:
        return bool(find_sandbox([name]))
    except ValueError:
        return False


# name -> (program, standard inputs)
PROGRAMS = {
    "sum": ("a, b = map(int, input().split())\nprint(a + b)", ["2 3\n", "-5 5\n", "10 20"]),
    "read_all": (
        "import sys\nnumbers = list(map(int, sys.stdin.read().split()))\nprint(max(numbers[1:]))",
        ["3\n1 9 4\n", "1\n-7\n"],
    ),
    "readline_alias": (
        "import sys\ninput = sys.stdin.readline\n"
        "for _ in range(int(input())):\n    print(input().strip()[::-1])",
        ["2\nabc\nxyz\n", "0\n"],
    ),
    "lines": (
        "from sys import stdin, stdout\nfor line in stdin:\n    stdout.write(line.upper())",
        ["one\ntwo\n", "no newline", ""],
    ),
    "sieve": (
        "n = int(input())\nsieve = [True] * (n + 1)\nprimes = []\nfor i in range(2, n + 1):\n"
        "    if sieve[i]:\n        primes.append(i)\n        for j in range(i * i, n + 1, i):\n"
        "            sieve[j] = False\nprint(*primes)",
        ["30\n", "2\n", "1000\n"],
    ),
    "fibonacci": (
        "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\nprint(fib(int(input())))",
        ["0\n", "90\n"],
    ),
    "counts": (
        "from collections import Counter\nfor word, n in sorted(Counter(input().split()).items()):\n"
        "    print(f'{word}: {n}')",
        ["b a b c\n", "x\n"],
    ),
    "shortest_path": (
        "from collections import deque\nn, m = map(int, input().split())\n"
        "edges = [[] for _ in range(n)]\nfor _ in range(m):\n"
        "    a, b = map(int, input().split())\n    edges[a].append(b)\n    edges[b].append(a)\n"
        "distance = {0: 0}\nqueue = deque([0])\nwhile queue:\n    a = queue.popleft()\n"
        "    for b in edges[a]:\n        if b not in distance:\n"
        "            distance[b] = distance[a] + 1\n            queue.append(b)\n"
        "print(distance.get(n - 1, -1))",
        ["4 3\n0 1\n1 2\n2 3\n", "3 1\n0 1\n"],
    ),
    "knapsack": (
        "n, size = map(int, input().split())\nbest = [0] * (size + 1)\nfor _ in range(n):\n"
        "    w, v = map(int, input().split())\n    for s in range(size, w - 1, -1):\n"
        "        best[s] = max(best[s], best[s - w] + v)\nprint(best[size])",
        ["3 5\n2 3\n3 4\n4 5\n", "1 1\n2 9\n"],
    ),
    "brackets": (
        "pairs = {')': '(', ']': '['}\nstack = []\nok = True\nfor c in input():\n"
        "    if c in pairs:\n        ok = ok and bool(stack) and stack.pop() == pairs[c]\n"
        "    else:\n        stack.append(c)\nprint('yes' if ok and not stack else 'no')",
        ["([])\n", "([)]\n", "(\n"],
    ),
    "class_and_prompt": (
        "class Account:\n    def __init__(self, name):\n        self.name, self.total = name, 0\n"
        "    def add(self, n):\n        self.total += n\naccount = Account(input('name? '))\n"
        "account.add(3)\nprint(account.name, account.total, sep='|', end='!\\n')",
        ["Ada\n"],
    ),
    "errors_and_exit": (
        "import sys\ntry:\n    print(10 // int(input()))\nexcept ZeroDivisionError as error:\n"
        "    print(type(error).__name__)\n    print('seen', file=sys.stderr)\n    sys.exit()\nprint('end')",
        ["3\n", "0\n"],
    ),
    "main": (
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef depth(n):\n"
        "    return 0 if n == 0 else 1 + depth(n - 1)\ndef main():\n"
        "    print(depth(int(input())))\nif __name__ == '__main__':\n    main()",
        ["500\n"],
    ),
}
ONLY_IN_PYTHON = {  # what pydantic-monty has not: another module, generators, inheritance
    "heapq": ("import heapq\nh = [3, 1, 2]\nheapq.heapify(h)\nprint(heapq.heappop(h))", [""]),
    "generator": (
        "def squares():\n    for i in range(4):\n        yield i * i\nprint(*squares())",
        [""],
    ),
    "inheritance": ("class A(dict):\n    pass\nprint(A(x=1)['x'])", [""]),
}
WRONG = {  # name -> (program, how it ends) where 1 + the number read is asked for
    "off_by_one": ("print(int(input()) + 2)", "wrong"),
    "right_at_first": ("n = int(input())\nprint(n + 1 if n < 5 else n)", "wrong"),
    "silent": ("n = int(input()) + 1", "wrong"),
    "one_line_more": ("print(int(input()) + 1)\nprint('done')", "wrong"),
    "answers_to_all_cases": ("print(2)\nprint(11)\nprint(0)", "wrong"),
    "one_line_of_all_answers": ("print(2, 11, 0)", "wrong"),
    "reads_too_much": ("input()\nprint(int(input()) + 1)", "crashed"),
    "raises": ("print(int(input()) / 0)", "crashed"),
    "fails_at_the_end": ("print(int(input()) + 1)\nraise SystemExit('no')", "crashed"),
    "no_python": ("print(int(input()) + 1", "crashed"),
    "null_byte": ("print(int(input()) + 1)\0", "crashed"),
}
