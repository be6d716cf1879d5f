#!/bin/sh
# `airflow.sh WORDS` is `airflow WORDS` with the settings of this platform. Secrets stay in their files: Airflow runs
# the commands in *_CMD when it needs one, so that no process has a secret in its environment.
set -eu
secrets=${LAKEHOUSE_SECRETS:-/run/secrets}
if [ "${1:-}" = database-address ]; then
  printf 'postgresql+psycopg2://airflow:%s@%s:%s/airflow' "$(cat "$secrets/airflow_password")" \
    "${POSTGRES_HOST:-postgres}" "${POSTGRES_PORT:-5432}"
  exit
fi

export AIRFLOW_HOME="${AIRFLOW_HOME:-/opt/airflow}"
export LAKEHOUSE_PROJECT="${LAKEHOUSE_PROJECT:-/lakehouse}"
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD="'$0' database-address"
export AIRFLOW__CORE__FERNET_KEY_CMD="cat '$secrets/airflow_fernet_key'"
export AIRFLOW__API__SECRET_KEY_CMD="cat '$secrets/airflow_api_secret_key'"
export AIRFLOW__API_AUTH__JWT_SECRET_CMD="cat '$secrets/airflow_jwt_secret'"
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE="$AIRFLOW_HOME/passwords.json"
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=admin:admin

export AIRFLOW__CORE__EXECUTOR=LocalExecutor
export AIRFLOW__CORE__PARALLELISM=4
export AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__DAGS_FOLDER="$LAKEHOUSE_PROJECT/airflow/dags"
# The files say when something runs; a switch in a browser does not have to agree first.
export AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=False
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL="${AIRFLOW_API:-http://airflow:8080}/execution/"
export AIRFLOW__API__HOST="${AIRFLOW_HOST:-0.0.0.0}"
export AIRFLOW__API__PORT="${AIRFLOW_API_PORT:-8080}"
export AIRFLOW__API__BASE_URL="${AIRFLOW_PUBLIC_URL:-http://127.0.0.1:8080}"
export AIRFLOW__API__WORKERS=1
# seconds until a changed pipeline file shows
export AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL=10
export AIRFLOW__LOGGING__BASE_LOG_FOLDER="${AIRFLOW_LOGS:-/var/log/airflow}"
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False

# Airflow wants to write to this file, and no secret's file can be written to. Only the API server is given the secret.
if [ -e "$secrets/airflow_admin_password" ]; then
  (umask 077 && printf '{"admin": "%s"}' "$(cat "$secrets/airflow_admin_password")" > "$AIRFLOW_HOME/passwords.json")
fi
exec "${AIRFLOW_COMMAND:-airflow}" "$@"
