"""The embedding of a text: pooled as the entry says or as the model's folder says, padding never counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from exact import batches
from families import tiny
from runs import distiller, furthest, weights
from transformers import AutoModel, BertConfig, BertModel

from knowledge_distillation import ConfigError, student_from_teacher
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.config.parse import parse_config
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import catalogue

NAME = "output.sentence_embedding"
ENTRY = {"teacher": NAME, "student": NAME, "loss": "mse", "name": "it"}
POOLINGS = ("mean", "cls", "last", "weighted_mean")


def model(layers: int = 3, seed: int = 0, **changes) -> BertModel:
    sizes = {"vocab_size": 40, "intermediate_size": 24, "num_attention_heads": 2, "hidden_size": 16, **changes}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(seed)
    config = BertConfig(num_hidden_layers=layers, max_position_embeddings=32, initializer_range=0.3, **sizes)
    return BertModel(config).eval()


def inputs(lengths: tuple[int, ...] = (5, 2, 3), more: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
    """Texts of these lengths, padded to the longest and by some more."""
    generator = torch.Generator().manual_seed(3)
    longest = max(lengths) + more
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest)
    for row, length in enumerate(lengths):
        place = slice(longest - length, longest) if left else slice(length)
        ids[row, place] = torch.randint(2, 40, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def by_hand(hidden: np.ndarray, mask: np.ndarray, pooling: str, normalize: bool) -> np.ndarray:
    """Token by token, of the tokens that count alone."""
    rows = []
    for states, kept in zip(hidden, mask, strict=True):
        tokens = [state for state, keep in zip(states, kept, strict=True) if keep]
        counts = {
            "mean": [1] * len(tokens),
            "cls": [1] + [0] * (len(tokens) - 1),
            "last": [0] * (len(tokens) - 1) + [1],
            "weighted_mean": range(1, len(tokens) + 1),
        }[pooling]
        row = sum(count * token for count, token in zip(counts, tokens, strict=True)) / sum(counts)
        rows.append(row / math.sqrt(sum(x * x for x in row)) if normalize else row)
    return np.stack(rows)


def embedding(made: torch.nn.Module, batch: dict[str, torch.Tensor], output: str) -> torch.Tensor:
    offer = catalogue(made, batch).find(Feature("output", output))
    capture = Capture(made, {"it": offer.location})
    try:
        with torch.no_grad():
            return capture(batch)["it"]
    finally:
        capture.close()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_an_embedding_is_made_of_the_tokens_that_count(pooling, normalize, left):
    made, batch = model(), inputs(more=2, left=left)
    found = embedding(made, batch, f"sentence_embedding[{pooling},{'' if normalize else 'un'}normalized]")
    with torch.no_grad():
        hidden = made(**batch).last_hidden_state
    expected = by_hand(hidden.numpy(), batch["attention_mask"].numpy(), pooling, normalize)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_no_embedding(pooling):
    made, output = model(), f"sentence_embedding[{pooling}]"
    torch.testing.assert_close(embedding(made, inputs(), output), embedding(made, inputs(more=4), output))


def test_what_stands_in_padding_does_not_matter_and_a_text_without_tokens_is_0():
    made, batch = model(), inputs((3, 0, 2))
    made.encoder.layer[-1].register_forward_hook(
        lambda module, args, output: torch.where(batch["attention_mask"][..., None] > 0, output, torch.nan)
    )
    found = embedding(made, batch, "sentence_embedding[mean]")
    assert found.isfinite().all() and torch.equal(found[1], torch.zeros(16)) and (found[0] != 0).any()


@pytest.mark.parametrize(
    ("family", "states"),
    [("llama", "last hidden states"), ("t5", "the encoder's"), ("bert", "below the head"), ("modernbert", "normed")],
)
def test_any_text_model_has_one(family, states):
    made = tiny(family)
    with torch.no_grad():
        output = made.model(**made.inputs, output_hidden_states=True)
    hidden = output.get("encoder_hidden_states", output.get("hidden_states"))[-1]
    mask = made.inputs.get("attention_mask", torch.ones(hidden.shape[:2]))
    expected = by_hand(hidden.numpy(), mask.numpy(), "mean", False)
    np.testing.assert_allclose(
        embedding(made.model, made.inputs, "sentence_embedding").numpy(), expected, rtol=1e-5, atol=1e-5
    )


def test_a_picture_has_one_of_all_its_places():
    made = tiny("vit")
    with torch.no_grad():
        hidden = made.model(**made.inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(embedding(made.model, made.inputs, "sentence_embedding"), hidden.mean(1))


def test_heads_that_nobody_reads_do_not_run():
    batch = inputs()
    teacher = tiny("bert").model
    ran = []
    teacher.classifier.register_forward_hook(lambda *_: ran.append("head"))
    run = distiller([ENTRY], teacher, model(2), train_dataloader=[batch])
    plan = str(run.plan())
    ran.clear()
    run.train()
    assert not ran and "teacher: BertForSequenceClassification" in plan and "runs 3 of 3 layers\n" in plan


def test_the_plan_says_how():
    entry = {**ENTRY, "pooling": "cls", "normalize": True}
    run = distiller([ENTRY | {"name": "other"}, entry], model(), model(2), train_dataloader=[inputs()])
    plan = str(run.plan())
    run.close()
    own = "the mean of the tokens of output.last_hidden_state, not normalised, since nothing says otherwise"
    assert f"student: {NAME}: {own}" in plan
    said = f"{NAME}[cls,normalized]: the first of the tokens of output.last_hidden_state, of length 1\n"
    assert f"teacher: {said}" in plan


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_batches_of_12_are_three_of_4_accumulated(pooling):
    def trained(size: int, accumulate: int) -> dict[str, torch.Tensor]:
        student = model(2, seed=1).double()
        run = distiller(
            [{**ENTRY, "pooling": pooling}],
            model().double(),
            student,
            train_dataloader=[{k: v for k, v in one.items() if k != "labels"} for one in batches(24, size)],
            optimizer=torch.optim.SGD(student.parameters(), lr=0.5),
            gradient_accumulation_steps=accumulate,
        )
        run.train()
        return weights(student)

    whole = trained(12, 1)
    assert furthest(whole, trained(4, 3)) < 1e-12
    assert furthest(whole, weights(model(2, seed=1).double())) > 1e-3


def test_a_cache_holds_each_pooling_by_its_name(tmp_path):
    def losses(pooling: str, folder: str) -> dict[str, float]:
        entry = {**ENTRY, "pooling": pooling}
        options = {"teacher_cache": str(tmp_path / folder), "teacher_cache_dtype": "float32"}
        return distiller([entry], model(), model(2), train_dataloader=[inputs()], **options).train()

    first = losses("mean", "one")
    assert losses("mean", "one") == first
    with pytest.raises(Exception, match=r"sentence_embedding\[mean,unnormalized\]"):
        losses("cls", "one")
    assert losses("cls", "other") != first


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "sentence_embedding"),
        ({"pooling": "cls"}, "sentence_embedding[cls]"),
        ({"normalize": True}, "sentence_embedding[normalized]"),
        ({"pooling": "last", "normalize": False}, "sentence_embedding[last,unnormalized]"),
    ],
)
def test_an_entry_says_it_of_both_sides(keys, name):
    (entry,) = parse_config([{**ENTRY, **keys}]).check().entries
    assert entry.student == entry.teacher == (Feature("output", name),)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {**ENTRY, "pooling": "means"},
            "pooling is one of mean, cls, last, weighted_mean; found 'means'. Nearest: mean",
        ),
        (
            {"student": "output.logits", "teacher": "output.logits", "loss": "mse", "pooling": "cls"},
            "pooling is that of output.sentence_embedding, and no side of the entry is one without brackets",
        ),
        ({**ENTRY, "normalize": "yes"}, "normalize is true or false; found 'yes'"),
        (
            {**ENTRY, "student": f"{NAME}[men]"},
            "stands one of mean, cls, last, weighted_mean, and normalized or unnormalized; found 'men'. Nearest: mean",
        ),
        ({**ENTRY, "student": "output.sentence_embeding"}, "Nearest: sentence_embedding."),
    ],
)
def test_a_pooling_that_is_none_is_an_error(entry, message):
    with pytest.raises(ConfigError) as error:
        distiller([entry], model(), model(2), train_dataloader=[inputs()]).plan()
    assert message in str(error.value)


# --- what a model's folder says ----------------------------------------------------------------------------------

FLAGS = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def folder(path, pooling: dict, kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"), inside: str = ""):
    """A folder as sentence-transformers writes them."""
    model().save_pretrained(path / inside)
    places = {"Transformer": inside, "Pooling": "1_Pooling"}
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": places.get(kind, f"{n}_{kind}"),
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path / inside


@pytest.mark.parametrize(
    ("pooling", "kinds", "inside", "expected"),
    [
        (FLAGS, ("Transformer", "Pooling", "Normalize"), "", "cls,normalized"),
        (FLAGS, ("Transformer", "Pooling"), "0_Transformer", "cls,unnormalized"),
        ({"pooling_mode": "lasttoken"}, ("Transformer", "Pooling"), "", "last,unnormalized"),
        ({"pooling_mode": ["weightedmean"]}, ("Transformer", "Pooling"), "", "weighted_mean,unnormalized"),
    ],
)
def test_a_folder_of_sentence_transformers_says_its_pooling(tmp_path, pooling, kinds, inside, expected):
    loaded = AutoModel.from_pretrained(folder(tmp_path, pooling, kinds, inside))
    for made in (loaded, student_from_teacher(loaded, [1, 3])):
        names = catalogue(made, inputs())
        assert str(names.find(Feature("output", "sentence_embedding")).location.pooling) == expected
        other = names.find(Feature("output", "sentence_embedding[mean]")).location.pooling
        assert str(other) == f"mean,{expected.partition(',')[2]}"


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        (
            {"pooling_mode": "max"},
            ("Transformer", "Pooling"),
            "pools by max: mean, cls, lasttoken, weightedmean are read",
        ),
        (
            FLAGS,
            ("Transformer", "Pooling", "Dense"),
            "has a module Dense: Transformer, Pooling and Normalize are read",
        ),
    ],
)
def test_a_folder_whose_embedding_is_another_one_is_an_error(tmp_path, pooling, kinds, message):
    loaded = AutoModel.from_pretrained(folder(tmp_path, pooling, kinds))
    with pytest.raises(ConfigError, match=message):
        distiller([ENTRY], loaded, model(2), train_dataloader=[inputs()]).plan()
    run = distiller([{**ENTRY, "pooling": "mean", "normalize": False}], loaded, model(2), train_dataloader=[inputs()])
    run.plan()
    run.close()
