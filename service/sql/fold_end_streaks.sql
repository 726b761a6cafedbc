-- fold_end_streaks: the streaks of users who did nothing yesterday and today either, in their time zones, are over.
-- $1 timestamptz: now, or null for PostgreSQL's   $2 boolean: also where that was done in this quarter of an hour
-- Days begin at quarters of an hour. Where a streak of yesterday is over today, it is one of the day before by UTC.
WITH looked AS (
    UPDATE rollup_state SET streaks_ended_at = date_bin('15 minutes', coalesce($1, now()), 'epoch')
    WHERE $2 OR streaks_ended_at < date_bin('15 minutes', coalesce($1, now()), 'epoch')
    RETURNING true
), over AS (
    SELECT l.user_id
    FROM user_lifetime_stats l
    JOIN users u ON u.id = l.user_id
    WHERE (SELECT true FROM looked) AND l.current_streak > 0
      AND l.streak_ends_on < (coalesce($1, now()) AT TIME ZONE 'UTC')::date
      AND l.streak_ends_on < (coalesce($1, now()) AT TIME ZONE usage_zone(u.timezone))::date - 1
)
UPDATE user_lifetime_stats l SET current_streak = 0 FROM over WHERE l.user_id = over.user_id
