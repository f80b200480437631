"""The documentation is true: its code runs, its messages are the real ones, its tables are complete, its links lead
somewhere.

Python blocks of a page run in order in one namespace, which holds models and data for pages that say so; a comment
`<!-- python … -->` is a block that readers do not see. A `text` block that follows is part of what the block prints,
or, if it begins with the name of an error, what it raises: `…` stands for anything, a size for any size, and lines
break anywhere.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import shlex
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

import knowledge_distillation
from knowledge_distillation import KnowledgeDistiller, presets
from knowledge_distillation.config import entry, parse, schedules
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.data import embedded_sentiment, tokenize, train_tokenizer
from knowledge_distillation.recipes.load import load_recipe
from knowledge_distillation.recipes.recipe import Recipe

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
MESSAGE = re.compile(r"(\w+Error): ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"^[A-Z_]{4,}$|TODO|FIXME|XXX", page.read_text(encoding="utf-8"), re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str
    line: int


@cache
def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^(?:```(\w*)\n(.*?)^```|<!-- (python)\n(.*?)^-->)$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1] or m[3] or "", m[2] or m[4] or "", text[: m.start()].count("\n") + 2) for m in found]


def of_language(*languages: str) -> list[Any]:
    return [
        pytest.param(page, block, id=f"{page.parent.name}/{page.name}:{block.line}".removeprefix(f"{ROOT.name}/"))
        for page in PAGES
        for block in blocks(page)
        if block.language in languages
    ]


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


# --- the code --------------------------------------------------------------------------------------------------------


@cache
def data() -> dict[str, Any]:
    raw = embedded_sentiment(num_train=48, num_validation=24)
    tokenizer = train_tokenizer(raw["train"]["sentence"], vocab_size=120)
    rows = {split: tokenize(raw[split], tokenizer, ["sentence"]) for split in raw}
    batches = {
        split: list(DataLoader(rows[split], 12, collate_fn=DataCollatorWithPadding(tokenizer))) for split in rows
    }
    return {
        "tokenizer": tokenizer,
        "train_dataset": rows["train"],
        "eval_dataset": rows["validation"],
        "train_dataloader": batches["train"],
        "dev_dataloader": batches["validation"],
    }


def bert(layers: int, **sizes: int) -> BertForSequenceClassification:
    small = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": len(data()["tokenizer"]),
    }
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **{**small, **sizes}))


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> dict[str, Any]:
    """What pages say stands for the reader's own, in an empty folder, on the CPU."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "recipe.yaml").write_text(
        "teacher: {model_type: bert, num_hidden_layers: 4, hidden_size: 16, num_attention_heads: 2, "
        "intermediate_size: 16}\nstudent: {layers: [2, 4]}\nvocab_size: 120\n"
    )
    models = {"teacher_model": bert(12), "student_model": bert(3)}
    entries = [
        {"teacher": "layer{4,8,12}.hidden_states", "student": "layer{1,2,3}.hidden_states", "loss": "mse"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
    ]
    return {"KnowledgeDistiller": KnowledgeDistiller, "bert": bert, "distill_config": entries, **models, **data()}


def check_entries(entries: list[Any], own: dict[str, Any]) -> None:
    """Bind entries that a page shows to the models of its text."""
    distiller = KnowledgeDistiller(bert(12), bert(3), entries, train_dataloader=own["train_dataloader"])
    assert len(distiller.plan().rows) >= len(entries)
    distiller.close()


def run(block: Block, page: Path, own: dict[str, Any]) -> None:
    """Run a block; an entry that it ends with is bound to the models of the page."""
    tree = ast.parse(block.text)
    ast.increment_lineno(tree, block.line - 1)
    last = tree.body[-1]
    shown = isinstance(last, ast.Expr) and isinstance(last.value, ast.Dict)
    exec(compile(ast.Module(tree.body[: len(tree.body) - shown], []), str(page), "exec"), own)
    if shown:
        check_entries([eval(compile(ast.Expression(last.value), str(page), "eval"), own)], own)


SIZE = re.compile(r"(?<![\w.])\d[\d.]*(e[+-]?\d+)?([kM]\b| [KM]iB)?(?![\d.]| of\b| layers)")


def same(message: str, shown: str) -> bool:
    message, shown = (SIZE.sub("0", re.sub(r"\s+", " ", text.strip())) for text in (message, shown))
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), message) is not None


@pytest.mark.parametrize("page", named([page for page in PAGES if any(b.language == "python" for b in blocks(page))]))
def test_the_python_blocks_of_a_page_run(page, stand_ins):
    on_page = blocks(page)
    for block, after in zip(on_page, [*on_page[1:], Block("", "", 0)], strict=True):
        if block.language != "python":
            continue
        error = MESSAGE.match(after.text) if after.language == "text" else None
        if error:
            with pytest.raises(Exception) as caught:
                run(block, page, stand_ins)
            message = f"{type(caught.value).__name__}: {caught.value}"
            assert same(message, after.text), f"{page.name}:{after.line} should read\n{message}"
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run(block, page, stand_ins)
        if after.language == "text":
            told = printed.getvalue()
            assert same(told, f"…{after.text.strip()}…"), f"{page.name}:{after.line} should be part of\n{told}"


def test_nearly_every_message_shown_is_raised_by_the_block_before_it():
    shown = [(page, i) for page in DOCS for i, b in enumerate(blocks(page)) if MESSAGE.match(b.text)]
    raised = [(page, i) for page, i in shown if i and blocks(page)[i - 1].language == "python"]
    assert len(shown) >= 12
    assert [blocks(page)[i].text.split(" ")[3] for page, i in set(shown) - set(raised)] == [
        "load"
    ]  # it needs a network


