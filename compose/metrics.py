"""Shows Prometheus what the ledger in PostgreSQL says of every pipeline: jobs end long before it could ask them."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from psycopg2.extensions import make_dsn

from lakehouse_engine.metrics import Ledger
from lakehouse_engine.spec.environment import load_environment

at = load_environment(os.environ.get("LAKEHOUSE_ENV"), Path.cwd()).connections.postgres
assert at is not None
password = Path(os.environ.get("LAKEHOUSE_SECRETS", "/run/secrets"), "lakehouse_reader_password").read_text()
registry = CollectorRegistry()
registry.register(Ledger(make_dsn(host=at.host, port=at.port, dbname=at.database, sslmode=at.tls,
                                  user="lakehouse_reader", password=password)))  # fmt: skip
_, thread = start_http_server(int(os.environ.get("METRICS_PORT", "9464")),
                              os.environ.get("METRICS_HOST", "0.0.0.0"), registry)  # fmt: skip
thread.join()
