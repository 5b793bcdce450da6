-- Counts of `logs` by hour that stay when retention has dropped the rows. Optional: nothing else needs it.
--
-- `logsluice migrate --rollup` applies it, `logsluice migrate --sql --rollup` prints it. It may be applied again. It has
-- no version: writers name the columns that they write, so those of any version go on. `logsluice maintain` counts.
-- A reader needs SELECT on both tables. No personal data is in them, unless a logger is named after a person.

SET LOCAL search_path = pg_catalog, pg_temp;
-- 2 s: ALTER TABLE waits for open readers of `logs`, and so long do writers wait behind it.
SET LOCAL lock_timeout = '2s';

-- Which transaction stored a row: the one thing that tells late rows from those that were counted, whatever their ts.
-- In two steps: together they would fill the column in all rows that are there. These stay NULL.
ALTER TABLE :"schema".logs ADD COLUMN IF NOT EXISTS xact bigint;
ALTER TABLE :"schema".logs ALTER COLUMN xact SET DEFAULT txid_current();
COMMENT ON COLUMN :"schema".logs.xact IS 'Number of the transaction that stored the row, 64 bits; NULL when it was stored before there was a roll-up.';

CREATE TABLE IF NOT EXISTS :"schema".logs_hourly (
    hour       timestamptz NOT NULL,
    service    text,
    level      smallint NOT NULL,
    logger     text,
    records    bigint NOT NULL,
    text_bytes bigint NOT NULL,
    last       timestamptz NOT NULL
);
-- Not unique: a logger's name may be longer than an index entry, and NULLs are values here.
CREATE INDEX IF NOT EXISTS logs_hourly_hour ON :"schema".logs_hourly (hour);
COMMENT ON TABLE :"schema".logs_hourly IS 'One row for each hour, service, level and logger: what was ever stored in logs, deleted since or not.';
COMMENT ON COLUMN :"schema".logs_hourly.hour IS 'When the hour of logs.ts begins, UTC.';
COMMENT ON COLUMN :"schema".logs_hourly.service IS 'logs.service.';
COMMENT ON COLUMN :"schema".logs_hourly.level IS 'logs.level.';
COMMENT ON COLUMN :"schema".logs_hourly.logger IS 'logs.logger.';
COMMENT ON COLUMN :"schema".logs_hourly.records IS 'Rows of logs.';
COMMENT ON COLUMN :"schema".logs_hourly.text_bytes IS 'Bytes of their messages, tracebacks and attributes, UTF-8, before compression.';
COMMENT ON COLUMN :"schema".logs_hourly.last IS 'The latest ts of them.';

CREATE TABLE IF NOT EXISTS :"schema".logs_hourly_state (
    began   txid_snapshot,
    counted txid_snapshot,
    filled  timestamptz
);
COMMENT ON TABLE :"schema".logs_hourly_state IS 'One row: which rows of logs are in logs_hourly. Written by maintain, in the transaction that counts.';
COMMENT ON COLUMN :"schema".logs_hourly_state.began IS 'Transactions whose rows were there when it began: counted day by day, up to filled. NULL: it has not begun.';
COMMENT ON COLUMN :"schema".logs_hourly_state.counted IS 'Transactions whose rows are counted; of those that began had not seen.';
COMMENT ON COLUMN :"schema".logs_hourly_state.filled IS 'Up to which ts the rows that were there are counted; infinity: all.';
-- Not beside counts that are there: all rows would be counted again.
INSERT INTO :"schema".logs_hourly_state
SELECT WHERE NOT EXISTS (SELECT FROM :"schema".logs_hourly_state) AND NOT EXISTS (SELECT FROM :"schema".logs_hourly);
