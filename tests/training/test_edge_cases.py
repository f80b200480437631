"""Where runs meet the unusual: no mask, shared weights, own generators, stops at a boundary, odd models and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from families import tiny
from runs import HARD, HIDDEN, SOFT, TINY_BERT, batches, bert, distill, distiller, same, weights, written
from tolerance import near
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from training_script import collate, rows

from knowledge_distillation import (
    Callback,
    ConfigError,
    DataError,
    EarlyStopping,
    KnowledgeDistiller,
    MultiLayerBasedDistillationLoss,
)
from knowledge_distillation.data.text import train_tokenizer
from knowledge_distillation.teachers.frozen import FrozenTeacher


def refusal(make: Callable[[], Any], error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


def first_loss(config: Any, teacher: nn.Module, student: nn.Module, data: list[Any], **options: Any) -> float:
    """The loss of the first optimizer step."""
    return distiller(config, teacher, student, train_dataloader=data, max_steps=1, **options).train()["loss"]


# --- lengths -------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """One score per class for each token, out of an input that no other model calls so."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


class PairReader(Reader):
    """Reads two ids as one token, so that no input is as long as its output."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.view(len(tokens), -1, 2).sum(-1))


def test_accumulated_batches_of_two_lengths_without_a_mask_are_averaged_over_all_tokens() -> None:
    teacher, student = Reader(0), Reader(1)
    data = [{"tokens": torch.randint(20, (4, length))} for length in (3, 30)]
    one, other = (
        torch.cat([model(batch["tokens"]).flatten(0, 1) for batch in data]).log_softmax(-1).detach()
        for model in (student, teacher)
    )
    wanted = F.kl_div(one, other, reduction="batchmean", log_target=True)
    found = first_loss(SOFT, teacher, student, data, gradient_accumulation_steps=2)
    assert found == near(float(wanted))


def test_where_no_input_tells_the_length_an_average_over_batches_is_refused() -> None:
    data = [{"tokens": torch.randint(10, (4, length))} for length in (6, 60)]
    models = PairReader(0), PairReader(1)
    message = refusal(lambda: first_loss(SOFT, *models, data, gradient_accumulation_steps=2))
    assert "output.logits changes its length from batch to batch and no input has that length" in message
    assert "give the batch an attention_mask" in message
    assert first_loss(SOFT, *models, data) > 0  # batch by batch there is nothing to count
    labelled = [{**batch, "labels": torch.randint(3, (4, batch["tokens"].shape[1] // 2))} for batch in data]
    logits = torch.cat([PairReader(1)(batch["tokens"]).flatten(0, 1) for batch in data]).detach()
    wanted = F.cross_entropy(logits, torch.cat([batch["labels"].flatten() for batch in labelled]))
    found = first_loss(HARD, None, PairReader(1), labelled, gradient_accumulation_steps=2)
    assert found == near(float(wanted))  # labels are as long


@pytest.mark.parametrize("length", [1, 3])
def test_an_input_as_long_as_the_first_batch_by_chance_tells_no_length(length: int) -> None:
    tokens = [torch.randint(20, (4, n)) for n in (length, 30)]
    data = [{"extra": torch.rand(4, length), "tokens": ids} for ids in tokens]
    plain = [{"tokens": ids} for ids in tokens]
    one, other = (distiller(SOFT, Reader(0), Reader(1), train_dataloader=d).train()["loss"] for d in (data, plain))
    assert one == near(other)
    message = refusal(lambda: first_loss(SOFT, Reader(0), Reader(1), data, gradient_accumulation_steps=2))
    assert "no input has that length" in message


def test_an_input_of_one_row_does_not_count_as_the_batch() -> None:
    ids = torch.randint(2, 40, (8, 6))

    def adapt(device: Any, batch: dict[str, Tensor]) -> tuple[Any, Any]:
        inputs = {"position_ids": torch.arange(6)[None], **batch}
        return inputs, inputs

    def loss(*parts: Tensor) -> float:
        options = {"train_data_adaptor": adapt, "gradient_accumulation_steps": len(parts)}
        data = [{"input_ids": part} for part in parts]
        return first_loss(SOFT, bert(initializer_range=0.5), bert(2), data, **options)

    losses = loss(ids), loss(*ids.split(4))
    assert losses[0] > 0.01 and losses[0] == near(losses[1])


def test_scores_of_positions_are_known_from_logits_by_what_grows() -> None:
    settings = bert(2).config
    teacher, student = hf.BertForQuestionAnswering(settings), hf.BertForQuestionAnswering(settings)
    data = [{"input_ids": torch.randint(2, 40, (2, 3))}]
    entry = {"teacher": "output.start_logits", "student": "output.start_logits", "loss": "kl_divergence"}
    kinds = distiller([entry], teacher, student, train_dataloader=data).plan().students[""].kinds
    assert kinds and set(kinds.values()) == {"positions"}
    # As many classes as positions, and as many rows: logits are known by what does not grow.
    plan = distiller(SOFT, bert(num_labels=3), bert(2, num_labels=3), train_dataloader=data).plan()
    kinds = plan.students[""].kinds
    assert kinds and set(kinds.values()) == {"vector"}


BART_MODULES = {
    "encoder": "model.encoder.layers.2.output",
    "decoder": "model.decoder.layers.1.output",
    "attention of the decoder to the encoder": "model.decoder.layers.1.encoder_attn.output[0]",
}


@pytest.mark.parametrize("module", BART_MODULES)
def test_a_module_of_either_stack_has_the_mask_of_its_stack(module: str) -> None:
    """Pads that are appended to one side, up to where both are equally long, change no loss."""
    entry = {"teacher": BART_MODULES[module], "student": BART_MODULES[module], "loss": "mse"}
    ids = {key: torch.randint(3, 50, (2, 7)) for key in ("input_ids", "decoder_input_ids")}
    side = "" if module == "encoder" else "decoder_"
    short = {**ids, f"{side}input_ids": ids[f"{side}input_ids"][:, :4]}
    padded = {**short, f"{side}input_ids": F.pad(short[f"{side}input_ids"], (0, 3))}
    mask = {f"{side}attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)}
    losses = [
        first_loss([entry], tiny("bart", 0.0).model, tiny("bart", 0.0, seed=1).model, [data])
        for data in (short, {**padded, **mask})
    ]
    assert losses[0] > 0 and losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- models --------------------------------------------------------------------------------------------------------


def test_layers_that_are_skipped_at_random_are_not_frozen() -> None:
    data = [{"input_ids": torch.randint(3, 50, (2, 5)), "labels": torch.randint(3, 50, (2, 5))}]
    student = tiny("bart", encoder_layerdrop=0.3, decoder_layerdrop=0.3).model
    for seed in range(8):
        run = distiller(HARD, None, student, train_dataloader=data, seed=seed)
        assert not [name for name in run.plan().unreached if ".layers." in name]
        run.close()


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_compiled_model_is_refused(who: str) -> None:
    models: dict[str, Any] = {"teacher": bert(), "student": bert(2)}
    models[who] = torch.compile(models[who])
    message = refusal(lambda: distiller(SOFT, **models))
    assert (
        message.startswith(f"{who}_model is compiled") and "give the model as it was before torch.compile" in message
    )


def test_a_teacher_in_half_precision_is_called_as_any_model() -> None:
    image, text = tiny("vit", 0.0), tiny("bert", 0.0)
    pixels = image.inputs["pixel_values"]
    teacher = FrozenTeacher(image.model, torch.bfloat16)
    for output in (teacher(pixels), teacher(pixel_values=pixels, output_hidden_states=True)):
        assert output.logits.dtype == torch.float32
        assert all(states.dtype == torch.float32 for states in output.hidden_states or ())
    states = text.model.get_input_embeddings()(text.inputs["input_ids"]).detach()
    logits = FrozenTeacher(text.model, torch.bfloat16)(inputs_embeds=states).logits
    torch.testing.assert_close(logits, text.model(inputs_embeds=states).logits, rtol=0.05, atol=0.05)


def test_the_loss_alone_is_that_of_a_causal_model() -> None:
    model = tiny("gpt2", 0.0)
    labels = model.inputs["input_ids"].masked_fill(model.inputs["attention_mask"] == 0, -100)
    inputs = {**model.inputs, "labels": labels}
    output = model.model(**inputs)
    found = MultiLayerBasedDistillationLoss(HARD)(None, output, None, inputs)
    torch.testing.assert_close(found, output.loss)


# --- stopping and going on -----------------------------------------------------------------------------------------


def own_order(folder: Path, **options: Any) -> KnowledgeDistiller:
    """A run of 9 steps in 3 epochs, in an order drawn from a generator of its own that starts afresh."""
    generator = torch.Generator().manual_seed(11)
    loader = DataLoader(rows(12), batch_size=4, shuffle=True, generator=generator, collate_fn=collate)
    run = {"num_train_epochs": 3, "lr_scheduler_type": "constant", "output_dir": folder, **options}
    return distiller(HARD, None, bert(2, dropout=0.1), train_dataloader=loader, **run)


class Fail(Callback):
    """Ends the run as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, distiller: KnowledgeDistiller) -> None:
        if distiller.progress.step == self.step:
            raise RuntimeError("the machine went down")


