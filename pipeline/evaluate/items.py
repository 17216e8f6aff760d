"""Questions with several choices, from a file of JSON lines."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.data.json_lines import id_field, read_json_lines, shorten, text_field
from transloom.pipeline.errors import UserError


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        answer: the place of the right choice, from 0.
        where: the item comes from, for messages: "file, line 3".
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    id: str
    where: str

    @property
    def digest(self) -> str:
        """Of what is asked, wherever it stands (hex)."""
        return hashlib.sha256(json.dumps([self.context, self.choices, self.answer]).encode()).hexdigest()


def read_items(path: Path) -> list[Item]:
    """The items of a file with JSON lines: "context", "choices" (two or more), "answer" (a place, from 0), and where
    wanted "id" (by default the number of the item, from 1). Other fields are left alone.

    Raises:
        UserError: naming file and line; or there are no items.
    """
    items: list[Item] = []
    seen: dict[str, str] = {}
    for where, record in read_json_lines(path):
        name = id_field(where, record)
        item = Item(
            text_field(where, record, "context"),
            _choices(where, record),
            _answer(where, record),
            str(len(items) + 1) if name is None else name,
            where,
        )
        if item.id in seen:
            raise UserError(f'{where}: the "id" {shorten(item.id)} is that of {seen[item.id]}, too. Give each its own')
        seen[item.id] = where
        items.append(item)
    if not items:
        raise UserError(f'{path} has no items: write one a line, {{"context": …, "choices": […], "answer": 0}}')
    return items


def _choices(where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    choices = record.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f'{where}: "choices" must be a list of two texts or more, not {shorten(choices)}')
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise UserError(f'{where}: each of "choices" must be a text that is not empty, not {shorten(choice)}')
    if len(set(choices)) < len(choices):
        raise UserError(f'{where}: "choices" has the same text twice: {shorten(choices)}')
    return tuple(choices)


def _answer(where: str, record: Mapping[str, Any]) -> int:
    answer, last = record.get("answer"), len(record["choices"]) - 1
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer <= last:
        raise UserError(f'{where}: "answer" must be the place of a choice, from 0 to {last}, not {shorten(answer)}')
    return answer
