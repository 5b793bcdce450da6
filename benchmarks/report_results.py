"""What lies in benchmarks/results, as report.py and report_plots.py need it."""

from __future__ import annotations

import json
import re
import statistics

TAILS = ("p50", "p99", "p99.9", "longest")  # of a call's time, as stall.py writes them
BOUNDS = {"plain": 0.40, "two extras": 0.40, "three bound": 0.45}  # DESIGN 5; instructions.json holds counts alone
USUAL = "3.11"  # the Python of all other benchmarks; of the others only instructions were counted


HANDLERS = {"null": "NullHandler", "queue": "QueueHandler"}  # what a profile calls cases that are not ours
# C functions of a profile by what they are for; the first that matches has it, what none matches is "other".
GROUPS = {
    "the interpreter's loop": r"PyEval|_PyFrame|frame_|gen_send|PopFrame|initialize_locals|PyCode",
    "memory": r"alloc|[Ff]ree|NewReference|[Dd]ealloc|GC|gc_|visit_|traverse",
    "texts, copying": r"find_slice|_copy_char|[Uu]nicode|[Uu]tf8|[Ss]tr|[Bb]ytes|[Ff]ormat|mem(cpy|move|chr|cmp|set)",
    "dicts and attributes": r"[Dd]ict|[Ll]ookup|[Aa]ttr|[Hh]ash|descr|slot|insert|getset",
    "calls and arguments": r"[Cc]all|function|method|[Tt]uple|[Aa]rg|FunctionResult|convertitem",
    "numbers and time": r"[Ll]ong|[Ff]loat|time|clock|count",
}


class Results:
    """What lies in a folder of results, each file read when it is asked for; `missing`: what was asked for in vain."""

    def __init__(self, folder):
        self.folder, self.missing, self._runs = folder, [], {}

    def runs(self, name):
        """All runs of a benchmark, the first first; none: []."""
        if name not in self._runs:
            again = self.folder.glob(f"{name}-*.json")
            numbered = sorted((int(end), path) for path in again if (end := path.stem.rpartition("-")[2]).isdigit())
            paths = [path for path in (self.folder / f"{name}.json", *(path for _, path in numbered)) if path.exists()]
            self._runs[name] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            if not paths:
                self.missing.append(f"{name}.json")
        return self._runs[name]

    def details(self, name):
        """Of the first run; {} if there is none."""
        return self.runs(name)[0]["details"] if self.runs(name) else {}

    def rounds(self, name, *keys):
        """A list of `details` that has an entry for each round, of all runs."""
        found = []
        for run in self.runs(name):
            here = run["details"]
            for key in keys:
                here = here.get(key, [])
            found += here
        return found

    def rows(self, name):
        """For each run {what: row}; what is indented belongs to the line above, whose name it gets."""
        if name == "kills":
            return self._kills()
        if name == "instructions":
            return [self._instructions(run[USUAL]) for run in self.runs(name)]
        found = []
        for run in self.runs(name):
            rows, above = {}, ""
            for line in run["rows"]:
                what = line["what"]
                if what.startswith("  "):
                    what = f"{above}: {what.strip()}"
                else:
                    above = what
                rows[what] = line
            found.append(rows)
        return found

    @staticmethod
    def _instructions(run):
        """Their JSON holds counts and ratios, no rows."""
        return {
            f"added, {kind}, of what QueueHandler adds (instructions)": _row(ratio, BOUNDS.get(kind))
            for kind, ratio in run["added"].items()
        }

    def _kills(self):
        """Each line of the fault matrix's row C-01 is a run; how many kills it made stands in its note."""
        path, found = self.folder / "matrix.jsonl", []
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in map(json.loads, lines):
            if line["row"] == "C-01" and line["mode"] == "journal" and not line["control"]:
                kills = int(re.match(r"(\d+) kills", line["note"])[1])
                rows = {"kills": _row(kills, 200, least=True), "records lost": _row(line["lost"], 0)}
                found.append({**rows, "records stored twice": _row(line["twice"], 0)})
        if not found:
            self.missing.append("matrix.jsonl, row C-01")
        return found


def _row(measured, goal, *, least=False):
    return {"measured": measured, "goal": goal, "least": least, "unit": ""}


def middle(turns, what):
    """The median of what the turns have; None if they do not."""
    values = [turn[what] for turn in turns if what in turn]
    return statistics.median(values) if values else None


def curves(details):
    """Growth's curves by name: {rows, plain: [(at, {figure: median})]}."""
    found = {}
    for part, given in details.items():
        for name, points in (given if isinstance(given, dict) else {"": given}).items():
            numbers = [
                (point["at"], {key: middle(point["rounds"], key) for key in point["rounds"][0]}) for point in points
            ]
            found[f"{part}, {name}" if name else part] = numbers
    return found


def grouped(case):
    """{group: instructions} of a profile's case; functions that it does not list are in "other"."""
    sums = dict.fromkeys([*GROUPS, "other"], 0)
    for function, count in case["functions"]:
        sums[next((name for name, pattern in GROUPS.items() if re.search(pattern, function)), "other")] += count
    sums["other"] += case["total"] - sum(sums.values())
    return sums


def profiles(found):
    """{case, before or after: case}, for the cases of the later profile."""
    runs = {"before": found.runs("profile_before")[0]["cases"], "after": found.runs("profile")[0]["cases"]}
    return {
        f"{HANDLERS.get(name, name)}, {when}": cases[name]
        for name in runs["after"]
        for when, cases in runs.items()
        if name in cases
    }
