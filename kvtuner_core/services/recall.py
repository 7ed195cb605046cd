"""Makes recall questions: names with codes, planted in text, one of which is asked for.

A seed makes the same questions everywhere: only `random.Random.random` is used, whose numbers Python
promises not to change.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvtuner_core.domain.questions import Question, TaskKind
from kvtuner_core.errors import InputError

MAX_PAIRS = 512
_DIGITS = 5
_FIRST = (
    "amber", "ancient", "autumn", "bitter", "bronze", "broken", "calm", "clever", "copper", "coral", "crimson",
    "crystal", "distant", "dusty", "eager", "early", "frozen", "gentle", "golden", "hidden", "hollow", "humble",
    "ivory", "lonely", "lucky", "marble", "misty", "noble", "orange", "purple", "quiet", "silver",
)  # fmt: skip
_SECOND = (
    "anchor", "arrow", "badge", "basket", "beacon", "bottle", "bridge", "candle", "canyon", "castle", "cedar",
    "chapel", "dagger", "desert", "dragon", "eagle", "falcon", "feather", "fiddle", "forest", "garden", "glacier",
    "hammer", "harbor", "helmet", "island", "jacket", "kettle", "ladder", "lantern", "meadow", "mirror",
)  # fmt: skip

Measure = Callable[[Sequence[str]], Sequence[int]]
"""The lengths of some texts, in whatever unit a length is asked for."""


def characters(texts: Sequence[str]) -> list[int]:
    """Lengths in characters."""
    return [len(text) for text in texts]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSpec:
    """How recall questions are made.

    Attributes:
        count: Number of questions.
        pairs: Names with codes in each prompt.
        length: Length that each prompt is to reach with filler text between the pairs, measured by
            whoever makes it; ``None`` for the pairs alone.
        seed: Seed of names, codes, places and filler.
    """

    count: int = 25
    pairs: int = 32
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("count", 1, 2_000), ("pairs", 1, MAX_PAIRS)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be from {low} to {high}; got {getattr(self, name)}.")
        if self.length is not None and not 1 <= self.length <= 1_048_576:
            raise InputError(f"length must be from 1 to 1048576; got {self.length}.")


def recall_questions(
    spec: RecallSpec, *, filler: Sequence[str] = (), measure: Measure = characters
) -> Iterator[Question]:
    """The questions of a spec, one after another; question number n does not depend on ``count``.

    Args:
        spec: How they are made.
        filler: Texts to take whole sentences from, where there is a length to reach.
        measure: Lengths of texts, added up over the parts of a prompt; characters by default.

    Raises:
        InputError: If the pairs alone are longer than ``length``, or filler is missing or too short.
    """
    for number in range(spec.count):
        yield _question(spec, random.Random(f"{spec.seed}/{number}"), filler, measure)  # noqa: S311 - no secret


def _question(spec: RecallSpec, rng: random.Random, filler: Sequence[str], measure: Measure) -> Question:
    names = _names(rng, spec.pairs)
    codes = [str(10 ** (_DIGITS - 1) + _below(rng, 9 * 10 ** (_DIGITS - 1))) for _ in names]
    asked = _below(rng, spec.pairs)
    facts = [f"{name}: {code}" for name, code in zip(names, codes, strict=True)]
    tail = f"\n{names[asked]}:"
    body = facts if spec.length is None else _spread(spec, rng, (facts, tail), filler, measure)
    return Question(
        kind=TaskKind.RECALL, prompt="\n".join(body) + "\n" + tail, answer=f" {codes[asked]}", max_new_tokens=0
    )


def _spread(
    spec: RecallSpec, rng: random.Random, parts: tuple[list[str], str], filler: Sequence[str], measure: Measure
) -> list[str]:
    """The facts in order, with filler before, between and after them, up to the wanted length."""
    facts, tail = parts
    length = spec.length or 0
    left = length - sum(measure([*(fact + "\n" for fact in facts), tail]))
    if left < 0:
        raise InputError(
            f"{spec.pairs} names with codes are longer than the wanted length ({length}) by {-left}. "
            "Use fewer pairs or a larger length."
        )
    offered = list(_sentences(rng, filler))
    sentences = []
    for sentence, size in zip(offered, measure([sentence + "\n" for sentence in offered]), strict=True):
        if size > left:
            break
        left -= size
        sentences.append(sentence)
    else:
        raise InputError(f"The filler text ends {left} before the wanted length ({length}). Use a smaller length.")
    places = sorted(_below(rng, len(sentences) + 1) for _ in facts)
    body: list[str] = []
    taken = 0
    for place, fact in zip(places, facts, strict=True):
        body += [*sentences[taken:place], fact]
        taken = place
    return body + sentences[taken:]


def _sentences(rng: random.Random, filler: Sequence[str]) -> Iterator[str]:
    """Whole sentences of the filler, from a random text on, each text once."""
    first = _below(rng, len(filler)) if filler else 0
    for text in (*filler[first:], *filler[:first]):
        for sentence in (
            " ".join(text.split()).replace("? ", "?\n").replace("! ", "!\n").replace(". ", ".\n").split("\n")
        ):
            if sentence.strip():
                yield sentence.strip()


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _names(rng: random.Random, count: int) -> list[str]:
    """Different names; the first 32 share no word, so that one word of a name finds it."""
    names: dict[str, None] = {}
    while len(names) < count:
        firsts, seconds = _shuffled(rng, _FIRST), _shuffled(rng, _SECOND)
        names |= dict.fromkeys(f"{first} {second}" for first, second in zip(firsts, seconds, strict=True))
    return list(names)[:count]


def _shuffled(rng: random.Random, values: Sequence[str]) -> list[str]:
    left = list(values)
    return [left.pop(_below(rng, len(left))) for _ in values]
