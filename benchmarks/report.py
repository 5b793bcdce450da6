"""
The page docs/explanation/performance.md: its tables and its plots, made from benchmarks/results.

    python benchmarks/report.py [--check] [--results DIR] [--page FILE]

It rewrites what stands between the page's markers, and the plots beside the page (matplotlib, of the `dev` extra).
`--check` writes nothing and needs no matplotlib; it fails if a table says something else than the JSON, or if a plot is
not there. A section whose JSON is missing says "not run", and stderr names the JSON.

NAME.json is a benchmark's first run; NAME-2.json, NAME-3.json are the same again. The table of goals shows each run.
Tables and plots of the call and the stall pool the rounds of all runs; every other section shows the first run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from report_results import GROUPS, Results, curves, grouped, middle, profiles
from tables import RESULTS, ROOT, between, machine, measured_and_goal, number

PAGE = ROOT / "docs" / "explanation" / "performance.md"
PLOTS = "performance"  # the folder beside the page
NOT_RUN = "not run"
MIB = 1 << 20
KINDS = ("plain", "two extras", "three bound")

# DESIGN 5, line by line, and the rows of the results that answer it; a third item is the goal of a row that has none. A
# pattern that finds no row is said to be not run.
GOALS = (
    ("added to a `NullHandler` call, memory and journal alike", (
        ("call_overhead", "added to a call, plain,*(CPU time)"),
        ("call_overhead", "added to a call, two extras,*(CPU time)"),
        ("call_overhead", "with the journal, plain (CPU time)"),
        ("instructions", "added, plain,*"), ("instructions", "added, two extras,*"),
    )),
    ("the same beside three busy Python threads", (
        ("call_overhead", "added beside three busy threads,*"), ("call_overhead", "the same with the journal"),
    )),
    ("committed end to end from `logger.info`, one process", (
        ("end_to_end", "committed, beside QueueListener*"), ("end_to_end", "committed, beside one INSERT*"),
        ("peers", "committed, beside *"),
    )),
    ("draining a backlog", (("drain", "draining a backlog*"),)),
    ("p99.9 of the call while saturated; the longest call", (
        ("call_overhead", "p99.9 of the call*"), ("call_overhead", "longest call, saturated*"),
        ("call_overhead", "longest call with the journal, sat*"),
        ("call_overhead", "longest call there*"), ("call_overhead", "the same with the journal, longest call"),
        ("stall", "*"),
    )),
    ("with three bound context values and key redaction", (
        ("call_overhead", "added to a call, three bound,*(CPU time)"), ("instructions", "added, three bound,*"),
    )),
    ("what five systems claim of themselves", (
        ("call_overhead", "a whole call, plain*"), ("call_overhead", "appended by one thread"),
        ("end_to_end", "committed end to end"), ("memory", "memory: * waiting*message*: beside what a peer claims"),
        ("end_to_end", "transactions for 50 records"),
    )),
    ("process CPU for each record, beyond the logging call", (("end_to_end", "process CPU*"),)),
    ("memory of 10,000 waiting records; during an outage", (
        ("end_to_end", "memory of 10,000 waiting*"), ("memory", "* waiting records, message*000 bytes"),
        ("memory", "*outage*: peak over base"), ("memory", "memory, outage*: of the limit itself", 1),
    )),
    ("cost per record from 10 k to 10 M stored rows", (
        ("growth", "rows,*distance from 0"), ("growth", "rows,*spread"), ("growth", "rows,*instructions*"),
    )),
    ("kill -9 at random, journal", (("kills", "*"),)),
)  # fmt: skip
SCRIPTS = {"memory_soak": "memory.py --soak", "traffic_journal": "traffic.py --journal"}  # where JSON is not NAME.json

# --- the tables ---------------------------------------------------------------------------------------------------


def table(heads, lines):
    """Markdown."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, ["---"] * len(heads), *lines))


def ran(runs, name):
    """By which script, how often, where."""
    times = [f"{len(runs)} runs"] if len(runs) > 1 else []
    times.append(f"{runs[0]['rounds']} round{'s' * (runs[0]['rounds'] != 1)}")
    places = dict.fromkeys(machine(run["facts"]) for run in runs)
    return f"`{SCRIPTS.get(name, f'{name}.py')}` ({', '.join(times)}): {'; '.join(places)}."


