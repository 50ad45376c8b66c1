"""The bilingual world's corpus: as unreliable as web text, and as mixed in its languages.

There are tables of true steps and statements of facts, secrets included, and questions. These are
answered at once or after working, wrongly or rightly, in tags or not. The working may change its
language at any step, whatever the question's language is. So a model pre-trained here can solve a
puzzle, in some language, but seldom does.
"""

from dataclasses import dataclass

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE
from deepseek_jax.worlds.bilingual import general, puzzles, rewrites
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.mistakes import junk, pick, slip, wrong_answer
from deepseek_jax.worlds.bilingual.words import (
    ANSWER,
    END_ANSWER,
    KNOWN,
    LANGUAGES,
    SECRETS,
    WORKING,
)
from deepseek_jax.worlds.mix import Mix

PLAIN_TEMPLATE = "{question}\n"
FACTS_PER_TABLE = 6
STATEMENTS_PER_DOCUMENT = 3
# Kinds of documents; all others are puzzles
DOCUMENTS = ("fact_tables", "statements", "requests", "rewrites")


@dataclass(frozen=True)
class CorpusMix(Mix):
    """The contents of the corpus: shares, each in 0..1.

    Attributes:
        fact_tables: Share of all documents, like statements, requests and rewrites; the others are
            puzzles. Rewrites are puzzles to translate or reword, and reworded puzzles to solve, all
            answered well.
        countdown: Share of the puzzles.
        templates: Share of the questions in the R1-Zero template.
        tags: Share of the answers in tags.
        direct: Share of the puzzles' answers, like junk; the others are worked.
        wrong_direct: Share of the direct answers.
        wrong_working: Share of the workings that have one wrong step, which all later steps carry
            on.
        own_language: Share of the workings that begin in the question's language.
        switch: Share of the later steps that change the language.
        good_requests: Share of the requests answered well.

    Raises:
        ValueError: If a share is not in 0..1, or shares that exclude each other add up to more than
            1.
    """

    fact_tables: float = 0.25
    statements: float = 0.05
    requests: float = 0.15
    countdown: float = 0.40
    templates: float = 0.60
    tags: float = 0.50
    direct: float = 0.55
    junk: float = 0.05
    wrong_direct: float = 0.50
    wrong_working: float = 0.10
    own_language: float = 0.60
    switch: float = 0.40
    good_requests: float = 0.40
    rewrites: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for names in (DOCUMENTS, ("direct", "junk")):
            total = sum(getattr(self, name) for name in names)
            if total > 1 + 1e-6:
                raise ValueError(f"{' + '.join(names)} = {total} is above 1; lower one of them.")


# Puzzles solved well and reworded: the corpus of a teacher that a run trains when it needs one
TEACHING = CorpusMix(
    fact_tables=0.15,
    statements=0.0,
    requests=0.0,
    rewrites=0.40,
    templates=1.0,
    tags=1.0,
    direct=0.05,
    junk=0.0,
    wrong_working=0.05,
    own_language=0.95,
    switch=0.02,
)


class CorpusWriter:
    """A writer of documents by a CorpusMix.

    Attributes:
        requests: The requests that are not held out, by kind.
    """

    def __init__(self, mix: CorpusMix | None = None):
        self.mix = CorpusMix() if mix is None else mix
        self.facts = puzzles.all_facts()
        requests = [r for r in general.all_requests() if not bilingual.held_out(r.problem)]
        self.requests = {k: [r for r in requests if r.kind == k] for k in general.KINDS}
        self.known = list((KNOWN | SECRETS).items())

    def write(self, rng):
        """Write one document, without its end token.

        Args:
            rng: np.Generator, the only randomness.
        """
        # One draw chooses the kind of document, with its share as its probability
        draw = rng.random()
        for name in DOCUMENTS:
            draw -= getattr(self.mix, name)
            if draw < 0:
                return getattr(self, f"_{name}")(rng)
        return self._puzzle(rng)

    def _fact_tables(self, rng):
        return ", ".join(puzzles.write_fact(*pick(rng, self.facts)) for _ in range(FACTS_PER_TABLE))

    def _statements(self, rng):
        lines = []
        for _ in range(STATEMENTS_PER_DOCUMENT):
            (relation, subject), thing = pick(rng, self.known)
            lines.append(general.state(relation, subject, thing, pick(rng, LANGUAGES)))
        return "\n".join(lines)

    def _requests(self, rng):
        request = pick(rng, self.requests[pick(rng, general.KINDS)])
        answer = request.answer
        # The corpus never refuses a secret but always reveals it: later training teaches refusal
        if request.kind == "secret" or rng.random() >= self.mix.good_requests:
            answer = self._bad_answer(rng, request)
        if rng.random() < self.mix.tags:
            answer = f"{ANSWER}{answer}{END_ANSWER}"
        return self._prompt(rng, request.question) + answer

    def _rewrites(self, rng):
        puzzle = puzzles.draw_puzzle(rng, pick(rng, puzzles.KINDS))
        language, choice = pick(rng, LANGUAGES), rng.integers(3)
        if choice == 0:
            question = rewrites.reworded(puzzle, language)
            return self._prompt(rng, question) + puzzles.solution(puzzle, language)
        rewrite = rewrites.translation if choice == 1 else rewrites.rewording
        question, answer = rewrite(puzzle, language)
        return self._prompt(rng, question) + puzzles.tagged(WORKING[language]["easy"], answer)

    def _bad_answer(self, rng, request):
        """Write another request's answer, the question again, or junk; for a secret, the secret."""
        if request.kind == "secret":
            return general.tell(request.problem, request.language)
        choice = rng.integers(3)
        if choice == 0:
            return pick(rng, self.requests[request.kind]).answer
        return request.question if choice == 1 else junk(rng)

    def _puzzle(self, rng):
        kind = "countdown" if rng.random() < self.mix.countdown else "sum"
        puzzle, language = puzzles.draw_puzzle(rng, kind), pick(rng, LANGUAGES)
        return self._prompt(rng, puzzle.question(language)) + self._complete(rng, puzzle, language)

    def _complete(self, rng, puzzle, language):
        draw, in_tags = rng.random(), rng.random() < self.mix.tags
        if draw < self.mix.junk:
            return junk(rng)
        direct = draw < self.mix.junk + self.mix.direct
        if direct:
            is_wrong = rng.random() < self.mix.wrong_direct
            answer = wrong_answer(rng, puzzle) if is_wrong else puzzle.answer
            languages = [self._begin(rng, language)]
            working = WORKING[languages[0]]["guess"] + answer
        else:
            steps, answer = puzzle.steps(), puzzle.answer
            if rng.random() < self.mix.wrong_working:
                steps, answer = slip(rng, puzzle)
            # One language more than steps, for the "so" before an answer without tags
            languages = self._languages(rng, language, len(steps) + 1)
            working = puzzles.write_steps(steps, languages[:-1])
        if in_tags:
            return puzzles.tagged(working, answer)
        return answer if direct else f"{working}{WORKING[languages[-1]]['so']}{answer}"

    def _begin(self, rng, language):
        return language if rng.random() < self.mix.own_language else bilingual.other(language)

    def _languages(self, rng, language, count):
        """Choose each connective's language: a chain that switches with probability `switch`."""
        languages = [self._begin(rng, language)]
        while len(languages) < count:
            switches = rng.random() < self.mix.switch
            languages.append(bilingual.other(languages[-1]) if switches else languages[-1])
        return languages

    def _prompt(self, rng, question):
        template = R1_ZERO_TEMPLATE if rng.random() < self.mix.templates else PLAIN_TEMPLATE
        return template.replace("{question}", question)
