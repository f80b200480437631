"""Detectors: a student's own loss as an entry, candidates laid out for objectness, average precision, scenes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from detection import DetectionEvaluator, box_iou, detections, mean_average_precision, predicted_objects
from scenes import collate_detection, detection_scenes, segmentation_scenes
from tolerance import near
from torch import Tensor, nn
from transformers import YolosConfig, YolosForObjectDetection

from knowledge_distillation import ConfigError, DataError, KnowledgeDistiller, MultiLayerBasedDistillationLoss
from knowledge_distillation.losses.detection import objectness_scaled

OWN = {"student": "output.loss", "loss": "own_loss", "name": "own"}
SCALED = {
    **{"teacher": "output.detections", "student": "output.detections", "name": "scaled"},
    **{"loss": "objectness_scaled", "args": {"objectness_activation": "none"}},
}


def yolos(layers: int = 1, width: int = 8, seed: int = 0) -> YolosForObjectDetection:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2}
    places: dict[str, Any] = {"image_size": [16, 16], "patch_size": 8, "num_detection_tokens": 4}
    config = YolosConfig(num_hidden_layers=layers, num_labels=3, initializer_range=0.5, **sizes, **places)
    return YolosForObjectDetection(config)


def batches(number: int = 8, of: int = 4) -> list[dict[str, Any]]:
    rows = detection_scenes(number, size=16)
    return [collate_detection(rows[at : at + of]) for at in range(0, number, of)]


def made(teacher: nn.Module | None, student: nn.Module, entries: Any, data: Any = None, **more: Any) -> Any:
    if isinstance(entries, list) and any("detections" in str(entry) for entry in entries):
        more["loss_model"] = MultiLayerBasedDistillationLoss(entries, detections, detections)
        entries = None
    settings = {"mixed_precision": "no", "teacher_dtype": "float32", "device": "cpu", "disable_tqdm": True}
    data = data if data is not None else batches()
    return KnowledgeDistiller(teacher, student, entries, train_dataloader=data, **settings, **more)


# --- the student's own loss ------------------------------------------------------------------------------------------


def test_the_students_own_loss_is_a_term_and_its_gradient_trains():
    student, [batch] = yolos(), batches(4)
    expected = student(**batch).loss
    before = student.bbox_predictor.layers[0].weight.detach().clone()
    run = made(None, student, [{**OWN, "weight": 0.5}], [batch], learning_rate=1e-2)
    losses = run.train_epoch()
    run.close()
    assert losses == {
        "loss": near(expected.item() / 2),
        "own": near(expected.item()),
    }
    assert not torch.equal(student.bbox_predictor.layers[0].weight, before)


def test_beside_other_entries_and_over_an_accumulated_window():
    data, student = batches(8), yolos()
    expected = torch.stack([student(**batch).loss for batch in data]).sum().item() / 2
    layer = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    run = made(yolos(2, 12), student, [OWN, layer], data, gradient_accumulation_steps=2)
    losses = run.train_epoch()
    run.close()
    assert losses["own"] == near(expected)


def test_no_other_entry_hands_labels_to_a_model():
    class Watched(YolosForObjectDetection):
        def forward(self, pixel_values: Tensor, labels: Any = None, **more: Any) -> Any:
            given.append(labels is not None)
            return super().forward(pixel_values, labels, **more)

    given: list[bool] = []
    teacher = Watched(yolos(2).config)
    run = made(teacher, yolos(), [OWN, SCALED])
    run.train_epoch()
    run.close()
    assert given and not any(given)
    given.clear()
    run = made(yolos(2), Watched(yolos().config), [SCALED])
    run.train_epoch()
    run.close()
    assert given and not any(given)


def test_the_loss_model_alone_takes_the_own_loss_as_well():
    student, [batch] = yolos(), batches(4)
    output = student(**batch)
    loss = MultiLayerBasedDistillationLoss([OWN])(None, output, None, batch)
    assert loss.item() == pytest.approx(output.loss.item())


class Silent(nn.Module):
    """Takes no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layer(pixel_values.mean((2, 3)))


