"""An environment of one's own: a class, one object of which each conversation has. Copy it and change it."""


class Checked:
    """The model may have numbers checked before it answers; it earns less for each check."""

    def reset(self, answer, **columns):
        """Begin a conversation: it gets all columns of its question."""
        self.answer, self.checks, self.is_right = float(answer), 0, False
        return " Check your answer before you give it."

    def check(self, number: float) -> str:
        """Compare a number with the right answer.

        Args:
            number: What to compare.
        """
        self.checks += 1
        self.is_right = float(number) == self.answer
        if self.is_right:
            return "That is right."
        return "Too small." if float(number) < self.answer else "Too large."

    def get_reward(self):
        """A reward beside the rules, named as the class in config.rewards."""
        return self.is_right / max(self.checks, 1)
