"""Tiny models of their own configs, and short runs on encoded rows, for tests of tasks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.tasks import Reading, Task

BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLAIN = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "num_train_epochs": 1, "logging_steps": 1}


def bert_config(vocabulary: int, layers: int = 1, seed: int = 0, **fields: Any) -> BertConfig:
    return BertConfig(vocab_size=vocabulary, num_hidden_layers=layers, **{**BERT, **STILL, **fields})


def classifier(task: Task, reading: Reading, layers: int = 1, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = bert_config(len(reading.tokenizer), layers, initializer_range=0.3, **task.fields(reading))
    return AutoModelForSequenceClassification.from_config(config)


def read(task: Task, data: Any, text: tuple[str, ...], label: str, texts: list[str], **options: Any) -> Reading:
    columns = Columns(text, label)
    names = task.class_names({"train": data}, columns, options)
    return Reading(columns, train_tokenizer(texts, vocab_size=80), names, options=options)


def trained(task: Task, reading: Reading, data: Any, entries: Any, teacher: Any = None, **settings: Any) -> Any:
    """A short run by a task's own metrics; the run, and what it returned."""
    encoded, resume = task.encode(data, reading, False), settings.pop("resume", False)
    run = KnowledgeDistiller(
        teacher,
        settings.pop("student", None) or classifier(task, reading, seed=1),
        task.fit(entries),
        train_dataset=task.encode(data, reading, True),
        eval_dataset=encoded,
        processing_class=reading.tokenizer,
        data_collator=task.collator(reading),
        compute_metrics=task.compute_metrics(data, encoded, reading),
        evaluator=task.evaluator(data, encoded, reading),
        **{**PLAIN, "per_device_train_batch_size": 2, **settings},
    )
    return run, run.train(resume_from_checkpoint=resume)
