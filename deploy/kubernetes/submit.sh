#!/bin/sh
# sparkapplication.yaml without an operator: submit.sh k8s://HOST:PORT, with kubectl's rights, from the engine's
# environment. Volumes that spark-submit has no settings for come from the driver's pod template.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${SPARK_SUBMIT:-spark-submit}" --master "${1:?k8s://HOST:PORT}" --deploy-mode cluster --name lakehouse-streams \
  --conf spark.kubernetes.container.image=lakehouse-engine:0.1.0 \
  --conf spark.kubernetes.authenticate.driver.serviceAccountName=lakehouse \
  --conf "spark.kubernetes.driver.podTemplateFile=$here/driver.yaml" \
  --conf spark.kubernetes.driver.volumes.persistentVolumeClaim.storage.mount.path=/var/lib/lakehouse \
  --conf spark.kubernetes.driver.volumes.persistentVolumeClaim.storage.options.claimName=lakehouse-storage \
  --conf spark.kubernetes.executor.volumes.persistentVolumeClaim.storage.mount.path=/var/lib/lakehouse \
  --conf spark.kubernetes.executor.volumes.persistentVolumeClaim.storage.options.claimName=lakehouse-storage \
  --conf spark.executor.instances=1 --conf spark.driver.memory=1g --conf spark.executor.memory=1g \
  --conf spark.driver.memoryOverhead=1g \
  --conf 'spark.driver.extraClassPath=/opt/lakehouse/jars/*' \
  --conf 'spark.executor.extraClassPath=/opt/lakehouse/jars/*' \
  --conf spark.driver.extraJavaOptions=-Duser.timezone=UTC \
  --conf spark.executor.extraJavaOptions=-Duser.timezone=UTC \
  local:///opt/lakehouse/lib/python3.11/site-packages/lakehouse_engine/runner.py \
  --env kubernetes pipelines/bronze pipelines/realtime
