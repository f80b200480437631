"""Which tokens count: those that labels mark, or a mask of the batch that an entry names; and the labels' shift."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from runs import distiller, weights
from tolerance import assert_near, near
from torch import Tensor, nn

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss, parse_config
from knowledge_distillation.features import catalogue
from knowledge_distillation.features.label_shift import label_shift

VOCABULARY, LENGTH, PROMPT = 40, 12, 5
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
SIZES |= {"vocab_size": VOCABULARY, "initializer_range": 0.5}
LOGITS = {"teacher": "output.logits", "student": "output.logits"}
KL = {**LOGITS, "loss": "kl_divergence"}
HARD = {"student": "output.logits", "loss": "cross_entropy"}


def llama(layers: int = 1, seed: int = 0, kind: Any = hf.LlamaForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = hf.LlamaConfig(num_hidden_layers=layers, num_key_value_heads=2, **{**SIZES, **changes})
    return kind(config)


def bert(kind: Any, layers: int = 1, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(hf.BertConfig(num_hidden_layers=layers, **SIZES, **none, **changes))


def text(rows: int = 4, prompt: int = PROMPT, seed: int = 0) -> dict[str, Tensor]:
    """Rows with a prompt whose labels are -100, padded on the right from the second on."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < LENGTH - torch.arange(rows)[:, None]).long()
    labels = ids.masked_fill((mask == 0) | (torch.arange(LENGTH) < prompt), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def value(config: list[dict[str, Any]], student: Any, teacher: Any = None, batch: Any = None, **options: Any) -> float:
    """The loss of the first step."""
    batch = batch or text()
    batches = batch if isinstance(batch, list) else [batch]
    run = distiller(config, teacher, student, train_dataloader=batches, learning_rate=0.0, **options)
    return run.train()["loss"]


def kl_by_hand(student: Any, teacher: Any, batch: dict[str, Tensor], counts: Any) -> float:
    """The mean over the positions (row, place) of which `counts` says so, one at a time, in float64."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        p, q = (model.eval()(**inputs).logits.double().softmax(-1) for model in (teacher, student))
    found = [
        float((p[row, place] * (p[row, place].log() - q[row, place].log())).sum())
        for row in range(len(p))
        for place in range(LENGTH)
        if counts(row, place)
    ]
    return sum(found) / len(found)


def labelled(batch: dict[str, Tensor], shift: int = 1) -> Any:
    return lambda row, place: place + shift < LENGTH and batch["labels"][row, place + shift] != -100


# --- which label a position is for ---------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A model in another, which hands its labels on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class WithoutLoss(Wrapped):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


class BertForCausalLM(WithoutLoss):
    """It is called so, and sees all tokens."""


class Renamed(hf.LlamaForCausalLM):
    pass


class AddsToItsLoss(Wrapped):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        output = super().forward(input_ids, attention_mask, labels)
        return output.logits if labels is None else (3 * output.loss + 5, output.logits)


class ForAnother(Wrapped):
    """Position i is for label i + 2, or for the label before."""

    def __init__(self, inner: nn.Module, shift: int) -> None:
        super().__init__(inner)
        self.shift = shift

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = super().forward(input_ids, attention_mask).logits
        if labels is None:
            return logits
        pairs = (logits[:, : -self.shift], labels[:, self.shift :])
        pairs = pairs if self.shift > 0 else (logits[:, -self.shift :], labels[:, : self.shift])
        return F.cross_entropy(pairs[0].flatten(0, 1), pairs[1].flatten()), logits


def gpt2(kind: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    none = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
    return kind(hf.GPT2Config(vocab_size=VOCABULARY, initializer_range=0.5, **sizes, **none, **changes))


def llava() -> Any:
    text_config = hf.LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **SIZES).to_dict()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text_config, image_token_index=1)
    )


def bart(kind: Any, **layers: int) -> Any:
    torch.manual_seed(0)
    sizes = {
        f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("attention_heads", 2), ("ffn_dim", 16))
    }
    none = {"dropout": 0.0, "attention_dropout": 0.0}
    return kind(hf.BartConfig(vocab_size=VOCABULARY, d_model=16, init_std=0.5, **sizes, **none, **layers))


def pictures(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a picture of 4 patches at the start of each row."""
    ids = batch["input_ids"].clone()
    ids[:, :4] = 1
    return {**batch, "input_ids": ids, "pixel_values": torch.randn(len(ids), 3, 8, 8)}


OWN = {
    "a subclass": (lambda: llama(kind=Renamed), True),
    "wrapped": (lambda: Wrapped(llama()), True),
    "double heads": (lambda: gpt2(hf.GPT2DoubleHeadsModel), True),
    "a picture before the text": (llava, True),
    "the decoder of BART, whose own loss is not shifted": (lambda: bart(hf.BartForCausalLM, decoder_layers=1), False),
    "BERT as a language model": (lambda: bert(hf.BertLMHeadModel), True),
    "masked": (lambda: bert(hf.BertForMaskedLM), False),
    "encoder-decoder": (lambda: bart(hf.BartForConditionalGeneration, encoder_layers=1, decoder_layers=1), False),
    "tags": (lambda: bert(hf.BertForTokenClassification, num_labels=VOCABULARY), False),
    "tags of a causal model": (
        lambda: gpt2(hf.GPT2ForTokenClassification, num_labels=VOCABULARY, classifier_dropout=0.0),
        False,
    ),
}


@pytest.mark.case("A2")
@pytest.mark.parametrize("name", OWN)
def test_labels_are_shifted_as_in_the_models_own_loss(name):
    make, shifted = OWN[name]
    model = make().eval()
    batch = pictures(text()) if "picture" in name else text()
    with torch.no_grad():
        expected = model(**batch).loss.item()
    run = distiller([HARD], None, model, train_dataloader=[batch], learning_rate=0.0)
    state = torch.random.get_rng_state()
    run.plan()
    assert torch.equal(torch.random.get_rng_state(), state)
    note = f"student: position i of the logits is for label {'i + 1' if shifted else 'i'}, as in its own loss"
    assert note in run.plan().notes
    assert run.train()["loss"] == near(expected)


SAME, AFTER = "position i of the logits is for label i, ", "position i of the logits is for label i + 1, "
WITHOUT = {
    "the next tokens of what it reads": (
        lambda: WithoutLoss(llama()),
        0,
        AFTER + "since the labels repeat the tokens",
    ),
    "labels shifted before": (lambda: WithoutLoss(llama()), 1, SAME + "since the labels are the next tokens already"),
    "it sees later tokens": (lambda: BertForCausalLM(bert(hf.BertForMaskedLM)), 0, SAME + "since its logits look at"),
    "a loss that is a sum of others": (lambda: AddsToItsLoss(llama()), 0, AFTER + "as in its own loss, which is more"),
}


@pytest.mark.case("A2")
@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_such_a_loss_is_asked_what_it_sees(name):
    make, earlier, said = WITHOUT[name]
    batch, model = text(), make()
    batch["labels"] = F.pad(batch["labels"], (0, earlier), value=-100)[:, earlier:]
    shift = label_shift(model, batch, batch["labels"])
    assert said in str(shift)
    with torch.no_grad():
        logits = model.inner.eval()(batch["input_ids"], batch["attention_mask"]).logits
    end = -1 if shift.shifted else None
    labels = batch["labels"][:, 1:] if shift.shifted else batch["labels"]
    expected = F.cross_entropy(logits[:, :end].flatten(0, 1), labels.flatten()).item()
    assert value([HARD], model, batch=batch) == near(expected)


@pytest.mark.case("A2")
@pytest.mark.parametrize("shift", [2, -1])
def test_a_loss_for_another_token_than_this_or_the_next_is_refused(shift):
    run = distiller([HARD], None, ForAnother(llama(), shift), train_dataloader=[text()])
    with pytest.raises(ConfigError, match=rf"by its own loss it is for label i \{shift:+d}, which is neither"):
        run.plan()


@pytest.mark.case("A2")
@pytest.mark.parametrize(("make", "shifted"), [(llama, True), (lambda: bert(hf.BertForMaskedLM), False)])
def test_a_first_batch_of_one_token_tells_the_shift_too(make, shifted):
    model, ids = make().eval(), text()["input_ids"]
    one = {"input_ids": ids[:, :1], "attention_mask": torch.ones_like(ids[:, :1]), "labels": ids[:, :1]}
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    shift = label_shift(model, one, one["labels"])
    assert (shift.shifted, shift.by_loss) == (shifted, True)
    run = distiller([HARD], None, model, train_dataloader=[one, longer], learning_rate=0.0)
    first = 0.0 if shifted else model(**one).loss.item()
    assert run.train()["loss"] == near((first + model.eval()(**longer).loss.item()) / 2)


def test_what_nothing_tells_is_refused_or_said():
    batch = text()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    run = distiller([HARD, KL], WithoutLoss(llama()), WithoutLoss(llama()), train_dataloader=[batch])
    with pytest.raises(ConfigError) as error:
        run.plan()
    for number in (0, 1):
        assert f"[{number}] whether position i of output.logits is for label i or for label i + 1" in str(error.value)
    assert "no token of the batch has a label. Say shift_labels: true or false" in str(error.value)
    for shift in (True, False):
        labels = text()["labels"]
        said = value([HARD], WithoutLoss(llama()), batch={**batch, "labels": labels}, shift_labels=shift)
        with torch.no_grad():
            logits = llama().eval()(batch["input_ids"], batch["attention_mask"]).logits
        counted = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        assert said == near(F.cross_entropy(counted[0].flatten(0, 1), counted[1].flatten()).item())


def test_models_whose_positions_are_for_other_labels_are_not_compared():
    run = distiller([KL], bert(hf.BertForMaskedLM), llama(), train_dataloader=[text()])
    with pytest.raises(
        ConfigError, match=r"the student says that position i of the logits is for label i \+ 1, as in "
    ):
        run.plan()


def test_the_evaluator_scores_the_labels_that_the_positions_are_for():
    batch, model = text(), Wrapped(llama())
    run = distiller([HARD], None, model, train_dataloader=[batch], dev_dataloader=[batch])
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
    right, labels = logits.argmax(-1) == batch["labels"][:, 1:], batch["labels"][:, 1:]
    assert run.evaluate()["accuracy"] == near(right[labels != -100].float().mean().item())


@pytest.mark.parametrize("with_loss", [False, True])
def test_a_loop_of_ones_own_shifts_as_the_output_tells(with_loss):
    batch, model = text(), llama().eval()
    loss_model = MultiLayerBasedDistillationLoss([HARD])
    output = model(**batch)
    expected = output.loss.item()
    if not with_loss:
        output = {"logits": output.logits}
    assert loss_model(None, output, None, batch).item() == near(expected)


# --- which tokens count ----------------------------------------------------------------------------------------------


@pytest.mark.case("A3")
@pytest.mark.parametrize(
    "loss", ["kl_divergence", lambda s, t: F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)]
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_soft_losses_on_logits_count_the_labelled_tokens(monkeypatch, chunked, loss):
    if chunked:
        monkeypatch.setattr(catalogue, "LARGE_VOCABULARY", 1)
    batch, teacher, student = text(), llama(2, 1), llama()
    by_labels = kl_by_hand(student, teacher, batch, labelled(batch))
    by_attention = kl_by_hand(student, teacher, batch, lambda row, place: bool(batch["attention_mask"][row, place]))
    assert abs(by_labels - by_attention) > 0.01
    entry = {**KL, "loss": loss}
    for more, expected in (({}, by_labels), ({"mask": "labels"}, by_labels), ({"mask": "attention"}, by_attention)):
        assert value([{**entry, **more}], student, teacher) == near(expected)
    run = distiller([KL], teacher, student, train_dataloader=[batch])
    plan, number = run.plan(), int((batch["labels"][:, 1:] != -100).sum())
    run.close()
    counted = f"{number} of 48 tokens of the first batch count, by attention_mask and labels where they mark tokens"
    assert any(note.startswith(counted) for note in plan.notes)
    assert plan.rows[0][5] == "tokens\nby labels"


@pytest.mark.case("A4")
def test_what_differs_on_the_prompt_alone_gives_0():
    batch = {"input_ids": torch.tensor([[3, 4, 1, 2]]), "labels": torch.tensor([[-100, -100, 1, 2]])}
    logits = torch.randn(1, 4, 5)
    teacher = logits.clone()
    teacher[:, 0] = torch.randn(5)  # is for token 1: of the prompt, as all are whose label is -100
    loss_model = MultiLayerBasedDistillationLoss([{**LOGITS, "loss": "reverse_kl"}])
    assert loss_model({"logits": teacher}, {"logits": logits}, batch, batch).item() == near(0.0)
    teacher[:, 1] = torch.randn(5)
    tags = {**batch, "labels": torch.tensor([[-100, -100, 0, 0]])}  # position i is for label i
    loss_model = MultiLayerBasedDistillationLoss([{**LOGITS, "loss": "reverse_kl"}])
    assert loss_model({"logits": teacher}, {"logits": logits}, tags, tags).item() == near(0.0)
    loss_model = MultiLayerBasedDistillationLoss([{**LOGITS, "loss": "reverse_kl", "mask": "attention"}])
    assert loss_model({"logits": teacher}, {"logits": logits}, tags, tags).item() > 0.01


def test_labels_that_leave_nothing_out_mark_nothing():
    batch, teacher, student = text(prompt=0), llama(2, 1), llama()
    attended = kl_by_hand(student, teacher, batch, lambda row, place: bool(batch["attention_mask"][row, place]))
    assert value([KL], student, teacher, batch) == near(attended)
    assert value([{**KL, "mask": "labels"}], student, teacher, batch) == near(
        kl_by_hand(student, teacher, batch, labelled(batch))
    )
    mixed = {key: torch.cat([text()[key][:1], batch[key][1:2]]) for key in batch}  # each row for itself
    counts = labelled(mixed)
    expected = kl_by_hand(
        student,
        teacher,
        mixed,
        lambda row, place: bool(mixed["attention_mask"][row, place]) if row else counts(0, place),
    )
    assert value([KL], student, teacher, mixed) == near(expected)


def test_masked_language_models_count_the_masked_tokens_by_default():
    batch = text()
    batch["labels"] = batch["labels"].masked_fill(torch.arange(LENGTH) % 3 > 0, -100)
    teacher, student = bert(hf.BertForMaskedLM, 2, 1), bert(hf.BertForMaskedLM)
    assert value([KL], student, teacher, batch) == near(kl_by_hand(student, teacher, batch, labelled(batch, 0)))


@pytest.mark.case("D10")
@pytest.mark.parametrize("feature", ["logits", "hidden_states", "attention", "query"])
def test_tags_are_distilled_at_first_pieces_alone(feature):
    batch = text()
    first = torch.arange(LENGTH) % 3 == 1
    batch["labels"] = (batch["input_ids"] % 4).masked_fill(~first | (batch["attention_mask"] == 0), -100)
    kind = hf.BertForTokenClassification
    teacher, student = bert(kind, 2, 1, num_labels=4), bert(kind, num_labels=4)
    names = {"teacher": f"layer2.{feature}", "student": f"layer1.{feature}"} if feature != "logits" else LOGITS
    found = value([{**names, "loss": "mse", "mask": "labels"}], student, teacher, batch)
    run = distiller([{**names, "loss": "mse"}], teacher, student, train_dataloader=[batch])
    plan = run.plan()
    with torch.no_grad():
        s, t = (
            next(iter(source.features({k: batch[k] for k in ("input_ids", "attention_mask")}).values()))
            for source in (plan.students[""], plan.teachers[""])
        )
    run.close()
    squares = (s - t).square()
    kept = batch["labels"] != -100
    if feature == "attention":
        keys = batch["attention_mask"].bool()[:, None, None]
        rows = kept[:, None, :, None] & keys
        expected = squares[rows.expand_as(squares)].mean()
    else:
        expected = (squares.mean(-1)[kept] if s.dim() == 3 else squares.mean(-1).transpose(1, 2)[kept]).mean()
    assert found == near(expected.item())


def test_a_mask_of_the_batch_is_named():
    batch, teacher, student = text(prompt=0), llama(2, 1), llama()
    mask = (torch.arange(LENGTH) >= PROMPT).long().expand(4, -1) * batch["attention_mask"]
    expected = kl_by_hand(
        student, teacher, batch, lambda row, place: place + 1 < LENGTH and bool(mask[row, place + 1])
    )
    for key, name in (("completion_mask", "completion"), ("assistant_masks", "assistant"), ("kept", "kept")):
        given = {**batch, key: mask.bool() if key == "kept" else mask}
        assert value([{**KL, "mask": name}], student, teacher, given) == near(expected)
        without = {k: v for k, v in given.items() if k != "labels"}
        assert value([{**KL, "mask": name}], student, teacher, without) == near(expected)


@pytest.mark.parametrize("reduction", ["mean", "sequence_mean", "sum"])
def test_masks_are_exact_over_accumulated_batches_and_chunks(monkeypatch, reduction):
    config = [{**KL, "reduction": reduction, "weight": 0.1}, {**KL, "mask": "attention", "reduction": reduction}, HARD]
    batch = text(6)
    small = [{key: value[start : start + 2] for key, value in batch.items()} for start in (0, 2, 4)]

    def trained(data, large=8192, steps=1):
        monkeypatch.setattr(catalogue, "LARGE_VOCABULARY", large)
        student = llama()
        options = {"optimizer": torch.optim.SGD(student.parameters(), lr=0.1), "max_grad_norm": 0}
        run = distiller(
            config, llama(2, 1), student, train_dataloader=data, gradient_accumulation_steps=steps, **options
        )
        run.train()
        return weights(student)

    whole = trained([batch])
    assert not torch.equal(whole["lm_head.weight"], llama().lm_head.weight)
    for other in (trained(small, steps=3), trained([batch], 1), trained(small, 1, 3)):
        assert_near(other, whole)


WRONG = {
    "a name nobody has": (
        {"mask": "complection"},
        {"completion_mask": torch.ones(4, LENGTH)},
        "mask 'complection': the batch has no such mask for the tokens of output.logits. Nearest: completion. It has: "
        "attention, labels, completion_mask",
    ),
    "labels of samples": (
        {"mask": "labels"},
        {"labels": torch.zeros(4, dtype=torch.long)},
        "mask 'labels': output.logits has 4×12 tokens, and the batch has labels 4",
    ),
    "a number": ({"mask": 3}, {}, "mask is labels, attention, or the name of another mask of the batch; found 3"),
    "an empty name": ({"mask": ""}, {}, "mask is labels, attention, or the name"),
    "a loss that takes no mask": (
        {"mask": "labels", "loss": lambda s, t: (s - t).square().mean()},
        {},
        "mask 'labels': loss <lambda> returns no value for each token and asks for no mask",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mask_that_there_is_not_is_an_error(name):
    entry, batch, message = WRONG[name]
    run = distiller([{**KL, **entry}], llama(2, 1), llama(), train_dataloader=[{**text(), **batch}])
    with pytest.raises(ConfigError, match=message):
        run.plan()


def test_a_feature_without_tokens_has_no_mask():
    kind = hf.BertForSequenceClassification
    batch = {**text(), "labels": torch.zeros(4, dtype=torch.long)}
    run = distiller([{**KL, "mask": "attention"}], bert(kind), bert(kind), train_dataloader=[batch])
    with pytest.raises(ConfigError, match="mask 'attention' says which tokens count, and output.logits is a vector"):
        run.plan()


def test_both_forms_have_the_key():
    long = {
        "type": "ts_distill",
        **{f"{side}_layer_name": "output" for side in ("teacher", "student")},
        **{f"{side}_layer_output_name": "logits" for side in ("teacher", "student")},
        "loss": {"loss_function": "kl_divergence", "args": {}},
        "mask": "completion",
    }
    entries = parse_config([long, {**KL, "mask": "completion"}]).check().entries
    assert [entry.mask for entry in entries] == ["completion"] * 2
