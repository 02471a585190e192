"""Bad input gets one message, which says what to do, before work is lost."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from trl import DPOConfig

from extensions.trl import QDPOConfig, QDPOTrainer
from extensions.trl._host import DataCollatorForPreference
from extensions.trl.qdpo.layers import quantize_model
from extensions.trl.qdpo.quantizers import WeightScheme

PAIRS = ("prompt", "chosen", "rejected")
RANDOM = LoraConfig(r=2, init_lora_weights=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8, not 1"),
        ({"bits": 9}, "bits must be an integer from 2 to 8, not 9"),
        ({"bits": True}, "bits must be an integer from 2 to 8, not True"),
        ({"bits": 4.0}, "bits must be an integer from 2 to 8, not 4.0"),
        ({"group_size": 0}, "group_size must be positive, or None"),
        ({"clip": "best"}, "clip must be"),
        ({"scale_dtype": "int8"}, "scale_dtype must be one of bfloat16, float16, float32"),
        ({"bits": None, "kv_bits": 8}, "kv_bits needs a quantizer: set bits, or kv_bits=None"),
        ({"bits": None, "activation_bits": 8}, "activation_bits needs a quantizer"),
        ({"kv_bits": 1}, "kv_bits must be an integer from 2 to 8, or None, not 1"),
        ({"activation_bits": True}, "activation_bits must be an integer from 2 to 8, or None, not True"),
        ({"bits": None, "train_scales_only": True}, "train_scales_only needs a quantizer: set bits"),
        ({"loss_type": "dpo"}, "Unknown loss_type 'dpo'. Known are sigmoid, .* qdpo_target, sft, kd, kd_on"),
        ({"loss_type": ["sigmoid", "nll"]}, "Unknown loss_type 'nll'"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "loss_type names 'sigmoid' twice"),
        ({"loss_type": ["sigmoid", "kd"], "loss_weights": [1.0]}, "loss_weights"),
        ({"target_loss": "mae"}, "target_loss must be 'mse' or 'bce', not 'mae'"),
        ({"loss_type": "qdpo_target", "ld_alpha": 0.5}, "does not go with ld_alpha: set ld_alpha=None"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"generation_batch_size": 0}, "generation_batch_size must be at least 1"),
        ({"num_rounds": 0}, "num_rounds must be at least 1"),
        ({"epochs_per_round": 0}, "epochs_per_round must be at least 1"),
        ({"divergence_window": 0}, "divergence_window must be at least 1, or None, not 0"),
        ({"pair_filter": "policy"}, "pair_filter must be 'none' or 'teacher', not 'policy'"),
        ({"anchor_fraction": 1.5}, r"anchor_fraction must be in \[0, 1\], not 1.5"),
        ({"num_rounds": 3, "num_train_epochs": 2, "max_steps": -1}, "Set num_train_epochs=3"),
        (
            {"num_rounds": 2, "dataloader_persistent_workers": True, "dataloader_num_workers": 1},
            "persistent_workers=True would go on .* set it to False",
        ),
        ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, "it must be at least 1"),
        ({"early_stopping_patience": 2}, "eval_strategy 'steps' or 'epoch'"),
        ({"loss_type": "kd", "sync_ref_model": True}, "no loss .* reads a reference: set it to False"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ", ".join(value),
)
def test_values_that_cannot_be(tmp_path, tiny, settings, said):
    values = tiny.settings(tmp_path)
    del values["max_completion_length"]
    with pytest.raises(ValueError, match=said):
        QDPOConfig(**{**values, **settings})


def quantized(tiny):
    model = tiny.llama()
    quantize_model(model, WeightScheme())
    return model


def as_if_bitsandbytes(tiny):
    model = tiny.llama()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return model


def tied(tiny):
    return tiny.llama(tie_word_embeddings=True)


def without_template(tiny):
    tokens = tiny.tokenizer()
    tokens.chat_template = None
    return tokens


def with_pictures(tiny):
    return Dataset.from_list([{"prompt": "w1", "chosen": "w2", "rejected": "w3", "image": [1]}])


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        # the model
        (lambda t: {"model": quantized(t)}, {}, r"quantized layers already.* Pass that as teacher_model"),
        (lambda t: {"model": as_if_bitsandbytes(t)}, {}, r"quantized already.* bits=None, a peft_config"),
        (lambda t: {"model": t.gpt2()}, {}, r"Conv1D .* modules_to_not_quantize=\['c_attn'\]"),
        (lambda t: {"model": tied(t)}, {"quantize_lm_head": True}, "shares its weight with .* untie"),
        (lambda t: {"others": {"peft_config": RANDOM}}, {}, "random adapter, .* set it to True"),
        (
            lambda t: {"data": t.prompts(4, PAIRS), "others": {"ref_model": t.llama(layers=2)}},
            {"bits": None, "pair_filter": "teacher"},
            "pair_filter='teacher' ask a teacher.* or pass teacher_model",
        ),
        (
            lambda t: {"others": {"eval_dataset": t.prompts(4, PAIRS).select([])}},
            {},
            "The eval dataset is empty",
        ),
        (lambda t: {}, {"eval_strategy": "epoch"}, "eval_strategy='epoch' needs an eval_dataset"),
        (lambda t: {}, {"group_size": 5}, "16 inputs, which groups of 5 do not divide. Take another"),
        (lambda t: {}, {"modules_to_not_quantize": ["model"]}, "no linear layer to quantize beside"),
        (
            lambda t: {"model": get_peft_model(t.llama(), LoraConfig(r=2))},
            {},
            "PeftModel cannot be quantized below its adapters. Merge it first",
        ),
        (
            lambda t: {"others": {"peft_config": LoraConfig(r=2)}},
            {"train_scales_only": True},
            "trains no adapter: set it to False, or peft_config=None",
        ),
        (
            lambda t: {"others": {"teacher_model": t.llama(vocabulary=50)}},
            {},
            "The model has 43 tokens and teacher_model 50",
        ),
        # the data
        (lambda t: {"data": t.prompts(0)}, {}, "The train dataset is empty"),
        (lambda t: {"others": {"eval_dataset": t.prompts(0)}}, {}, "The eval dataset is empty"),
        (lambda t: {"data": t.texts()}, {}, "has the columns text. QDPO needs 'prompt'"),
        (lambda t: {"data": t.prompts().to_iterable_dataset()}, {}, r"prompts only.*Dataset\.from_list"),
        (lambda t: {"data": t.conversations(), "tokens": without_template(t)}, {}, "no chat template. Take"),
        (lambda t: {}, {"max_length": 1}, "max_length=1 tokens or more, which leaves no room .* raise"),
        (lambda t: {"data": with_pictures(t)}, {}, "has pictures.* set bits=None"),
        (lambda t: {}, {"bits": None}, "both replies to a prompt would be the same model's.* Set bits"),
        (lambda t: {"others": {"eval_dataset": {"train": t.prompts()}}}, {}, "'train' is the name"),
        (
            lambda t: {"data": t.prompts(6, PAIRS)},
            {"num_rounds": 2, "max_steps": -1},
            "With num_rounds > 1 the pairs are made of prompts",
        ),
        (
            lambda t: {"data": t.prompts(6, PAIRS).to_iterable_dataset()},
            {"loss_type": "qdpo_target"},
            "pass a Dataset, not a stream",
        ),
        (
            lambda t: {
                "data": Dataset.from_list(
                    [{"prompt_ids": [9], "chosen_ids": [1] * 9, "rejected_ids": [30]}] * 2
                )
            },
            {"pair_filter": "teacher"},
            "leaves no pair.* Set pair_filter='none'",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, tiny, make, settings, said):
    with pytest.raises(ValueError, match=said):
        tiny.qdpo(tmp_path, **make(tiny), **settings)


def test_a_configuration_of_another_class(tmp_path, tiny):
    with pytest.raises(TypeError, match="args must be a QDPOConfig"):
        QDPOTrainer(
            tiny.llama(),
            args=DPOConfig(str(tmp_path), bf16=False, use_cpu=True),
            train_dataset=tiny.prompts(),
            processing_class=tiny.tokenizer(),
        )


def test_no_tokenizer_and_no_name_to_find_it_by(tmp_path, tiny):
    with pytest.raises(ValueError, match="Pass the tokenizer as `processing_class`"):
        QDPOTrainer(
            tiny.llama(),
            args=QDPOConfig(str(tmp_path), bf16=False, use_cpu=True),
            train_dataset=tiny.prompts(),
        )


def test_no_dataset_is_the_hosts_message(tmp_path, tiny):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        QDPOTrainer(
            tiny.llama(),
            args=QDPOConfig(str(tmp_path), bf16=False, use_cpu=True),
            processing_class=tiny.tokenizer(),
        )


@pytest.mark.parametrize("bits", [None, 4])
def test_a_dictionary_to_train_on_is_the_hosts_message_too(tmp_path, tiny, bits):
    pairs = DatasetDict({"train": tiny.prompts(4, PAIRS)})
    with pytest.raises(TypeError, match="`train_dataset` must be a `Dataset`"):
        tiny.qdpo(tmp_path, data=pairs, bits=bits)


def test_a_model_of_our_layers_is_taken_with_its_teacher(tmp_path, tiny):
    model = tiny.llama(layers=2)
    quantize_model(model, WeightScheme(bits=2))
    trainer = tiny.qdpo(tmp_path, model, others={"teacher_model": tiny.llama(layers=2)}, bits=2)
    plain = tiny.qdpo(tmp_path, bits=2)
    assert list(trainer.train_dataset) == list(plain.train_dataset)
    trainer.train()


def test_a_model_of_our_layers_in_other_bits(tmp_path, tiny):
    model = tiny.llama(layers=2)
    quantize_model(model, WeightScheme(bits=2))
    with pytest.raises(ValueError, match=r"q_proj has bits=2: set bits=2 instead of 4"):
        tiny.qdpo(tmp_path, model, others={"teacher_model": tiny.llama(layers=2)}, bits=4)


def test_a_collator_of_another_makes_no_target(tmp_path, tiny):
    trainer = tiny.qdpo(
        tmp_path, others={"data_collator": DataCollatorForPreference(0)}, loss_type="qdpo_target"
    )
    with pytest.raises(ValueError, match="needs the teacher's log-probabilities in a batch"):
        trainer.train()


@pytest.mark.parametrize("loss", ["sigmoid", "sft", "kd", "kd_on_policy"])
def test_a_collator_of_another_is_taken(tmp_path, tiny, loss):
    """Its batches have both replies, whatever is read."""
    ends = []
    for others in ({}, {"data_collator": DataCollatorForPreference(0)}):
        trainer = tiny.qdpo(tmp_path, others=others, loss_type=loss)
        trainer.train()
        ends.append(trainer.state.log_history[0]["loss"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_constructing_twice_after_an_error(tmp_path, tiny):
    """What was wrong once leaves the arguments as they were."""
    model = tiny.llama(layers=2)
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    values = tiny.settings(tmp_path, model_init_kwargs={"dtype": "float32"}, max_new_tokens=6, bits=3)
    del values["max_completion_length"]
    args = QDPOConfig(**values)
    with pytest.raises(ValueError, match="QDPO needs 'prompt'"):
        QDPOTrainer(str(tmp_path / "model"), args=args, train_dataset=tiny.texts())
    assert args.model_init_kwargs == {"dtype": "float32"}
    trainer = QDPOTrainer(str(tmp_path / "model"), args=args, train_dataset=tiny.prompts())
    assert trainer.model.dtype == torch.float32
