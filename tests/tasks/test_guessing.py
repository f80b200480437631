<<<<<<< HEAD
"""The task of data is told from its columns."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from knowledge_distillation.tasks.guessing import task_of_data

WORDS, TAGS = [["Ada", "lives"], ["here"]], [["B-per", "O"], ["O"]]
ANSWERS = [{"text": ["a"], "answer_start": [0]}] * 2
=======
"""Which task rows are of: told from their columns, and what these leave open from the model."""

from __future__ import annotations

import datasets
import pytest
from transformers import BertConfig, GPT2Config, T5Config

from knowledge_distillation import ConfigError
from knowledge_distillation.tasks.guessing import task_of_data, task_of_model

TEXT = {"text": ["a", "b"]}
ANSWER = {"text": ["b"], "answer_start": [0]}
WORDS = {"tokens": [["a", "b"], ["c"]]}


def of(columns: dict, label: str | None = None, model: object = None) -> str:
    return task_of_data(datasets.Dataset.from_dict(columns), label, model)[0].name
>>>>>>> 1d761f8 (Words with a list of tags beside them are a tag for each word)


@pytest.mark.parametrize(
    ("columns", "label", "task"),
    [
<<<<<<< HEAD
        ({"tokens": WORDS, "tags": TAGS}, "tags", "token-classification"),
        ({"words": WORDS, "pos": [[1, 2], [3]]}, "pos", "token-classification"),
        ({"tokens": WORDS}, None, "token-classification"),
        ({"text": ["a", "b"], "labels": TAGS}, "labels", "multi-label"),
        ({"words": WORDS, "labels": [["x"], ["x", "y"]]}, "labels", "multi-label"),
        (
            {"id": ["1", "2"], "question": ["?"] * 2, "context": ["a"] * 2, "answers": ANSWERS},
=======
        ({**TEXT, "label": ["x", "y"]}, "label", "text-classification"),
        ({**TEXT, "label": [0, 3]}, "label", "text-classification"),
        ({**TEXT, "label": [1.0, 2.0]}, "label", "text-classification"),
        ({**TEXT, "label": [0.5, 2.0]}, "label", "regression"),
        ({**TEXT, "label": [["x", "y"], []]}, "label", "multi-label"),
        ({**WORDS, "tags": [["O", "B-x"], ["O"]]}, "tags", "token-classification"),
        ({**WORDS, "tags": [["O", "B-x"], ["O"]]}, None, "token-classification"),
        (
            {"question": ["a"], "context": ["b"], "answers": [{"text": ["b"], "answer_start": [0]}]},
>>>>>>> 1d761f8 (Words with a list of tags beside them are a tag for each word)
            None,
            "question-answering",
        ),
    ],
)
<<<<<<< HEAD
def test_columns_tell(columns: dict[str, Any], label: str | None, task: str) -> None:
    found, notes = task_of_data(datasets.Dataset.from_dict(columns), label, None)
    assert found.name == task and task in notes[0]
=======
def test_from_the_columns(columns, label, task):
    assert of(columns, label) == task


def config(cls: type, name: str, **fields: object) -> object:
    return cls(architectures=[name], **fields)


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (config(BertConfig, "BertForSequenceClassification", num_labels=3), "text-classification"),
        (config(BertConfig, "BertForSequenceClassification", num_labels=1), "regression"),
        (
            config(BertConfig, "BertForSequenceClassification", problem_type="multi_label_classification"),
            "multi-label",
        ),
        (config(BertConfig, "BertForTokenClassification"), "token-classification"),
        (config(BertConfig, "BertForQuestionAnswering"), "question-answering"),
        (config(BertConfig, "BertForMaskedLM"), "masked-lm"),
        (config(GPT2Config, "GPT2LMHeadModel"), "causal-lm"),
        (config(T5Config, "T5ForConditionalGeneration"), "seq2seq"),
        (config(BertConfig, "BertModel"), None),
        (BertConfig(), None),
    ],
)
def test_from_the_model(model, task):
    assert task_of_model(model) == task


def test_whole_numbers_are_real_ones_to_a_model_of_one_output():
    model = config(BertConfig, "BertForSequenceClassification", num_labels=1)
    assert of({**TEXT, "label": [1, 4]}, "label", model) == "regression"


def test_text_alone_says_nothing():
    with pytest.raises(ConfigError, match="cannot be told: they have the columns text and no label"):
        of(TEXT)
>>>>>>> 1d761f8 (Words with a list of tags beside them are a tag for each word)
