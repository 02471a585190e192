"""A TeacherTrainer whose answers are drawn together with the teacher, and scored by both."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _host
from .checks import check_length, positions_left, warn_without_baseline
from .guards import DegenerationGuard, degeneration
from .objective import Coins, Objective, Scores, advantages, alone, score, token_weights
from .rollouts import MULTIMODAL_KEYS, loss_mask, on_grid, take
from .sampling import sample_mixture
from .teacher_trainer import TeacherTrainer

# Answers whose leave-one-out baselines come from the others'. Each group costs forwards of the teacher.
COIN_GROUPS = 2


class MixtureTrainer(TeacherTrainer):
    """
    A :class:`TeacherTrainer` whose answers come from the mixture of teacher and student.

    It adds to them what both models thought of them when they were drawn, and the advantages that follow.
    """

    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = self.args.objective()
        self._turn = (-1, 0)  # the last step that answers were drawn for, and how often before
        self._coins_of: list[int] = []  # the group of each answer of the rollout: which share their coins
        self._read: list[Tensor] = []  # what the teacher made of each chunk of it while it was drawn
        self._guard = DegenerationGuard()
        if self.objective.baseline == "leave_one_out" and self.objective.long_term:
            flips = bool(self.args.teacher_mix_alpha) and self._mix_method == "coin_flip"
            processes = self.accelerator.num_processes
            answers = self._prompts_per_generation // processes
            warn_without_baseline(answers, processes, same_coins=flips and self._sharded)

    # -- answers ---------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, has_tool_images: bool = False
    ) -> list:
        check_length(prompt_ids, 0 if self.tools else self.max_completion_length, self._bare_models)
        training = self.model.training
        alpha = self.args.teacher_mix_alpha if training else 0.0
        # token types are no picture: some text tokenizers return them
        pictures = images is not None or bool(multimodal_fields.keys() - {"token_type_ids"})
        if pictures or self.use_vllm:
            if alpha:
                raise ValueError(
                    "Teacher-mixed sampling reads text only, but the prompts have images. Set "
                    "teacher_mix_alpha=0.0 to draw all answers from the student."
                )
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
        if alpha:
            step, turn = self._turn
            self._turn = (self._step, turn + 1 if step == self._step else 0)
        answers: list = []
        chunk = self.args.rollout_chunk_size
        self._coins_of, self._read = [], []
        self.model.eval()  # no dropout: answers come from the student that they are scored by
        for start in range(0, len(prompt_ids), chunk):
            prompts = prompt_ids[start : start + chunk]
            # All processes have as many chunks, and stop after the same; but each makes as many calls of
            # tools, and turns after them, as its own answers ask for.
            with self._non_finite_explained({"prompt_ids": prompts}, together=not self.tools):
                if alpha:
                    groups = self._coin_groups(len(prompts), len(prompt_ids))
                    answers += self._generate_with_teacher(prompts, groups, alpha, start)
                    self._coins_of += (groups + len(set(self._coins_of))).tolist()
                else:
                    answers += super()._generate_single_turn(prompts, None, {}, False)
        self.model.train(training)
        return answers

    @property
    def _mix_method(self) -> str:
        """Answers that go on after a tool's would flip coins in other company."""
        return "mixture" if self.tools else self.args.teacher_mix_method

    def _coin_groups(self, n: int, of: int) -> Tensor:
        """
        The group whose coins each answer of a chunk of n is drawn by, (n,); the generation has ``of``.

        A leave-one-out baseline is made from the answers with other coins: let half of them have others.
        """
        groups = -(-COIN_GROUPS * n // of) if self.args.baseline == "leave_one_out" else 1
        return torch.arange(n) * groups // n

    def _generate_with_teacher(self, prompt_ids: list, groups: Tensor, alpha: float, start: int) -> list:
        """Answers of one chunk, drawn from the mixture of teacher and student (eq. 4)."""
        device, args = self.accelerator.device, self.args
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        # tools make answers go on after this
        keep = args.cache_teacher_hidden and not self.tools and self._reads_as_it_scores
        with (
            _host.unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as student,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
            self._teacher_states(keep) as states,
        ):
            completion_ids = sample_mixture(
                student,
                self.teacher_model,
                _host.pad(prompts, self._tokenizer.pad_token_id, "left").to(device),
                _host.pad([torch.ones_like(ids) for ids in prompts], 0, "left").to(device),
                alpha=alpha,
                max_new_tokens=min(self.max_completion_length, positions_left(prompt_ids, self._bare_models)),
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                method=self._mix_method,
                coins=self._coins(start),
                coin_groups=groups,
                vocab_size=self._cut_to,
                synced=self._anyone if self._sharded else None,
                teacher_reads_all=keep,
            )
        if keep:
            read = torch.cat(states, dim=1)[:, -completion_ids.size(1) :]  # (B, T, H)
            # without the prompts'; autocast leaves what norms return in float32
            kind = read.dtype if self.accelerator.mixed_precision == "no" else self._teacher_type
            self._read.append(read.to(device, kind, copy=True))
        return [_up_to_end(ids, self.eos_token_ids) for ids in completion_ids.tolist()]

    def _coins(self, start: int) -> torch.Generator:
        """
        What is flipped for the answers of a chunk that begins at ``start``.

        It is a function of seed, step and turn (a tool call begins another): a resumed run flips the same.
        Sharded models are run by all processes together, which must agree whose turn it is.
        """
        process = 0 if self._sharded else self.accelerator.process_index
        key = (self.args.seed, *self._turn, start, process)
        return torch.Generator().manual_seed(hash(key) % 2**63)

    @property
    def _teacher_type(self) -> torch.dtype:
        return self._bare_models["teacher"].dtype

    @property
    def _reads_as_it_scores(self) -> bool:
        """
        Whether the teacher makes the same of answers while they are drawn, under autocast if that is asked
        for, as when they are scored, in its own type.
        """
        types = {"no": self._teacher_type, "bf16": torch.bfloat16, "fp16": torch.float16}
        return types.get(self.accelerator.mixed_precision) == self._teacher_type

    def _anyone(self, going: bool) -> bool:
        """Whether any process still writes."""
        return bool(self.accelerator.gather(torch.tensor([going], device=self.accelerator.device)).any())

    # -- scores ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scored(self, rollouts: dict[str, Any]) -> dict[str, Any]:
        """
        Adds what the student that drew the answers, and the teacher, think of them: the rewards, the
        weights and the advantages of the whole generation, and the teacher's hidden states for later
        passes.
        """
        args, mask = self.args, loss_mask(rollouts)
        del rollouts["num_items_in_batch"]  # counts the generation, not the update
        self._watch_for_degeneration(rollouts, mask)
        if self._read:
            read = [F.pad(x, (0, 0, 0, mask.size(1) - x.size(1))) for x in self._read]
            rollouts["teacher_hidden"], self._read = torch.cat(read), []  # (B, T, H of the teacher)
        keep = args.cache_teacher_hidden and "teacher_hidden" not in rollouts
        if not (self.objective.needs_scores or (keep and args.num_iterations > 1)):
            return rollouts

        n = len(mask)
        size = n if any(key in rollouts for key in MULTIMODAL_KEYS) else args.per_device_train_batch_size
        student = self.accelerator.unwrap_model(self.model)
        parts: list[tuple[Any, Any, Any]] = []
        self.model.eval()  # no dropout: these are the probabilities the answers were drawn with
        for rows in torch.arange(n, device=mask.device).split(size):
            part = rollouts if size == n else take(rollouts, rows)
            with self.compute_loss_context_manager():
                hidden = self._teacher_hidden(part)
                log_q = log_p = None
                if self.objective.needs_scores:
                    log_q, log_p = self._forward_redirection(
                        self.model_wrapped, student, self._log_probs, student, part, hidden
                    )
            parts.append((log_q, log_p, hidden if keep else None))
        self.model.train()
        if keep:
            rollouts["teacher_hidden"] = torch.cat([part[2] for part in parts])  # (B, T, H of the teacher)
        if self.objective.needs_scores:
            log_q, log_p = (torch.cat(x) for x in list(zip(*parts, strict=True))[:2])  # (B, T)
            scores = score(log_q, log_p, mask, args.teacher_mix_alpha)
            self._stop_unless_finite("The log-probability of an answer", log_q + log_p, rollouts)
            coins = None
            if args.teacher_mix_alpha and self._mix_method == "coin_flip":
                group = torch.tensor(self._coins_of, device=mask.device)
                coins = Coins(group, self._sum if self._sharded else alone)
            gains = advantages(self.objective, scores, self._sum, coins)
            rollouts |= {"old_log_q": scores.old_log_q, "log_p": scores.log_p, "log_mix": scores.log_mix}
            rollouts["advantages"] = gains  # (B, T)
            self._log_rollouts(scores, gains)
        return rollouts

    def _log_probs(self, student: nn.Module, batch: dict[str, Any], teacher_hidden: Tensor) -> tuple:
        """log q and log p of every token of the answers, (B, T), 0 where nothing is learned."""
        mask = loss_mask(batch) != 0
        hidden = self._hidden(student, batch)
        found = self._divergences(student, hidden[mask], teacher_hidden[mask], batch["completion_ids"][mask])
        return on_grid(found.log_q, mask), on_grid(found.log_p, mask)

    def _log_rollouts(self, scores: Scores, gains: Tensor) -> None:
        """What the weights and advantages of a generation look like, over all processes."""
        mask = scores.mask
        weights = token_weights(scores.old_log_q, scores)
        from_teacher = self.args.teacher_mix_alpha * (scores.log_p - scores.log_mix).exp()
        rewards = scores.log_p - scores.old_log_q
        columns = [mask, weights, weights**2, from_teacher, gains, gains**2, rewards]
        sums = self._sum(torch.stack([(x * mask).sum() for x in columns]))
        _, w, w2, teacher, gain, gain2, reward = (sums / sums[0].clamp(min=1.0)).tolist()
        lowest = self.accelerator.gather(weights.masked_fill(mask == 0, 1.0).min()).min().item()
        self._note(
            {
                "is_weight_mean": w,
                "is_weight_min": lowest,
                "ess": w**2 / max(w2, 1e-12),  # share of the tokens that equal weights would need
                "teacher_token_fraction": teacher if self.args.teacher_mix_alpha else 0.0,
                "advantage_mean": gain,
                "advantage_std": max(gain2 - gain**2, 0.0) ** 0.5,
                "reward": reward,
            }
        )

    def _watch_for_degeneration(self, rollouts: dict[str, Any], mask: Tensor) -> None:
        prompts = _rows(rollouts["prompt_ids"], rollouts["prompt_mask"])
        answers = _rows(rollouts["completion_ids"], mask)
        signs = degeneration(prompts, answers, endings=self.eos_token_ids)
        values = torch.tensor(list(signs.values()), device=mask.device)
        n = self.accelerator.num_processes
        signs = dict(zip(signs, (self._sum(values) / n).tolist(), strict=True))
        signs["length_error"] /= n
        logged, warnings = self._guard.look(signs)
        self._note(logged, "guards")
        if self.accelerator.is_main_process:
            for warning in warnings:
                _host.logger.warning(
                    f"Step {self.state.global_step}: {warning}. The reverse KL may fall all the same: look "
                    "at the completions (log_completions=True). Length normalization, teacher mixing and a "
                    "smaller learning rate are what keeps a student from it."
                )

    def _own_state(self) -> dict[str, Any]:
        return {"guard": self._guard.state()}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        self._guard.restore(state["guard"])


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def _up_to_end(ids: list[int], endings: list[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in endings:
            return ids[: i + 1]
    return ids
