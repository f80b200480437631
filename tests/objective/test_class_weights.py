"""Weights of classes in cross_entropy: torch's own, whole, in chunks, accumulated."""

from __future__ import annotations

import pytest
import torch
from runs import bert, distiller, trained
from tolerance import assert_near
from torch.nn import CrossEntropyLoss

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.features.deferred import HeadLogits
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

WEIGHTS = [0.1, 2.0, 0.0, 0.5]
LOGITS = Feature("output", "logits")


def entry(**args):
    return [{"student": "output.logits", "loss": "cross_entropy", "args": {"class_weights": WEIGHTS, **args}}]


@pytest.mark.case("D11")
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("form", ["vector", "tokens", "head"])
def test_a_term_is_the_mean_of_torch(form: str, smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    labels = torch.randint(0, 4, (3, 5))
    labels[0, :2] = -100
    if form == "vector":
        hidden, labels = hidden[:, 0], torch.tensor([3, -100, 1])
    leaf = hidden.clone().requires_grad_()
    feature = HeadLogits(leaf, head) if form == "head" else leaf @ head.T
    model = MultiLayerBasedDistillationLoss(entry(label_smoothing=smoothing))
    context = make_context({"labels": labels})
    kind = "vector" if form == "vector" else "tokens"
    model.bind(model.config.check().entries[0], {LOGITS: feature}, {}, kind, context)
    loss = model.terms(model.project({LOGITS: feature}), {}, context).loss
    own = hidden.clone().requires_grad_()
    torch_loss = CrossEntropyLoss(torch.tensor(WEIGHTS, dtype=torch.float64), label_smoothing=smoothing)
    expected = torch_loss((own @ head.T).flatten(0, -2), labels.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)  # the sum of weights is counted in float32
    torch.testing.assert_close(*[torch.autograd.grad(one, x)[0] for one, x in ((loss, leaf), (expected, own))])


@pytest.mark.case("D11")
def test_accumulated_batches_are_one() -> None:
    rows = [{"input_ids": torch.randint(3, 40, (6, 7)), "labels": torch.tensor(y)} for y in ([0, 1, 1, 3, 0, 2],)]
    parts = [{key: value[start : start + 2] for key, value in rows[0].items()} for start in (0, 2, 4)]
    results = []
    for data, steps in ((rows, 1), (parts, 3)):
        student = bert(1, num_labels=4)
        options = {"train_dataloader": data, "gradient_accumulation_steps": steps, "optim": "sgd"}
        results.append(trained(distiller(entry(), None, student, **options)))
    assert_near(results[1], results[0])


@pytest.mark.case("D11")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 numbers, and the logits have 4 classes"),
        (
            {"class_weights": 3},
            "class_weights is a list of numbers of 0 or more, one for each class, not all 0; found 3",
        ),
        ({"class_weights": [1, -1, 1, 1]}, "numbers of 0 or more, one for each class, not all 0; found [1, -1, 1, 1]"),
        ({"class_weights": [0, 0, 0, 0]}, "not all 0; found [0, 0, 0, 0]"),
        ({"class_weight": [1.0]}, "takes no argument 'class_weight'. Nearest: class_weights."),
    ],
)
def test_wrong_weights_are_refused(args: dict, message: str) -> None:
    config = [{"student": "output.logits", "loss": "cross_entropy", "args": args}]
    with pytest.raises(ConfigError) as error:
        distiller(config, None, bert(1, num_labels=4)).plan()
    assert message in str(error.value)


def test_weights_go_with_reductions_that_have_one_denominator() -> None:
    config = [{**entry()[0], "reduction": "sequence_mean"}]
    with pytest.raises(ConfigError, match="class_weights go with reduction mean or sum; found sequence_mean"):
        distiller(config, None, bert(1, num_labels=4)).plan()
