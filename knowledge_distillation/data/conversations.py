"""Rows of text for language models as they come: `text`, `prompt` and `completion`, `messages`; made into tokens.

What the model is to say is labelled, everything else is labelled -100: the completion, or what the assistant says.
A mask says the same, for entries whose feature has no labels: `completion_mask`, or `assistant_masks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from ..losses.labels import IGNORED_LABEL
from .dataset_rows import first_row

_MESSAGES, _PROMPT, _TEXT = {"messages"}, {"prompt", "completion"}, {"text"}
_COMPLETION, _ASSISTANT = "completion_mask", "assistant_masks"  # as trl and transformers call them
_LONGEST = 10**9  # what tokenizers say that know of no limit is far above


def tokenized_rows(dataset: Any, tokenizer: Any, model: Any) -> Any:
    """Rows of text as tokens; rows that are tokens already, or of something else, as they are.

    Args:
        dataset: of `datasets`, or a sequence of mappings.
        tokenizer: for messages one with a chat template.
        model: the student: one with an encoder reads the prompt and says the completion.

    Raises:
        DataError: the tokenizer has no chat template, or it is not one from which what the assistant says can be told.
    """
    row = first_row(dataset) if hasattr(dataset, "__getitem__") and len(dataset) else None
    if not isinstance(row, Mapping) or "input_ids" in row:
        return dataset
    form = next((form for form in (_MESSAGES, _PROMPT, _TEXT) if form <= row.keys()), None)
    if form is None:
        return dataset
    columns = ", ".join(sorted(form))
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise DataError(f"the rows hold {columns} and no input_ids: give their tokenizer as processing_class")
    chat = form is _MESSAGES or isinstance(row.get("prompt"), list)
    if chat and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"the rows hold {columns} as messages, and {type(tokenizer).__name__} has no chat template: set "
            "tokenizer.chat_template, or give rows of text"
        )
    speaks = model is not None and getattr(model, "get_output_embeddings", lambda: None)() is not None
    reads = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    def tokens(row: Mapping[str, Any]) -> dict[str, Any]:
        other = {
            key: value for key, value in row.items() if key not in form | {"tools"} and not isinstance(value, str)
        }
        if form is _TEXT:
            ids = _ids(tokenizer, row["text"])
            labelled = not speaks or reads or {"label", "labels"} & row.keys()
            made = {"input_ids": ids} if labelled else _labelled(ids, [True] * len(ids), tokenizer)
        elif form is _PROMPT and not chat:
            made = _completed(tokenizer, row["prompt"], row["completion"], reads)
        else:
            made = _said(tokenizer, row, reads)
        return {**other, **made, "attention_mask": [1] * len(made["input_ids"])}

    if hasattr(dataset, "map") and hasattr(dataset, "column_names"):
        return dataset.map(tokens, remove_columns=list(dataset.column_names), desc="tokens")
    return [tokens(dataset[number]) for number in range(len(dataset))]


def _ids(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    return list(
        tokenizer(text, add_special_tokens=special, truncation=tokenizer.model_max_length < _LONGEST)["input_ids"]
    )


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of a text that goes on: without the token that ends one."""
    ids = _ids(tokenizer, prompt)
    return ids[:-1] if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) else ids


def _labelled(ids: list[int], said: list[bool], tokenizer: Any, mask: str | None = None) -> dict[str, list[int]]:
    """Ids cut to what the tokenizer allows, their labels, and a mask of what is said under this name."""
    most = tokenizer.model_max_length if tokenizer.model_max_length < _LONGEST else len(ids)
    labels = [one if of_model else IGNORED_LABEL for one, of_model in zip(ids, said, strict=True)]
    marked = {mask: [int(one) for one in said[:most]]} if mask else {}
    return {"input_ids": ids[:most], "labels": labels[:most], **marked}


def _decoded(ids: list[int], said: list[int], mask: str) -> dict[str, list[int]]:
    """What an encoder reads, and what the decoder says."""
    return {"input_ids": ids, "labels": said, mask: [1] * len(said)}


def _completed(tokenizer: Any, prompt: str, completion: str, reads: bool) -> dict[str, list[int]]:
    """The prompt, the completion, and the token that ends a text."""
    if reads:
        return _decoded(_ids(tokenizer, prompt), list(tokenizer(text_target=completion)["input_ids"]), _COMPLETION)
    before, after = prompt_ids(tokenizer, prompt), _ids(tokenizer, completion, special=False)
    end = tokenizer.eos_token_id
    after += [end] if end is not None and after[-1:] != [end] else []
    return _labelled(before + after, [False] * len(before) + [True] * len(after), tokenizer, _COMPLETION)


def _said(tokenizer: Any, row: Mapping[str, Any], reads: bool) -> dict[str, list[int]]:
    """A conversation by the chat template, of which what the assistant says counts; with a prompt, the completion."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    before = list(row.get("prompt", []))
    mask = _COMPLETION if before else _ASSISTANT
    messages = [*before, *row["completion"]] if before else list(row["messages"])

    def ids(upto: int, asked: bool = False) -> list[int]:
        made = tokenizer.apply_chat_template(
            messages[:upto], add_generation_prompt=asked, tokenize=True, return_dict=True, **tools
        )
        return list(made["input_ids"])

    if reads:
        last = len(before) or len(messages) - 1
        whole, start = ids(len(messages)), ids(last, asked=True)
        return _decoded(start, whole[len(start) :], mask)
    if not before and "{% generation" in tokenizer.chat_template.replace("{%-", "{%"):
        made = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **tools
        )
        return _labelled(list(made["input_ids"]), [bool(one) for one in made["assistant_masks"]], tokenizer, mask)
    whole = ids(len(messages))
    said = [False] * len(whole)
    turns = [len(before)] if before else [n for n, one in enumerate(messages) if one["role"] == "assistant"]
    for turn in turns:
        start, end = ids(turn, asked=True), whole if before else ids(turn + 1)
        if whole[: len(start)] != start or whole[: len(end)] != end:
            raise DataError(
                "the chat template writes the beginning of a conversation otherwise than the whole, so that what the "
                "assistant says cannot be told: mark it in the template by {% generation %}, or give rows with "
                "input_ids and labels"
            )
        said[len(start) : len(end)] = [True] * (len(end) - len(start))
    return _labelled(whole, said, tokenizer, mask)
