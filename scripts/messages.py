"""Keep the translations in step with the code: see `scripts/messages`.

It does what Django's makemessages and compilemessages do, which work too, but need GNU gettext. And it differs in two
ways: a text that has changed loses its translation rather than keeping a similar one, and places have no line numbers,
so that a change of code does not change every file.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polib
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parents[1]
LOCALE = ROOT / "webtask_scheduler" / "locale"
# CLDR's rules, as GNU gettext writes them.
_TWO = "nplurals=2; plural=(n != 1);"
_TWO_FROM_TWO = "nplurals=2; plural=(n > 1);"
_SIX = "nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 && n%100<=99 ? 4 : 5;"
PLURALS = {"ar": _SIX, "de": _TWO, "es": _TWO, "fr": _TWO_FROM_TWO, "pt_BR": _TWO_FROM_TWO}
# Which arguments of a call are the context, the text and its plural.
CALLS: dict[str, tuple[int | None, int, int | None]] = {
    **dict.fromkeys(("_", "gettext", "gettext_lazy", "gettext_noop"), (None, 0, None)),
    **dict.fromkeys(("ngettext", "ngettext_lazy"), (None, 0, 1)),
    **dict.fromkeys(("pgettext", "pgettext_lazy"), (0, 1, None)),
    **dict.fromkeys(("npgettext", "npgettext_lazy"), (0, 1, 2)),
}
PLACEHOLDER = re.compile(r"%\(\w+\)[#0\- +]?[0-9.]*[a-z]|%%|\{\w*\}")
# A plural's form may say its number in a word: one, two, none.
IN_A_WORD = "%(count)s"


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the code, with what tells it from others."""

    context: str | None
    text: str
    plural: str = ""


