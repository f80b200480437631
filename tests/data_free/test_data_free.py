"""Training without data: what the sources make, what they learn from, what they leave alone, and how they resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import bert, same, weights
from torch import Tensor, nn

from knowledge_distillation import Callback, ConfigError, DataError, KnowledgeDistiller
from knowledge_distillation.data_free import GeneratorSource, Interval, Objective, PseudoSamples, SoftTokens
from knowledge_distillation.data_free.objective import activation, balance, one_hot
from knowledge_distillation.models import ImageGenerator, VectorGenerator
from knowledge_distillation.presets import data_free
from knowledge_distillation.training.callbacks import read_history

SOFT = [{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}]
SIZE = (1, 8, 8)


class Net(nn.Module):
    """Two convolutions with what may be disturbed from outside: batch statistics and dropout."""

    def __init__(self, width: int, dropout: float = 0.0, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width * 64, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.dropout(self.conv(image).flatten(1)))


def net(width: int, seed: int = 0, **options: float) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width, **options)


def generator(size: tuple[int, ...] = SIZE, **options: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return ImageGenerator(size, **{"noise_dim": 6, "width": 4, **options})


def generated(size: tuple[int, ...] = SIZE, **options) -> GeneratorSource:
    return GeneratorSource(generator(size), **{"batch_size": 8, "steps_per_epoch": 5, "student_iters": 2, **options})


def banked(size: tuple[int, ...] = SIZE, **options) -> PseudoSamples:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return PseudoSamples(size, **{"number": 36, "batch_size": 8, "student_iters": 2, **options})


SOURCES = pytest.mark.parametrize("make", [generated, banked])


def run(source: object, student: nn.Module | None = None, config: object = SOFT, **options) -> KnowledgeDistiller:
    plain = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-2}
    plain |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "num_train_epochs": 1}
    options.setdefault("train_dataloader", source)
    teacher = net(6, 1)
    teacher.fc.bias.data[0] += 1  # one class before the others
    return KnowledgeDistiller(teacher, student or net(3, 2, dropout=0.2), config, **{**plain, **options})


@SOURCES
def test_the_method_data_free_learns_from_either_source(make):
    """Soft targets and where a layer by number looks, on samples without labels; the student comes nearer."""
    entries = data_free(student_layers=[1], weight=1)
    trained = run(make(), config=entries, num_train_epochs=30)
    trained.train()
    images = torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        taught = trained.teacher(images).softmax(-1)
        before, after = (
            (model.eval()(images).softmax(-1) - taught).abs().mean() for model in (net(3, 2), trained.student)
        )
    assert after < before / 2


# --- generators and objective ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 4, 12)])
def test_an_image_generator_makes_images_of_its_size_and_keeps_no_statistics(size):
    made = ImageGenerator(size, noise_dim=5, width=3)
    assert made(torch.randn(7, 5)).shape == (7, *size)
    assert list(made.buffers()) == []


def test_a_vector_generator_makes_samples_of_any_shape():
    made = VectorGenerator((5, 3), noise_dim=4, width=6)
    assert made(torch.randn(7, 4)).shape == (7, 5, 3) and list(made.buffers()) == []


def test_the_terms_of_dafl_are_those_of_the_paper():
    logits, features = torch.randn(6, 3, dtype=torch.float64) * 3, torch.randn(6, 4, dtype=torch.float64)
    p = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits.tolist()]
    mean = [sum(row[c] for row in p) / 6 for c in range(3)]
    assert one_hot(logits).item() == pytest.approx(-sum(math.log(max(row)) for row in p) / 6)
    assert balance(logits).item() == pytest.approx(sum(m * math.log10(m) for m in mean))
    assert activation(features).item() == pytest.approx(-sum(abs(v) for row in features.tolist() for v in row) / 24)
    assert balance(torch.tensor([[0.0, -math.inf]])).item() == 0  # one class alone: the worst, and no nan


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ({"disagreement": 0}, "objective: every weight is 0"),
        ({"activation": 1}, "objective: activation needs a teacher feature, as fc.input; found ''"),
        ({"loss": "kl_divergenc"}, "unknown loss 'kl_divergenc'. Nearest: kl_divergence."),
        ({"args": {"temprature": 2}}, "objective: loss kl_divergence takes no argument 'temprature'. Nearest: temp"),
    ],
)
def test_an_objective_that_says_nothing_is_an_error(objective, told):
    with pytest.raises(ConfigError) as error:
        Objective(**objective)
    assert told in str(error.value)


def test_scalers():
    values = torch.tensor([-100.0, 0.0, 100.0])
    assert torch.equal(Interval(-1, 3)(values), torch.tensor([-1.0, 1.0, 3.0]))
    assert Interval(slope=4)(torch.ones(())) == torch.tensor(4.0).sigmoid()
    model = bert(layers=1)
    chosen = torch.full((2, 3, 40), -1e9)
    chosen[:, :, 7] = 0
    embedded = SoftTokens(model)(chosen)
    assert torch.allclose(embedded, model.get_input_embeddings().weight[7].expand(2, 3, -1))
    assert not embedded.requires_grad


# --- what a source learns, and what it leaves alone ------------------------------------------------------------------


class Watched(Callback):
    """Compares both models before and after the source's own steps: it stands on either side of the source."""

    def __init__(self, source) -> None:
        self.source, self.changed, self.steps = source, [], 0

    def on_init_end(self, distiller) -> None:
        self.source.on_init_end(distiller)

    def on_step_end(self, distiller) -> None:
        models = {"student": distiller.student, "teacher": distiller.teacher.model, "maker": self.source.maker}
        before = {name: weights(model) for name, model in models.items()}
        gradients = [p.grad for p in distiller.student.parameters()]
        self.source.on_step_end(distiller)
        self.changed.append({name for name, model in models.items() if not same(before[name], weights(model))})
        assert all(one is other.grad for one, other in zip(gradients, distiller.student.parameters(), strict=True))
        assert not any(module.training for module in distiller.teacher.model.modules())
        assert all(module.training for module in distiller.student.modules())
        assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.model.parameters())


