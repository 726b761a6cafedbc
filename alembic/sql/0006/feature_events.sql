-- feature_events (seed 001): the log of usage under the names of the seed; an event without an id of its own has the record's.
CREATE VIEW feature_events WITH (security_invoker = true) AS
SELECT coalesce(event_id, id::text) AS event_id, user_id, action AS feature_id, product_version, event_type,
       created_at AS "timestamp", session_id, metadata
FROM usage_logs
