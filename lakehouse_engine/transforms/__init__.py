"""What happens to rows. This list is explicit: a new transform is its file, its test and a line here.

A transform is row-wise (it has ``row``: it changes the symbolic row) or relational (it has ``apply``: a DataFrame in, a
DataFrame out). In a stream ``Window`` is neither: the scan compiles it (``scan.py``).
"""

from lakehouse_engine.transforms.aggregate import Aggregate
from lakehouse_engine.transforms.cast import Cast
from lakehouse_engine.transforms.check import Check
from lakehouse_engine.transforms.dedupe import Dedupe
from lakehouse_engine.transforms.derive import Derive
from lakehouse_engine.transforms.drop import Drop
from lakehouse_engine.transforms.explode import Explode
from lakehouse_engine.transforms.filter import Filter
from lakehouse_engine.transforms.parse import Parse
from lakehouse_engine.transforms.rename import Rename
from lakehouse_engine.transforms.select import Select
from lakehouse_engine.transforms.watermark import Watermark
from lakehouse_engine.transforms.window import Window

#: one row at a time: each has ``row``
RowWise = Parse | Select | Derive | Rename | Drop | Cast | Filter | Explode | Watermark | Check
Transform = RowWise | Dedupe | Window | Aggregate
TRANSFORMS = {
    t.key: t for t in (Parse, Select, Derive, Rename, Drop, Cast, Filter, Explode, Watermark, Dedupe, Window, Aggregate,
                       Check)}  # fmt: skip
LATER = {"lookup", "join", "union", "sql"}

__all__ = ["LATER", "TRANSFORMS", "Aggregate", "Cast", "Check", "Dedupe", "Derive", "Drop", "Explode", "Filter",
           "Parse", "Rename", "RowWise", "Select", "Transform", "Watermark", "Window"]  # fmt: skip
