-- A trainer lets go of in-flight samples before `upto`.
-- ARGV: trainer's token, upto, 'commit' (a checkpoint holds them) or 'trim' (they are trained: drop the oldest, but only as
--       far as in-flight samples take more than half of the limit), limit in bytes
-- Returns {'ok', how many more there are to drop: ask again} | {'lost'} | {'fenced', the other}
local token, upto = ARGV[1], tonumber(ARGV[2])
local trainer = get('trainer')
if not is_whole() or not trainer then return {'lost'} end
if trainer ~= token then return {'fenced', trainer} end
allow_writes()
set('trainer_seen', now_ms())
local base, head = number('base'), number('head')
if upto <= base or upto > head then return {'ok', 0} end
if ARGV[3] == 'commit' then return {'ok', upto - base - drop_oldest(upto - base)} end

local _, limit = memory(tonumber(ARGV[4]))
for dropped = 0, upto - base - 1 do
  if number('inflight_bytes') <= limit / 2 then return {'ok', 0} end
  if dropped == 1000 then return {'ok', 1} end
  drop_oldest(1)
end
return {'ok', 0}
