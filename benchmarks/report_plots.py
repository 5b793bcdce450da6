"""
The plots of docs/explanation/performance.md: a function for each, from the same results as report.py's tables.

An SVG is the same for the same results and matplotlib: no date, and ids that do not change. Text is text, in a font
that a reader has or one as wide: as paths it would make a file twice as large. The background is white, for dark pages
too. Colours are Okabe and Ito's, which people who see fewer colours can tell apart; the marker says who it is as well.
"""

from __future__ import annotations

import re
import statistics

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from report_results import BOUNDS, GROUPS, TAILS, USUAL, curves, grouped, middle, profiles
from tables import number

MIB = 1 << 20
MINUTE = 60  # seconds
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#888888",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WHO = {
    "NullHandler": (GREY, "o"), "FileHandler": (ORANGE, "s"), "recipe": (PINK, "D"), "memory": (BLUE, "^"),
    "journal": (RED, "v"),
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "logsluice",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # the first two are equally wide
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def draw(name, found, path):
    """Write one plot."""
    with mpl.rc_context(STYLE):
        figure = PLOTS[name](found)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)


def sheet(width, height, title, rows=1, columns=1, **options):
    """A figure with a title, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, **options)


def plainly(axis, words=lambda value: f"{value:,g}"):
    """Numbers as people write them, and no powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set_minor_locator(NullLocator())


