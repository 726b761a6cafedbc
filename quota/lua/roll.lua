-- roll: put a user into the windows, credits and holds of a new instant, if nothing moved since they were read.
-- KEYS   1 quota hash   2 profile   3 usage log   4 meta   5 users by when their next hold expires   6-8 key marks   9 tallies
-- ARGV   1 epoch   2 now_ms   3 how long the user stays loaded, ms   4 profile as read   5 profile as it shall be
--        6 user as the log names it   7 when the next hold expires, 0 = none is open
--        8 number of texts that were read, and those: field, value ("" where there is none)
--        then a number of texts to set, and those: field, value; a number of fields to drop, and those
--        then the number of holds that expired: with any, field k, field c and field r of their log entry,
--        and per hold: mark of its end, answer to whoever ends it later
-- Reply  1 done, 0 somebody else moved first: read again
-- Log    as in admit.lua, version 2
-- Order  as in admit.lua: what follows XADD can not fail
local ARGV, KEYS, call, pcall = ARGV, KEYS, redis.call, redis.pcall
local at = 8
local function take()
  local n = tonumber(ARGV[at])
  local texts = {}
  for i = 1, n do texts[i] = ARGV[at + i] end
  at = at + 1 + n
  return texts
end
local about = call('HMGET', KEYS[4], 'epoch', 'dedupe_ms', 'turn')
local dedupe = about[2] and string.find(about[2], '^%d+$') and #about[2] <= 15 and tonumber(about[2]) or 0
if about[1] ~= ARGV[1] or dedupe == 0 then return 0 end
local read, set, dropped = take(), take(), take()
for n = 1, #read, 2 do
  if (pcall('HGET', KEYS[1], read[n]) or '') ~= read[n + 1] then return 0 end
end
if pcall('GET', KEYS[2]) ~= ARGV[4] then return 0 end
-- A key of another type, which nobody of ours wrote, is made anew.
local function put(command, key, ...)
  if type(pcall(command, key, ...)) ~= 'table' then return false end
  call('UNLINK', key)
  call(command, key, ...)
  return true
end
local ended = tonumber(ARGV[at])
if ended > 0 then
  call('XADD', KEYS[3], '*', 'v', '2', 'e', ARGV[1], 't', ARGV[2], 'c', ARGV[at + 2], 'r', ARGV[at + 3], 'k', ARGV[at + 1])
  local span = dedupe / 2
  local turn = math.floor(tonumber(ARGV[2]) / span)
  local ring = KEYS[6 + turn % 3]
  local anew = false
  for n = at + 4, at + 2 + 2 * ended, 2 do anew = put('HSET', ring, ARGV[n], ARGV[n + 1]) or anew end
  if anew or about[3] ~= string.format('%d', turn) then
    call('PEXPIRE', ring, string.format('%d', math.ceil((turn + 3) * span - tonumber(ARGV[2]))))
    call('HSET', KEYS[4], 'turn', string.format('%d', turn))
  end
  pcall('HINCRBY', KEYS[9], 'expired', ended)
  pcall('HINCRBY', KEYS[9], 'lines', ended)
end
call('SET', KEYS[2], ARGV[5], 'PX', ARGV[3])
for n = 1, #set, 1000 do call('HSET', KEYS[1], unpack(set, n, math.min(n + 999, #set))) end
for n = 1, #dropped do call('HDEL', KEYS[1], dropped[n]) end
call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[7] == '0' then put('ZREM', KEYS[5], ARGV[6]) else put('ZADD', KEYS[5], ARGV[7], ARGV[6]) end
return 1
