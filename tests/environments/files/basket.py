"""An environment with state, for test_trl.py, which runs this file in TRL and here."""


class Basket:
    """A basket with room for some things."""

    def reset(self, room, **columns):
        self.things, self.room = [], room
        return f"It has room for {room}."

    def put(self, thing: str) -> str:
        """Put a thing into the basket.

        Args:
            thing: Its name.
        """
        if len(self.things) == self.room:
            return "The basket is full."
        self.things.append(thing)
        return f"It holds {', '.join(self.things)}."

    def count(self) -> int:
        """How many things the basket holds."""
        return len(self.things)

    def get_reward(self):
        return len(self.things) / self.room
