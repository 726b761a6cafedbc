-- fold_tables: what one fold works on, in the memory of its connection; empty again when its transaction ends.
-- folded: usage by day and local day   folded_daily: by day, as it is to be added
-- folded_sessions: sessions by local month   folded_days: local days that had no usage before
CREATE TEMPORARY TABLE IF NOT EXISTS folded (
    user_id uuid, action text, format text, quality text, day date, local_day date,
    uses bigint, units bigint, credits numeric(22, 6), first_at timestamptz, last_at timestamptz
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS folded_daily (
    user_id uuid, action text, format text, quality text, day date, uses bigint, units bigint, credits numeric(22, 6)
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS folded_sessions (
    user_id uuid, month date, sessions bigint, seconds bigint, longest bigint
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS folded_days (user_id uuid, day date) ON COMMIT DELETE ROWS
