"""The tables that PostgreSQL keeps beside the results, all of them in one place, and what makes them.

``positions`` and ``batches``: how far each stream has read (``progress.py``). ``queries``: up to which batch of which
checkpoint a stream with state of Spark's is here (``endings.py``). ``served``: which version of a Delta table the copy
holds (``serving.py``). ``outbox``: changes of windows that are still to be sent to a further sink (``outbox.py``).
``backfills``: the day that the last recount of a stream has reached (``recount.py``). ``runs``: what was seen of
everything else, for people (``journal.py``). ``definitions``: by what each pipeline's rows are made
(``definitions.py``).
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

#: one at a time: ``create if not exists`` of two starting processes can collide
LOCK = "select pg_advisory_xact_lock(7241203)"
#: what would lock a table even where there is nothing to do (``create index if not exists``, ``add column if not
#: exists``) is asked for first: a commit would wait for it, and it for the commit
DDL = """
create schema if not exists lakehouse;
create table if not exists lakehouse.positions (
  pipeline text not null, epoch int not null, topic_id text not null, partition int not null, topic text not null,
  next_offset bigint not null, max_event_time timestamptz, idle boolean not null default false,
  last_row_at timestamptz, writer text not null,
  primary key (pipeline, epoch, topic_id, partition));
create table if not exists lakehouse.batches (
  pipeline text not null, epoch int not null, batch_id bigint not null, started_at timestamptz not null,
  committed_at timestamptz not null default clock_timestamp(), topic_id text not null, ranges jsonb not null,
  watermark timestamptz, quarantined bigint not null, filtered bigint not null, duplicate bigint not null,
  late bigint not null, counted bigint not null, warnings jsonb not null default '{}', behind bigint,
  first_batch bigint, primary key (pipeline, epoch, batch_id));
create table if not exists lakehouse.queries (
  pipeline text not null, epoch int not null, checkpoint text not null, batch bigint not null, writer text not null,
  state_rows bigint, state_bytes bigint, primary key (pipeline, epoch));
create table if not exists lakehouse.served (pipeline text primary key, table_id text, version bigint not null,
  served_at timestamptz not null default clock_timestamp(), rows bigint not null, commit_id text, checksum bigint);
create table if not exists lakehouse.outbox (
  id bigint generated always as identity primary key, branch text not null, row jsonb not null);
create table if not exists lakehouse.runs (
  id bigint generated always as identity primary key, pipeline text not null, kind text not null,
  started_at timestamptz not null, ended_at timestamptz not null default clock_timestamp(), outcome text not null,
  code text, message text, version bigint, rows bigint, behind bigint, quarantined bigint, filtered bigint,
  duplicate bigint, late bigint, counted bigint, files int, bytes bigint);
create table if not exists lakehouse.backfills (
  pipeline text primary key, epoch int not null, id text not null, done date not null, finished boolean not null,
  at timestamptz not null default clock_timestamp());
create table if not exists lakehouse.definitions (
  pipeline text not null, epoch int not null, definition jsonb, at timestamptz not null default clock_timestamp(),
  primary key (pipeline, epoch));
do $$ begin
  if to_regclass('lakehouse.batches_by_time') is null then
    create index batches_by_time on lakehouse.batches using brin (committed_at)
      with (autosummarize = on, pages_per_range = 16);
  end if;
  if to_regclass('lakehouse.runs_by_pipeline') is null then
    create index runs_by_pipeline on lakehouse.runs (pipeline, ended_at desc);
    create index runs_by_time on lakehouse.runs using brin (ended_at) with (autosummarize = on, pages_per_range = 16);
  end if;
  if to_regclass('lakehouse.last_runs') is null then
    create index runs_by_kind on lakehouse.runs (pipeline, kind, ended_at desc);
    -- the last run of each pipeline and kind, found by steps through the index
    create view lakehouse.last_runs as
      with recursive k (pipeline, kind) as (
        (select pipeline, kind from lakehouse.runs order by 1, 2 limit 1) union all
        select n.* from k, lateral (select r.pipeline, r.kind from lakehouse.runs r
          where (r.pipeline, r.kind) > (k.pipeline, k.kind) order by 1, 2 limit 1) n)
      select l.* from k, lateral (select r.* from lakehouse.runs r where r.pipeline = k.pipeline and r.kind = k.kind
        order by ended_at desc limit 1) l;
  end if;
  if not exists (select from pg_attribute where attrelid = 'lakehouse.batches'::regclass and attname = 'behind') then
    alter table lakehouse.batches add column behind bigint;
  end if;
  if not exists (select from pg_attribute
                 where attrelid = 'lakehouse.batches'::regclass and attname = 'first_batch') then
    alter table lakehouse.batches add column first_batch bigint;
  end if;
  if not exists (select from pg_attribute where attrelid = 'lakehouse.served'::regclass and attname = 'checksum') then
    alter table lakehouse.served add column if not exists commit_id text, add column checksum bigint;
  end if;
  if to_regclass('lakehouse.commits') is null then
    -- every micro-batch of every stream, whichever store it went to
    create view lakehouse.commits as
      select pipeline, started_at, committed_at, watermark, behind, quarantined, filtered, duplicate, late, counted
        from lakehouse.batches
      union all
      select pipeline, started_at, ended_at, null, behind, coalesce(quarantined, 0), coalesce(filtered, 0),
        coalesce(duplicate, 0), coalesce(late, 0), coalesce(counted, 0)
        from lakehouse.runs where kind = 'batch' and outcome = 'committed';
  end if;
end $$;
"""

#: SQL: how many micro-batches rows of ``batches`` tell of
BATCHES = "coalesce(sum(batch_id - coalesce(first_batch, batch_id) + 1), 0)::bigint"


def make(cursor: Any) -> None:
    """Makes what is not there yet, in the caller's transaction; two processes do so one after the other."""
    cursor.execute(LOCK)
    cursor.execute(DDL)


#: the newest of them last
_ALL = ["outbox", "positions", "batches", "served", "backfills", "runs", "last_runs", "commits", "queries",
        "definitions"]  # fmt: skip


def ensure(cursor: Any) -> None:
    """Makes the tables where one of them is not there, in the caller's transaction."""
    cursor.execute("select bool_and(to_regclass('lakehouse.' || name) is not null) from unnest(%s) name", (_ALL,))
    if cursor.fetchone() != (True,):
        make(cursor)


def prepare(connection: Any) -> None:
    """Makes what is not there yet, in a transaction of its own; may be called again."""
    with connection, closing(connection.cursor()) as cursor:
        make(cursor)
