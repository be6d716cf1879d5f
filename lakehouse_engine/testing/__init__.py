"""Tests in the user's own format: ``<name>.test.yaml`` beside a pipeline, run on real Spark, Kafka and PostgreSQL.

A stream's test reads a topic of its own with one partition; a batch is what one start of the stream reads. A record's
``_timestamp`` is ``now``, else the greatest event time of its batch. A job's test appends each batch to the source's
table and runs the job. Windows that a stream merged are counted anew as one backfill when their test ends.
"""