@pytest.mark.parametrize(
    ("models", "entry", "labelled", "message"),
    [
        ((None, yolos()), OWN, False, "output.loss is what the student computes from labels, and the batch has no"),
        ((None, Silent()), OWN, True, "output.loss is what the student .* the forward of Silent takes no 'labels'"),
        ((yolos(), yolos()), {**OWN, "teacher": "output.loss", "loss": "mse"}, True, "only a student is given labels"),
        ((None, yolos()), {**OWN, "loss": "cross_entropy"}, True, "cross_entropy does not .* these do: own_loss"),
        ((None, yolos()), {**OWN, "student": "output.logits"}, True, "own_loss does not compare .* tokens"),
        ((None, yolos()), {**OWN, "projection": "linear"}, True, "projection linear does not apply to .* scalar"),
    ],
)
def test_an_own_loss_that_cannot_be(models, entry, labelled, message):
    [batch] = batches(4)
    data = batch if labelled else {"pixel_values": batch["pixel_values"]}
    with pytest.raises(ConfigError, match=message):
        made(*models, [entry], [data]).plan()


# --- candidates ------------------------------------------------------------------------------------------------------


def test_candidates_are_box_objectness_and_classes_beside_the_ready_made_names():
    output = yolos()(**batches(4)[0])
    features = detections(output)["output"]
    boxes, objectness, classes = features["detections"].split([4, 1, 3], dim=-1)
    assert torch.equal(boxes, output.pred_boxes) and torch.equal(classes, output.logits[..., :3])
    torch.testing.assert_close(objectness[..., 0], output.logits.softmax(-1)[..., :3].sum(-1))
    assert features["loss"] is output.loss and features["logits"] is output.logits


def test_box_and_class_are_taught_as_far_as_the_teacher_sees_an_object():
    teacher, student, [batch] = yolos(2, seed=1).eval(), yolos(), batches(4)
    sides = [detections(model(batch["pixel_values"]))["output"]["detections"] for model in (student, teacher)]
    expected = objectness_scaled(*sides, objectness_activation="none").mean().item()
    run = made(teacher, student, [OWN, SCALED], [batch])
    assert run.train_epoch()["scaled"] == pytest.approx(expected, rel=1e-4)
    run.close()


# --- average precision -----------------------------------------------------------------------------------------------

UNIT = torch.tensor([[0.5, 0.5, 0.4, 0.4]])


def test_the_overlap_of_boxes_by_hand():
    shifted = torch.tensor([[0.6, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]])
    torch.testing.assert_close(box_iou(UNIT, shifted), torch.tensor([[0.6, 0.25, 0.0]]))


def predicted(*found: tuple[float, int, list[float]]) -> dict[str, Tensor]:
    scores, labels, boxes = zip(*found, strict=True) if found else ((), (), ())
    return {
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.long),
        "boxes": torch.tensor(boxes).view(-1, 4),
    }


