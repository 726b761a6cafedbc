-- begin: make the place where the bringing over of legacy rows keeps its books, where there are any.
-- put_aside: what 0001 moved   sources: what is read, how far, and what came of it   people: ids of users by their texts
-- progress: the step, and in the last one the last row that was settled; made: users who were not known
-- returned: what a downgrade gave back   deleted: rows that went from a legacy table with what they refer to
-- too_much: users and features whose rows add up to more than a count can be
DO $begin$
BEGIN
    IF to_regclass(format('%I.user_feature_usage', current_schema())) IS NULL
       AND to_regclass('allotment_legacy.put_aside') IS NULL
       AND to_regclass('allotment_legacy.uses_since') IS NULL THEN
        RETURN;
    END IF;
    CREATE SCHEMA IF NOT EXISTS allotment_legacy;
    CREATE TABLE IF NOT EXISTS allotment_legacy.put_aside (name text PRIMARY KEY, kind text NOT NULL, aside text NOT NULL);
    CREATE TABLE IF NOT EXISTS allotment_legacy.sources (
        name text PRIMARY KEY,
        relation regclass NOT NULL,     -- what is read by place: the table, or a copy of what a view shows
        filenode oid NOT NULL,          -- another one: it was rewritten, and the places are others
        person_is_text boolean NOT NULL,
        person_column text NOT NULL,
        feature_column text NOT NULL,
        count_column text NOT NULL,
        last_column text,
        metadata_column text,
        reading text NOT NULL,          -- its columns, in SQL, as what they are to us
        next_block bigint NOT NULL DEFAULT 0,
        done boolean NOT NULL DEFAULT false,
        rows bigint NOT NULL DEFAULT 0,
        brought bigint NOT NULL DEFAULT 0,
        rejected bigint NOT NULL DEFAULT 0,
        units numeric NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS allotment_legacy.people (name text PRIMARY KEY, id uuid NOT NULL, external_id text);
    CREATE INDEX IF NOT EXISTS people_id ON allotment_legacy.people (id);
    CREATE TABLE IF NOT EXISTS allotment_legacy.progress (
        step text NOT NULL DEFAULT 'read', after_user uuid, after_feature text, settled bigint NOT NULL DEFAULT 0,
        made bigint NOT NULL DEFAULT 0
    );
    INSERT INTO allotment_legacy.progress SELECT 'read' WHERE NOT EXISTS (SELECT FROM allotment_legacy.progress);
    CREATE TABLE IF NOT EXISTS allotment_legacy.returned (
        user_id uuid, feature text, units bigint NOT NULL, PRIMARY KEY (user_id, feature)
    );
    CREATE TABLE IF NOT EXISTS allotment_legacy.deleted (source text NOT NULL, user_id uuid, feature text, units numeric NOT NULL);
    CREATE TABLE IF NOT EXISTS allotment_legacy.too_much (user_id uuid, feature text, PRIMARY KEY (user_id, feature));
END
$begin$
