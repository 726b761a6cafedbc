-- unsettled: holds that are open, of them users whose time is over, and users that Redis has to drop.
SELECT (SELECT count(*) FROM holds WHERE status = 'open') AS holds,
       (SELECT count(*) FROM stale_users) AS stale,
       (SELECT coalesce(array_agg(DISTINCT coalesce(u.external_id, u.id::text)), '{}')
        FROM holds h JOIN users u ON u.id = h.user_id
        WHERE h.status = 'open' AND h.expires_at < now()) AS overdue