@pytest.mark.parametrize("stop", [3, 4, 5, 6], ids="after {} steps".format)
def test_a_loader_with_a_generator_of_its_own_goes_on_in_the_same_order(tmp_path: Path, stop: int) -> None:
    whole = own_order(tmp_path / "whole")
    whole.train()
    own_order(tmp_path / "parts", max_steps=stop).train()
    parts = own_order(tmp_path / "parts")
    parts.train(resume_from_checkpoint=True)
    assert parts.progress.step == 9 and same(weights(whole.student), weights(parts.student))


@pytest.mark.parametrize("every", [3, 4, 6], ids="every {} steps".format)
def test_a_crash_after_a_checkpoint_at_the_end_of_an_epoch_or_within_one(tmp_path: Path, every: int) -> None:
    whole = own_order(tmp_path / "whole", save_steps=every)
    whole.train()
    with pytest.raises(RuntimeError, match="went down"):
        own_order(tmp_path / "parts", save_steps=every, callbacks=[Fail(every + 1)]).train()
    parts = own_order(tmp_path / "parts", save_steps=every)
    parts.train(resume_from_checkpoint=True)
    assert parts.progress.step == 9 and same(weights(whole.student), weights(parts.student))


class ByStep:
    """Scores that depend on the step alone: the best at step 2, or none that is a number."""

    primary_metric, greater_is_better = "score", True

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores, self.run = scores, None

    def __call__(self, student: Any, teacher: Any, dataloader: Any, accelerator: Any) -> dict[str, float]:
        return {"score": self.scores.get(self.run.progress.step, 0.1)}  # type: ignore[attr-defined]


