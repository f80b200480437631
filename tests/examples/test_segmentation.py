"""Segmentation: channel-wise distillation beside the student's own loss, mean intersection over union, evaluator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scenes import segmentation_scenes
from segmentation import SegmentationEvaluator, mean_iou
from tolerance import near
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from knowledge_distillation import DataError, KnowledgeDistiller


def segformer(width: int, seed: int = 0) -> SegformerForSemanticSegmentation:
    torch.manual_seed(seed)
    stages: dict[str, Any] = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [width, width]}
    stages |= {"num_attention_heads": [1, 1], "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    config = SegformerConfig(**stages, mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=4, initializer_range=0.5)
    config.drop_path_rate = config.classifier_dropout_prob = 0.0
    return SegformerForSemanticSegmentation(config)


def batch(rows: int = 4) -> dict[str, Tensor]:
    scenes = segmentation_scenes(rows, size=32)
    return {name: torch.stack([scene[name] for scene in scenes]) for name in ("pixel_values", "labels")}


def test_channels_are_compared_beside_the_loss_of_each_pixel():
    teacher, student, data = segformer(12, seed=1).eval(), segformer(8), batch()
    with torch.no_grad():
        mine, theirs = (model(data["pixel_values"]).logits for model in (student.train(), teacher))
    assert mine.shape == (4, 4, 8, 8)
    where = [F.log_softmax(logits.flatten(2) / 4.0, -1) for logits in (mine, theirs)]
    channels = 16.0 * F.kl_div(*where, reduction="none", log_target=True).sum(2).mean().item()
    wide = F.interpolate(mine, size=(32, 32), mode="bilinear", align_corners=False)
    entries = [
        {"student": "output.loss", "loss": "own_loss", "name": "pixels"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "channel_wise", "name": "channels"},
    ]
    entries[1] |= {"args": {"temperature": 4.0}, "weight": 3.0}
    settings = {"mixed_precision": "no", "teacher_dtype": "float32", "device": "cpu", "disable_tqdm": True}
    run = KnowledgeDistiller(teacher, student, entries, train_dataloader=[data], **settings)
    losses = run.train_epoch()
    run.close()
    assert losses["pixels"] == pytest.approx(F.cross_entropy(wide, data["labels"]).item(), rel=1e-4)
    assert losses["channels"] == pytest.approx(channels, rel=1e-3)
    assert losses["loss"] == near(losses["pixels"] + 3 * losses["channels"])


def test_intersection_over_union_by_hand():
    references = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    predictions = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 3]])
    # Class 0: 1 of 3; class 1: 2 of 3; class 2: 1 of 2; class 3 neither is nor is predicted where it counts.
    assert mean_iou(predictions, references, classes=4) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert mean_iou(references.clamp(max=2), references, classes=4) == 1.0
    assert mean_iou(predictions, references.clamp(max=3), classes=4, ignored=-1) == pytest.approx(
        (1 / 4 + 2 / 3 + 1 / 2 + 1 / 2) / 4
    )
    assert mean_iou(predictions, torch.full_like(references, 255), classes=4) == 0.0
    with pytest.raises(DataError, match="label 7 is out of range: there are 4 classes, 0 to 3"):
        mean_iou(predictions, torch.full_like(references, 7), classes=4)
    with pytest.raises(DataError, match="predicted class 9 is out of range"):
        mean_iou(torch.full_like(predictions, 9), references, classes=4)


class Oracle(nn.Module):
    """Logits at a quarter of the size, by the colours of the pictures."""

    def forward(self, pixel_values: Tensor) -> Any:
        small = pixel_values[:, 0, ::4, ::4].long()
        return type("Output", (), {"logits": 9.0 * F.one_hot(small, 3).permute(0, 3, 1, 2).float()})


def test_the_evaluator_brings_logits_to_the_size_of_the_labels():
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[0, :8], labels[1, :, 8:] = 1, 2
    data = [{"pixel_values": one[None, None].repeat(1, 3, 1, 1).float(), "labels": one[None]} for one in labels]
    accelerator = Accelerator(cpu=True)
    right = SegmentationEvaluator()(Oracle(), None, data, accelerator)["mean_iou"]
    wrong = [{**one, "labels": 2 - one["labels"]} for one in data]
    assert right > 0.95
    assert SegmentationEvaluator()(Oracle(), None, wrong, accelerator)["mean_iou"] == pytest.approx(1 / 3, abs=0.05)
