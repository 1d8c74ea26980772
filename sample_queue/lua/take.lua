-- A trainer reads positions start ... start+count-1; what is still queued moves in flight.
-- ARGV: trainer's token, start, count, position up to which all is trained, limit in bytes, 1 to take one sample although
--       memory is short
-- Returns {'ok', payload, ...} with the first of them, about PIECE_BYTES at most: ask again for the rest
--       | {'ok'} when it had to skip so many positions that the caller should ask again
--       | {'wait', tail, milliseconds since the producer was heard of} | {'busy'} when other replies fill the memory just now
--       | {'lost'} | {'behind'} | {'fenced', the other}
local token, start, count, trained = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local trainer = get('trainer')
if not is_whole() or not trainer then return {'lost'} end
if trainer ~= token then return {'fenced', trainer} end
local base, head = number('base'), number('head')
if start < base then return {'behind'} end

allow_writes()
local now = now_ms()
set('trainer_seen', now)
local tail = head + redis.call('LLEN', samples)
if start + count > tail then return {'wait', tail, producer_age(now)} end

local largest = number('largest')
local used, limit = memory(tonumber(ARGV[5]))
local forced = ARGV[6] == '1'
if not forced and used + math.min(PIECE_BYTES, count * largest) + 3 * allocated(largest) > limit - transit(largest) then
  return {'busy'}
end

local bytes = number('inflight_bytes')
local function move() -- the oldest queued sample goes in flight; trained ones make way when they fill half of the limit
  local payload = redis.call('LPOP', samples)
  bytes = bytes + allocated(#payload)
  while bytes > limit / 2 and base < trained and base < start do
    local oldest = redis.call('LPOP', inflight)
    if not oldest then break end
    bytes, base = bytes - allocated(#oldest), base + 1
  end
  redis.call('RPUSH', inflight, payload)
  head = head + 1
  return payload
end
local function keep() set('base', base, 'head', head, 'inflight_bytes', bytes) end

local skipped = 0
while head < start do
  if skipped == 256 then keep() return {'ok'} end
  move()
  skipped = skipped + 1
end

local reply, size, position = {'ok'}, 0, start
local function add(payload)
  size = size + #payload
  reply[#reply + 1] = payload
  position = position + 1
end
local function has_space() -- never more than PIECE_BYTES, but one sample always
  return position == start or (not forced and position < start + count and size + largest <= PIECE_BYTES)
end
while position < head and has_space() do -- again: after a retry, or a trainer that started again
  local length, index = head - base, position - base
  local batch = math.max(1, math.floor(PIECE_BYTES / 4 / math.max(largest, 1)))
  batch = math.min(batch, head - position, start + count - position)
  if forced then batch = 1 end
  if index > length / 2 then index = index - length end -- Redis walks a list from the end that the index names
  local last = index + batch - 1
  for _, payload in ipairs(redis.call('LRANGE', inflight, index, last)) do
    if has_space() then add(payload) end
  end
end
while position == head and position < start + count and has_space() do add(move()) end
keep()
return reply
