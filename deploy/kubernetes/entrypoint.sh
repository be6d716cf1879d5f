#!/bin/sh
# The engine image's entry point. On Kubernetes Spark starts a container as `driver ...` or `executor ...`; any other
# words are the command `lakehouse`. What the two stand for: resource-managers/kubernetes/docker of Spark's sources.
set -eu
case "${1:-}" in
  driver)
    shift
    exec "${SPARK_SUBMIT:-spark-submit}" --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
      --conf "spark.executorEnv.SPARK_DRIVER_POD_IP=$SPARK_DRIVER_BIND_ADDRESS" --deploy-mode client "$@"
    ;;
  executor)
    set --
    options=$(env | sed -n 's/^SPARK_JAVA_OPT_\([0-9]*\)=/\1 /p' | sort -n | cut -d ' ' -f 2-)
    # one option a line
    while IFS= read -r option; do
      [ -z "$option" ] || set -- "$@" "$option"
    done <<OPTIONS
$options
OPTIONS
    exec "$JAVA_HOME/bin/java" "$@" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
      -cp "${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}$SPARK_HOME/jars/*" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
  *)
    exec lakehouse "$@"
    ;;
esac
