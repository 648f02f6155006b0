"""Hot words: phrases with a bonus, which grows with every matched character and is taken back if the match breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Hotwords:
    """An automaton that matches phrases character by character (Aho & Corasick, 1975), for tokens of any type.

    A phrase matches from the start of a word to the end of one. A partial match has a credit of ``boost`` times the
    matched share of the phrase, which a complete match makes permanent. State 0 means that no phrase has begun.

    Args:
        phrases: words separated by spaces.
        boost: score of a complete phrase, in nats.

    Attributes:
        words: the words of all phrases.
    """

    def __init__(self, phrases: Iterable[str], boost: float) -> None:
        self.boost = boost
        self.words: set[str] = set()
        self._next: list[dict[str, int]] = [{}]
        self._credit, self._earned, self._shorter = [0.0], [0.0], [0]
        for phrase in phrases:
            self.words.update(phrase.split())
            spelled = f" {' '.join(phrase.split())} "
            if not spelled.strip():
                continue
            node = 0
            for depth, character in enumerate(spelled, 1):
                if character not in self._next[node]:
                    self._next[node][character] = len(self._next)
                    self._next.append({})
                    self._credit.append(0.0)
                    self._earned.append(0.0)
                    self._shorter.append(0)
                node = self._next[node][character]
                if depth < len(spelled):
                    self._credit[node] = max(self._credit[node], boost * (depth - 1) / (len(spelled) - 1))
            self._earned[node] = boost
        # Breadth first, so that the shorter suffix to which a node falls back is complete before the node is
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._shorter[child] = self._step(self._shorter[node], character)
                queue.append(child)
            shorter = self._shorter[node]
            self._earned[node] += self._earned[shorter]
            self._credit[node] = max(self._credit[node], self._credit[shorter])

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def read(self, state: int, text: str) -> tuple[float, int]:
        """Read more text from a state; each word is preceded by a space.

        Returns:
            the change of the score, negative where credit is taken back, and the new state.
        """
        gain = -self._credit[state]
        for character in text:
            state = self._step(state, character)
            gain += self._earned[state]
        return gain + self._credit[state], state

    def end(self, state: int, text: str = " ") -> float:
        """Change of the score at the end of an utterance, where partial matches break.

        ``text`` is read first: the space that ends the last word, unless the state has read it already.
        """
        gain, state = self.read(state, text)
        return gain - self._credit[state]
