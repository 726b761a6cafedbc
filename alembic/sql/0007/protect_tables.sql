-- protect_tables: every table there is: policies where it has rows of users, for admins to read where it has not.
-- A partition is no way around the policies of its table: nobody is granted it, and it has no policy that lets
-- anybody see a row.  Rows of rules are for all to read.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT c.oid::regclass AS name, c.relname, c.relispartition AS part,
               EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped) AS of_users
        FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
          AND c.relname <> 'alembic_version'
        ORDER BY c.relname
    LOOP
        IF found.part THEN
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', found.name);
        ELSIF found.relname = 'users' THEN
            PERFORM protect_user_rows(found.name, 'id');
        ELSIF found.of_users THEN
            PERFORM protect_user_rows(found.name);
        ELSE
            EXECUTE format('GRANT SELECT ON %s TO allotment_admin', found.name);
        END IF;
    END LOOP;
END
$$
