-- legacy_settle: count the next of what was read: its users are made, feature_usage and the counters of lifetimes grow.
-- Before the first, see that every unit came over.
-- $1 int: so many rows   more: whether there are more   rows: settled so far   share: of all
-- A call is a transaction, or part of one.  What a downgrade added to legacy rows is in feature_usage already.
-- The periods of a counter that is made are long past: to every other period, nothing was used yet.
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
    SELECT count(*) AS rows, (array_agg(b.user_id ORDER BY b.user_id DESC, b.feature DESC)) [1] AS user_id,
           (array_agg(b.feature ORDER BY b.user_id DESC, b.feature DESC)) [1] AS feature
    INTO last
    FROM (
        SELECT user_id, feature FROM legacy_feature_usage
        WHERE (user_id, feature) > (first_user, first_feature) ORDER BY user_id, feature LIMIT rows_max
    ) b;
    rows := at.settled + last.rows;
    more := at.step <> 'done' AND last.rows > 0;
    share := 1;
    IF NOT more THEN
        UPDATE allotment_legacy.progress SET step = 'done';
        RETURN;
    END IF;
    INSERT INTO stale_users (user_id)
    SELECT DISTINCT b.user_id FROM legacy_feature_usage b JOIN users u ON u.id = b.user_id
    WHERE (b.user_id, b.feature) > (first_user, first_feature) AND (b.user_id, b.feature) <= (last.user_id, last.feature);
    INSERT INTO users (id, external_id, tier)
    SELECT n.user_id, (SELECT p.external_id FROM allotment_legacy.people p WHERE p.id = n.user_id LIMIT 1),
           coalesce((SELECT t.name FROM tiers t WHERE t.is_default ORDER BY t.version DESC LIMIT 1), 'free')
    FROM (
        SELECT DISTINCT b.user_id FROM legacy_feature_usage b
        WHERE (b.user_id, b.feature) > (first_user, first_feature) AND (b.user_id, b.feature) <= (last.user_id, last.feature)
          AND NOT EXISTS (SELECT FROM users u WHERE u.id = b.user_id)
    ) n
    ORDER BY n.user_id
    ON CONFLICT (id) DO NOTHING;
    INSERT INTO feature_usage AS f (user_id, feature_name, metadata, usage_count, last_used, sync_status, last_synced_at)
    SELECT b.user_id, b.feature, b.metadata, b.units, b.last_used, 'synced', now()
    FROM legacy_feature_usage b
    WHERE (b.user_id, b.feature) > (first_user, first_feature) AND (b.user_id, b.feature) <= (last.user_id, last.feature)
    ORDER BY b.user_id, b.feature
    ON CONFLICT (user_id, feature_name) DO UPDATE
    SET usage_count = coalesce(f.usage_count, 0) + excluded.usage_count,
        last_used = greatest(f.last_used, excluded.last_used),
        metadata = CASE WHEN excluded.last_used > f.last_used THEN coalesce(excluded.metadata, f.metadata)
                        ELSE coalesce(f.metadata, excluded.metadata) END;
    INSERT INTO usage_counters AS c (user_id, feature, hour_start, hour_used, day_start, day_used, week_start, week_used,
                                     month_start, month_used, year_start, year_used, cycle_start, cycle_used, lifetime_used)
    SELECT b.user_id, b.feature, s.day, 0, s.day, 0, s.monday, 0, s.day, 0, s.day, 0, s.anchor, 0, b.units
    FROM legacy_feature_usage b
    JOIN users u ON u.id = b.user_id
    CROSS JOIN LATERAL (
        SELECT '2000-01-01'::timestamp AT TIME ZONE u.timezone AS day, '2000-01-03'::timestamp AT TIME ZONE u.timezone AS monday,
               date_trunc('milliseconds', u.anchor) AS anchor
    ) s
    WHERE (b.user_id, b.feature) > (first_user, first_feature) AND (b.user_id, b.feature) <= (last.user_id, last.feature)
    ORDER BY b.user_id, b.feature
    ON CONFLICT (user_id, feature) DO UPDATE SET lifetime_used = c.lifetime_used + excluded.lifetime_used;
    UPDATE allotment_legacy.progress SET after_user = last.user_id, after_feature = last.feature, settled = rows;
    share := least(1, rows / greatest(1, (SELECT c.reltuples FROM pg_class c WHERE c.oid = to_regclass('legacy_feature_usage'))));
END
$settle$
