"""A language so small that everything about a student of it can be summed up exactly.

An answer is up to T tokens of V, of which token 0, EOS, ends it: 19,531 answers at V = T = 6. A prompt has K
templates with weights. A teacher answers by a template, each of whose tokens is exchanged for one of all V
with probability ``noise``. What the teacher says after any prefix is then known by Bayes' rule, no training
between. Less noise makes a sharper teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extensions.trl.minillm.objective import Objective, Scores, advantages, score, token_losses

EOS = 0


class PrefixTree:
    """All prefixes that an answer may go on from, as the n nodes of a tree, and all N answers.

    Args:
        vocab_size: V, with EOS.
        max_tokens: T; an answer that has no EOS by then is cut.
    """

    def __init__(self, vocab_size: int, max_tokens: int) -> None:
        self.vocab_size, self.max_tokens = vocab_size, max_tokens
        words = torch.arange(1, vocab_size)
        level = torch.zeros(1, 0, dtype=torch.long)  # the prefixes of one length
        levels = [level]
        for _ in range(max_tokens - 1):
            level = torch.cat([level.repeat_interleave(len(words), 0), words.repeat(len(level))[:, None]], 1)
            levels.append(level)
        self.sizes = [len(level) for level in levels]
        self.depth = torch.repeat_interleave(torch.arange(max_tokens), torch.tensor(self.sizes))  # (n,)
        # The token before, and EOS at the beginning, where there is none.
        self.previous = torch.cat([torch.zeros(1, dtype=torch.long), *(level[:, -1] for level in levels[1:])])
        # Where a node leads to by each token; itself where the answer is over.
        self.child = torch.arange(sum(self.sizes))[:, None].repeat(1, vocab_size)  # (n, V)
        self.child[: -self.sizes[-1], 1:] = 1 + torch.arange(sum(self.sizes[1:])).view(-1, vocab_size - 1)
        self.tokens, self.nodes, self.mask = self._answers()

    def _answers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, the nodes they were said at, and 1 up to the last, (N, T) each; EOS fills the rest."""
        last = torch.arange(len(self.depth)).view(-1, 1).repeat(1, self.vocab_size)
        ends = torch.zeros_like(last, dtype=torch.bool)
        ends[:, EOS] = True
        ends[-self.sizes[-1] :] = True
        node, token = last[ends], torch.arange(self.vocab_size).expand_as(last)[ends]
        self.end_node, self.end_token = node, token  # (N,)
        parent = torch.zeros(len(self.depth), dtype=torch.long)
        inner = self.child[: -self.sizes[-1], 1:]
        parent[inner] = torch.arange(len(inner))[:, None]
        tokens = torch.full((len(node), self.max_tokens), EOS)
        nodes, rows = torch.zeros_like(tokens), torch.arange(len(node))
        mask = torch.zeros_like(tokens)
        length = self.depth[node] + 1
        for t in reversed(range(self.max_tokens)):
            here = t < length
            tokens[rows[here], t], nodes[rows[here], t], mask[rows[here], t] = token[here], node[here], 1
            token = torch.where(here, self.previous[node], token)
            node = torch.where(here, parent[node], node)
        return tokens, nodes, mask

    def log_prob(self, conditionals: Tensor) -> Tensor:
        """Log-probabilities of all answers, (..., N), from those of each token at each node, (..., n, V)."""
        prefix = conditionals.new_zeros(*conditionals.shape[:-2], 1)
        prefixes, start = [prefix], 0
        for size in self.sizes[:-1]:
            said = conditionals[..., start : start + size, 1:]
            prefix = (prefix[..., None] + said).flatten(-2)
            prefixes.append(prefix)
            start += size
        return torch.cat(prefixes, -1)[..., self.end_node] + conditionals[..., self.end_node, self.end_token]


