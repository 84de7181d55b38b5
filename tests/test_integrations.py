"""`SmoothTrainer` on tiny random encoders: the same term inside the Trainer of transformers, which else stays as it was."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from smoothtune.errors import UsageError
from smoothtune.integrations.second_pass import SecondPass
from smoothtune.integrations.transformers import SmoothTrainer
from smoothtune.smoothness import Smoothness

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
CONFIGS = {
    "bert": (BertForSequenceClassification, BertConfig, SIZE),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, SIZE),
    "deberta": (DebertaV2ForSequenceClassification, DebertaV2Config, {**SIZE, "relative_attention": True}),
    "electra": (ElectraForSequenceClassification, ElectraConfig, {**SIZE, "embedding_size": 8}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60},
    ),
}
STRONG = {"radius": 0.3, "step_size": 0.3, "noise": 0.03}


def model_of(name: str = "bert", num_labels: int = 3, **options: typing.Any) -> typing.Any:
    model, config, size = CONFIGS[name]
    torch.manual_seed(0)
    return model(config(**{**size, "max_position_embeddings": 40}, num_labels=num_labels, **options))


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Texts of one length, padded at the end, with labels of the model's kind."""

    def __init__(self, count: int = 8, numbers: bool = False) -> None:
        torch.manual_seed(1)
        self.ids = torch.randint(5, 60, (count, 10))
        self.lengths = torch.randint(4, 11, (count,))
        self.labels = torch.rand(count) * 5 if numbers else torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        mask = (torch.arange(10) < self.lengths[row]).long()
        return {"input_ids": self.ids[row] * mask, "attention_mask": mask, "labels": self.labels[row]}


def trainer_of(model, tmp_path, smoothness="none", *, data=None, kind=SmoothTrainer, **options):
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(**{**settings, **options})
    more = {} if smoothness == "none" else {"smoothness": smoothness}
    return kind(model=model, args=arguments, train_dataset=data or Rows(), **more)


def steps_of(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(one, b.state_dict()[name]) for name, one in a.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("preset", ["exact", "paper"])
def test_it_trains_encoders_of_many_kinds(name, preset, tmp_path):
    model = model_of(name)
    trainer = trainer_of(model, tmp_path, preset)
    trainer.train()
    steps = steps_of(trainer)
    assert len(steps) == 3
    assert all(step["smoothness"] > 0 for step in steps)
    assert not same_weights(model, model_of(name))
    assert not model.base_model.embeddings._forward_hooks


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}])
def test_with_weight_zero_it_is_the_plain_trainer_to_the_bit(options, tmp_path):
    models = []
    for kind, smoothness in ((Trainer, "none"), (SmoothTrainer, Smoothness(weight=0.0)), (SmoothTrainer, None)):
        models.append(model_of())
        trainer_of(models[-1], tmp_path, smoothness, kind=kind, **options).train()
    assert same_weights(models[0], models[1])
    assert same_weights(models[0], models[2])
    assert not same_weights(models[0], model_of())


def test_a_step_moves_the_weights_as_the_loss_and_the_term_say(tmp_path):
    """One step of plain descent, held against one made by hand with the same perturbation."""
    model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    smooth = Smoothness(weight=1000.0, **STRONG)
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    trainer_of(model, tmp_path, smooth, data=Rows(4), train_sampling_strategy="sequential", **settings).train()

    other = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = {name: torch.stack([Rows(4)[row][name] for row in range(4)]) for name in Rows(4)[0]}
    by_hand = Smoothness(weight=1000.0, **STRONG)
    by_hand.load_state_dict({**smooth.state_dict(), "calls": 0})
    embedded = other.bert.embeddings(batch["input_ids"])

    def above(x: Tensor) -> Tensor:
        mask = batch["attention_mask"][:, None, None, :].bool()
        states = other.bert.encoder(x, attention_mask=mask).last_hidden_state
        return other.classifier(other.bert.pooler(states))

    logits, term = by_hand(above, embedded, batch["attention_mask"])
    (torch.nn.functional.cross_entropy(logits, batch["labels"]) + term).backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    moved = max(
        (one - start).abs().max() for one, start in zip(other.parameters(), model_of().parameters(), strict=True)
    )
    assert moved > 1e-3
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_embeddings_are_perturbed_once_on_real_tokens_under_the_clean_masks():
    model = model_of().train()
    ids, mask = torch.randint(5, 60, (2, 6)), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    again = SecondPass(model, {"input_ids": ids, "attention_mask": mask})
    torch.manual_seed(4)
    with again.watching():
        clean = model(input_ids=ids, attention_mask=mask).logits
    states, dtype = again.states()
    assert (states.shape, dtype) == ((2, 6, 16), torch.float32)
    torch.manual_seed(4)
    assert torch.equal(again(torch.zeros(2, 6, 16), learn=True), clean)
    torch.manual_seed(4)
    assert not torch.allclose(again(torch.full((2, 6, 16), 0.1), learn=True), clean)
    assert not model.bert.embeddings._forward_hooks