def test_average_precision_by_hand():
    here, there, else_where = [0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.25, 0.75, 0.2, 0.2]
    references = [
        {"class_labels": torch.tensor([0, 0, 1]), "boxes": torch.tensor([here, there, else_where])},
        {"class_labels": torch.tensor([0]), "boxes": torch.tensor([here])},
        {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    predictions = [
        predicted(
            (0.9, 0, here), (0.8, 0, here), (0.5, 0, there), (0.4, 1, there)
        ),  # found, found twice, found, wrong
        predicted((0.7, 1, here)),  # of the other class
        predicted((0.6, 0, here)),  # where there is nothing
    ]
    # Class 0 by score: right, wrong, wrong, right, of 3 objects: precision 1 at recall 1/3, 2/4 at 2/3. Class 1: none.
    class_0 = 1 / 3 * 1 + 1 / 3 * 0.5
    assert mean_average_precision(predictions, references) == pytest.approx((class_0 + 0) / 2)
    assert mean_average_precision([predicted()] * 3, references) == 0.0
    assert mean_average_precision([predicted()], references[2:]) == 0.0
    with pytest.raises(DataError, match="2 pictures have predictions, and 3 have references"):
        mean_average_precision(predictions[:2], references)


def test_precision_never_rises_with_recall():
    references = [{"class_labels": torch.zeros(2, dtype=torch.long), "boxes": torch.cat([UNIT, UNIT / 4])}]
    wrong_first = predicted(
        (0.9, 0, [0.9, 0.9, 0.1, 0.1]), (0.8, 0, UNIT[0].tolist()), (0.7, 0, (UNIT[0] / 4).tolist())
    )
    assert mean_average_precision([wrong_first], references) == pytest.approx(2 / 3)  # 1/2 at recall 1/2 becomes 2/3


class Oracle(nn.Module):
    """Gives back the objects it was made with, as a detector does."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.rows = {row["pixel_values"].sum().item(): row["labels"] for row in rows}

    def forward(self, pixel_values: Tensor) -> Any:
        logits, boxes = torch.full((len(pixel_values), 4, 4), -9.0), torch.full((len(pixel_values), 4, 4), 0.5)
        logits[..., 3] = 9.0
        for i, picture in enumerate(pixel_values):
            labels = self.rows[picture.sum().item()]
            for n, (of, box) in enumerate(zip(labels["class_labels"], labels["boxes"], strict=True)):
                logits[i, n, 3], logits[i, n, of], boxes[i, n] = -9.0, 9.0, box
        return type("Output", (), {"logits": logits, "pred_boxes": boxes})


def test_the_evaluator_gives_1_to_a_detector_that_knows():
    rows = detection_scenes(6, size=16)
    data = [collate_detection(rows[:4]), collate_detection(rows[4:])]
    accelerator = Accelerator(cpu=True)
    assert DetectionEvaluator()(Oracle(rows), None, data, accelerator) == {"map50": pytest.approx(1.0)}
    assert DetectionEvaluator()(yolos().eval(), None, data, accelerator)["map50"] < 0.5
    [found] = predicted_objects(torch.tensor([[[0.0, 2.0, 1.0]]]), torch.rand(1, 1, 4))
    assert found["labels"].tolist() == [1] and 0.66 < found["scores"].item() < 0.67


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_the_boxes_of_a_scene_are_those_of_its_pixels():
    size = 64
    for found, pixels in zip(detection_scenes(20, size=size), segmentation_scenes(20, size=size), strict=True):
        assert torch.equal(found["pixel_values"], pixels["pixel_values"])
        classes, boxes = found["labels"]["class_labels"], found["labels"]["boxes"]
        assert 1 <= len(classes) <= 3 and {*pixels["labels"].unique().tolist()} - {0} == {*(classes + 1).tolist()}
        for of, (x, y, width, height) in zip(classes, boxes * size, strict=True):
            at = (pixels["labels"] == of + 1).nonzero().float() + 0.5  # centres of pixels, y and x
            at = at[(at[:, 0] - y).abs() <= height / 2]
            at = at[(at[:, 1] - x).abs() <= width / 2]
            seen = at.amax(0) - at.amin(0) + 1
            assert (seen - torch.stack([height, width])).abs().max() < 2.5


def test_scenes_are_those_of_their_seed():
    one, same, other = (detection_scenes(2, seed=seed, size=16) for seed in (3, 3, 4))
    assert torch.equal(one[1]["pixel_values"], same[1]["pixel_values"])
    assert not torch.equal(one[1]["pixel_values"], other[1]["pixel_values"])
    with pytest.raises(DataError, match="size of 16 or more .* found number=1, most=3, size=8, noise=0.1"):
        detection_scenes(1, size=8)
