"""A student that wins its reward without answering is named early, and a healthy one never."""

import logging

import pytest

from extensions.trl.minillm.guards import SETTLE, DegenerationGuard, degeneration

PROMPT = list(range(100, 120))
END = 1
HEALTHY = [list(range(k, k + 12)) + [END] for k in range(10, 90, 10)]
SICK = {
    "empty_ratio": [[END]] * 8,
    "short_ratio": [[5, 6, END]] * 8,
    "repetition": [[7] * 12 + [END]] * 8,
    "prompt_echo": [PROMPT[:12] + [END]] * 8,
    "answers have become": [list(range(k, k + 40)) + [END] for k in range(10, 90, 10)],
}


def signs(answers):
    return degeneration([PROMPT] * len(answers), answers, endings=[END])


def test_healthy_answers_raise_no_warning():
    guard = DegenerationGuard()
    for _ in range(50):
        logged, warnings = guard.look(signs(HEALTHY))
        assert warnings == []
    assert logged == {
        "empty_ratio": 0.0,
        "short_ratio": 0.0,
        "repetition": 0.0,
        "prompt_echo": 0.0,
        "length_drift": 0.0,
    }


@pytest.mark.parametrize("sign", SICK)
def test_a_sick_student_is_named_within_a_few_rollouts_and_once(sign):
    guard = DegenerationGuard()
    for _ in range(10):
        guard.look(signs(HEALTHY))
    said = [guard.look(signs(SICK[sign]))[1] for _ in range(10)]
    first = next(i for i, warnings in enumerate(said) if any(sign in w for w in warnings))
    assert first < SETTLE
    assert sum(sign in w for warnings in said for w in warnings) == 1


def test_data_that_is_short_by_nature_is_no_sickness():
    guard = DegenerationGuard()
    assert all(guard.look(signs(SICK["short_ratio"]))[1] == [] for _ in range(20))


def test_the_guard_goes_on_where_it_was():
    one, other = DegenerationGuard(), DegenerationGuard()
    for _ in range(7):
        one.look(signs(HEALTHY))
    other.restore(one.state())
    for _ in range(6):
        assert one.look(signs(SICK["repetition"])) == other.look(signs(SICK["repetition"]))


def test_the_trainer_says_what_the_guard_found(tmp_path, tiny, caplog):
    trainer = tiny.trainer(tmp_path, steps_per_generation=1, num_iterations=1, max_steps=8)
    rollouts = iter(range(8))

    def answers(prompt_ids, *_):
        fine = next(rollouts) < 3
        return [[8 + i % 30 for i in range(k, k + 6)] if fine else [20] * 6 for k in range(len(prompt_ids))]

    trainer._generate_single_turn = answers
    with caplog.at_level(logging.WARNING):
        trainer.train()
    found = [
        r.getMessage() for r in caplog.records if "repetition of the student's answers" in r.getMessage()
    ]
    assert len(found) == 1
    assert "log_completions=True" in found[0]
    logged = [entry["guards/repetition"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([0.0] * 3 + [2 / 3] * 5)