def test_without_learning_nothing_below_the_perturbation_has_a_gradient():
    model = model_of()
    again = SecondPass(model, {"input_ids": torch.ones(1, 3, dtype=torch.long)})
    again(torch.zeros(1, 3, 16), learn=False).sum().backward()
    assert model.bert.embeddings.word_embeddings.weight.grad is None
    again(torch.zeros(1, 3, 16), learn=True).sum().backward()
    assert model.bert.embeddings.word_embeddings.weight.grad is not None


def test_the_term_falls_when_it_is_all_that_is_trained(tmp_path):
    model = model_of()
    smooth = Smoothness(weight=1000.0, **STRONG)
    trainer = trainer_of(model, tmp_path, smooth, max_steps=30, learning_rate=3e-3, lr_scheduler_type="constant")
    trainer.train()
    values = [step["smoothness"] for step in steps_of(trainer)]
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


def test_the_logged_loss_holds_the_weighted_term(tmp_path):
    logged = []
    for weight in (0.0, 2.0):
        trainer = trainer_of(model_of(), tmp_path, Smoothness(weight=weight, **STRONG), max_steps=1)
        trainer.train()
        logged.append(steps_of(trainer)[0])
    assert logged[0]["smoothness"] == pytest.approx(logged[1]["smoothness"], rel=1e-5)
    assert logged[1]["loss"] - logged[0]["loss"] == pytest.approx(2 * logged[1]["smoothness"], rel=1e-2)


