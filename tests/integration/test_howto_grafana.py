"""docs/howto/grafana.md: its queries, with Grafana's macros written out as Grafana does, find the rows of their time."""

from __future__ import annotations

import logging
import re

import psycopg

from support.howto import PAGES, Page
from support.shop import Shop

SINCE, UNTIL = "now() - interval '1 hour'", "now() + interval '1 hour'"


def written_out(query):
    """What the data source makes of its macros."""
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {SINCE} AND {UNTIL}", query)
    group = r"\$__timeGroupAlias\((\w+), *'5m'\)"
    query = re.sub(group, r'floor(extract(epoch from \1)/300)*300 AS "time"', query)
    assert "$__" not in query
    return query


def test_the_queries_of_the_page(dsn):
    files = Page("grafana").files
    with Shop(dsn, service="checkout") as shop:
        shop.log(2)
        shop.log(1, level=logging.ERROR, order=17)
        assert shop.flush()
        with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as conn:
            (row,) = conn.execute(written_out(files["panel.sql"])).fetchall()
            assert (row["severity"], row["labels"]["order"], row["labels"]["service"]) == ("error", 17, "checkout")
            rates = conn.execute(written_out(files["rate.sql"])).fetchall()
            assert sum(one["value"] for one in rates if one["metric"] == "info") == 2


def test_the_columns_of_the_page_are_those_of_the_views(dsn):
    text = (PAGES / "grafana.md").read_text(encoding="utf-8")
    with psycopg.connect(dsn) as conn:
        for view in ("grafana_logs", "otel_logs"):
            (line,) = [line for line in text.splitlines() if line.startswith(f"| `logsluice.{view}`")]
            cell = line.split("|")[2]
            named = {name for part in re.findall(r"`([a-z_, ]+)`", cell) for name in part.split(", ")}
            assert named == {column.name for column in conn.execute(f"SELECT * FROM logsluice.{view}").description}