class ExactLanguage:
    """Prompts, their templates, and the teacher that knows both.

    Args:
        prompts: P.
        templates: K of each prompt, of 3 to T tokens, EOS among them.
        noise: the probability that a token is exchanged for one of all V, in (0, 1].
        seed: of the templates and their weights.
        vocab_size, max_tokens: V and T of the answers.

    Attributes:
        log_p: what the teacher says at each node, (P, n, V).
        answers: the log-probability of all answers by the teacher, (P, N).
        valid: True for answers that are templates of the prompt, (P, N).
    """

    def __init__(
        self,
        prompts: int = 4,
        templates: int = 5,
        noise: float = 0.05,
        seed: int = 0,
        vocab_size: int = 6,
        max_tokens: int = 6,
    ) -> None:
        self.tree = PrefixTree(vocab_size, max_tokens)
        self.prompts, self.noise = prompts, noise
        random = torch.Generator().manual_seed(seed)
        shape = (prompts, templates)
        self.templates = torch.randint(1, vocab_size, (*shape, max_tokens), generator=random)  # (P, K, T)
        lengths = torch.randint(3, max_tokens + 1, shape, generator=random)
        self.templates[torch.arange(max_tokens) >= lengths[..., None] - 1] = EOS
        weights = torch.empty(shape, dtype=torch.float64).exponential_(generator=random)
        self.weights = weights / weights.sum(-1, keepdim=True)  # (P, K)
        self.log_p = self._bayes()
        self.answers = self.tree.log_prob(self.log_p)
        same = (self.tree.tokens == self.templates[..., None, :]).all(-1)  # (P, K, N)
        self.valid = same.any(1)

    def _bayes(self) -> Tensor:
        tree, templates = self.tree, self.templates
        wanted = nn.functional.one_hot(templates, tree.vocab_size).double()  # (P, K, T, V)
        said = torch.log((1 - self.noise) * wanted + self.noise / tree.vocab_size)  # log p(token | template)
        posterior = torch.log(self.weights)[..., None]  # (P, K, nodes of a depth), up to a constant
        spoken = []
        for depth in range(tree.max_tokens):
            token = said[:, :, depth]  # (P, K, V)
            joint = posterior[..., None] + token[:, :, None]  # (P, K, nodes, V)
            spoken.append(joint.logsumexp(1) - posterior.logsumexp(1)[..., None])
            posterior = joint[..., 1:].flatten(-2)
        return torch.cat(spoken, 1)


class TableStudent(nn.Module):
    """A student that knows how far it is and the token before, and nothing else of what it said.

    Its scores are the sum of a table of prompts and positions and one of tokens before, both learned.
    """

    def __init__(self, language: ExactLanguage) -> None:
        super().__init__()
        self.tree = language.tree
        v, t = self.tree.vocab_size, self.tree.max_tokens
        self.position = nn.Parameter(torch.zeros(language.prompts, t, v, dtype=torch.float64))
        self.previous = nn.Parameter(torch.zeros(v, v, dtype=torch.float64))

    def logits(self, prompt: Tensor, depth: Tensor, previous: Tensor) -> Tensor:
        """(..., V) of indices that broadcast together."""
        return self.position[prompt, depth] + self.previous[previous]

    def forward(self) -> Tensor:
        """What it says at each node, log-probabilities of (P, n, V)."""
        prompts = torch.arange(len(self.position))[:, None]
        return self.logits(prompts, self.tree.depth, self.tree.previous).log_softmax(-1)


def fit_forward_kl(language: ExactLanguage, student: TableStudent, steps: int = 100) -> TableStudent:
    """Fit a student, in place, to the least forward KL, as endless answers of the teacher would.

    The problem is convex, and what the student can see of answers are counts of prompt, position, token
    before and token, so no sampling is needed.
    """
    tree = language.tree
    p, v, t = language.prompts, tree.vocab_size, tree.max_tokens
    mass = language.answers.exp()[..., None] * tree.mask  # (P, N, T)
    cell = (tree.depth[tree.nodes] * v + tree.previous[tree.nodes]) * v + tree.tokens  # (N, T)
    counts = mass.new_zeros(p, t * v * v)
    counts.index_add_(1, cell.flatten(), mass.flatten(1))
    counts = counts.view(p, t, v, v)
    where = torch.arange(p)[:, None, None], torch.arange(t)[:, None], torch.arange(v)
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -(counts * student.logits(*where).log_softmax(-1)).sum() / p
        value.backward()
        return value

    optimizer.step(loss)
    return student


@dataclass(frozen=True)
class Rollouts:
    """Answers that were drawn: prompts (B,), tokens, nodes and mask (B, T)."""

    prompts: Tensor
    tokens: Tensor
    nodes: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


def every_answer(language: ExactLanguage, prompt: int) -> Rollouts:
    """All N answers to a prompt, each once."""
    tree = language.tree
    return Rollouts(torch.full((len(tree.tokens),), prompt), tree.tokens, tree.nodes, tree.mask)


