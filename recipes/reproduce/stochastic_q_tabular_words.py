"""The words of the page about stochastic Q-learning in tables."""

SAID = """
What agrees with the paper's statements:

- **The limit.** Without a memory the tables come to the computed fixed point of Phi, not to Q\\*: within
  0.08 on average where the two are 4 to 6 apart. Double Q and Sarsa do so too, Sarsa to the fixed point
  with its exploration in it. The bound gamma / (1 - gamma) max E[beta] on the distance from Q\\* is nearly
  reached: 5.3 of 5.8.
- **beta without a memory** is (1 / (k + 1) - 1 / (n + 1)) for uniform values, and at the end of learning
  with 256 actions it is what order statistics say of the learned tables.
- **omega goes to 1 with a memory**, on fixed values as the closed form says, and while learning with 256
  actions.
- **With a memory the method comes to the optimum** where it was followed far enough (16 actions, last row
  of the limits), though no theorem covers that. On FrozenLake StochQ, and on CliffWalking StochQ and
  StochSarsa, cannot be told from their exact counterparts.

What does not, or is worse than hoped:

- **Sampling does not learn sooner on FrozenLake** here. StochQ and Q have the same return over the first
  half (0.110), and StochDoubleQ's advantage over DoubleQ is within the intervals. On CliffWalking
  StochDoubleQ is ahead of DoubleQ in the first half, but the greedy policy of neither reaches the goal
  within these steps with most seeds.
- **With 256 actions StochQ is behind Q**, by 0.3 of 2.3 in reward at the end, with an omega of 1: the
  maximum is not what is missed, the table's best action is a worse one. StochSarsa cannot be told from
  Sarsa at the end, nor StochDoubleQ from DoubleQ, which is ahead in the first half.
- **Without a memory, play is poor everywhere**: the best of 8 random actions of 256 has less than half of
  the optimum, whatever is known. The table left behind is good: its arg max has 0.95 of the optimum, more
  than Q's 0.90, since best-of-8 play explores more. But to take that arg max is what the method is there to
  avoid.
"""

HOW_TO_READ = """
Interquartile mean over {seeds} seeds with a 95% bootstrap interval. Returns and rewards are of the
learner's own play, with its exploration; of CliffWalking also of episodes that began long before, when play
was worse. *Policy's value* is exact and discounted, of the policy without exploration from the first state:
0 is random play and 1 is the optimum. Without a memory that policy takes the best of k random actions; the
column beside it is for the arg max over all n of the same table, which the learner itself never takes.
*Entries met* is the share of Q(s, a) updated at least once, states that end an episode included.
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
- **With 4 actions** R and M together often hold all four, so little can be seen of sampling there.
- **Seeds** draw play, candidates, rewards and coins; a method's seeds learn in one batch.
"""