def watched(folder: Path | None, scores: dict[int, float], **options: Any) -> KnowledgeDistiller:
    """A run of at most 15 steps, evaluated and saved after each, with a patience of 4."""
    evaluator = ByStep(scores)
    callbacks = [EarlyStopping(4), *options.pop("callbacks", [])]
    steps = {"num_train_epochs": 5, "eval_steps": 1, "save_steps": 1, "lr_scheduler_type": "constant"}
    run = distiller(evaluator=evaluator, output_dir=folder, callbacks=callbacks, **{**steps, **options})
    evaluator.run = run
    return run


@pytest.mark.parametrize("end", ["stopped", "crashed"])
@pytest.mark.parametrize("step", [1, 4, 5])
def test_early_stopping_ends_a_resumed_run_where_it_ends_a_whole_one(tmp_path: Path, end: str, step: int) -> None:
    whole = watched(tmp_path / "whole", {2: 0.9})
    whole.train()
    assert whole.progress.step == 6
    if end == "stopped":
        watched(tmp_path / "parts", {2: 0.9}, max_steps=step).train()
    else:
        with pytest.raises(RuntimeError, match="went down"):
            watched(tmp_path / "parts", {2: 0.9}, callbacks=[Fail(step)]).train()
    for _ in range(2):  # and once it has stopped it stays so
        parts = watched(tmp_path / "parts", {2: 0.9})
        parts.train(resume_from_checkpoint=True)
        assert parts.progress.step == 6 and same(weights(whole.student), weights(parts.student))


