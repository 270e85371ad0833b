"""Numbers that JSON can say."""

import math
from typing import Any


def finite(record: Any) -> Any:
    """A record with None in the place of each number that is infinite or none, as those of a step that was skipped."""
    if isinstance(record, dict):
        return {name: finite(value) for name, value in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record
