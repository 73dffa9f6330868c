"""Character n-grams, the yardstick of a names model: what does counting alone know about the next character?

Interpolated Witten–Bell smoothing (Witten and Bell 1991, their method C, as interpolated by Chen and Goodman 1998).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

History = tuple[int, ...]


class NGrams:
    """Interpolated n-grams of every order up to ``order``, over rows of token ids from the begin to the end symbol.

    An order-n gram sees the n − 1 tokens before the one it predicts, or fewer where the row begins: the begin symbol is
    seen and never predicted, the end symbol is predicted and never seen. With T(h) distinct tokens after h in training,

        p(c | h) = (count(h, c) + T(h) · p(c | h')) / (count(h) + T(h)),

    where h' is h without its first token. Below the empty history stands 1 / ``symbols``; after a history that training
    does not have, p(c | h) is p(c | h').

    Args:
        rows: of the training part.
        symbols: how many tokens can be predicted: all characters, the end symbol and the unknown one.
        order: the highest.

    Raises:
        ValueError: an order or a number of symbols below 1.
    """

    def __init__(self, rows: Sequence[Sequence[int]], symbols: int, order: int = 6):
        for name, value in (("order", order), ("symbols", symbols)):
            if value < 1:
                raise ValueError(f"{name}={value}: give a positive number")
        self.order, self.symbols = order, symbols
        self.after: dict[History, dict[int, int]] = {}
        for row in rows:
            for i, history in positions(row, order):
                for start in range(len(history) + 1):
                    seen = self.after.setdefault(history[start:], {})
                    seen[row[i]] = seen.get(row[i], 0) + 1
        self.totals = {history: sum(seen.values()) for history, seen in self.after.items()}

    def probabilities(self, history: Sequence[int], token: int) -> list[float]:
        """p(token | history) by each order from 1 up to ``order``; those that would see more than ``history`` holds repeat the last."""
        history = tuple(history)
        p, result = 1 / self.symbols, []
        for length in range(self.order):
            if length <= len(history) and (seen := self.after.get(h := history[len(history) - length :])):
                p = (seen.get(token, 0) + len(seen) * p) / (self.totals[h] + len(seen))
            result.append(p)
        return result

    def losses(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Nats per character by each order, over all characters of all rows, end symbol included: the positions of ``validation_loss``."""
        sums, count = [0.0] * self.order, 0
        for row in rows:
            for i, history in positions(row, self.order):
                count += 1
                for n, p in enumerate(self.probabilities(history, row[i])):
                    sums[n] -= math.log(p)
        return [total / count for total in sums]

    def stored(self) -> list[int]:
        """How many counts each order keeps, those of the orders below it with its own."""
        own = Counter()
        for history, seen in self.after.items():
            own[len(history)] += len(seen)
        return [sum(own[length] for length in range(n)) for n in range(1, self.order + 1)]


def positions(row: Sequence[int], order: int) -> Iterator[tuple[int, History]]:
    """The positions that are predicted in a row, all but the first, each with the history that an ``order``-gram sees there."""
    row = tuple(row)
    for i in range(1, len(row)):
        yield i, row[max(0, i - order + 1) : i]
