"""A teacher of another width, along the directions in which its embeddings vary most: fitted before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import bert, distiller, same, weights
from sklearn.decomposition import PCA
from training_script import collate, rows

from knowledge_distillation import Callback, ConfigError, MultiLayerBasedDistillationLoss

NAME = "output.sentence_embedding"
ENTRY = {"teacher": NAME, "student": NAME, "loss": "cos", "name": "it", "teacher_projection": "pca"}
KEY = "projections.it:teacher.components"


def run(entry: dict = ENTRY, **options):
    data = {"train_dataset": rows(40), "data_collator": collate, "per_device_train_batch_size": 8}
    return distiller([entry], bert(width=24), bert(2, dropout=0.1, seed=1), **{**data, **options})


def embeddings(model) -> np.ndarray:
    """Of all rows, text by text."""
    with torch.no_grad():
        hidden = [model.eval().bert(torch.tensor([row["input_ids"]])).last_hidden_state[0] for row in rows(40)]
    return torch.stack([one.mean(0) for one in hidden]).numpy()


def test_it_is_that_of_scikit_learn_on_the_teachers_embeddings():
    made = run()
    made.train_epoch()
    found = made.loss_model.state_dict()[KEY].numpy()
    made.close()
    expected = PCA(16, svd_solver="full").fit(embeddings(bert(width=24))).components_
    signs = np.sign((found * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(found, signs * expected, atol=2e-3)
    assert all(row[np.abs(row).argmax()] > 0 for row in found)


def test_it_is_fitted_on_so_many_rows():
    def components(number: int) -> torch.Tensor:
        made = run({**ENTRY, "teacher_projection": {"type": "pca", "rows": number}})
        made.train_epoch()
        made.close()
        return made.loss_model.state_dict()[KEY]

    few, more, all_of_them = components(20), components(24), components(1000)
    assert torch.equal(few, more) and not torch.allclose(few, all_of_them)  # whole batches of 8


def test_a_run_with_it_is_a_run_with_the_one_it_made_loaded(tmp_path):
    fitted = run(output_dir=str(tmp_path / "fitted"), save_steps=2)
    fitted.train()
    loaded = run({**ENTRY, "projection_checkpoint": str(tmp_path / "fitted")})
    loaded.train()
    assert same(weights(fitted.student), weights(loaded.student))
    assert same(weights(fitted.loss_model), weights(loaded.loss_model))


class Breaks(Callback):
    def on_step_end(self, trainer) -> None:
        if trainer.progress.step == 7:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_in_the_very_same_weights(tmp_path):
    options = {"save_steps": 2, "num_train_epochs": 2}
    whole = run(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    folder = str(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run(output_dir=folder, **options, callbacks=[Breaks()]).train()
    resumed = run(output_dir=folder, **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.student), weights(resumed.student))
    assert torch.equal(resumed.loss_model.state_dict()[KEY], whole.loss_model.state_dict()[KEY])


def test_a_cache_serves_it(tmp_path):
    plain = run()
    plain.train()
    options = {"teacher_cache": str(tmp_path), "teacher_cache_dtype": "float32"}
    for _ in range(2):
        cached = run(**options)
        cached.train()
        assert same(weights(plain.student), weights(cached.student))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_projection": "none", "projection": "pca"}, "projection pca is fitted to what does not change"),
        (
            {"teacher_projection": {"type": "pca", "width": 30}},
            "projection pca makes features narrower: found 24 to 30",
        ),
        ({"teacher": "layer4.hidden_states", "student": "layer2.hidden_states"}, "projection pca does not apply to a"),
        (
            {"teacher_projection": {"type": "pca", "rows": 0}},
            "rows of teacher_projection is a whole number of 1 or more",
        ),
    ],
)
def test_where_it_does_not_fit_an_error_says_so(change, message):
    with pytest.raises(ConfigError, match=message):
        run({**ENTRY, **change}).plan()


def test_a_loop_of_ones_own_cannot_fit_it():
    entry = {**ENTRY, "teacher": "output.logits", "student": "output.logits", "loss": "mse"}
    made = MultiLayerBasedDistillationLoss([entry])
    teacher, student = ({"logits": torch.randn(4, width)} for width in (5, 3))
    with pytest.raises(ConfigError, match="pca is fitted by KnowledgeDistiller; in a loop of your own load one"):
        made.bind_outputs(teacher, student, {}, {})
