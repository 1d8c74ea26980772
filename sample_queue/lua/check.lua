-- Tries every command that the other scripts use, and changes nothing.
-- KEYS[5]: a key that does not exist
-- Returns {} | {'forbidden', command}: the user's ACL forbids it | {'refused', command, the server's words}
local calls = {
  {'LTRIM', samples, 0, -1}, {'LTRIM', inflight, 0, -1}, {'LLEN', samples}, {'LINDEX', inflight, 0}, {'LRANGE', inflight, 0, 0},
  {'LPOS', rejected, ''}, {'RPUSH', rejected, ''}, {'LTRIM', rejected, 0, -2}, {'HSET', meta, 'checked', 1},
  {'HGET', meta, 'checked'}, {'HGETALL', meta}, {'HDEL', meta, 'checked'}, {'LPOP', KEYS[5]}, {'UNLINK', KEYS[5]},
  {'TIME'}, {'INFO', 'memory'},
}
for _, call in ipairs(calls) do
  local result = redis.pcall(unpack(call))
  if type(result) == 'table' and result.err then
    local words = string.lower(result.err)
    local forbidden = string.find(words, 'permission', 1, true) or string.find(words, "can't run this command", 1, true)
    return {forbidden and 'forbidden' or 'refused', call[1], result.err}
  end
end
return {}
