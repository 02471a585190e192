"""Models, tokenizers and datasets that are made in process, so that no test needs a network or a minute."""

import gc
import os
import random
from types import SimpleNamespace

import pytest

# Before the first import of huggingface_hub, which reads them then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROLES = ["system", "user", "assistant", "tool", "politely"]
WORDS = [f"w{i}" for i in range(35)]
VOCABULARY = ["<pad>", "<eos>", "<unk>", *ROLES, *WORDS]  # 43 tokens
CHAT_TEMPLATE = (
    "{% if polite %}politely {% endif %}"
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are slower on many threads, and sums over threads differ in their last bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def largest_tensor():
    """A context whose ``largest`` is the number of elements of the largest tensor any operation returned."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class LargestTensor(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    self.largest = max(self.largest, x.numel())
            return out

    return LargestTensor()


@pytest.fixture(scope="session")
def tiny():
    """
    Builders of everything small; see the functions of these names below.

    Each ``train()`` begins with a garbage collection, which would look through all that imports of libraries
    left behind, a quarter of a second each time: that is put aside for good.
    """
    import extensions.trl  # noqa: F401

    gc.collect()
    gc.freeze()
    return SimpleNamespace(
        gpt2=gpt2,
        qwen3=qwen3,
        llama=llama,
        tokenizer=tokenizer,
        prompts=prompts,
        conversations=conversations,
        texts=texts,
        settings=settings,
        config=config,
        trainer=trainer,
        qdpo=qdpo,
        weights=weights,
        moved=moved,
        gradients=gradients,
        assert_close=assert_close,
        words=WORDS,
        vocabulary=VOCABULARY,
    )


def tokenizer(vocabulary=VOCABULARY, **settings):
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **{**special, **settings})
    made.chat_template = CHAT_TEMPLATE
    return made


def gpt2(seed=0, layers=1, width=16, vocabulary=43, **settings):
    """Learned positions, tied embeddings. Its probabilities are far from uniform."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    size = {"n_layer": layers, "n_embd": width, "n_head": 2, "vocab_size": vocabulary, "n_positions": 64}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**{**size, **special, **settings}))


def qwen3(seed=0, layers=1, width=16, vocabulary=43, **settings):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _rotary(Qwen3Config, Qwen3ForCausalLM, seed, layers, width, vocabulary, settings)


def llama(seed=0, layers=1, width=16, vocabulary=43, **settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    return _rotary(LlamaConfig, LlamaForCausalLM, seed, layers, width, vocabulary, settings)


def _rotary(config_class, model_class, seed, layers, width, vocabulary, settings):
    """Rotary positions, grouped queries, a head of its own."""
    import torch

    torch.manual_seed(seed)
    size = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
    }
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2}
    return model_class(config_class(**{**size, **special, **settings}))


def _sentences(n, shortest, longest, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(shortest, longest))) for _ in range(n)]


def prompts(n=16, columns=("prompt",), longest=6, shortest=1):
    """Plain prompts of so many words, in columns of which each has sentences of its own."""
    from datasets import Dataset

    rows = {name: _sentences(n, shortest, longest, seed) for seed, name in enumerate(columns)}
    if "completion" in rows:  # which SFTTrainer appends to the prompt as it is
        rows["completion"] = [f" {text}" for text in rows["completion"]]
    return Dataset.from_dict(rows)


def conversations(n=16, columns=("prompt",)):
    """The same as one message each."""
    from datasets import Dataset

    roles = {"prompt": "user", "completion": "assistant"}
    rows = prompts(n, columns)
    return Dataset.from_dict(
        {name: [[{"role": roles[name], "content": text}] for text in rows[name]] for name in columns}
    )


def texts(n=16):
    """Plain text for L_PT."""
    from datasets import Dataset

    return Dataset.from_dict({"text": _sentences(n, 1, 12, seed=9)})


def settings(folder, **others):
    """Four prompts a step and answers of at most 6 tokens, in float32 on the CPU; of any TRL trainer."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **others,
    }


def config(folder, **others):
    """The same for MiniLLM."""
    from extensions.trl import MiniLLMConfig

    return MiniLLMConfig(**settings(folder, **others))


def trainer(folder, model=None, teacher=None, data=None, tokens=None, others=None, **settings):
    """A trainer of small things; ``others`` go to its constructor and ``settings`` to its configuration."""
    from extensions.trl import MiniLLMTrainer

    return MiniLLMTrainer(
        model=gpt2(0) if model is None else model,
        teacher_model=gpt2(1, layers=2, width=32) if teacher is None else teacher,
        args=config(folder, **settings),
        train_dataset=prompts() if data is None else data,
        processing_class=tokenizer() if tokens is None else tokens,
        **(others or {}),
    )


def qdpo(folder, model=None, data=None, tokens=None, others=None, **settings_of_ours):
    """A QDPO trainer of a small model in 3 bits, with a reference that is scored as it trains."""
    from extensions.trl import QDPOConfig, QDPOTrainer

    values = settings(folder, bits=3, max_new_tokens=6, gradient_checkpointing=False)
    del values["max_completion_length"]
    return QDPOTrainer(
        model=llama(layers=2) if model is None else model,
        args=QDPOConfig(**{**values, **settings_of_ours}),
        train_dataset=prompts() if data is None else data,
        processing_class=tokenizer() if tokens is None else tokens,
        **(others or {}),
    )


def weights(model):
    """A copy of every parameter, by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(before, after):
    """Names of the parameters that are not as they were."""
    import torch

    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def gradients(trainer):
    """A list that gets the gradient of each update, by parameter, as the optimizer sees it."""
    seen = []
    create = trainer.create_optimizer

    def recorded(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: seen.append(current()))
        return optimizer

    def current():
        named = trainer.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    trainer.create_optimizer = recorded
    return seen


def assert_close(one, other, tolerance=1e-6):
    """Of gradients as one vector: their difference is at most this share of the longer one."""
    import torch

    assert one.keys() == other.keys()
    a, b = (torch.cat([x[name].flatten().double() for name in one]) for x in (one, other))
    assert a.norm() > 0
    assert (a - b).norm() <= tolerance * max(a.norm(), b.norm())
