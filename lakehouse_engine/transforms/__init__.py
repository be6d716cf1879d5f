"""What happens to rows. This list is explicit: a new transform is its file, its test and a line here.

A transform is row-wise (it has ``row``: it changes the symbolic row) or relational (it has ``apply``: a DataFrame in, a
DataFrame out). ``Window`` in a stream is neither: the scan compiles it (``scan.py``).
"""

from lakehouse_engine.transforms.aggregate import Aggregate
from lakehouse_engine.transforms.dedupe import Dedupe
from lakehouse_engine.transforms.derive import Derive
from lakehouse_engine.transforms.filter import Filter
from lakehouse_engine.transforms.parse import Parse
from lakehouse_engine.transforms.select import Select
from lakehouse_engine.transforms.watermark import Watermark
from lakehouse_engine.transforms.window import Window

Transform = Parse | Derive | Select | Filter | Dedupe | Watermark | Window | Aggregate
TRANSFORMS = {t.key: t for t in (Parse, Derive, Select, Filter, Dedupe, Watermark, Window, Aggregate)}
LATER = {"rename", "drop", "cast", "explode", "lookup", "join", "union", "sql", "check"}

__all__ = ["LATER", "TRANSFORMS", "Aggregate", "Dedupe", "Derive", "Filter", "Parse", "Select", "Transform",
           "Watermark", "Window"]  # fmt: skip
