"""Models and tokenizers that do not fit together, and how each error says what to do."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Image

from extensions.trl import MiniLLMTrainer
from extensions.trl._host import last_hidden_state
from extensions.trl.divergence import TokenDivergences
from extensions.trl.minillm import teacher as module
from extensions.trl.minillm import teacher_trainer


def test_no_teacher(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"MiniLLM needs a teacher: pass `teacher_model`.*or set"):
        MiniLLMTrainer(
            tiny.gpt2(0),
            args=tiny.config(tmp_path),
            train_dataset=tiny.prompts(),
            processing_class=tiny.tokenizer(),
        )


def test_no_tokenizer_and_no_name_to_find_it_by(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"no name to find its tokenizer by. Pass .* `processing_class`"):
        MiniLLMTrainer(tiny.gpt2(0), tiny.gpt2(1), tiny.config(tmp_path), tiny.prompts())


def test_a_student_that_is_loaded_from_where_its_teacher_is(tmp_path, tiny, caplog):
    for name in ("one", "other"):
        tiny.gpt2(0).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, one, other)
        assert "nothing to learn" not in caplog.text
        tiny.trainer(tmp_path, one, one)
    assert f"Student and teacher are both {one}: where they are equal, there is nothing to" in caplog.text


def test_loading_arguments_for_a_loaded_teacher(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"`teacher_model_init_kwargs` are for a teacher given by name"):
        tiny.trainer(tmp_path, teacher_model_init_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("shared", ["model", "embedding"])
def test_a_teacher_that_is_the_student_is_refused_and_left_as_it_was(tmp_path, tiny, shared):
    student = tiny.qwen3(0)
    teacher = student if shared == "model" else tiny.qwen3(1)
    teacher.model.embed_tokens = student.model.embed_tokens
    with pytest.raises(ValueError, match=r"shares parameters with the student.*copy.deepcopy\(model\)"):
        tiny.trainer(tmp_path, student, teacher)
    assert all(p.requires_grad for p in student.parameters())
    trainer = tiny.trainer(tmp_path, student, copy.deepcopy(student))  # what the message says to do
    before = tiny.weights(student)
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in tiny.weights(student).items())


def test_a_teacher_that_requires_gradients_is_frozen(tmp_path, tiny):
    teacher = tiny.gpt2(1).train()
    assert all(p.requires_grad for p in teacher.parameters())
    trainer = tiny.trainer(tmp_path, teacher=teacher)
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())
    assert not trainer.teacher_model.training


def test_no_end_of_sequence(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"has an end-of-sequence token. Set tokenizer.eos_token, or model"):
        tiny.trainer(tmp_path, tiny.gpt2(0, eos_token_id=None), tokens=tiny.tokenizer(eos_token=None))


def test_nothing_to_pad_with(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"has neither a padding token nor .*Set tokenizer.pad_token"):
        tiny.trainer(tmp_path, tiny.gpt2(0), tokens=tiny.tokenizer(eos_token=None, pad_token=None))


@pytest.mark.parametrize(("student", "teacher"), [(43, 48), (48, 43)])
def test_vocabularies_of_different_sizes(tmp_path, tiny, student, teacher):
    models = tiny.qwen3(0, vocabulary=student), tiny.qwen3(1, vocabulary=teacher)
    message = f"vocab_size {student} but .* vocab_size {teacher}.*set allow_padded_vocabulary=True"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, *models)


def test_a_tokenizer_with_more_tokens_than_a_model(tmp_path, tiny):
    models = tiny.qwen3(0, vocabulary=48), tiny.qwen3(1, vocabulary=40)
    with pytest.raises(ValueError, match=r"The tokenizer has 43 tokens, more than the smaller model \(40\)"):
        tiny.trainer(tmp_path, *models, allow_padded_vocabulary=True)


def shifted(tiny):
    """The same words under other numbers."""
    words = tiny.vocabulary
    return tiny.tokenizer([*words[:8], *words[9:], words[8]])


@pytest.mark.parametrize("given", ["argument", "beside the weights"])
def test_a_tokenizer_of_other_numbers(tmp_path, tiny, given):
    teacher, others = tiny.gpt2(1), {}
    if given == "argument":
        others["teacher_processing_class"] = shifted(tiny)
    else:
        teacher.save_pretrained(tmp_path / "teacher")
        shifted(tiny).save_pretrained(tmp_path / "teacher")
        teacher = str(tmp_path / "teacher")
    message = "differs from the student's in 35 of 43 tokens, first in 'w0', which is 8 .*42 for the teacher"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, teacher=teacher, others=others)


def test_the_same_tokenizer_and_one_that_is_not_there(tmp_path, tiny, caplog):
    tiny.trainer(tmp_path, others={"teacher_processing_class": tiny.tokenizer()})
    tiny.gpt2(1).save_pretrained(tmp_path / "teacher")
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, teacher=str(tmp_path / "teacher"))
    assert "Pass `teacher_processing_class` to have it checked" in caplog.text


def test_the_tokenizer_of_a_teacher_from_the_hub_is_looked_for_there(tmp_path, tiny, caplog, monkeypatch):
    """By its name and revision, whether the trainer loads the teacher or it comes loaded."""
    asked = []

    def from_pretrained(name, revision, trust_remote_code):
        asked.append((name, revision))
        if name == "somebody/elsewhere":
            raise OSError
        return shifted(tiny)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", from_pretrained)
    teacher = tiny.gpt2(1)
    teacher.name_or_path = "somebody/teacher"  # as from_pretrained of a model leaves it
    with pytest.raises(
        ValueError, match=r"differs from the student's.*pass the student's tokenizer as `teach"
    ):
        tiny.trainer(tmp_path, teacher=teacher)
    tiny.trainer(tmp_path, teacher=teacher, others={"teacher_processing_class": tiny.tokenizer()})
    teacher.name_or_path = "somebody/elsewhere"
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, teacher=teacher)
    assert "from somebody/elsewhere (OSError), so it is not compared" in caplog.text
    assert asked == [("somebody/teacher", "main"), ("somebody/elsewhere", "main")]

    loaded = []
    monkeypatch.setattr(
        module, "create_model_from_path", lambda name, **how: loaded.append(how["revision"]) or tiny.gpt2(1)
    )
    for settings in (
        {"teacher_model_revision": "v1"},
        {"teacher_model_revision": "v1", "teacher_model_init_kwargs": {"revision": "v2"}},
    ):
        with pytest.raises(ValueError, match="differs from the student's"):
            tiny.trainer(tmp_path, teacher="somebody/teacher", **settings)
    assert asked[2:] == [("somebody/teacher", "v1"), ("somebody/teacher", "v2")]
    assert loaded == ["v1", "v2"]


def test_a_padding_token_of_the_student_alone(tmp_path, tiny):
    """It may stand where the teacher's tokenizer has nothing; not in the place of another token."""
    ours, theirs = tiny.tokenizer(), tiny.tokenizer(pad_token=None)
    ours.add_special_tokens({"pad_token": "[PAD]"})
    models = tiny.qwen3(0, vocabulary=48), tiny.qwen3(1, vocabulary=48)
    others = {"teacher_processing_class": theirs}
    tiny.trainer(tmp_path, *models, tokens=ours, others=others).train()
    theirs.add_tokens("w99")
    with pytest.raises(ValueError, match=r"in 1 of 44 tokens, first in '\[PAD\]', which is 43 .* and None"):
        tiny.trainer(tmp_path, *models, tokens=ours, others=others)
    with pytest.raises(
        ValueError, match=r"has 44 tokens, more than the smaller.*pad with another .tokenizer"
    ):
        tiny.trainer(tmp_path, tiny.qwen3(0), tiny.qwen3(1), tokens=ours)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("student", "teacher"), [(43, 48), (48, 43)])
