-- admit: decide N usage records of one shard, count what is admitted and log it, in one atomic step.
-- KEYS   1 usage log   2 meta   3 rules   4-6 key marks (a ring of three)   7 tallies   8.. one quota hash per user
-- ARGV   1 now_ms (0 = this server's clock)   2 rules version the costs were made with   3 number of shards
--        4 number of records   5 number of them whose key may have been seen before
--        then per record its mark: a digest of user and key; then of those under 5 their number
--        then 8 per line, most records having one:
--          1 lines that this record still has, this one counted   5 amount
--          2 place of the user's hash in KEYS                      6 cost in micro-credits: "5"; "5,pro=3," where tiers differ
--          3 verb: c consume, k check, r record                    7 fingerprint of the payload, 6 bytes
--          4 feature                                               8 the line as it is logged, a JSON array
-- Reply  {1, word, ...} with nothing done: "epoch" (the shard is not loaded), "rules" (other version), "shards", their number
--        {0, now_ms, one per line}: an integer outcome that is no decision, or the decision as text:
--          "outcome;cost;credits;" the limits "per,mode,max" of the rule, with ";" between, "|", then end_ms and used of each limit as
--          little-endian doubles; "=" before it when it is replayed; max -1 = unlimited, end_ms 0 = never
--        outcome 0 ok  1 soft_limit  2 limit_exceeded  3 insufficient_credits  4 feature_not_in_tier
--                10 user not loaded  11 a period or the credits must be rolled over  12 key_conflict  13 not an integer
-- Log    v version, e epoch, t now_ms, c costs, r the lines as a JSON array, w "seconds:end_ms;" of the windows of each line
-- State  tallies: verb and outcome to how many, lines: lines logged.
--        meta: epoch, rules (version), shards, dedupe_ms (how long a key is remembered), turn of the ring.
--        quota hash: h "epoch,valid_until,tier" (credits are valid until then, 0 = for ever), c credits, w running windows
--        ";per,start,end;", f:<feature> the periods counted "per,per|", then end_ms and used of each as doubles (exact to
--        2^53).  No hash, or one of another epoch, is never zero: it is 10.  So are counters made for other limits than now, and
--        with them the hash loses its head: it has to be loaded anew.
-- Order  every check, then XADD, then the rest: a script does not roll back, and only its first write is refused for memory.
-- Rule   quota.decision.decide; change both or neither.
local ARGV, KEYS, call = ARGV, KEYS, redis.call
local about = call('HMGET', KEYS[2], 'epoch', 'rules', 'shards', 'dedupe_ms', 'turn')
local epoch = about[1]
if not epoch then return {1, 'epoch'} end
if about[3] ~= ARGV[3] then return {1, 'shards', about[3]} end
if about[2] ~= ARGV[2] then return {1, 'rules'} end
if not tonumber(about[4]) then return {1, 'epoch'} end

local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local OK, SOFT, EXCEEDED, POOR, NOT_IN_TIER, MISSING, ROLL, CONFLICT, INVALID = 0, 1, 2, 3, 4, 10, 11, 12, 13
local WORDS = {[OK] = '0;', [SOFT] = '1;', [EXCEEDED] = '2;', [POOR] = '3;', [NOT_IN_TIER] = '4;'}
local INTEGER_MAX = 9007199254740991
local HEAD, WIDTH = 5, 8
local find, match, gmatch, sub, format, concat = string.find, string.match, string.gmatch, string.sub, string.format, table.concat
local pack_doubles, unpack_doubles = struct.pack, struct.unpack

-- Text to integer, or nil.  The same amounts, costs and period ends come again and again in one call.
local integers = {}
local function integer(s)
  local n = integers[s]
  if n == nil then
    n = #s <= 17 and find(s, '^%-?%d+$') and tonumber(s)
    n = n and n <= INTEGER_MAX and n >= -INTEGER_MAX and n
    integers[s] = n
  end
  return n or nil
end

-- The limits of a feature in a tier: parsed once a call, with the form of its counters.
local rules = {}
local function rule_of(tier, feature)
  local of_tier = rules[tier]
  if not of_tier then
    of_tier = {}
    rules[tier] = of_tier
  end
  local rule = of_tier[feature]
  if rule then return rule end
  local lines = call('HMGET', KEYS[3], tier .. '/' .. feature, tier .. '/*', tier)
  local line, pers = lines[1] or lines[2] or '', {}
  rule = {known = line ~= '', overdraft = lines[3] and sub(lines[3], 1, 1) == 'o', line = sub(line, 1, -2) .. '|', hard = {}, max = {}, per = pers}
  for per, mode, max in gmatch(line, '([^,;]+),([hs]),(%-?%d+);') do
    local n = #pers + 1
    pers[n], rule.hard[n], rule.max[n] = per, mode == 'h', tonumber(max)
  end
  rule.windowed = find(line, 's%d') ~= nil
  rule.n, rule.sign, rule.form = #pers, concat(pers, ',') .. '|', '<' .. string.rep('dd', #pers)
  rule.size = #rule.sign + 16 * #pers
  of_tier[feature] = rule
  return rule
end

-- The head of a quota hash, the same for most users of a call: {valid_until, tier}, or false for another epoch.
local heads = {}
local function head_of(text)
  local head = heads[text]
  if head == nil then
    local of_epoch, valid_until, tier = match(text, '^(%d+),(%d+),(.+)$')
    head = of_epoch == epoch and {tonumber(valid_until), tier}
    heads[text] = head
  end
  return head
end

local function window_end(place, user, per)
  if per == 'l' then return 0 end
  -- A window of so many seconds opens at its first use.
  if sub(per, 1, 1) == 's' then return now + 1000 * tonumber(sub(per, 2)) end
  user.windows = user.windows or call('HGET', KEYS[place], 'w') or ''
  local _, after = find(user.windows, ';' .. per .. ',', 1, true)
  return after and tonumber(match(user.windows, '^%d+,(%d+);', after + 1))
end

-- A feature of a user: its counters {end, used, ...} with user, rule and line; or the outcome that says why there is none.
-- Everything is read once a call.
local users, places, outdated, unusable = {}, {}, {}, {}
local function state_of(place, feature)
  local user, line = users[place], nil
  if user then
    local state = user[5][feature]
    if state then return state end
    line = call('HGET', KEYS[place], 'f:' .. feature)
  elseif unusable[place] then
    return nil, unusable[place]
  else
    local stored = call('HMGET', KEYS[place], 'h', 'c', 'f:' .. feature)
    local head, credits = stored[1] and head_of(stored[1]), stored[2] and tonumber(stored[2])
    local why = (not head or not credits or credits ~= credits) and MISSING
    why = why or head[1] ~= 0 and now >= head[1] and ROLL
    if why then
      unusable[place] = why
      return nil, why
    end
    -- credits, their text, tier, what is taken and what is read by feature: names of features are the users' own
    user, line = {credits, stored[2], head[2], {}, {}}, stored[3]
    users[place] = user
    places[#places + 1] = place
  end
  local rule, state = rule_of(user[3], feature), {}
  local sign = rule.sign
  if line then
    -- Used, but counted for other periods than the rule has now: it has to be loaded.
    if #line ~= rule.size or sub(line, 1, #sign) ~= sign then
      outdated[place] = true
      return nil, MISSING
    end
    state = {unpack_doubles(rule.form, line, #sign + 1)}
  end
  for i = 1, rule.n do
    -- Never used at all: zero, in the period that runs.
    local ends, used = state[2 * i - 1] or -1, state[2 * i] or 0
    if not (used >= 0 and used <= INTEGER_MAX) then
      outdated[place] = true
      return nil, MISSING
    end
    if now >= ends and ends ~= 0 then
      ends, used = window_end(place, user, rule.per[i]), 0
      if not ends then
        outdated[place] = true
        return nil, MISSING
      end
      if now >= ends and ends ~= 0 then return nil, ROLL end
    end
    state[2 * i - 1], state[2 * i] = ends, used
  end
  state.user, state.rule = user, rule
  user[5][feature] = state
  return state
end

local function cost_of(spec, tier)
  local cost = integer(spec)
  if cost then return cost end
  local _, after = find(spec, ',' .. tier .. '=', 1, true)
  return integer(match(spec, '^%d*', after and after + 1 or 1))
end

-- What the line at ARGV[at] comes to, and what that was decided by
local function judge(at, forced)
  local amount, state, why = integer(ARGV[at + 5]), state_of(tonumber(ARGV[at + 2]), ARGV[at + 4])
  if not amount or amount < 1 then return INVALID end
  if not state then return why end
  local user, rule = state.user, state.rule
  local cost = cost_of(ARGV[at + 6], user[3])
  if not cost then return INVALID end
  if not rule.known and not forced then return NOT_IN_TIER, state, amount, cost end
  local outcome, max = OK, rule.max
  for i = 1, rule.n do
    local used = state[2 * i] + amount
    if used > INTEGER_MAX then return EXCEEDED, state, amount, cost end
    if max[i] >= 0 and used > max[i] then
      if not rule.hard[i] then outcome = SOFT elseif not forced then return EXCEEDED, state, amount, cost end
    end
  end
  if cost > 0 then
    local left = user[1] - cost
    if left < 0 and (left < -INTEGER_MAX or not (forced or rule.overdraft)) then return POOR, state, amount, cost end
  end
  return outcome, state, amount, cost
end

local replies, costs, logged, remembered, tally = {}, {}, {}, {}, {}
local replied, taken = 0, 0
local windows, windowed = {}, false

local function answer(outcome, state, cost)
  local rule, user = state.rule, state.user
  state.line = pack_doubles(rule.form, unpack(state, 1, 2 * rule.n))
  return WORDS[outcome] .. format('%d', cost) .. ';' .. user[2] .. ';' .. rule.line .. state.line
end

local function take(at, outcome, state, amount, cost)
  local user = state.user
  for i = 2, 2 * state.rule.n, 2 do state[i] = state[i] + amount end
  if cost > 0 then
    user[1] = user[1] - cost
    user[2] = format('%d', user[1])
    user.paid = true
  end
  user[4][ARGV[at + 4]] = state
  taken = taken + 1
  if state.rule.windowed then
    windows[taken] = ''
    -- Which window the line counts in depends on what opened it, so the log has to say.
    for i = 1, state.rule.n do
      local per = state.rule.per[i]
      if sub(per, 1, 1) == 's' then
        windows[taken] = windows[taken] .. format('%s:%d;', sub(per, 2), state[2 * i - 1])
        windowed = true
      end
    end
  end
  costs[taken], logged[taken] = cost, ARGV[at + 8]
  return answer(outcome, state, cost)
end

-- A record of several lines: all of them or none, so each is judged before the first is taken.
local function stopped_by(at, lines, forced)
  local owed = 0
  for n = 0, lines - 1 do
    local outcome, state, _, cost = judge(at + n * WIDTH, forced)
    if outcome > SOFT then return outcome end
    owed = owed + cost
    if owed > 0 and state.user[1] - owed < -INTEGER_MAX then return POOR end
  end
end

-- The answers already given to the keys of this call.  A key that its client made for this very call is in no ring.
local records, repeatable = tonumber(ARGV[4]), tonumber(ARGV[5])
local known, fresh = {}, {}
if repeatable > 0 then
  local numbers, marks = {unpack(ARGV, HEAD + records + 1, HEAD + records + repeatable)}, {}
  for n = 1, repeatable do
    numbers[n] = tonumber(numbers[n])
    marks[n] = ARGV[HEAD + numbers[n]]
  end
  for ring = 4, 6 do
    local found = call('HMGET', KEYS[ring], unpack(marks))
    for n = 1, repeatable do
      if found[n] then known[numbers[n]] = found[n] end
    end
  end
end

local at, remember = HEAD + records + repeatable, 0
for n = 1, records do
  local lines, verb, mark = ARGV[at + 1] == '1' and 1 or tonumber(ARGV[at + 1]), ARGV[at + 3], ARGV[HEAD + n]
  local saved = verb ~= 'k' and (known[n] or fresh[mark])
  local word
  if saved then
    local same = sub(saved, 1, 6) == ARGV[at + 7]
    word = same and 'replayed' or CONFLICT
    local texts = same and (lines == 1 and {sub(saved, 7)} or cmsgpack.unpack(sub(saved, 7)))
    for line = 1, lines do
      replied = replied + 1
      replies[replied] = same and '=' .. texts[line] or CONFLICT
    end
  else
    local forced, first = verb == 'r', replied + 1
    local stopped = lines > 1 and stopped_by(at, lines, forced)
    for line = 0, lines - 1 do
      local here = at + line * WIDTH
      local outcome, state, amount, cost = judge(here, forced)
      outcome = stopped or outcome
      word = word or outcome
      replied = replied + 1
      if outcome >= MISSING or not state then
        replies[replied] = outcome
      elseif outcome > SOFT or verb == 'k' then
        replies[replied] = answer(outcome, state, cost)
      else
        replies[replied] = take(here, outcome, state, amount, cost)
      end
    end
    if word <= SOFT and verb ~= 'k' then
      -- The fingerprint tells how many lines there are: a record of one is kept as it is, for it is what most are.
      saved = ARGV[at + 7] .. (lines == 1 and replies[replied] or cmsgpack.pack({unpack(replies, first, replied)}))
      fresh[mark] = saved
      remembered[remember + 1], remembered[remember + 2] = mark, saved
      remember = remember + 2
    end
  end
  local name = verb .. word
  tally[name] = (tally[name] or 0) + 1
  at = at + lines * WIDTH
end

if taken > 0 then
  tally.lines = taken
  local entry = {'v', '1', 'e', epoch, 't', format('%d', now), 'c', format(string.rep('%d,', taken), unpack(costs)),
                 'r', '[' .. concat(logged, ',') .. ']'}
  if windowed then
    for n = 1, taken do windows[n] = windows[n] or '' end
    entry[11], entry[12] = 'w', concat(windows, ',')
  end
  call('XADD', KEYS[1], '*', unpack(entry))
  for p = 1, #places do
    local user = users[places[p]]
    local fields, n = {}, 0
    for feature, state in pairs(user[4]) do
      fields[n + 1], fields[n + 2] = 'f:' .. feature, state.rule.sign .. state.line
      n = n + 2
    end
    if user.paid then fields[n + 1], fields[n + 2] = 'c', user[2] end
    if fields[1] then call('HSET', KEYS[places[p]], unpack(fields)) end
  end
  -- The ring is written half a lifetime a place, so a key is remembered for one lifetime at least and one and a half at most.
  local span = tonumber(about[4]) / 2
  local turn = math.floor(now / span)
  local ring = KEYS[4 + turn % 3]
  call('HSET', ring, unpack(remembered))
  if about[5] ~= format('%d', turn) then
    call('PEXPIRE', ring, format('%d', math.ceil((turn + 3) * span - now)))
    call('HSET', KEYS[2], 'turn', format('%d', turn))
  end
end
-- Without its head a user counts as not loaded, so that whoever loads does not leave it as it is.
for place in pairs(outdated) do call('HDEL', KEYS[place], 'h') end
-- Tallies of decisions are for the dashboards: without memory for them, the decision still stands.
for name, n in pairs(tally) do redis.pcall('HINCRBY', KEYS[7], name, n) end
return {0, now, replies}
