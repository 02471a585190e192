"""The words of the page about stochastic Q-learning in tables."""

# What stands in braces is filled from the rows of the CSV: see stochastic_q_tabular_claims.py.
OF_THEORY = """
What agrees with theory. The fixed point and omega's limit are statements of the paper; the bound and the
closed forms were derived here from its definitions.
"""

AGREES = (
    """
    **The limit.** Without a memory the tables come to the computed fixed point of Phi, Q_Phi, not to Q\\*.
    With 256 actions, where Q_Phi is {limits/256 actions, StochQ, no memory/gap/1} below Q\\* on average
    over entries, StochQ ends {limits/256 actions, StochQ, no memory/bias_phi/2} from Q_Phi on average, rms
    {limits/256 actions, StochQ, no memory/rms_phi/2}. With 16 actions StochQ, StochDoubleQ and StochSarsa
    have theirs {limits/16 actions, StochQ, no memory/gap/1}, {limits/16 actions, StochDoubleQ, no
    memory/gap/1} and {limits/16 actions, StochSarsa, no memory/gap/1} below Q\\*, and end {limits/16
    actions, StochQ, no memory/bias_phi/2}, {limits/16 actions, StochDoubleQ, no memory/bias_phi/2} and
    {limits/16 actions, StochSarsa, no memory/bias_phi/2} from it on average, rms {limits/16 actions,
    StochQ, no memory/rms_phi/2}, {limits/16 actions, StochDoubleQ, no memory/rms_phi/2} and {limits/16
    actions, StochSarsa, no memory/rms_phi/2}. That of Sarsa has its exploration in it.
    """,
    """
    **The bound** gamma / (1 - gamma) max E[beta] on Q\\* - Q_Phi is not far above it: with 256 actions
    {limits/256 actions, StochQ, no memory/bound/1}, where the mean distance is {limits/256 actions, StochQ,
    no memory/gap/1}.
    """,
    """
    **beta without a memory** is 1 / (k + 1) - 1 / (n + 1) for fixed uniform values, and at the end of
    StochQ's learning with 256 actions {256 actions/StochQ, no memory/beta/3}, where order statistics of its
    last tables say {256 actions/StochQ, no memory/beta_of_tables/3}.
    """,
    """
    **omega goes to 1 with a memory**, on fixed values, where beta falls as its closed form says, and while
    learning with 256 actions: {256 actions/StochQ/omega/3} in the last tenth of StochQ's steps.
    """,
    """
    **With a memory StochQ comes to the optimum** where it was followed far enough: with 16 actions it ends
    {limits/16 actions, StochQ/bias_optimum/2} from Q\\*, rms {limits/16 actions, StochQ/rms_optimum/2}. No
    theorem covers that.
    """,
)

LEARNING = (
    """
    **FrozenLake.** Return in the last tenth: {FrozenLake-v1/?/last}. In the first half:
    {FrozenLake-v1/?/first_half}.
    """,
    """
    **CliffWalking.** Reward of a step in the last tenth: {CliffWalking-v1/?/reward}. Return in the first
    half: {CliffWalking-v1/?/first_half}. The policies that the double methods end with have
    {CliffWalking-v1/DoubleQ/policy_share/3} and {CliffWalking-v1/StochDoubleQ/policy_share/3} of the
    optimum: the middle half of their seeds neither falls nor arrives.
    """,
    """
    **256 actions.** Reward of a step in the last tenth: {256 actions/?/last}. In the first half: {256
    actions/?/first_half}. StochQ ends with {256 actions/StochQ/last/2}, and Q with {256 actions/Q/last/2}.
    The omega of StochQ is {256 actions/StochQ/omega/3} by then: it takes the maximum of its table, and it is
    the table that is worse, whose arg max has {256 actions/StochQ/argmax_share/2} of the optimum, and Q's
    {256 actions/Q/argmax_share/2}.
    """,
    """
    **Without a memory** a policy takes the best of k random actions, whatever is known. StochQ's has {256
    actions/StochQ, no memory/policy_share/2} of the optimum with 256 actions and {FrozenLake-v1/StochQ, no
    memory/policy_share/2} on FrozenLake, and {CliffWalking-v1/StochQ, no memory/policy_share/2} on
    CliffWalking. With 256 actions the table left behind is better than its play: its arg max over all n has
    {256 actions/StochQ, no memory/argmax_share/2}, and Q's {256 actions/Q/argmax_share/2}. But to take that
    arg max is what the method is there to avoid.
    """,
)

HOW_TO_READ = """
Interquartile mean over {seeds} seeds with a 95% bootstrap interval. Returns and rewards are of the
learner's own play, with its exploration. On CliffWalking an episode has no limit: its return counts where it
ends, though it began long before, when play was worse; and a seed that ended none in the time has no return.
Such cells name how many seeds have one. The others are those that wander longest, so these returns flatter,
and so do the curves; the reward of a step is of all seeds.

*Its policy's value* is exact and discounted, of what the method does from the first state when it does not
explore: 0 is random play and 1 is the optimum. An exact method takes its arg max. A sampled one takes the
best of R u M, which is counted over all sets R of k ids, each equally likely, with M as learning left it; the
double methods by the mean of their tables. The column beside it is for the arg max over all n of the same
table. *Entries met* is the mean share of Q(s, a) updated at least once, states that end an episode included.
"""

OF_DIFFERENCES = """
Differences of interquartile means with 95% bootstrap intervals. Above, a method *is ahead* or *is behind*
where the interval excludes 0, and otherwise the two *cannot be told* apart. Of so many comparisons one or so
excludes 0 by chance. Where a seed ended no episode there is no comparison.
"""

OF_CLIFF = """
0.959 is the value of never falling and never arriving, -20 at gamma 0.95.
"""

OF_SHORTFALLS = """
256 actions, maximisations of the last tenth. A double method acts on the sum of its tables, whose beta is
twice that of their mean in the last column.
"""

OF_LIMITS = """
Q_Phi is the fixed point, by value iteration: the best of k distinct uniform ids of n is the one of rank j
with probability C(n - 1 - j, k - 1) / C(n, k). For StochSarsa it is that of (1 - epsilon) max + epsilon
mean. The last row learns with a memory, and is beside the same Q_Phi. Differences are means over all
entries; the bound is gamma / (1 - gamma) max_s E[beta(s)]. Exploration rate 1, for StochSarsa and with a
memory 0.5; gamma 0.8.
"""

NOTES = """
## How it was done

- **Worlds.** FrozenLake-v1 (slippery, 100 steps) and CliffWalking-v1, as gymnasium lists their transitions.
  The generated MDP: three states, 256 actions, mean rewards N(0, 1) and noise N(0, 1), transition
  probabilities uniform among all distributions, no ends; the same MDP for all seeds. The paper's details of
  its own were not available to us, so these, and all settings, are ours.
- **Settings**, the same for all methods: alpha = N(s, a)^-0.6, gamma 0.95, epsilon from 1 to 0.05 (256
  actions: 0.1) over the first half of 30,000 steps (FrozenLake) or 15,000. Nothing was tuned. R and M have
  ceil(log2 n) ids each: 2 of 4 actions, 8 of 256.
- **With 4 actions** R and M together hold three of them on average once M is full, so little can be seen of
  sampling there.
- **Seeds** draw play, candidates, rewards and coins; a method's seeds learn in one batch.
"""
