"""``lakehouse dashboard``: the generated dashboards in a browser, and a read-only API, with nothing to install.

It reads what readers may read: PostgreSQL in read-only transactions, Delta tables by their logs. It starts no Spark and
writes nothing but its own token.
"""
