"""Embeddings of texts: from a teacher's folder and texts alone to a folder that sentence-transformers reads."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from runs import distiller
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModel, BertConfig, BertModel

from knowledge_distillation import ConfigError, DataError, student_from_teacher
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.tasks import Reading, find_task
from knowledge_distillation.tasks.guessing import task_of_data, task_of_model
from knowledge_distillation.tasks.saved import load_saved

WORDS = "a cat dog sat ran on the red mat far away from home we know it well".split()
TASK = find_task("sentence-embedding")
TOKENIZER = train_tokenizer([" ".join(WORDS)], vocab_size=60, model_max_length=24)
NAME = "output.sentence_embedding"


def texts(number: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 2 + i % 7)) for i in range(number)]


def reading(*text: str, label: str | None = None, **options) -> Reading:
    return Reading(Columns(text, label), TOKENIZER, max_length=12, options=options)


def teacher_folder(path, pooling: str = "cls_token", **config):
    """What sentence-transformers would write of a tiny model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, **config}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    BertModel(BertConfig(vocab_size=len(TOKENIZER), **sizes)).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": n, "path": p, "type": f"sentence_transformers.models.{kind}"} for n, (kind, p) in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 11}))
    return str(path)


def by_hand(model, sentences: list[str], cut: int = 12) -> np.ndarray:
    """First tokens, of length 1: one text at a time."""
    rows = []
    for sentence in sentences:
        with torch.no_grad():
            tokens = TOKENIZER(sentence, truncation=True, max_length=cut, return_tensors="pt")
            row = model.eval()(**tokens).last_hidden_state[0, 0].numpy()
        rows.append(row / np.sqrt((row**2).sum()))
    return np.stack(rows)


def test_every_text_is_a_row():
    first, second = texts(3), texts(3, 1)
    rows = datasets.Dataset.from_dict({"one": first, "other": second, "score": [1.0, 2.0, 3.0]})
    encoded = TASK.encode(rows, reading("one", "other", label="score"), train=True)
    expected = [text for pair in zip(first, second, strict=True) for text in pair]
    assert encoded["input_ids"][:] == [TOKENIZER(text)["input_ids"] for text in expected]
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "attention_mask", "length"}
    assert TASK.encode(rows, reading("one", "other", label="score"), train=False)["idx"][:] == list(range(6))


