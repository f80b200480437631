"""The table of names: what it answers, what it refuses, and that every loss in it is documented and has its twin."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from torch import nn

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses import get_loss, list_losses
from knowledge_distillation.losses.arguments import check_arguments, signature_of
from knowledge_distillation.losses.attention import attention_mse
from knowledge_distillation.losses.hidden import hidden_mse
from knowledge_distillation.losses.labels import hard_cross_entropy
from knowledge_distillation.losses.logits import kl_divergence, soft_cross_entropy
from knowledge_distillation.losses.table import LOSSES, spec_of


def name_of(function):
    """The name a loss is documented under: a function's own, a class's `name_of`."""
    return getattr(function, "name_of", function.__name__)


PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
FUNCTIONS = {name_of(f): f for method in LOSSES for f in method.functions.values()}
TEXTBOOK = ("hard_cross_entropy", "label_mse", "own_loss")  # nobody's method, so without a source


def test_the_names_are_listed_in_order():
    soft = [method.name for method in LOSSES if not method.hard]
    assert list_losses() == sorted(soft) == sorted(set(soft)) and "kl_divergence" in list_losses()
    assert list_losses(hard=True) == ["cross_entropy", "mse", "own_loss"]


def test_one_name_is_the_function_that_fits_the_kind_and_the_target():
    assert get_loss("mse", "tokens") is get_loss("mse_with_mask", "tokens") is hidden_mse
    assert get_loss("mse", "attention") is attention_mse
    assert get_loss("cross_entropy", "vector") is soft_cross_entropy
    assert get_loss("cross_entropy", "vector", hard=True) is hard_cross_entropy


@pytest.mark.parametrize(
    ("name", "hard", "message"),
    [
        ("kl_divergance", False, "unknown loss 'kl_divergance'. Nearest: kl_divergence. Known: "),
        ("cross_entropie", True, "unknown loss against the labels 'cross_entropie'. Nearest: cross_entropy. Known: "),
        ("zzz", False, "unknown loss 'zzz'. Known: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, hard, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_loss(name, "tokens", hard)


@pytest.mark.parametrize(
    ("name", "kind", "hard", "message"),
    [
        (
            "kl_divergence",
            "attention",
            False,
            "kl_divergence does not apply to a feature of kind attention. These do: ",
        ),
        ("attention_mse", "tokens", False, "attention_mse does not apply to a feature of kind tokens. These do: "),
        (
            "mse",
            "tokens",
            True,
            "mse does not compare a feature of kind tokens with labels, and this entry names no teacher",
        ),
    ],
)
def test_a_loss_on_a_kind_it_is_not_for_is_answered_with_those_that_are(name, kind, hard, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_loss(name, kind, hard)


def needs_margin(student, teacher, margin, mask=None): ...


def wants_context(student, teacher, mask, labels, sample_weight): ...


def takes_anything(student, teacher, needed, **others): ...


class Module(nn.Module):
    def forward(self, student, teacher, scale=2.0): ...


CONTEXT = ["mask", "teacher_mask", "labels", "sample_weight"]


@pytest.mark.parametrize(
    ("loss", "args", "problem"),
    [
        (kl_divergence, {}, None),
        (kl_divergence, {"temperature": 4}, None),
        (
            kl_divergence,
            {"temprature": 4},
            "takes no argument 'temprature'. Nearest: temperature. It takes: temperature=1.0",
        ),
        (hidden_mse, {"scale": 1}, "takes no argument 'scale'. It takes: no arguments"),
        (needs_margin, {"margin": 1}, None),
        (
            needs_margin,
            {},
            "needs 'margin', which is neither in args nor a key of the batch (mask, teacher_mask, labels, ",
        ),
        (needs_margin, {"margin": 1, "mask": 0}, "takes no argument 'mask'. It takes: margin"),
        (wants_context, {}, None),
        (
            lambda student, teacher, scale=1: ...,
            {"scal": 2},
            "takes no argument 'scal'. Nearest: scale. It takes: scale=1",
        ),
        (takes_anything, {"needed": 1, "more": 2}, None),
        (takes_anything, {"more": 2}, "needs 'needed', which is neither in args nor a key of the batch"),
        (F.mse_loss, {"reduction": "none"}, None),
        (F.mse_loss, {"reductoin": "none"}, "takes no argument 'reductoin'. Nearest: reduction."),
        (Module(), {"scale": 1.0}, None),
        (Module(), {"skale": 1.0}, "takes no argument 'skale'. Nearest: scale. It takes: scale=2.0"),
    ],
)
def test_arguments_are_checked_against_the_signature(loss, args, problem):
    found = check_arguments("it", signature_of(loss), args, CONTEXT)
    assert found is None if problem is None else found.startswith(f"loss it {problem}")


def parameters(function):
    """The names of all that a loss takes, its two sides first; of a class that of its constructor and its call."""
    of_call = inspect.signature(function.forward).parameters if inspect.isclass(function) else {}
    return [name for name in dict.fromkeys([*inspect.signature(function).parameters, *of_call]) if name != "self"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loss_has_a_docstring_a_section_and_a_twin(name):
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    for part in ("Args:", "Returns:", *(() if name in TEXTBOOK else ("Source:",))):
        assert part in text, f"the docstring of {name} has no {part}"
    for parameter in parameters(FUNCTIONS[name]):
        assert re.search(rf"^    {parameter}: ", text, re.MULTILINE), (
            f"the docstring of {name} is silent on {parameter}"
        )
    assert f"\n## {name}\n" in PAGE, f"docs/losses.md has no section {name}"
    assert callable(getattr(reference, name, None)), f"tests/reference.py has no twin of {name}"


def test_the_loss_that_contributing_adds_is_that_of_its_twin_and_of_its_formula():
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"((?:^(?: {8}.*)?\n)+)", page, re.MULTILINE)]
    loss, twin, formula = (
        execute(next(block for block in blocks if start in block), name="log_cosh")
        for start in ("def log_cosh(student: Tensor", "def log_cosh(student, teacher, mask", "torch.log(torch.cosh")
    )
    student, teacher = (torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2))
    value = loss(student, teacher, scale=0.5)
    torch.testing.assert_close(value, formula(student, teacher, scale=0.5))
    assert value.mean().item() == pytest.approx(twin(student.numpy(), teacher.numpy(), scale=0.5), rel=1e-12)
    assert {"Args:", "Returns:", "Source:"} <= set(re.findall(r"\w+:", inspect.getdoc(loss)))


def execute(code, name):
    own = {"torch": torch, "math": math, "F": F, "Tensor": torch.Tensor, **vars(reference)}
    exec(code, own)
    return own[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_section_of_the_page_follows_the_template(name):
    section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    parts = ["Shapes", "Arguments", "Map it to", "Values in print", "Not for", "Source"]
    assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == parts
    for parameter in [
        one for one in parameters(FUNCTIONS[name])[2:] if one not in ("losses", "weights")
    ]:  # these nobody writes
        assert f"`{parameter}`" in section.partition("**Arguments.**")[2].partition("**Map it to.**")[0]


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_the_page_lists_every_name_with_its_kinds_and_functions(hard):
    heading = "Against the labels" if hard else "Against the teacher"
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \|$", PAGE.partition(f"### {heading}\n")[2].partition("\n#")[0], re.M
    )
    listed = {
        name: (set(re.findall(r"\w+", kinds)), set(re.findall(r"\w+", functions))) for name, kinds, functions in rows
    }
    table = {method.name: method.functions for method in LOSSES if method.hard == hard}
    assert listed == {name: (set(kinds), {name_of(f) for f in kinds.values()}) for name, kinds in table.items()}


@pytest.mark.parametrize("name", list_losses())
def test_every_listed_name_has_its_loss(name):
    assert callable(get_loss(name)) and get_loss(name) in spec_of(name).functions.values()