def test_pages_have_python_blocks():
    pages = {page: sum(block.language == "python" for block in blocks(page)) for page in PAGES}
    wanted = ("quickstart", "distill_config", "recipes", "evaluators", "own_loop", "how_it_works", "troubleshooting")
    wanted += ("extending", "detection_segmentation")
    assert all(pages[ROOT / "docs" / f"{name}.md"] for name in wanted) and pages[ROOT / "README.md"]
    assert sum(pages.values()) >= 40


@pytest.mark.parametrize(("page", "block"), of_language("yaml"))
def test_a_yaml_block_is_a_list_or_a_recipe(page, block, stand_ins, tmp_path):
    content = yaml.safe_load(block.text)
    if isinstance(content, list):
        check_entries(content, stand_ins)
    else:
        (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
        recipe = load_recipe(tmp_path / "shown.yaml")
        assert recipe.teacher is not None or recipe.own_entries() is not None
        TrainingSettings.parse(recipe.training)


def test_there_are_yaml_blocks_of_both_kinds():
    kinds = [type(yaml.safe_load(param.values[1].text)) for param in of_language("yaml")]
    assert kinds.count(list) >= 2 and kinds.count(dict) >= 2


def commands() -> list[str]:
    texts = (param.values[1].text.replace("\\\n", " ") for param in of_language("sh", "bash"))
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith("distill ")]


@pytest.mark.parametrize("line", commands())
def test_a_command_line_is_understood(line):
    from typer.main import get_command

    from knowledge_distillation.cli.commands import app

    _, name, *arguments = shlex.split(line, comments=True)
    get_command(app).commands[name].make_context(name, arguments)


def test_the_readme_and_the_pages_show_commands():
    assert len(commands()) >= 10
    assert {shlex.split(line)[1] for line in commands()} >= {"run", "finetune", "check", "evaluate", "layers", "demo"}


# --- the tables ------------------------------------------------------------------------------------------------------


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """First cell -> other cells of the first table under a heading, one line for each name in the first cell."""
    section = (
        (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    )
    lines = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return {name: cells[1:] for cells in lines for name in re.findall(r"`([\w-]+)`", cells[0])}


def defaults(of: type) -> dict[str, str]:
    """Field -> its default as a table shows it."""
    values = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(of)}
    return {k: "" if v in (None, (), {}) else str(v).lower() if isinstance(v, bool) else v for k, v in values.items()}


def test_every_setting_is_in_the_table_with_its_default():
    table = {name: cells[0].strip("`") for name, cells in rows("recipes.md", "Training").items()}
    real = defaults(TrainingSettings)
    assert table.keys() == real.keys()
    for name, default in real.items():
        assert (float(table[name]) if isinstance(default, float) else table[name]) == (
            default if isinstance(default, float) else str(default)
        ), name


def test_every_key_of_a_recipe_is_in_the_table_with_its_default():
    table = {name: cells[0].strip("`") for name, cells in rows("recipes.md", "Keys").items()}
    real = defaults(Recipe)
    assert table.keys() == {*real, "base"}
    said_in_words = {"teacher", "student", "max_train_samples", "max_eval_samples", "method"}
    assert {k: v for k, v in table.items() if k not in {*said_in_words, "base"}} == {
        k: str(v) for k, v in real.items() if k not in said_in_words
    }


def test_every_method_is_in_the_table_with_its_arguments_and_stages():
    table = rows("recipes.md", "Methods")
    assert table.keys() == presets.METHODS.keys()
    for name, method in presets.METHODS.items():
        named = set(inspect.signature(method).parameters) - {"teacher", "student", "regression"}
        if name not in ("ofd", "margin_relu", "meal_v2"):
            named |= set(parse.parse_config(presets.expand(name, BertConfig(), BertConfig())).stages)
        inherited = {"alpha", "temperature"} if "`hinton`" in table[name][0] else set()
        assert [one for one in named - inherited if f"`{one}`" not in table[name][0]] == [], name


def test_every_key_of_an_entry_is_in_the_table():
    assert rows("distill_config.md", "Keys of an entry").keys() == set(parse.ENTRY_KEYS)


def test_every_type_of_projection_schedule_and_reduction_is_in_a_table():
    projection = {field.name for field in fields(entry.Projection)} - {"type"}
    assert rows("distill_config.md", "Projections").keys() == {*entry.PROJECTIONS, *projection}
    assert rows("distill_config.md", "Schedules").keys() == set(schedules.SCHEDULE_KEYS)
    assert rows("distill_config.md", "Averages").keys() == set(entry.REDUCTIONS)


def test_every_command_and_option_is_in_the_tables():
    from typer.main import get_command

    from knowledge_distillation.cli.commands import app

    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    commands = get_command(app).commands
    assert [name for name in commands if f"| `distill {name}" not in page] == []
    options = {
        option for command in commands.values() for p in command.params for option in p.opts if option[0] == "-"
    }
    assert [option for option in sorted(options - {"--smoke"}) if f"`{option}" not in page] == []


def test_every_public_name_is_in_the_docs():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert len(knowledge_distillation.__all__) > 10
    assert [name for name in knowledge_distillation.__all__ if f"`{name}`" not in index] == []


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(path for item in nav for path in item.values()) == [page.name for page in DOCS]


# --- the links -------------------------------------------------------------------------------------------------------


def without_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("[", " ").replace("]", " "), text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and code hosts write them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_pages_have_links():
    assert sum(len(re.findall(r"\]\([^)\s]+\)", without_code(page))) for page in PAGES) >= 40
