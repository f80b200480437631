"""The models of a run by name: the student, its teachers, its peers; each checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..config.entry import PEER, SELF
from ..errors import ConfigError, listed, shown
from ..objective.loss_model import usable_name
from ..teachers.frozen import memory_of

Models = dict[str, nn.Module]


def models_by_role(student: Any, teacher: Any, peer: Any) -> tuple[Models, Models]:
    """Teachers and peers by name; a teacher that is alone has the empty name, a peer that is alone is `peer`.

    Raises:
        ConfigError: something is no model, or cannot be used as it is, or one model is given twice.
    """
    if student is None:
        raise ConfigError("student_model is missing")
    teachers = _by_name("teacher_model", teacher, "", (SELF, PEER))
    peers = _by_name("peer_model", peer, PEER, (SELF,))
    models = {"student_model": student, **titled(teachers, "teacher_model"), **titled(peers, "peer_model")}
    for name, model in models.items():
        if hasattr(model, "_orig_mod"):
            raise ConfigError(
                f"{name} is compiled, and a compiled pass has no places to take features from: give the "
                "model as it was before torch.compile"
            )
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{name} is a torch module; found {shown(model)}: load it first, as with from_pretrained"
            )
    for who, others in (("teacher_model", teachers), ("peer_model", peers)):
        if any(model is student for model in others.values()):
            raise ConfigError(f"{who} is student_model itself: give a copy, made with copy.deepcopy(student_model)")
    for name, one in peers.items():
        twin = next((other for other, model in peers.items() if model is one), name)
        if twin != name:
            raise ConfigError(f"peer_model {twin} and peer_model {name} are one model: give a copy")
        if name in teachers:
            raise ConfigError(f"teacher_model and peer_model have one name: {name}")
    return teachers, peers


def check_apart(students: Mapping[str, nn.Module], teachers: Mapping[str, nn.Module]) -> None:
    """See that training a student cannot change a teacher: frozen weights may be shared, trained ones may not.

    Raises:
        ConfigError: weights or running statistics of a student are a teacher's too.
    """
    for name, teacher in teachers.items():
        theirs = {memory_of(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
        for student_name, student in students.items():
            shared = [path for path, tensor in _changing(student) if memory_of(tensor) in theirs]
            if shared:
                who = f"peer_model {student_name}" if student_name else "student_model"
                teacher_name, weights = f"teacher_model {name}".strip(), listed(shared, 2)
                raise ConfigError(
                    f"{who} and {teacher_name} share weights that are trained ({weights}), so the teacher would "
                    f"change: give a copy, copy.deepcopy({who.split()[0]}), or freeze what they share"
                )


def lent_modules(students: Mapping[str, nn.Module], teachers: Mapping[str, nn.Module]) -> list[tuple[nn.Module, bool]]:
    """The teachers' modules that a student has too, each with its mode."""
    theirs = {module for teacher in teachers.values() for module in teacher.modules()}
    return [(m, m.training) for student in students.values() for m in student.modules() if m in theirs]


def _changing(student: nn.Module) -> list[tuple[str, Tensor]]:
    """What training changes of a model, by name."""
    weights = [(path, p) for path, p in student.named_parameters() if p.requires_grad]
    norms = [(path, m) for path, m in student.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return weights + [(f"{path}.{name}", b) for path, norm in norms for name, b in norm.named_buffers(recurse=False)]


def titled(models: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Models under what they are and their names, for messages; the student is left out."""
    return {f"{what} {name}".strip(): model for name, model in models.items() if name or what.startswith("teacher")}


def _by_name(what: str, models: Any, alone: str, reserved: tuple[str, ...]) -> Models:
    if models is None:
        return {}
    if not isinstance(models, Mapping):
        return {alone: models}
    wrong = [name for name in models if not usable_name(name) or name in reserved]
    if wrong or not models:
        raise ConfigError(
            f"{what} names models by texts without '.' and '/', other than {', '.join(map(repr, reserved))} and names "
            f"torch uses itself; found {wrong or 'no model at all'}"
        )
    return dict(models)
