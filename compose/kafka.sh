#!/bin/sh
# Starts the broker; formats its storage the first time.
set -eu
bin=${KAFKA_BIN:-/opt/kafka/bin}
properties=${KAFKA_PROPERTIES:-/lakehouse/compose/kafka.properties}
data=$(sed -n 's/^log\.dirs=//p' "$properties")
if [ ! -e "$data/meta.properties" ]; then
  # --ignore-formatted: a start that was killed in the middle of this may be repeated
  "$bin/kafka-storage.sh" format --ignore-formatted --cluster-id "$("$bin/kafka-storage.sh" random-uuid)" \
    --config "$properties"
fi
exec "$bin/kafka-server-start.sh" "$properties"