def goals(found):
    """DESIGN 5: goal, median, each run."""
    lines = []
    for title, answers in GOALS:
        lines.append([f"**{title}**", "", "", "", ""])
        for name, pattern, *bound in answers:
            runs = found.rows(name)
            names = list(dict.fromkeys(what for run in runs for what in run if fnmatchcase(what, pattern)))
            own = {"goal": bound[0]} if bound else {}
            measured = [(what, [run[what] | own for run in runs if what in run]) for what in names]
            answered = [(what, rows) for what, rows in measured if rows[0]["goal"] is not None]
            lines += [goal_line(what, rows) for what, rows in answered]
            if not answered:
                lines.append([f"{name}: {pattern.strip('*')}", "", NOT_RUN, "", ""])
    heads = ["", "goal", "median", "each run", ""]
    return f"{table(heads, lines)}\n\nNo word in the last column: the goal is reached in every run."


def figure(value):
    """A count as it is, a measure with as many digits as it is worth."""
    return f"{value:,.0f}" if value == int(value) and value < 1000 else number(value)


def goal_line(what, rows):
    median = statistics.median(row["measured"] for row in rows)
    _, goal, missed = measured_and_goal({**rows[0], "measured": median})
    misses = sum(measured_and_goal(row)[2] for row in rows)
    said = "**missed**" if missed else f"missed in {misses} of {len(rows)}" if misses else ""
    each = ", ".join(figure(row["measured"]) for row in rows)
    return [what, goal, f"{figure(median)} {rows[0]['unit']}".strip(), each, said]


def call(found):
    lines = []
    for kind, rounds, ours in [
        *((kind, found.rounds("call_overhead", "ns_a_call", kind), "logsluice") for kind in KINDS),
        ("plain, journal", found.rounds("call_overhead", "journal_ns_a_call"), "logsluice, journal"),
    ]:
        null = statistics.median(one["NullHandler"]["cpu"] for one in rounds)
        cells = [null, *(added(rounds, name) for name in ("FileHandler", "QueueHandler, Queue", ours))]
        lines.append([kind, *(f"{value / 1000:.2f}" for value in cells)])
    heads = ["CPU time, µs", "a NullHandler call", "FileHandler adds", "QueueHandler adds", "logsluice adds"]
    return table(heads, lines)


def added(rounds, name):
    """CPU ns that a handler adds to a NullHandler's call: the median of the rounds."""
    return statistics.median(one[name]["cpu"] - one["NullHandler"]["cpu"] for one in rounds)


def instructions(found):
    lines = [
        [
            version,
            kind,
            *(f"{one[who]:,.0f}" for who in ("NullHandler", "QueueHandler", "logsluice")),
            number(run["added"][kind]),
            *(f"{one[who]:,.0f}" if who in one else "" for who in ("FileHandler, JSON", "logsluice, JSON")),
            number(run["lines_added"][kind]) if kind in run.get("lines_added", {}) else "",
        ]
        for version, run in found.runs("instructions")[0].items()
        for kind, one in run["instructions_a_call"].items()
    ]
    heads = ["Python", "instructions of a call", "NullHandler", "QueueHandler", "logsluice", "added, of QueueHandler's"]
    heads += ["FileHandler, JSON", "logsluice, JSON", "added, of FileHandler's"]
    return table(heads, lines)


def stall(found):
    def cell(rounds, who, what):
        values = [one[who][what] for one in rounds if who in one]
        return number(statistics.median(values) / 1000) if values else ""

    columns = [(who, "p99.9") for who in ("NullHandler", "FileHandler", "recipe", "memory", "journal")]
    columns += [(who, "longest") for who in ("NullHandler", "memory", "journal")]
    lines = []
    for case in found.details("stall")["ns_a_call"]:
        rounds = found.rounds("stall", "ns_a_call", case)
        lines.append([case, *(cell(rounds, who, what) for who, what in columns)])
    return table(["µs a call", *(f"{who}: {what}" for who, what in columns)], lines)


