"""Separators: that nothing is lost, and what tokenizers make of them."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.glasses import Separated
from extensions.glasses.remedies import dilute_ids, dilute_text

SIDES = st.sampled_from(["left", "right"])


def groups(ids, sep):
    found = [[]]
    for token in ids:
        if token == sep:
            found.append([])
        else:
            found[-1].append(token)
    return found


@given(
    ids=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    ends=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    every=st.integers(1, 6),
    side=SIDES,
    keep_last=st.booleans(),
)
def test_ids_are_all_there_and_groups_are_full(ids, ends, every, side, keep_last):
    start, stop = sorted(min(end, len(ids)) for end in ends)
    new, places = dilute_ids(ids, every, sep_id=9, span=(start, stop), side=side, keep_last=keep_last)
    assert new[places].tolist() == ids
    assert new[new != 9].tolist() == ids
    assert new[:start].tolist() == ids[:start]
    assert new[len(new) - (len(ids) - stop) :].tolist() == ids[stop:]
    inside = new[start : len(new) - (len(ids) - stop)].tolist()
    sizes = [len(group) for group in groups(inside, 9)]
    full = sizes[:-1] if side == "left" else sizes[1:] if keep_last else sizes[1:-1]
    assert all(size == every for size in full)
    assert max(sizes) <= every
    if stop > start and keep_last:
        assert inside[-1] != 9
    if stop - start >= every and not keep_last and (side == "right" or (stop - start) % every == 0):
        assert inside[-1] == 9


def test_ids_by_hand():
    ids = torch.tensor([[7, 1, 1, 1, 1, 1, 1, 1, 8], [6, 1, 2, 1, 2, 1, 2, 1, 5]])
    new, places = dilute_ids(ids, 3, sep_id=0, span=(1, 8))
    assert new.tolist() == [[7, 1, 1, 1, 0, 1, 1, 1, 0, 1, 8], [6, 1, 2, 1, 0, 2, 1, 2, 0, 1, 5]]
    assert places.tolist() == [0, 1, 2, 3, 5, 6, 7, 9, 10]
    assert dilute_ids([1] * 7, 3, sep_id=0, side="right")[0].tolist() == [1, 0, 1, 1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("n", [1, 5, 6, 7])
def test_a_family_of_separated_ones_is_diluted_ones(n, side):
    family = Separated(one=1, separator=2, every=3, side=side, prefix=[5, 6])
    expected = dilute_ids([5, 6] + [1] * n, 3, sep_id=2, span=(2, 2 + n), side=side)[0]
    assert torch.equal(family.pairs(n)[0][0], expected)


@settings(deadline=None, suppress_health_check=[])
@given(
    elements=st.lists(
        st.text("012 a", min_size=1, max_size=3).map(str.strip).filter(bool), min_size=1, max_size=20
    ),
    gap=st.sampled_from(["", " ", "+", " . "]),
    before=st.text("ab:, ", max_size=5),
    after=st.text("ab:, ", max_size=5),
    sep=st.sampled_from([",", " ,", ";", " | ", ",,", "0,", "a", ""]),
    every=st.integers(1, 5),
    side=SIDES,
)
def test_text_is_restored_or_refused(char_tokenizer, elements, gap, before, after, sep, every, side):
    payload = gap.join(elements)
    text, span = before + payload + after, (len(before), len(before) + len(payload))
    told_apart = sep and (sep.strip() not in payload) and not any(element in sep for element in elements)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not told_apart:
            with pytest.raises(ValueError, match="separator"):
                dilute_text(
                    text, every, sep, tokenizer=char_tokenizer, span=span, elements=elements, side=side
                )
            return
        new = dilute_text(text, every, sep, tokenizer=char_tokenizer, span=span, elements=elements, side=side)
    assert new.inverse() == text
    assert new.text[slice(*new.span)].replace(sep, "") == payload
    assert new.text[: new.span[0]] + new.text[new.span[1] :] == before + after
    assert len(new.pieces) == (len(elements) - 1) // every
    assert list(new.ids) == char_tokenizer(new.text)["input_ids"]


def test_runs_are_counted_in_tokens_of_the_sequence(char_tokenizer):
    text = "aaaaaaaaaaaa 11111110 aaaaaaaaaaaaaa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = dilute_text(text, 3, tokenizer=char_tokenizer, span=(13, 21))
    assert new.text == "aaaaaaaaaaaa 111,111,10 aaaaaaaaaaaaaa"
    assert (new.max_run_before, new.max_run_after) == (7, 3)


def test_words_are_elements_where_white_space_is(word_tokenizer):
    new = dilute_text("car dog car car", 2, " ,", tokenizer=word_tokenizer)
    assert new.text == "car dog , car car"
    assert dilute_text("1111", 2, tokenizer=word_tokenizer).text == "11,11"


def test_warns_where_the_tokenizer_groups_digits(merging_tokenizer):
    with pytest.warns(UserWarning, match="'111' is one token of 3"):
        dilute_text("1" * 12, 4, ";", tokenizer=merging_tokenizer)


def test_warns_where_the_separator_merges_with_digits(merging_tokenizer):
    with pytest.warns(UserWarning, match="'111,' is one token: put white space"):
        new = dilute_text("1" * 12, 3, ",", tokenizer=merging_tokenizer)
    assert (new.max_run_before, new.max_run_after) == (4, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dilute_text("1" * 12, 3, " , ", tokenizer=merging_tokenizer)
    assert not any("merges" in str(warning.message) for warning in caught)


def test_warns_where_the_run_is_as_long_as_before(char_tokenizer):
    with pytest.warns(UserWarning, match="longest run of one token is 3, no shorter than the 3 before"):
        dilute_text("1110", 3, tokenizer=char_tokenizer)


def test_bad_input(char_tokenizer):
    with pytest.raises(ValueError, match="every must be at least 1"):
        dilute_ids([1, 1], 0, sep_id=2)
    with pytest.raises(ValueError, match="side must be"):
        dilute_ids([1, 1], 2, sep_id=2, side="middle")
    with pytest.raises(ValueError, match="span must be inside"):
        dilute_ids([1, 1], 2, sep_id=2, span=(0, 3))
    with pytest.raises(ValueError, match="could not be told apart"):
        dilute_text("1,1,1", 2, tokenizer=char_tokenizer, elements=["1", "1", "1"])
    with pytest.raises(ValueError, match="element 2 of the payload"):
        dilute_text("1 1", 2, tokenizer=char_tokenizer, elements=["1", "1", "1"])
    with pytest.raises(ValueError, match="fast tokenizer"):
        dilute_text("111", 2, tokenizer=object())
