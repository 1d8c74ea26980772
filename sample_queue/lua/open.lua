-- A producer takes the stream, or makes it.
-- ARGV: position, fingerprint, planned, card, producer's token, 1 to take over from another producer
-- Returns {'ok', tail} | {'foreign', fingerprint} | {'finished'} | {'busy', the other producer}
local position, fingerprint, planned, card, token = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_ms()
allow_writes()
if not get('head') then
  restart_at(position)
  set('fingerprint', fingerprint, 'planned', planned, 'card', card)
elseif get('fingerprint') ~= fingerprint then
  return {'foreign', get('fingerprint')}
elseif get('finished') then
  return {'finished'}
elseif not is_whole() then
  restart_at(position)
end
local other = get('producer')
if other and other ~= token and ARGV[6] ~= '1' and now - number('producer_seen') < ALIVE_MS then
  return {'busy', other}
end
set('producer', token, 'producer_seen', now)
return {'ok', number('head') + redis.call('LLEN', samples)}
