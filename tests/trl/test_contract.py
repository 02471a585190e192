"""What we rely on in TRL and transformers: hooks that are overridden, helpers, and what constructors set."""

import dataclasses
import inspect
from collections import deque

import pytest
import torch
import transformers
import trl
from transformers import Trainer
from trl import DistillationConfig, DistillationTrainer, DPOConfig, DPOTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection, unwrap_model_for_generation
from trl.trainer import utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from extensions.trl import MiniLLMConfig, MiniLLMTrainer, QDPOConfig, QDPOTrainer, _host
from extensions.trl.qdpo.batches import PairCollator
from extensions.trl.qdpo.qdpo_config import REPLY_LOSSES, TRL_PAIR_LOSSES


def names(function):
    return list(inspect.signature(function).parameters)


def test_the_versions_are_those_the_hooks_were_read_in():
    assert trl.__version__.startswith("1.16.")
    assert transformers.__version__.startswith("5.")


def test_the_constructor_is_trls_and_ours_after_it():
    theirs, ours = names(DistillationTrainer.__init__), names(MiniLLMTrainer.__init__)
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == ["pretraining_dataset", "teacher_processing_class"]
    defaults = inspect.signature(MiniLLMTrainer.__init__).parameters
    for name, parameter in inspect.signature(DistillationTrainer.__init__).parameters.items():
        assert defaults[name].default == parameter.default


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # overridden
        (DistillationTrainer.get_train_dataloader, ["self"]),
        (DistillationTrainer._get_train_sampler, ["self", "dataset"]),
        (DistillationTrainer._prepare_inputs, ["self", "generation_batch"]),
        (
            DistillationTrainer._generate_single_turn,
            ["self", "prompt_ids", "images", "multimodal_fields", "has_tool_images"],
        ),
        (
            DistillationTrainer._get_last_hidden_state,
            [
                *["self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"],
                *["pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes"],
                *["token_type_ids", "mm_token_type_ids", "image_position_ids"],
            ],
        ),
        (
            DistillationTrainer.compute_loss,
            ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        ),
        (
            DistillationTrainer._compute_loss,
            ["self", "unwrapped_student", "inputs", "num_items_in_batch"],
        ),
        (Trainer.train, ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        (Trainer._save_rng_state, ["self", "output_dir"]),
        (Trainer._load_rng_state, ["self", "checkpoint"]),
        # called
        (DistillationTrainer._tokenize_prompts, ["self", "prompts"]),
        (DistillationTrainer._generate_and_score_completions, ["self", "inputs"]),
        (DistillationTrainer.training_step, ["self", "model", "inputs", "num_items_in_batch"]),
        (
            DistillationTrainer.prediction_step,
            ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
        ),
        (
            Trainer._get_dataloader,
            [
                *["self", "dataset", "description", "batch_size"],
                *["sampler_fn", "is_training", "dataloader_key"],
            ],
        ),
        (Trainer.compute_loss_context_manager, ["self"]),
        # QDPO: overridden
        (DPOTrainer._prepare_dataset, ["self", "dataset", "processing_class", "args", "dataset_name"]),
        (DPOTrainer._precompute_ref_logps, ["self", "dataset", "name", "batch_size"]),
        (DPOTrainer._compute_loss, ["self", "model", "inputs", "return_outputs"]),
        (DPOTrainer.compute_ref_log_probs, ["self", "model", "inputs"]),
        (DPOTrainer._set_signature_columns_if_needed, ["self"]),
        (DPOTrainer._save_checkpoint, ["self", "model", "trial"]),
        (DPOTrainer.log, ["self", "logs", "start_time"]),
        (DataCollatorForPreference.torch_call, ["self", "examples"]),
        (Trainer.get_batch_samples, ["self", "epoch_iterator", "num_batches", "device"]),
        (Trainer._save, ["self", "output_dir", "state_dict"]),
        # QDPO: called
        (DPOTrainer.evaluate, ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
        (Trainer._get_output_dir, ["self", "trial"]),
        (utils.add_fused_lm_head, ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]),
        (utils.use_adapter, ["model", "adapter_name"]),
        (
            _ForwardRedirection.__call__,
            ["self", "wrapper_module", "original_module", "method", "args", "kwargs"],
        ),
        (utils.get_config_model_id, ["config"]),
        (utils.create_model_from_path, ["model_id", "architecture", "kwargs"]),
        (utils.maybe_gather_lm_head_ctx, ["params"]),
        (utils.pad, ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"]),
        (
            utils.repeat_iterable_dataset,
            ["dataset", "mini_repeat_count", "batch_size", "repeat_count"],
        ),
        (utils.split_pixel_values_by_grid, ["batch"]),
        (utils.unsplit_pixel_values_by_grid, ["batch"]),
        (prepare_deepspeed, ["model", "accelerator"]),
        (
            unwrap_model_for_generation,
            [
                *["model", "accelerator", "gather_deepspeed3_params"],
                *["generation_kwargs", "gradient_checkpointing_kwargs"],
            ],
        ),
    ],
    ids=lambda x: getattr(x, "__qualname__", ""),
)
def test_hooks_and_helpers_are_as_they_were(function, expected):
    assert names(function) == expected


