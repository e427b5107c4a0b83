"""The scripts that Redis runs for `limits_redis`, in Lua 5.1.

Keys come in pairs, one per counter: a hash with its buckets (`r` of requests, `k` of tokens), and a
sorted set with its places by the time at which they end. A bucket is a packed list: level, time in
microseconds, last mark, capacity, the marks and peaks of `limits_bucket`, and rate. Marks are
times, so that those of a bucket that ended and was made anew are never mixed up.
"""

from __future__ import annotations

_BUCKETS = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local MAX_PEAKS = 64

local function note_peak(bucket)
  local level, marks, peaks = bucket[1], bucket[5], bucket[6]
  bucket[3] = math.max(bucket[3] + 1, now)
  while #peaks > 0 and peaks[#peaks] <= level do
    table.remove(peaks)
    table.remove(marks)
  end
  table.insert(peaks, level)
  table.insert(marks, bucket[3])
  if #peaks > MAX_PEAKS then
    table.remove(peaks, 2)
    table.remove(marks, 1)
  end
end

local function read(key, field)
  local raw = redis.call('HGET', key, field)
  if not raw then return nil end
  local bucket = cmsgpack.unpack(raw)
  if now > bucket[2] then
    bucket[1] = math.min(bucket[4], bucket[1] + bucket[7] * (now - bucket[2]) / 1000000)
    bucket[2] = now
  end
  return bucket
end

local function write(key, field, bucket)
  redis.call('HSET', key, field, cmsgpack.pack(bucket))
  return (bucket[4] - bucket[1]) / bucket[7] * 1000  -- milliseconds until it is full
end

local function keep(key, milliseconds)
  -- A bucket that is full is as good as none.
  local left = redis.call('PTTL', key)
  redis.call('PEXPIRE', key, math.max(left, math.ceil(milliseconds) + 1000))
end
"""

TAKE = (
    _BUCKETS
    + """
local permit, lease, mode = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local cells, fits = {}, true

local function sized(key, field, rate, cap)
  local bucket = read(key, field)
  if not bucket then return {cap, now, 0, cap, {}, {}, rate} end
  local shift = cap - bucket[4]
  if shift ~= 0 then  -- another size: what is missing to full stays missing
    bucket[1] = bucket[1] + shift
    bucket[4] = cap
    for i, peak in ipairs(bucket[6]) do bucket[6][i] = peak + shift end
  end
  bucket[7] = rate
  if shift ~= 0 and mode == 'take' then keep(key, write(key, field, bucket)) end
  return bucket
end

for i = 1, #KEYS / 2 do
  local key, places = KEYS[2 * i - 1], KEYS[2 * i]
  local at = 4 + (i - 1) * 6
  local cell = {
    key = key, places = places,
    request_rate = tonumber(ARGV[at]), request_cap = tonumber(ARGV[at + 1]),
    token_rate = tonumber(ARGV[at + 2]), token_cap = tonumber(ARGV[at + 3]),
    concurrency = tonumber(ARGV[at + 4]), tokens = tonumber(ARGV[at + 5]),
    running = 0, request_mark = 0, token_mark = 0,
  }
  if cell.request_rate > 0 then
    cell.requests = sized(key, 'r', cell.request_rate, cell.request_cap)
    fits = fits and cell.requests[1] >= 1 - 1e-6
  end
  if cell.token_rate > 0 then
    cell.bucket = sized(key, 'k', cell.token_rate, cell.token_cap)
    fits = fits and cell.bucket[1] >= cell.tokens - 1e-6
  end
  if cell.concurrency > 0 then
    redis.call('ZREMRANGEBYSCORE', places, '-inf', now)
    cell.running = redis.call('ZCARD', places)
    fits = fits and cell.running < cell.concurrency
  end
  cells[i] = cell
end

local function take(bucket, amount)
  note_peak(bucket)
  bucket[1] = bucket[1] - amount
  return bucket[3]
end

local is_taken = fits and mode == 'take'
local answer = {is_taken and 1 or 0}
for _, cell in ipairs(cells) do
  if is_taken then
    local until_full = 0
    if cell.requests then
      cell.request_mark = take(cell.requests, 1)
      until_full = write(cell.key, 'r', cell.requests)
    end
    if cell.bucket then
      cell.token_mark = take(cell.bucket, cell.tokens)
      until_full = math.max(until_full, write(cell.key, 'k', cell.bucket))
    end
    if cell.requests or cell.bucket then keep(cell.key, until_full) end
    if cell.concurrency > 0 then
      redis.call('ZADD', cell.places, now + lease, permit)
      redis.call('PEXPIRE', cell.places, math.ceil(lease / 1000) + 1000)
      cell.running = cell.running + 1
    end
  end
  table.insert(answer, string.format('%.17g', cell.requests and cell.requests[1] or 0))
  table.insert(answer, string.format('%.17g', cell.bucket and cell.bucket[1] or 0))
  table.insert(answer, cell.running)
  table.insert(answer, cell.request_mark)
  table.insert(answer, cell.token_mark)
end
return answer
"""
)
"""Take from all counters or none (`take`), or tell how they stand (`look`).

Arguments: permit, lease in microseconds, mode; per counter: rate per second and capacity of
requests and of tokens, concurrency, tokens that are needed. Answer: whether it was taken; per
counter: level of requests and of tokens, places that are held, mark of requests and of tokens.
"""

GIVE_BACK = (
    _BUCKETS
    + """
local permit, undo = ARGV[1], ARGV[2] == '1'

local function give_back(key, field, mark, unused)
  local bucket = mark > 0 and read(key, field)
  if not bucket then return end  -- it was full since
  local level, cap, marks, peaks = bucket[1], bucket[4], bucket[5], bucket[6]
  if unused < 0 then
    note_peak(bucket)
    bucket[1] = level + unused
  elseif unused > 0 then
    local first = 1
    while first <= #marks and marks[first] <= mark do first = first + 1 end
    local highest = peaks[first] or level
    local rise = math.min(unused, cap - highest)
    for i = first, #peaks do peaks[i] = peaks[i] + rise end
    bucket[1] = level + math.min(unused, cap - math.max(highest, level))
    while first > 1 and first <= #peaks and peaks[first - 1] <= peaks[first] do
      first = first - 1
      table.remove(peaks, first)
      table.remove(marks, first)
    end
  end
  keep(key, write(key, field, bucket))
end

for i = 1, #KEYS / 2 do
  local key, places = KEYS[2 * i - 1], KEYS[2 * i]
  local at = 3 + (i - 1) * 3
  if undo then give_back(key, 'r', tonumber(ARGV[at]), 1) end
  give_back(key, 'k', tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]))
  redis.call('ZREM', places, permit)
end
return 1
"""
)
"""End what `TAKE` took. Arguments: permit, whether the request is not to count either; per counter:
marks of requests and of tokens, unused tokens.
"""

RENEW = """
local clock = redis.call('TIME')
local lease = tonumber(ARGV[1])
local ends = clock[1] * 1000000 + clock[2] + lease
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, ends, ARGV[i + 1])
  redis.call('PEXPIRE', key, math.ceil(lease / 1000) + 1000)
end
return #KEYS
"""
"""Hold places for longer. Keys: of the places. Arguments: lease (microseconds), permit per key."""