def test_padding_of_a_vocabulary_is_never_drawn_and_counts_for_nothing(
    tmp_path, tiny, student, teacher, alpha
):
    """It is never drawn, even by a model that would say nothing else; losses are those without it."""
    found = []
    for padded in (False, True):
        models = [tiny.qwen3(0, vocabulary=43), tiny.qwen3(1, vocabulary=43)]
        if padded:
            which = int(teacher == 48)
            models[which] = padded_copy(models[which], 48, tiny)
        trainer = tiny.trainer(
            tmp_path,
            *models,
            others={"pretraining_dataset": tiny.texts()},
            teacher_mix_alpha=alpha,
            pretraining_kd_ratio=0.5,
            allow_padded_vocabulary=True,
            max_steps=1,
            optim="sgd",
        )
        said = []
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows, score=score, said=said: (
            said.append(score(rows)) or said[-1]
        )
        before = trainer.model.lm_head.weight.detach().clone()
        trainer.train()
        after = trainer.model.lm_head.weight.detach()
        assert said[0]["completion_ids"].max() < 43
        assert not torch.equal(before[:43], after[:43])
        assert torch.equal(before[43:], after[43:])
        found.append((said[0]["completion_ids"], trainer.state.log_history[0], after[:43]))
    if alpha:  # with transformers' generate the draws differ: it draws from more elements
        assert torch.equal(found[0][0], found[1][0])
        for name in ("loss", "minillm/reverse_kl", "minillm/pt_loss", "entropy"):
            assert found[0][1][name] == pytest.approx(found[1][1][name], rel=1e-5)
        torch.testing.assert_close(found[0][2], found[1][2])


