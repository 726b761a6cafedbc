-- fold_clear_months: count nothing in the months of users.
-- $1 uuid[] users
UPDATE user_usage
SET uses = 0, conversations = 0, seconds = 0, realtime_sessions = 0, anki_exports_used = 0,
    custom_phrases_created = 0, advanced_voice_seconds = 0, session_extensions_used = 0, completed_sessions = 0,
    average_session_length = 0, longest_session = 0, timed_sessions = 0, session_seconds = 0, overage_seconds = 0,
    first_active_at = NULL, last_active_at = NULL, first_conversation_at = NULL, last_conversation_at = NULL,
    last_realtime_at = NULL
WHERE user_id = ANY ($1::uuid[])
