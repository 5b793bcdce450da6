-- What retention must know, version 4. To run it by hand, in one transaction:
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -f sql/0004_retention.sql
--
-- Programs that know only an earlier version go on: they name the columns that they write.
-- ALTER TABLE locks stream for a moment; no row of it is rewritten.

SET LOCAL search_path = pg_catalog, pg_temp;

-- The row of a journal that still waits somewhere must stay, however old it is: without it the records that are stored
-- already would be sent again. NULL, of programs that do not say it, is taken for a journal.
ALTER TABLE :"schema".stream ADD COLUMN journal boolean;
COMMENT ON COLUMN :"schema".stream.journal IS 'Whether its records wait in a journal. NULL: not said, by a program older than version 4.';

-- Legal holds: written by a person, read by whatever deletes.
CREATE TABLE :"schema".hold (
    name   text PRIMARY KEY,
    reason text NOT NULL,
    target text,
    starts timestamptz,
    ends   timestamptz,
    match  jsonb NOT NULL DEFAULT '{}' CONSTRAINT hold_match_is_an_object CHECK (jsonb_typeof(match) = 'object'),
    made   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE :"schema".hold IS 'One row for each legal hold: what it matches is neither dropped nor deleted by logsluice while the row is here.';
COMMENT ON COLUMN :"schema".hold.name IS 'What reports call it.';
COMMENT ON COLUMN :"schema".hold.reason IS 'Why, and who asked for it.';
COMMENT ON COLUMN :"schema".hold.target IS 'The table it is about: logs, dead_letter, a typed log''s. NULL: all.';
COMMENT ON COLUMN :"schema".hold.starts IS 'Rows from this moment on. NULL: from the beginning.';
COMMENT ON COLUMN :"schema".hold.ends IS 'Rows before this moment. NULL: without an end.';
COMMENT ON COLUMN :"schema".hold.match IS 'Columns or attributes and their values, all of which a row must have: {"user_id": "u-7"}. {}: every row.';
COMMENT ON COLUMN :"schema".hold.made IS 'When it was written.';

INSERT INTO :"schema".version (version, name) VALUES (4, '0004_retention');
