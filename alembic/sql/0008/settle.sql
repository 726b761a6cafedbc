-- settle: count the next of what was read: its users are made, feature_usage and the counters of lifetimes grow.
-- Before the first, see that every unit came over.
-- $1 int: so many rows   more: whether there are more   rows: settled so far   share: of all
-- A call is a transaction, or part of one.  What a downgrade added to legacy rows is in feature_usage already.
-- The periods of a counter that is made are long past: to every other period, nothing was used yet.  A user who is
-- made has the zone and the anchor that are the defaults of `users`.
CREATE OR REPLACE FUNCTION allotment_legacy.settle(rows_max int, OUT more boolean, OUT rows bigint, OUT share float)
LANGUAGE plpgsql SET plan_cache_mode = force_custom_plan AS $settle$
DECLARE
    at allotment_legacy.progress;
    first_user uuid; first_feature text;
    last record;
BEGIN
    SELECT * INTO at FROM allotment_legacy.progress FOR UPDATE;
    IF at.step = 'read' THEN
        IF (SELECT coalesce(sum(s.units), 0) FROM allotment_legacy.sources s)
           <> (SELECT coalesce(sum(b.units), 0) FROM legacy_feature_usage b) THEN
            RAISE EXCEPTION 'legacy rows have % units, and % were brought over',
                (SELECT sum(s.units) FROM allotment_legacy.sources s), (SELECT sum(b.units) FROM legacy_feature_usage b)
                USING ERRCODE = 'AL001';
        END IF;
        UPDATE legacy_feature_usage b SET units = greatest(0, b.units - r.units)
        FROM allotment_legacy.returned r WHERE r.user_id = b.user_id AND r.feature = b.feature;
        UPDATE allotment_legacy.progress SET step = 'settle';
        ANALYZE legacy_feature_usage;
    END IF;
    first_user := coalesce(at.after_user, '00000000-0000-0000-0000-000000000000');
    first_feature := coalesce(at.after_feature, '');
    WITH batch AS MATERIALIZED (
        SELECT * FROM legacy_feature_usage b
        WHERE (b.user_id, b.feature) > (first_user, first_feature) ORDER BY b.user_id, b.feature LIMIT rows_max
    ), people AS MATERIALIZED (
        SELECT DISTINCT b.user_id, u.timezone, u.anchor FROM batch b LEFT JOIN users u ON u.id = b.user_id
    ), noted AS (
        INSERT INTO stale_users (user_id) SELECT p.user_id FROM people p WHERE p.timezone IS NOT NULL
    ), made AS (
        INSERT INTO users (id, external_id, tier)
        SELECT p.user_id, (SELECT t.external_id FROM allotment_legacy.people t WHERE t.id = p.user_id LIMIT 1),
               coalesce((SELECT t.name FROM tiers t WHERE t.is_default ORDER BY t.version DESC LIMIT 1), 'free')
        FROM people p WHERE p.timezone IS NULL
        ORDER BY p.user_id
        ON CONFLICT (id) DO NOTHING  -- a running service was quicker
        RETURNING id
    ), used AS (
        INSERT INTO feature_usage AS f (user_id, feature_name, metadata, usage_count, last_used, sync_status, last_synced_at)
        SELECT b.user_id, b.feature, b.metadata, b.units, b.last_used, 'synced', now()
        FROM batch b
        ORDER BY b.user_id, b.feature
        ON CONFLICT (user_id, feature_name) DO UPDATE
        SET usage_count = coalesce(f.usage_count, 0) + excluded.usage_count,
            last_used = greatest(f.last_used, excluded.last_used),
            metadata = CASE WHEN excluded.last_used > f.last_used THEN coalesce(excluded.metadata, f.metadata)
                            ELSE coalesce(f.metadata, excluded.metadata) END
    ), counted AS (
        INSERT INTO usage_counters AS c (user_id, feature, hour_start, hour_used, day_start, day_used, week_start, week_used,
                                         month_start, month_used, year_start, year_used, cycle_start, cycle_used,
                                         lifetime_used)
        SELECT b.user_id, b.feature, s.day, 0, s.day, 0, s.monday, 0, s.day, 0, s.day, 0, s.anchor, 0, b.units
        FROM batch b
        JOIN (
            SELECT p.user_id, date_trunc('milliseconds', coalesce(p.anchor, now())) AS anchor,
                   '2000-01-01'::timestamp AT TIME ZONE usage_zone(coalesce(p.timezone, 'UTC')) AS day,
                   '2000-01-03'::timestamp AT TIME ZONE usage_zone(coalesce(p.timezone, 'UTC')) AS monday
            FROM people p
        ) s USING (user_id)
        ORDER BY b.user_id, b.feature
        ON CONFLICT (user_id, feature) DO UPDATE SET lifetime_used = c.lifetime_used + excluded.lifetime_used
    )
    SELECT (SELECT count(*) FROM batch) AS rows, (SELECT count(*) FROM made) AS made, b.user_id, b.feature INTO last
    FROM batch b ORDER BY b.user_id DESC, b.feature DESC LIMIT 1;
    more := at.step <> 'done' AND last.user_id IS NOT NULL;
    rows := at.settled + coalesce(last.rows, 0);
    share := 1;
    IF NOT more THEN
        UPDATE allotment_legacy.progress SET step = 'done';
        RETURN;
    END IF;
    UPDATE allotment_legacy.progress SET after_user = last.user_id, after_feature = last.feature, settled = rows,
        made = at.made + last.made;
    share := least(1, rows / greatest(1, (SELECT c.reltuples FROM pg_class c WHERE c.oid = to_regclass('legacy_feature_usage'))));
END
$settle$