def texts_of_python(code: str) -> Iterator[Text]:
    """Yield the texts that calls of gettext and its like name, in the order of their places."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name not in CALLS:
            continue
        given = [one.value if isinstance(one, ast.Constant) else None for one in call.args]
        context, text, plural = (None if place is None else (given + [None] * 3)[place] for place in CALLS[name])
        # A variable in its place is a constant that was marked where it was made.
        if isinstance(text, str):
            yield Text(str(context) if context is not None else None, text, str(plural or ""))


def texts_of_template(source: str) -> Iterator[Text]:
    """Yield the texts of a Django template."""
    calls = templatize(source)
    for found in re.finditer(r"\bn?p?gettext\(", calls):
        for end in (found.end() + one.end() for one in re.finditer(r"\)", calls[found.end() :])):
            try:
                ast.parse(calls[found.start() : end])
            except SyntaxError:
                continue
            yield from texts_of_python(calls[found.start() : end])
            break


def texts() -> dict[Text, list[str]]:
    """Return all texts of the code, each with the files that have it."""
    found: dict[Text, list[str]] = {}
    for path in sorted([*ROOT.glob("webtask_scheduler/**/*"), *ROOT.glob("config/**/*.py")]):
        if path.suffix not in (".py", ".html", ".txt") or {"tests", "migrations"} & set(path.parts):
            continue
        read = texts_of_python if path.suffix == ".py" else texts_of_template
        place = str(path.relative_to(ROOT))
        for text in read(path.read_text()):
            places = found.setdefault(text, [])
            if place not in places:
                places.append(place)
    return found


def path_of(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / "django.po"


def update() -> None:
    """Rewrite each file: the texts of the code, with the translations that they have already."""
    now = texts()
    for language, plurals in PLURALS.items():
        path = path_of(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = polib.pofile(str(path)) if path.exists() else polib.POFile()
        known = {_key(entry): entry for entry in before}
        after = polib.POFile(wrapwidth=120)
        after.metadata = before.metadata or {
            "Project-Id-Version": "webtask_scheduler",
            "PO-Revision-Date": f"{datetime.now(UTC):%Y-%m-%d %H:%M%z}",
            "Language": language,
            "MIME-Version": "1.0",
            "Content-Type": "text/plain; charset=UTF-8",
            "Content-Transfer-Encoding": "8bit",
        }
        after.metadata["Plural-Forms"] = plurals
        for text, places in now.items():
            after.append(_entry(text, places, known.get(text), forms=int(plurals[len("nplurals=")])))
        after.save(str(path))
        print(f"{path.relative_to(ROOT)}: {len(after)} texts, {len(after.untranslated_entries())} to translate")
    compile_all()


def _key(entry: polib.POEntry) -> Text:
    return Text(entry.msgctxt, entry.msgid, entry.msgid_plural or "")


def _entry(text: Text, places: Iterable[str], known: polib.POEntry | None, *, forms: int) -> polib.POEntry:
    entry = polib.POEntry(msgctxt=text.context, msgid=text.text, occurrences=[(place, "") for place in places])
    if text.plural:
        entry.msgid_plural = text.plural
        entry.msgstr_plural = known.msgstr_plural if known else dict.fromkeys(range(forms), "")
    else:
        entry.msgstr = known.msgstr if known else ""
    if known is not None:
        entry.tcomment = known.tcomment
        entry.flags = [flag for flag in known.flags if flag == "fuzzy"]
    if any(PLACEHOLDER.fullmatch(found) and found[0] == "%" for found in PLACEHOLDER.findall(text.text + text.plural)):
        entry.flags.append("python-format")
    return entry


def compile_all() -> None:
    """Write the files that Django reads beside those that people write."""
    for path in map(path_of, PLURALS):
        polib.pofile(str(path)).save_as_mofile(str(path.with_suffix(".mo")))


def problems() -> Iterator[str]:
    """Yield what is wrong with the translations."""
    now = texts()
    for language in PLURALS:
        path = path_of(language)
        name = path.relative_to(ROOT)
        if not path.exists():
            yield f"{name} is not there"
            continue
        known = {_key(entry): entry for entry in polib.pofile(str(path)) if not entry.obsolete}
        for text in now.keys() - known.keys():
            yield f"{name} does not know {text.text!r}: run ./scripts/messages"
        for text in known.keys() - now.keys():
            yield f"{name} has {text.text!r}, which is no longer in the code: run ./scripts/messages"
        for text, entry in known.items():
            yield from (f"{name}: {text.text!r} {wrong}" for wrong in _wrong(text, entry))


def _wrong(text: Text, entry: polib.POEntry) -> Iterator[str]:
    """Yield what is wrong with one translation."""
    if "fuzzy" in entry.flags:
        yield "is marked as fuzzy"
    given = [PLACEHOLDER.findall(source) for source in filter(None, (text.text, text.plural))]
    allowed = set().union(*given)
    required = set(given[0]).intersection(*given)
    for said in entry.msgstr_plural.values() if text.plural else [entry.msgstr]:
        found = set(PLACEHOLDER.findall(said))
        if not said:
            yield "is not translated"
        elif found - allowed:
            yield f"has {', '.join(sorted(found - allowed))}, which its source has not"
        elif required - found - ({IN_A_WORD} if text.plural else set()):
            yield f"lacks {', '.join(sorted(required - found))}"
        elif (said[:1] == " ", said[-1:] == " ", said[-1:] == "\n") != (
            text.text[:1] == " ",
            text.text[-1:] == " ",
            text.text[-1:] == "\n",
        ):
            yield "begins or ends with another space than its source"
        elif text.plural == "" and "%(" in said:
            try:
                _ = said % dict.fromkeys(re.findall(r"%\((\w+)\)", said), 1)
            except (ValueError, TypeError) as error:
                yield f"cannot be filled in: {error}"


def main() -> int:
    task = sys.argv[1] if len(sys.argv) > 1 else "update"
    if task == "update":
        update()
    elif task == "compile":
        compile_all()
    elif task == "check":
        found = list(problems())
        if not found:
            compile_all()
        print("\n".join(found) or f"{len(texts())} texts are translated to {len(PLURALS)} languages.")
        return 1 if found else 0
    else:
        sys.exit("./scripts/messages [update|compile|check]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