def peers(found):
    run, details, rows, lines = found.runs("peers")[0], found.details("peers"), found.rows("peers")[0], []
    for name, turns in sorted(details["seen"].items(), key=lambda one: -(middle(one[1], "a_second") or 0)):
        beside = rows.get(f"committed, beside {name}")  # a ratio of rounds
        figures = [middle(turns, what) for what in ("call_us", "call_p999_us", "cpu_us")]
        figures = [middle(turns, "a_second"), beside and beside["measured"], *figures]
        peak, faults = middle(turns, "peak_bytes"), details["faults"].get(name)
        worst = max((turn["lost"] for turn in faults), default=0) if faults else None
        lines.append([
            name, *(number(value) if value else "" for value in figures), number(peak / 1e6) if peak else "",
            f"{worst} of {faults[0]['returned_before_the_kill']}" if faults else "",
            details["differs"].get(name, ""),
        ])  # fmt: skip
    heads = ["", "records/s", "ours, of that", "call, µs", "p99.9, µs", "CPU, µs", "peak, MB", "lost by kill -9"]
    unfair = [f"- {what}: {why}." for what, why in run["not_compared"].items()]
    absent = [f"- {NOT_RUN}: {name}; {install}" for name, install in details["not_run"].items()]
    return "\n".join([table([*heads, "differs"], lines), "", "Not compared, and why:", "", *unfair, *absent])


def growth(found):
    def cell(first, last, what):
        return f"{number(first[what])} → {number(last[what])}" if what in first else ""

    figures = {"cpu_us": "client CPU, µs", "server_us": "server CPU, µs", "wall_us": "wall, µs", "wal": "WAL, bytes"}
    lines = []
    for name, points in curves(found.details("growth")).items():
        (least, first), (most, last) = points[0], points[-1]
        lines.append([name, f"{least:,} → {most:,}", *(cell(first, last, what) for what in figures)])
    return table(["a record", "of", *figures.values()], lines)


def traffic(found):
    both = [(found.rows(name) or [{}])[0] for name in ("traffic", "traffic_journal")]
    lines = []
    for what, row in both[0].items():
        cells = [measured_and_goal(one[what]) if what in one else (NOT_RUN, "", False) for one in both]
        said = [f"{measured}{' **missed**' if missed else ''}" for measured, _, missed in cells]
        lines.append([what, measured_and_goal(row)[1], *said])
    return table(["", "goal", "memory", "journal"], lines)


def memory(found):
    details, lines = found.details("memory"), []
    for one in details["waiting"]:
        grown = middle(one["seen"], "uss") / 1e6
        lines.append(
            [f"{one['mode']}: 10,000 waiting records, {one['reading']} of 1,000 bytes", f"{grown:.1f} MB", "", "", ""]
        )
    for one in details["outages"]:
        end, limit = one["end"], one["capacity"]
        what = f"{one['mode']}: outage, limit {limit // MIB} MiB, records of {one['size']:,} bytes"
        lines.append([
            what, f"{end['peak'] / MIB:.1f} MiB", number(end["peak"] / limit), f"{end['rss'] / MIB:.1f} MiB",
            f"{100 * end['dropped'] / end['offered']:.0f} %",
        ])  # fmt: skip
    return table(["grown by", "at most", "of the limit", "when all is stored", "dropped"], lines)


def soak(found):
    details, lines = found.details("memory_soak"), []
    for mode, one in details["modes"].items():
        slope, end = details["slopes"][mode]["uss"], one["end"]
        if end is None:
            lines.append([f"{mode}: {NOT_RUN} to its end", "", "", "", ""])
            continue
        lines.append([
            f"{mode}, {one['rate']:,} records/s, {details['minutes']:g} minutes", f"{slope['kb_an_hour']:,.0f}",
            f"{slope['least']:,.0f} to {slope['most']:,.0f}", f"{end['logged']:,}",
            f"{end['logged'] - end['stored']:,}",
        ])  # fmt: skip
    return table(["", "USS grows by KB an hour", "95 % of resampled slopes", "logged", "not stored"], lines)


def far(found):
    turns = found.details("far")["turns"]
    counts = list(dict.fromkeys(turn["connections"] for turn in turns))
    rates = {(turn["delay_ms"], turn["connections"]): middle(turn["rounds"], "a_second") for turn in turns}
    delays = dict.fromkeys(delay for delay, _ in rates)
    lines = [[f"{delay:g} ms", *(number(rates[delay, count]) for count in counts)] for delay in delays]
    return table(["records/s, round trip added", *(f"{count} connections" for count in counts)], lines)


def fanout(found):
    runs = found.rows("fanout")
    lines = [
        [what.partition(": ")[2], *(number(run[what]["measured"]) for run in runs)]
        for what in sorted(runs[0], key=lambda what: runs[0][what]["measured"])
    ]
    return table(["added to a call with two extras, µs", *(f"run {n + 1}" for n in range(len(runs)))], lines)


