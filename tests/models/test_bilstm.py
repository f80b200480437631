"""The BiLSTM reads what nn.LSTM reads from packed sequences, keeps pairs apart, and is a model like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import HARD, SOFT, TINY_BERT, VOCABULARY, bert, distill, distiller, same, weights, written
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModelForSequenceClassification, BertTokenizer

from knowledge_distillation import ConfigError
from knowledge_distillation.data import train_word_tokenizer
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.models import BiLSTMConfig, BiLSTMForSequenceClassification
from knowledge_distillation.models.embeddings import begin_with_teacher, principal_components, vectors_of_tokens

SEPARATOR = 3
SIZES = {"vocab_size": VOCABULARY, "embedding_size": 8, "hidden_size": 12, "classifier_size": 10, "num_labels": 2}
POOLED = {
    "max": lambda states: states.max(0).values,
    "mean": lambda states: states.mean(0),
    "last": lambda states: torch.cat([states[-1, :6], states[0, 6:]]),
}


def bilstm(**changes: object) -> BiLSTMForSequenceClassification:
    torch.manual_seed(0)
    return BiLSTMForSequenceClassification(BiLSTMConfig(**{**SIZES, "sep_token_id": SEPARATOR, **changes})).eval()


def tokens() -> tuple[Tensor, Tensor]:
    """Four rows of two sentences: ended by separators, without a second one, of padding at the end."""
    ids = torch.tensor(
        [
            [5, 7, 9, SEPARATOR, 8, 6, SEPARATOR],
            [SEPARATOR, 5, 5, 12, SEPARATOR, 0, 0],
            [9, 4, 8, 11, 30, 6, SEPARATOR],
            [17, SEPARATOR, SEPARATOR, 21, 0, 0, 0],
        ]
    )
    return ids, (ids != 0).long()


def read_by_torch(model: BiLSTMForSequenceClassification, ids: Tensor) -> Tensor:
    """(length, hidden_size): the states of one sentence, by torch's own bidirectional LSTM on a packed sequence."""
    states = model.embeddings(ids)[None]
    for layer in model.layers:
        twin = nn.LSTM(states.shape[-1], 6, batch_first=True, bidirectional=True)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(twin, name).data = getattr(layer.ahead, name).data
            getattr(twin, f"{name}_reverse").data = getattr(layer.behind, name).data
        packed = pack_padded_sequence(states, torch.tensor([len(ids)]), batch_first=True)
        states, _ = pad_packed_sequence(twin(packed)[0], batch_first=True)
    return states[0]


