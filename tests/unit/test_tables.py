"""The tables that benchmarks/tables.py makes: on small data, and those of the pages beside the committed results."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("benchmark_tables", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FACTS = {"cpu": "Z80", "cores": 2, "os": "OS", "python": "3.11.7", "psycopg": "3", "postgresql": "15"}


def result(*rows, facts=FACTS):
    return {"facts": facts, "rounds": 5, "records": 10, "rows": list(rows)}


def row(what, measured, goal=None, *, least=False, unit=""):
    return {"what": what, "measured": measured, "goal": goal, "least": least, "unit": unit}


def situation(name, python, lost=0, twice=0, seconds=None):
    return {
        "python": python,
        "situation": name,
        "logged": 10,
        "lost": lost,
        "twice": twice,
        "seconds": seconds,
        "note": "",
    }


def lines(text):
    return text.splitlines()


def test_a_missed_goal_is_said_and_what_has_no_goal_is_left_to_the_json(tables):
    made = lines(
        tables.speed(
            {
                "end_to_end": result(
                    row("beside it", 4.92, 4, least=True, unit="times"), row("few", 3.2, 4, least=True)
                ),
                "call_overhead": result(
                    row("added", 0.672, 0.4), row("a call", 9.5, 10, unit="µs"), row("no goal", 0.012)
                ),
            }
        )
    )
    assert made == [
        "| | goal | measured |",
        "|---|---|---|",
        "| added | ≤ 0.4 | 0.67 **goal missed** |",
        "| a call | ≤ 10 µs | 9.50 µs |",
        "| beside it | ≥ 4 times | 4.92 times |",
        "| few | ≥ 4 | 3.20 **goal missed** |",
        "",
        "call_overhead.py (5 rounds), end_to_end.py (5 rounds): Z80, 2 cores, OS, Python 3.11.7, psycopg 3, PostgreSQL 15.",
    ]


def test_results_of_two_machines_are_not_mixed_up(tables):
    other = {**FACTS, "cpu": "6502"}
    made = tables.speed({"drain": result(row("a", 1, 2)), "end_to_end": result(row("b", 1, 2), facts=other)})
    assert [line.split(",")[0] for line in lines(made)[-2:]] == [
        "end_to_end.py (5 rounds): 6502", "drain.py (5 rounds): Z80",
    ]  # fmt: skip


def test_figures_show_no_more_digits_than_they_are_worth(tables):
    shown = [tables.number(value) for value in (123_456.7, 1234, 99.96, 12.34, 1.234, 0.1234, 0.01234)]
    assert shown == ["123,000", "1,230", "100.0", "12.3", "1.23", "0.12", "0.012"]


def test_a_situation_is_a_row_and_a_python_a_column(tables):
    made = tables.situations(
        [
            situation("exit", "3.11.7", seconds=0.5),
            situation("fork | exec", "3.9.1", lost=1),
            situation("exit", "3.10.13", seconds=0.25),
        ]
    )
    assert lines(made) == [
        "| lost / twice / seconds | 3.9 | 3.10 | 3.11 |",
        "|---|---|---|---|",
        "| exit |  | 0 / 0 / 0.25 | 0 / 0 / 0.50 |",
        "| fork \\| exec | 1 of 10 / 0 / - |  |  |",
    ]


def test_of_several_runs_the_worst_loss_and_the_median_time_count(tables):
    made = tables.situations(
        [
            situation("exit", "3.11.7", seconds=9.0),
            situation("exit", "3.11.9", lost=3, seconds=0.1),
            situation("exit", "3.11.7", twice=1, seconds=0.2),
            situation("exit", "3.11.7"),
        ]
    )
    assert lines(made)[2:] == ["| exit | 3 of 10 / 1 / 0.20 |"]


def test_what_was_not_measured_leaves_its_section_empty(tables, tmp_path):
    (tmp_path / "docs" / "explanation").mkdir(parents=True)
    page = tmp_path / "docs" / "explanation" / "life-cycle.md"
    page.write_text("prose\n<!-- situations: begin -->\nold\n<!-- situations: end -->\nmore\n")
    for name, file in (("faults", "faults.md"), ("operate", "operating.md")):
        (page.parent / file).write_text(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\n")
    made = tables.pages(tmp_path, tmp_path / "results")
    assert made[page][1] == "prose\n<!-- situations: begin -->\n<!-- situations: end -->\nmore\n"
    assert made[readme][0] == made[readme][1]


def test_a_fault_is_a_row_for_each_mode_with_its_worst_figures(tables):
    def fault(mode, result="passed", **more):
        given = {"row": "A-06", "mode": mode, "test": "tests/acceptance/test_matrix_a.py::test_a_06_words[x]", "result": result,
                 "lost": 0, "twice": 0, "recovery_seconds": None, "note": "", "control": False}  # fmt: skip
        return {**given, **more}

    made = lines(
        tables.faults(
            [
                fault("memory", lost=3, note="3 of 9"),
                fault("memory", recovery_seconds=0.5),
                fault("journal", result="failed"),
                fault("memory", control=True, twice=7),
            ]
        )
    )
    link = "[a_06_words](../../tests/acceptance/test_matrix_a.py)"
    assert made[2:] == [
        f"| A-06 | {link} | journal | **failed** | 0 | 0 | - |  |",
        f"| A-06 | {link} | memory | passed | 3 | 0 | 0.50 | 3 of 9 |",
        f"| A-06 control | {link} | memory | passed | 0 | 7 | - |  |",
    ]


def test_queries_and_rounds_of_retention_have_a_line_each(tables):
    plan = {"scans": {"Index Scan logs_ts_idx": 2, "Seq Scan": 1}, "rows_removed": 5107.0}
    query = {"what": "newest", "median_ms": 4.12, "p95_ms": 4.5, "calls": 20, "plan": plan}
    call = {"p50_us": 5.0, "p99_us": 50.0, "max_us": 2000.0}
    once = {"rules": ["*=50d"], "seconds": 12.5, "rows": 2310945, "bytes": 614203392, "before": call, "during": call,
            "after": call}  # fmt: skip
    details = {"stored": {"rows": 10, "bytes": 1 << 30}, "queries": [query], "retention": {"rounds": [once]}}
    rows = [row("newest: median", 4.12, unit="ms"), row("lost", 1, 0)]
    made = lines(tables.operating({**result(*rows), "details": details}))
    assert "| newest | 4.12 | 4.50 | 20 | Index Scan logs_ts_idx (2), Seq Scan (1) | 5,107 |" in made
    assert "| lost | ≤ 0 | 1 **goal missed** |" in made
    assert "| `*=50d` | 12.5 | 2,310,945 | 586 | 5.00, 50.0, 2,000 | 5.00, 50.0, 2,000 | 5.00, 50.0, 2,000 |" in made
    assert made[-1].startswith("10 rows, 1.0 GiB with indexes: Z80")
    assert tables.operating(None) == ""


def test_a_new_result_makes_the_page_wrong_until_it_is_made_again(tables, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\nbelow\n")
    page = tmp_path / "docs" / "explanation" / "life-cycle.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- situations: begin -->\n<!-- situations: end -->\n")
    for name, file in (("faults", "faults.md"), ("operate", "operating.md")):
        (page.parent / file).write_text(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n")
    results = tmp_path / "results"
    results.mkdir()
    (results / "drain.json").write_text(json.dumps(result(row("drained", 5, 4))))
    said, should = tables.pages(tmp_path, results)[readme]
    assert said != should
    assert should.startswith("above\n<!-- benchmarks: begin -->\n| | goal |")
    assert should.endswith("<!-- benchmarks: end -->\nbelow\n")
    readme.write_text(should)
    assert tables.pages(tmp_path, results)[readme] == (should, should)


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- a: end --><!-- a: begin -->", "<!-- a: begin --><!-- a: begin -->"]
)
def test_a_page_without_its_markers_is_refused(tables, text):
    with pytest.raises(ValueError, match="once each"):
        tables.between(text, "a", "")


def test_the_pages_say_what_the_results_say(tables):
    """`python benchmarks/tables.py` makes them so."""
    for path, (said, should) in tables.pages().items():
        assert said == should, path
