"""Phrases to listen for: a bonus that grows with every matched character and is taken back where the match breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Hotwords:
    """An automaton over the characters of the text (Aho & Corasick, 1975), so that it fits every kind of token.

    A phrase counts from word start to word end. Within a match the credit is ``boost`` times the share of the phrase
    that was read; what a whole phrase has earned stays. State 0 is "no phrase begun".

    Args:
        phrases: words separated by spaces.
        boost: nats for a whole phrase.
    """

    def __init__(self, phrases: Iterable[str], boost: float) -> None:
        self.boost = boost
        self._next: list[dict[str, int]] = [{}]
        self._credit, self._earned, self._shorter = [0.0], [0.0], [0]
        for phrase in phrases:
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
        # Breadth first, the shorter matches are known before the longer ones that fall back to them
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
        """Gain (negative: credit taken back) and state after more text; words are preceded by a space each."""
        gain = -self._credit[state]
        for character in text:
            state = self._step(state, character)
            gain += self._earned[state]
        return gain + self._credit[state], state

    def end(self, state: int, text: str = " ") -> float:
        """Gain at the end of the text, after the space that ends its last word: unfinished matches are broken off."""
        gain, state = self.read(state, text)
        return gain - self._credit[state]
