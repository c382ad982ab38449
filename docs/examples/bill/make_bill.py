"""Write cur.parquet: two days of a Cost and Usage Report 2.0 that disagrees with sacct.txt in three places.

    python docs/examples/bill/make_bill.py

i-0b ran four hours longer than anybody leased it, i-0c was leased by nobody, and i-0a cost more on its second
day than the price list says.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FIRST = datetime(2026, 10, 5)
USED = (("i-0a", 0, 24, 55.04), ("i-0a", 24, 28, 60.0), ("i-0b", 0, 24, 55.04), ("i-0c", 9, 11, 55.04))


def main() -> None:
    """One line an instance and hour."""
    rows = [
        {
            "bill_billing_period_start_date": FIRST.replace(day=1),
            "line_item_usage_start_date": FIRST + timedelta(hours=hour),
            "line_item_usage_end_date": FIRST + timedelta(hours=hour + 1),
            "line_item_line_item_type": "Usage",
            "line_item_product_code": "AmazonEC2",
            "line_item_usage_type": "BoxUsage:p5.48xlarge",
            "line_item_resource_id": resource,
            "line_item_usage_amount": 1.0,
            "line_item_unblended_cost": cost,
            "line_item_currency_code": "USD",
            "pricing_unit": "Hrs",
            "product_instance_type": "p5.48xlarge",
        }
        for resource, first, last, cost in USED
        for hour in range(first, last)
    ]
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).with_name("cur.parquet"))


if __name__ == "__main__":
    main()
