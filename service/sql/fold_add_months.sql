-- fold_add_months: add `folded` and `folded_sessions` to what users did by month.
-- The tier of a month is that of the stretch which had its last use, under the file of tiers that was in force then;
-- before the first of either, that one is taken. Counted again, it comes to the same.
WITH version AS (
    SELECT version, CASE WHEN row_number() OVER files = 1 THEN '-infinity' ELSE applied_at END AS since,
           coalesce(lead(applied_at) OVER files, 'infinity') AS until
    FROM (SELECT version, min(applied_at) AS applied_at FROM tiers GROUP BY version) file
    WINDOW files AS (ORDER BY version)
), limits AS MATERIALIZED (
    -- The soft limit on seconds of a month in each tier; `*` is for what a tier does not name.
    SELECT l.tier, v.since, v.until, min(l.max) AS seconds_max
    FROM version v
    JOIN tier_limits l ON l.version = v.version AND l.per = 'month' AND l.mode = 'soft'
     AND l.feature = CASE WHEN EXISTS (SELECT FROM tier_limits n WHERE n.version = l.version AND n.tier = l.tier
                                       AND n.feature = 'seconds') THEN 'seconds' ELSE '*' END
    GROUP BY 1, 2, 3
), months AS (
    SELECT user_id, date_trunc('month', local_day::timestamp)::date AS month, sum(uses) AS uses,
           coalesce(sum(units) FILTER (WHERE action = 'conversations'), 0) AS conversations,
           coalesce(sum(units) FILTER (WHERE action = 'seconds'), 0) AS seconds,
           coalesce(sum(units) FILTER (WHERE action = 'realtime_sessions'), 0) AS realtime_sessions,
           coalesce(sum(units) FILTER (WHERE action = 'anki_exports'), 0) AS anki_exports,
           coalesce(sum(units) FILTER (WHERE action = 'custom_phrases_created'), 0) AS custom_phrases,
           coalesce(sum(units) FILTER (WHERE action = 'advanced_voice_seconds'), 0) AS advanced_voice_seconds,
           coalesce(sum(units) FILTER (WHERE action = 'session_extensions'), 0) AS session_extensions,
           coalesce(sum(units) FILTER (WHERE action = 'completed_sessions'), 0) AS completed_sessions,
           min(first_at) AS first_active_at, max(last_at) AS last_active_at,
           min(first_at) FILTER (WHERE action = 'conversations') AS first_conversation_at,
           max(last_at) FILTER (WHERE action = 'conversations') AS last_conversation_at,
           max(last_at) FILTER (WHERE action = 'realtime_sessions') AS last_realtime_at
    FROM folded
    GROUP BY 1, 2
)
INSERT INTO user_usage AS m (user_id, month, uses, conversations, seconds, realtime_sessions, anki_exports_used,
                             custom_phrases_created, advanced_voice_seconds, session_extensions_used,
                             completed_sessions, average_session_length, longest_session, timed_sessions,
                             session_seconds, overage_seconds, overage_after, tier_when_used, first_active_at,
                             last_active_at, first_conversation_at, last_conversation_at, last_realtime_at)
SELECT n.user_id, n.month, n.uses, n.conversations, n.seconds, n.realtime_sessions, n.anki_exports,
       n.custom_phrases, n.advanced_voice_seconds, n.session_extensions,
       n.completed_sessions, coalesce(round(s.seconds::numeric / s.sessions), 0), coalesce(s.longest, 0),
       coalesce(s.sessions, 0), coalesce(s.seconds, 0), coalesce(greatest(0, n.seconds - l.seconds_max), 0),
       l.seconds_max, coalesce(o.tier, u.tier), n.first_active_at,
       n.last_active_at, n.first_conversation_at, n.last_conversation_at, n.last_realtime_at
FROM months n
LEFT JOIN folded_sessions s USING (user_id, month)
JOIN users u ON u.id = n.user_id
LEFT JOIN LATERAL (
    SELECT tier FROM subscriptions s
    WHERE s.user_id = n.user_id
    ORDER BY s.started_at <= n.last_active_at DESC, abs(extract(epoch FROM n.last_active_at - s.started_at)),
             s.ended_at DESC NULLS FIRST
    LIMIT 1
) o ON true
LEFT JOIN limits l ON l.tier = coalesce(o.tier, u.tier) AND n.last_active_at >= l.since AND n.last_active_at < l.until
ORDER BY 1, 2
ON CONFLICT (user_id, month) DO UPDATE
SET uses = m.uses + excluded.uses,
    conversations = m.conversations + excluded.conversations,
    seconds = m.seconds + excluded.seconds,
    realtime_sessions = m.realtime_sessions + excluded.realtime_sessions,
    anki_exports_used = m.anki_exports_used + excluded.anki_exports_used,
    custom_phrases_created = m.custom_phrases_created + excluded.custom_phrases_created,
    advanced_voice_seconds = m.advanced_voice_seconds + excluded.advanced_voice_seconds,
    session_extensions_used = m.session_extensions_used + excluded.session_extensions_used,
    completed_sessions = m.completed_sessions + excluded.completed_sessions,
    average_session_length = coalesce(round((m.session_seconds + excluded.session_seconds)::numeric
                                            / nullif(m.timed_sessions + excluded.timed_sessions, 0)), 0),
    longest_session = greatest(m.longest_session, excluded.longest_session),
    timed_sessions = m.timed_sessions + excluded.timed_sessions,
    session_seconds = m.session_seconds + excluded.session_seconds,
    -- A record of an earlier instant says nothing of the tier that the month ended on.
    overage_seconds = coalesce(greatest(0, m.seconds + excluded.seconds
        - CASE WHEN excluded.last_active_at < m.last_active_at THEN m.overage_after
               ELSE excluded.overage_after END), 0),
    overage_after = CASE WHEN excluded.last_active_at < m.last_active_at THEN m.overage_after
                         ELSE excluded.overage_after END,
    tier_when_used = CASE WHEN excluded.last_active_at < m.last_active_at THEN m.tier_when_used
                          ELSE excluded.tier_when_used END,
    first_active_at = least(m.first_active_at, excluded.first_active_at),
    last_active_at = greatest(m.last_active_at, excluded.last_active_at),
    first_conversation_at = least(m.first_conversation_at, excluded.first_conversation_at),
    last_conversation_at = greatest(m.last_conversation_at, excluded.last_conversation_at),
    last_realtime_at = greatest(m.last_realtime_at, excluded.last_realtime_at)
