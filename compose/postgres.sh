#!/bin/sh
# Runs once, as the superuser, on a new database: a role for each service, with no more than it needs.
#   engine            owns the schemas of the lakehouse and makes more of them; no other database, no roles
#   airflow           owns the database airflow
#   lakehouse_reader  reads results and ledger (grafana/reader.sql)
# `postgres.sh passwords` sets the roles' passwords to what their files say now.
set -eu
LAKEHOUSE_SECRETS=${LAKEHOUSE_SECRETS:-/run/secrets}
export LAKEHOUSE_SECRETS
grafana=${LAKEHOUSE_GRAFANA:-/lakehouse/grafana}

sql() {
  psql --no-psqlrc --quiet --no-password --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" \
    --dbname lakehouse "$@"
}

# The image hands the superuser's password to this script the first time only.
if [ -z "${PGPASSWORD:-}" ]; then
  PGPASSFILE=$(mktemp) # closed to others
  export PGPASSFILE
  trap 'rm -f "$PGPASSFILE"' EXIT
  printf '*:*:*:*:%s' "$(cat "$LAKEHOUSE_SECRETS/postgres_password")" > "$PGPASSFILE"
fi

if [ "${1:-}" != passwords ]; then
  sql <<'SQL'
-- nobody can log in until there is a password
create role engine login nosuperuser nocreatedb nocreaterole;
create role airflow login nosuperuser nocreatedb nocreaterole;

create database airflow owner airflow;
revoke all on database lakehouse, airflow, postgres from public;
-- its own schemas, and the temporary tables that a batch is loaded into
grant connect, create, temporary on database lakehouse to engine;

create schema realtime authorization engine;
create schema gold authorization engine;
create schema lakehouse authorization engine;
SQL
  sql --file "$grafana/reader.sql"
  sql <<'SQL'
grant connect on database lakehouse to lakehouse_reader;
-- what the engine makes later; reader.sql says it for the role that runs it
alter default privileges for role engine in schema realtime, gold, lakehouse grant select on tables to lakehouse_reader;
SQL
  # The ledger's tables, as the engine's own: what dashboards and alerts ask is there before the engine has run.
  sql --command "set role engine" --file "$grafana/ledger.sql"
fi

sql <<'SQL'
-- no password in the server's log, should a statement fail
set log_min_error_statement = panic;
set log_statement = none;
\set engine `cat "$LAKEHOUSE_SECRETS/engine_password"`
\set airflow `cat "$LAKEHOUSE_SECRETS/airflow_password"`
\set reader `cat "$LAKEHOUSE_SECRETS/lakehouse_reader_password"`
alter role engine password :'engine';
alter role airflow password :'airflow';
alter role lakehouse_reader password :'reader';
SQL
