-- release: give tokens back; one that is another caller's by now stays.
-- KEYS   tokens
-- ARGV   1 the caller's token
-- Reply  how many were given back
local released = 0
for n = 1, #KEYS do
  if redis.pcall('GET', KEYS[n]) == ARGV[1] then released = released + redis.call('DEL', KEYS[n]) end
end
return released
