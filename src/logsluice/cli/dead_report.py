"""What `logsluice dead` prints: a dead letter in one line, as JSON or whole, and what became of those sent again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from logsluice.cli import common
from logsluice.cli.output import say_anything, visible
from logsluice.deadletters import HEALS, MOST_TRIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterator

    from logsluice.deadletters import DeadLetter, Id, Replayed

NULL = r"\N"  # as COPY writes it, here and in `edit`
LISTED = 10  # ids shown for one reason: enough to look at some of them


def line(letter: DeadLetter) -> str:
    """Return it in one line, as `list` shows it."""
    parts = (second(letter.at), str(letter.id), letter.target, letter.state, letter.sqlstate or "-", _why(letter))
    return "  ".join(map(visible, parts))


def _why(letter: DeadLetter) -> str:
    """Return the reason without its SQLSTATE; the table holds it in ASCII, with the sign for a hidden value escaped."""
    why = (letter.error or "-").removesuffix(f" [{letter.sqlstate}]")
    return why.replace(r"\u2026", "\u2026")


def as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return it without its row: that can hold anything, and `show` shows it."""
    kept = ("at", "seq", "target", "sqlstate", "error", "tries", "due", "stuck", "replayed_at", "state")
    return {"id": str(letter.id), **letter.id._asdict(), **{name: getattr(letter, name) for name in kept}}


def whole(letter: DeadLetter, args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of `show`: its values, the reason, what to do next."""
    tried = f", tried {letter.tries} times" if letter.tries else ""
    due = f", next try due {second(letter.due)}" if letter.due and letter.state == "waiting" else ""
    yield f"dead letter {letter.id}, {letter.state}{tried}{due}"
    yield f"rejected {second(letter.at)} by {visible(letter.target)}"
    yield f"reason: {visible(letter.sqlstate or '-')} {visible(_why(letter))}"
    yield ""
    texts = letter.texts()
    if texts is None:
        yield "its row is not one line of COPY text with one value for each of its columns:"
        yield visible(letter.row.decode(errors="backslashreplace"))
    for column, text in (texts or {}).items():
        yield f"{visible(column)} = {NULL if text is None else visible(text)}"
    yield ""
    yield from _next(letter, args)


def _next(letter: DeadLetter, args: argparse.Namespace) -> Iterator[str]:
    name = str(letter.id)
    even = ["--even-damaged"] if letter.damaged else []
    if letter.state == "replayed":
        yield f"It was stored {second(letter.replayed_at)}. What removes it here:"
        yield f"  {again(args, 'drop', name, '--yes')}"
        return
    if letter.texts() is None:
        yield "It cannot be sent or edited so: write its row and columns anew with SQL, or drop it:"
        yield f"  {again(args, 'drop', name)}"
        return
    if letter.damaged:
        yield "Its bytes come from a damaged block of a journal: mend what is not as it was logged. Next:"
    elif letter.sqlstate in HEALS:
        yield "Mend what the reason names, a row that is missing or a constraint, or change a value. Next:"
    else:
        yield "Change the value that the reason names, or the table. Next:"
    yield f"  {again(args, 'edit', name)} COLUMN=VALUE"
    yield f"  {again(args, 'replay', *even, name)}"
    yield f"  {again(args, 'drop', name)}"


def replayed(args: argparse.Namespace, done: Replayed, *, say_none: str) -> int:
    """Print what became of a replay, `say_none` where there was nothing to send; 1 when one stays dead."""
    say_anything(sys.stdout)
    say_anything(sys.stderr)
    dead = done.refused + done.held
    if not done.stored and not dead and say_none:
        print(say_none)
        return 0
    print(f"stored {len(done.stored)}")
    if not dead:
        return 0
    stuck = f", {done.stuck} of them given up after {MOST_TRIES} tries" if done.stuck else ""
    print(f"{len(dead)} stay dead{stuck}:", file=sys.stderr)
    reasons: dict[str, list[Id]] = {}
    for one, why in dead:
        reasons.setdefault(why, []).append(one)
    for why, ids in reasons.items():
        print(f"  {visible(why)}\n    {_some(ids)}", file=sys.stderr)
    print(f"What each holds and what to do next:\n  {again(args, 'show')} ID", file=sys.stderr)
    return 1


def nobody(args: argparse.Namespace, ids: Collection[Id]) -> int:
    """Say that there are no such dead letters, and return 1."""
    print(f"there is no dead letter {_some(sorted(ids))}. Those that wait:\n  {again(args, 'list')}", file=sys.stderr)
    return 1


def _some(ids: Collection[Id]) -> str:
    names = [str(one) for one in ids]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def again(args: argparse.Namespace, name: str, *words: str) -> str:
    """Return the command of `logsluice dead` to run next."""
    return common.command(args, "dead", name, *common.schema_words(args), *words)


def second(moment: str | None) -> str:
    """Return a moment of a dead letter as people read it."""
    text = visible(moment or "-")
    return text.split(".")[0].replace("T", " ") + "Z" if text.endswith("Z") else text
