"""Runs whose logits are deferred end where those end that hold them."""

from __future__ import annotations

import pytest
import torch
from runs import bert, distiller, weights
from tolerance import assert_near, near
from transformers import BertConfig, BertForMaskedLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from knowledge_distillation.features import catalogue as features
from knowledge_distillation.features.deferred import HeadLogits
from knowledge_distillation.objective import loss_model

SIZES = {"vocab_size": 50, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 32}
KD = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "args": {"temperature": 2}}
CONFIG = [KD, {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5}]


def llama(layers: int, width: int = 16, tied: bool = False, seed: int = 0):
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_key_value_heads=2, tie_word_embeddings=tied, **SIZES
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def text(number: int = 4, size: int = 8) -> list[dict[str, torch.Tensor]]:
    """Batches of rows of uneven length, in which part of the labels do not count."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(number):
        ids = torch.randint(1, 50, (size, 9), generator=generator)
        lengths = torch.randint(3, 10, (size, 1), generator=generator)
        mask = (torch.arange(9) < lengths).long()
        kept = (mask == 1) & (torch.rand(size, 9, generator=generator) > 0.3)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(kept, ids, -100)})
    return made


def smaller(batches: list[dict[str, torch.Tensor]], size: int) -> list[dict[str, torch.Tensor]]:
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for batch in batches
        for start in range(0, len(batch["input_ids"]), size)
    ]


def run(student, teacher, config=CONFIG, monkeypatch=None, **options):
    """The weights after a run and its loss; deferred where there is a monkeypatch."""
    if monkeypatch is not None:
        monkeypatch.setattr(features, "LARGE_VOCABULARY", 1)
    options = {"train_dataloader": text(), "max_grad_norm": 0, "optimizer": None, **options}
    options["optimizer"] = torch.optim.SGD(student.parameters(), lr=0.1)
    made = distiller(config, teacher, student, **options)
    plan = made.plan()
    result = made.train()
    if monkeypatch is not None:
        monkeypatch.undo()
    return weights(student), result["loss"], plan


def assert_alike(one, other, tolerance=None):
    if tolerance is None:
        assert one[1] == near(other[1])
        return assert_near(one[0], other[0])
    assert abs(one[1] - other[1]) <= tolerance * abs(other[1])
    for name, weight in other[0].items():
        assert (one[0][name] - weight).abs().max() <= tolerance, name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_run_ends_with_the_weights_of_one_that_holds_the_logits(monkeypatch, tied):
    plain = run(llama(1, tied=tied, seed=1), llama(2, 24))
    deferred = run(llama(1, tied=tied, seed=1), llama(2, 24), monkeypatch=monkeypatch)
    still = llama(1, tied=tied, seed=1).state_dict()
    assert (plain[0]["lm_head.weight"] - still["lm_head.weight"]).abs().max() > 1e-3
    assert_alike(deferred, plain)
    for who in ("teacher", "student"):
        assert f"{who}: output.logits: 50 classes are compared some tokens at a time" in str(deferred[2])
        assert f"{who}: output.logits" not in "\n".join(plain[2].notes)


def test_four_batches_of_8_accumulated_are_one_of_32(monkeypatch):
    whole = [{key: torch.cat([batch[key] for batch in text()]) for key in text()[0]}]
    one = run(llama(1, seed=1), llama(2, 24), train_dataloader=whole)
    four = {"train_dataloader": text(), "gradient_accumulation_steps": 4}
    assert_alike(run(llama(1, seed=1), llama(2, 24), monkeypatch=monkeypatch, **four), one)


@pytest.mark.case("A1")
@pytest.mark.parametrize("loss", ["js_divergence", "skewed_kl", "skewed_reverse_kl", "kl_divergence"])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float64")]
)
def test_each_side_has_a_precision_of_its_own(monkeypatch, loss, ours, theirs):
    config = [{**KD, "loss": loss, "args": {}}]
    models = [lambda: llama(1, seed=1).to(getattr(torch, ours)), lambda: llama(2, 24).to(getattr(torch, theirs))]
    plain = run(models[0](), models[1](), config)
    deferred = run(models[0](), models[1](), config, monkeypatch=monkeypatch)
    assert deferred[1] == pytest.approx(plain[1], rel=1e-2) and plain[1] > 1e-4


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean", "batch_mean"])
def test_every_reduction(monkeypatch, reduction):
    config = [{**entry, "reduction": reduction, "weight": 0.01} for entry in CONFIG]
    plain = run(llama(1, seed=1), llama(2, 24), config)
    assert_alike(run(llama(1, seed=1), llama(2, 24), config, monkeypatch), plain)


def test_terms_may_be_balanced_by_their_gradients(monkeypatch):
    plain = run(llama(1, seed=1), llama(2, 24), balance="gradient_norm")
    assert_alike(run(llama(1, seed=1), llama(2, 24), monkeypatch=monkeypatch, balance="gradient_norm"), plain)


def test_padding_never_counts(monkeypatch):
    def longer(batch):
        pad = {"input_ids": 7, "attention_mask": 0, "labels": -100}
        return {key: torch.cat([v, torch.full((len(v), 4), pad[key])], dim=1) for key, v in batch.items()}

    short = run(llama(1, seed=1), llama(2, 24), monkeypatch=monkeypatch)
    long = {"train_dataloader": [longer(batch) for batch in text()]}
    assert_alike(run(llama(1, seed=1), llama(2, 24), monkeypatch=monkeypatch, **long), short)


def test_heads_with_a_bias_and_other_features_beside(monkeypatch):
    def model(layers, seed):
        torch.manual_seed(seed)
        sizes = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=layers, **sizes))

    config = [*CONFIG, {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}]
    plain = run(model(1, 1), model(2, 0), config)
    deferred = run(model(1, 1), model(2, 0), config, monkeypatch)
    assert "output.logits: 50 classes" in str(deferred[2])
    assert_alike(deferred, plain)


def test_the_head_itself_does_not_run(monkeypatch):
    student, calls = llama(1, seed=1), []
    monkeypatch.setattr(features, "LARGE_VOCABULARY", 1)
    made = distiller(CONFIG, llama(2, 24), student, train_dataloader=text())
    made.plan()
    student.lm_head.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        made.train_epoch()
        assert not calls
        student(**text()[0])  # a pass of somebody else is whole
        assert calls.pop()
    made.close()


@pytest.mark.parametrize(
    "entry",
    [
        {**KD, "loss": "dist", "args": {}},
        {**KD, "loss": lambda student, teacher: (student - teacher).square().mean(-1), "args": {}},
        {**KD, "args": {"sample_temperature": "flsw"}},
        {**KD, "args": {"probability_shift": True}},
        {**KD, "projection": "linear"},
    ],
    ids=["no-form-for-it", "callable", "sample-temperature", "probability-shift", "projected"],
)
def test_logits_that_another_entry_needs_whole_are_there(monkeypatch, entry):
    plain = run(llama(1, seed=1), llama(2, 24), [*CONFIG, entry])
    there = run(llama(1, seed=1), llama(2, 24), [*CONFIG, entry], monkeypatch)
    assert "50 classes are compared" not in str(there[2])
    assert_alike(there, plain)


def gemma(layers, seed, cap):
    """A model whose logits are its head's, softly capped, or just its head's."""
    sizes = {**SIZES, "hidden_size": 16, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": cap}
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(Gemma2Config(num_hidden_layers=layers, **sizes))


@pytest.mark.parametrize("caps", [(0.05, 0.05), (0.05, None), (None, 0.05), (None, None)])
def test_a_head_whose_logits_are_changed_afterwards_is_not_deferred(monkeypatch, caps):
    """Beside one that is, on either side."""
    plain = run(gemma(1, 1, caps[0]), gemma(2, 0, caps[1]))
    there = run(gemma(1, 1, caps[0]), gemma(2, 0, caps[1]), monkeypatch=monkeypatch)
    for who, cap in zip(("student", "teacher"), caps, strict=True):
        assert (f"{who}: output.logits: 50 classes are compared" in str(there[2])) is (cap is None)
    assert_alike(there, plain)


def test_small_vocabularies_are_held():
    assert "classes are compared" not in str(run(llama(1, seed=1), llama(2, 24))[2])


def test_heads_of_samples_are_not_deferred(monkeypatch):
    plain = distiller([{**KD, "args": {}}], bert(), bert(2)).train()
    monkeypatch.setattr(features, "LARGE_VOCABULARY", 1)
    assert distiller([{**KD, "args": {}}], bert(), bert(2)).train() == plain


def test_logits_under_autocast_are_those_of_the_head(monkeypatch):
    monkeypatch.setattr(features, "LARGE_VOCABULARY", 1)
    student = llama(1, seed=1)
    made = distiller(CONFIG, llama(2, 24), student, train_dataloader=text())
    take = made.plan().students[""].features
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = take(text()[0]).values()
    made.close()
    with torch.autocast("cpu", torch.bfloat16):
        expected = student(**text()[0]).logits
    assert isinstance(logits, HeadLogits) and logits.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(logits.tensor(), expected)


def test_a_run_in_bfloat16(monkeypatch):
    plain = run(llama(1, seed=1), llama(2, 24), mixed_precision="bf16")
    assert_alike(run(llama(1, seed=1), llama(2, 24), monkeypatch=monkeypatch, mixed_precision="bf16"), plain, 1e-2)


def test_entries_on_the_same_logits_share_one_pass_over_the_head(monkeypatch):
    seen, real = [], loss_model.head_loss
    monkeypatch.setattr(loss_model, "head_loss", lambda logits, parts: seen.append(len(parts)) or real(logits, parts))
    config = [*CONFIG, {**KD, "loss": "reverse_kl", "schedule": {"weight": "linear"}, "reduction": "sum"}]
    deferred = run(llama(1, seed=1), llama(2, 24), config, monkeypatch)
    assert seen == [2, 3, 3, 3]  # the schedule begins at 0
    assert_alike(deferred, run(llama(1, seed=1), llama(2, 24), config))


def test_terms_have_the_names_order_and_values_of_those_of_held_logits(monkeypatch):
    results = []
    for most in (1, 1000):
        monkeypatch.setattr(features, "LARGE_VOCABULARY", most)
        hidden = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
        made = distiller([KD, hidden, *CONFIG[1:]], llama(2, 24), llama(1, seed=1), train_dataloader=text())
        results.append(made.train())
    assert list(results[0]) == list(results[1]) and len(results[0]) == 4
    assert results[0] == near(results[1])