OVERRIDDEN = [
    "compute_loss",
    "get_train_dataloader",
    "train",
    "_compute_loss",
    "_generate_single_turn",
    "_get_train_sampler",
    "_load_rng_state",
    "_prepare_inputs",
    "_save_rng_state",
]


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_what_is_overridden_takes_what_it_took(method):
    assert names(getattr(MiniLLMTrainer, method)) == names(getattr(DistillationTrainer, method))


def test_nothing_else_of_the_parents_is_overridden():
    """A new override belongs on the list above."""
    ours = [c for c in MiniLLMTrainer.__mro__ if c.__module__.startswith("extensions.")]
    named = {name for c in ours for name, value in vars(c).items() if inspect.isfunction(value)}
    inherited = {name for name in named if hasattr(DistillationTrainer, name)}
    assert inherited == {*OVERRIDDEN, "__init__", "_get_last_hidden_state"}


def test_new_names_of_ours_are_not_the_parents(tmp_path, tiny):
    """An attribute of ours that TRL came to use would be a silent clash."""
    args = DistillationConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    parent = DistillationTrainer(
        tiny.gpt2(0), tiny.gpt2(1), args, tiny.prompts(), processing_class=tiny.tokenizer()
    )
    ours = {
        *["objective", "text", "_guard", "_texts", "_rollouts", "_order", "_normalizers", "_cut_to"],
        *["_scored", "_slice", "_sum", "_note", "_hidden", "_divergences", "_adopt", "_own_state"],
    }
    trainer = tiny.trainer(tmp_path)
    assert not {name for name in ours if not hasattr(trainer, name)}
    assert not {name for name in ours if hasattr(parent, name)}


def test_the_parents_constructor_sets_what_is_read_later(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path)
    kinds = {
        "_step": int,
        "eos_token_ids": list,
        "generation_config": transformers.GenerationConfig,
        "generation_kwargs": dict,
        "max_completion_length": int,
        "temperature": float,
        "shuffle_dataset": bool,
        "tools": list,
        "use_vllm": bool,
        "_forward_redirection": _ForwardRedirection,
        "_metrics": dict,
        "_logs": dict,
        "_tokenizer": transformers.PreTrainedTokenizerBase,
    }
    for name, kind in kinds.items():
        assert isinstance(getattr(trainer, name), kind), name
    assert trainer.pad_to_multiple_of is None
    assert {"train", "eval"} == trainer._metrics.keys()
    assert all(isinstance(log, deque) for log in trainer._logs.values())
    assert trainer._dist.is_fsdp is False
    assert trainer._dist.is_zero3 is False
    with trainer._dist.summon_full_params(trainer.model, recurse=False):
        pass
    assert trainer.loss_is_scaled_for_ga  # by us: Trainer must not divide by the accumulated batches again


def test_a_batch_of_answers_has_the_entries_that_are_read(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, teacher_mix_alpha=0.0)
    batch = trainer._generate_and_score_completions(list(tiny.prompts(4)))
    assert set(batch) == {
        *["prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_items_in_batch"]
    }
    assert all(len(batch[name]) == 4 for name in set(batch) - {"num_items_in_batch"})


