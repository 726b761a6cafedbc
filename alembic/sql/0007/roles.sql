-- roles: those that policies are for, if the cluster lacks them.  Several databases share them, and several may be
-- migrated at once; whoever migrates becomes a member, so that the service can act as either.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['allotment_user', 'allotment_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;  -- somebody else was quicker
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role % is missing, and % may not make it', name, current_user
                        USING ERRCODE = 'insufficient_privilege',
                              HINT = format('Have it made: CREATE ROLE %I NOLOGIN; GRANT %I TO %I', name, name, current_user);
            END;
        END IF;
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', name, current_user);
            EXCEPTION
                WHEN unique_violation THEN NULL;
                WHEN insufficient_privilege THEN
                    IF NOT pg_has_role(current_user, name, 'MEMBER') THEN
                        RAISE EXCEPTION '% is not a member of role %', current_user, name
                            USING ERRCODE = 'insufficient_privilege',
                                  HINT = format('Have it granted: GRANT %I TO %I', name, current_user);
                    END IF;
            END;
        END IF;
    END LOOP;
END
$$
