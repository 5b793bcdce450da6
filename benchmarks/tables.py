"""
The tables of README.md and of docs/explanation's life-cycle.md, faults.md, operating.md, from benchmarks/results.

    python benchmarks/tables.py [--check]

It rewrites what stands between a page's markers. `--check` writes nothing and fails if a page says something else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BENCHMARKS = ("call_overhead", "end_to_end", "drain")  # in the order of the table
NAMES = {"cpu": "", "cores": "cores", "os": "", "python": "Python", "psycopg": "psycopg", "postgresql": "PostgreSQL"}


def number(value):
    """A figure with no more digits than it is worth."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def measured_and_goal(row):
    """Return the texts of both, and whether the goal was missed."""
    measured, goal = row["measured"], row["goal"]
    unit = f" {row['unit']}" if row["unit"] else ""
    if goal is None:
        return number(measured) + unit, "", False
    missed = measured < goal if row["least"] else measured > goal
    return number(measured) + unit, f"{'≥' if row['least'] else '≤'} {goal:,}{unit}", missed


def machine(facts):
    """Machine and versions in one line."""
    words = []
    for key, name in NAMES.items():
        value = facts[key]
        words.append(f"{value} {name}" if key == "cores" else f"{name} {value}".strip())
    return ", ".join(words)


def speed(results):
    """README's table: results by name of their benchmark; one that was not run is left out."""
    lines, machines = [], {}
    for name in BENCHMARKS:
        if name not in results:
            continue
        machines.setdefault(machine(results[name]["facts"]), []).append(name)
        for row in results[name]["rows"]:
            if row["goal"] is None:
                continue  # beside a goal it explains; the JSON has it
            measured, goal, missed = measured_and_goal(row)
            lines.append(f"| {row['what']} | {goal} | {measured}{' **goal missed**' if missed else ''} |")
    if not lines:
        return ""
    table = ["| | goal | measured |", "|---|---|---|", *lines, ""]
    for words, names in machines.items():
        run = ", ".join(f"{name}.py ({results[name]['rounds']} rounds)" for name in names)
        table.append(f"{run}: {words}.")
    return "\n".join(table)


