-- A producer appends samples, if the tail is where it believes and memory allows.
-- ARGV: producer's token, expected tail, limit in bytes, number of rejected lines, the lines, the payloads
-- Returns {'ok'|'moved'|'full', tail, bytes that may still be pushed, trainer's age in ms} | {'lost'} | {'finished'} | {'fenced', the other}
-- A repeated call finds the tail moved and stores nothing; it is told the tail from which to go on.
local token, expected, lines = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
if not is_whole() or not get('producer') then return {'lost'} end
if get('producer') ~= token then return {'fenced', get('producer')} end
if get('finished') then return {'finished'} end
allow_writes()
local now = now_ms()
set('producer_seen', now)

for index = 5, 4 + lines do -- a known line comes from a repeated call, or from a part that is produced again
  if not redis.call('LPOS', rejected, ARGV[index]) then
    redis.call('RPUSH', rejected, ARGV[index])
    set('rejected', number('rejected') + 1)
  end
end
redis.call('LTRIM', rejected, -1000, -1)

local first = 5 + lines
local sent, cost, largest = 0, 0, number('largest')
for index = first, #ARGV do
  sent = sent + #ARGV[index]
  cost = cost + allocated(#ARGV[index])
  largest = math.max(largest, #ARGV[index])
end
local tail = number('head') + redis.call('LLEN', samples)
local used, limit = memory(tonumber(ARGV[3]))
local room = limit - headroom(largest) - (used - sent) -- `used` holds what was sent, until this script ends
if tail ~= expected then return {'moved', tail, room, trainer_age(now)} end
if cost > room or used + cost + 2 * allocated(largest) > limit then return {'full', tail, room, trainer_age(now)} end
for index = first, #ARGV do redis.call('RPUSH', samples, ARGV[index]) end -- one by one: each call copies its arguments
set('largest', largest)
return {'ok', tail + #ARGV - first + 1, room - cost, trainer_age(now)}
