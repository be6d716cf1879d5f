"""What happens to rows. This list is explicit: a new transform is its file, its test and a line here.

A transform is row-wise (it has ``row``: it changes the symbolic row), relational (it has ``apply``: a DataFrame in, a
DataFrame out), or takes in other inputs (it has ``others``: their names). In a stream ``Window`` is none of these: the
scan compiles it (``scan.py``).
"""

from lakehouse_engine.transforms.aggregate import Aggregate
from lakehouse_engine.transforms.cast import Cast
from lakehouse_engine.transforms.check import Check
from lakehouse_engine.transforms.dedupe import Dedupe
from lakehouse_engine.transforms.derive import Derive
from lakehouse_engine.transforms.drop import Drop
from lakehouse_engine.transforms.explode import Explode
from lakehouse_engine.transforms.filter import Filter
from lakehouse_engine.transforms.join import Join
from lakehouse_engine.transforms.lookup import Lookup
from lakehouse_engine.transforms.parse import Parse
from lakehouse_engine.transforms.rename import Rename
from lakehouse_engine.transforms.select import Select
from lakehouse_engine.transforms.sql import Sql
from lakehouse_engine.transforms.union import Union
from lakehouse_engine.transforms.watermark import Watermark
from lakehouse_engine.transforms.window import Window

#: one row at a time: each has ``row``
RowWise = Parse | Select | Derive | Rename | Drop | Cast | Filter | Explode | Watermark | Check
#: reads other inputs: each has ``others``
Combining = Lookup | Join | Union | Sql
Transform = RowWise | Dedupe | Window | Aggregate | Combining
TRANSFORMS = {
    t.key: t for t in (Parse, Select, Derive, Rename, Drop, Cast, Filter, Explode, Watermark, Dedupe, Window, Aggregate,
                       Check, Lookup, Join, Union, Sql)}  # fmt: skip
LATER: set[str] = set()

__all__ = ["LATER", "TRANSFORMS", "Aggregate", "Cast", "Check", "Combining", "Dedupe", "Derive", "Drop", "Explode",
           "Filter", "Join", "Lookup", "Parse", "Rename", "RowWise", "Select", "Sql", "Transform", "Union", "Watermark",
           "Window"]  # fmt: skip
