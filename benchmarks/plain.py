"""The baseline: Kafka to 1-minute windows to PostgreSQL, as one writes it by hand in PySpark.

Stock settings, JDBC append in foreachBatch, at least once, no quarantine, no late rows kept. ``--tuned`` sets the few
options that people find after a week. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

EVENT = StructType([StructField(name, StringType())
                    for name in ("event_id", "user_id", "event_type", "page", "timestamp", "source")])  # fmt: skip
TUNED = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.streaming.checkpointFileManagerClass":
        "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["backlog", "live"])
    parser.add_argument("--jars", required=True)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--jdbc", required=True, help="jdbc:postgresql://...")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=0, help="live: end after so many batches with rows")
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()

    builder = SparkSession.builder.master("local[*]").appName("plain").config("spark.jars", options.jars)
    builder = builder.config("spark.sql.session.timeZone", "UTC").config("spark.ui.enabled", "false")
    for key, value in TUNED.items() if options.tuned else ():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    last: dict[str, float] = {}

    def write(frame: DataFrame, _: int) -> None:
        target = frame.write.format("jdbc").option("url", options.jdbc).option("dbtable", "plain_events_per_minute")
        target.option("driver", "org.postgresql.Driver").mode("append").save()
        last["commit"] = time.time()

    start = "earliest" if options.mode == "backlog" else "latest"
    events = (spark.readStream.format("kafka").option("kafka.bootstrap.servers", options.bootstrap_servers)
              .option("subscribe", options.topic).option("startingOffsets", start).load()
              .select(F.from_json(F.col("value").cast("string"), EVENT).alias("event")).select("event.*")
              .withColumn("timestamp", F.to_timestamp("timestamp")))  # fmt: skip
    windows = (events.withWatermark("timestamp", "2 minutes").groupBy(F.window("timestamp", "1 minute"), "event_type")
               .agg(F.count("*").alias("event_count"))
               .select(F.col("window.start").alias("window_start"), "event_type", "event_count",
                       F.current_timestamp().alias("updated_at")))  # fmt: skip
    writer = windows.writeStream.outputMode("update").foreachBatch(write)
    writer = writer.option("checkpointLocation", str(options.checkpoint))
    if options.mode == "backlog":
        query = writer.trigger(availableNow=True).start()
        query.awaitTermination()
    else:
        query = writer.trigger(processingTime="1 second").start()
        while len(with_rows(query)) < options.batches and query.isActive:
            time.sleep(0.2)
    batches = [p["durationMs"]["triggerExecution"] / 1000 for p in with_rows(query)]
    print(json.dumps({"last_commit": last["commit"], "batches": batches,
                      "rows": sum(p["numInputRows"] for p in query.recentProgress)}))  # fmt: skip
    query.stop()
    spark.stop()


def with_rows(query: Any) -> list[Any]:
    return [progress for progress in query.recentProgress if progress["numInputRows"]]


if __name__ == "__main__":
    main()
