"""GuessTheNumber-v0, a game of textarena (pip install textarena==0.7.4): the model writes [7], say.

config.environment = "textarena_guess.py:GuessTheNumber"
"""

import textarena


class GuessTheNumber:
    def reset(self, **columns):
        # It draws the number from `random`, which has the conversation's seed
        self.game = textarena.make("GuessTheNumber-v0-raw")
        self.game.reset(num_players=1)
        return self._news()

    def step(self, text):
        done, _ = self.game.step(action=text)
        return None if done else self._news()

    def get_reward(self):
        rewards, _ = self.game.close()
        return rewards[0] if rewards else 0.0

    def _news(self):
        _, observed = self.game.get_observation()
        return "\n".join(text for sender, text, _ in observed if sender == textarena.GAME_ID)