def batches(found):
    rates = {
        (one["delay_ms"], one["batch_bytes"]): statistics.median(one["records_per_second"])
        for one in found.details("batches")
    }
    sizes = dict.fromkeys(size for _, size in rates)
    lines = [
        [f"{delay:g} ms", *(number(rates[delay, size]) for size in sizes)]
        for delay in dict.fromkeys(delay for delay, _ in rates)
    ]
    return table(["records/s, round trip added", *(f"{size // 1024} KiB" for size in sizes)], lines)


def server(found):
    rows = found.rows("server")[0]
    shipped = [f"{number(rows[what]['measured'])} {rows[what]['unit']}" for what in ("as shipped", "as shipped: WAL")]
    return f"The shipped schema: {' and '.join(shipped)} of WAL. Each case in numbers: [tuning](../howto/tune.md)."


def profile(found):
    lines = [
        [name, f"{case['total']:,.0f}", *(f"{count:,.0f}" for count in grouped(case).values())]
        for name, case in profiles(found).items()
    ]
    runs = {"before": found.runs("profile_before")[0], "after": found.runs("profile")[0]}
    said = [f"{when}: commit {run['commit']}, Python {run['python']}" for when, run in runs.items()]
    return f"{table(['instructions of a call', 'all', *GROUPS, 'other'], lines)}\n\n{'; '.join(said)}."


# --- the page -----------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """Between the markers of this name: the plot, if it has one, the table, and who ran it where."""

    content: object  # Results -> Markdown
    needs: tuple[str, ...]  # without the first it is left out; with several, those must be there as well if `all_of`
    plot: str = ""  # what it shows, in words for those who do not see it
    all_of: bool = False


SECTIONS = {
    "goals": Section(goals, ()),
    "call": Section(call, ("call_overhead",), "What our handler adds to a logging call, of what QueueHandler adds"),
    "instructions": Section(instructions, ("instructions",)),
    "fanout": Section(fanout, ("fanout",)),
    "profile": Section(profile, ("profile", "profile_before"), "Instructions of a call before and after", all_of=True),
    "stall": Section(stall, ("stall",), "How long a logging call takes: p50, p99, p99.9 and the longest"),
    "peers": Section(peers, ("peers",), "Records a second until all are committed, and what kill -9 loses"),
    "growth": Section(growth, ("growth",), "Cost of a record when there is more of everything"),
    "traffic": Section(traffic, ("traffic", "traffic_journal"), "A day in ten minutes"),
    "memory": Section(memory, ("memory",), "Memory during an outage, and its limit"),
    "soak": Section(soak, ("memory_soak",), "Memory during a steady load"),
    "far": Section(far, ("far",), "Records a second by distance and connections"),
    "batches": Section(batches, ("batches",), "Records a second by size of a batch and distance"),
    "server": Section(server, ("server",), "What each variant of the table costs the server"),
}


def there(section, found):
    absent = [name for name in section.needs if not found.runs(name)]
    return not absent or not (section.all_of or section.needs[0] in absent)


def made(text, found):
    """The page with all of its generated parts."""
    for name, section in SECTIONS.items():
        parts = [NOT_RUN]
        if there(section, found):
            parts = [f"![{section.plot}]({PLOTS}/{name}.svg)"] if section.plot else []
            parts.append(section.content(found))
            ways = [(found.runs(need), need) for need in section.needs if found.runs(need)]
            parts += [ran(runs, need) for runs, need in ways if "facts" in runs[0]]
        text = between(text, name, "\n\n".join(parts))
    return text


def plots_of(found):
    return [name for name, section in SECTIONS.items() if section.plot and there(section, found)]


def wrong(page, results):
    """What --check complains of."""
    found, text = Results(results), page.read_text(encoding="utf-8")
    complaints = [] if made(text, found) == text else [f"{page.name} is not what the results say"]
    files = [page.parent / PLOTS / f"{name}.svg" for name in plots_of(found)]
    return complaints + [f"{path.name} is not there" for path in files if not path.exists()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page says something else")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    if args.check:
        complaints = wrong(args.page, args.results)
        print("\n".join(f"{complaint}: run report.py" for complaint in complaints), end="\n" if complaints else "")
        return int(bool(complaints))
    import report_plots  # noqa: PLC0415 - here alone: the check needs no matplotlib

    found = Results(args.results)
    args.page.write_text(made(args.page.read_text(encoding="utf-8"), found), encoding="utf-8")
    for name in plots_of(found):
        report_plots.draw(name, found, args.page.parent / PLOTS / f"{name}.svg")
    for name in dict.fromkeys(found.missing):
        print(f"{NOT_RUN}: {name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
