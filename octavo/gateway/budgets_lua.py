"""The scripts that Redis runs for `budgets_redis`, in Lua 5.1.

A counter is a hash: `c`, `t`, `d` are what cost, tokens and device time were spent, `rc`, `rt`,
`rd` what is reserved. A reservation is a hash, too: whether it is live (`l`), its amounts, and its
counters (`k`). Lua's numbers are exact to 2^53 only, which device time is beyond: so counters are
never numbers here. Redis adds them up (HINCRBY, DECRBY: 64 bits), and Lua looks at the sign. The
amounts of one request are below 2^53.
"""

from __future__ import annotations

_COMMON = """
local FIELDS = {'c', 't', 'd'}

local function add(key, field, amount)
  if tonumber(amount) == 0 then return end
  if redis.call('HINCRBY', key, field, amount) < 0 then redis.call('HSET', key, field, '0') end
end

local function minus(amount, other)
  return string.format('%.0f', tonumber(amount) - tonumber(other))
end

local function move(key, used, reserved)
  for i, field in ipairs(FIELDS) do
    add(key, field, used[i])
    add(key, 'r' .. field, reserved[i])
  end
end

local function standings(first)
  local answer = {}
  for i = first, #KEYS, 2 do
    local values = redis.call('HMGET', KEYS[i], 'c', 't', 'd', 'rc', 'rt', 'rd')
    for j = 1, 6 do table.insert(answer, values[j] or '0') end
  end
  return answer
end

local function note(counter, index, scope, ends)
  redis.call('SADD', index, scope)
  if ends ~= '0' then
    redis.call('EXPIREAT', counter, ends)
    redis.call('EXPIREAT', index, ends)
  end
end

local NONE = {'0', '0', '0'}
local function negative(amount)
  return {minus('0', amount[1]), minus('0', amount[2]), minus('0', amount[3])}
end
"""

RESERVE = (
    _COMMON
    + """
local expiry, scratch, held = KEYS[1], KEYS[2], KEYS[3]
local id, expires, keep = ARGV[1], ARGV[2], ARGV[3]
local amount = {ARGV[4], ARGV[5], ARGV[6]}

local known = redis.call('HGET', held, 'l')
if known then  -- the answer to the first time was lost
  return {known == '1' and 1 or 0, standings(4)}
end

local function exceeds(key, field, ceiling, more)
  redis.call('SET', scratch, ceiling)
  local left = 0
  for _, value in ipairs(redis.call('HMGET', key, field, 'r' .. field)) do
    if value then redis.call('DECRBY', scratch, value) end
  end
  left = redis.call('DECRBY', scratch, more)
  redis.call('DEL', scratch)
  return left < 0
end

local num = (#KEYS - 3) / 2
for i = 1, num do
  local at = 7 + (i - 1) * 6
  if ARGV[at] == '1' then
    for j, field in ipairs(FIELDS) do
      local ceiling = ARGV[at + j]
      if ceiling ~= '' and exceeds(KEYS[2 + 2 * i], field, ceiling, amount[j]) then
        return {0, standings(4)}
      end
    end
  end
end

local counters = {}
for i = 1, num do
  local at = 7 + (i - 1) * 6
  local key = KEYS[2 + 2 * i]
  table.insert(counters, key)
  move(key, NONE, amount)
  note(key, KEYS[3 + 2 * i], ARGV[at + 4], ARGV[at + 5])
end
redis.call('HSET', held, 'l', '1', 'c', amount[1], 't', amount[2], 'd', amount[3],
  'k', cjson.encode(counters))
redis.call('PEXPIRE', held, keep)
redis.call('ZADD', expiry, expires, id)
return {1, standings(4)}
"""
)
"""Reserve in all counters or in none. Keys: the list of ends, one for sums, the reservation's, and
per counter its own and its index's. Arguments: id, when it ends (microseconds), how long it is kept
(milliseconds), cost, tokens, device time; per counter: whether it is hard, three ceilings or
nothing, whom it is for, when it may be forgotten (seconds, or 0). Answer: whether it is reserved,
and six numbers per counter.
"""

SETTLE = (
    _COMMON
    + """
local expiry, held = KEYS[1], KEYS[2]
local id, was_reserved, keep = ARGV[1], ARGV[2], ARGV[3]
local used = {ARGV[4], ARGV[5], ARGV[6]}

local known = redis.call('HMGET', held, 'l', 'c', 't', 'd')
local amount = {known[2], known[3], known[4]}
local counters = {}
for i = 1, (#KEYS - 2) / 2 do
  local key = KEYS[1 + 2 * i]
  table.insert(counters, key)
  if known[1] == '1' then
    move(key, used, negative(amount))
  elseif known[1] then
    move(key, {minus(used[1], amount[1]), minus(used[2], amount[2]), minus(used[3], amount[3])},
      NONE)
  elseif was_reserved == '0' then
    move(key, used, NONE)
    note(key, KEYS[2 + 2 * i], ARGV[5 + 2 * i], ARGV[6 + 2 * i])
  end
end
redis.call('ZREM', expiry, id)
if was_reserved == '0' then
  redis.call('HSET', held, 'l', '0', 'c', used[1], 't', used[2], 'd', used[3],
    'k', cjson.encode(counters))
  redis.call('PEXPIRE', held, keep)
else
  redis.call('DEL', held)
end
return standings(3)
"""
)
"""End a reservation. Keys: the list of ends, the reservation's, and per counter its own and its
index's. Arguments: id, whether the store said that it holds it, how long its id is kept
(milliseconds), cost, tokens, device time; per counter: whom it is for, when it may be forgotten.
Answer: six numbers per counter.
"""

EXPIRE = (
    _COMMON
    + """
local expiry, counts, prefix, keep = KEYS[1], ARGV[2], ARGV[3], ARGV[4]
local num = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', ARGV[1], 'LIMIT', 0, 500)) do
  redis.call('ZREM', expiry, id)
  local held = prefix .. id
  local known = redis.call('HMGET', held, 'l', 'c', 't', 'd', 'k')
  if known[1] == '1' then
    local amount = {known[2], known[3], known[4]}
    local spent = counts == '1' and amount or NONE
    for _, key in ipairs(cjson.decode(known[5])) do move(key, spent, negative(amount)) end
    redis.call('HSET', held, 'l', '0', 'c', spent[1], 't', spent[2], 'd', spent[3])
    redis.call('PEXPIRE', held, keep)
    num = num + 1
  end
end
return num
"""
)
"""End what nobody renewed, 500 at most; how many. Keys: the list of ends. Arguments: the time in
microseconds, whether it counts as spent, where reservations' keys begin, how long ids are kept.
"""

RENEW = """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ARGV[1], ARGV[i]) end
return 1
"""
"""Let reservations end later. Keys: the list of ends. Arguments: when, and ids."""