def short(value):
    """10 k, 10 M."""
    for size, name in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def listed(axes, names):
    """Names on the left, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def goal(axes, value, text=None, *, across=False):
    """A line where the goal is; `across`: of y."""
    line = axes.axhline if across else axes.axvline
    line(value, color=BLACK, linestyle="--", linewidth=1, label=text)


def mark(axes, value, at, text):
    """The goal of one bar."""
    axes.plot([value] * 2, [at - 0.4, at + 0.4], color=BLACK, linewidth=2, label=text)


# --- the call and the stall ---------------------------------------------------------------------------------------


def call(found):
    """Ratios: each round a dot, their median a bar; the goal of each line beside it."""

    def ratios(rounds, ours, to):
        def added(one, name):
            return one[name][clock] - one["NullHandler"][clock]

        clock = "cpu" if "cpu" in rounds[0]["NullHandler"] else "mean"  # beside busy threads only calls are timed
        return [added(one, ours) / added(one, to) for one in rounds]

    ours, journal, queued = "logsluice", "logsluice, journal", "QueueHandler, Queue"
    lines = {
        kind: (ratios(found.rounds("call_overhead", "ns_a_call", kind), ours, queued), bound)
        for kind, bound in BOUNDS.items()
    }
    lines["plain, journal"] = ratios(found.rounds("call_overhead", "journal_ns_a_call"), journal, queued), 0.40
    for name, key, who in (("3 busy threads", "busy", ours), ("3 busy threads, journal", "journal_busy", journal)):
        lines[f"{name}\n(of FileHandler's)"] = ratios(found.rounds("call_overhead", key), who, "FileHandler"), 0.05
    figure, axes = sheet(7.5, 3.6, "What a logsluice handler adds to a NullHandler call")
    for at, (several, bound) in enumerate(lines.values()):
        axes.barh(at, statistics.median(several), height=0.55, color=SKY)
        axes.plot(several, [at] * len(several), ".", color=BLUE, markersize=5, label=None if at else "a round")
        mark(axes, bound, at, None if at else "goal: not above")
    runs = found.runs("instructions")[:1]
    counts = [(kind, ratio) for run in runs for kind, ratio in run[USUAL]["added"].items() if kind in lines]
    for n, (kind, ratio) in enumerate(counts):
        axes.plot(ratio, list(lines).index(kind), "D", color=RED, markersize=5, label=None if n else "by instructions")
    listed(axes, list(lines))
    axes.set_xlim(0, max(1.05, 1.05 * max(max(several) for several, _ in lines.values())))
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_xlabel("of what the stdlib QueueHandler adds, CPU time; bar: median")
    axes.legend(loc="lower right")
    return figure


def stall(found):
    """For each contestant of a case a line from p50 to the longest call; right: cases in which not all take part."""
    cases = {name: found.rounds("stall", "ns_a_call", name) for name in found.details("stall")["ns_a_call"]}
    panels = [{}, {}]
    for name, rounds in cases.items():
        panels["NullHandler" not in rounds[0]][name] = rounds
    panels = [panel for panel in panels if panel]
    lines = [sum(len(rounds[0]) + 1 for rounds in panel.values()) for panel in panels]
    figure, axes = sheet(
        11, 1.6 + 0.125 * max(lines), "How long one logging call takes", 1, len(panels), sharex=True, squeeze=False
    )
    for panel, place in zip(panels, axes[0], strict=True):
        at, ticks, seen = 0, {}, {}
        for name, rounds in panel.items():
            ticks[at + (len(rounds[0]) - 1) / 2] = name
            for who in rounds[0]:
                medians = [statistics.median(one[who][what] for one in rounds) / 1000 for what in TAILS]
                seen.setdefault(who, []).append((at, *medians))
                at += 1
            at += 1
        for who, lines_of in seen.items():  # one plot for all of a contestant: the file is a third as large
            colour, marker = WHO[who]
            heights, p50, p99, p999, longest = zip(*lines_of, strict=True)
            place.hlines(heights, p50, longest, color=colour, linewidth=1.2)
            place.plot(p50, heights, "|", color=colour, markersize=6)
            place.plot([*p99, *p999], heights * 2, ".", color=colour, markersize=5)
            place.plot(longest, heights, marker, color=colour, markersize=4.5)
        place.set_yticks(list(ticks), list(ticks.values()))
        place.set_ylim(max(lines), -1.5)
        place.set_xscale("log")
        place.grid(visible=False, axis="y")
        plainly(place.xaxis)
        goal(place, 10_000)
        place.set_xlabel("µs; bar: p50, dots: p99 and p99.9, marker: the longest")
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker=marker, label=who) for who, (colour, marker) in WHO.items()
    ]
    handles.append(mpl.lines.Line2D([], [], color=BLACK, linestyle="--", label="goal: the longest, 10 ms"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure


def profile(found):
    bars = {name: grouped(case) for name, case in profiles(found).items()}
    figure, axes = sheet(8.5, 1.5 + 0.32 * len(bars), "Instructions of one logging call, by what C functions are for")
    left = [0] * len(bars)
    for group, colour in zip([*GROUPS, "other"], [*COLOURS[: len(GROUPS)], GREY], strict=True):
        widths = [sums[group] for sums in bars.values()]
        axes.barh(range(len(bars)), widths, left=left, height=0.65, color=colour, edgecolor="white", label=group)
        left = [at + width for at, width in zip(left, widths, strict=True)]
    listed(axes, list(bars))
    plainly(axes.xaxis, short)
    axes.set_xlabel("instructions")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


# --- throughput ---------------------------------------------------------------------------------------------------


def peers(found):
    """From the quickest to the slowest; what a kill lost stands at the right."""
    details = found.details("peers")
    rates = {name: [one["a_second"] for one in turns if "a_second" in one] for name, turns in details["seen"].items()}
    names = sorted((name for name in rates if rates[name]), key=lambda name: -statistics.median(rates[name]))
    figure, axes = sheet(9, 1.6 + 0.28 * len(names), "Logged and committed, one process, the same table")
    axes.set_xscale("log")
    for at, name in enumerate(names):
        ours, ceiling = "logsluice" in name, "prepared bytes" in name
        colour, marker = (BLUE, "o") if ours else (GREY, "D") if ceiling else (ORANGE, "s")
        rate = statistics.median(rates[name])
        axes.plot([min(rates[name]), max(rates[name])], [at] * 2, color=colour, linewidth=2)
        axes.plot(rate, at, marker=marker, color=colour, markersize=7)
        axes.text(1.02, at, number(rate), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if turns := details["faults"].get(name):
            lost = f"{max(turn['lost'] for turn in turns)} of {turns[0]['returned_before_the_kill']}"
            axes.text(1.16, at, lost, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    for x, head in ((1.02, "median"), (1.16, "lost by\nkill -9")):
        axes.text(x, -0.75, head, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, fontweight="bold")
    for times, other, style in ((4, "QueueListener, executemany of 100", "--"), (30, "one INSERT a record", ":")):
        if rates.get(other):
            value = times * statistics.median(rates[other])
            axes.axvline(value, color=BLACK, linestyle=style, linewidth=1, label=f"goal: {times} times {other}")
    figure.get_layout_engine().set(rect=(0, 0, 0.96, 1))  # the last column of texts is not an axis's
    listed(axes, names)
    plainly(axes.xaxis, short)
    axes.set_xlabel("records/s, log scale; line: least to most of the rounds; diamonds: ceilings, nothing is logged")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def far(found):
    turns = found.details("far")["turns"]
    delays = list(dict.fromkeys(turn["delay_ms"] for turn in turns))
    counts = list(dict.fromkeys(turn["connections"] for turn in turns))
    figure, axes = sheet(7, 3.8, "A server far away: what several connections store")
    for count, colour, marker in zip(counts, COLOURS, MARKERS, strict=False):
        medians = [
            middle(turn["rounds"], "a_second")
            for delay in delays
            for turn in turns
            if (turn["delay_ms"], turn["connections"]) == (delay, count)
        ]
        axes.plot(delays, medians, color=colour, marker=marker, label=f"{count}")
    nearest = middle(turns[0]["rounds"], "a_second")
    goal(axes, 0.9 * nearest, f"goal for {counts[-1]}: 0.9 of\n1 connection next door", across=True)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(delays, [f"{delay:g}" for delay in delays])
    axes.set_xlim(left=-0.3)
    axes.set_ylim(0)
    plainly(axes.yaxis, short)
    axes.set_xlabel("added round trip, ms")
    axes.set_ylabel("records/s, committed")
    axes.legend(title="connections", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def batches(found):
    figure, axes = sheet(7, 3.8, "How large a batch should be: by distance of the server")
    details = found.details("batches")
    for n, delay in enumerate(dict.fromkeys(one["delay_ms"] for one in details)):
        mine = [one for one in details if one["delay_ms"] == delay]
        sizes = [one["batch_bytes"] / 1024 for one in mine]
        medians = [statistics.median(one["records_per_second"]) for one in mine]
        axes.plot(sizes, medians, color=COLOURS[n], marker=MARKERS[n], label=f"{delay:g} ms")
        for size, one in zip(sizes, mine, strict=True):
            several = one["records_per_second"]
            axes.plot([size] * len(several), several, ".", color=COLOURS[n], markersize=4)
    axes.axvline(2048, color=BLACK, linestyle="--", linewidth=1, label="batch_bytes,\nthe default")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes)
    axes.set_ylim(0)
    plainly(axes.xaxis)
    plainly(axes.yaxis, short)
    axes.set_xlabel("KiB in a batch")
    axes.set_ylabel("records/s, committed")
    axes.legend(title="added round trip", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# --- growth, traffic, memory --------------------------------------------------------------------------------------


def growth(found):
    """A panel for each kind of more, and one for what goes to the WAL."""
    found = curves(found.details("growth"))
    panels = {
        "rows": ("rows in the partition", "µs a record"),
        "partitions": ("partitions (0: a plain table)", "µs a record"),
        "producers": ("processes", "µs a record"), "loggers": ("loggers", "µs added to a NullHandler call"),
        "messages": ("bytes of a message", "µs a record"), "WAL": ("rows in the partition", "WAL bytes a record"),
    }  # fmt: skip
    figures = {"cpu_us": "client CPU", "server_us": "server CPU", "wall_us": "wall clock"}
    figure, grid = sheet(10, 6, "Cost of a record when there is more of everything: flat is good", 2, 3)
    for axes, (part, (below, beside)) in zip(grid.flat, panels.items(), strict=True):
        wanted = {"loggers": {"added_us": "added"}, "WAL": {"wal": "all", "wal_records": "no page images"}}
        for name, points in found.items():
            group, _, kind = name.partition(", ")
            if group != ("rows" if part == "WAL" else part):
                continue
            second = kind in {"trace_id", "own lines"}
            for n, (key, label) in enumerate(wanted.get(part, figures).items()):
                axes.plot(
                    [at for at, _ in points], [values[key] for _, values in points], color=COLOURS[n],
                    marker=MARKERS[n], markersize=4, linestyle="--" if second else "-",
                    label=f"{label}, {kind}" if kind else label,
                )  # fmt: skip
        axes.set_xscale("symlog" if part == "partitions" else "log")
        if part == "messages":
            axes.set_yscale("log")
            plainly(axes.yaxis)
        else:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.45)  # room for the legend
        plainly(axes.xaxis, short)
        axes.set_xlabel(below)
        axes.set_ylabel(beside)
        axes.set_title(part)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                loc="upper left", fontsize=6.5, handlelength=3, ncols=2 if part in {"rows", "partitions"} else 1
            )
    return figure


def traffic(found):
    """Night, noon and bursts, by minute; in memory and with a journal side by side."""
    days = {
        name: found.details(run)["days"][0]
        for name, run in (("memory", "traffic"), ("journal", "traffic_journal"))
        if found.runs(run)
    }
    figure, grid = sheet(10, 7, "A day in ten minutes", 3, len(days), sharex=True, sharey="row", squeeze=False)
    for column, (name, day) in enumerate(days.items()):
        rates, calls, ages = grid[:, column]
        slots, series = day["minutes"], day["series"]
        minute = max(series["at"]) / len(slots)  # a shorter day has shorter ones
        middles = [slot["minute"] - 0.5 for slot in slots]
        rates.set_title(name)
        for what, colour, marker in (("offered", ORANGE, "s"), ("stored", BLUE, "^")):
            values = [slot[f"{what}_a_second"] for slot in slots]
            rates.plot(middles, values, color=colour, marker=marker, markersize=4, label=what)
        for n, (begin, end) in enumerate(day["bursts"]):
            label = None if n else "a burst"
            rates.axvspan(begin / minute, end / minute, color=GREY, alpha=0.35, linewidth=0, label=label)
        rates.set_ylim(0)
        tails = {"call_p50_us": ("p50", 1), "call_p999_us": ("p99.9", 1), "call_longest_ms": ("longest", 1000)}
        for n, (key, (label, factor)) in enumerate(tails.items()):
            values = [slot[key] * factor for slot in slots]
            calls.plot(middles, values, color=COLOURS[n], marker=MARKERS[n], markersize=4, label=label)
        goal(calls, 10, "goals: p50 10 µs,\nlongest 10 ms", across=True)
        goal(calls, 10_000, across=True)
        calls.set_yscale("log")
        plainly(calls.yaxis)
        ages.plot([at / minute for at in series["at"]], series["stale"], color=BLUE, linewidth=0.8, label="the oldest")
        goal(ages, 0.5, "linger", across=True)
        ages.set_ylim(0)
        ages.set_xlabel("a tenth of the day")
        words_of = {rates: "records/s", calls: "a call, µs", ages: "age of the oldest\nwaiting record, s"}
        for axes, words in words_of.items():
            if column == 0:
                axes.set_ylabel(words)
            if column == len(days) - 1:
                axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memory(found):
    """Peaks as bars beside their limits: memory alone has the limit as its goal, a journal is flat however large."""
    details = found.details("memory")
    figure, axes = sheet(8.5, 1.4 + 0.3 * len(details["outages"]), "Memory in an outage, beyond what was held before")
    names = []
    for at, one in enumerate(details["outages"]):
        names.append(f"{one['mode']}, limit {one['capacity'] // MIB} MiB, {one['size']:,} bytes")
        axes.barh(at, one["end"]["peak"] / MIB, height=0.6, color=SKY if one["mode"] == "memory" else ORANGE)
        label = None if at else "when all is stored"
        axes.plot(one["end"]["rss"] / MIB, at, "D", color=GREEN, markersize=5, label=label)
        bound = (one["capacity"] if one["mode"] == "memory" else details["flat_bytes"]) / MIB
        label = None if at else "the limit (journal: three segments, one read back, a slice)"
        mark(axes, bound, at, label)
    listed(axes, names)
    axes.set_xlabel("MiB of resident memory; bar: the highest moment")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def soak(found):
    details = found.details("memory_soak")
    figure, axes = sheet(8, 3.4, "Memory of a process that logs at a steady rate")
    for mode, one in details["modes"].items():
        minutes = [sample["seconds"] / MINUTE for sample in one["samples"]]
        label = f"{mode}, {one['rate']:,} records/s"
        axes.plot(
            minutes, [sample["uss"] / 1e6 for sample in one["samples"]], color=WHO[mode][0], linewidth=1, label=label
        )
    axes.axvline(0.2 * details["minutes"], color=BLACK, linestyle=":", linewidth=1, label="slopes count from here")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.set_xlabel("minutes")
    axes.set_ylabel("memory of the process's own (USS), MB")
    axes.legend(loc="lower right")
    return figure


# --- the server ---------------------------------------------------------------------------------------------------


def server(found):
    """Each case's rows/s and WAL; the shipped schema is the line."""
    cases = found.details("server")["cases"]
    shipped = cases[0]
    groups = list(dict.fromkeys(case["group"] for case in cases))
    figure, (rates, wal) = sheet(10, 1.2 + 0.19 * len(cases), "What variants cost the server", 1, 2, sharey=True)
    for at, case in enumerate(cases):
        n = groups.index(case["group"])
        several = case["ratio"]["steady"]
        rates.plot([min(several), max(several)], [at] * 2, color=COLOURS[n], linewidth=1.5)
        rates.plot(statistics.median(several), at, color=COLOURS[n], marker=MARKERS[n], markersize=5, linestyle="")
        wal.barh(at, case["wal_a_row"]["steady"], height=0.7, color=COLOURS[n])
    names = [re.sub(r" WHERE .*? IS NOT NULL", " WHERE NOT NULL", case["name"]) for case in cases]
    for axes in (rates, wal):
        listed(axes, names)
        axes.tick_params(axis="y", labelsize=7)
    rates.set_xscale("log")
    rates.set_xticks([0.01, 0.1, 0.5, 1, 2])
    plainly(rates.xaxis)
    goal(rates, 1)
    goal(wal, shipped["wal_a_row"]["steady"])
    rates.set_xlabel("rows/s, of the shipped schema's (log scale)\nmarker: median, line: least to most of the rounds")
    wal.set_xlabel("WAL bytes a row, between checkpoints\ndashed: the shipped schema")
    return figure


PLOTS = {
    "call": call, "stall": stall, "profile": profile, "peers": peers, "growth": growth, "traffic": traffic,
    "memory": memory, "soak": soak, "far": far, "batches": batches, "server": server,
}  # fmt: skip
