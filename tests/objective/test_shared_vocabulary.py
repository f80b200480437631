"""Logits of one family whose vocabularies are padded to other widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import distiller, tokenizer_of, weights
from tolerance import assert_near, near
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from knowledge_distillation import ConfigError
from knowledge_distillation.features import catalogue
from knowledge_distillation.features.deferred import TopKLogits, first_classes

SHARED = 31
KL = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "vocabulary": "shared"}


def llama(classes: int, layers: int = 1, seed: int = 0, tied: bool = False) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=classes, num_hidden_layers=layers, initializer_range=0.5, tie_word_embeddings=tied, **sizes
        )
    )


def text(highest: int = SHARED) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, highest, (2, 8), generator=generator)} for _ in range(2)]


def run(teacher: Any, student: Any, config: Any = KL, **options: Any) -> Any:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return distiller([config], teacher, student, **{"train_dataloader": text(), "optimizer": optimizer, **options})


@pytest.mark.case("A6")
@pytest.mark.parametrize(("ours", "theirs"), [(SHARED, 32), (32, SHARED), (40, 40)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_classes_that_both_have_are_compared(monkeypatch, ours, theirs, tied):
    student, teacher = llama(ours, tied=tied), llama(theirs, 2, 1)
    shared = min(ours, theirs)
    with torch.no_grad():
        logits = [m.eval()(**text()[0]).logits[..., :shared].double() for m in (student, teacher)]
    q, p = ([row.softmax(-1) for row in side.flatten(0, 1)] for side in logits)
    expected = sum(float((a * (a.log() - b.log())).sum()) for a, b in zip(p, q, strict=True)) / len(p)
    first = {"train_dataloader": text()[:1]}
    assert run(teacher, llama(ours, tied=tied), **first).train()["loss"] == near(expected)
    whole, chunked = llama(ours, tied=tied), llama(ours, tied=tied)
    run(teacher, whole).train()
    monkeypatch.setattr(catalogue, "LARGE_VOCABULARY", 1)
    made = run(teacher, chunked, **first)
    notes = made.plan().notes
    assert any("compared some tokens at a time" in note for note in notes)
    said = (
        f"the first {shared} of {ours} and {theirs} classes are compared, and no tokenizer is given to check them by"
    )
    assert any(said in note for note in notes) == (ours != theirs)
    assert made.train()["loss"] == near(expected)
    chunked = llama(ours, tied=tied)
    run(teacher, chunked).train()
    assert_near(weights(chunked), weights(whole))


class Bare(nn.Module):
    """A model that does not say how large its vocabulary is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = llama(classes)

    def forward(self, input_ids: Tensor) -> Any:
        return {"logits": self.inner(input_ids).logits}


@pytest.mark.case("A6")
def test_a_tokenizer_that_has_more_entries_is_refused():
    tokenizer = tokenizer_of(32)
    assert len(tokenizer) == 32
    made = run(llama(34), Bare(SHARED), processing_class=tokenizer)
    with pytest.raises(ConfigError, match="the first 31 of 31 and 34 classes are compared, and the tokenizer has 32"):
        made.plan()
    with pytest.raises(ConfigError, match="the tokenizer has 32 entries and the student's vocabulary 31"):
        run(llama(34), llama(SHARED), processing_class=tokenizer).plan()
    notes = run(llama(34), llama(33), processing_class=tokenizer).plan().notes
    assert any("the first 33 of 33 and 34 classes are compared: all 32 of the tokenizer" in note for note in notes)


def test_tokens_beyond_them_are_seen_in_the_batch():
    made = run(llama(40), llama(SHARED + 3), train_dataloader=text(SHARED + 3), config={**KL})
    assert made.plan()
    made = run(llama(SHARED + 3), Bare(SHARED + 3), train_dataloader=text(SHARED + 3))
    assert made.plan()


@pytest.mark.parametrize("classes", [28, 20])
def test_the_largest_of_a_wider_teacher_stay_what_they_are(classes):
    logits = torch.randn(3, 5, 30)
    logits[0, 0, classes:] += 20  # all of the largest are beyond
    top = first_classes(TopKLogits.of(logits, 8), classes)
    whole = TopKLogits.of(logits, 8).tensor()[..., :classes]
    assert top.shape == (3, 5, classes)
    assert_near(top.tensor(), whole)


def test_a_cache_of_the_largest_serves(tmp_path):
    options = {"teacher_cache": tmp_path, "teacher_cache_top_k": 20, "teacher_cache_dtype": "float32"}
    made = run(llama(40, 2, 1), llama(SHARED), **options)
    cached = made.train()["loss"]
    assert cached == pytest.approx(run(llama(40, 2, 1), llama(SHARED)).train()["loss"], rel=0.2)


WRONG = {
    "without the key": ({**KL, "vocabulary": "same"}, "or vocabulary: shared where the last ones are padding"),
    "another word": (
        {**KL, "vocabulary": "sharde"},
        "vocabulary is one of same, shared; found 'sharde'. Nearest: shared",
    ),
    "labels": (
        {"student": "output.logits", "loss": "cross_entropy", "vocabulary": "shared"},
        "vocabulary 'shared' is for logits of two models, and no teacher feature is given",
    ),
    "no logits": (
        {"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "vocabulary": "shared"},
        "vocabulary 'shared' is for the logits of tokens",
    ),
    "a projection": ({**KL, "projection": "linear"}, "leave the projection out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_where_it_does_not_apply_it_is_an_error(name):
    entry, message = WRONG[name]
    with pytest.raises(ConfigError) as error:
        run(llama(40), llama(SHARED), entry).plan()
    assert message in str(error.value)