def situations(lines):
    """The table of life-cycle.md: a row for each situation, a column for each minor version of Python."""
    cells, pythons = {}, set()
    for line in lines:
        minor = tuple(int(part) for part in line["python"].split(".")[:2])
        pythons.add(minor)
        cells.setdefault(line["situation"], {}).setdefault(minor, []).append(line)
    if not cells:
        return ""
    columns = sorted(pythons)
    table = [
        "| lost / twice / seconds | " + " | ".join(f"{major}.{minor}" for major, minor in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for situation, found in cells.items():
        name = situation.replace("|", "\\|")
        table.append(f"| {name} | " + " | ".join(_cell(found.get(python, [])) for python in columns) + " |")
    return "\n".join(table)


def _cell(lines):
    """The worst of what was lost and stored twice, and the median of the times. Never tested there: empty."""
    if not lines:
        return ""
    seconds = [line["seconds"] for line in lines if line["seconds"] is not None]
    time = f"{statistics.median(seconds):.2f}" if seconds else "-"
    worst = max(lines, key=lambda line: line["lost"])
    lost = f"{worst['lost']:,} of {worst['logged']:,}" if worst["lost"] else "0"
    return f"{lost} / {max(line['twice'] for line in lines)} / {time}"


def faults(lines):
    """The table of faults.md: a row for each row of the fault matrix, and one for each control."""
    groups = {}
    for line in lines:
        groups.setdefault((line["row"], line["control"], line["test"].split("[")[0]), []).append(line)
    if not groups:
        return ""
    table = ["| row | test | mode | result | lost | twice | recovery, s | |", "|---" * 8 + "|"]
    for (row, control, test), found in sorted(groups.items()):
        path, _, name = test.partition("::")
        link = f"[{name.removeprefix('test_')}](../../{path})"
        for mode in sorted({line["mode"] for line in found}):
            same = [line for line in found if line["mode"] == mode]
            results = {line["result"] for line in same}
            times = [line["recovery_seconds"] for line in same if line["recovery_seconds"] is not None]
            notes = list(dict.fromkeys(line["note"].replace("|", "/") for line in same if line["note"]))
            cells = [
                row + (" control" if control else ""),
                link,
                mode,
                "passed" if results == {"passed"} else "**failed**",
                _worst(same, "lost"),
                _worst(same, "twice"),
                f"{max(times):.2f}" if times else "-",
                "; ".join(notes[:2]),
            ]
            table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def _worst(lines, what):
    return str(max((line[what] for line in lines if line[what] is not None), default="-"))


def operating(result):
    """The table of operating.md: what was asked, how long it took, how it was found; then retention."""
    if result is None:
        return ""
    stored, parts = result["details"]["stored"], []
    if "queries" in result["details"]:
        parts += ["| | median, ms | p95, ms | calls | found by | rows passed over |", "|---" * 6 + "|"]
        for one in result["details"]["queries"]:
            plan = one["plan"]
            scans = ", ".join(f"{kind} ({count})" for kind, count in plan["scans"].items())
            figures = [number(one["median_ms"]), number(one["p95_ms"]), str(one["calls"]), scans]
            parts.append("| " + " | ".join([one["what"], *figures, f"{plan['rows_removed']:,.0f}"]) + " |")
        parts.append("")
    if "retention" in result["details"]:
        parts += _retained(result)
    facts = f"{stored['rows']:,} rows, {stored['bytes'] / (1 << 30):.1f} GiB with indexes: {machine(result['facts'])}."
    return "\n".join([*parts, facts])


def _retained(result):
    lines = ["| beside maintenance | goal | measured |", "|---|---|---|"]
    for row in result["rows"]:
        if row["what"].endswith(": median"):
            continue  # a query's
        measured, goal, missed = measured_and_goal(row)
        measured = f"{row['measured']:g}" if row["goal"] == 0 else measured
        lines.append(f"| {row['what']} | {goal} | {measured}{' **goal missed**' if missed else ''} |")
    heads = ["rules", "s", "rows gone", "MiB freed", "call before: p50, p99, max, µs", "during", "after"]
    lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in result["details"]["retention"]["rounds"]:
        calls = [
            ", ".join(number(one[when][figure]) for figure in ("p50_us", "p99_us", "max_us"))
            for when in ("before", "during", "after")
        ]
        rules = " ".join(f"`{rule}`" for rule in one["rules"])
        figures = [number(one["seconds"]), f"{one['rows']:,}", f"{one['bytes'] / (1 << 20):,.0f}"]
        lines.append("| " + " | ".join([rules, *figures, *calls]) + " |")
    return [*lines, ""]


def between(text, name, content):
    """Return a page with the content between its two markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page must hold {begin} and {end}, once each and in this order")
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{content}{chr(10) if content else ''}{end}{after}"


def pages(root=ROOT, results=RESULTS):
    """Return {path: (what it says, what it should say)}."""

    def loaded(name):
        path = results / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    found = {name: result for name in BENCHMARKS if (result := loaded(name)) is not None}

    def lines(name):
        path = results / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    contents = {
        root / "README.md": ("benchmarks", speed(found)),
        root / "docs" / "explanation" / "life-cycle.md": ("situations", situations(lines("situations.jsonl"))),
        root / "docs" / "explanation" / "operating.md": ("operate", operating(loaded("operate"))),
        root / "docs" / "explanation" / "faults.md": ("faults", faults(lines("matrix.jsonl"))),
    }
    made = {}
    for path, (name, content) in contents.items():
        text = path.read_text(encoding="utf-8")
        made[path] = (text, between(text, name, content))
    return made


def main():
    parser = argparse.ArgumentParser(description="Make the tables of README.md and life-cycle.md from results/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page says something else")
    check = parser.parse_args().check
    differ = [path for path, (said, should) in pages().items() if said != should]
    for path in differ:
        if not check:
            path.write_text(pages()[path][1], encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'is not what results/ says: run tables.py' if check else 'rewritten'}")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