def test_the_configuration_is_trls_with_a_word_on_every_field_of_ours():
    inherited = {field.name: field for field in dataclasses.fields(DistillationConfig)}
    described = MiniLLMConfig.__doc__
    for field in dataclasses.fields(MiniLLMConfig):
        if field.name in MiniLLMConfig.__annotations__:
            assert field.metadata.get("help"), field.name
            assert "%" not in field.metadata["help"].replace("%%", "")
            assert f"        {field.name} (`" in described, field.name
    changed = {
        field.name
        for field in dataclasses.fields(MiniLLMConfig)
        if field.name in inherited and field.default != inherited[field.name].default
    }
    assert changed == {"learning_rate", "disable_dropout"}


def test_the_configuration_is_read_from_a_command_line(tmp_path):
    words = (
        "--mode modern --long_term false --epsilon 0 --whiten masked --teacher_mix_alpha 0.1 --use_cpu true"
    )
    parser = trl.TrlParser(MiniLLMConfig)
    (args,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), *words.split(), "--bf16", "false"])
    assert (args.mode, args.long_term, args.epsilon, args.whiten) == ("modern", False, 0.0, "masked")
    assert (args.teacher_mix_alpha, args.baseline) == (0.1, "leave_one_out")
    assert "--pretraining_kd_ratio" in parser.format_help()
    kept = {name: value for name, value in args.to_dict().items() if name in MiniLLMConfig.__annotations__}
    again = MiniLLMConfig(**kept, bf16=False, use_cpu=True)
    assert again.objective() == args.objective()


def test_host_exports_what_it_names():
    assert all(hasattr(_host, name) for name in _host.__all__)


