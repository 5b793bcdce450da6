"""A pydantic model as a typed log: its own validation, its descriptions as comments, models inside as JSON."""

from __future__ import annotations

from typing import Literal

import pydantic
import pytest

from logsluice.types import logtype
from support.shop import Shop


class Line(pydantic.BaseModel):
    sku: str
    count: int = 1


@logtype(table="order_placed", indexes=["customer"])
class OrderPlaced(pydantic.BaseModel):
    """An order that came in."""

    customer: str = pydantic.Field(description="Who ordered.")
    first: Line | None = None
    kind: Literal["web", "shop"] = "web"
    total: float | None = None


def test_a_model_is_a_row(dsn):
    with Shop(dsn) as shop:
        shop.logger.info(OrderPlaced(customer="c-7", first=Line(sku="a\tb"), total=9.5))
        shop.logger.info(OrderPlaced.model_construct(customer=None, kind="fax"))  # round its validation
        assert shop.flush()
        rows = shop.query("SELECT customer, first, kind, total, level FROM logsluice.order_placed")
        assert rows == [("c-7", {"sku": "a\tb", "count": 1}, "web", 9.5, 20)]
        ((invalid,),) = shop.query("SELECT attributes -> 'logsluice' -> 'invalid' FROM logsluice.logs")
        assert invalid == {
            "table": "order_placed",
            "customer": "is missing",
            "kind": "is 'fax', not one of ['web', 'shop']",
        }
        ((comment,),) = shop.query("SELECT col_description('logsluice.order_placed'::regclass, 4)")
        assert comment == "Who ordered."
    with pytest.raises(pydantic.ValidationError):
        OrderPlaced(customer="c", kind="fax")
    assert str(OrderPlaced(customer="c", kind="shop")) == "order_placed customer=c kind=shop"
