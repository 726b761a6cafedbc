-- publish: put one version of the rules in force for a shard, whole.
-- KEYS   1 meta   2 rules
-- ARGV   1 version   2 the document as JSON   3 form of the lines   then field, value of every line, see Rules.lines
-- Reply  1 in force, 0 a newer version already is
-- Deciders name the version that they made their costs with, so no call sees half of two.
if tonumber(redis.call('HGET', KEYS[1], 'rules') or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], '#document', ARGV[2])
for at = 4, #ARGV, 1000 do
  redis.call('HSET', KEYS[2], unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
redis.call('HSET', KEYS[1], 'rules', ARGV[1], 'rules_form', ARGV[3])
return 1