def test_early_stopping_needs_a_metric_and_a_patience() -> None:
    def run() -> None:
        distiller(evaluator=lambda *given: {"score": 1.0}, callbacks=[EarlyStopping()]).train()

    assert "EarlyStopping needs a metric to go by: an evaluator with a primary_metric" in refusal(run)
    assert refusal(lambda: EarlyStopping(0)) == "patience is 1 or more; found 0"


def test_early_stopping_waits_for_a_score_that_is_a_number_no_longer_than_its_patience() -> None:
    run = watched(None, dict.fromkeys(range(20), float("nan")))
    run.train()
    assert run.progress.step == 4


# --- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kl_divergence", "cross_entropy", "soft_cross_entropy"])
def test_a_softmax_over_one_output_is_refused(loss: str) -> None:
    entry = {**SOFT[0], "loss": loss}
    data = batches(labels=False)
    message = refusal(
        lambda: distiller([entry], bert(num_labels=1), bert(2, num_labels=1), train_dataloader=data).plan()
    )
    assert "with one output a softmax is always 1 and the loss 0. Use logits_mse" in message
    distiller([{**entry, "loss": "logits_mse"}], bert(num_labels=1), bert(2, num_labels=1)).plan()


@pytest.mark.parametrize("temperature", [0, -1.5, float("nan")])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    entry = {**SOFT[0], "args": {"temperature": temperature}}
    wanted = f"[0] loss kl_divergence: temperature is above 0; found {temperature}"
    assert wanted in refusal(lambda: distiller([entry]).plan())
    alone = MultiLayerBasedDistillationLoss([entry])
    logits = {"logits": torch.randn(2, 3)}
    assert wanted in refusal(lambda: alone(logits, logits, None, None))


