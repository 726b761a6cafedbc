-- publish: put one version of the rules in force for a shard, whole.
-- KEYS   1 meta   2 rules
-- ARGV   1 version   2 when it was applied, ms   3 the document as JSON   4 form of the lines
--        then field, value of every line, see Rules.lines
-- Reply  1 in force, 0 a newer version already is
-- Deciders name the version that they made their costs with, so no call sees half of two.
-- What is no version, of at most nine digits, is older than any; what is no hash is none.
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'hash' and found ~= 'none' then redis.call('DEL', KEYS[1]) end
local current = redis.call('HGET', KEYS[1], 'rules') or ''
if #current <= 9 and string.match(current, '^%d+$') and tonumber(current) > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], '#document', ARGV[3])
for at = 5, #ARGV, 1000 do
  redis.call('HSET', KEYS[2], unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
redis.call('HSET', KEYS[1], 'rules', ARGV[1], 'rules_at', ARGV[1] .. '@' .. ARGV[2], 'rules_form', ARGV[4])
return 1