@pytest.mark.parametrize("family", ["GPT2", "OPT", "Qwen3"])
def test_a_hook_on_the_decoder_sees_the_states_that_the_head_is_applied_to(family):
    """Also where the model with the head goes past the backbone, as OPT's does."""
    size = {"vocab_size": 43, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    extra = {
        "GPT2": {"n_positions": 16},
        "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "Qwen3": {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8},
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = getattr(transformers, f"{family}Config")(**size, **special, **extra[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(2, 10)[None]
    mask = torch.ones_like(ids)
    seen = []
    hook = _host.decoder_of(model).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1)
        hook.remove()
        expected = _host.last_hidden_state(model, ids, mask)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].last_hidden_state, expected)


# -- QDPO ----------------------------------------------------------------------------------------------------


def test_qdpos_constructor_is_trls_and_ours_after_it():
    theirs, ours = (inspect.signature(c.__init__).parameters for c in (DPOTrainer, QDPOTrainer))
    assert list(ours) == [*theirs, "teacher_model"]
    assert all(ours[name].default == parameter.default for name, parameter in theirs.items())


OVERRIDDEN_OF_DPO = [
    *("_prepare_dataset", "_precompute_ref_logps", "_compute_loss", "compute_ref_log_probs"),
    *("_set_signature_columns_if_needed", "_save_checkpoint", "get_train_dataloader", "train", "log"),
    *("get_batch_samples", "_save", "evaluation_loop"),
]


@pytest.mark.parametrize("method", OVERRIDDEN_OF_DPO)
def test_what_qdpo_overrides_takes_what_it_took(method):
    assert names(getattr(QDPOTrainer, method)) == names(getattr(DPOTrainer, method))


def test_nothing_else_of_dpo_is_overridden():
    """A new override belongs on the list above."""
    ours = [c for c in QDPOTrainer.__mro__ if c.__module__.startswith("extensions.")]
    named = {name for c in ours for name, value in vars(c).items() if inspect.isfunction(value)}
    assert {name for name in named if hasattr(DPOTrainer, name)} == {*OVERRIDDEN_OF_DPO, "__init__"}


def dpo(tmp_path, tiny, **settings):
    model = tiny.llama()
    model.save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    values = {"bf16": False, "use_cpu": True, "report_to": "none", **settings}
    data = tiny.prompts(4, ("prompt", "chosen", "rejected"))
    args = DPOConfig(str(tmp_path), **values)
    return DPOTrainer(model, args=args, train_dataset=data, processing_class=tiny.tokenizer())


def test_new_names_of_qdpo_are_not_the_parents(tmp_path, tiny):
    """An attribute of ours that TRL came to use would be a silent clash."""
    ours = {
        *("teacher", "constructed", "nothing_differs", "violation_rates", "pair_counts", "halves"),
        *("own_losses", "_scoring", "_prompts", "_chosen", "_flips", "_own_loss", "_forward_kl", "_note"),
        *("_ready", "_rows", "_scored", "_can_score", "_new_round", "_begin_rounds", "_generation"),
        *("_needs_reference", "_gathered", "_evaluated"),
    }
    trainer, parent = tiny.qdpo(tmp_path), dpo(tmp_path / "parent", tiny)
    assert not {name for name in ours if not hasattr(trainer, name)}
    assert not {name for name in ours if hasattr(parent, name)}


def test_dpos_constructor_sets_what_qdpo_reads_later(tmp_path, tiny):
    parent = dpo(tmp_path, tiny, precompute_ref_log_probs=True)
    assert isinstance(parent.data_collator, DataCollatorForPreference)
    assert (parent.loss_types, parent.loss_weights) == (["sigmoid"], [1.0])
    assert parent.ref_model is None
    assert parent._signature_columns is None or "prompt_ids" in parent._signature_columns
    assert {"train", "eval"} == parent._metrics.keys()
    assert parent.aux_loss_enabled is False
    assert isinstance(parent.router_aux_loss_coef, float)
    assert parent._tokenizer is parent.processing_class
    assert parent._precompute_model_hash
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(parent.train_dataset.column_names)


def test_trls_losses_are_all_known(tmp_path, tiny):
    """By its own message on a loss that it does not know."""
    trainer = dpo(tmp_path, tiny)
    trainer.loss_types = ["none"]
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trainer.train()
    listed = str(error.value).split("[")[1].split("]")[0]
    known = {name.strip(" '\"") for name in listed.split(",")}
    assert known == {*TRL_PAIR_LOSSES, "sft"}
    assert known - set(TRL_PAIR_LOSSES) <= set(REPLY_LOSSES)


def test_what_the_fused_head_returns_can_be_replaced_in_part(tmp_path, tiny):
    trainer = dpo(tmp_path, tiny)
    ids = torch.tensor([[9, 12, 30]])
    outputs = trainer.model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert dataclasses.is_dataclass(outputs)
    assert type(outputs).__name__ == "FusedCausalLMOutput"
    assert outputs.log_probs.shape == outputs.is_top1.shape == (1, 2)
    other = dataclasses.replace(outputs, log_probs=outputs.log_probs * 0)
    assert type(other) is type(outputs)
    assert other.is_top1 is outputs.is_top1
    labels = ids.clone()
    labels[0, 1] = -100
    found = trainer.model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert found.tolist() == [[0.0, outputs.log_probs[0, 1].item()]]


def test_the_collator_is_trls_with_ours_after_it():
    theirs, ours = (
        [field.name for field in dataclasses.fields(c)] for c in (DataCollatorForPreference, PairCollator)
    )
    assert ours == [*theirs, "divergence_window", "halves"]


def test_qdpos_configuration_is_trls_with_a_word_on_every_field_of_ours():
    inherited = {field.name: field for field in dataclasses.fields(DPOConfig)}
    for field in dataclasses.fields(QDPOConfig):
        if field.name in QDPOConfig.__annotations__:
            assert field.metadata.get("help"), field.name
            assert f"        {field.name} (`" in QDPOConfig.__doc__, field.name
        else:
            assert field.default == inherited[field.name].default, field.name


def test_qdpos_configuration_is_read_from_a_command_line(tmp_path):
    words = "--bits 3 --group_size 32 --symmetric false --clip mse --loss_type qdpo_target kd --use_cpu true"
    parser = trl.TrlParser(QDPOConfig)
    (args,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), *words.split(), "--bf16", "false"])
    assert (args.bits, args.group_size, args.symmetric, args.clip) == (3, 32, False, "mse")
    assert args.loss_type == ["qdpo_target", "kd"]
    kept = {name: value for name, value in args.to_dict().items() if name in QDPOConfig.__annotations__}
    assert QDPOConfig(**kept, bf16=False, use_cpu=True).scheme() == args.scheme()
    parser.format_help()
