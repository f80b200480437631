"""Training without data: batches that a generator or a bank of samples makes, harder as the student learns.

A source is a data loader and a callback in one: give it as `train_dataloader`, and it hears of every step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import ConfigError
from ..features.capture import Capture, Location
from ..features.catalogue import catalogue
from ..features.inputs import checked_inputs, first_rows, on_first_batch
from ..features.preserve import modes_kept, preserved
from ..training.batch import adapt, make_batch
from ..training.callbacks import Callback
from .objective import LOGITS, Objective

if TYPE_CHECKING:
    from ..training.run import Run


class SyntheticSource(Callback, ABC):
    """Batches made by a module out of a code, and the training of that module between the student's steps.

    What the student's batches are made of depends on the run's seed and the epoch alone; what the module's own steps
    are made of, on the random state, which checkpoints hold. So a resumed run goes on exactly.
    """

    def __init__(
        self,
        maker: nn.Module,
        optimizer: torch.optim.Optimizer,
        iters: int,
        student_iters: int,
        objective: Objective | None,
        scaler: Callable[[Tensor], Tensor] | None,
        input_name: str | None,
    ) -> None:
        self.maker, self.optimizer, self.iters, self.student_iters = maker, optimizer, iters, student_iters
        self.objective, self.scaler, self.input_name = objective or Objective(), scaler, input_name
        self._of_teacher: dict[Feature, Location] = {}
        self._of_student: dict[Feature, Location] = {}
        self._losses: list[Tensor] = []

    @abstractmethod
    def _codes(self, generator: torch.Generator) -> Iterator[Tensor]:
        """What each batch of an epoch is made of."""

    @abstractmethod
    def _code(self) -> Tensor:
        """What a batch of the module's own steps is made of."""

    # --- the data loader

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))
        for code in self._codes(generator):
            with preserved(self.maker):
                batch = self._batch(code)
            yield batch

    def _batch(self, code: Tensor) -> Any:
        samples = self._samples(code)
        return {self.input_name: samples} if self.input_name else (samples,)

    def _samples(self, code: Tensor) -> Tensor:
        name = type(self.maker).__name__
        try:
            samples = self.maker(code.to(self._device))
            samples = samples if self.scaler is None else self.scaler(samples)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"{name} fails on {tuple(code.shape)}: {error}") from error
        if not isinstance(samples, Tensor) or samples.shape[:1] != code.shape[:1]:
            result = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ConfigError(f"{name} made {result} out of {len(code)} codes; one sample each is needed")
        if torch.is_grad_enabled() and not samples.requires_grad:
            cut = "" if self.scaler is None else " or its scaler"
            raise ConfigError(f"{name}{cut} lets no gradient through to what is trained: it cannot learn")
        return samples

    @property
    def _device(self) -> torch.device:
        return next(p.device for p in self.maker.parameters())

    # --- the callback

    def on_init_end(self, run: Run) -> None:
        """See that both models take what is made, and where in them the objective's features are.

        Raises:
            ConfigError, DataError: they do not, or the run is one that cannot have such batches.
        """
        teacher, student = run.teacher, run.student
        if teacher is None:
            raise ConfigError(f"{type(self).__name__} makes samples for a teacher: give a teacher_model")
        if run.settings.teacher_cache is not None:
            raise ConfigError("teacher_cache keeps what the teacher says of samples, and made ones never come again")
        if run.accelerator.num_processes > 1:
            raise ConfigError(f"{type(self).__name__} makes its batches in one process; found several")
        self.maker.to(run.accelerator.device)
        of_student = [LOGITS] if self.objective.disagreement else []
        with preserved(self.maker), preserved(student), modes_kept(student):
            with torch.enable_grad():
                batch = self._batch(self._code())
            student_inputs, teacher_inputs = adapt(run, batch)
            first_inputs = teacher.cast(_of_first(teacher_inputs))
            self._of_teacher = _places(teacher.model, first_inputs, self.objective.watched, "teacher")
            self._of_student = _places(student.train(), student_inputs[""], of_student, "student")

    def on_step_end(self, run: Run) -> None:
        if run.progress.step % self.student_iters == 0:
            self._learn(run)

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        if self._losses:
            values["source_loss"] = float(torch.stack(self._losses).mean())
            run.accelerator.log({"source_loss": values["source_loss"]}, step=run.progress.step)
            self._losses.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"maker": self.maker.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.maker.load_state_dict(state["maker"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _learn(self, run: Run) -> None:
        """The module's own steps. Gradients go to it alone; the student's buffers are put back."""
        student, teacher = run.student, run.teacher
        assert teacher is not None
        teacher.hold_still()
        codes = [self._code() for _ in range(self.iters)]  # here, since the random state is put back below
        with preserved(student), torch.enable_grad(), run.accelerator.autocast():
            for code in codes:
                batch = make_batch(run, adapt(run, self._batch(code)))
                teacher_inputs = teacher.cast(_of_first(batch.teachers))
                teacher_features = _features(teacher.model, self._of_teacher, teacher_inputs)
                student_features = _features(student, self._of_student, batch.students[""])
                self._step(self.objective(student_features.get(LOGITS), teacher_features))

    def _step(self, loss: Tensor) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._losses.append(loss.detach())


class GeneratorSource(SyntheticSource):
    """Batches of a generator that learns, between the student's steps, to make what the two disagree about.

    Args:
        generator: noise (batch, noise_dim) -> samples (batch, …); `knowledge_distillation.models` has two.
        batch_size: samples of a batch.
        steps_per_epoch: batches that count as an epoch.
        generator_iters: steps of the generator after every `student_iters` steps of the student.
        generator_lr: of Adam.
        noise_dim: None for the generator's own `noise_dim`.
        resample_ratio: share of the student's batches that are made of new noise, in (0, 1]; the others are made of
            that of the batch before.
        objective: what the generator learns; None for the disagreement alone.
        scaler: of the samples: `Interval(0, 1)`, `SoftTokens(model)`, any callable; None leaves them as they are.
        input_name: the input of both models that a batch is given as; None for the first of each.

    Raises:
        ConfigError: a number below 1 or out of its range, or a generator without a noise_dim or parameters.

    Source: Micaelli and Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, 2019: generator_iters
    1, student_iters 10, noise_dim 100, batch_size 128, generator_lr 1e-3. Fang et al., Data-Free Adversarial
    Distillation, 2019: 1 and 5, with the L1 distance of logits.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        batch_size: int = 128,
        steps_per_epoch: int = 100,
        generator_iters: int = 1,
        student_iters: int = 10,
        generator_lr: float = 1e-3,
        noise_dim: int | None = None,
        resample_ratio: float = 1.0,
        objective: Objective | None = None,
        scaler: Callable[[Tensor], Tensor] | None = None,
        input_name: str | None = None,
    ) -> None:
        noise_dim = getattr(generator, "noise_dim", None) if noise_dim is None else noise_dim
        if not any(p.requires_grad for p in generator.parameters()):
            raise ConfigError(f"{type(generator).__name__} has no parameters that could be trained")
        if noise_dim is None:
            raise ConfigError(f"noise_dim is missing, and {type(generator).__name__} has none of its own")
        _check(batch_size=batch_size, steps_per_epoch=steps_per_epoch, noise_dim=noise_dim)
        _check(generator_iters=generator_iters, student_iters=student_iters)
        _check_rate("generator_lr", generator_lr)
        if not 0 < resample_ratio <= 1:
            raise ConfigError(f"resample_ratio is above 0 and at most 1; found {resample_ratio}")
        self.batch_size, self.steps_per_epoch, self.noise_dim = batch_size, steps_per_epoch, noise_dim
        self.resample_ratio = resample_ratio
        optimizer = torch.optim.Adam(generator.parameters(), generator_lr)
        super().__init__(generator, optimizer, generator_iters, student_iters, objective, scaler, input_name)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def _codes(self, generator: torch.Generator) -> Iterator[Tensor]:
        for number in range(self.steps_per_epoch):
            if math.floor(number * self.resample_ratio) > math.floor((number - 1) * self.resample_ratio):
                noise = torch.randn(self.batch_size, self.noise_dim, generator=generator)
            yield noise

    def _code(self) -> Tensor:
        return torch.randn(self.batch_size, self.noise_dim)


class PseudoSamples(SyntheticSource):
    """A fixed number of samples that are changed by gradient, between the student's steps. An epoch is all of them.

    Args:
        size: of one sample: (C, H, W), (features,), (length, width).
        number: of samples.
        samples: (number, *size) what they begin as, before the scaler; None for normal noise.
        batch_size: samples of a batch.
        pseudo_iters: steps on a batch of samples after every `student_iters` steps of the student.
        pseudo_lr: of Adam, which moves the samples of the batch alone.
        objective, scaler, input_name: as for `GeneratorSource`; `balance` keeps the classes alike.

    Raises:
        ConfigError: a number below 1, or samples of another shape.

    Source: the family of data impressions, Nayak et al., Zero-Shot Knowledge Distillation in Deep Networks, 2019; with
    the objective of Micaelli and Storkey, 2019.
    """

    def __init__(
        self,
        size: Sequence[int],
        number: int = 1024,
        *,
        samples: Tensor | None = None,
        batch_size: int = 128,
        pseudo_iters: int = 1,
        student_iters: int = 10,
        pseudo_lr: float = 0.1,
        objective: Objective | None = None,
        scaler: Callable[[Tensor], Tensor] | None = None,
        input_name: str | None = None,
    ) -> None:
        _check(batch_size=batch_size, number=number, pseudo_iters=pseudo_iters, student_iters=student_iters)
        _check_rate("pseudo_lr", pseudo_lr)
        if not size or min(size) < 1:
            raise ConfigError(f"size is the shape of one sample; found {tuple(size)}")
        if samples is not None and tuple(samples.shape) != (number, *size):
            raise ConfigError(f"samples are {(number, *size)}, number and size; found {tuple(samples.shape)}")
        self.batch_size, self.number = batch_size, number
        bank = Bank(number, size, samples)
        optimizer = torch.optim.SparseAdam(bank.parameters(), pseudo_lr)
        super().__init__(bank, optimizer, pseudo_iters, student_iters, objective, scaler, input_name)

    def __len__(self) -> int:
        return math.ceil(self.number / self.batch_size)

    def samples(self) -> Tensor:
        """(number, *size): the samples as they are now, scaled."""
        with torch.no_grad():
            values = self.maker(torch.arange(self.number, device=self._device))
            return values if self.scaler is None else self.scaler(values)

    def _codes(self, generator: torch.Generator) -> Iterator[Tensor]:
        yield from torch.randperm(self.number, generator=generator).split(self.batch_size)

    def _code(self) -> Tensor:
        return torch.randperm(self.number)[: self.batch_size]


class Bank(nn.Module):
    """Places (batch,) -> the samples (batch, *size) that are there."""

    def __init__(self, number: int, size: Sequence[int], samples: Tensor | None) -> None:
        super().__init__()
        self.size = tuple(size)
        self.rows = nn.Embedding(number, math.prod(size), sparse=True)
        if samples is not None:
            self.rows.weight.data.copy_(samples.flatten(1))

    def forward(self, places: Tensor) -> Tensor:
        return self.rows(places).unflatten(-1, self.size)


def _places(
    model: nn.Module, inputs: dict[str, Any], features: Sequence[Feature], who: str
) -> dict[Feature, Location]:
    inputs = checked_inputs(inputs, model, who)
    with on_first_batch(who, inputs):
        names = catalogue(model, first_rows(inputs))
    places = {}
    for feature in features:
        entry = names.find(feature)
        if entry is None:
            raise ConfigError(f"objective: {names.explain(feature, who)}")
        places[feature] = entry.location
    return places


def _of_first(inputs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the first teacher takes: the one that a source looks at."""
    return next(iter(inputs.values()))


def _features(model: nn.Module, places: dict[Feature, Location], inputs: dict[str, Any]) -> dict[Feature, Tensor]:
    if not places:
        return {}
    capture = Capture(model, places, stop_early=False)
    try:
        return capture(inputs)
    finally:
        capture.close()


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} is a whole number of 1 or more; found {number!r}")


def _check_rate(name: str, rate: float) -> None:
    if not rate > 0 or not math.isfinite(rate):
        raise ConfigError(f"{name} is above 0; found {rate!r}")