class PerItem(BertForSequenceClassification):  # type: ignore[misc]
    """A head that divides by the number of items of all accumulated batches, as newer models do."""

    def forward(self, input_ids, attention_mask, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        if labels is not None:
            losses = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
            outputs["loss"] = losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
        return outputs


@pytest.mark.parametrize(("per_item", "share"), [(False, 1.0), (True, 0.5)])
def test_accumulated_batches_share_the_term_as_they_share_the_loss(per_item, share, tmp_path):
    asked: list[float] = []

    class Watched(SmoothTrainer):
        def _share(self, *given):
            asked.append(float(super()._share(*given)))
            return asked[-1]

    config = BertConfig(**SIZE, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    model = (PerItem if per_item else BertForSequenceClassification)(config)
    trainer = trainer_of(model, tmp_path, "exact", kind=Watched, gradient_accumulation_steps=2, max_steps=2)
    trainer.train()
    assert asked == [share] * 4


def test_regression_and_one_binary_logit(tmp_path):
    smooth = Smoothness("regression", range=(0, 5), **STRONG)
    trainer = trainer_of(model_of(num_labels=1), tmp_path, smooth, data=Rows(numbers=True))
    trainer.train()
    assert all(step["smoothness"] > 0 for step in steps_of(trainer))
    binary = trainer_of(model_of(num_labels=1, problem_type="multi_label_classification"), tmp_path)
    assert binary.smoothness.kind == "binary"


@pytest.mark.parametrize("options", [{"bf16": True}, {"label_smoothing_factor": 0.1}])
def test_bfloat16_and_label_smoothing(options, tmp_path):
    trainer = trainer_of(model_of(), tmp_path, Smoothness(**STRONG), **options)
    trainer.train()
    assert all(step["smoothness"] > 0 for step in steps_of(trainer))


def test_what_cannot_be_is_said_once_and_measured_in_the_first_log(tmp_path):
    trainer = trainer_of(model_of(), tmp_path, "paper", bf16=True)
    with pytest.warns(UserWarning, match=r"^smoothness: .*") as caught:
        trainer.train()
    told = [str(warning.message) for warning in caught if str(warning.message).startswith("smoothness: ")]
    assert len(told) == 2
    assert "is lost:" in told[0]
    assert "the term is in truth R-Drop" in told[1]
    first, *rest = steps_of(trainer)
    assert first["smoothness_surviving"] < 0.5
    assert first["smoothness_dropout"] > 100 * first["smoothness_adversarial"]
    assert first["smoothness_norm"] == pytest.approx(1e-5, rel=1e-5)
    assert all(isinstance(value, float) for name, value in first.items() if name.startswith("smoothness"))
    assert len(rest) == 2
    assert not any(name.startswith("smoothness_") for step in rest for name in step)


def test_gradient_checkpointing_gives_the_same_weights(tmp_path):
    models = []
    for checkpointing in (False, True):
        models.append(model_of())
        options = {"gradient_checkpointing": True} if checkpointing else {}
        trainer_of(models[-1], tmp_path, Smoothness(**STRONG), **options).train()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_evaluation_is_the_plain_trainers(tmp_path):
    model, data = model_of(), Rows()
    ours = trainer_of(model, tmp_path, Smoothness(weight=1000.0, **STRONG)).evaluate(data)
    plain = trainer_of(model, tmp_path, kind=Trainer).evaluate(data)
    assert ours["eval_loss"] == plain["eval_loss"]
    assert "smoothness" not in ours


def test_every_and_warmup_follow_the_trainers_steps(tmp_path):
    trainer = trainer_of(model_of(), tmp_path, Smoothness(every=2, warmup=0.5, **STRONG), max_steps=4)
    trainer.train()
    assert ["smoothness" in step for step in steps_of(trainer)] == [True, False, True, False]


def test_a_resumed_run_is_one_that_never_stopped(tmp_path):
    models = []
    for folder, resume in (("whole", False), ("parts", True)):
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 10}
        models.append(model_of())
        smooth = Smoothness(every=3, dropout="independent", **STRONG)
        trainer_of(models[-1], tmp_path / folder, smooth, **options).train()
        if resume:
            models[-1] = model_of()
            torch.manual_seed(77)
            again = Smoothness(every=3, dropout="independent", **STRONG)
            trainer = trainer_of(models[-1], tmp_path / folder, again, **options)
            trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-2"))
    assert same_weights(*models)


def test_models_without_the_known_form_are_refused(tmp_path):
    model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=60, num_labels=3))
    with pytest.raises(
        UsageError, match=r"^smoothness: GPT2ForSequenceClassification has no module base_model\.embeddings"
    ):
        trainer_of(model, tmp_path)


