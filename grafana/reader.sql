-- The role that dashboards read with. Run it once, as the role that the engine connects as (tables that the engine makes
-- later are readable by this too), with psql or any client; it may be run again. It needs CREATEROLE the first time.
-- The password is yours to set afterwards, e.g. with psql's \password lakehouse_reader; until then nobody can log in.
do $$ begin
  if not exists (select from pg_roles where rolname = 'lakehouse_reader') then
    create role lakehouse_reader login nosuperuser nocreatedb nocreaterole noinherit connection limit 20;
  end if;
end $$;

alter role lakehouse_reader set default_transaction_read_only = on;
alter role lakehouse_reader set statement_timeout = '10s';
alter role lakehouse_reader set idle_in_transaction_session_timeout = '30s';
alter role lakehouse_reader set timezone = 'UTC';

create schema if not exists realtime;
create schema if not exists gold;
create schema if not exists lakehouse;
grant usage on schema realtime, gold, lakehouse to lakehouse_reader;
grant select on all tables in schema realtime, gold, lakehouse to lakehouse_reader;
alter default privileges in schema realtime, gold, lakehouse grant select on tables to lakehouse_reader;
