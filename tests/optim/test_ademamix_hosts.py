"""AdEMAMix where people will put it: SB3, Trainer of transformers, TRL, TorchRL, accelerate."""

import pytest
import torch
from torch import nn

from extensions.optim import AdEMAMix

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = {"alpha": 4.0, "alpha_warmup": 20, "beta3_warmup": 20}


def tiny_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, 32)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def rows(n=16):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32, (n, 8), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_stable_baselines3_trains_saves_and_goes_on(options, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    policy = {"optimizer_class": AdEMAMix, "optimizer_kwargs": {**SETTINGS, **options}, "net_arch": [8]}
    model = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, policy_kwargs=policy, seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(64)
    assert all(not torch.equal(p, q) for p, q in zip(model.policy.parameters(), before, strict=True))
    model.save(tmp_path / "model.zip")
    loaded = sb3.PPO.load(tmp_path / "model.zip")
    assert isinstance(loaded.policy.optimizer, AdEMAMix)
    for mine, theirs in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        for name, value in model.policy.optimizer.state[mine].items():
            assert torch.equal(value, loaded.policy.optimizer.state[theirs][name])


def trained_by_trainer(folder, steps, resume=False):
    transformers = pytest.importorskip("transformers")
    model = tiny_gpt2()
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizer = AdEMAMix(model.parameters(), lr=1e-2, **SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0 / (1 + i))
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows(24), optimizers=(optimizer, scheduler)
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_trainer_of_transformers_resumes_exactly(tmp_path):
    whole = trained_by_trainer(tmp_path / "whole", 6)
    trained_by_trainer(tmp_path / "half", 3)
    resumed = trained_by_trainer(tmp_path / "half", 6, resume=True)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_trainer_makes_it_with_its_own_groups_and_schedule(tmp_path):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, weight_decay=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(
        tiny_gpt2(),
        arguments,
        train_dataset=rows(16),
        optimizer_cls_and_kwargs=(AdEMAMix, {"lr": 1e-2, **SETTINGS}),
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is AdEMAMix
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["lr"] < 1e-2  # the Trainer's schedule


def test_a_trainer_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, tokenizer = tiny_gpt2(), tiny_tokenizer()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = datasets.Dataset.from_list([{"text": "w1 w2 w3 w4 w5"}, {"text": "w6 w7 w8"}] * 8)
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, max_length=8, bf16=False, use_cpu=True,
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    optimizer = AdEMAMix(model.parameters(), lr=1e-2, **SETTINGS, fused=True)
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=data, processing_class=tokenizer, optimizers=(optimizer, None)
    )
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    assert all(not torch.equal(p, before[name]) for name, p in trained.named_parameters())


def test_a_loss_of_torchrl():
    pytest.importorskip("torchrl")
    from tensordict import TensorDict
    from torchrl.data import Categorical
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss

    torch.manual_seed(0)
    actor = QValueActor(
        nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3), action_space="categorical"
    )
    loss = DQNLoss(actor, action_space="categorical", delay_value=False)
    batch = TensorDict(
        {
            "observation": torch.randn(8, 4),
            "action": torch.randint(3, (8,)),
            "next": {
                "observation": torch.randn(8, 4),
                "reward": torch.randn(8, 1),
                "done": torch.ones(8, 1, dtype=torch.bool),
                "terminated": torch.ones(8, 1, dtype=torch.bool),
            },
        },
        [8],
    )
    optimizer = AdEMAMix(loss.parameters(), lr=3e-2, **SETTINGS)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(batch)["loss"]
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]


def test_accelerate_saves_and_loads(tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def run(steps, load=False):
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = nn.Linear(4, 4)
        optimizer = AdEMAMix(model.parameters(), lr=1e-2, **SETTINGS)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        if load:
            accelerator.load_state(tmp_path)
        for i in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i))
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return accelerator, model

    _, whole = run(range(6))
    half, _ = run(range(3))
    half.save_state(tmp_path)
    _, resumed = run(range(3, 6), load=True)
    assert torch.equal(whole.weight, resumed.weight)
