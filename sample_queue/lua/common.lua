-- Put before each script of this folder by protocol.script_source, which also defines PIECE_BYTES and ALIVE_MS.
--
-- samples   list, queued samples; samples[0] is at position `head`
-- inflight  list, samples taken since the last checkpoint; inflight[0] is at position `base`; ends right before `head`
-- meta      hash: plan (fingerprint, planned, card), base, head, trainer, producer, producer_seen, trainer_seen, announced,
--           inflight_bytes, largest (bytes of the largest payload seen), finished, rejected (how many).
--           There is a stream when `head` is set.
-- rejected  list, the latest rejected recordings, a line each
--
-- Every script is atomic, and may run again after it has run (a reply was lost) without doing more.
local samples, inflight, meta, rejected = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function get(field) return redis.call('HGET', meta, field) end
local function number(field) return tonumber(get(field) or '0') end
local function set(...) redis.call('HSET', meta, ...) end

-- Above maxmemory Redis refuses HSET and RPUSH, unless the script has already written by a command that it allows there.
-- This one changes nothing.
local function allow_writes() redis.call('LTRIM', inflight, 0, -1) end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Milliseconds since the producer was last heard of; -1: never. A producer that still scans its manifest announces itself.
local function producer_age(now)
  local seen = math.max(number('producer_seen'), number('announced'))
  return seen > 0 and now - seen or -1
end

-- Milliseconds since a trainer was last heard of; -1: never.
local function trainer_age(now)
  local seen = number('trainer_seen')
  return seen > 0 and now - seen or -1
end

-- What a list element of `size` bytes takes of used_memory at most: jemalloc rounds up to a quarter of a power of two.
-- (memory.allocated is the same in Python.)
local function allocated(size)
  local need = size + 64
  local mantissa, exponent = math.frexp(need)
  if mantissa == 0.5 then exponent = exponent - 1 end
  local step = 2 ^ math.max(exponent - 3, 4)
  return math.ceil(need / step) * step + 64
end

-- What a push on its way takes: its arguments, and the client's buffers.
local function transit(largest) return PIECE_BYTES + 2 * allocated(largest) end

-- What pushes leave free: two pushes on their way (one may be a retry), one reply, and the copies that a take makes.
-- (memory.headroom is the same in Python.)
local function headroom(largest) return 3 * PIECE_BYTES + 8 * allocated(largest) end

-- used_memory, and the limit that holds: the configured one or the server's own, whichever is lower.
local function memory(limit)
  local info = redis.call('INFO', 'memory')
  local maxmemory = tonumber(string.match(info, '\nmaxmemory:(%d+)'))
  if maxmemory > 0 and maxmemory < limit then limit = maxmemory end
  return tonumber(string.match(info, '\nused_memory:(%d+)')), limit
end

-- Drops the `count` oldest in-flight samples, at most about 1000 by one call, and keeps base and inflight_bytes right.
-- Returns how many it dropped.
local function drop_oldest(count)
  local length, bytes = redis.call('LLEN', inflight), number('inflight_bytes')
  local kept = length - count
  if count <= 0 then return 0 end
  if kept <= 0 then
    redis.call('UNLINK', inflight)
    count, bytes = length, 0
  elseif kept < count and kept <= 1000 then -- cheaper to measure what stays
    bytes = 0
    for index = -kept, -1 do bytes = bytes + allocated(#redis.call('LINDEX', inflight, index)) end
    redis.call('LTRIM', inflight, count, -1)
  else
    count = math.min(count, 1000)
    for _ = 1, count do bytes = bytes - allocated(#redis.call('LPOP', inflight)) end
  end
  set('base', number('base') + count, 'inflight_bytes', bytes)
  return count
end

-- Whether there is a stream whose lists and positions agree. (A key may have been deleted by hand.)
local function is_whole()
  return get('head') and redis.call('LLEN', inflight) == number('head') - number('base')
end

-- Empties the stream and lets it go on at `position`: the producer is told that the tail has moved, and goes there.
local function restart_at(position)
  redis.call('UNLINK', samples, inflight)
  set('base', position, 'head', position, 'inflight_bytes', 0)
end