def padded_copy(model, size, tiny):
    """The same model with rows for unused tokens, which it deems near certain."""
    bigger = tiny.qwen3(0, vocabulary=size, tie_word_embeddings=False)
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        extra = 50.0 * state[name].mean(0, keepdim=True).sign().expand(size - 43, -1)
        state[name] = torch.cat([state[name], extra])
    bigger.load_state_dict(state)
    return bigger


def test_vllm_would_draw_padding_of_a_vocabulary(tmp_path, tiny):
    models = tiny.qwen3(0, vocabulary=48), tiny.qwen3(1, vocabulary=43)
    trainer = tiny.trainer(tmp_path, *models, allow_padded_vocabulary=True, teacher_mix_alpha=0.0)
    trainer.use_vllm = True  # without the library
    with pytest.raises(ValueError, match=r"all 48 tokens of the student.*knows 43.*resize_.*.43"):
        trainer._adopt(models[1], None)
    models = tiny.qwen3(0, vocabulary=43), tiny.qwen3(1, vocabulary=48)
    trainer = tiny.trainer(tmp_path, *models, allow_padded_vocabulary=True, teacher_mix_alpha=0.0)
    trainer.use_vllm = True
    trainer._adopt(models[1], None)  # the student has no token that must not be drawn


def test_heads_on_another_device(tmp_path, tiny, monkeypatch):
    """Hidden states go where the heads are, and results come back; two devices of heads are refused."""
    trainer = tiny.trainer(tmp_path, tiny.qwen3(0), tiny.qwen3(1))
    seen = []

    def recorded(*given, **_):
        seen.extend(given[i].device.type for i in (0, 2, 4))
        seen.extend(given[i].weight.device.type for i in (1, 3))
        return TokenDivergences(*(torch.zeros(3) for _ in range(5)))

    monkeypatch.setattr(teacher_trainer, "tiled_divergences", recorded)
    hidden, targets = torch.zeros(3, 16), torch.zeros(3).long()
    trainer.model.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"student's head is on meta but the teacher's is on cpu. Place"):
        trainer._divergences(trainer.model, hidden, hidden, targets)
    trainer.teacher_model.lm_head.to("meta")
    found = trainer._divergences(trainer.model, hidden, hidden, targets)
    assert seen == ["meta"] * 5
    assert found.log_q.device.type == "cpu"


def test_hidden_states_come_back_from_the_last_device():
    asked = []
    states = SimpleNamespace(to=asked.append)

    class Backbone(torch.nn.Module):
        def forward(self, **_):
            return SimpleNamespace(last_hidden_state=states)

    model = torch.nn.Module()
    model.base_model = Backbone()
    ids = torch.ones(1, 3).long()
    last_hidden_state(model, ids, torch.ones_like(ids))
    assert asked == [ids.device]


def test_pictures_are_not_read_for_the_length_of_prompts(tmp_path, tiny):
    broken = [{"bytes": b"no picture", "path": None}] * 16
    data = tiny.prompts(16).add_column("picture", broken).cast_column("picture", Image())
    trainer = tiny.trainer(tmp_path, data=data)
    trainer._is_vlm = True
    trainer._tokenize_prompts = None
    trainer._check_prompts()  # nor are prompts, which may hold them
