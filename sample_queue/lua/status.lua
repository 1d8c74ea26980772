-- Everything that is known of the queue, at one moment. Writes nothing.
-- Returns {depth, in flight, now in ms, producer's age in ms, used_memory, used_memory_peak, maxmemory, {meta's fields and values}}
local now, info = now_ms(), redis.call('INFO', 'memory')
local function figure(name) return tonumber(string.match(info, '\n' .. name .. ':(%d+)')) end
return {
  redis.call('LLEN', samples), redis.call('LLEN', inflight), now, producer_age(now),
  figure('used_memory'), figure('used_memory_peak'), figure('maxmemory'), redis.call('HGETALL', meta),
}
