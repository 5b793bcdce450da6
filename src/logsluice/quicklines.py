r"""
The quick way for lines of JSON: what quick.py does for rows of `logs`, for files, HTTP and sinks of one's own.

How a line looks is written down in one place, formatters.py. So nothing is spelled here: the whole way is asked once,
for a call site and the names of its extras, what it makes of a record whose values are signs that stand in no log.
Split at the signs, its answer is what all lines of that call site have in common; a record's own values go between.

Any preset, `rename_fields` and the like work so. Where the answer cannot be split (another order, a value that stands
there twice) and wherever a formatter is not ours alone, all records go the whole way.
"""

from __future__ import annotations

import logging
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from logsluice.capture import ID_COLUMNS, STANDARD_NAMES, Captured
from logsluice.encoding import Marks
from logsluice.formatters import SluiceJsonFormatter, level_name
from logsluice.lines import LineTarget
from logsluice.quick import SCALARS, SITES, NotPlainError, QuickWay

if TYPE_CHECKING:
    from logsluice.capture import Rules
    from logsluice.config import Settings
    from logsluice.quick import Plan, Render
    from logsluice.targets import Encode, Target

    # Templates of what stands between message and seq, and behind that; how the extras between are written. () if the
    # whole way's answer could not be split.
    Layout = tuple[str, str, Render] | tuple[()]

# The signs. U+E000 is for private use: where a name of a call site holds it, `isprintable` is false, and that goes the
# whole way. An id's are digits, because an extra of that name may be a number: with quotes the id's text, without them
# the extra as it is.
SIGN = "\ue000"
DIGITS = "72943168059140"
SEQ = f"{DIGITS}77"
IDS = {column: f"{DIGITS}8{n}" for n, column in enumerate(ID_COLUMNS)}
TS, TS_SHOWN = f"2000-01-01 {SIGN}Z", f"2000-01-01T{SIGN}"
MESSAGE, THREAD, TASK, EXTRA = (f'"{SIGN}{name}"' for name in ("message", "thread", "task", "extra"))
EXTRAS = "%(extras)s"  # where these stand in a template
ENDS = 64  # sets of extras and ids remembered of a call site: one has a few
NO_PLAN: Plan = ((), lambda _: "", ())


def quick_way(stream: int, target: Target, encode: Encode, settings: Settings, rules: Rules) -> QuickWay:
    """Return the quick way to this target; closed where there is none."""
    if isinstance(target, LineTarget):
        return QuickLines(stream, target, encode, settings, rules)
    return QuickWay(stream, settings, rules, mapped=not target.plain)


