"""Texts for people that are put together where no language is known, and said in one later.

Rules and checks know nothing of requests and languages, and what they say is also logged and stored, in English. So
they raise a `Sentence`: an English string, which a door says in the reader's language with `translated`.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class Sentence(str):
    """English text that remembers its pattern and the values in it."""

    __slots__ = ("number", "pattern", "plural", "values")

    pattern: str
    plural: str
    number: float
    values: Mapping[str, Any]


def sentence(pattern: str, /, **values: Any) -> Sentence:
    """Return a pattern with its values. Import it as `_`, so that its patterns are found for translation."""
    made = Sentence(pattern % values if values else pattern)
    made.pattern, made.plural, made.number, made.values = pattern, "", 1, values
    return made


def sentences(singular: str, plural: str, number: float, /, **values: Any) -> Sentence:
    """Return one of two patterns, by a number, with its values. Import it as `ngettext`, as above."""
    made = Sentence((singular if number == 1 else plural) % values)
    made.pattern, made.plural, made.number, made.values = singular, plural, number, values
    return made


def joined(said: Sequence[Sentence]) -> Sentence:
    """Return sentences one after the other, as one."""
    return sentence(
        " ".join(f"%({place})s" for place in range(len(said))), **{str(i): one for i, one in enumerate(said)}
    )


def translated(said: object) -> str:
    """Return a sentence, or that of an error, in the language of this thread; any other text as it is."""
    # Late: whatever raises sentences does not need Django.
    from django.utils.translation import gettext, ngettext

    if isinstance(said, Exception):
        said = said.args[0] if said.args else ""
    if not isinstance(said, Sentence):
        return str(said)
    values = {name: translated(value) if isinstance(value, Sentence) else value for name, value in said.values.items()}
    pattern = ngettext(said.pattern, said.plural, said.number) if said.plural else gettext(said.pattern)
    return pattern % values if values else pattern


def grouped(number: int) -> str:
    """Return a whole number in the language of this thread, as 1,204 in English."""
    from django.utils.formats import number_format

    return number_format(number, use_l10n=True, force_grouping=True)
