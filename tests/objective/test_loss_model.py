"""The loss model alone: called with model outputs in any loop, with losses of one's own, with what does not fit."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from tolerance import near
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss
from knowledge_distillation.features.batch_context import make_context


def bert(
    layers: int, width: int = 16, heads: int = 2, classes: int = 3, seed: int = 0
) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=classes,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        output_hidden_states=True,
        output_attentions=True,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def batch(lengths: tuple[int, ...] = (6, 3, 4), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 30, mask.shape, generator=generator) * mask
    labels = torch.randint(0, 3, (len(lengths),), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run(model: nn.Module, inputs: dict[str, torch.Tensor]):
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def own_names(output) -> dict[str, dict[str, torch.Tensor]]:
    """A user's output adaptor in the style of old: the output unpacks like a tuple."""
    logits, hidden_states, attentions = output
    return {
        "head": {"logits": logits},
        "last": {"states": hidden_states[-1], "attention": attentions[-1]},
    }


def as_it_is(output) -> dict[str, dict[str, torch.Tensor]]:
    return output


def alone(loss, /, **entry) -> MultiLayerBasedDistillationLoss:
    """A loss model of one entry on outputs that are named already: feature `l.x` on both sides."""
    sides = {"teacher": "l.x", "student": "l.x"} if not entry.pop("hard", False) else {"student": "l.x"}
    return MultiLayerBasedDistillationLoss([{**sides, "loss": loss, "name": "it", **entry}], as_it_is, as_it_is)


