-- current_revision: the schema's version, which alembic keeps.
SELECT version_num FROM alembic_version