@SOURCES
def test_the_own_steps_of_a_source_change_what_makes_the_samples_and_nothing_else(make):
    source = make()
    watched = Watched(source)
    distiller = run(list(source), callbacks=[watched])  # batches of its beginning; its steps are called by hand
    before = weights(distiller.student)
    distiller.train()
    assert watched.changed == [set() if step % 2 else {"maker"} for step in range(1, 6)]
    assert not same(before, weights(distiller.student))


@pytest.mark.parametrize("name", ["disagreement", "one_hot", "activation", "balance"])
@SOURCES
def test_each_term_of_the_objective_is_made_smaller(make, name):
    objective = Objective(**{"disagreement": 0.0, name: 1.0}, feature="fc.input")
    rate = {"generator_lr": 0.02} if make is generated else {"pseudo_lr": 0.2}
    steps = {"generator_iters": 8} if make is generated else {"pseudo_iters": 8}
    source = make(objective=objective, student_iters=1, **rate, **steps)
    values: list[float] = []

    class Kept(Callback):
        def on_log(self, distiller, logged) -> None:
            values.append(logged["source_loss"])

    still = {"learning_rate": 0.0, "weight_decay": 0.0}
    run(source, student=net(3, 2), callbacks=[Kept()], **still).train()
    assert len(values) == 5 and values[-1] < values[0] - 0.01


def test_only_the_samples_of_a_batch_move():
    source = banked(student_iters=4)  # an epoch has five steps, the fourth of which is followed by one of the source
    before = source.samples()
    run(source).train()
    moved = (source.samples() != before).flatten(1).any(1)
    assert moved.sum() == 8


@SOURCES
def test_every_own_step_is_made_of_something_else(make):
    source = make(student_iters=1, **{"generator_iters" if make is generated else "pseudo_iters": 2})
    codes: list[Tensor] = []
    source.maker.register_forward_pre_hook(lambda module, given: codes.append(given[0]))
    run(source, student=net(3, 2)).train()  # nothing in it draws a random number
    assert len({tuple(code.flatten().tolist()) for code in codes[-15:]}) == 15  # of 5 batches and 10 own steps


