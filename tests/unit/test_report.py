"""docs/explanation/performance.md, made by benchmarks/report.py: on small data, and beside the committed results."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FACTS = {"cpu": "Z80", "cores": 2, "os": "OS", "python": "3.11.7", "psycopg": "3", "postgresql": "15"}


@pytest.fixture(scope="module")
def report():
    """As a program loads it: beside the modules of its folder, which are forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in {"tables", "report_results"} - before:
            sys.modules.pop(name, None)
    return module


def row(what, measured, goal=None, *, least=False, unit=""):
    return {"what": what, "measured": measured, "goal": goal, "least": least, "unit": unit}


def put(folder, name, *rows, details=None):
    result = {"facts": FACTS, "rounds": 1, "rows": list(rows), "details": details or {}}
    (folder / f"{name}.json").write_text(json.dumps(result))


@pytest.fixture
def page(report, tmp_path):
    """An empty page."""
    path = tmp_path / "page.md"
    path.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in report.SECTIONS))
    return path


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def goals_of(report, results):
    return report.goals(report.Results(results)).splitlines()


def test_each_run_is_shown_beside_the_median_and_a_miss_is_said(report, results):
    what = "draining a backlog, beside psycopg"
    for name, measured in (("drain", 0.95), ("drain-2", 0.5), ("drain-3", 0.92)):
        put(results, name, row(what, measured, 0.9, least=True, unit="times"))
    put(results, "end_to_end", row("process CPU beyond the logging call", 5, 4, unit="µs/record"))
    lines = goals_of(report, results)
    assert f"| {what} | ≥ 0.9 times | 0.92 times | 0.95, 0.50, 0.92 | missed in 1 of 3 |" in lines
    assert "| process CPU beyond the logging call | ≤ 4 µs/record | 5 µs/record | 5 | **missed** |" in lines


def test_a_goal_that_nothing_answers_is_not_left_out(report, results):
    assert "| drain: draining a backlog |  | not run |  |  |" in goals_of(report, results)


def test_an_indented_row_has_the_name_of_the_line_above(report, results):
    above = "memory, outage, limit 16 MiB, 100 bytes: peak over base"
    put(results, "memory", row(above, 17, 20, unit="MiB"), row("  of the limit itself", 1.1, unit="times"))
    lines = goals_of(report, results)
    assert f"| {above} | ≤ 20 MiB | 17 MiB | 17 |  |" in lines
    assert f"| {above}: of the limit itself | ≤ 1 times | 1.10 times | 1.10 | **missed** |" in lines


def test_kills_are_counted_from_the_fault_matrix(report, results):
    line = {
        "row": "C-01",
        "mode": "journal",
        "control": False,
        "lost": 1,
        "twice": 0,
        "note": "250 kills of 4 processes",
    }
    others = [{**line, "mode": "memory", "lost": 99}, {**line, "row": "C-02", "note": "create"}]
    (results / "matrix.jsonl").write_text("\n".join(json.dumps(one) for one in (line, *others)))
    lines = goals_of(report, results)
    assert "| kills | ≥ 200 | 250 | 250 |  |" in lines
    assert "| records lost | ≤ 0 | 1 | 1 | **missed** |" in lines


def test_a_section_without_its_result_says_so_and_names_the_file(report, page, results):
    found = report.Results(results)
    made = report.made(page.read_text(), found)
    assert "<!-- stall: begin -->\nnot run\n<!-- stall: end -->" in made
    assert {"stall.json", "peers.json", "matrix.jsonl, row C-01"} <= set(found.missing)
    page.write_text(made)
    assert report.wrong(page, results) == []


def test_the_check_complains_of_a_new_result_and_of_a_plot_that_is_not_there(report, page, results):
    page.write_text(report.made(page.read_text(), report.Results(results)))
    one = {"delay_ms": 0.0, "batch_bytes": 1 << 20, "records_per_second": [3, 5, 4], "batches": 1}
    put(results, "batches", details=[one])
    assert report.wrong(page, results) == ["page.md is not what the results say", "batches.svg is not there"]
    page.write_text(report.made(page.read_text(), report.Results(results)))
    assert "| 0 ms | 4.00 |" in page.read_text()
    assert report.wrong(page, results) == ["batches.svg is not there"]


def test_a_profile_loses_no_instruction(report):
    functions = [["_PyEval_EvalFrameDefault", 50], ["PyUnicode_New", 7], ["PyDict_GetItem", 5], ["xyz", 1]]
    sums = report.grouped({"total": 100, "functions": functions})
    assert sums["the interpreter's loop"] == 50
    assert sums["texts, copying"] == 7
    assert sums["dicts and attributes"] == 5
    assert sums["other"] == 38
    assert sum(sums.values()) == 100


def test_the_page_says_what_the_results_say():
    """`python benchmarks/report.py` makes it so. The check must not need matplotlib."""
    command = [sys.executable, "-X", "importtime", BENCHMARKS / "report.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "matplotlib" not in done.stderr


def test_plots_are_the_same_for_the_same_results(tmp_path):
    """Each drawn twice, in processes whose hashes differ."""
    made = []
    for seed in ("1", "2"):
        page = tmp_path / seed / "performance.md"
        page.parent.mkdir()
        page.write_bytes((BENCHMARKS.parent / "docs" / "explanation" / "performance.md").read_bytes())
        command = [sys.executable, BENCHMARKS / "report.py", "--page", page]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, timeout=120, env=env, capture_output=True)
        made.append({path.name: path.read_bytes() for path in (page.parent / "performance").iterdir()})
    assert made[0] == made[1]
    assert made[0]
    assert max(map(len, made[0].values())) < 100 * 1024  # bytes: a page with a dozen of them still loads at once
