"""What a model answers, against its own greedy generation and by hand."""

import pytest
import torch

from extensions.glasses import HFCausalLM
from extensions.glasses.answers import answer_items
from extensions.glasses.tasks import Question


def question(payload, answer, ask="How many ones are there in", lead=" answer :"):
    prompt = f"{ask} {payload}"
    return Question(
        prompt, (len(ask) + 1, len(prompt)), tuple(payload.split()), lead, answer, len(payload.split())
    )


ITEMS = [
    question("1 0 1", "2"),
    question("1 1 1 1", "4"),
    question("0 1 1 1 0 1", "4"),
    question("1 1 1 1", "1 2"),
]


def generated(model, item, tokens):
    batch = model.tokenizer(item.prompt + item.lead, return_tensors="pt")
    ids = model.module.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    return ids[0, batch["input_ids"].shape[1] :].tolist()


def _with_another_last(answer):
    first, last = answer.split()
    return f"{first} {'car' if last == 'dog' else 'dog'}"


def test_right_means_what_the_model_generates(llama):
    asked = [(item, generated(llama, item, 2)) for item in ITEMS]
    true = [
        Question.of(item, answer=" ".join(llama.tokenizer.convert_ids_to_tokens(ids))) for item, ids in asked
    ]
    found = answer_items(llama, true)
    assert found.right.all()
    assert (found.margin > 0).all()
    assert found.said == tuple(llama.tokenizer.decode(ids) for _, ids in asked)
    wrong = [Question.of(item, answer=_with_another_last(item.answer)) for item in true]
    assert not answer_items(llama, wrong).right.any()


def test_said_ends_at_the_first_wrong_token(llama):
    item = ITEMS[0]
    first, second = llama.tokenizer.convert_ids_to_tokens(generated(llama, item, 2))
    other = next(word for word in ("car", "dog") if word not in (first, second))
    found = answer_items(llama, [Question.of(item, answer=f"{other} {second}")])
    assert found.said == (first,)
    assert found.margin.item() < 0


def test_margin_by_hand(llama):
    item = question("1 1 1 1", "1 2")
    ids = torch.tensor([llama.tokenizer(item.prompt + item.lead + " " + item.answer)["input_ids"]])
    with torch.no_grad():
        logits = llama.module(ids).logits[0, -3:-1].double()
    margins = []
    for row, token in zip(logits, ids[0, -2:], strict=True):
        others = [logit for i, logit in enumerate(row.tolist()) if i != token]
        margins.append(row[token].item() - max(others))
    assert answer_items(llama, [item]).margin.item() == pytest.approx(min(margins), abs=1e-5)


def test_neighbours_do_not_matter(llama):
    together = answer_items(llama, ITEMS, chunk=3)
    alone = [answer_items(llama, [item]) for item in ITEMS]
    torch.testing.assert_close(together.margin, torch.cat([a.margin for a in alone]), atol=1e-5, rtol=0)
    assert together.said == tuple(a.said[0] for a in alone)
    assert together.tokens.tolist() == [len(llama.tokenizer(i.prompt + i.lead)["input_ids"]) for i in ITEMS]


def test_a_dtype_gives_what_a_model_loaded_in_it_gives(llama, tmp_path):
    llama.module.save_pretrained(tmp_path)
    loaded = type(llama.module).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    in_bf16, own = (
        answer_items(llama, ITEMS, dtype="bfloat16"),
        answer_items(HFCausalLM(loaded, llama.tokenizer), ITEMS),
    )
    assert torch.equal(in_bf16.margin, own.margin)
    assert not torch.equal(in_bf16.margin, answer_items(llama, ITEMS).margin)


def test_a_token_merged_over_the_border_is_the_answers(make_llama, merging_tokenizer):
    model = HFCausalLM(make_llama(len(merging_tokenizer)), merging_tokenizer)
    item = question("1 1 1", "7", lead=" answer: ")
    merged = merging_tokenizer.convert_tokens_to_ids(": 7")
    ids = merging_tokenizer(item.prompt + item.lead + item.answer)["input_ids"]
    assert ids[-1] == merged
    with torch.no_grad():
        row = model.module(torch.tensor([ids[:-1]])).logits[0, -1].double()
    others = torch.cat((row[:merged], row[merged + 1 :]))
    assert answer_items(model, [item]).margin.item() == pytest.approx(
        (row[merged] - others.max()).item(), abs=1e-5
    )


def test_an_end_of_sequence_is_not_asked_for(llama):
    from tokenizers import processors

    ends = llama.tokenizer.__class__(tokenizer_object=llama.tokenizer.backend_tokenizer, eos_token="</s>")
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(name, ends.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")],
    )
    assert ends("1")["input_ids"][-1] == ends.eos_token_id
    assert torch.equal(
        answer_items(HFCausalLM(llama.module, ends), ITEMS).margin, answer_items(llama, ITEMS).margin
    )


def test_bad_input(llama, make_llama, merging_tokenizer):
    with pytest.raises(ValueError, match="give the tokenizer"):
        answer_items(HFCausalLM(llama.module), ITEMS)
    with pytest.raises(ValueError, match="no items"):
        answer_items(llama, [])
    with pytest.raises(ValueError, match="adds no token"):
        answer_items(llama, [Question.of(ITEMS[0], answer="")])
    model = HFCausalLM(make_llama(len(merging_tokenizer)), merging_tokenizer)
    with pytest.raises(ValueError, match="merges the answer"):
        answer_items(model, [Question("11", (0, 2), ("1", "1"), "", "1", 2)])
    llama.module.train()
    with pytest.raises(ValueError, match="train mode"):
        answer_items(llama, ITEMS)


def test_logits_that_overflow_are_no_answer(llama):
    with torch.no_grad():
        llama.blocks[0].mlp.down_proj.weight.mul_(3e7)
    found = answer_items(llama, ITEMS, dtype="float16")
    assert not found.right.any()
    assert (found.margin == -torch.inf).all()
    assert set(found.said) == {""}
    assert answer_items(llama, ITEMS, dtype="float32").margin.isfinite().all()
