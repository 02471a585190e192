"""A language made of arithmetic: endless text with a long tail, and the exact entropy of every token.

With it language models can be trained where there is nothing to download, and one knows how far from the
least possible loss they are.
"""

from __future__ import annotations

import numpy as np

BATCHES_A_BLOCK = 64  # drawn at once, since numpy is slow on few numbers


class Corpus:
    """The source of sequences. Each begins with a mark, and all that decides its next token is in view.

    - A word is drawn by one of two tables, with equal probability. One knows the word before: its rows are
      Dirichlet draws about a Zipf distribution, so that each prefers few words. The other knows the classes
      of the two words before and has ``n_successors`` words for each pair, with Zipf weights. Words have a
      long tail: what follows the frequent ones is learned soon, the rest is met rarely.
    - Instead of a word a repeat mark comes with probability ``p_repeat``, once there were ``repeat`` words
      since the last mark. The next ``repeat`` tokens are those before the mark once more: certain for whoever
      looks back, which has to be learned, too.

    Ids: words, then the mark of the beginning, then the repeat mark.

    Args:
        vocab_size: words and marks.
        seed: of the tables. Another seed is another language.
        concentration: about how many words a row of the first table prefers.
        n_classes: classes of words.
        n_successors: words that may follow a pair of classes in the second table.
        repeat: tokens of a repeat.
        p_repeat: probability of the repeat mark where it may come.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        vocab_size: int = 128,
        seed: int = 0,
        concentration: float = 20.0,
        n_classes: int = 16,
        n_successors: int = 8,
        repeat: int = 8,
        p_repeat: float = 0.04,
    ) -> None:
        if vocab_size < 4:
            raise ValueError(f"vocab_size={vocab_size}: there are two marks, and words are needed")
        if concentration <= 0 or n_classes < 1 or n_successors < 1:
            raise ValueError(
                "concentration, n_classes and n_successors must be positive, got "
                f"{concentration}, {n_classes} and {n_successors}"
            )
        if repeat < 2 or not 0 <= p_repeat < 1:
            raise ValueError(
                f"repeat={repeat} and p_repeat={p_repeat}: at least two tokens, and a probability below 1"
            )
        self.vocab_size = vocab_size
        self.n_words = n = vocab_size - 2
        self.repeat, self.p_repeat = repeat, p_repeat
        rng = np.random.default_rng(seed)
        zipf = _zipf(n, shift=2.0)
        # Where a word is looked up, n stands for the beginning: hence n + 1 rows.
        one = rng.dirichlet(concentration * zipf + 1e-3, size=n + 1)
        self._one = one / one.sum(1, keepdims=True)  # (n + 1, n)
        cumulated = np.cumsum(self._one, 1)
        # Row r is moved up by r, which makes one ascending list: a draw from any row is one look-up.
        self._one_ladder = (cumulated / cumulated[:, -1:] + np.arange(n + 1)[:, None]).ravel()
        self._classes = np.append(rng.integers(n_classes, size=n), n_classes)  # (n + 1,)
        self._successors = rng.choice(n, (n_classes + 1, n_classes + 1, n_successors), p=zipf)
        self._weights = _zipf(n_successors)
        self._two_ladder = np.cumsum(self._weights)[:-1]

    @property
    def beginning(self) -> int:
        """The id of the first token of every sequence."""
        return self.n_words

    def sample(
        self, rng: np.random.Generator, n_sequences: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw sequences.

        Args:
            rng: where the randomness is from.
            n_sequences: N.
            length: L, tokens after the first.

        Returns:
            tokens: (N, L + 1) int64; the first of each is `beginning`.
            log_p: (N, L) float64, the logarithm of the probability that the source gave each token after the
                first, all tokens before it being known. Minus its mean is the loss of the source itself.
        """
        tokens = np.full((n_sequences, length + 1), self.beginning)
        log_p = np.zeros((n_sequences, length))
        draws = rng.random((length, 3, n_sequences))
        unmarked = np.zeros(n_sequences, np.int64)  # (N,) tokens since the last mark
        to_repeat = np.zeros(n_sequences, np.int64)  # (N,) tokens of a repeat still to come
        for t in range(1, length + 1):
            kind, table, word = draws[t - 1]  # (N,) each, in [0, 1)
            # Right after a mark these are no words; but there a repeat is under way, and uses none of it.
            a, b = (np.minimum(tokens[:, max(i, 0)], self.n_words) for i in (t - 2, t - 1))
            new = self._draw_words(a, b, table, word)
            p_mark = np.where(unmarked >= self.repeat, self.p_repeat, 0.0)  # (N,)
            repeating, mark = to_repeat > 0, kind < p_mark
            p = np.where(mark, p_mark, (1 - p_mark) * self._p_words(a, b, new))

            old = tokens[:, max(t - 1 - self.repeat, 0)]
            tokens[:, t] = np.where(repeating, old, np.where(mark, self.n_words + 1, new))
            log_p[:, t - 1] = np.log(np.where(repeating, 1.0, p))
            # A repeat is as long as must be between two marks: none can come within it.
            to_repeat = np.where(mark, self.repeat, np.maximum(to_repeat - 1, 0))
            unmarked = np.where(mark, 0, unmarked + 1)
        return tokens, log_p

    def _draw_words(self, a: np.ndarray, b: np.ndarray, table: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Words after the words ``a``, ``b``, (N,) each, by the uniform numbers ``table`` and ``u``."""
        step = np.searchsorted(self._one_ladder, b + u, side="right") - b * self.n_words
        one = np.minimum(step, self.n_words - 1)
        which = np.searchsorted(self._two_ladder, u, side="right")
        two = self._successors[self._classes[a], self._classes[b], which]
        return np.where(table < 0.5, one, two)

    def _p_words(self, a: np.ndarray, b: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The probabilities of ``words`` after the words ``a``, ``b``, (N,) each, by both tables together."""
        successors = self._successors[self._classes[a], self._classes[b]]  # (N, n_successors)
        two = ((successors == words[:, None]) * self._weights).sum(1)
        return 0.5 * self._one[b, words] + 0.5 * two


class Stream:
    """Batches without end, each a function of its number alone: a run goes on where it was by its step.

    Args:
        corpus: the source.
        key: which stream of it: the seed of its random numbers, with the number of the block.
        batch_size: B.
        length: L, tokens to predict in a sequence.
    """

    def __init__(self, corpus: Corpus, key: tuple[int, ...], batch_size: int, length: int) -> None:
        self.corpus, self.key, self.batch_size, self.length = corpus, key, batch_size, length
        self._block: int | None = None

    def batch(self, number: int) -> np.ndarray:
        """Batch ``number`` (0, 1, ...): tokens, (B, L + 1) int64."""
        block, within = divmod(number, BATCHES_A_BLOCK)
        if block != self._block:
            rng = np.random.default_rng([*self.key, block])
            tokens, _ = self.corpus.sample(rng, BATCHES_A_BLOCK * self.batch_size, self.length)
            self._tokens, self._block = tokens.reshape(BATCHES_A_BLOCK, self.batch_size, -1), block
        return self._tokens[within]


def _zipf(n: int, shift: float = 0.0) -> np.ndarray:
    weights = 1.0 / (np.arange(n) + 1.0 + shift)
    return weights / weights.sum()