def test_an_epoch_of_a_bank_is_every_sample_once():
    source = banked(scaler=Interval(0, 1))
    batches = [batch[0] for batch in source]
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 4] and len(source) == 5
    rows = torch.cat(batches).flatten(1)
    assert len(rows.unique(dim=0)) == 36 and 0 < rows.min() and rows.max() < 1
    assert torch.equal(rows.sort(0)[0], source.samples().flatten(1).sort(0)[0])
    assert not rows.requires_grad


def test_resample_ratio_is_the_share_of_batches_of_new_noise():
    def fresh(ratio: float) -> list[bool]:
        batches = [batch[0] for batch in generated(resample_ratio=ratio, steps_per_epoch=6)]
        return [bool((one != other).any()) for one, other in zip(batches, batches[1:], strict=False)]

    assert fresh(1.0) == [True] * 5
    assert fresh(0.5) == [False, True, False, True, False]


def test_a_source_is_heard_by_the_loop_once_however_it_is_given():
    for callbacks in ([], None):
        source = generated()
        distiller = run(source, callbacks=[source] if callbacks is None else callbacks)
        assert [callback for callback in distiller.callbacks if callback is source] == [source]


def test_attention_transfer_is_an_ordinary_entry():
    entry = {"teacher": "conv.output", "student": "conv.output", "loss": "attention_transfer", "weight": 10}
    metrics = run(generated(), config=[*SOFT, entry]).train()
    assert metrics["attention_transfer:conv_output"] > 0


@SOURCES
def test_a_source_learns_in_bf16(make):
    source = make(student_iters=1)
    before = weights(source.maker)
    assert math.isfinite(run(source, mixed_precision="bf16").train()["loss"])
    assert not same(before, weights(source.maker))


class Partly(nn.Module):
    """A generator of which one parameter learns, one is frozen and one does nothing."""

    noise_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.learns, self.frozen, self.idle = nn.Linear(4, 64), nn.Linear(4, 64), nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        return (self.learns(noise) + self.frozen(noise)).unflatten(1, (1, 8, 8))


def test_a_generator_may_have_parameters_that_do_not_learn():
    generator = Partly()
    before = weights(generator)
    run(GeneratorSource(generator, batch_size=8, steps_per_epoch=2, student_iters=1)).train()
    changed = {
        name.split(".")[0] for name, value in weights(generator).items() if not torch.equal(value, before[name])
    }
    assert changed == {"learns"}


