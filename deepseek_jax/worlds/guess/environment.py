"""The game, an environment. Workers import this file, and it imports nothing."""

# A guess beyond these earns nothing
MOST_TURNS = 16


class GuessNumber:
    """A number to guess: each text of the model is a guess, to which the answer is "higher" or "lower"."""

    def reset(self, number: int, **row):
        """Begin a game. number: a column of the questions, so that one group guesses one number."""
        self.number, self.turns, self.found = int(number), 0, False

    def step(self, text: str) -> str | None:
        """How the number compares with this guess; None once it is found."""
        self.turns += 1
        # Not isdigit, which is true of digits that int cannot read
        if not text.strip().isdecimal():
            return "guess a whole number"
        guess = int(text)
        self.found = guess == self.number
        if self.found:
            return None
        return "higher" if self.number > guess else "lower"

    def get_reward(self) -> float:
        """1 for a number found at once, 1/16 less for each further turn, 0 if it was not found."""
        if not self.found:
            return 0.0
        return max(0.0, 1 - (self.turns - 1) / MOST_TURNS)