class QuickLines(QuickWay):
    """What the quick way remembers of lines. It is of one formatter: with another one set, it is closed."""

    quote = staticmethod(encode_basestring)

    def __init__(self, stream: int, target: LineTarget, encode: Encode, settings: Settings, rules: Rules) -> None:
        self._target = target
        self._encode = encode
        self._record = logging.LogRecord("", 0, "", 0, "", None, None)  # encoders are told whose fields these are
        formatter = target.formatter()
        self._learnt_from = formatter
        self._settled = formatter.settled() if isinstance(formatter, SluiceJsonFormatter) else None
        self._learnt = 0  # how often the whole way was asked; a lost update is accepted
        super().__init__(stream, settings, rules, mapped=False)
        try:
            self._written(logging.INFO, ["shop", "/srv/shop.py", "42", "pay", settings.service])
        except Exception:
            self._settled = None  # lines of another kind, as OTLP's
            self.choose()

    def choose(self) -> None:
        """As for rows; also whether the formatter, and what levels are called, are what they were."""
        super().choose()
        formatter = self._target.formatter()
        self.open = (
            self.open
            and self._settled is not None
            and formatter is self._learnt_from
            and isinstance(formatter, SluiceJsonFormatter)
            and formatter.settled() == self._settled
            and all(level_name(int(level)) == name for level, name in STANDARD_NAMES.items())
        )

    def spelled(
        self, record: logging.LogRecord, site: Any, plan: Plan | None, task: Any, bound: dict[str, Any]
    ) -> tuple[str, str]:
        """Return what stands between message and seq, and behind that, of a record with ids, a task, other extras."""
        try:
            return self._spelled(record.__dict__, site, plan or NO_PLAN, task, bound)
        except KeyError:  # other extras than last time, or a value that is not plain: then it is raised again
            return self._spelled(record.__dict__, site, self.plan_of(record) or NO_PLAN, task, bound)

    def _spelled(
        self, d: dict[str, Any], site: tuple[Any, ...], plan: Plan, task: Any, bound: dict[str, Any]
    ) -> tuple[str, str]:
        names, _, id_plan = plan
        values = {"thread": self.name(d["threadName"])}  # not `record.threadName`, see `way`
        parts: list[str] = []
        ids: dict[str, str] = {}
        own: tuple[str, ...] = ()
        if id_plan or self.ambient:
            parts, ids = self._ids(d, names, id_plan, bound)
            own = tuple([name for _, name in id_plan if type(d[name]) is not str])
            for name in own:
                values[f"own {name}"] = SCALARS[type(d[name])](d[name])
        elif bound:
            _, parts, ids, _ = self.bound(bound)
            if names and not bound.keys().isdisjoint(names):
                raise ValueError  # an extra wins over a bound value of its name
        process = d["processName"]
        usual = process == "MainProcess" or process is None
        if len(names) + len(bound) + (not usual) > self._items:
            raise ValueError
        key = (names, tuple(bound), tuple(ids), own, task is None, usual)
        layout = site[5].get(key)
        if layout is None:
            layout = self._layout(site, plan, key)
        if not layout:
            raise NotPlainError
        middle, rest, render = layout
        json = ", ".join([part for part in (*parts, render(d)) if part])
        if not usual:
            name = f'"processName": {SCALARS[type(process)](process)}'
            json = f"{json}, {name}" if json else name
        if "://" in json and self._redactor.active:
            raise ValueError
        values.update(ids)
        values["extras"] = json
        if task is not None:
            values["task"] = self.name(task)
        return middle % values, rest % values

    def remember(self, text: str) -> str:
        """See whether a template can be left out of the line without a mark. Remembered."""
        if "\0" in text or len(text) * 4 > self._settings.max_message_bytes:
            raise ValueError
        text.encode()  # raises for a lone surrogate, which would be marked
        return super().remember(text)

    # --- what is learnt from the whole way ----------------------------------------------------------------------

    def _written(self, level: int, texts: list[str | None]) -> tuple[Any, ...]:
        """Return a call site: four pieces around time, message, thread and seq, the end without extras, other ends."""
        if not all(text is None or text.isprintable() for text in texts):
            raise ValueError
        fields = {"level": str(level), **dict(zip(("logger", "file", "line", "func", "service"), texts, strict=True))}
        before, after, middle, rest = _split(self._frame(fields, {}))
        caller, ending = middle.split(THREAD)
        pieces = (before, after, caller, ending, rest)
        if any(SIGN in piece or DIGITS in piece for piece in pieces):
            raise ValueError  # something stands there twice
        return (*pieces, {(): ("", rest)}, fields)

    def _layout(self, site: tuple[Any, ...], plan: Plan, key: tuple[Any, ...]) -> Layout:
        """Return how lines with these extras, bound values and ids look at this call site. Remembered."""
        before, after, caller, ending, rest, ends, fields = site
        try:
            layout = self._learn(fields, plan, key)
            if layout[0] == (before, after):
                found: Layout = layout[1:]
            else:
                found = ()
        except ValueError:
            found = ()
        self._learnt += 1
        if self._learnt >= SITES:
            self._learnt = 0
            self.sites.clear()
            self.lines.clear()
        if len(ends) >= ENDS:
            ends.clear()
            ends[()] = ("", rest)
        ends[key] = found
        names, bound, ids, _, no_task, usual_process = key
        if found and not (bound or ids) and no_task and usual_process and found[1].count(EXTRAS) == 1:
            # What `way` needs where nothing but extras is there. Their names are the key.
            if found[0] != f"{_template(caller)}%(thread)s{_template(ending)}":
                return found
            ends[names] = tuple(piece.replace("%%", "%") for piece in found[1].split(EXTRAS))
        return found

    def _learn(self, fields: dict[str, str | None], plan: Plan, key: tuple[Any, ...]) -> tuple[Any, ...]:
        names, bound, ids, own, no_task, usual_process = key
        signs: dict[str, Any] = {name: _unquoted(EXTRA) for name in bound if name not in ID_COLUMNS}
        signs.update((name, _unquoted(EXTRA)) for name in names)
        signs.update((name, int(IDS[name]) if name in own else IDS[name]) for name in names if name in IDS)
        if not usual_process:
            signs["processName"] = _unquoted(EXTRA)
        fields = {**fields, **{column: IDS[column] for column in ids}, "task": None if no_task else _unquoted(TASK)}
        frame = _template(self._frame(fields, signs))
        others = {name: sign for name, sign in signs.items() if name not in IDS}
        render = plan[1]
        if signs and not _found(signs, frame):  # ids stand elsewhere; or one of them has another name in the line
            signs, render = others, self.plan(tuple(name for name in names if name not in IDS))[1]
        if signs:
            if not (text := _found(signs, frame)):
                raise ValueError
            frame = frame.replace(text, EXTRAS)
        for column, digits in IDS.items():
            frame = frame.replace(f'"{digits}"', f"%({column})s").replace(digits, f"%(own {column})s")
        before, after, middle, rest = _split(frame)
        middle, rest = (piece.replace(THREAD, "%(thread)s").replace(TASK, "%(task)s") for piece in (middle, rest))
        if any(SIGN in piece or DIGITS in piece or piece.count(EXTRAS) > 1 for piece in (before, after, middle, rest)):
            raise ValueError
        return (before.replace("%%", "%"), after.replace("%%", "%")), middle, rest, render

    def _frame(self, fields: dict[str, str | None], extras: dict[str, Any]) -> str:
        """Return the whole way's answer for these fields and extras, the signs in all others."""
        all_fields = dict.fromkeys((*IDS, "task", "exc_type", "exc_message", "exc_text", "template"), None)
        signs = {"ts": TS, "message": _unquoted(MESSAGE), "thread": _unquoted(THREAD), "seq": SEQ}
        captured = Captured({**all_fields, **fields, **signs, "stream": str(self.stream)}, extras, {}, Marks())
        frame = self._encode(captured, self._record, self._rules).decode()
        if captured.marks:
            raise ValueError
        return frame

    # --- what is written in another way than in rows -----------------------------------------------------------------

    def _id_columns(self, ids: list[Any]) -> dict[str, str]:
        """Return the ids that are there, as JSON."""
        texts = zip(ID_COLUMNS, self.id_texts(ids), strict=True)
        return {column: encode_basestring(text) for column, text in texts if text is not None}

    def _end(self, ids: Any, parts: list[str]) -> None:  # noqa: ARG002 - `spelled` makes it
        return None

    def _threaded(self, name: str) -> str:
        return name

    def _moment(self, text: str) -> str:
        return f"{text.replace(' ', 'T')}."


def _unquoted(sign: str) -> str:
    """Return a sign without its quotes."""
    return sign[1:-1]


def _json(sign: Any) -> str:
    return encode_basestring(sign) if type(sign) is str else repr(sign)


def _found(signs: dict[str, Any], frame: str) -> str:
    """Return how these extras are written in a frame, "" unless they stand there once, side by side."""
    text = _template(", ".join(f"{encode_basestring(name)}: {_json(sign)}" for name, sign in signs.items()))
    return text if frame.count(text) == 1 else ""


def _template(text: str) -> str:
    return text.replace("%", "%%")


def _split(frame: str) -> tuple[str, str, str, str]:
    """Split a frame at its signs. Raises ValueError unless they stand in this order, each once, seq twice."""
    start, line, rest = frame.split(SEQ)
    before, line = line.split(TS_SHOWN)
    after, middle = line.split(MESSAGE)
    if start:
        raise ValueError
    return before, after, middle, rest
