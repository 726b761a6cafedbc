-- rebuild_left: how many users are still to be counted anew, and whether what is about everybody is.
SELECT (SELECT count(DISTINCT user_id) FROM stale_rollups) AS users, platform_is_stale FROM rollup_state
