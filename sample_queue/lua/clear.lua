-- Removes the queue with its plan. Returns {queued, in flight, rejected lines, 1 if there was a plan}
local removed = {redis.call('LLEN', samples), redis.call('LLEN', inflight), redis.call('LLEN', rejected), get('head') and 1 or 0}
redis.call('UNLINK', samples, inflight, meta, rejected)
return removed
