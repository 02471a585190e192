"""The pictures' canvas: its text, its font and its bars; and what of a world's text has room on it."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from envs.canvas import COLOURS, GLYPHS, Canvas


def test_text_that_is_cut_says_so():
    lines = ["one", "two", "three", "four", "five"]
    full = Canvas(lines).pixels
    assert np.array_equal(Canvas([*lines, "six"]).pixels, Canvas([*lines[:4], "five..."]).pixels)
    assert not np.array_equal(Canvas([*lines, "six"]).pixels, full)
    long = Canvas([*lines[:4], "x" * 49]).pixels  # wrapped into two lines
    assert np.array_equal(long, Canvas([*lines[:4], "x" * 45 + "..."]).pixels)
    assert not np.array_equal(long, Canvas([*lines[:4], "x" * 48]).pixels)


def test_characters_can_be_told_apart():
    def cell(character):
        glyph = GLYPHS[character]
        return np.pad(glyph, ((0, 0), (0, 7 - glyph.shape[1])))

    for a, b in itertools.combinations(GLYPHS, 2):
        assert (cell(a) != cell(b)).sum() >= 4
    for alike in ("0DOQ", "HMNW"):
        for a, b in itertools.combinations(alike, 2):
            assert (cell(a) != cell(b)).sum() >= 8


def test_bars_go_up_and_down_from_their_zero():
    canvas = Canvas([])
    canvas.bars([0.75, 0.25, 0.5], 0.0, 0.0, 1.0, 1.0, "red", zero=0.5)
    inner = canvas.pixels[canvas.margin : canvas.size - canvas.margin, canvas.margin : -canvas.margin]
    red = (inner == COLOURS["red"]).all(-1)
    high, low, none = (red[:, int(x * inner.shape[1])] for x in (1 / 6, 3 / 6, 5 / 6))
    middle, quarter = inner.shape[0] // 2, inner.shape[0] // 4
    assert high[quarter:middle].all()
    assert low[middle : middle + quarter].all()
    assert high.sum() == low.sum() == quarter
    assert not none.any()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SlateRec-v0", {"items": 73, "slate": 10, "satiation": True}),
        ("SlateRec-v0", {"items": 2, "slate": 62}),
        ("JointReplenishment-v0", {"products": 18}),
        ("Mastermind-v0", {"pegs": 20, "colours": 8}),
        ("Mastermind-v0", {"pegs": 62, "colours": 2}),
        ("DiscreteLQR-v0", {"dims": 16, "states": 16, "bins": 13}),
        ("DiagonalGrid-v0", {"dims": 20, "pits": 0.3}),
        ("BatchSchedule-v0", {"jobs": 12, "families": 12}),
        ("BatchSchedule-v0", {"jobs": 20}),
    ],
)
def test_long_texts_leave_the_action_and_the_reward(name, kwargs, monkeypatch):
    shown = []
    monkeypatch.setattr(Canvas, "_text", lambda canvas, text, left, top: shown.append((text, top)))
    env = gym.make(f"envs:LargeAction/{name}", render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    env.step(env.unwrapped.dynamics.n - 1)
    frame = env.render()
    text = " ".join(line for line, _ in shown)
    assert f"ACTION {env.unwrapped.dynamics.n - 1}:" in text
    assert f"REWARD {env.unwrapped._last[2]:.0f}"[:8] in text
    assert max(top for _, top in shown) + 10 <= frame.shape[0]
