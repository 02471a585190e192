"""Remedies of prompts: their words by hand, and that payload and answer stay what they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions.glasses.remedies import (
    Alternate,
    BosPrefix,
    Dilute,
    Filler,
    Hint,
    IndexMarkers,
    RepeatQuestion,
    Scattered,
)
from extensions.glasses.remedies.payload import element_spans
from extensions.glasses.remedies.text import with_last_repeated
from extensions.glasses.tasks import Question

REMEDIES = [
    Dilute(3),
    Dilute(2, " ;", side="right"),
    Scattered(3),
    Scattered(1, seed=4),
    Filler(3),
    Filler(2, " ;"),
    Alternate("-"),
    IndexMarkers(),
    IndexMarkers(space=" "),
    BosPrefix(),
    RepeatQuestion(),
    RepeatQuestion("How many ones?"),
    Hint("Look carefully. "),
]


def question(elements, gap=" ", before="How many ones are in ", after=" ?"):
    text = gap.join(elements)
    span = (len(before), len(before) + len(text))
    return Question(before + text + after, span, tuple(elements), " answer:", "7", len(elements))


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.name)
@given(
    elements=st.lists(st.sampled_from(["0", "1", "23"]), min_size=1, max_size=60),
    gap=st.sampled_from(["", " ", "+"]),
)
def test_payload_and_answer_stay(remedy, elements, gap):
    item = question(elements, gap)
    new = remedy(item)
    assert (new.payload, new.answer, new.lead, new.length) == (item.payload, "7", " answer:", len(elements))
    inside = new.prompt[slice(*new.payload_span)]
    places = element_spans(new.prompt, new.payload_span, new.payload)
    assert places[0][0] == new.payload_span[0]
    assert [new.prompt[slice(*place)] for place in places] == elements
    assert [c for c in inside if c in "0123"] == list("".join(elements))
    if not isinstance(remedy, IndexMarkers):
        assert places[-1][1] == new.payload_span[1]  # nothing comes behind the last element


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        (Dilute(3), "How many ones are in 1 1 0, 1 1 ?"),
        (Dilute(3, " ;", "right"), "How many ones are in 1 1 ; 0 1 1 ?"),
        (Alternate("-"), "How many ones are in 1 - 1 - 0 - 1 - 1 ?"),
        (IndexMarkers(), "How many ones are in 1a 1b 0c 1d 1e ?"),
        (BosPrefix("<s>"), "<s>How many ones are in 1 1 0 1 1 ?"),
        (RepeatQuestion(), "How many ones are in 1 1 0 1 1 How many ones are in ?"),
        (Hint("Look. "), "Look. How many ones are in 1 1 0 1 1 ?"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_words(remedy, expected):
    assert remedy(question("11011")).prompt == expected


def test_markers_are_all_different_beyond_26():
    new = IndexMarkers()(question(["1"] * 30))
    words = new.prompt[slice(*new.payload_span)].split()
    assert len(set(words)) == 30
    assert words[:2] + words[25:27] == ["1aa", "1ab", "1az", "1ba"]


@given(st.integers(1, 80), st.integers(1, 6), st.integers(0, 5))
def test_scattered_separators_have_the_budget_of_regular_ones_at_every_length(n, every, seed):
    scattered, dilute = Scattered(every, seed=seed), Dilute(every)
    assert len(scattered.ends(n)) == len(dilute.ends(n)) == (n - 1) // every
    assert scattered.ends(n) == scattered.ends(n + 7)[: len(scattered.ends(n))]
    assert scattered.ends(n) == sorted(set(scattered.ends(n)))
    assert all(1 <= end < n for end in scattered.ends(n))


def test_scattered_separators_stand_elsewhere_and_hang_on_their_seed():
    places = [tuple(Scattered(3, seed=seed).ends(40)) for seed in range(20)]
    assert len(set(places)) == 20
    assert tuple(Dilute(3).ends(40)) not in places


@given(st.integers(1, 80), st.integers(1, 6))
def test_filler_has_the_budget_of_separators_and_leaves_the_sequence_whole(n, every):
    item = question("1" * n)
    filled, diluted = Filler(every)(item), Dilute(every)(item)
    assert len(filled.prompt) == len(diluted.prompt)
    assert filled.prompt.count(",") == diluted.prompt.count(",")
    assert filled.prompt[slice(*filled.payload_span)] == item.prompt[slice(*item.payload_span)]


def test_with_last_repeated():
    assert with_last_repeated(question("110"), 2).prompt == "How many ones are in 1 1 0 0 0 ?"
    longer = with_last_repeated(question("1", gap=""), 1)
    assert (longer.prompt, longer.payload, longer.length) == ("How many ones are in 11 ?", ("1", "1"), 2)
    assert longer.prompt[slice(*longer.payload_span)] == "11"


def test_bad_input():
    with pytest.raises(ValueError, match="could not be told apart"):
        Dilute(2)(question("111", gap=", "))
    with pytest.raises(ValueError, match="holds an element"):
        Alternate("1")(question("101"))
    with pytest.raises(ValueError, match="markers are small letters"):
        IndexMarkers()(question(["car", "dog"]))
    with pytest.raises(ValueError, match="question="):
        RepeatQuestion()(question("101", before=""))
    with pytest.raises(ValueError, match="every must be"):
        Filler(0)
    with pytest.raises(ValueError, match="every must be"):
        Scattered(0)
    with pytest.raises(ValueError, match="could not be told apart"):
        Filler(2)(question("111", gap=", "))
    with pytest.raises(ValueError, match="side must be"):
        Dilute(2, side="up")
