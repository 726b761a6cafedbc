-- forget: drop users from Redis because they changed in PostgreSQL; their next decision loads them again.
-- KEYS   per user: quota hash, profile, token
-- A load that read the user before the change loses its token, so it can not put the old state back.
-- What was admitted is in the log, so nothing is lost with the hash.
return redis.call('UNLINK', unpack(KEYS))
