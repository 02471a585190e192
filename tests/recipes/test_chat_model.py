"""The small chat model: it learns, killed, it goes on to the same weights; trained, it is read."""

import pytest
import torch

from recipes import chat_model
from recipes.chat_model import answer_loss, new_chat_model, train_chat_model
from recipes.dialogues import dialogues, make_tokenizer, token_ids


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of four dialogues, and a look at every second step."""
    monkeypatch.setattr(chat_model, "BATCH_SIZE", 4)
    monkeypatch.setattr(chat_model, "POOL", 8)
    monkeypatch.setattr(chat_model, "LOOK_EVERY", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_model_is_of_the_size_that_the_recipe_promises():
    model = new_chat_model(make_tokenizer(), seed=0)
    assert 2_000_000 <= model.num_parameters() <= 3_000_000
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_the_loss_counts_what_the_assistant_says_and_nothing_else():
    tokenizer = make_tokenizer()
    model = new_chat_model(tokenizer, seed=0).eval()
    ids, said = token_ids(tokenizer, dialogues(1, 0, "train")[0])
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand = [-scores[i - 1, ids[i]] for i in range(1, len(ids)) if said[i]]
        padding = [tokenizer.pad_token_id] * 3
        batch = torch.tensor([ids + padding])
        loss = answer_loss(model, batch, torch.tensor([said + [False] * 3]))
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    whole, tokenizer = train_chat_model(tmp_path / "whole", seed=1, steps=6)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 3
    assert losses[-1] < losses[0]

    class KilledError(Exception):
        pass

    def killed(*arguments):
        steps.append(None)
        if len(steps) == 4:
            raise KilledError
        return answer_loss(*arguments)

    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(chat_model, "answer_loss", killed)
        with pytest.raises(KilledError):
            train_chat_model(tmp_path / "parts", seed=1, steps=6)
    assert (tmp_path / "parts" / "checkpoint-0000000002").is_dir()
    parts, _ = train_chat_model(tmp_path / "parts", seed=1, steps=6)
    assert len(capsys.readouterr().out.splitlines()) == 3  # one before, and not all three again
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not parts.training

    again, read = train_chat_model(tmp_path / "parts", seed=1, steps=6)
    assert capsys.readouterr().out == ""
    assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), again.parameters(), strict=True))
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read.chat_template == tokenizer.chat_template