@pytest.mark.parametrize(
    ("model", "smoothness", "options", "told"),
    [
        ({"num_labels": 1}, "wang", {}, r"^smoothness: got 'wang' for a model with one .* preset='wang', range=\("),
        ({}, Smoothness("binary"), {}, r"^smoothness: got kind 'binary', but .* say 'classification'; make it Smooth"),
        ({"problem_type": "multi_label_classification"}, "exact", {}, r"problem_type 'multi_label.*num_labels 3"),
        ({"problem_type": "regression"}, "exact", {}, r"problem_type 'regression' and num_labels 3"),
        ({}, "exact", {"torch_compile": True}, r"^smoothness does not work with torch_compile=True"),
        ({}, "exat", {}, r"preset: got 'exat', expected one of"),
        (
            {},
            0.5,
            {},
            r"^smoothness: got 0\.5, expected the name of a preset \(wang, .*, cheap\), None, or an object with",
        ),
        (
            {},
            {"weight": 3.0},
            {},
            r"^smoothness: got \{'weight': 3\.0\}, .* such as Smoothness\(\"classification\", weight=3\.0",
        ),
        ({}, True, {}, r"^smoothness: got True, expected"),
    ],
)
def test_what_would_make_the_term_untrue_is_refused(model, smoothness, options, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        trainer_of(model_of(**model), tmp_path, smoothness, **options)


@pytest.mark.parametrize(("name", "told"), [("fp16", "fp16=True"), ("n_gpu", "several GPUs in one process")])
def test_settings_of_a_gpu_are_refused(name, told, tmp_path):
    class Told(TrainingArguments):
        pass

    arguments = Told(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    setattr(arguments, "_n_gpu" if name == "n_gpu" else name, 2)
    with pytest.raises(UsageError, match=rf"^smoothness does not work with {told}"):
        SmoothTrainer(model=model_of(), args=arguments)


REENTRANT = (
    r"^smoothness does not work with reentrant gradient checkpointing: .*; set \w+_kwargs=\{\"use_reentrant\": False\}$"
)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("given", [{"use_reentrant": True}, {"preserve_rng_state": True}])
def test_reentrant_checkpoints_are_refused(given, tmp_path):
    """Arguments without `use_reentrant` get torch's own default, which is the reentrant form."""
    with pytest.raises(UsageError, match=REENTRANT):
        trainer_of(model_of(), tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=given)
    assert trainer_of(model_of(), tmp_path, gradient_checkpointing_kwargs=given).smoothness is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("given", [{}, {"use_reentrant": False}])
def test_checkpoints_of_the_newer_form_are_taken(given, tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": given, "max_steps": 1}
    trainer = trainer_of(model_of(), tmp_path, Smoothness(**STRONG), **options)
    trainer.train()
    assert steps_of(trainer)[0]["smoothness"] > 0


def in_peft(model, **options: typing.Any) -> typing.Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], **options))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_of_peft_trains_with_the_term_of_the_model_inside(checkpointing, tmp_path):
    """A fresh LoRA changes no answer, so the first term is that of the bare model."""
    model = in_peft(model_of())
    started = {name: part.clone() for name, part in model.state_dict().items()}
    first = []
    for one in (model_of(), model):
        torch.manual_seed(0)  # which names the stream of the term's noise
        trainer = trainer_of(one, tmp_path, Smoothness(**STRONG), gradient_checkpointing=checkpointing)
        trainer.train()
        assert [step["smoothness"] > 0 for step in steps_of(trainer)] == [True] * 3
        first.append(steps_of(trainer)[0]["smoothness"])
    assert first[1] == pytest.approx(first[0], rel=1e-4)
    changed = {name for name, part in model.state_dict().items() if not torch.equal(part, started[name])}
    assert {name for name in changed if "lora_" not in name and "classifier" not in name} == set()
    assert any("lora_B" in name for name in changed)
    assert not model.get_base_model().bert.embeddings._forward_hooks


def test_prompts_of_peft_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    for config in (peft.PromptTuningConfig, peft.PromptEncoderConfig):
        prompted = peft.get_peft_model(model_of(), config(task_type="SEQ_CLS", num_virtual_tokens=4))
        with pytest.raises(UsageError, match=r"^smoothness does not work with prompt tuning of peft: .*; use LoRA, or"):
            trainer_of(prompted, tmp_path)


def test_prefixes_of_peft_are_taken(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model_of(), peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    trainer = trainer_of(model, tmp_path, Smoothness(**STRONG), max_steps=1)
    trainer.train()
    assert steps_of(trainer)[0]["smoothness"] > 0


def test_a_model_that_embeds_twice_is_refused():
    model = model_of()
    again = SecondPass(model, {})
    ids = torch.ones(1, 3, dtype=torch.long)
    with again.watching():
        model(input_ids=ids)
        model(input_ids=ids)
    with pytest.raises(UsageError, match=r"^smoothness: the model ran its embeddings 2 times in one pass"):
        again.states()
