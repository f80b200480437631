"""Labels that are positions in a text, and labels of yes or no: losses, averages, presets, scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import bert, distiller
from tolerance import near
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.evaluation.scoring import best_spans
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses import get_loss
from knowledge_distillation.losses.table import LOSSES
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss
from knowledge_distillation.presets import hinton

LOGITS = {"teacher": "output.logits", "student": "output.logits"}
ON_POSITIONS = [
    spec.name for spec in LOSSES if "positions" in spec.functions and not (spec.hard or "ensemble" in spec.name)
]


def value_of(entry: dict, kind: str, student: Tensor, teacher: Tensor | None, inputs: dict) -> tuple[Tensor, Tensor]:
    """An entry's term on features of this kind, and its gradient by the student's."""
    model = MultiLayerBasedDistillationLoss([entry])
    bound, context = model.config.check().entries[0], make_context(inputs)
    own = student.clone().requires_grad_()
    of_teacher = {feature: teacher for feature in bound.teacher}
    model.bind(bound, {bound.student[0]: own}, of_teacher, kind, context)
    loss = model.terms(model.project({bound.student[0]: own}), of_teacher, context).loss
    return loss.detach(), torch.autograd.grad(loss, own)[0]


# --- positions in a text ---------------------------------------------------------------------------------------------


def answers(rows: int = 4, length: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(length) < torch.tensor([8, 5, 6, 3])[:rows, None]).long()
    ids = torch.randint(3, 40, (rows, length), generator=generator) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "start_positions": torch.tensor([2, 0, 99, 1])[:rows],
        "end_positions": torch.tensor([5, 3, 99, 2])[:rows],
    }


def finder(seed: int = 0) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return BertForQuestionAnswering(BertConfig(**sizes, **dropout, num_hidden_layers=1, max_position_embeddings=16))


@pytest.mark.case("D3")
@pytest.mark.parametrize("name", ON_POSITIONS)
def test_padding_is_no_position(name: str) -> None:
    """The mean over rows of the loss on each row cut to its length, whatever stands in padding."""
    inputs, lengths = answers(), [8, 5, 6, 3]
    student, teacher = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs["start_positions"] = torch.tensor([2, 0, 4, 1])
    rows = []
    for row, length in enumerate(lengths):
        context = {"labels": inputs["start_positions"][row : row + 1]} if name == "dkd" else {}
        sides = (side[row : row + 1, :length] for side in (student, teacher))
        rows.append(get_loss(name, "positions")(*sides, **context).item())
        student[row, length:], teacher[row, length:] = math.nan, math.inf
    entry = {"teacher": "output.start_logits", "student": "output.start_logits", "loss": name}
    value, gradient = value_of(entry, "positions", student, teacher, inputs)
    assert value.item() == pytest.approx(sum(rows) / 4, rel=1e-9)
    assert torch.isfinite(gradient).all() and (gradient[inputs["attention_mask"] == 0] == 0).all()


@pytest.mark.case("D3")
@pytest.mark.parametrize("name", ["kl_divergence", "soft_cross_entropy", "cross_entropy"])
def test_a_mask_says_which_tokens_are_positions(name: str) -> None:
    """As if the other tokens were not there; an answer at one of them does not count."""
    inputs = answers()
    kept = [[0, 2, 3, 5], [0, 3], [0, 4, 5], [0, 1]]
    inputs["passage_mask"] = torch.tensor([[place in row for place in range(8)] for row in kept])
    inputs["start_positions"] = torch.tensor([2, 0, 1, 1])  # that of row 2 is no position
    student, teacher = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hard = name == "cross_entropy"
    rows = []
    for row, places in enumerate(kept):
        sides = [side[row : row + 1, places] for side in (student, teacher)]
        if not hard:
            rows.append(get_loss(name, "positions")(*sides).item())
        elif row != 2:
            rows.append(F.cross_entropy(sides[0], torch.tensor([places.index(inputs["start_positions"][row])])).item())
    entry = {"student": "output.start_logits", "loss": name, "mask": "passage"}
    entry |= {} if hard else {"teacher": "output.start_logits"}
    value, gradient = value_of(entry, "positions", student, None if hard else teacher, inputs)
    assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-9)
    assert (gradient[~inputs["passage_mask"]] == 0).all() and gradient.abs().sum() > 0


@pytest.mark.case("D3")
def test_a_mask_of_positions_is_one_of_the_batch(capsys: Any) -> None:
    entry = {"student": "output.start_logits", "loss": "cross_entropy", "mask": "passage"}
    with pytest.raises(ConfigError, match="mask 'passage': the batch has no such mask for the tokens of output.start"):
        distiller([entry], None, finder(), train_dataloader=[answers()]).plan()
    data = answers()
    data["passage_mask"] = data["attention_mask"].bool()
    print(distiller([entry], None, finder(), train_dataloader=[data]).plan())
    assert "by passage_mask" in capsys.readouterr().out


@pytest.mark.case("D3")
def test_a_finder_of_answers_trains_and_is_scored(tmp_path: Any) -> None:
    sides = [{side: f"output.{end}_logits" for side in ("teacher", "student")} for end in ("start", "end")]
    config = [{**side, "loss": "kl_divergence", "args": {"temperature": 2}} for side in sides]
    config += [{"student": side["student"], "loss": "cross_entropy", "name": side["student"][7:]} for side in sides]
    data = answers()
    student = finder(1)
    options = {"train_dataloader": [data], "dev_dataloader": [data], "learning_rate": 0.0}
    results = distiller(config, finder(), student, **options, teacher_cache=tmp_path).train()
    output = student.eval()(data["input_ids"], data["attention_mask"])
    for end in ("start", "end"):
        masked = output[f"{end}_logits"].masked_fill(data["attention_mask"] == 0, -math.inf)
        labels = data[f"{end}_positions"].masked_fill(data[f"{end}_positions"] > 7, -100)
        assert results[f"{end}_logits"] == near(F.cross_entropy(masked, labels).item())
    names = {f"eval_{who}{name}" for who in ("", "teacher_") for name in ("f1", "exact_match")} | {"eval_agreement"}
    assert names < set(results) and results["best_f1"] == results["eval_f1"]
    spans = best_spans(output.start_logits, output.end_logits, data["attention_mask"])
    for row, (first, last) in enumerate(spans.tolist()):
        assert 0 <= first <= last < [8, 5, 6, 3][row]


@pytest.mark.case("D3")
def test_spans_are_compared_by_their_tokens() -> None:
    start, end = torch.zeros(3, 6), torch.zeros(3, 6)
    for row, (first, last) in enumerate([(4, 5), (1, 2), (3, 3)]):
        start[row, first], end[row, last] = 9.0, 9.0

    class Fixed(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"start_logits": start, "end_logits": end}

    data = {"input_ids": torch.tensor([[0, 7, 8, 0, 7, 8]] * 3)}  # the answer stands there twice
    data |= {"start_positions": torch.tensor([1, 1, 0]), "end_positions": torch.tensor([2, 1, 0])}
    from knowledge_distillation import TaskEvaluator

    accelerator = distiller().accelerator
    scores = TaskEvaluator()(Fixed(), None, [data], accelerator)
    assert scores == pytest.approx({"f1": (1 + 2 / 3 + 1) / 3, "exact_match": 2 / 3})
    crossed = best_spans(torch.tensor([[0.0, 0, 5]]), torch.tensor([[5.0, 1, 1]]), None)
    assert crossed.tolist() == [[2, 2]]  # never an end before its start


# --- yes or no -------------------------------------------------------------------------------------------------------


def several(labels: Any = ((1, 0, 1), (0, 0, 0), (1, 1, 1), (0, 1, 0))) -> dict[str, Tensor]:
    ids = torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}


@pytest.mark.case("D4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_hinton_on_labels_of_each_class(dtype: torch.dtype) -> None:
    data = several()
    data["labels"] = data["labels"].to(dtype)
    teacher, student = (bert(1, num_labels=3, seed=seed, initializer_range=0.5) for seed in (1, 0))
    config = hinton(alpha=0.5, temperature=2.0)
    config[0]["name"], config[1]["name"] = "soft", "hard"
    options = {"train_dataloader": [data], "dev_dataloader": [data], "learning_rate": 0.0}
    results = distiller(config, teacher, student, **options).train()
    inputs = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    own, others = (model.eval()(**inputs).logits for model in (student, teacher))
    assert results["hard"] == near(F.binary_cross_entropy_with_logits(own, data["labels"].float()).item())
    p, q = (logits.div(2).sigmoid() for logits in (others, own))
    soft = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert results["soft"] == pytest.approx(soft.item(), rel=1e-4)
    said, true = own > 0, data["labels"] == 1
    by_class = [2 * (s & t).sum() / max(s.sum() + t.sum(), 1) for s, t in zip(said.T, true.T, strict=True)]
    assert results["eval_f1_micro"] == pytest.approx(float(2 * (said & true).sum() / (said.sum() + true.sum())))
    assert results["eval_f1_macro"] == pytest.approx(float(sum(by_class) / 3))
    assert results["eval_agreement"] == pytest.approx(float((said == (others > 0)).float().mean()))


@pytest.mark.case("D4")
@pytest.mark.parametrize(
    "name", [s.name for s in LOSSES if s.softmax and "vector" in s.functions and not s.own_shapes]
)
def test_each_class_is_a_choice_of_two(name: str) -> None:
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = several()
    both = [torch.stack([torch.zeros_like(side), side], -1) for side in (student, teacher)]
    hard = name == "cross_entropy"
    entry = {"student": "output.logits", "loss": name} if hard else {**LOGITS, "loss": name}
    found, _ = value_of(entry, "vector", student, None if hard else teacher, data)
    context = {"labels": data["labels"]} if name == "dkd" else {}
    loss = get_loss(name, "vector", hard)
    expected = loss(both[0], data["labels"]) if hard else loss(*both, **context)
    assert found.item() == pytest.approx(expected.mean().item(), rel=1e-9)


@pytest.mark.case("D4")
def test_a_model_that_says_multi_label_needs_no_labels() -> None:
    models = [bert(1, num_labels=3, seed=seed, problem_type="multi_label_classification") for seed in (0, 1)]
    data = {key: value for key, value in several().items() if key != "labels"}
    results = distiller(
        [{**LOGITS, "loss": "soft_cross_entropy"}], *models, train_dataloader=[data], learning_rate=0.0
    ).train()
    others, own = (model.eval()(**data).logits for model in models)
    assert results["loss"] == near(F.binary_cross_entropy_with_logits(own, others.sigmoid()).item(), terms=2000)


@pytest.mark.case("D4")
@pytest.mark.parametrize(
    ("entry", "model", "message"),
    [
        (
            {**LOGITS, "loss": "dist"},
            {},
            "loss dist compares the classes of one softmax, and each class of output.logits",
        ),
        (
            {"student": "output.logits", "loss": "cross_entropy"},
            {"problem_type": "single_label_classification"},
            "does not fit labels (4, 3)",
        ),
        (
            {"student": "output.logits", "loss": "cross_entropy", "args": {"class_weights": [1.0, 2.0]}},
            {},
            "class_weights weigh the classes of one choice",
        ),
    ],
)
def test_what_is_not_for_several_labels_is_refused(entry: dict, model: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        distiller(
            [entry], bert(num_labels=3, **model), bert(1, num_labels=3, **model), train_dataloader=[several()]
        ).plan()
    assert message in str(error.value)


@pytest.mark.case("D5")
@pytest.mark.parametrize("labels", [[1, 0, 0, 1], [[1], [0], [0], [1]], [1.0, 0.0, 0.0, 1.0]])
def test_one_logit_is_a_yes_or_no(labels: Any) -> None:
    data = several(labels)
    student = bert(1, num_labels=1)
    config = [{"student": "output.logits", "loss": "cross_entropy", "name": "hard"}]
    results = distiller(config, None, student, train_dataloader=[data], learning_rate=0.0).train()
    own = student.eval()(data["input_ids"], data["attention_mask"]).logits
    assert results["hard"] == near(
        F.binary_cross_entropy_with_logits(own[:, 0], data["labels"].flatten().float()).item()
    )


@pytest.mark.case("D5")
def test_one_logit_is_taught_and_scored() -> None:
    data = several([1, 0, 0, 1])
    teacher, student = bert(1, num_labels=1, seed=1), bert(1, num_labels=1)
    options = {"train_dataloader": [data], "dev_dataloader": [data], "learning_rate": 0.0}
    results = distiller(hinton(alpha=1.0, temperature=1.0), teacher, student, **options).train()
    own, others = (model.eval()(data["input_ids"], data["attention_mask"]).logits for model in (student, teacher))
    p, q = others.sigmoid(), own.sigmoid()
    soft = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().item()
    assert results["loss"] == pytest.approx(soft, rel=1e-3)
    right = ((own[:, 0] > 0).long() == data["labels"]).float().mean().item()
    assert results["eval_accuracy"] == right


@pytest.mark.case("D5")
def test_one_logit_and_three_classes_are_refused() -> None:
    config = [{"student": "output.logits", "loss": "cross_entropy"}]
    with pytest.raises(ConfigError, match="labels run from 0 to 2, and output.logits has 1 classes. One logit is for"):
        distiller(config, None, bert(1, num_labels=1), train_dataloader=[several([0, 1, 2, 0])]).plan()
    soft = [{**LOGITS, "loss": "kl_divergence"}]
    real = several([0.5, 1.0, 0.0, 1.0])
    with pytest.raises(
        ConfigError, match="a softmax is always 1 and the loss 0. Use logits_mse; or for yes or no give"
    ):
        distiller(soft, bert(num_labels=1), bert(1, num_labels=1), train_dataloader=[real]).plan()
