"""Ten thousand mutated policy files: a valid document, or one clear error."""

import json
import random
from typing import Any

from kvtuner_core.domain.document import PolicyDocument
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange import document_from_json, document_to_json
from tests.exchange.documents import example, is_one_line

FILES = 10_000
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 16, 17, 1024, 1025, 2**31, 2**63, 2**64, -(2**70), 10**40, 0.5, -0.0, 1e308,
    -1e308, 5e-324, float("nan"), float("inf"), "", "4", "K4V4", "\ud800", "\udfff\ud800", "\x00", "a\nb", "\u2028",
    "é" * 50, "x" * 20_000, [], {}, [[]], [None], {"": {}}, {"layer": 0}, {"a\r\nb": 1}, "kvtuner-policy",
    "token", "channel",
)  # fmt: skip


def _places(data: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        current = stack.pop()
        keys = list(current) if isinstance(current, dict) else list(range(len(current)))
        for key in keys:
            found.append((current, key))
            if isinstance(current[key], dict | list):
                stack.append(current[key])
    return found


def _drop(container: Any, key: Any, _: random.Random) -> None:
    del container[key]


def _replace(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = rng.choice(_VALUES)


def _rename_or_repeat(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        container[rng.choice((key.upper(), key + " ", "\n", "\ud800", ""))] = container.pop(key)
    else:
        container.insert(rng.randrange(len(container) + 1), container[key])


def _wrap(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = [container[key]] if rng.random() < 0.5 else {"value": container[key]}


def _shift(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container[key], int | float):
        container[key] = container[key] * rng.choice((-1, 2, 10**9, 0.1)) + rng.choice((0, 1, 1e-3))


def _restructured(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        container, key = rng.choice(_places(data))
        rng.choice((_drop, _replace, _rename_or_repeat, _wrap, _shift))(container, key, rng)
    return json.dumps(data)


def _flipped(text: str, rng: random.Random) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 8))):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def _cut(text: str, rng: random.Random) -> str:
    start, end = sorted(rng.randrange(len(text)) for _ in range(2))
    return rng.choice((text[:start], text[end:], text[:start] + text[end:], text + text[start:end]))


def _doubled(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    return "\n".join([*lines[: index + 1], lines[index], *lines[index + 1 :]])


def _nested(text: str, rng: random.Random) -> str:
    deep = rng.choice((5, 200, 3000, 40_000))
    inside = rng.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "[" * deep))
    return text.replace(rng.choice(("null", "32", '"cpu"', "false")), inside, 1)


def _numbered(text: str, rng: random.Random) -> str:
    number = rng.choice(("1e999", "-1e999", "9" * 5000, "1" + "0" * 400, "1e-400", "-0", "NaN", "Infinity", "0x10"))
    return text.replace(rng.choice(("32", "8", "4", "0.", "30")), number, rng.choice((1, 3)))


def test_every_mutated_file_is_a_document_or_one_error():
    text = document_to_json(example(layers=3, heads=True))
    rng = random.Random(20261122)
    mutations = (_restructured, _restructured, _restructured, _flipped, _flipped, _cut, _doubled, _nested, _numbered)
    valid = 0
    messages = []
    for number in range(FILES):
        mutated = rng.choice(mutations)(text, rng)
        try:
            document = document_from_json(mutated)
        except PolicyError as error:
            messages.append((number, str(error)))
        else:
            valid += 1
            assert isinstance(document, PolicyDocument)
            assert document_from_json(document_to_json(document)) == document
    assert not [item for item in messages if not is_one_line(item[1])]
    # Both outcomes must occur, or the mutations test nothing.
    assert 100 < valid < FILES // 2
