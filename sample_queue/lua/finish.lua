-- A trainer is done: the producer may end.
-- ARGV: trainer's token
-- Returns {'ok'} | {'lost'} | {'fenced', the other}
local trainer = get('trainer')
if not get('head') or not trainer then return {'lost'} end
if trainer ~= ARGV[1] then return {'fenced', trainer} end
allow_writes()
set('finished', 1)
return {'ok'}