def test_in_a_loop_of_ones_own_the_source_learns_as_well():
    source = generated()
    before = weights(source.maker)
    distiller = run(source, num_train_epochs=2)
    first, second = distiller.train_epoch(), distiller.train_epoch()
    distiller.close()
    assert first["loss"] != second["loss"] and not same(before, weights(source.maker))


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 5, 7])
@SOURCES
def test_a_resumed_run_ends_in_the_same_weights_and_the_same_source(make, stop, tmp_path):
    def trained(folder: Path, steps: int, resume: bool) -> tuple[nn.Module, object, list]:
        source = make()
        distiller = run(source, num_train_epochs=3, max_steps=steps, save_steps=1, output_dir=folder)
        torch.manual_seed(11 + steps)  # what came before a run is of no consequence
        distiller.train(resume_from_checkpoint=resume)
        return distiller.student, source, read_history(folder / "history.jsonl")

    whole, made, history = trained(tmp_path / "whole", 9, False)
    trained(tmp_path / "broken", stop, False)
    assert {path.suffix for path in (tmp_path / "broken" / "checkpoints").rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
    }
    resumed, remade, retold = trained(tmp_path / "broken", 9, True)
    assert same(weights(whole), weights(resumed)) and same(weights(made.maker), weights(remade.maker))
    one, other = made.optimizer.state_dict(), remade.optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for key, state in one["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other["state"][key][n])) for n, v in state.items())
    assert len(history) == 9 and history == retold


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generator", "bank"])
def test_a_text_classifier_learns_from_pseudo_inputs_in_embedding_space(kind):
    teacher, student = bert(layers=2), bert(layers=1, seed=3)
    options = {"input_name": "inputs_embeds", "scaler": SoftTokens(teacher), "student_iters": 1, "batch_size": 8}
    if kind == "generator":
        source = GeneratorSource(VectorGenerator((6, 40), noise_dim=4, width=8), steps_per_epoch=3, **options)
    else:
        source = PseudoSamples((6, 40), 24, **options)
    before, head = weights(source.maker), student.classifier.weight.clone()
    plain = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    KnowledgeDistiller(teacher, student, SOFT, train_dataloader=source, num_train_epochs=2, **plain).train()
    assert not same(before, weights(source.maker)) and not torch.equal(head, student.classifier.weight)
    assert next(iter(source))["inputs_embeds"].shape == (8, 6, 16)


# --- bad input -------------------------------------------------------------------------------------------------------


class OnlyIds(nn.Module):
    """A classifier that takes no embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(40, 4), nn.Linear(4, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.fc(self.embedding(input_ids).mean(1))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: run(generated((1, 12, 12))), DataError, "the teacher fails on the first batch (image 8×1×12×12): "),
        (lambda: run(banked((1, 4, 4))), DataError, "the teacher fails on the first batch (image 8×1×4×4): "),
        (lambda: run(banked((2, 8, 8))), DataError, "the teacher fails on the first batch (image 8×2×8×8): "),
        (lambda: generated(batch_size=0), ConfigError, "batch_size is a whole number of 1 or more; found 0"),
        (lambda: banked(batch_size=0), ConfigError, "batch_size is a whole number of 1 or more; found 0"),
        (lambda: generated(generator_iters=0), ConfigError, "generator_iters is a whole number of 1 or more; found 0"),
        (lambda: banked(pseudo_lr=0), ConfigError, "pseudo_lr is above 0; found 0"),
        (lambda: generated(resample_ratio=0), ConfigError, "resample_ratio is above 0 and at most 1; found 0"),
        (lambda: run(generated(noise_dim=9)), ConfigError, "ImageGenerator fails on (8, 9): mat1 and mat2"),
        (
            lambda: GeneratorSource(nn.Linear(2, 2)),
            ConfigError,
            "noise_dim is missing, and Linear has none of its own",
        ),
        (
            lambda: GeneratorSource(nn.Flatten(), noise_dim=2),
            ConfigError,
            "Flatten has no parameters that could be trained",
        ),
        (
            lambda: run(GeneratorSource(nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)), noise_dim=2, batch_size=3)),
            ConfigError,
            "Sequential made (6,) out of 3 codes; one sample each is needed",
        ),
        (
            lambda: run(generated(scaler=lambda made: (made > 0).float())),
            ConfigError,
            "ImageGenerator or its scaler lets no gradient through to what is trained",
        ),
        (lambda: ImageGenerator((1, 8, 6)), ConfigError, "with H and W multiples of 4; found (1, 8, 6)"),
        (lambda: VectorGenerator(()), ConfigError, "size is the shape of one sample; found ()"),
        (lambda: VectorGenerator((2,), noise_dim=0), ConfigError, "noise_dim is 1 or more; found 0"),
        (
            lambda: banked(samples=torch.zeros(36, 1, 8, 4)),
            ConfigError,
            "samples are (36, 1, 8, 8), number and size; found (36, 1, 8, 4)",
        ),
        (
            lambda: run(generated(objective=Objective(activation=1, feature="fcc.input"))),
            ConfigError,
            "objective: fcc.input: the teacher has no such feature.",
        ),
        (
            lambda: run(generated((1, 8, 8), input_name="inputs_embeds"), OnlyIds()),
            DataError,
            "the teacher takes nothing of what the batch has (inputs_embeds). It takes: image",
        ),
        (
            lambda: KnowledgeDistiller(
                bert(), OnlyIds(), SOFT, train_dataloader=banked((6, 16), input_name="inputs_embeds")
            ),
            DataError,
            "the student takes nothing of what the batch has (inputs_embeds). It takes: input_ids",
        ),
        (
            lambda: KnowledgeDistiller(None, net(3), SOFT, train_dataloader=generated()),
            ConfigError,
            "GeneratorSource makes samples for a teacher: give a teacher_model",
        ),
        (
            lambda: run(generated(), teacher_cache="cache"),
            ConfigError,
            "teacher_cache keeps what the teacher says of samples, and made ones never come again",
        ),
    ],
)
def test_what_does_not_fit_is_one_error_before_anything_is_written(make, error, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        make()
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []
