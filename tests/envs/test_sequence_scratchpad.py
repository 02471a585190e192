"""The environment with tools, played by hand; TRL plays it in test_sequence_trl.py."""

import pytest

from envs.sequence_tasks import TaskConfig, generate
from envs.sequence_tasks.scratchpad import CountScratchpadEnv, scratchpad_dataset

ROW = {"payload": ["1", "0", "1", "1", "1"], "answer": "4", "kind": "count_bernoulli", "counted": "1"}


def test_who_reads_in_parts_and_notes_the_sum_is_paid():
    env = CountScratchpadEnv(window=2)
    question = env.reset(**ROW, prompt=[{"role": "user", "content": ""}], length=5)
    assert question.startswith("How often does 1 occur in the sequence? It has 5 elements.")
    total = 0
    for start in range(0, 5, 2):
        total += env.read(start, min(start + 2, 5)).split().count("1")
        notes = env.note(f"{total}")
        assert env.get_reward() == float(start == 4)
    assert notes == "1\n3\n4"


def test_the_last_note_counts_and_must_be_the_answer_alone():
    env = CountScratchpadEnv()
    env.reset(**ROW)
    assert env.get_reward() == 0.0
    for note, reward in (
        ("4", 1.0),
        ("perhaps 4", 0.0),
        ("The answer is known", 0.0),
        (" 4.", 1.0),
        ("5", 0.0),
    ):
        env.note(note)
        assert env.get_reward() == reward
    env.reset(**ROW)
    assert env.get_reward() == 0.0  # notes do not outlive an episode
    assert env.note("4") == "4"


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 2), (3, 2), (0, 4), (4, 6)])
def test_reads_out_of_range(start, end):
    env = CountScratchpadEnv(window=3)
    env.reset(**ROW)
    with pytest.raises(ValueError, match="0 <= start < end <= 5, and at most 3 apart"):
        env.read(start, end)


@pytest.mark.parametrize("kind", ["count_ones", "count_bernoulli", "count_word", "sum_ones"])
def test_without_a_dataset_all_environments_draw_the_same(kind):
    config = TaskConfig(kind, lengths=(5, 9))
    one, other = CountScratchpadEnv(config), CountScratchpadEnv(config)
    for item in generate(config, 12):
        assert one.reset() == other.reset(prompt=[])
        assert one.read(0, item.length) == " ".join(item.payload)
        one.note(item.answer)
        assert one.get_reward() == 1.0


def test_the_dataset():
    pytest.importorskip("datasets")
    config = TaskConfig("count_word", lengths=(5, 9))
    env = CountScratchpadEnv()
    for row, item in zip(scratchpad_dataset(config, 6), generate(config, 6), strict=True):
        assert "word car" in env.reset(**row)
        assert env.read(0, row["length"]).split() == list(item.payload)
        env.note(item.answer)
        assert env.get_reward() == 1.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="A scratchpad is for count_ones"):
        CountScratchpadEnv(TaskConfig("copy_last"))
    with pytest.raises(ValueError, match="A scratchpad is for count_ones"):
        scratchpad_dataset(TaskConfig("parity"), 1)
    with pytest.raises(ValueError, match="window must be at least 1"):
        CountScratchpadEnv(window=0)
    with pytest.raises(ValueError, match="make the dataset with scratchpad_dataset"):
        CountScratchpadEnv().reset(payload=["1"], answer="1", kind="count_ones")