def test_a_wrong_layer_and_a_wrong_argument_of_one_entry_come_together() -> None:
    both = {"teacher": "layer9.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "args": {"scale": 2}}
    unknown = {"teacher": "layer2.hidden_states", "student": "layer7.hidden_states", "loss": "msee"}
    cold = {"teacher": "layer9.logits", "student": "output.logits", "loss": "kl_divergence"}
    message = refusal(lambda: distiller([both, unknown, {**cold, "args": {"temperature": 0}}]).plan())
    for problem in (
        "[0] layer9.hidden_states: the teacher has 4 layers",
        "[0] loss mse takes no argument 'scale'",
        "[1] layer7.hidden_states: the student has 2 layers",
        "[1] unknown loss 'msee'. Nearest: mse.",
        "[2] layer9.logits: the teacher has 4 layers",
        "[2] loss kl_divergence: temperature is above 0; found 0",
    ):
        assert problem in message


# --- data and metrics ----------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(rows(10))


def test_an_iterable_data_set_with_ones_own_optimizer_and_schedule() -> None:
    student = bert(2, seed=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    loader = DataLoader(Stream(), batch_size=4, collate_fn=collate)
    own = {"optimizer": optimizer, "lr_scheduler": schedule, "train_dataloader": loader}
    run = distiller([*HIDDEN, *SOFT], bert(width=24), student, **own, num_train_epochs=2)
    run.plan()
    begun = weights(run.loss_model)
    run.train()
    assert run.progress.step == 6 and optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**6)
    assert len(optimizer.param_groups) == 1 and len(begun) == 2
    assert all(not torch.equal(begun[name], tensor) for name, tensor in weights(run.loss_model).items())


class Answers(nn.Module):
    """A model that returns a plain dict."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key, self.inner = key, bert(2, seed=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        output = self.inner.bert(input_ids, attention_mask)
        return {"pooled": output.pooler_output, self.key: self.inner.classifier(output.pooler_output)}


def test_a_model_that_returns_a_dict_is_evaluated_by_its_logits() -> None:
    def share(prediction: hf.EvalPrediction) -> dict[str, float]:
        assert prediction.predictions.shape == (8, 2) and prediction.label_ids.shape == (8,)
        return {"share": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    def as_two(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"share": float((logits.argmax(-1) == labels).mean())}

    options = {"teacher": bert(), "dev_dataloader": batches(2)}
    scores = [distiller(student=Answers("logits"), compute_metrics=one, **options).train() for one in (share, as_two)]
    assert scores[0] == scores[1] and {"eval_share", "eval_teacher_share", "eval_agreement"} < set(scores[0])
    entry = [{**SOFT[0], "student": "output.scores"}]
    message = refusal(lambda: distiller(entry, student=Answers("scores"), **options).train(), DataError)
    assert "a model's output has no 'logits' to evaluate; it has: pooled, scores. Give an " in message


@pytest.mark.parametrize("form", ["lists", "arrays", "tensors"])
@pytest.mark.parametrize("task", ["tokens", "next token", "translation"])
def test_ragged_labels_are_padded_with_what_does_not_count(task: str, form: str) -> None:
    tokenizer = train_tokenizer(["a few words of text"], 40)
    make = {"lists": list, "arrays": np.array, "tensors": torch.tensor}[form]
    data = [{"input_ids": row["input_ids"], "labels": make(row["input_ids"])} for row in rows(8)]
    if task == "tokens":
        data = [{**row, "labels": make([i % 2 for i in row["input_ids"]])} for row in data]
        student: Any = hf.BertForTokenClassification(bert(2).config)
    elif task == "next token":
        student = tiny("gpt2").model
    else:  # targets are longer than sources
        data = [{**row, "labels": make([5] * (12 - n))} for n, row in enumerate(data)]
        student = tiny("bart", pad_token_id=tokenizer.pad_token_id).model
    seen = []

    def adapt(device: Any, batch: Any) -> tuple[Any, Any]:
        seen.append(batch["labels"])
        return batch, batch

    options = {"train_data_adaptor": adapt, "processing_class": tokenizer, "per_device_train_batch_size": 8}
    metrics = distiller(HARD, None, student, train_dataset=data, **options).train()
    lengths = sorted(len(row["labels"]) for row in data)
    assert metrics["loss"] > 0 and seen[0].shape == (8, lengths[-1]) and seen[0].dtype == torch.int64
    assert sorted((seen[0] != -100).sum(1).tolist()) == lengths and lengths[0] < lengths[-1]


def test_several_real_targets_of_a_row_stay_as_they_are() -> None:
    tokenizer = train_tokenizer(["a few words of text"], 40)
    data = [{"input_ids": row["input_ids"], "labels": [0.25, 0.5, 0.75]} for row in rows(8)]
    entry = {"student": "output.logits", "loss": "mse"}
    run = distiller([entry], None, bert(2, num_labels=3), train_dataset=data, processing_class=tokenizer, max_steps=1)
    assert 0 < run.train()["loss"] < 2
    assert run.batches.peek()["labels"].tolist() == [[0.25, 0.5, 0.75]] * 8


# --- by command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hinton", "layers"])
def test_a_regression_task_by_recipe(tmp_path: Path, method: str) -> None:
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    words = ("man", "dog", "tree", "car")
    lines = [f"{i}\tg\tf\ty\t{i}\ta\tb\ta {words[i % 4]}\tthe {words[i % 3]}\t{i % 11 / 2:.3f}" for i in range(24)]
    (tmp_path / "glue" / "STS-B").mkdir(parents=True)
    for name in ("train", "dev"):
        (tmp_path / "glue" / "STS-B" / f"{name}.tsv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    path = written(tmp_path, task="stsb", distill_config=None, teacher={**TINY_BERT, "num_hidden_layers": 4})
    done = distill("run", path, "--method", method, "--baseline")
    assert done.exit_code == 0, (done.exception, done.output)
    assert "logits_mse" in done.output and "kl_divergence" not in done.output and "pearson" in done.output


def test_a_task_may_be_called_as_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path, task="SST-2")
    for options in ((), ("--task", "SST-2")):
        done = distill("run", path, *options)
        assert done.exit_code == 0 and "accuracy" in done.output, (done.exception, done.output)


def test_the_progress_bar_shows_terms_of_long_configs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Bar:
        def __init__(self, **options: Any) -> None: ...

        def set_postfix(self, values: dict[str, str], refresh: bool) -> None:
            shown.append(values)

        def update(self, steps: int) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    entries = [{**SOFT[0], "name": f"term{n}"} for n in range(9)]
    distiller(entries, disable_tqdm=False).train()
    assert len(shown) == 3 and all(list(values) == ["loss", "term0", "term1", "term2"] for values in shown)