def x(tensor: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    return {"l": {"x": tensor}}


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


B, L, D = 3, 6, 5
INPUTS = batch()
MASK = INPUTS["attention_mask"]


def tokens(seed: int, width: int = D) -> torch.Tensor:
    return torch.randn(B, L, width, generator=torch.Generator().manual_seed(seed))


S, T = tokens(1), tokens(2)


# --- in a plain loop ---------------------------------------------------------------------------------------------


def test_a_plain_loop_with_output_adaptors_of_ones_own():
    teacher, student = bert(3, seed=1).eval(), bert(2, seed=2)
    loss_model = MultiLayerBasedDistillationLoss(
        [
            {"teacher": "last.states", "student": "last.states", "loss": "mse", "name": "states"},
            {"teacher": "last.attention", "student": "last.attention", "loss": "mse", "name": "maps", "weight": 2},
            {
                "teacher": "head.logits",
                "student": "head.logits",
                "loss": "kl_divergence",
                "args": {"temperature": 3},
                "weight": 0.5,
                "name": "soft",
            },
            {"student": "head.logits", "loss": "cross_entropy", "weight": 0.25, "name": "hard"},
        ],
        own_names,
        own_names,
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        with torch.no_grad():
            target = run(teacher, INPUTS)
        output = run(student, INPUTS)
        loss = loss_model(target, output, INPUTS, INPUTS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if len(losses) == 1:
            mask = MASK.numpy()
            s, t = double(output.logits), double(target.logits)
            states = double(output.hidden_states[-1]), double(target.hidden_states[-1])
            maps = double(output.attentions[-1]), double(target.attentions[-1])
            by_hand = (
                reference.hidden_mse(*states, mask)
                + 2 * reference.attention_mse(*maps, mask, mask)
                + 0.5 * reference.kl_divergence(s, t, temperature=3)
                + 0.25 * reference.hard_cross_entropy(s, INPUTS["labels"].numpy())
            )
            assert loss.item() == near(by_hand)
    assert losses[-1] < 0.8 * losses[0]


def test_ready_made_names_need_no_adaptor():
    teacher, student = bert(3, seed=1), bert(2, seed=2)
    config = [
        {"teacher": "bert_layer{2,3}.hidden_states", "student": "bert_layer{1,2}.hidden_states", "loss": "mse"},
        {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "cos"},
        {"teacher": "layer3.attention", "student": "layer2.attention", "loss": "mse"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
    ]
    loss_model = MultiLayerBasedDistillationLoss(config)
    loss_model(run(teacher, INPUTS), run(student, INPUTS), INPUTS, INPUTS).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.bert.encoder.layer[1].output.dense.weight.grad.abs().sum() > 0
    assert len(loss_model.bound) == 5


def test_padding_of_the_batch_changes_nothing():
    teacher, student = bert(3, seed=1).eval(), bert(2, seed=2).eval()
    config = [
        {"teacher": "layer3.hidden_states", "student": "layer2.hidden_states", "loss": "mse"},
        {"teacher": "layer3.attention", "student": "layer2.attention", "loss": "mse"},
    ]
    longer = {**INPUTS, **{key: F.pad(INPUTS[key], (0, 5)) for key in ("input_ids", "attention_mask")}}
    losses = []
    for inputs in (INPUTS, longer):
        loss_model = MultiLayerBasedDistillationLoss(config)
        losses.append(loss_model(run(teacher, inputs), run(student, inputs), inputs, inputs).item())
    assert losses[1] == near(losses[0])


def test_hard_entries_need_no_teacher():
    loss_model = MultiLayerBasedDistillationLoss([{"student": "output.logits", "loss": "cross_entropy"}])
    logits = torch.randn(3, 4)
    labels = torch.tensor([0, 3, 1])
    assert loss_model(None, logits, None, {"labels": labels}).item() == pytest.approx(
        F.cross_entropy(logits, labels).item()
    )


# --- widths ------------------------------------------------------------------------------------------------------


def test_unequal_widths_ask_for_bind_outputs_which_gives_projections():
    teacher, student = bert(2, width=24, seed=1), bert(2, width=16, seed=2)
    config = [{"teacher": "layer{1,2}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"}]
    loss_model = MultiLayerBasedDistillationLoss(config)
    with torch.no_grad():
        target = run(teacher, INPUTS)
    for _ in range(2):  # the second call has no untrained projection to go on with
        with pytest.raises(
            ConfigError, match=r"widths differ, so projections were added: call loss_model.bind_outputs"
        ):
            loss_model(target, run(student, INPUTS), INPUTS, INPUTS)
    loss_model.bind_outputs(target, run(student, INPUTS), INPUTS, INPUTS)
    assert [tuple(p.shape) for p in loss_model.parameters()] == [(24, 16), (24,)] * 2
    optimizer = torch.optim.SGD([*student.parameters(), *loss_model.parameters()], lr=0.05)
    before = [p.clone() for p in loss_model.parameters()]
    losses = []
    for _ in range(5):
        loss = loss_model(target, run(student, INPUTS), INPUTS, INPUTS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(not torch.equal(now, then) for now, then in zip(loss_model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_projections_are_of_the_features_precision_and_at_least_float32(dtype):
    loss_model = alone("mse")
    outputs = x(tokens(1, 7).to(dtype)), x(S.to(dtype))
    loss_model.bind_outputs(*outputs, INPUTS, INPUTS)
    wide = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in loss_model.parameters()} == {wide}
    assert loss_model(*outputs, INPUTS, INPUTS).dtype == wide


def test_a_map_is_projected_by_a_convolution_of_its_channels():
    loss_model = alone("mse")
    loss_model.bind_outputs(x(torch.randn(2, 7, 3, 3)), x(torch.randn(2, 5, 3, 3)), None, None)
    assert [tuple(p.shape) for p in loss_model.parameters()] == [(7, 5, 1, 1), (7,)]


# --- losses of one's own -----------------------------------------------------------------------------------------


def per_token(student, teacher, scale=1.0):
    return scale * (student - teacher).abs().mean(-1)


def with_mask(student, teacher, mask):
    return ((student - teacher).abs().mean(-1) * mask).sum() / mask.sum()


def with_context(student, teacher, labels, sample_weight, texts, unused=None):
    assert labels.shape == (B,) and texts == ["a", "b", "c"] and unused is None
    return (student - teacher).abs().mean(-1) * sample_weight[:, None]


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, student, teacher):
        return self.weight * (student - teacher).abs().mean(-1)


ABSOLUTE = (((S - T).abs().mean(-1) * MASK).sum() / MASK.sum()).item()
WEIGHTS = torch.tensor([0.0, 1.0, 2.0])
WEIGHED = (((S - T).abs().mean(-1) * MASK * WEIGHTS[:, None]).sum() / MASK.sum()).item()


@pytest.mark.parametrize(
    ("loss", "args", "expected"),
    [
        (per_token, {}, ABSOLUTE),
        (per_token, {"scale": 3.0}, 3 * ABSOLUTE),
        (partial(per_token, scale=3.0), {}, 3 * ABSOLUTE),
        (lambda student, teacher: (student - teacher).abs().mean(-1), {}, ABSOLUTE),
        (lambda student, teacher, **others: per_token(student, teacher, **others), {"scale": 3.0}, 3 * ABSOLUTE),
        (lambda student, teacher: (student - teacher).abs(), {}, ABSOLUTE),  # one value per number
        (with_mask, {}, ABSOLUTE),
        (with_context, {}, WEIGHED),
        (Weighted(), {}, 2 * ABSOLUTE),
        (F.l1_loss, {"reduction": "none"}, ABSOLUTE),
        (F.mse_loss, {}, F.mse_loss(S, T).item()),  # a scalar, padding included
        (nn.L1Loss(reduction="none"), {}, ABSOLUTE),
    ],
    ids=[
        "per token",
        "arguments",
        "partial",
        "lambda",
        "any keyword",
        "per number",
        "mask",
        "context",
        "module",
        "F.l1_loss none",
        "F.mse_loss",
        "nn.L1Loss",
    ],
)
def test_any_callable_is_a_loss(loss, args, expected):
    inputs = {**INPUTS, "sample_weight": WEIGHTS, "texts": ["a", "b", "c"]}
    loss_model = alone(loss, args=args)
    loss_model.bind_outputs(x(T), x(S), inputs, inputs)
    assert loss_model(x(T), x(S), inputs, inputs).item() == near(expected)


def test_a_loss_that_is_a_module_trains_and_is_part_of_the_state():
    loss_model = alone(Weighted())
    optimizer = torch.optim.SGD(loss_model.parameters(), lr=0.1)  # its parameters are there before anything is bound
    loss_model(x(T), x(S), INPUTS, INPUTS).backward()
    optimizer.step()
    assert loss_model.state_dict()["losses.it.weight"].item() == near(2 - 0.1 * ABSOLUTE)


def test_one_value_per_sample_leaves_out_samples_without_tokens():
    mask = MASK.clone()
    mask[1] = 0
    inputs = {**INPUTS, "attention_mask": mask}
    loss_model = alone(lambda student, teacher: (student - teacher).square().mean((1, 2)))
    expected = (S - T)[[0, 2]].square().mean().item()
    for _ in range(2):  # on the probe, and after it
        assert loss_model(x(T), x(S), inputs, inputs).item() == near(expected)


def test_one_value_per_row_of_a_map_masks_rows():
    s, t = torch.randn(2, B, 4, L, L)
    names = {"teacher": "l.attention", "student": "l.attention"}
    rows = (s - t).square().mean(-1)
    expected = ((rows * MASK[:, None]).sum() / (4 * MASK.sum())).item()
    for loss in (
        lambda student, teacher: (student - teacher).square().mean(-1),  # (batch, heads, length)
        lambda student, teacher: (student - teacher).square().mean((1, 3)),  # (batch, length)
    ):
        loss_model = alone(loss, **names)
        outputs = {"l": {"attention": t}}, {"l": {"attention": s}}
        assert loss_model(*outputs, INPUTS, INPUTS).item() == near(expected)


def test_one_value_per_pair_of_a_map_masks_rows_and_keys():
    s, t = torch.randn(2, B, 4, L, L)
    pairs = MASK[:, None, :, None] * MASK[:, None, None]
    expected = 1 + ((s - t).abs() * pairs).sum().item() / (4 * pairs.sum().item())
    names = {"teacher": "l.attention", "student": "l.attention"}
    loss_model = alone(lambda student, teacher: 1 + (student - teacher).abs(), **names)
    for _ in range(2):  # on the probe, and after it
        loss = loss_model({"l": {"attention": t}}, {"l": {"attention": s}}, INPUTS, INPUTS)
        assert loss.item() == near(expected)


def test_several_features_a_side_arrive_as_tuples():
    def many_to_one(student, teacher, mask):
        assert isinstance(student, tuple) and isinstance(teacher, tuple) and (len(student), len(teacher)) == (2, 1)
        return (sum(student) / 2 - teacher[0]).square().mean(-1)

    entry = {"teacher": ["l.c"], "student": ["l.a", "l.b"], "loss": many_to_one}
    loss_model = MultiLayerBasedDistillationLoss([entry], as_it_is, as_it_is)
    other = tokens(3)
    loss = loss_model({"l": {"c": T}}, {"l": {"a": S, "b": other}}, INPUTS, INPUTS)
    assert loss.item() == near(reference.hidden_mse(double((S + other) / 2), double(T), MASK.numpy()))


def test_losses_of_ones_own_get_float32_without_autocast_and_a_detached_teacher():
    seen = {}

    def spy(student, teacher):
        seen.update(dtypes={student.dtype, teacher.dtype}, autocast=torch.is_autocast_enabled("cpu"))
        seen["teacher"] = teacher.requires_grad
        return (student - teacher).square().mean(-1)

    loss_model = alone(spy)
    with torch.autocast("cpu", torch.bfloat16):
        loss_model(x(T.bfloat16().requires_grad_()), x(S.bfloat16()), INPUTS, INPUTS)
    assert seen == {"dtypes": {torch.float32}, "autocast": False, "teacher": False}


# --- terms, counts, context --------------------------------------------------------------------------------------


def test_terms_are_unweighted_and_detached_and_the_loss_is_their_weighted_sum():
    config = [
        {"teacher": "l.x", "student": "l.x", "loss": "mse", "name": "near", "weight": 3},
        {"teacher": "l.x", "student": "l.x", "loss": "cos", "name": "direction", "weight": 0.5},
        {"teacher": "l.x", "student": "l.x", "loss": "mse", "name": "only measured", "weight": 0},
    ]
    loss_model = MultiLayerBasedDistillationLoss(config, as_it_is, as_it_is)
    student, context = S.clone().requires_grad_(), make_context(INPUTS)
    loss_model.bind_outputs(x(T), x(student), INPUTS, INPUTS)
    feature = loss_model.config.entries[0].student[0]
    loss, values, _ = loss_model.terms(loss_model.project({feature: student}), {feature: T}, context)
    distance, direction = values["near"].item(), values["direction"].item()
    assert distance == near(reference.hidden_mse(double(S), double(T), MASK.numpy()))
    assert direction == near(reference.cos(double(S), double(T), MASK.numpy()))
    assert values["only measured"].item() == distance
    assert loss.item() == near(3 * distance + 0.5 * direction)
    assert loss.requires_grad and not any(value.requires_grad for value in values.values())


def test_without_a_mask_every_token_of_this_batch_counts():
    loss_model = alone("mse")
    for length in (4, 9):
        s, t = torch.randn(2, B, length, D)
        assert loss_model(x(t), x(s), None, None).item() == near(F.mse_loss(s, t).item())


def test_a_token_counts_where_both_sides_keep_it():
    teacher_mask = MASK.clone()
    teacher_mask[:, 0] = 0
    context = make_context(INPUTS, {**INPUTS, "attention_mask": teacher_mask})
    assert torch.equal(context["attention_mask"], MASK.bool() & teacher_mask.bool())
    assert torch.equal(context["teacher_attention_mask"], teacher_mask)
    loss_model = alone("mse")
    loss = loss_model(x(T), x(S), {**INPUTS, "attention_mask": teacher_mask}, INPUTS)
    assert loss.item() == near(reference.hidden_mse(double(S), double(T), (MASK & teacher_mask).numpy()))


def test_a_context_knows_every_key_of_both_sides_and_makes_missing_masks():
    ids, labels = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 2, -100], [1, -100, -100]])
    context = make_context({"input_ids": ids, "sample": 1}, {"input_ids": ids, "teacher_only": 2})
    assert context["attention_mask"].all() and (context["sample"], context["teacher_only"]) == (1, 2)
    decoder = make_context({"decoder_input_ids": ids, "labels": labels})
    assert torch.equal(decoder["decoder_attention_mask"], labels != -100)


def test_labels_of_causal_models_are_shifted():
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[1, 2, 3, 4], [2, -100, 0, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    entries = alone("cross_entropy", hard=True).config
    loss_model = MultiLayerBasedDistillationLoss(entries, as_it_is, as_it_is, shift_labels=True)
    inputs = {"input_ids": torch.ones_like(labels), "attention_mask": mask, "labels": labels}
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).item()
    assert loss_model(None, x(logits), None, inputs).item() == near(expected)


@pytest.mark.parametrize("shape", [(B,), (B, 1)], ids=str)
def test_regression_takes_labels_with_and_without_a_last_dimension(shape):
    predictions, labels = torch.randn(B, 1), torch.randn(B)
    loss = alone("mse", hard=True)(None, x(predictions), None, {"labels": labels.view(shape)})
    assert loss.item() == near(F.mse_loss(predictions[:, 0], labels).item())


# --- what does not fit -------------------------------------------------------------------------------------------

LOGITS = torch.randn(B, 4)


@pytest.mark.parametrize(
    ("entry", "teacher", "student", "inputs", "message"),
    [
        (
            {"loss": "mse", "teacher": "l.attention", "student": "l.attention"},
            {"l": {"attention": torch.rand(B, 12, L, L)}},
            {"l": {"attention": torch.rand(B, 4, L, L)}},
            INPUTS,
            "the student has 4 heads, the teacher 12. Maps are compared head by head: set projection: heads",
        ),
        (
            {"loss": "mse", "teacher": "output.logits", "student": "output.logits"},
            {"output": {"logits": torch.randn(B, 3)}},
            {"output": {"logits": torch.randn(B, 2)}},
            INPUTS,
            "the student has 2 classes, the teacher 3. Logits are compared class by class",
        ),
        (
            {"loss": "kl_divergence"},
            x(torch.randn(B, 3)),
            x(torch.randn(B, 1)),
            INPUTS,
            "l.x (3, 1) and l.x (3, 3): the student has 1 classes, the teacher 3",
        ),
        (
            {"loss": "mse", "projection": "none"},
            x(tokens(1, 7)),
            x(S),
            INPUTS,
            "widths differ, l.x (3, 6, 5) and l.x (3, 6, 7), and projection is off. Set projection: auto",
        ),
        (
            {"loss": "mse", "teacher": "l.attention", "student": "l.attention", "projection": "linear"},
            {"l": {"attention": torch.rand(B, 2, L, L)}},
            {"l": {"attention": torch.rand(B, 2, L, L)}},
            INPUTS,
            "projection linear does not apply to attention maps, whose width is a length",
        ),
        (
            {"loss": "mse"},
            x(T[:, :4]),
            x(S),
            INPUTS,
            "l.x (3, 6, 5) and l.x (3, 4, 5): shapes differ where no projection",
        ),
        (
            {"loss": "mse", "student": "l.y"},
            x(T),
            x(S),
            INPUTS,
            "l.y: the student's output has no such feature. Nearest: l.x.",
        ),
        (
            {"loss": "mse", "teacher": "l.y"},
            x(T),
            x(S),
            INPUTS,
            "l.y: the teacher's output has no such feature. Nearest: l.x.",
        ),
        (
            {"loss": "mse", "args": {"temperature": 1}},
            x(T),
            x(S),
            INPUTS,
            "loss mse takes no argument 'temperature'. It takes: no arguments",
        ),
        ({"loss": "attention_mse"}, x(T), x(S), INPUTS, "attention_mse does not apply to a feature of kind tokens"),
        (
            {"loss": lambda student, teacher, margin: 0},
            x(T),
            x(S),
            {},
            "loss <lambda> needs 'margin', which is neither in args nor a key of the batch (mask, key_mask",
        ),
        (
            {"loss": lambda student, teacher: 1 / 0},
            x(T),
            x(S),
            INPUTS,
            "loss <lambda> failed: ZeroDivisionError: division",
        ),
        (
            {"loss": lambda student, teacher: 1.0},
            x(T),
            x(S),
            INPUTS,
            "loss <lambda> returned float; a tensor is needed",
        ),
        (
            {"loss": lambda student, teacher: torch.zeros(7)},
            x(T),
            x(S),
            INPUTS,
            "the loss returned a tensor of shape (7,) for a feature of kind tokens and shape (3, 6, 5)",
        ),
        (
            {"loss": lambda student, teacher: (student - teacher).mean(-1) * torch.nan},
            x(T),
            x(S),
            INPUTS,
            "loss <lambda> is nan on the probe batch",
        ),
    ],
)
def test_what_does_not_fit_is_said(entry, teacher, student, inputs, message):
    config = [{"teacher": "l.x", "student": "l.x", **entry}]
    loss_model = MultiLayerBasedDistillationLoss(config, as_it_is, as_it_is)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        loss_model(teacher, student, inputs, inputs)
    assert str(error.value).startswith("1 problem in distill_config\n  [0] ")


@pytest.mark.parametrize(
    ("loss", "student", "labels", "message"),
    [
        ("cross_entropy", LOGITS, None, "loss cross_entropy compares l.x with labels, and the batch has no 'labels'"),
        ("cross_entropy", LOGITS, torch.tensor([0, 4, -100]), "labels run from 0 to 4, and l.x has 4 classes"),
        ("cross_entropy", LOGITS, torch.tensor([0, -1, 2]), "labels run from -1 to 2, and l.x has 4 classes"),
        ("cross_entropy", LOGITS, torch.rand(B), "takes class numbers as labels; these are real numbers: use mse"),
        ("cross_entropy", LOGITS, torch.tensor([0, 1]), "l.x (3, 4) does not fit labels (2,)"),
        ("cross_entropy", torch.randn(B, L, 4), torch.tensor([0, 1, 2]), "l.x (3, 6, 4) does not fit labels (3,)"),
        ("mse", torch.randn(B, B), torch.rand(B), "l.x (3, 3) does not fit labels (3,)"),
        (
            "hinge",
            LOGITS,
            torch.tensor([0, 1, 2]),
            "unknown loss against the labels 'hinge'. Known: cross_entropy, mse",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named(loss, student, labels, message):
    inputs = {} if labels is None else {"labels": labels}
    with pytest.raises(ConfigError, match=re.escape(message)):
        alone(loss, hard=True)(None, x(student), None, inputs)


def test_what_is_wrong_with_an_entrys_keys_and_with_its_features_is_one_error():
    loss_model = alone("mse", teacher="l.z", wieght=2)
    with pytest.raises(
        ConfigError, match=r"2 problems in distill_config\n  \[0\] unknown key 'wieght'.*\n  \[0\] l\.z"
    ):
        loss_model(x(T), x(S), INPUTS, INPUTS)


def test_every_problem_is_told_at_once_and_the_next_call_does_not_go_on_with_the_rest():
    config = [
        {"teacher": "l.x", "student": "l.x", "loss": "mse"},
        {"teacher": "l.z", "student": "l.x", "loss": "mse"},
        {"teacher": "l.x", "student": "l.x", "loss": "msee"},
    ]
    loss_model = MultiLayerBasedDistillationLoss(config, as_it_is, as_it_is)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"2 problems in distill_config\n  \[1\] l\.z: .*\n  \[2\] unknown loss 'msee'"
        ):
            loss_model(x(T), x(S), INPUTS, INPUTS)


def test_an_output_adaptor_that_does_not_name_layers_is_an_error():
    loss_model = MultiLayerBasedDistillationLoss(
        [{"student": "l.x", "teacher": "l.x", "loss": "mse"}], as_it_is, as_it_is
    )
    with pytest.raises(ConfigError, match=re.escape('an output adaptor returns {"layer": {"output": tensor}}')):
        loss_model({"x": T}, {"x": S}, INPUTS, INPUTS)


def test_terms_before_anything_is_bound_are_an_error():
    with pytest.raises(ConfigError, match="no entry is bound"):
        alone("mse").terms({}, {}, {})