def test_from_a_folder_of_sentence_transformers_to_another(tmp_path):
    """Teacher read, cut, trained on texts, measured on pairs, the best student written and read again."""
    teacher, tokenizer = load_saved(teacher_folder(tmp_path / "teacher"))
    student = student_from_teacher(teacher, [2, 4])
    how = reading("text")
    for model in (teacher, student):
        TASK.settle(model, how)
    train = TASK.encode(datasets.Dataset.from_dict({"text": texts(60)}), how, train=True)
    generator = np.random.default_rng(0)
    pairs = {"one": texts(10, 1), "other": texts(10, 2), "score": generator.random(10).tolist()}
    rows, scored = datasets.Dataset.from_dict(pairs), reading("one", "other", label="score")
    dev = TASK.encode(rows, scored, train=False)
    run = distiller(
        TASK.fit([{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}]),
        teacher,
        student,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        evaluator=TASK.evaluator(rows, dev, scored),
        per_device_eval_batch_size=3,
        per_device_train_batch_size=10,
        num_train_epochs=3,
        output_dir=str(tmp_path / "run"),
    )
    before = run.evaluate()
    found = run.train()
    assert found["eval_agreement"] > before["agreement"]

    sides = {}
    for who, model in (("", run.student), ("teacher_", teacher)):
        one, other = (by_hand(model, pairs[column]) for column in ("one", "other"))
        sides[who] = np.concatenate([one, other])
        said = (one * other).sum(1)
        assert found[f"eval_{who}spearmanr"] == pytest.approx(spearmanr(said, pairs["score"])[0], abs=1e-6)
        assert found[f"eval_{who}pearson"] == pytest.approx(pearsonr(said, pairs["score"])[0], abs=1e-5)
    assert found["eval_agreement"] == pytest.approx((sides[""] * sides["teacher_"]).sum(1).mean(), abs=1e-5)

    folder = tmp_path / "run" / "student"
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [(one["type"].rpartition(".")[2], one["path"]) for one in modules]
    assert kinds == [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    on = [key for key, value in pooling.items() if value is True]
    assert pooling["word_embedding_dimension"] == 16 and on == ["pooling_mode_cls_token"]
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 12
    loaded, _ = load_saved(str(folder))
    assert loaded.config.sentence_embedding == {"pooling": "cls", "normalize": True, "max_length": 12}
    assert type(AutoModel.from_pretrained(folder)) is BertModel


def test_a_teacher_of_another_width_is_compared_pair_by_pair(tmp_path):
    teacher, _ = load_saved(teacher_folder(tmp_path / "teacher"))
    student, _ = load_saved(teacher_folder(tmp_path / "student", hidden_size=8))
    rows = datasets.Dataset.from_dict(
        {"one": texts(8, 1), "other": texts(8, 2), "score": [float(n) for n in range(8)]}
    )
    how = reading("one", "other", label="score")
    dev = TASK.encode(rows, how, train=False)
    entry = {"teacher": NAME, "student": NAME, "loss": "cos", "teacher_projection": "pca"}
    run = distiller(
        [entry],
        teacher,
        student,
        train_dataset=TASK.encode(rows, how, train=True),
        eval_dataset=dev,
        processing_class=TOKENIZER,
        evaluator=TASK.evaluator(rows, dev, how),
        per_device_train_batch_size=16,
    )
    found = run.train()["eval_agreement"]
    said = [(by_hand(one, rows["one"][:]) * by_hand(one, rows["other"][:])).sum(1) for one in (run.student, teacher)]
    assert found == pytest.approx(spearmanr(*said)[0], abs=1e-6)


def test_predictions_are_the_embeddings_row_by_row(tmp_path):
    model, _ = load_saved(teacher_folder(tmp_path))
    one, other = texts(5, 3), texts(5, 4)
    said = list(TASK.predict(model, datasets.Dataset.from_dict({"a": one}), reading("a"), batch_size=2))
    np.testing.assert_allclose([row["embedding"] for row in said], by_hand(model, one), rtol=1e-4, atol=1e-5)
    rows = datasets.Dataset.from_dict({"a": one, "b": other, "more": list(range(5))})
    said = list(TASK.predict(model, rows, reading("a", "b"), batch_size=3))
    np.testing.assert_allclose([row["embedding_b"] for row in said], by_hand(model, other), rtol=1e-4, atol=1e-5)
    expected = (by_hand(model, one) * by_hand(model, other)).sum(1)
    np.testing.assert_allclose([row["similarity"] for row in said], expected, rtol=1e-4, atol=1e-5)


def test_weights_in_a_folder_inside_are_found(tmp_path):
    teacher_folder(tmp_path)
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    for file in tmp_path.iterdir():
        if file.is_file() and file.name != "modules.json":
            file.rename(inner / file.name)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    model, tokenizer = load_saved(str(tmp_path))
    assert model.config.sentence_embedding == {"pooling": "cls", "normalize": True, "max_length": 11}
    assert tokenizer is not None


def test_a_folder_of_embeddings_tells_its_task(tmp_path):
    model, _ = load_saved(teacher_folder(tmp_path))
    assert task_of_model(model) == "sentence-embedding"
    kind, notes = task_of_data(datasets.Dataset.from_dict({"text": texts(3)}), None, model)
    assert kind.name == "sentence-embedding" and "told from the model, and columns of text alone" in notes[0]
    labelled = datasets.Dataset.from_dict({"text": texts(2), "label": ["good", "bad"]})
    assert task_of_data(labelled, "label", model)[0].name == "text-classification"


def test_training_and_evaluation_may_have_columns_of_their_own():
    how = reading("text", "one", "other", label="score")
    assert len(TASK.encode(datasets.Dataset.from_dict({"text": texts(3)}), how, train=True)) == 3
    pairs = datasets.Dataset.from_dict({"one": texts(3), "other": texts(3, 1), "score": [1.0, 2.0, 3.0]})
    assert len(TASK.encode(pairs, how, train=False)) == 6


def test_options_say_it_where_it_is_not_to_be_the_models_own(tmp_path):
    model, _ = load_saved(teacher_folder(tmp_path))
    TASK.settle(model, reading("a", pooling="last", normalize=False))
    assert model.config.sentence_embedding == {"pooling": "last", "normalize": False, "max_length": 12}
    with pytest.raises(
        ConfigError, match="pooling is one of mean, cls, last, weighted_mean; found 'lst'. Nearest: last"
    ):
        TASK.fields(reading("a", pooling="lst"))


def test_what_a_method_says_of_classes_becomes_embeddings():
    hidden = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    logits = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "weight": 0.5}
    hard = {"student": "output.logits", "loss": "cross_entropy"}
    embedded = {"teacher": NAME, "student": NAME, "loss": "cos"}
    assert TASK.fit([hidden, logits, hard]) == [hidden, {**embedded, "weight": 0.5}]
    assert TASK.fit([hard]) == [embedded]
    with pytest.raises(ConfigError, match="sentence-embedding has no labels to learn from"):
        TASK.hard_entries()


def test_scores_are_of_two_columns():
    rows = datasets.Dataset.from_dict({"one": texts(3), "score": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="evaluation with 'score' reads two columns of text, and found one"):
        TASK.encode(rows, reading("one", label="score"), train=False)
    pairs = rows.add_column("other", texts(3, 1)).remove_columns("score").add_column("score", ["1", "x", "2"])
    with pytest.raises(DataError, match="row 1 has 'x' in column 'score', which is no finite number"):
        TASK.evaluator(pairs, pairs, reading("one", "other", label="score"))
