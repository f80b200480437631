"""Losses on the candidates of a query: scores and embeddings, lists of any length, and what the batch has to say."""

from __future__ import annotations

import pytest
import reference
import torch
from runs import distiller
from transformers import BertConfig, BertForSequenceClassification

from knowledge_distillation import ConfigError
from knowledge_distillation.losses.ranking import listwise_kl, margin_mse

LOSSES = [margin_mse, listwise_kl]
QUERIES = [[0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5], [3, 1, 3, 1, 1, 3], [0, 1, 2, 3, 4, 5]]


def rows(width: int, seed: int = 0, number: int = 6) -> torch.Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize("widths", [(1, 1), (4, 1), (1, 4), (4, 3)], ids=str)
def test_scores_and_embeddings_of_any_lists_are_those_of_the_twin(loss, query, widths):
    student, teacher = (rows(width, seed) for seed, width in enumerate(widths))
    query = torch.tensor(query)
    value = loss(student, teacher, query)
    twin = getattr(reference, loss.__name__)(student.numpy(), teacher.numpy(), query=query.numpy())
    assert value.shape == (6,) and value.mean().item() == pytest.approx(twin, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_score_more_or_less_for_all_is_no_difference(loss):
    teacher, query = rows(1), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(loss(teacher + 3, teacher, query), torch.zeros(6, dtype=torch.float64))
    assert loss(2 * teacher, teacher, query).sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_other_queries_have_no_part_in_a_list(loss):
    student, teacher, query = rows(1), rows(1, 1), torch.tensor([0, 0, 0, 1, 1, 1])
    changed = student.clone()
    changed[3:] = torch.inf
    torch.testing.assert_close(loss(changed, teacher, query)[:3], loss(student, teacher, query)[:3])


def test_the_first_of_a_list_is_the_positive():
    student, teacher = torch.tensor([[1.0], [4.0], [2.0]]), torch.zeros(3, 1)
    value = margin_mse(student, teacher, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(value, torch.tensor([0.0, 9.0, 1.0]) * 3 / 2)


def model(seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "vocab_size": 40,
        "initializer_range": 0.3,
    }
    return BertForSequenceClassification(BertConfig(num_hidden_layers=2, num_labels=1, **sizes))


def batch(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(2, 26).view(6, 4), "attention_mask": torch.ones(6, 4, dtype=torch.long), **more}


ENTRY = {"teacher": "output.logits", "student": "output.logits", "name": "it"}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_cross_encoder_teaches_by_its_scores(loss):
    one = batch(query=torch.tensor([7, 7, 7, 8, 8, 8]))
    teacher, student = model(0), model(1)
    run = distiller([{**ENTRY, "loss": loss.__name__}], teacher, student, train_dataloader=[one] * 20)
    first = run.train_epoch()["it"]
    assert run.train_epoch()["it"] < first / 2
    run.close()


def test_a_cross_encoder_teaches_a_model_of_embeddings():
    entry = {**ENTRY, "student": "output.sentence_embedding", "loss": "margin_mse"}
    run = distiller([entry], model(0), model(1), train_dataloader=[batch(query=torch.tensor([7, 7, 7, 8, 8, 8]))] * 20)
    first = run.train_epoch()["it"]
    assert run.train_epoch()["it"] < first / 2
    run.close()


def test_without_a_query_it_says_what_would_do():
    message = (
        "loss margin_mse needs 'query', which is neither in args nor a key of the batch .*equal numbers for the rows"
    )
    with pytest.raises(ConfigError, match=message):
        distiller([{**ENTRY, "loss": "margin_mse"}], model(0), model(1), train_dataloader=[batch()]).plan()


def test_a_query_is_one_number_a_row():
    with pytest.raises(ConfigError, match=r"found \(2,\), and the student has 6 rows, the teacher 6"):
        listwise_kl(rows(1), rows(1), torch.tensor([0, 0]))
