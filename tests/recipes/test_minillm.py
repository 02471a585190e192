"""The distillation recipe: what it leaves, any checkpoints and data, and that it goes on exactly."""

import csv
import json
import math
import subprocess
import sys
import warnings

import pytest
import torch
from datasets import Dataset
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel

from recipes import minillm
from recipes.distill_data import ALPACA, load_data
from recipes.distill_methods import PromptCollator, WordKDTrainer, method_config, method_trainer
from recipes.distill_models import load_model, load_tokenizer, reads_padding
from recipes.distill_run import Run
from recipes.distill_scores import common_vocabulary, evaluate
from recipes.instructions import Instructions, make_tokenizer
from recipes.run_folder import RunFolder
from recipes.trainer_recorder import Recorder

SHORT = [
    "model.teacher_size={layers: 1, width: 16, heads: 2}",
    "model.student_size={layers: 1, width: 8, heads: 2}",
    "teacher_text.steps=2", "teacher.steps=2", "student_text.steps=0", "sft.steps=2", "teacher.batch_size=4",
    "teacher_text.batch_size=4", "sft.batch_size=4", "updates=4", "batch_size=4", "save_every=2",
    "log_every=1", "data.train=64", "data.valid=8", "data.test=16", "data.texts=64", "device=cpu",
    "evaluation.prompts=4", "evaluation.samples=2", "evaluation.texts=4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """The recipe sets torch's threads; other tests are not to notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(*overrides):
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("minillm", overrides=list(overrides))


def run(path, *overrides):
    written = path / "config.yaml"
    cfg = OmegaConf.load(written) if written.exists() else config(*SHORT, *overrides)
    return minillm.train(cfg, RunFolder(path))


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("method", ["kd", "minillm"])
def test_what_it_leaves(method, tmp_path, capsys):
    result = run(tmp_path, f"method={method}")
    files = {file.name for file in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "result.json", "progress.json", "scores.png"} <= files
    assert {"teacher_text", "teacher", "sft", "method"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not [name for name in files if name.endswith("-checkpoints")]
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [row["step"] for row in rows(tmp_path)] == [str(i) for i in range(1, 11)]
    assert all(float(row["method/loss"]) > 0 for row in rows(tmp_path)[-4:])
    scores = result["scores"]
    assert scores["teacher"]["reverse_kl"] == scores["teacher"]["forward_kl"] == 0
    for score in scores.values():
        assert all(math.isfinite(x) for x in score.values() if isinstance(x, float))
        assert 0 <= score["valid"] <= 1
        assert score["true_forward_kl"] > 0
    assert scores["student"]["reverse_kl"] != scores["warm_start"]["reverse_kl"] > 0
    before, after = weights(tmp_path / "sft"), weights(tmp_path / "method")
    assert all(not torch.equal(before[name], after[name]) for name in before)
    minillm.report(result, tmp_path)
    assert "warm_start" in capsys.readouterr().out
    again = run(tmp_path)["scores"]  # nothing is trained anew
    for who, score in scores.items():  # weights that were read lie elsewhere in memory: another rounding
        numbers = {name: x for name, x in score.items() if isinstance(x, float)}
        assert numbers == pytest.approx({name: again[who][name] for name in numbers}, abs=1e-5)


class Killed(Exception):
    pass


def run_and_die(path, at, monkeypatch, *overrides):
    """Run until a checkpoint of a phase (phase, update) is whole, then end without tidying up."""
    on_save = Recorder.on_save

    def die(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if (self.phase, state.global_step) == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_save", die)
        with pytest.raises(Killed):
            run(path, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "gkd", "distillation", "minillm"])
def test_killed_and_resumed_equals_never_killed(method, tmp_path, monkeypatch):
    overrides = [f"method={method}", "teacher.steps=4", "updates=6"]
    whole = run(tmp_path / "whole", *overrides)
    run_and_die(tmp_path / "killed", ("teacher", 2), monkeypatch, *overrides)
    run_and_die(tmp_path / "killed", ("method", 2), monkeypatch)
    run_and_die(tmp_path / "killed", ("method", 4), monkeypatch)
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed")
    assert whole["scores"] == resumed["scores"]
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    for phase in ("teacher", "sft", "method"):
        a, b = weights(tmp_path / "whole" / phase), weights(tmp_path / "killed" / phase)
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def checkpoint(tmp_path):
    """A GPT-2 and its tokenizer on disk."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(tmp_path / "gpt2")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def write_rows(path, names, n=40):
    import numpy as np

    world, generator = Instructions(), np.random.default_rng(0)
    lines = []
    for _ in range(n):
        prompt = world.prompt(generator)
        values = [prompt, world.answer(prompt, generator), "apple is red", world.text(generator)]
        lines.append(json.dumps(dict(zip(names, values, strict=True))))
    path.write_text("\n".join(lines))
    return path


FILES = [
    "teacher.steps=1", "sft.steps=1", "updates=2", "batch_size=2", "teacher.batch_size=4", "sft.batch_size=4",
    "micro_batch_size=1", "bf16=false", "device=cpu", "data.valid=4", "data.test=8",
    "data.max_prompt_length=30", "data.max_completion_length=8", "evaluation.prompts=4", "evaluation.texts=4",
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "rate"),
    [("minillm", 5e-6), ("distillation", 5e-6), ("gkd", 5e-6), ("kd", 5e-5), ("seqkd", 5e-5), ("sft", 5e-5)],
)
def test_each_model_has_rates_of_its_own(method, rate):
    cfg = config("model=gpt2", "data=dolly", f"method={method}")
    assert cfg.method.lr == rate
    assert cfg.method.name == method
    assert method_config(cfg, "nowhere").learning_rate == rate
    assert config("model=gpt2", f"method={method}", "method.lr=1").method.lr == 1
    assert config(f"method={method}").method.lr == 1e-3


def test_learned_positions_are_warned_of_where_trls_trainers_pass_none(checkpoint, tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", ("prompt", "completion", "more", "text"))
    given = ["model=gpt2", f"model.teacher={checkpoint}", f"model.student={checkpoint}", "data=files"]
    for method, model, warns in (("kd", "gpt2", 1), ("minillm", "gpt2", 0), ("kd", "tiny", 0)):
        here = given if model == "gpt2" else []
        cfg = config(*here, *([f"data.path={path}", *FILES] if here else SHORT), f"method={method}")
        tokenizer = load_tokenizer(cfg)
        student, teacher = (load_model(cfg, who, tokenizer) for who in ("student", "teacher"))
        assert reads_padding(student) == (model == "gpt2")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            folder = str(tmp_path / "method")
            method_trainer(cfg, folder, student, teacher, tokenizer, load_data(cfg, tokenizer), [])
        assert (
            len([w for w in seen if "learned positions. TRL's trainers pass none" in str(w.message)]) == warns
        )


def test_padding_of_a_vocabulary_is_no_answer():
    """A student that deems it near certain has the scores of the student without."""
    cfg = config(*SHORT)
    tokenizer = load_tokenizer(cfg)
    data = load_data(cfg, tokenizer)
    student, teacher = (load_model(cfg, who, tokenizer).eval() for who in ("student", "teacher"))
    plain = evaluate(cfg, data, tokenizer, student, teacher)
    assert common_vocabulary(student, teacher) is None
    student.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    with torch.no_grad():
        rows = student.get_output_embeddings().weight
        rows[-8:] = 50.0 * rows[: len(tokenizer)].mean(0).sign()
    padded = evaluate(cfg, data, tokenizer, student, teacher)
    for name in ("reverse_kl", "forward_kl", "mean_length"):
        assert padded[name] == pytest.approx(plain[name], rel=0.3), name


@pytest.mark.parametrize("method", ["minillm", "gkd"])
def test_checkpoints_and_files_of_ones_own(method, checkpoint, tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", ("prompt", "completion", "more", "text"))
    given = ["model=gpt2", f"model.teacher={checkpoint}", f"model.student={checkpoint}", "data=files"]
    cfg = config(*given, f"data.path={path}", f"data.text={path}", f"method={method}", *FILES)
    result = minillm.train(cfg, RunFolder(tmp_path / "run"))
    assert "valid" not in result["scores"]["student"]
    assert result["scores"]["student"]["text_loss"] > 0
    assert result["parameters"]["teacher"] == result["parameters"]["student"]
    assert (tmp_path / "run" / "scores.png").exists()


def test_dolly_has_the_prompts_of_the_paper(checkpoint, tmp_path):
    path = write_rows(tmp_path / "dolly.jsonl", ("instruction", "response", "context", "category"))
    given = [f"model.student={checkpoint}", f"data.path={path}", "data.valid=4", "data.test=8"]
    cfg = config("model=gpt2", "data=dolly", "data.text=null", *given)
    data = load_data(cfg, load_tokenizer(cfg))
    assert (len(data.train), len(data.valid), len(data.test)) == (28, 4, 8)
    assert data.texts is None
    prompt = data.train["prompt"][0]
    assert prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert prompt.endswith(" :\n\n### Input:\napple is red\n\n### Response:\n")
    assert ALPACA.format(and_input="", prompt="x", input="").endswith(
        "### Instruction:\nx\n\n### Response:\n"
    )
    everything = {*data.train["prompt"], *data.valid["prompt"], *data.test["prompt"]}
    assert len(everything) > 30


def test_data_that_do_not_fit_are_refused(checkpoint, tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", ("question", "completion", "more", "text"))
    base = ["model=gpt2", f"model.student={checkpoint}", "data=files", f"data.path={path}"]
    asked = ["data.prompt=question", "data.valid=1", "data.test=1"]
    cases = {
        "data.prompt=prompt: .* has no such column; it has question": [],
        "data.text_column=words: ": [*asked, f"data.text={path}", "data.text_column=words"],
        "0 rows have answers and prompts of at most 1 tokens": [*asked, "data.max_prompt_length=1"],
        "40 rows .* data.valid=500 and data.test=500 take: lower these": ["data.prompt=question"],
        r"data.path=no.jsonl: .*no such path here, and nothing from the hub": ["data.path=no.jsonl"],
        r"data.text=no/where: .*no such path here": [*asked, "data.text=no/where"],
    }
    for says, overrides in cases.items():
        cfg = config(*base, *overrides)
        with pytest.raises(ValueError, match=says):
            load_data(cfg, load_tokenizer(cfg))


def test_saved_datasets_and_other_suffixes_are_read(tmp_path, checkpoint):
    table = Dataset.from_dict({"prompt": [f"add {i} 1 :" for i in range(9)], "completion": ["2"] * 9})
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "table.parquet")
    table.to_csv(tmp_path / "table.csv")
    for name in ("saved", "table.parquet", "table.csv"):
        given = [f"model.student={checkpoint}", f"data.path={tmp_path / name}", "data.valid=1", "data.test=1"]
        cfg = config("model=gpt2", "data=files", *given)
        assert sorted(load_data(cfg, load_tokenizer(cfg)).train.column_names) == ["completion", "prompt"]


def test_batches_of_prompts_and_answers():
    tokenizer = make_tokenizer()
    batch = PromptCollator(tokenizer, 10)(
        [
            {"prompt": "add 1 2 :\n", "completion": "3"},
            {"prompt": "sort 2 1 :\n", "completion": "from low to high : 1 2 ."},
        ]
    )
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    words = [tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"]]
    assert words[0] == ["<pad>"] * 4 + ["add", "1", "2", ":", "3", "<eos>"]
    assert words[1] == ["sort", "2", "1", ":", "from", "low", "to", "high", ":", "1"]  # cut at 10
    assert batch["labels"][0].tolist() == [-100] * 8 + batch["input_ids"][0, 8:].tolist()
    assert batch["labels"][0, -1] == end
    assert ((batch["input_ids"] == pad) == (batch["attention_mask"] == 0)).all()
    assert batch["prompts"].shape == batch["prompt_attention_mask"].shape == (2, 4)


def test_word_level_distillation_is_half_and_half(tmp_path):
    cfg = config(*SHORT, "method=kd")
    tokenizer = load_tokenizer(cfg)
    teacher, student = (load_model(cfg, who, tokenizer) for who in ("teacher", "student"))
    rows_ = [{"prompt": "add 1 2 :\n", "completion": "3"}, {"prompt": "sort 2 1 :\n", "completion": "1 2"}]
    args = method_config(cfg, str(tmp_path))
    collator = PromptCollator(tokenizer, args.max_length)
    trainer = WordKDTrainer(
        model=student, teacher_model=teacher, args=args, data_collator=collator,
        train_dataset=Dataset.from_list(rows_), processing_class=tokenizer,
    )  # fmt: skip
    batch = collator(rows_)
    loss = trainer.compute_loss(student, dict(batch))
    total, n = 0.0, 0
    for row in rows_:  # one by one, unpadded
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        log_q, log_p = (m.eval()(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (student, teacher))
        for t in range(len(prompt) - 1, len(ids) - 1):
            kl = (log_p[t].exp() * (log_p[t] - log_q[t])).sum()
            total, n = total + 0.5 * kl - 0.5 * log_q[t, ids[t + 1]], n + 1
    assert n == 5
    torch.testing.assert_close(loss, total / n)


@pytest.mark.parametrize(
    ("override", "says"),
    [("method.rate=1", "rate"), ("updates=many", "many"), ("method=ppo", "ppo"), ("data=wiki", "wiki")],
)
def test_a_wrong_setting_ends_it_before_it_begins(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        config(override)
    assert says in str(error.value) + str(error.value.__cause__)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["updates=0"], "updates=0: it must be at least 1"),
        (["micro_batch_size=3"], "micro_batch_size=3: it must divide batch_size=4"),
        (["device=gpu"], "device=gpu: it must be cpu, cuda or auto"),
        (["model.student_size.width=6"], "a multiple of twice heads=2"),
        (["data=files", "data.path=x"], "data=files needs checkpoints.*From scratch"),
        (["data=dolly", "data.path=x"], "data=dolly needs checkpoints"),
        (
            ["data=files", "data.path=x", "model.teacher=a", "model.student=b"],
            "data.text, or teacher_text.steps=0",
        ),
        (["data.test=0"], "data.test=0: it must be at least 1"),
        (
            ["data.max_completion_length=120"],
            "data.max_completion_length=120 .* 128 positions of the teacher",
        ),
        (["model.teacher=no/where"], "model.teacher=no/where: a checkpoint .*no such path here"),
        (["evaluation.split=train"], "it must be valid or test"),
        (["sft.steps=-1"], "steps must be at least 0"),
        (["method=kd", "+method.args.alpha=0.5"], "unexpected keyword argument 'alpha'"),
        (["method=minillm", "+method.args.mode=old"], "mode must be one of"),
    ],
)
def test_settings_that_make_no_sense_end_it_too(overrides, says, tmp_path):
    replaced = {o.split(".")[0] for o in overrides if o.startswith("data=")} and ["data"]
    short = [o for o in SHORT if not (replaced and o.startswith("data."))]
    with pytest.raises(ValueError, match=says):
        minillm.train(config(*short, *overrides), RunFolder(tmp_path))
    assert not list(tmp_path.glob("*"))


def test_checkpoints_that_do_not_go_together_are_refused_before_they_are_trained(checkpoint, tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", ("prompt", "completion", "more", "text"))
    tokenizer, model = load_tokenizer(config()), GPT2LMHeadModel.from_pretrained(checkpoint)

    def saved(name, vocab, order=1, positions=64):
        names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)[::order]
        model_config = GPT2Config(
            vocab_size=vocab,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=positions,
            bos_token_id=1,
            eos_token_id=1,
        )
        GPT2LMHeadModel(model_config).save_pretrained(tmp_path / name)
        other = make_tokenizer()
        other._tokenizer.model = WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0])
        other.save_pretrained(tmp_path / name)
        return tmp_path / name

    n = model.config.vocab_size
    empty = saved("empty", n)
    (empty / "model.safetensors").unlink()
    cases = {
        saved("backwards", n, order=-1): "its tokenizer differs from that of model.student=",
        saved("padded", n + 8): "model.student has a vocabulary of",
        saved("short", n, positions=37): "data.max_completion_length=8 .* 37 positions of the teacher",
        saved("small", n - 8): "its vocabulary of .* is smaller",
        empty: "no weights",
    }
    for teacher, says in cases.items():
        given = [f"model.teacher={teacher}", f"model.student={checkpoint}", f"data.path={path}"]
        for method in ("minillm", "gkd"):
            cfg = config("model=gpt2", "data=files", *given, *FILES, f"method={method}")
            with pytest.raises(ValueError, match=says):
                Run(cfg, RunFolder(tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
    Run(
        config(
            "model=gpt2", "data=files", f"model.teacher={tmp_path / 'padded'}", *given[1:], *FILES,
            "+method.args.allow_padded_vocabulary=true",
        ),
        RunFolder(tmp_path / "run"),
    )  # fmt: skip


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["minillm", "updates=0", f"hydra.run.dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit, match="updates=0"):
        minillm.main()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "recipes.minillm"]
    folder = tmp_path / "run"
    ended = subprocess.run(
        [*command, "smoke=true", "device=cpu", f"hydra.run.dir={folder}"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "warm_start" in ended.stdout
    before = (folder / "result.json").read_text()
    again = subprocess.run([*command, f"resume={folder}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (folder / "result.json").read_text() == before
