"""The game of guesses, an environment. Workers import this file, and it imports nothing."""

# A guess after this many turns earns nothing
MOST_TURNS = 16


class GuessNumber:
    """A number to guess: the model writes a guess, and the answer to it is "higher" or "lower"."""

    def reset(self, number: int, **row):
        """Begin a game.

        Args:
            number: A column of the questions, so that one group guesses one number.
        """
        self.number, self.turns, self.is_guessed = int(number), 0, False

    def step(self, text: str) -> str | None:
        """Compare the number with this guess; return None once it is guessed."""
        self.turns += 1
        # Not isdigit, which is true for digits that int cannot read
        if not text.strip().isdecimal():
            return "guess a whole number"
        guess = int(text)
        self.is_guessed = guess == self.number
        if self.is_guessed:
            return None
        return "higher" if self.number > guess else "lower"

    def get_reward(self) -> float:
        """Return 1 for a number guessed at once, 1/16 less for each further turn.

        It is 0 if the number was not guessed.
        """
        if not self.is_guessed:
            return 0.0
        return max(0.0, 1 - (self.turns - 1) / MOST_TURNS)