@torch.no_grad()
def sample(
    language: ExactLanguage, student: TableStudent, prompts: Tensor, alpha: float, random: torch.Generator
) -> Rollouts:
    """Answers to ``prompts``, (B,), of tokens by the teacher with probability ``alpha``, else the student."""
    tree = language.tree
    node, alive = torch.zeros_like(prompts), torch.ones_like(prompts)
    columns = []
    for depth in range(tree.max_tokens):
        # Neither model is asked where it says nothing.
        spoken = torch.zeros(len(prompts), tree.vocab_size, dtype=torch.float64)
        if alpha < 1:
            logits = student.logits(prompts, torch.tensor(depth), tree.previous[node])
            spoken += (1 - alpha) * logits.softmax(-1)
        if alpha > 0:
            spoken += alpha * language.log_p[prompts, node].exp()
        token = torch.multinomial(spoken, 1, generator=random)[:, 0] * alive
        columns.append((token, node, alive))
        node = tree.child[node, token]
        alive = alive * (token != EOS)
    tokens, nodes, mask = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    return Rollouts(prompts, tokens, nodes * mask, mask)


def logits_at(student: TableStudent, rollouts: Rollouts) -> Tensor:
    """The student's scores, (B, T, V), of all tokens where the answers have been."""
    depth, previous = student.tree.depth[rollouts.nodes], student.tree.previous[rollouts.nodes]
    return student.logits(rollouts.prompts[:, None], depth, previous)


@torch.no_grad()
def scores_of(language: ExactLanguage, student: TableStudent, rollouts: Rollouts, alpha: float) -> Scores:
    """What is known of answers when ``student`` draws them, mixed with ``alpha`` of the teacher."""
    said = rollouts.tokens[..., None]
    log_q = logits_at(student, rollouts).log_softmax(-1).gather(-1, said)[..., 0]  # (B, T)
    log_p = language.log_p[rollouts.prompts[:, None], rollouts.nodes].gather(-1, said)[..., 0]
    return score(log_q, log_p, rollouts.mask, alpha)


def answer_losses(
    objective: Objective, language: ExactLanguage, rollouts: Rollouts, logits: Tensor, scores: Scores
) -> Tensor:
    """MiniLLM's loss of each answer, (B,), whose gradient by ``logits``, (B, T, V), is that of the answer.

    Baselines and whitening are over these answers.
    """
    log_q, log_p = logits.log_softmax(-1), language.log_p[rollouts.prompts[:, None], rollouts.nodes]
    single, long, _ = token_losses(
        objective,
        reverse_kl=(log_q.exp() * (log_q - log_p)).sum(-1),
        log_q=log_q.gather(-1, rollouts.tokens[..., None])[..., 0],
        scores=scores,
        advantages=advantages(objective, scores),
    )
    return ((single + long) * rollouts.mask).sum(1)


def answer_gradients(student: TableStudent, rollouts: Rollouts, by_logits: Tensor) -> Tensor:
    """Gradients of the loss of each answer by all parameters, (B, D), from those by its scores, (B, T, V)."""
    position = by_logits.new_zeros(len(rollouts), *student.position.shape)
    position[torch.arange(len(rollouts)), rollouts.prompts] = by_logits  # depth is the place in the answer
    previous = by_logits.new_zeros(len(rollouts), *student.previous.shape)
    seen = student.tree.previous[rollouts.nodes][..., None].expand_as(by_logits)
    previous.scatter_add_(1, seen, by_logits)
    return torch.cat([position.flatten(1), previous.flatten(1)], 1)


def exact_reverse_kl(language: ExactLanguage, student: TableStudent) -> Tensor:
    """KL(q || p) of whole answers to each prompt, (P,), with its gradient."""
    log_q = language.tree.log_prob(student())
    return (log_q.exp() * (log_q - language.answers)).sum(-1)


@torch.no_grad()
def exact_metrics(language: ExactLanguage, student: TableStudent) -> dict[str, float]:
    """Means over the prompts, in nats: ``reverse_kl``, ``forward_kl``, ``jsd``, the student's ``entropy``,
    its mean ``length`` in tokens with EOS, and ``valid``, the probability of saying a template."""
    log_q, log_p = language.tree.log_prob(student()), language.answers  # (P, N)
    q, p = log_q.exp(), log_p.exp()
    log_middle = torch.log((q + p) / 2)
    sums = {
        "reverse_kl": q * (log_q - log_p),
        "forward_kl": p * (log_p - log_q),
        "jsd": (q * (log_q - log_middle) + p * (log_p - log_middle)) / 2,
        "entropy": -q * log_q,
        "length": q * language.tree.mask.sum(-1),
        "valid": q * language.valid,
    }
    return {name: float(terms.sum(-1).mean()) for name, terms in sums.items()}
