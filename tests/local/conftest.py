"""A project folder that PostgreSQL's user can reach; whatever was started there is stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse_engine.local import stack as local


@pytest.fixture
def root() -> Iterator[Path]:
    # Not tmp_path: as root that one is closed to others. The name tries what paths may hold.
    folder = Path(tempfile.mkdtemp(prefix="lakehouse, tëst "))
    folder.chmod(0o755)
    yield folder
    local.down(folder)
    shutil.rmtree(folder)