def by_hand(model: BiLSTMForSequenceClassification, row: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States (L, D) of one row and its pooled vector, sentence by sentence."""
    ids = row[mask.bool()]
    cut = len(ids)
    if model.config.sentence_pairs and (ids == SEPARATOR).any():
        cut = int((ids == SEPARATOR).nonzero()[0]) + 1
    parts = [part for part in (ids[:cut], ids[cut:]) if len(part)]
    states = [read_by_torch(model, part) for part in parts]
    pooled = [POOLED[model.config.pooling](one) for one in states]
    if not model.config.sentence_pairs:
        return torch.cat(states), pooled[0]
    u, v = pooled if len(pooled) == 2 else (pooled[0], torch.zeros(12))
    return torch.cat(states), torch.cat([u, v, (u - v).abs(), u * v])


# --- what it reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("pairs", [False, True])
def test_states_and_sentences_are_those_of_packed_sequences_one_at_a_time(pooling, pairs):
    model = bilstm(pooling=pooling, sentence_pairs=pairs, num_hidden_layers=2)
    ids, mask = tokens()
    output = model(ids, mask, output_hidden_states=True)
    for row in range(len(ids)):
        states, pooled = by_hand(model, ids[row], mask[row])
        torch.testing.assert_close(output.hidden_states[2][row, mask[row].bool()], states)
        torch.testing.assert_close(output.pooler_output[row], pooled)
    expected = model.classifier(model.dense(output.pooler_output).relu())
    torch.testing.assert_close(output.logits, expected)


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("pairs", [False, True])
def test_padding_on_either_side_changes_nothing(pooling, pairs):
    model = bilstm(pooling=pooling, sentence_pairs=pairs)
    ids, mask = tokens()
    padded = nn.functional.pad(ids, (2, 3), value=9), nn.functional.pad(mask, (2, 3))
    one, other = model(ids, mask, output_hidden_states=True), model(*padded, output_hidden_states=True)
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.hidden_states[1], other.hidden_states[1][:, 2:-3])
    assert not other.hidden_states[1][padded[1] == 0].any()


def test_gradients_are_those_of_packed_sequences():
    model = bilstm(pooling="mean")
    ids, mask = tokens()
    by_hand_too = torch.stack([by_hand(model, row, kept)[1] for row, kept in zip(ids, mask, strict=True)])
    found, expected = (
        torch.autograd.grad(pooled.square().sum(), model.embeddings.weight)
        for pooled in (model(ids, mask).pooler_output, by_hand_too)
    )
    torch.testing.assert_close(found, expected)


def test_labels_add_a_loss():
    ids, mask = tokens()
    output = bilstm()(ids, mask, labels=torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 1, 0])))
    scores = torch.tensor([0.0, 1.0, 2.5, 5.0])
    output = bilstm(num_labels=1)(ids, mask, labels=scores)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - scores).square().mean())


# --- a model like any other ------------------------------------------------------------------------------------------


def test_it_is_saved_and_loaded_by_the_auto_classes(tmp_path):
    model = bilstm(sentence_pairs=True, num_hidden_layers=2, pooling="last", train_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded, told = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert type(loaded) is BiLSTMForSequenceClassification and same(weights(model), weights(loaded))
    assert torch.equal(model(*tokens()).logits, loaded.eval()(*tokens()).logits)
    loaded(*tokens()).logits.sum().backward()
    assert loaded.embeddings.weight.grad is None and loaded.classifier.weight.grad is not None


def test_its_features_have_the_ready_made_names():
    ids, mask = tokens()
    names = catalogue(bilstm(num_hidden_layers=2), {"input_ids": ids, "attention_mask": mask})
    found = {str(feature): (known.kind, known.shape) for feature, known in names.offers.items()}
    assert found == {
        "embedding_layer.embedding": ("tokens", (4, 7, 8)),
        "layer1.hidden_states": ("tokens", (4, 7, 12)),
        "layer2.hidden_states": ("tokens", (4, 7, 12)),
        "output.logits": ("vector", (4, 2)),
        "output.pooler_output": ("vector", (4, 12)),
    }


def test_a_transformer_teaches_its_states_and_logits():
    entries = [*SOFT, *HARD, {"teacher": "layer4.hidden_states", "student": "layer-1.hidden_states", "loss": "mse"}]
    student = bilstm(dropout=0.0, embedding_dropout=0.0)
    run = distiller(entries, student=student, num_train_epochs=15)
    first = run.train_epoch()
    last = [run.train_epoch() for _ in range(14)][-1]
    assert last["loss"] < 0.7 * first["loss"]


def test_an_embedding_that_does_not_train_stays_as_it_is():
    student = bilstm(train_embeddings=False)
    before = weights(student)
    run = distiller(student=student)
    assert "embeddings.weight" in " ".join(run.plan().notes)
    run.train()
    after = weights(student)
    assert torch.equal(before["embeddings.weight"], after["embeddings.weight"])
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_layers_lists_a_saved_one(tmp_path):
    bilstm().save_pretrained(tmp_path)
    for name in ("bilstm", tmp_path):
        output = distill("layers", name).output
        assert "BiLSTMForSequenceClassification" in output and "output.pooler_output" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "maxx"}, "pooling 'maxx' is unknown. Nearest: max. Known: max, mean, last"),
        ({"hidden_size": 7}, "hidden_size is 7; it must be even"),
        ({"classifier_size": 0}, "classifier_size is 0; it must be at least 1"),
        ({"dropout": 1.5}, r"dropout is 1.5; it must be in \[0, 1\)"),
        ({"sentence_pairs": True, "sep_token_id": None}, "sentence_pairs needs sep_token_id"),
    ],
)
def test_bad_sizes_are_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        bilstm(**changes)


# --- embeddings of the teacher ---------------------------------------------------------------------------------------


def test_an_embedding_as_wide_as_the_teachers_is_the_teachers_as_large_as_the_students_was():
    teacher, student = bert(width=8), bilstm()
    vectors = teacher.get_input_embeddings().weight
    scale = student.embeddings.weight.std() / vectors.std()
    begin_with_teacher(student, teacher)
    assert scale > 5
    torch.testing.assert_close(student.embeddings.weight[1:], vectors[1:] * scale)
    assert not student.embeddings.weight[0].any()


def test_a_narrower_embedding_is_the_best_of_its_rank():
    vectors = torch.randn(40, 16) @ torch.randn(16, 16)
    found = principal_components(vectors, 5).numpy()
    centred = vectors.numpy() - vectors.numpy().mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    best = (left[:, :5] * sizes[:5]) @ (left[:, :5] * sizes[:5]).T  # of rank 5, nearest to all inner products
    np.testing.assert_allclose(found @ found.T, best, rtol=1e-3, atol=1e-3)


def test_a_word_begins_as_the_mean_of_its_pieces():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "good", "un", "##s"]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))})
    words = train_word_tokenizer(["good films", "films ?"])
    teacher, student = bert(width=8), bilstm(vocab_size=len(words))
    scale = student.embeddings.weight.std()
    begin_with_teacher(student, teacher, tokenizer, words)
    vectors = teacher.get_input_embeddings().weight
    found = vectors_of_tokens(vectors.detach(), tokenizer, words, len(words))
    known, read = words.get_vocab(), tokenizer.get_vocab()
    torch.testing.assert_close(found[known["films"]], (vectors[read["film"]] + vectors[read["##s"]]) / 2)
    torch.testing.assert_close(found[known["good"]], vectors[read["good"]])
    torch.testing.assert_close(found[known["?"]], vectors[read["[UNK]"]])
    torch.testing.assert_close(found[known["[SEP]"]], vectors[read["[SEP]"]])
    torch.testing.assert_close(student.embeddings.weight[1:], (found * scale / found.std())[1:])


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"vocab_size": 30}, "has 40 tokens and the student's 30: they read different"),
        ({"embedding_size": 24}, "embedding is 24 wide and the teacher's 16"),
    ],
)
def test_an_embedding_that_does_not_fit_is_said(student, message):
    with pytest.raises(ConfigError, match=message):
        begin_with_teacher(bilstm(**student), bert())


def test_a_recipe_builds_one_with_the_teachers_embedding(tmp_path):
    described = {"model_type": "bilstm", "hidden_size": 12, "embedding_size": 16, "embeddings": "teacher"}
    soft = {"distill_config": [*SOFT, *HARD], "output_dir": str(tmp_path / "run")}
    done = distill("run", written(tmp_path, student=described, **soft))
    assert done.exit_code == 0, done.output
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert (loaded.config.embedding_size, loaded.config.sentence_pairs) == (16, False)

    odd = distill("check", written(tmp_path, student={**described, "embeddings": "techer"}, **soft))
    assert odd.exit_code == 2 and "embeddings of a student can be 'teacher'; found 'techer'" in odd.output
    wide = distill("check", written(tmp_path, student={**described, "embedding_size": 17}, **soft))
    assert wide.exit_code == 2 and f"17 wide and the teacher's {TINY_BERT['hidden_size']}" in wide.output
