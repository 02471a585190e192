"""The made-up language: the probabilities it states are those it draws by, and a batch is its number's."""

import numpy as np
import pytest

from recipes.corpus import BATCHES_A_BLOCK, Corpus, Stream

SMALL = {"vocab_size": 12, "n_classes": 3, "n_successors": 3, "repeat": 3, "p_repeat": 0.2}


def next_distribution(corpus, seen):
    """The distribution of what follows ``seen``, read off the docstring, from nothing but what is in view."""
    mark, unmarked, to_repeat = corpus.n_words + 1, 0, 0
    for token in seen[1:]:
        if token == mark:
            unmarked, to_repeat = 0, corpus.repeat
        else:
            unmarked, to_repeat = unmarked + 1, max(to_repeat - 1, 0)
    p = np.zeros(corpus.vocab_size)
    if to_repeat:
        p[seen[-1 - corpus.repeat]] = 1.0
        return p
    p[mark] = corpus.p_repeat if unmarked >= corpus.repeat else 0.0
    one = corpus._one[seen[-1]]
    two = np.zeros(corpus.n_words)
    before, last = corpus._classes[[seen[max(-2, -len(seen))], seen[-1]]]
    np.add.at(two, corpus._successors[before, last], corpus._weights)
    p[: corpus.n_words] = (1 - p[mark]) * (one + two) / 2
    return p


def test_the_probabilities_are_those_of_what_is_in_view():
    corpus = Corpus(**SMALL)
    tokens, log_p = corpus.sample(np.random.default_rng(0), 200, 25)
    assert tokens.shape == (200, 26)
    assert log_p.shape == (200, 25)
    for sequence, stated in zip(tokens, log_p, strict=True):
        for t, log_probability in enumerate(stated):
            p = next_distribution(corpus, sequence[: t + 1])
            assert p.sum() == pytest.approx(1.0)
            assert np.log(p[sequence[t + 1]]) == pytest.approx(log_probability, abs=1e-12)


def test_it_draws_by_these_probabilities():
    corpus, n = Corpus(**SMALL), 200_000
    tokens, log_p = corpus.sample(np.random.default_rng(1), n, 5)
    for seen in ([corpus.beginning], tokens[0, :2].tolist(), tokens[0, :5].tolist()):
        same = (tokens[:, : len(seen)] == seen).all(1)
        counts = np.bincount(tokens[same, len(seen)], minlength=corpus.vocab_size)
        p = next_distribution(corpus, seen)
        assert (counts[p == 0] == 0).all()
        p, counts = p[p > 0], counts[p > 0]
        chi_square = ((counts - counts.sum() * p) ** 2 / (counts.sum() * p)).sum()
        assert counts.sum() > 50
        assert chi_square < len(p) + 5 * (2 * len(p)) ** 0.5
    first = next_distribution(corpus, [corpus.beginning])
    entropy = -(first[first > 0] * np.log(first[first > 0])).sum()
    assert -log_p[:, 0].mean() == pytest.approx(entropy, abs=0.01)


def test_a_repeat_repeats_and_words_have_a_long_tail():
    corpus = Corpus()
    tokens, log_p = corpus.sample(np.random.default_rng(2), 1000, 64)
    rows, marks = np.nonzero(tokens == corpus.n_words + 1)
    whole = marks + corpus.repeat < tokens.shape[1]
    assert whole.sum() > 1000
    for i in range(1, corpus.repeat + 1):
        at = rows[whole], marks[whole] + i
        assert (tokens[at] == tokens[at[0], at[1] - corpus.repeat - 1]).all()
        assert (log_p[at[0], at[1] - 1] == 0).all()
    counts = np.sort(np.bincount(tokens.ravel(), minlength=corpus.vocab_size)[: corpus.n_words])[::-1]
    assert counts[-1] > 0
    assert counts[0] > 30 * counts[-1]


def test_a_batch_is_a_function_of_its_number():
    corpus = Corpus(**SMALL)
    numbers = [0, 1, BATCHES_A_BLOCK - 1, BATCHES_A_BLOCK, 3 * BATCHES_A_BLOCK + 5]
    forwards, backwards = Stream(corpus, (0, 7), 4, 6), Stream(corpus, (0, 7), 4, 6)
    batches = {number: forwards.batch(number) for number in numbers}
    for number in reversed(numbers):
        assert (backwards.batch(number) == batches[number]).all()
    assert batches[0].shape == (4, 7)
    assert batches[0].dtype == np.int64
    different = [batches[0], batches[1], batches[BATCHES_A_BLOCK]]
    different += [Stream(corpus, key, 4, 6).batch(0) for key in ((0, 8), (2, 7))]
    assert len({batch.tobytes() for batch in different}) == 5
    assert (Corpus(**SMALL)._one == corpus._one).all()
    assert (Corpus(**SMALL, seed=1)._one != corpus._one).any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"vocab_size": 3}, "words are needed"),
        ({"concentration": 0.0}, "must be positive, got 0.0"),
        ({"n_classes": 0}, "must be positive"),
        ({"repeat": 1}, "at least two tokens"),
        ({"p_repeat": 1.0}, "a probability below 1"),
    ],
)
def test_it_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Corpus(**wrong)
