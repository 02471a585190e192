"""SlateRec: recommend a slate of items from a large catalogue to a user whose taste drifts."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import namespace, table
from .digits import join, split
from .hashing import random_ids, stream, unit
from .slate_search import USERS, best_slates, shortlist
from .slate_user import (
    LENGTH,
    LIMIT,
    PRICES,
    TASTES,
    UNIT,
    catalogue,
    choice_word,
    drifted,
    product,
    products,
    revenues_of,
    sated,
)
from .world import State, World, require, require_integer, require_number

SENSITIVITY = 3.0  # how much a revenue of 1 puts a user off


@dataclass(frozen=True)
class SlateRec(World):
    """A recommender shows a slate of items to a user, who chooses one of them, or none.

    ## Description
    There are ``items`` items and an action is a slate of ``slate`` of them. The user, a vector of 16 tastes,
    chooses by a multinomial logit: more probably what fits the tastes, and less what is dear. What the user
    chooses pays its revenue. So neither the most attractive items, which are cheap, nor the dearest ones,
    which nobody takes, make the best slate; and as the items of a slate compete, nor do those that are best
    alone. Ids tell nothing about their items, ``action_features`` do. **Structure of the action space:
    combinatorial**; with ``slate=1``, a catalogue, it is a metric one in the features. After Ie et al.
    (2019), "SlateQ: a tractable decomposition for reinforcement learning with recommendation sets".

    Item i has an embedding e_i, 16 odd numbers in {-7, -5, .., 7} / (4 sqrt(21)), of mean square length 1,
    and a revenue r_i in {1/32, 2/32, .., 1}: a hash of ``layout`` and i, computed when needed and never
    stored.

    ## Action Space
    ``Discrete(items^slate)``: the digits of an id in base ``items``, the least significant first, are the
    items of the slate. An item that comes twice counts once, so that smaller slates are there as well.

    ## Observation Space
    ``Box((16,))``: the tastes u, each a multiple of 1/512 in [-2047/512, 2047/512]. With ``satiation=True``
    ``Box((32,))``: u and the satiation s, within the same bounds. Everything but the time is observed.

    ## Starting State
    Each taste is nearly normal with mean 0 and variance 1: a bell that is a sum of four hexadecimal digits.

    ## Transition
    u <- clip((1 - drift) u + sqrt(1 - (1 - drift)^2) z), rounded to multiples of 1/512, z such bells,
    independent of the actions: mean and variance stay 0 and 1, up to rounding. All in integers, so that every
    backend has the same users.

    With ``satiation=True`` the choice changes the user: s <- clip(0.9 s + e_i) if item i was chosen, else
    clip(0.9 s), s = 0 at the start.

    ## Rewards
    The revenue of the item that is chosen, 0 for none: in [0, 1]. Item i of the slate is chosen with
    probability w_i / (1 + sum of the w), none with 1 / (1 + sum of the w), where

        w_i = exp(beta (u.e_i - 3 r_i)), and exp(beta (u.e_i - max(0, s.e_i) - 3 r_i)) with satiation.

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``items`` (1000): in [2, 2^31]. ``slate`` (2): at least 1, with items^slate at most 2^62.
    - ``beta`` (2.0): in (0, 20], how sharply the user chooses.
    - ``drift`` (0.1): 0, or in [0.001, 1]: the share of the tastes that a step forgets.
    - ``satiation`` (False): whether what was chosen makes its like less attractive for some time.
    - ``horizon`` (20): steps in an episode. ``layout`` (0): which catalogue, in [0, 2^62).

    ## Optimum
    Without satiation nothing that is done changes the user, so that the best slate of each step is optimal:
    `optimal_action`, `q_star` and `regret` are exact. `optimal_value` and `q_star` are expectations over the
    choices *given the path of the tastes, which the key of the state fixes*. No policy does better, not even
    one that knows this path, and the optimal policy, which sees the present tastes alone, does as well. The
    mean of `optimal_value` over the keys is the optimal return; a learner that does not know the path cannot
    predict `optimal_value` itself.

    With satiation there is no exact optimum: `optimal_action` is the best slate of the step, and
    `optimal_value` an upper bound: the best slate now, and from the next step on no satiation at all.
    For satiation only lowers weights, and what the best slate earns never falls when a weight grows: it is
    the a with max over slates of sum(w (r - a)+) = a, and the left side grows with every weight.

    Means over 10,000 episodes (of `optimal_value` without satiation; the million: 1000; the billion: 20
    times the best slates of 128 users at the start); in brackets standard errors. The columns in the middle
    are 20 times the first step of 5000 users with other slates: the items of the largest weights, the
    dearest ones, and those that earn most alone.

    | items, slate      | oracle       | attractive | dear | best alone | uniform ids   |
    |-------------------|--------------|------------|------|------------|---------------|
    | 100, 3            | 8.80 (0.01)  | 3.06       | 0.92 | 7.57       | 2.25 (0.01)   |
    | 1000, 2           | 11.69 (0.01) | 2.36       | 0.57 | 11.25      | 1.69 (0.01)   |
    | 1000, 3           | 12.27 (0.01) | 2.41       | 0.83 | 11.24      | 2.24 (0.01)   |
    | 1,000,000, 1      | 15.91 (0.05) |            |      |            | 0.960 (0.006) |
    | 1,000,000,000, 1  | 17.8 (0.2)   |            |      |            | 0.958 (0.006) |
    | 100, 3, satiation | 6.42 (0.01)  |            |      |            | 1.95 (0.01)   |

    At 1000, 2 the user takes nothing from the best slate in 20 % of the cases. With satiation the oracle is
    only the best slate of each step, and the mean of the upper bound is 8.80: the gap is wide. That planning
    helps has not been shown: to charge each revenue 0.05 for the satiation it brings earned 0.008 (0.006)
    more.

    The oracle scans the catalogue. On one core that takes 0.2 s for 64 users and a million items, and took
    229 s for 128 users and a billion, in 110 MB. So ``Catalogue-1G`` is for evaluation alone; its
    `optimal_value` scans once for all the steps of up to 4096 / horizon environments.

    ## Version History
    - v0: initial version.
    """

    items: int = 1000
    slate: int = 2
    beta: float = 2.0
    drift: float = 0.1
    satiation: bool = False
    horizon: int = 20
    layout: int = 0

    structure = "combinatorial"
    batched = True

    def __post_init__(self) -> None:
        require_integer("items", self.items, 2, 2**31)
        require_integer("slate", self.slate, 1, 62)
        most = int(2 ** (62 / self.slate) + 1e-9)
        require(
            self.n <= 2**62,
            f"items^slate must be at most 2^62: with slate={self.slate} at most {most} items, "
            f"got {self.items}",
        )
        require_number("beta", self.beta, 0, 20)
        require(self.beta > 0, f"beta must be positive, got {self.beta!r}")
        require_number("drift", self.drift, 0, 1)
        require(
            self.drift == 0 or self.drift >= 0.001, f"drift must be 0 or at least 0.001, got {self.drift!r}"
        )
        require(isinstance(self.satiation, bool), f"satiation must be a bool, got {self.satiation!r}")
        require_integer("horizon", self.horizon, 1, 2**20)
        require_integer("layout", self.layout, 0, 2**62 - 1)

    # The world

    @property
    def n(self) -> int:
        return self.items**self.slate

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.items,) * self.slate

    @property
    def reward_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def low(self) -> np.ndarray:
        return -self.high

    @property
    def high(self) -> np.ndarray:
        return np.full(TASTES * (2 if self.satiation else 1), LIMIT / UNIT, dtype=np.float32)

    def reset(self, key: Any) -> State:
        t = key * 0
        nothing = t[:, None] + table(np.zeros, TASTES, np.int64, like=t)  # (B, 16)
        state = {"key": key, "t": t, "user": drifted(stream(key), t, nothing, 1.0)}
        return {**state, "satiation": nothing + 0} if self.satiation else state

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        xp = namespace(action)
        t, h = state["t"] + 1, stream(state["key"])
        offer = self._offer(state["user"], state.get("satiation"), action)
        chosen = self._chosen(h, t, offer[0])  # (K, B)
        reward = xp.sum(xp.where(chosen, offer[1], offer[1] * 0.0), axis=0)
        new = {**state, "t": t, "user": drifted(h, t, state["user"], self.drift)}
        if self.satiation:
            eaten = xp.sum(xp.astype(chosen, xp.int64) * (2 * offer[2] - 7), axis=1).T  # (B, 16)
            new["satiation"] = sated(state["satiation"], eaten)
        return new, reward, t < 0

    def observe(self, state: State) -> Any:
        xp = namespace(state["t"])
        seen = xp.concat([state["user"], state["satiation"]], axis=-1) if self.satiation else state["user"]
        return xp.astype(seen, xp.float32) * (1.0 / UNIT)

    def catalogue(self, items: Any) -> tuple[Any, Any]:
        """Digits of the embeddings, ``(16, *items.shape)``, and price classes of ``items``, as in
        `slate_user.catalogue`."""
        return catalogue(items, self.layout)

    def _weights(self, match: Any, revenues: Any) -> Any:
        """Weights of items with these products of embeddings and tastes, in units of 1 / (UNIT LENGTH)."""
        xp = namespace(match)
        utility = xp.astype(match, xp.float64) * (1 / (UNIT * LENGTH)) - revenues * SENSITIVITY
        return xp.exp(utility * float(self.beta))

    def _offer(self, user: Any, satiation: Any, action: Any) -> tuple[Any, Any, Any]:
        """Weights and revenues ``(K, B)`` of the slates' items, and their digits ``(16, K, B)``; a repeated
        item weighs 0."""
        xp = namespace(action)
        items = xp.stack(split(action, self.sizes))  # (K, B)
        digits, price = self.catalogue(items)
        revenues = revenues_of(price)
        match = product(user, digits)
        if satiation is not None:
            likeness = product(satiation, digits)
            match = match - likeness * (likeness > 0)
        weights = self._weights(match, revenues)
        if self.slate > 1:
            again = (items[:, None] == items) & table(_earlier, self.slate, like=items)  # (K, K, B)
            weights = xp.where(xp.any(again, axis=1), weights * 0.0, weights)
        return weights, revenues, digits

    def _chosen(self, h: Any, t: Any, weights: Any) -> Any:
        """Which item the user takes at the step to ``t``: at most one True in each column, ``(K, B)``."""
        xp = namespace(t)
        ends = [1.0 + weights[0]]  # no choice is [0, 1), the first item [1, 1 + w), ..
        for i in range(1, self.slate):
            ends.append(ends[-1] + weights[i])
        mark = unit(choice_word(h, t)) * ends[-1]  # below the last end
        place = xp.astype(mark >= 1.0, xp.int64)  # 0 is no choice
        for end in ends[:-1]:
            place = place + (mark >= end)
        return place == table(_places, self.slate, like=t)

    # The optimum

    @property
    def exact(self) -> bool:
        return not self.satiation

    def expected_reward(self, state: State, action: Any) -> Any:
        """Exact expectation of the next reward over the user's choice, ``(B,)`` float64."""
        xp = namespace(state["t"])
        weights, revenues, _ = self._offer(state["user"], state.get("satiation"), action)
        return xp.sum(weights * revenues, axis=0) / (1.0 + xp.sum(weights, axis=0))

    def best(self, user: Any, satiation: Any = None, among: int | None = None) -> tuple[Any, Any]:
        """The expected reward of the best slate for each user, ``(B,)`` float64, and its id, ``(B,)`` int64.

        Exact, by a scan of the catalogue, or of its first ``among`` items, in bounded memory: a fraction of
        a second for a million items, minutes for a billion.
        """
        xp = namespace(user)
        number = min(self.items, among or self.items)
        size = min(self.slate, number)
        parts = []
        for first in range(0, user.shape[0], USERS):
            tastes = user[first : first + USERS]
            sate = None if satiation is None else satiation[first : first + USERS]

            def match(digits: Any, tastes: Any = tastes, sate: Any = sate) -> Any:
                found = products(tastes, digits)
                if sate is None:
                    return found
                likeness = products(sate, digits)
                return found - likeness * (likeness > 0)

            scores, items, price = shortlist(match, self.catalogue, tastes, number, PRICES, size)
            revenues = revenues_of(price)
            value, columns, member = best_slates(self._weights(scores, revenues), revenues, size)
            slate = xp.take_along_axis(items, columns, axis=-1)  # (B, size)
            slate = xp.where(member, slate, slate[:, :1])
            # Of the ways to write a set this one, in order, and for a smaller set its first item repeated.
            slate = xp.sort(xp.where(member, slate, xp.min(slate, axis=-1, keepdims=True)), axis=-1)
            parts.append((value, join([slate[:, min(i, size - 1)] for i in range(self.slate)], self.sizes)))
        return xp.concat([part[0] for part in parts]), xp.concat([part[1] for part in parts])

    def optimal_action(self, state: State) -> Any:
        """The slate with the largest expected reward now, ``(B,)`` int64: optimal without satiation."""
        return self.best(state["user"], state.get("satiation"))[1]

    def optimal_value(self, state: State) -> Any:
        """Expected sum of the rewards to come of an optimal policy, given the path that the key fixes; an
        upper bound with satiation. ``(B,)`` float64. One scan for each step to come, several at a time."""
        xp = namespace(state["t"])
        if not self.satiation:
            return self._without_satiation(state)
        now = self.best(state["user"], state["satiation"])[0]
        return xp.where(state["t"] < self.horizon, now, 0.0) + self._without_satiation(self._next(state))

    def q_star(self, state: State, action: Any) -> Any:
        """Expected sum of the rewards to come after ``action``, given the path that the key fixes, ``(B,)``
        float64; costs as much as `optimal_value`."""
        if self.satiation:
            return super().q_star(state, action)
        later = self._without_satiation(self._next(state))
        return self.if_left(state, self.expected_reward(state, action) + later)

    def regret(self, state: State, action: Any) -> Any:
        """How much less ``action`` earns now than the best slate, in expectation, ``(B,)`` float64: what it
        gives away of the optimal value, at the cost of one scan."""
        if self.satiation:
            return super().regret(state, action)
        return self.if_left(state, self.best(state["user"])[0] - self.expected_reward(state, action))

    def _next(self, state: State) -> State:
        """The tastes one step on; no satiation."""
        t = state["t"] + 1
        user = drifted(stream(state["key"]), t, state["user"], self.drift)
        return {"key": state["key"], "t": t, "user": user}

    def _without_satiation(self, state: State) -> Any:
        """Sum of what the best slates of all steps to come earn for a user without satiation, ``(B,)``."""
        xp = namespace(state["t"])
        batch, total = state["t"].shape[0], xp.astype(state["t"] * 0, xp.float64)
        steps = self.horizon - int(xp.min(state["t"]))
        together = max(1, USERS // batch)
        for first in range(0, steps, together):
            users, alive = [], []
            for _ in range(first, min(steps, first + together)):
                users.append(state["user"])
                alive.append(state["t"] < self.horizon)
                state = self._next(state)
            value = xp.reshape(self.best(xp.concat(users))[0], (-1, batch))
            total = total + xp.sum(xp.where(xp.stack(alive), value, 0.0), axis=0)
        return total

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids whose expected reward is within ``eps`` of the best one for users at the start.

        For 64 users, always the same. Exact for them up to n = 4096; else of 4096 sampled ids, so that a true
        fraction below 1e-5 mostly shows as 0. Of more than 2^20 items the best slate is that of the first
        2^20: the fraction is then an upper estimate.
        """
        return float(np.mean(_shortfalls(self) <= eps + 1e-12))

    def action_features(self, ids: Any) -> Any:
        """For each item of a slate 4 e_i, sixteen numbers of variance 1, and its revenue,
        ``(*ids.shape, slate * 17)`` float32."""
        xp = namespace(ids)
        columns = []
        for items in split(ids, self.sizes):
            digits, price = self.catalogue(items)
            embeddings = xp.astype(xp.moveaxis(2 * digits - 7, 0, -1), xp.float64)
            columns += [embeddings * (4 / LENGTH), revenues_of(price)[..., None]]
        return xp.astype(xp.concat(columns, axis=-1), xp.float32)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        t = state["t"].item()
        lines = [f"SlateRec, {self.items}^{self.slate} slates, step {t} of {self.horizon}"]
        if last is None:
            return [*lines, "tastes " + " ".join(f"{taste / UNIT:+.1f}" for taste in state["user"][0])]
        chances, revenues, chosen = self._shown(last)
        items = split(last[1], self.sizes)
        took = [item for item, is_chosen in zip(items, chosen[1:], strict=True) if is_chosen]
        lines.append(f"action {last[1]}: {f'item {took[0]}' if took else 'none'} chosen")
        shown = zip(items, chances[1:], revenues[1:], strict=True)
        parts = [f"{item} {chance:.0%} at {revenue:.2f}" for item, chance, revenue in shown]
        return [*lines, f"reward {last[2]:.3f}", ", ".join([f"none {chances[0]:.0%}", *parts])]

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """Above, the user's sixteen tastes as blue bars, with satiation inside them in grey. Below, no choice
        and then the items of the last slate: on the left of each its chance, green if it was taken, on the
        right in grey its revenue."""
        for name, colour, margin in [("user", "blue", 0.1), ("satiation", "grey", 0.35)]:
            for i, taste in enumerate(state[name][0] if name in state else []):
                x0, x1, y = (
                    (i + margin) / TASTES,
                    (i + 1 - margin) / TASTES,
                    0.78 + 0.22 * taste.item() / LIMIT,
                )
                canvas.box(x0, min(0.78, y), x1, max(0.78, y), colour)
        canvas.line(0.0, 0.78, 1.0, 0.78, "grey")
        if last is None:
            return
        width = 1 / (self.slate + 1)
        for i, (chance, revenue, chosen) in enumerate(zip(*self._shown(last), strict=True)):
            middle = (i + 0.5) * width
            canvas.box((i + 0.06) * width, 0.0, (i + 0.94) * width, 0.5, "light")
            canvas.box((i + 0.1) * width, 0.0, middle, 0.5 * chance, "green" if chosen else "blue")
            canvas.box(middle, 0.0, (i + 0.9) * width, 0.5 * revenue, "grey")

    def _shown(self, last: tuple[State, int, float]) -> tuple[list[float], list[float], list[bool]]:
        """Probability, revenue and whether chosen, of no choice and then of each item of the last slate."""
        state, action = last[0], np.array([last[1]])
        weights, revenues, _ = self._offer(state["user"], state.get("satiation"), action)
        chosen = self._chosen(stream(state["key"]), state["t"] + 1, weights)[:, 0].tolist()
        chances = np.array([1.0, *weights[:, 0]]) / (1.0 + weights.sum())
        return chances.tolist(), [0.0, *revenues[:, 0].tolist()], [not any(chosen), *chosen]


@lru_cache(maxsize=16)
def _shortfalls(world: SlateRec) -> np.ndarray:
    """How much less ids earn than the best slate, for users at the start, ``(64, ids)``."""
    state = world.reset(np.arange(64))
    ids = np.arange(world.n) if world.n <= 4096 else random_ids(world.n, 4096)
    best = world.best(state["user"], among=2**20)[0]
    earned = []
    for user in state["user"]:
        weights, revenues, _ = world._offer(user[None], None, ids)
        earned.append((weights * revenues).sum(axis=0) / (1 + weights.sum(axis=0)))
    return best[:, None] - np.stack(earned)


def _places(size: int) -> np.ndarray:
    """1 .. size, ``(size, 1)``."""
    return np.arange(1, size + 1)[:, None]


def _earlier(size: int) -> np.ndarray:
    """Whether the second of two places comes before the first, ``(size, size, 1)`` bool."""
    return np.tril(np.ones((size, size), dtype=bool), -1)[..., None]
