"""Reranking: rows into lists of candidates, margins learnt from a teacher, the order of the first ten measured."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from runs import distiller
from sklearn.metrics import ndcg_score
from transformers import AutoModelForSequenceClassification, BertConfig

from knowledge_distillation import DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.evaluation.ranking import ndcg, ranking_scores, reciprocal_rank
from knowledge_distillation.tasks import Reading, find_task

WORDS = "a cat dog sat ran on the red mat far away from home we know it well".split()
TASK = find_task("reranking")
TOKENIZER = train_tokenizer([" ".join(WORDS)], vocab_size=60, model_max_length=24)
COLUMNS = Columns(("query", "positive", "negative", "more"))
GRADED = Columns(("query", "document"), "label")


def texts(number: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 2 + i % 5)) for i in range(number)]


def triples(number: int = 12) -> datasets.Dataset:
    columns = {name: texts(number, seed) for seed, name in enumerate(COLUMNS.text)}
    return datasets.Dataset.from_dict(
        {**columns, "query": [f"{text} {n % 3}" for n, text in enumerate(columns["query"])]}
    )


def reading(columns: Columns = COLUMNS, **options) -> Reading:
    return Reading(columns, TOKENIZER, max_length=20, options=options)


def model(layers: int, seed: int):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **TASK.fields(reading())}
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(TOKENIZER), num_hidden_layers=layers, **sizes)
    return AutoModelForSequenceClassification.from_config(config)


def pairs(query: str, documents: list[str]) -> list[list[int]]:
    return [TOKENIZER(query, document)["input_ids"] for document in documents]


def test_a_row_of_training_is_a_query_with_its_candidates():
    rows = triples(2)
    encoded = TASK.encode(rows, reading(), train=True)
    row = rows[1]
    assert encoded[1]["input_ids"] == pairs(row["query"], [row["positive"], row["negative"], row["more"]])
    assert encoded[1]["labels"] == [1, 0, 0] and encoded[1]["query"] == 1
    batch = TASK.collator(reading())([encoded[0], encoded[1]])
    assert batch["query"].tolist() == [0, 0, 0, 1, 1, 1] and batch["labels"].tolist() == [1, 0, 0, 1, 0, 0]
    assert (
        batch["input_ids"].shape == batch["attention_mask"].shape == (6, max(map(len, sum(encoded["input_ids"], []))))
    )


def test_rows_of_one_query_are_put_together_with_the_relevant_first():
    rows = {"query": ["x", "y", "x", "x"], "document": ["a", "b", "c", "d"], "label": [0, 1, 2, 1]}
    encoded = TASK.encode(datasets.Dataset.from_dict(rows), reading(GRADED, candidates=2), train=True)
    assert encoded["input_ids"][:] == [pairs("x", ["c", "d"]), pairs("y", ["b"])]
    assert encoded["labels"][:] == [[1, 1], [1]]


def test_negatives_may_be_lists():
    rows = datasets.Dataset.from_dict({"query": ["x"], "positive": ["a"], "negatives": [["b", "c"]]})
    encoded = TASK.encode(rows, reading(Columns(("query", "positive", "negatives"))), train=True)
    assert encoded[0]["input_ids"] == pairs("x", ["a", "b", "c"])


def test_a_student_learns_the_teachers_margins_and_is_measured_on_lists():
    rows, how = triples(), reading()
    entries = TASK.fit(
        [{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "name": "it"}]
    )
    dev = TASK.encode(rows, how, train=False)
    teacher, student = model(3, 0), model(2, 1)
    run = distiller(
        [*entries, *TASK.hard_entries()],
        teacher,
        student,
        train_dataset=TASK.encode(rows, how, train=True),
        eval_dataset=dev,
        data_collator=TASK.collator(how),
        processing_class=TOKENIZER,
        evaluator=TASK.evaluator(rows, dev, how),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=5,
        num_train_epochs=6,
    )
    first = run.train_epoch()["it"]
    found = run.train()
    assert entries[0]["loss"] == "margin_mse" and found["it"] < first / 2
    for who, one in (("", student), ("teacher_", teacher)):
        lists = []
        for row in rows:
            said = list(
                TASK.predict(
                    one,
                    datasets.Dataset.from_dict(
                        {"q": [row["query"]] * 3, "d": [row["positive"], row["negative"], row["more"]]}
                    ),
                    reading(Columns(("q", "d"))),
                )
            )
            lists.append([score["score"] for score in said])
        best = [1 + sum(score > one[0] for score in one[1:]) for one in lists]
        assert found[f"eval_{who}mrr@10"] == pytest.approx(np.mean([1 / rank for rank in best]))
        assert found[f"eval_{who}ndcg@10"] == pytest.approx(ndcg_score([[1, 0, 0]] * len(lists), lists, k=10))


@pytest.mark.parametrize("seed", range(5))
def test_the_metrics_are_those_of_scikit_learn_and_of_counting(seed):
    generator = np.random.default_rng(seed)
    scores, query = generator.normal(size=120), generator.integers(0, 5, 120)
    relevance = generator.choice([0.0, 0.0, 0.0, 1.0, 2.0], 120)
    found = ranking_scores(scores, query, relevance)
    gains, ranks = [], []
    for number in range(5):
        mine = query == number
        gains.append(ndcg_score([relevance[mine]], [scores[mine]], k=10))
        order = sorted(zip(scores[mine], relevance[mine], strict=True), reverse=True)
        ranks.append(next((1 / place for place, (_, value) in enumerate(order[:10], 1) if value > 0), 0.0))
    assert found == {"ndcg@10": pytest.approx(np.mean(gains)), "mrr@10": pytest.approx(np.mean(ranks))}


def test_what_stands_after_ten_places_is_not_found():
    late = np.array([0.0] * 10 + [1.0])
    assert reciprocal_rank(late) == ndcg(late) == 0 and reciprocal_rank(late[1:]) == 0.1
    none = ranking_scores(np.zeros(4), np.array([0, 0, 1, 1]), np.array([1.0, 0, 0, 0]))
    assert none == {"ndcg@10": 1.0, "mrr@10": 1.0}  # a query without a relevant document does not count


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            {"query": ["x"], "document": ["a"]},
            Columns(("query", "document")),
            "columns query, document and no label",
        ),
        ({"query": ["x", "y"], "document": ["a", "b"], "label": [1, 0]}, GRADED, "has one document alone"),
        (
            {"query": ["x", "x"], "document": ["a", "b"], "label": ["1", "no"]},
            GRADED,
            "row 1 has 'no' in column",
        ),
    ],
)
def test_rows_that_cannot_be_ranked(rows, columns, message):
    with pytest.raises(DataError, match=message):
        TASK.encode(datasets.Dataset.from_dict(rows), reading(columns), train=True)
