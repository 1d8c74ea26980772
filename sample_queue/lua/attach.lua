-- A trainer goes on at `position`. What is still here from there on is kept; else the stream starts again there.
-- ARGV: trainer's token, position, 1 to take over from another trainer, fingerprint, planned, card
-- Returns {'ok'} | {'fenced', the other} | {'foreign', fingerprint} | {'finished'}
local token, position, take_over, fingerprint = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
allow_writes()
if not get('head') then
  restart_at(position)
  set('fingerprint', fingerprint, 'planned', ARGV[5], 'card', ARGV[6], 'trainer', token, 'trainer_seen', now_ms())
  return {'ok'}
end
if get('fingerprint') ~= fingerprint then return {'foreign', get('fingerprint')} end
if get('finished') and take_over then return {'finished'} end
local other = get('trainer')
if other and other ~= token and not take_over then return {'fenced', other} end
set('trainer', token, 'trainer_seen', now_ms())
local base, head = number('base'), number('head')
local tail = head + redis.call('LLEN', samples)
if not is_whole() then
  restart_at(position)
elseif base <= position and position <= head then
  while number('base') < position do drop_oldest(position - number('base')) end
elseif head < position and position <= tail then
  redis.call('LTRIM', samples, position - head, -1)
  redis.call('UNLINK', inflight)
  set('base', position, 'head', position, 'inflight_bytes', 0)
else
  restart_at(position)
end
return {'ok'}
