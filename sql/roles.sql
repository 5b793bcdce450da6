-- Roles for who writes, who reads and who looks after the tables. Run it again after each `logsluice migrate` and for new
-- tables of typed logs: it gives what is missing and takes what is too much, in one transaction.
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -v writer=logsluice_writer -f sql/roles.sql
--
-- `logsluice migrate --roles` prints the same text with the names filled in. It takes a superuser, or somebody who may
-- make roles and owns the schema. Lines that begin with a backslash are psql's.

\if :{?schema} \else \set schema logsluice \endif
\if :{?writer} \else \set writer logsluice_writer \endif
\if :{?reader} \else \set reader logsluice_reader \endif
\if :{?admin} \else \set admin logsluice_admin \endif
SET LOCAL search_path = pg_catalog, pg_temp;
-- 2 s: a table that changes hands is locked, and writers wait behind us. It is locked in the first run alone.
SET LOCAL lock_timeout = '2s';
SET LOCAL logsluice.home = :'schema';
SET LOCAL logsluice.writer = :'writer';
SET LOCAL logsluice.reader = :'reader';
SET LOCAL logsluice.admin = :'admin';

DO $body$
DECLARE
    home   text := current_setting('logsluice.home');
    writer text := current_setting('logsluice.writer');
    reader text := current_setting('logsluice.reader');
    admin  text := current_setting('logsluice.admin');
    name   text;
    kind   text;
BEGIN
    FOREACH name IN ARRAY ARRAY[writer, reader, admin] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    IF NOT pg_has_role(admin, 'USAGE') THEN  -- whoever made a role may not act as it yet, from PostgreSQL 16 on
        EXECUTE format('GRANT %I TO CURRENT_USER', admin);
    END IF;

    -- The admin owns everything here: ALTER, DETACH and DROP are nobody else's. make_partitions runs as its owner and
    -- works on tables of the same one. `stream` first, as writers lock it: in another order we could block each other.
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = home) THEN
        EXECUTE format('CREATE SCHEMA %I', home);
    END IF;
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = home AND nspowner <> quote_ident(admin)::regrole) THEN
        EXECUTE format('ALTER SCHEMA %I OWNER TO %I', home, admin);
    END IF;
    FOR name, kind IN
        SELECT c.oid::regclass, CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = home AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relowner <> quote_ident(admin)::regrole
         ORDER BY c.relname <> 'stream', c.relname LOOP
        EXECUTE format('ALTER %s %s OWNER TO %I', kind, name, admin);
    END LOOP;
    FOR name IN SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE n.nspname = home AND p.proowner <> quote_ident(admin)::regrole LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO %I', name, admin);
    END LOOP;

    -- Nothing but what follows.
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I, %I', home, writer, reader);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I, %I', home, writer, reader);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM %I, %I', home, writer, reader);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I, %I', home, writer, reader);

    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', home, reader);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON TABLES TO %I', admin, home, reader);

    -- The writer: INSERT into every table of records, which has ts, stream and seq. No default privileges: later tables
    -- may be none of records (`hold` says what must not be deleted). Partitions need no grant: rows go in by their parent.
    FOR name, kind IN
        SELECT c.oid::regclass,
               CASE c.relname WHEN 'stream' THEN 'SELECT, INSERT, UPDATE' WHEN 'version' THEN 'SELECT' ELSE 'INSERT' END
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = home AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND (c.relname IN ('stream', 'dead_letter', 'version') OR 3 = (
               SELECT count(*) FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname IN ('ts', 'stream', 'seq') AND NOT a.attisdropped)) LOOP
        EXECUTE format('GRANT %s ON %s TO %I', kind, name, writer);
    END LOOP;
    FOR name IN SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE n.nspname = home AND p.proname = 'make_partitions' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', name, writer);
    END LOOP;
END
$body$;
