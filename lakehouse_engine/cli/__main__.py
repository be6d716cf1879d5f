"""``python -m lakehouse_engine.cli``."""

from lakehouse_engine.cli import main

main()
