-- A producer is alive.
-- ARGV: its token; '' from one that has no plan yet (it still reads its manifest); 1 to leave
-- Returns {'ok', tail, trainer's age in ms} | {'ok'} when it has no plan yet | {'lost'} | {'finished'} | {'fenced', the other}
local token, leaves = ARGV[1], ARGV[2] == '1'
allow_writes()
if token == '' then
  if leaves then redis.call('HDEL', meta, 'announced') else set('announced', now_ms()) end
  return {'ok'}
end
local producer = get('producer')
if not get('head') or not producer then return {'lost'} end
if producer ~= token then return {'fenced', producer} end
if leaves then
  redis.call('HDEL', meta, 'producer', 'producer_seen', 'announced')
  return {'ok'}
end
local now = now_ms()
set('producer_seen', now)
if get('finished') then return {'finished'} end
return {'ok', number('head') + redis.call('LLEN', samples), trainer_age(now)}
