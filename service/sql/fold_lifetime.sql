-- fold_lifetime: what users in `folded` ever did, by their months.
-- $1 uuid[]: and of these, who may have nothing in `folded`
-- Of a user who was erased nothing is kept. A session is a completed one; of those who never completed one, a conversation. Months are counted from the first
-- active one to the last, whole. A user who never changed its tier has been on it only; `store_subscribed` counts the
-- others.
INSERT INTO user_lifetime_stats AS l (user_id, total_conversations, total_seconds, total_realtime_sessions,
                                      total_anki_exports, total_custom_phrases, total_advanced_voice_seconds,
                                      total_session_extensions, total_completed_sessions,
                                      average_sessions_per_month, first_conversation_at, first_active_at,
                                      last_active_at, highest_tier_reached)
SELECT t.user_id, coalesce(sum(m.conversations), 0), coalesce(sum(m.seconds), 0),
       coalesce(sum(m.realtime_sessions), 0), coalesce(sum(m.anki_exports_used), 0),
       coalesce(sum(m.custom_phrases_created), 0), coalesce(sum(m.advanced_voice_seconds), 0),
       coalesce(sum(m.session_extensions_used), 0), coalesce(sum(m.completed_sessions), 0),
       coalesce(round(CASE WHEN sum(m.completed_sessions) > 0 THEN sum(m.completed_sessions)
                           ELSE sum(m.conversations) END
                      / (12 * (extract(year FROM max(m.month)) - extract(year FROM min(m.month)))
                         + extract(month FROM max(m.month)) - extract(month FROM min(m.month)) + 1)), 0),
       min(m.first_conversation_at), min(m.first_active_at), max(m.last_active_at),
       u.tier
FROM (SELECT user_id FROM folded UNION SELECT unnest($1::uuid[])) t (user_id)
JOIN users u ON u.id = t.user_id
LEFT JOIN user_usage m ON m.user_id = t.user_id
GROUP BY t.user_id, u.tier
ORDER BY 1
ON CONFLICT (user_id) DO UPDATE
SET total_conversations = excluded.total_conversations,
    total_seconds = excluded.total_seconds,
    total_realtime_sessions = excluded.total_realtime_sessions,
    total_anki_exports = excluded.total_anki_exports,
    total_custom_phrases = excluded.total_custom_phrases,
    total_advanced_voice_seconds = excluded.total_advanced_voice_seconds,
    total_session_extensions = excluded.total_session_extensions,
    total_completed_sessions = excluded.total_completed_sessions,
    average_sessions_per_month = excluded.average_sessions_per_month,
    first_conversation_at = excluded.first_conversation_at,
    first_active_at = excluded.first_active_at,
    last_active_at = excluded.last_active_at,
    updated_at = now()
