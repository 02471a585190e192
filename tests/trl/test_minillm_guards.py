"""A student that wins its reward without answering is named early, and a healthy one never."""

import logging
import random

import pytest
import torch

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


@pytest.mark.parametrize("sign", SICK)
def test_a_collapse_in_the_second_rollout_is_no_part_of_what_it_is_measured_by(sign):
    guard = DegenerationGuard()
    assert guard.look(signs(HEALTHY))[1] == []
    said = [warning for _ in range(SETTLE) for warning in guard.look(signs(SICK[sign]))[1]]
    assert sum(sign in warning for warning in said) == 1


@pytest.mark.parametrize(
    ("name", "bound"),
    [("empty_ratio", 0.2), ("short_ratio", 0.5), ("repetition", 0.5), ("prompt_echo", 0.5)],
)
def test_a_warning_is_due_beyond_a_bound_and_beyond_half_more_than_at_first(name, bound):
    healthy = {"empty_ratio": 0, "short_ratio": 0, "repetition": 0, "prompt_echo": 0}
    healthy |= {"mean_length": 9, "length_error": 0}
    for start in (0.0, bound):
        limit = max(bound, 1.5 * start)
        for value, warned in ((limit - 0.01, 0), (limit + 0.01, 1)):
            guard = DegenerationGuard()
            guard.look({**healthy, name: start})
            said = [w for _ in range(SETTLE) for w in guard.look({**healthy, name: value})[1]]
            assert len(said) == warned
            assert all(
                w.startswith(f"{name} of the student's answers has risen to {value:.2f}") for w in said
            )


@pytest.mark.parametrize(("length", "warned"), [(5.1, ""), (4.9, "shorter"), (14.9, ""), (15.1, "longer")])
def test_the_length_may_drift_by_half(length, warned):
    guard = DegenerationGuard()
    rest = {"empty_ratio": 0, "short_ratio": 0, "repetition": 0, "prompt_echo": 0, "length_error": 0}
    guard.look({**rest, "mean_length": 10.0})
    looks = [guard.look({**rest, "mean_length": length}) for _ in range(SETTLE)]
    assert [w for _, warnings in looks for w in warnings] == (
        [f"answers have become {abs(length / 10 - 1):.0%} {warned} since training began"] if warned else []
    )
    assert looks[-1][0]["length_drift"] == pytest.approx(length / 10 - 1)


def test_lengths_that_vary_much_are_no_drift_and_a_collapse_among_them_is():
    """Eight answers a rollout, of 1 to 64 tokens and 20 on average."""
    draw = random.Random(0)

    def answers(change=lambda n: n):
        lengths = [change(min(64, int(draw.expovariate(1 / 20)) + 1)) for _ in range(8)]
        return [[draw.randrange(2, 10**6) for _ in range(n)] for n in lengths]

    def warned(rollouts):
        guard = DegenerationGuard()
        said = [warning for answers in rollouts for warning in guard.look(signs(answers))[1]]
        return said, any("answers have become" in warning for warning in said)

    assert sum(warned(answers() for _ in range(200))[1] for _ in range(50)) <= 3
    for change, sure in ((lambda n: 64, 45), (lambda n: 1, 20)):
        found = [warned(answers(change) if i >= 10 else answers() for i in range(30)) for _ in range(50)]
        assert all(said for said, _ in found)  # of short ones the other signs warn too
        assert sum(length for _, length in found) >= sure


def test_the_error_of_a_length_is_that_of_its_mean():
    found = degeneration([PROMPT] * 3, [[5], [5, 6, 7], [5, 6, 7, 8, 9]])
    assert found["mean_length"] == 3.0
    assert found["length_error"] == pytest.approx(4.0 / 3.0)
    assert degeneration([PROMPT], [[5, 6, END]], endings=[END])["length_error"] == 4.0


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


def test_the_error_of_two_processes_is_that_of_all_their_answers(tmp_path, tiny, monkeypatch):
    trainer = tiny.trainer(tmp_path)
    seen = []
    look = trainer._guard.look
    trainer._guard.look = lambda signs: seen.append(signs) or look(signs)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    trainer._sum = lambda values: 2 * values  # the other has the same answers
    answers = torch.tensor([[5, 0, 0], [5, 6, 7]])
    rollouts = {"prompt_ids": answers, "prompt_mask": answers, "completion_ids": answers}
    trainer._watch_for_degeneration(rollouts, (answers != 0).long())
    assert seen[0]["mean_length"] == 2.0
    assert seen[0]["length_error"] == 0.5  # variance 2 over four answers
