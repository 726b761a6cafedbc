-- admit: decide N usage records of one shard, count what is admitted and log it, in one atomic step.
-- KEYS   1 usage log   2 meta   3 rules   4-6 key marks (a ring of three)   7 tallies
--        8 users by when their next hold expires   9.. one quota hash per user
-- ARGV   1 now_ms (0 = this server's clock)   2 rules version the costs were made with   3 number of shards
--        4 number of records   5 number of them whose key may have been seen before
--        then per record its mark: a digest of user and key (of the end of a hold: another one);
--        then of those under 5 their number
--        then 8 per line, most records having one:
--          1 lines that this record still has, this one counted   5 amount
--          2 place of the user's hash in KEYS                      6 cost in micro-credits: "5"; "5,pro=3," where tiers differ
--          3 verb: c consume, k check, r record                    7 fingerprint of the payload, 6 bytes
--          4 feature                                               8 the line as it is logged, a JSON array
--        a verb may say more: c@, k@ and r@ and when it occurred, ms;  h<ttl_ms>;<price of a unit>;<key> reserve;
--        sc<key> commit 5 units for the cost 6, sa<key> commit what is held, sr<key> release
--        price of a unit, in micro-credits: "5/2"; "5/2,pro=3/2," where tiers differ
-- Reply  {1, word, ...} with nothing done: "epoch" (the shard is not loaded), "rules" (other version), "shards", their number
--        {0, now_ms, one per line}: an integer outcome that is no decision, or the decision as text:
--          "outcome;cost;credits;" the limits "per,mode,max" of the rule, with ";" between, "|", then end_ms and used of each limit as
--          little-endian doubles; "=" before it when it is replayed; max -1 = unlimited, end_ms 0 = never
--          of the end of a hold: "committed;amount;cost", "released;0;0", "expired;0;0", or "open;surplus;" and its denial
--        outcome 0 ok  1 soft_limit  2 limit_exceeded  3 insufficient_credits  4 feature_not_in_tier
--                10 user not loaded  11 a period, the credits or a hold must be rolled over  12 key_conflict  13 not an integer
--                14 no such hold  15 loaded, but without the periods before the running ones
--                16 it would be logged, and the log has as many bytes as it may
-- Log    v version (2 with k, else 1), e epoch, t now_ms, c costs, r the lines as a JSON array,
--        w "seconds:end_ms;" of the windows of each line, k of each line nothing, or of a hold:
--        h<expires_ms>;<price of a unit> reserved, c committed, r released
-- State  tallies: verb and outcome to how many, lines: lines logged.
--        meta: epoch, rules (version), shards, dedupe_ms (how long a key is remembered), late_ms (grace), log_max (bytes, 0 = any),
--        turn of the ring.
--        quota hash: h "epoch,valid_until,tier,allowance" (credits and holds stand until then, 0 = for ever), c credits,
--        w running windows ";per,start,end,start of the one before;", f:<feature> the periods counted "per,per|", then end_ms and
--        used of each as doubles (exact to 2^53), p:<feature> the same of the periods before, o:<key> an open hold (quota/held.py),
--        n how often holds came or went, j what holds took and gave back since the profile: "h|s,credits before,cost|kept,key\0"
--        No hash, or one of another epoch, is never zero: it is 10.  So are counters made for other limits than now, credits
--        for another allowance, and numbers that are no integers: with them the hash loses its head and has to be loaded anew.
-- Order  every check, then XADD, then the rest: a script does not roll back, and only its first write is refused for memory.
--        What follows XADD can not fail: it meets a key whose type was seen before, or `put` and pcall deal with the error.
-- Rule   quota.decision.decide; change both or neither.
local ARGV, KEYS, call, pcall = ARGV, KEYS, redis.call, redis.pcall
local about = call('HMGET', KEYS[2], 'epoch', 'rules', 'shards', 'dedupe_ms', 'turn', 'late_ms', 'log_max')
local epoch = about[1]
if not epoch then return {1, 'epoch'} end
if about[3] ~= ARGV[3] then return {1, 'shards', about[3]} end
if about[2] ~= ARGV[2] then return {1, 'rules'} end

local log_max = tonumber(about[7]) or 0
local full = log_max > 0 and (call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', '5') or 0) > log_max

local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local OK, SOFT, EXCEEDED, POOR, NOT_IN_TIER, MISSING, ROLL, CONFLICT, INVALID, NO_HOLD, LATE = 0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15
local FULL = 16
local WORDS = {[OK] = '0;', [SOFT] = '1;', [EXCEEDED] = '2;', [POOR] = '3;', [NOT_IN_TIER] = '4;'}
local INTEGER_MAX = 9007199254740991
local END_MAX = 253402300799999  -- of a period, ms: the last instant that has a date
local HEAD, WIDTH = 5, 8
local JOURNAL_MAX = 16384  -- bytes, some hundred holds; then the user is rolled, which folds the journal into the profile
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

-- Credits are those of all grants, each of which has at most INTEGER_MAX.
local function credits_of(s)
  return #s <= 18 and find(s, '^%-?%d+$') and tonumber(s)
end

local dedupe, grace = about[4] and integer(about[4]) or 0, about[6] and integer(about[6]) or 3600000
if dedupe <= 0 then return {1, 'epoch'} end

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
  local of = lines[3] or '-;-'
  rule = {known = line ~= '', overdraft = sub(of, 1, 1) == 'o', allowance = sub(of, 3), line = sub(line, 1, -2) .. '|',
          hard = {}, max = {}, per = pers}
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

-- The head of a quota hash, the same for most users of a call: {valid_until, tier, allowance}, or false for another epoch.
local heads = {}
local function head_of(text)
  local head = heads[text]
  if head == nil then
    local of_epoch, valid_until, tier, allowance = match(text, '^(%d+),(%d+),([^,]+),(.*)$')
    valid_until = of_epoch == epoch and integer(valid_until)
    head = valid_until and {valid_until, tier, allowance} or false
    heads[text] = head
  end
  return head
end

-- Start and end of a running calendar window, and the start of the one before.
local function window_of(place, user, per)
  user.windows = user.windows or call('HGET', KEYS[place], 'w') or ''
  local _, after = find(user.windows, ';' .. per .. ',', 1, true)
  if not after then return end
  local start, ends, before = match(user.windows, '^(%d+),(%d+),(%d+);', after + 1)
  start, ends, before = start and integer(start), start and integer(ends), start and integer(before)
  if start and before and ends and ends <= END_MAX then return start, ends, before end
end

local function window_end(place, user, per)
  if per == 'l' then return 0 end
  -- A window of so many seconds opens at its first use.
  if sub(per, 1, 1) == 's' then return now + 1000 * tonumber(sub(per, 2)) end
  local _, ends = window_of(place, user, per)
  return ends
end

-- A key of another type is as if it were not there; any other error of a read is one.
local function see_type_error(err)
  if not find(err, 'WRONGTYPE', 1, true) then error(err) end
end

-- Whether the end of a period and what is used in it are integers within their bounds; no comparison with NaN holds.
local function sound(ends, used)
  return used >= 0 and used <= INTEGER_MAX and used % 1 == 0 and ends >= -1 and ends <= END_MAX and ends % 1 == 0
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
    -- An error has no first text; whoever loads puts a hash in its place.
    local stored = pcall('HMGET', KEYS[place], 'h', 'c', 'f:' .. feature)
    local head, credits = stored[1] and head_of(stored[1]), stored[2] and credits_of(stored[2])
    local why = (not head or not credits) and MISSING
    why = why or head[1] ~= 0 and now >= head[1] and ROLL
    if why then
      if stored.err then see_type_error(stored.err) end
      if why == MISSING and stored[1] then outdated[place] = true end
      unusable[place] = why
      return nil, why
    end
    -- credits, their text, tier, what is taken and what is read by feature (names of features are the users' own), head
    user, line = {credits, stored[2], head[2], {}, {}, head}, stored[3]
    users[place] = user
    places[#places + 1] = place
  end
  local rule, state = rule_of(user[3], feature), {}
  local sign = rule.sign
  if rule.allowance ~= user[6][3] then
    outdated[place] = true
    return nil, MISSING
  end
  if line then
    -- Used, but counted for other periods than the rule has now: it has to be loaded.
    if #line ~= rule.size or sub(line, 1, #sign) ~= sign then
      outdated[place] = true
      return nil, MISSING
    end
    state = {unpack_doubles(rule.form, line, #sign + 1)}
  else
    state.unused = true
  end
  for i = 1, rule.n do
    -- Never used at all: zero, in the period that runs.
    local ends, used = state[2 * i - 1] or -1, state[2 * i] or 0
    if not sound(ends, used) then
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
      if line then
        state.prior = state.prior or {}
        state.prior[i] = {state[2 * i - 1], state[2 * i]}
      end
    end
    state[2 * i - 1], state[2 * i] = ends, used
  end
  state.user, state.rule = user, rule
  user[5][feature] = state
  return state
end

-- Counters of the periods before the running ones: {end, used, ...}; where nothing is known there is no end, or -1.
local function before_of(place, feature, state)
  if state.before then return state.before end
  local rule, before = state.rule, {}
  local line = call('HGET', KEYS[place], 'p:' .. feature)
  if line and #line == rule.size and sub(line, 1, #rule.sign) == rule.sign then
    before = {unpack_doubles(rule.form, line, #rule.sign + 1)}
    for i = 1, rule.n do
      if not sound(before[2 * i - 1], before[2 * i]) then before[2 * i - 1], before[2 * i] = nil, nil end
    end
  end
  for i = 1, rule.n do
    local prior = state.prior and state.prior[i] or state.unused and {1, 0}
    if prior then before[2 * i - 1], before[2 * i] = prior[1], prior[2] end
  end
  state.before = before
  return before
end

-- What a record counts in that occurred earlier: the counters as {end, used, ...}, with `past` those that are of a period
-- before.  Of which periods that is depends on the grace; windows that open by use and lifetimes always count now.
local function late_view(place, feature, state, occurred)
  local rule, user, view = state.rule, state.user, {past = {}}
  for i = 1, rule.n do
    local per = rule.per[i]
    view[2 * i - 1], view[2 * i] = state[2 * i - 1], state[2 * i]
    if per ~= 'l' and sub(per, 1, 1) ~= 's' then
      local start, _, first = window_of(place, user, per)
      if not start then return nil, MISSING end
      if occurred < start and occurred >= first and now < start + grace then
        local before = before_of(place, feature, state)
        local ends = before[2 * i - 1]
        if not ends or ends < 0 then return nil, LATE end
        -- An older count was the last one: in the period that ended at `start` there was none.
        if ends ~= start then before[2 * i - 1], before[2 * i] = start, 0 end
        view.past[i], view[2 * i - 1], view[2 * i] = before, start, before[2 * i]
      end
    end
  end
  return view
end

local function of_tier(spec, tier)
  local _, after = find(spec, ',' .. tier .. '=', 1, true)
  return match(spec, '^[%d/]*', after and after + 1 or 1)
end

local function cost_of(spec, tier)
  return integer(spec) or integer(of_tier(spec, tier))
end

-- Whether so much more fits: limits first, then credits.
local function fits(view, rule, user, amount, cost, forced)
  if not rule.known and not forced then return NOT_IN_TIER end
  local outcome, max = OK, rule.max
  for i = 1, rule.n do
    local used = view[2 * i] + amount
    if used > INTEGER_MAX then return EXCEEDED end
    if max[i] >= 0 and used > max[i] then
      if not rule.hard[i] then outcome = SOFT elseif not forced then return EXCEEDED end
    end
  end
  if cost > 0 then
    local left = user[1] - cost
    if left < 0 and (left < -INTEGER_MAX or not (forced or rule.overdraft)) then return POOR end
  end
  return outcome
end

-- What the line at ARGV[at] comes to, and what that was decided by
local function judge(at, forced)
  local place, feature = tonumber(ARGV[at + 2]), ARGV[at + 4]
  local amount, state, why = integer(ARGV[at + 5]), state_of(place, feature)
  if not amount or amount < 1 then return INVALID end
  if not state then return why end
  local cost, view = cost_of(ARGV[at + 6], state.user[3]), state
  if not cost then return INVALID end
  if #ARGV[at + 3] > 1 and sub(ARGV[at + 3], 2, 2) == '@' then
    view, why = late_view(place, feature, state, tonumber(sub(ARGV[at + 3], 3)))
    if not view then
      outdated[place] = true
      return why
    end
  end
  return fits(view, state.rule, state.user, amount, cost, forced), state, amount, cost, view
end

local replies, costs, logged, remembered, tally = {}, {}, {}, {}, {}
local replied, taken = 0, 0
local windows, windowed = {}, false
local kinds, special = {}, false

local function answer(outcome, state, cost, view)
  local rule = state.rule
  local line = pack_doubles(rule.form, unpack(view, 1, 2 * rule.n))
  if view == state then state.line = line end
  return WORDS[outcome] .. format('%d', cost) .. ';' .. state.user[2] .. ';' .. rule.line .. line
end

local function pay(user, cost)
  user[1] = user[1] - cost
  user[2] = format('%d', user[1])
  user.paid = true
end

-- One more line of the log: what it cost, and which windows that open by use it counts in.
local function enter(at, state, cost)
  taken = taken + 1
  costs[taken], logged[taken] = cost, ARGV[at + 8]
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
end

local function take(at, outcome, state, amount, cost, view)
  local user, past = state.user, view.past
  for i = 2, 2 * state.rule.n, 2 do
    local before = past and past[i / 2]
    if before then before[i], state.late = before[i] + amount, true else state[i] = state[i] + amount end
    if past then view[i] = view[i] + amount end
  end
  if past then state.line = pack_doubles(state.rule.form, unpack(state, 1, 2 * state.rule.n)) end
  if cost > 0 then pay(user, cost) end
  user[4][ARGV[at + 4]] = state
  enter(at, state, cost)
  return answer(outcome, state, cost, view)
end

-- What a hold took or gave back, so that the profile can be moved to where the credits are.
local function note(place, user, op, before, micro, key)
  user.journal = (user.journal or call('HGET', KEYS[place], 'j') or '') .. op .. ',' .. before .. ',' .. format('%d', micro) .. ',' .. key .. '\0'
  if #user.journal > JOURNAL_MAX then user.valid_until = now end
end

local function reserve(at, outcome, state, amount, cost)
  local place, user, rule = tonumber(ARGV[at + 2]), state.user, state.rule
  local ttl, prices, key = match(ARGV[at + 3], '^h(%d+);([^;]*);(.*)$')
  local expires, price, before, ends = now + tonumber(ttl), of_tier(prices, user[3]), user[2], {}
  for i = 1, rule.n do ends[i] = rule.per[i] .. '=' .. format('%d', state[2 * i - 1]) .. ',' end
  local reply = take(at, outcome, state, amount, cost, state)
  if cost > 0 then note(place, user, 'h', before, cost, key) end
  user.holds = user.holds or {}
  user.holds[key] = concat({format('%d', expires), ARGV[at + 4], format('%d', amount), format('%d', cost), price, concat(ends),
                            cost > 0 and format('%d+,', cost) or ''}, '|')
  local valid_until = user.valid_until or user[6][1]
  if valid_until == 0 or expires < valid_until then user.valid_until = expires end
  user.name, user.due = match(ARGV[at + 8], '^%["(.-[^\\])",'), math.min(user.due or expires, expires)
  if not user.name or find(user.name, '\\', 1, true) then user.name = cjson.decode(ARGV[at + 8])[1] end
  kinds[taken], special = 'h' .. format('%d', expires) .. ';' .. price, true
  return reply
end

-- Units of a hold that were not used leave the periods that counted them, wherever those are by now.
local function give_units_back(place, feature, state, ends, units)
  local before
  for i = 1, state.rule.n do
    local per = state.rule.per[i]
    local counted = tonumber(match(ends, '^' .. per .. '=(%d+),') or match(ends, ',' .. per .. '=(%d+),'))
    if counted == state[2 * i - 1] then
      state[2 * i] = math.max(0, state[2 * i] - units)
    elseif counted then
      before = before or before_of(place, feature, state)
      if before[2 * i - 1] == counted then
        before[2 * i], state.late = math.max(0, before[2 * i] - units), true
      end
    end
  end
end

-- How much of so many micro-credits comes back, last paid first.
local function returned(paid, back)
  local parts, sum = {}, 0
  for micro, open in gmatch(paid, '(%d+)([+-]),') do parts[#parts + 1] = {tonumber(micro), open == '+'} end
  for n = #parts, 1, -1 do
    local part = math.min(back, parts[n][1])
    back = back - part
    if parts[n][2] then sum = sum + part end
  end
  return sum
end

-- A reserve whose key has an open hold: Redis was lost since, and the hold was loaded again.
local function reserved_before(at)
  local place, feature = tonumber(ARGV[at + 2]), ARGV[at + 4]
  local state = state_of(place, feature)
  local held = state and call('HGET', KEYS[place], 'o:' .. match(ARGV[at + 3], '^h%d+;[^;]*;(.*)$'))
  if not held then return end
  local of, amount, cost = match(held, '^%d+|([^|]*)|(%d+)|(%d+)|')
  cost = cost and integer(cost)
  if not cost then
    outdated[place] = true
    return MISSING
  end
  if of ~= feature or amount ~= ARGV[at + 5] then return CONFLICT end
  return 'replayed', '=' .. answer(OK, state, cost, state)
end

-- The end of a hold: less than was held goes back, more is decided like a consume.
local function settle(at)
  local place, feature, verb = tonumber(ARGV[at + 2]), ARGV[at + 4], ARGV[at + 3]
  local op, key = sub(verb, 2, 2), sub(verb, 3)
  local state, why = state_of(place, feature)
  if not state then return why end
  local user, rule = state.user, state.rule
  user.holds = user.holds or {}
  local held = user.holds[key]
  if held == nil then held = call('HGET', KEYS[place], 'o:' .. key) end
  if not held then return NO_HOLD end
  local of, amount, cost, ends, paid = match(held, '^%d+|([^|]*)|(%d+)|(%d+)|[^|]*|([^|]*)|([^|]*)$')
  amount, cost = amount and integer(amount), cost and integer(cost)
  if not amount or not cost then
    outdated[place] = true
    return MISSING
  end
  if of ~= feature then return NO_HOLD end
  local units, kept = amount, cost
  if op == 'r' then units, kept = 0, 0 end
  if op == 'c' then units, kept = integer(ARGV[at + 5]), integer(ARGV[at + 6]) end
  if not units or not kept or units < 0 then return INVALID end
  local surplus, more = math.max(0, units - amount), math.max(0, kept - cost)
  if surplus > 0 then
    local outcome = fits(state, rule, user, surplus, more, false)
    if outcome > SOFT then return 'open', format('open;%d;', surplus) .. answer(outcome, state, more, state) end
  end
  if full then return FULL end
  if surplus > 0 then
    for i = 2, 2 * rule.n, 2 do state[i] = state[i] + surplus end
  else
    give_units_back(place, feature, state, ends, amount - units)
  end
  if cost > 0 then
    note(place, user, 's', user[2], math.min(kept, cost), key)
    pay(user, -returned(paid, cost - math.min(kept, cost)))
  end
  if more > 0 then pay(user, more) end
  user.holds[key], user[4][feature], state.settled = false, state, true
  enter(at, state, kept)
  kinds[taken], special = op == 'r' and 'r' or 'c', true
  local status = op == 'r' and 'released' or 'committed'
  return status, status .. ';' .. format('%d;%d', units, kept)
end

-- Counters after a hold ended: a window is not opened by what came back, nor closed.
local function settled_line(state)
  local numbers = {unpack(state, 1, 2 * state.rule.n)}
  for i = 1, state.rule.n do
    local opened = not (state.unused or state.prior and state.prior[i])
    if sub(state.rule.per[i], 1, 1) == 's' and numbers[2 * i] == 0 and not opened then numbers[2 * i - 1] = 1 end
  end
  return pack_doubles(state.rule.form, unpack(numbers))
end

local function before_line(place, feature, state)
  local before = before_of(place, feature, state)
  for i = 1, state.rule.n do before[2 * i - 1], before[2 * i] = before[2 * i - 1] or -1, before[2 * i] or 0 end
  return pack_doubles(state.rule.form, unpack(before, 1, 2 * state.rule.n))
end

-- A write that may meet a key of another type, which nobody of ours wrote: the key is made anew, and that is answered.
local function put(command, key, ...)
  if type(pcall(command, key, ...)) ~= 'table' then return false end
  call('UNLINK', key)
  call(command, key, ...)
  return true
end

local function store_holds(place, user)
  for key, text in pairs(user.holds) do
    if text then call('HSET', KEYS[place], 'o:' .. key, text) else call('HDEL', KEYS[place], 'o:' .. key) end
  end
  if user.journal then call('HSET', KEYS[place], 'j', user.journal) end
  -- By this the roll knows that holds came or went, also where they cost nothing.
  if type(pcall('HINCRBY', KEYS[place], 'n', 1)) == 'table' then call('HSET', KEYS[place], 'n', 1) end
  if user.due then put('ZADD', KEYS[8], 'LT', format('%d', user.due), user.name) end
  if user.valid_until then
    call('HSET', KEYS[place], 'h', concat({epoch, format('%d', user.valid_until), user[6][2], user[6][3]}, ','))
  end
end

-- A record of several lines: all of them or none, so each is judged before the first is taken.  One that can not be decided
-- yet stops it before one that is denied: an answer is of all lines.
local function stopped_by(at, lines, forced)
  local owed, stopped = 0, nil
  for n = 0, lines - 1 do
    local outcome, state, _, cost = judge(at + n * WIDTH, forced)
    if outcome >= MISSING then return outcome end
    owed = owed + cost
    if outcome <= SOFT and owed > 0 and state.user[1] - owed < -INTEGER_MAX then outcome = POOR end
    if outcome > SOFT then stopped = stopped or outcome end
  end
  return stopped
end

-- The answers already given to the keys of this call.  A key that its client made for this very call is in no ring.
local records, repeatable = tonumber(ARGV[4]), tonumber(ARGV[5])
local known, fresh, repeats = {}, {}, {}
if repeatable > 0 then
  local numbers, marks = {unpack(ARGV, HEAD + records + 1, HEAD + records + repeatable)}, {}
  for n = 1, repeatable do
    numbers[n] = tonumber(numbers[n])
    marks[n] = ARGV[HEAD + numbers[n]]
    repeats[numbers[n]] = true
  end
  for ring = 4, 6 do
    local found = pcall('HMGET', KEYS[ring], unpack(marks))
    if found.err then see_type_error(found.err) end
    for n = 1, repeatable do
      if found[n] then known[numbers[n]] = found[n] end
    end
  end
end

local at, remember = HEAD + records + repeatable, 0
for n = 1, records do
  local lines, verb, mark = ARGV[at + 1] == '1' and 1 or tonumber(ARGV[at + 1]), ARGV[at + 3], ARGV[HEAD + n]
  if #verb > 1 then verb = sub(verb, 1, 1) end
  local saved = verb ~= 'k' and (known[n] or fresh[mark])
  local word
  if verb == 'h' and repeats[n] and not saved then
    local text
    word, text = reserved_before(at)
    if word then
      replied = replied + 1
      replies[replied] = text or word
    end
  end
  if word then
    -- the hold was there, though its key is remembered no longer
  elseif verb == 's' then
    replied = replied + 1
    if saved then
      word, replies[replied] = 'replayed', '=' .. saved
    else
      local text
      word, text = settle(at)
      replies[replied] = text or word
      if text and word ~= 'open' then
        fresh[mark] = text
        remembered[remember + 1], remembered[remember + 2] = mark, text
        remember = remember + 2
      end
    end
  elseif saved then
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
      local outcome, state, amount, cost, view = judge(here, forced)
      outcome = stopped or outcome
      if full and outcome <= SOFT and verb ~= 'k' then outcome = FULL end
      word = word or outcome
      replied = replied + 1
      if outcome >= MISSING or not state then
        replies[replied] = outcome
      elseif outcome > SOFT or verb == 'k' then
        replies[replied] = answer(outcome, state, cost, view)
      elseif verb == 'h' then
        replies[replied] = reserve(here, outcome, state, amount, cost)
      else
        replies[replied] = take(here, outcome, state, amount, cost, view)
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
  local entry = {'v', special and '2' or '1', 'e', epoch, 't', format('%d', now), 'c', format(string.rep('%d,', taken), unpack(costs)),
                 'r', '[' .. concat(logged, ',') .. ']'}
  if windowed then
    for n = 1, taken do windows[n] = windows[n] or '' end
    entry[11], entry[12] = 'w', concat(windows, ',')
  end
  if special then
    for n = 1, taken do kinds[n] = kinds[n] or '' end
    entry[#entry + 1], entry[#entry + 2] = 'k', concat(kinds, ',')
  end
  call('XADD', KEYS[1], '*', unpack(entry))
  for p = 1, #places do
    local user = users[places[p]]
    local fields, n = {}, 0
    for feature, state in pairs(user[4]) do
      fields[n + 1], fields[n + 2] = 'f:' .. feature, state.rule.sign .. (state.settled and settled_line(state) or state.line)
      n = n + 2
      -- What was counted in a period that is over is kept for one more, for what comes late.
      if state.prior or state.late then
        fields[n + 1], fields[n + 2] = 'p:' .. feature, state.rule.sign .. before_line(places[p], feature, state)
        n = n + 2
      end
    end
    if user.paid then fields[n + 1], fields[n + 2] = 'c', user[2] end
    if fields[1] then call('HSET', KEYS[places[p]], unpack(fields)) end
    if user.holds then store_holds(places[p], user) end
  end
  -- The ring is written half a lifetime a place, so a key is remembered for one lifetime at least and one and a half at most.
  local span = dedupe / 2
  local turn = math.floor(now / span)
  local ring = KEYS[4 + turn % 3]
  local anew = put('HSET', ring, unpack(remembered))
  if anew or about[5] ~= format('%d', turn) then
    call('PEXPIRE', ring, format('%d', math.ceil((turn + 3) * span - now)))
    call('HSET', KEYS[2], 'turn', format('%d', turn))
  end
end
-- Without its head a user counts as not loaded, so that whoever loads does not leave it as it is.
for place in pairs(outdated) do call('HDEL', KEYS[place], 'h') end
-- Tallies of decisions are for the dashboards: without memory for them, the decision still stands.
for name, n in pairs(tally) do pcall('HINCRBY', KEYS[7], name, n) end
return {0, now, replies}
