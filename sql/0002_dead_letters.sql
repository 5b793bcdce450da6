-- What sending dead letters again needs, version 2. To run it by hand, in one transaction:
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -f sql/0002_dead_letters.sql
--
-- Programs that know only version 1 go on: they name the columns that they write, and these have defaults.
-- ALTER TABLE locks dead_letter for a moment; no row of it is rewritten.
-- No index: a dead letter is looked for by a person, and an index would be paid for by every writer.

SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE :"schema".dead_letter
    ADD COLUMN tries integer NOT NULL DEFAULT 0,
    ADD COLUMN due   timestamptz,
    ADD COLUMN stuck timestamptz;
COMMENT ON COLUMN :"schema".dead_letter.tries IS 'How often `logsluice dead replay --due` has tried it, 3 at most.';
COMMENT ON COLUMN :"schema".dead_letter.due IS 'When its next automatic try is due. NULL: none, or one minute after it was rejected if it was never tried.';
COMMENT ON COLUMN :"schema".dead_letter.stuck IS 'When the automatic tries were given up; a person must mend it. NULL: not given up.';

INSERT INTO :"schema".version (version, name) VALUES (2, '0002_dead_letters');
