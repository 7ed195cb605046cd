"""Numbers, times and user's text as words on the page."""

import re
from datetime import datetime

GIB = 2**30
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^])")


def plain(text: str) -> str:
    """``text`` with its Markdown escaped, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def size(count: float) -> str:
    """A number of bytes with its unit, such as ``1.25 GiB``."""
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count:.0f} bytes"


def gib(value: float) -> str:
    """A size in GiB, readable where it is small."""
    return size(value * GIB)


def nats(value: float) -> str:
    """A divergence in nats per token with three significant digits."""
    return f"{value:.3g}" if abs(value) >= 1e-6 else "0"


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}%"


def duration(seconds: float | None) -> str:
    """A rough time: ``about 40 s``, ``about 3 min``, ``about 1.5 h``."""
    if seconds is None:
        return "time not known yet"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def moment(stamp: str) -> str:
    """An ISO 8601 UTC time as ``2026-11-20 14:05 UTC``; other text unchanged."""
    try:
        return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return stamp


def count(number: float, noun: str) -> str:
    """``1 policy`` or ``2,000 policies``."""
    if number == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith(("ch", "s")) else "s")
    return f"{number:,.0f} {plural}"


def power_of_ten(log10: float) -> str:
    """A count given by its log10: written out up to a million, else ``10^28.6``."""
    return f"{10**log10:,.0f}" if log10 <= 6 else f"10^{log10:.1f}"
