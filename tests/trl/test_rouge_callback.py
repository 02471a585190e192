"""RougeCallback chooses checkpoints in a real run, disturbs nothing and shares prompts among processes."""

import json
import math
import os
import random
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

trl = pytest.importorskip("trl")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from extensions.trl.evaluation import RougeCallback, generate_texts, rouge_l  # noqa: E402
from extensions.trl.evaluation import rouge_callback as module  # noqa: E402

WORDS = ["<pad>", "</s>", *"abcdef"]
VALIDATION = [
    {"prompt": "a b", "completion": "c d"},
    {"prompt": "c", "completion": "d e f"},
    {"prompt": "d e f", "completion": "a"},
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tokenizer():
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", padding_side="right"
    )


def make_trainer(folder, **settings):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    train = datasets.Dataset.from_list(
        [{"prompt": "a b", "completion": " c d"}, {"prompt": "c", "completion": " d"}] * 4
    )
    args = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **settings,
    )
    return trl.SFTTrainer(
        transformers.GPT2LMHeadModel(config),
        args,
        train_dataset=train,
        eval_dataset=train.select(range(2)),
        processing_class=make_tokenizer(),
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_checkpoint_of_the_best_rouge_l_is_kept(tmp_path, monkeypatch):
    values = iter([10.0, 30.0, 20.0])
    trainer = make_trainer(
        tmp_path,
        metric_for_best_model="eval_rougeL",
        greater_is_better=True,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    callback = RougeCallback(trainer, datasets.Dataset.from_list(VALIDATION), max_new_tokens=4)
    trainer.add_callback(callback)
    at_step = {}

    def known(predictions, references):
        assert references == ["c d", "d e f", "a"]
        at_step[trainer.state.global_step] = weights(trainer.model)
        return [next(values)] * len(predictions)

    monkeypatch.setattr(module, "rouge_l_scores", known)
    trainer.train()
    assert trainer.state.best_metric == 30.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert_equal(weights(trainer.model), at_step[2])
    assert any(not torch.equal(at_step[2][name], at_step[3][name]) for name in at_step[3])
    logged = [
        (entry["step"], entry["eval_rougeL"]) for entry in trainer.state.log_history if "eval_rougeL" in entry
    ]
    assert logged == [(1, 10.0), (2, 30.0), (3, 20.0)]


def test_training_is_bit_for_bit_as_without(tmp_path):
    ends = []
    for with_callback in (False, True):
        trainer = make_trainer(tmp_path / str(with_callback), save_strategy="no")
        if with_callback:
            trainer.add_callback(RougeCallback(trainer, VALIDATION, max_new_tokens=4, seeds=(1, 2)))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        ends.append((weights(trainer.model), losses, states, trainer.model.generation_config.to_dict()))
    assert_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert all(
        np.array_equal(a, b) if torch.is_tensor(a) else a == b
        for a, b in zip(ends[0][2], ends[1][2], strict=True)
    )
    assert ends[0][3] == ends[1][3]
    assert len(ends[0][1]) == 3


def test_the_metric_is_that_of_the_models_own_texts(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(RougeCallback(trainer, VALIDATION, max_new_tokens=4, seeds=(1, 2, 3)))
    metrics = trainer.evaluate()
    prompts, references = ([example[key] for example in VALIDATION] for key in ("prompt", "completion"))
    by_seed = [
        rouge_l(generate_texts(trainer.model, make_tokenizer(), prompts, 4, seed, batch_size=2), references)
        for seed in (1, 2, 3)
    ]
    assert max(by_seed) > min(by_seed)
    assert metrics["eval_rougeL"] == pytest.approx(sum(by_seed) / 3)
    assert metrics["eval_rougeL_se"] == pytest.approx(np.std(by_seed, ddof=1) / math.sqrt(3))
    assert trainer.processing_class.padding_side == "right"


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_the_prompts_and_drop_none(tmp_path, monkeypatch, processes):
    trainer = make_trainer(tmp_path)
    pairs = [(word, f"{word} reference") for word in "abcd"]
    callback = RougeCallback(trainer, pairs, max_new_tokens=4)
    asked, scored = [], []

    def answers(model, processing_class, prompts, max_new_tokens, seed, **settings):
        asked.append((seed, list(prompts)))
        return list(prompts)

    def scores(predictions, references):
        scored.append(list(zip(predictions, references, strict=True)))
        return [float("abcd".index(prediction)) for prediction in predictions]

    monkeypatch.setattr(module, "generate_texts", answers)
    monkeypatch.setattr(module, "rouge_l_scores", scores)
    everything = [0.0, 1.0, 2.0, 3.0]
    gathered = []
    monkeypatch.setattr(module, "gather_object", lambda own: gathered.extend(own) or everything)
    for index in range(processes):
        callback.trainer = SimpleNamespace(
            accelerator=SimpleNamespace(num_processes=processes, process_index=index),
            processing_class=None,
        )
        assert callback._rouge_l(None, seed=10) == 1.5
    assert sorted(gathered) == everything
    assert sorted(pair for share in scored for pair in share) == pairs
    assert len({len(prompts) for _, prompts in asked}) == 1
    assert len({seed for seed, _ in asked}) == processes


def test_conversations_and_several_references(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    talk = [{"role": "user", "content": "a b"}]
    answer = [{"role": "assistant", "content": "c d"}]
    callback = RougeCallback(trainer, [(talk, answer), (talk, ["c", "d e"])], max_new_tokens=4)
    assert callback.references == ["c d", ["c", "d e"]]
    trainer.add_callback(callback)
    assert 0 <= trainer.evaluate()["eval_rougeL"] <= 100


def test_answers_are_as_long_as_in_training_unless_said_otherwise(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args.max_completion_length = 5
    assert RougeCallback(trainer, VALIDATION).max_new_tokens == 5
    assert RougeCallback(trainer, VALIDATION, max_new_tokens=4).max_new_tokens == 4
    del trainer.args.max_completion_length
    trainer.model.config.max_position_embeddings = 300
    assert RougeCallback(trainer, VALIDATION).max_new_tokens == 256


def test_bad_input_is_refused_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    for dataset, settings, message in (
        ([], {}, "no prompts"),
        ([{"prompt": "a"}], {}, r"needs the columns 'prompt' and 'completion'; the dataset has \['prompt'\]"),
        (["ab"], {}, "needs pairs"),
        (VALIDATION, {"seeds": ()}, "at least one seed"),
        (VALIDATION, {"max_new_tokens": 15}, "16 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            RougeCallback(trainer, dataset, **{"max_new_tokens": 4, **settings})


def evaluate_beside_others(rank, port, folder):
    """One of two processes: a step of training and an evaluation; what it saw is written to a file."""
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    )
    torch.set_num_threads(1)
    trainer = make_trainer(folder, save_strategy="no", ddp_backend="gloo")
    assert trainer.accelerator.num_processes == 2
    callback = RougeCallback(trainer, VALIDATION, max_new_tokens=4)
    trainer.add_callback(callback)
    scored = []
    of_texts = module.rouge_l_scores
    module.rouge_l_scores = lambda *pairs: scored.append(of_texts(*pairs)) or scored[-1]
    trainer.train()
    history = [entry["eval_rougeL"] for entry in trainer.state.log_history if "eval_rougeL" in entry]
    (folder / f"{rank}.json").write_text(json.dumps({"history": history, "scored": scored}))


@pytest.mark.slow
def test_two_processes_agree_on_the_mean_of_all_prompts(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys, runpy, pathlib; names = runpy.run_path(sys.argv[1]); "
    code += "names['evaluate_beside_others'](int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, __file__, str(rank), str(port), str(tmp_path)])
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["history"] == second["history"]
    assert len(first["history"]) == 3
    for mean, one, other in zip(first["history"], first["scored"], second["scored"], strict=True):
        assert sorted(map(len, (one, other))) == [1, 2]
        assert mean == pytest.approx(sum(one + other) / 3)
