-- forget: drop users from Redis because they changed in PostgreSQL; their next decision loads them again.
-- KEYS   per user: quota hash, profile, token
-- Reply  how many of these there were
-- A load that read the user before the change loses its token, so it can not put the old state back.
-- The token of a user that stands still is not a loader's, and stays: see freeze.lua.
-- What was admitted is in the log, so nothing is lost with the hash.
local forgotten = 0
for at = 1, #KEYS, 3 do
  forgotten = forgotten + redis.call('UNLINK', KEYS[at], KEYS[at + 1])
  local token = redis.pcall('GET', KEYS[at + 2])  -- of another type it is nobody's
  if token and (type(token) == 'table' or string.sub(token, 1, 6) ~= 'still:') then forgotten = forgotten + redis.call('UNLINK', KEYS[at + 2]) end
end
return forgotten
