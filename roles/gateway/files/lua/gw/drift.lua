-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- A counter and the parts that it is the sum of, apart: a worker was killed between two operations. One that stands between
-- them just now leaves them apart as well, so a drift is one only when it was seen several times, and then only as much of it
-- as was there each time.

local M = {}

local abs = math.abs

-- The counter less its parts: the smallest of several looks, each of them while the counter stood still, for requests that
-- are between two operations can only make it larger than it is.
--   dict, name: where the counter is; looks: how often to look; sum(a, b, c) -> the parts together
-- Returns nil when it never stood still.
function M.measure(dict, name, looks, sum, a, b, c)
    local least
    for _ = 1, looks do
        local before = dict:get(name) or 0
        local parts = sum(a, b, c)
        if (dict:get(name) or 0) == before then
            local drift = before - parts
            if drift == 0 then
                return 0
            end
            if not least or drift < least then
                least = drift
            end
        end
    end
    return least
end

-- Take note of a drift that was measured.
--   dict, drift_name, count_name, ttl: where it is noted, and for how many seconds
--   last: what drift_name holds; needed: how often it must have been seen
-- Returns what is to be put right now, by the one worker that counts the last sighting; 0 for nothing. If that one was
-- killed over it, it all begins again.
function M.sighted(dict, drift_name, count_name, ttl, drift, last, needed)
    if drift == 0 then
        if last then
            dict:delete(drift_name)
        end
        return 0
    end
    if not last or last * drift < 0 then
        if dict:safe_set(count_name, 1, ttl) then
            dict:safe_set(drift_name, drift, ttl)
        end
        return 0
    end
    if abs(last) < abs(drift) then
        drift = last
    end
    local sightings = dict:incr(count_name, 1) or 2 * needed
    if sightings < needed then
        dict:safe_set(drift_name, drift, ttl)
    elseif sightings == needed then
        dict:delete(drift_name)
        return drift
    elseif sightings >= 2 * needed then
        dict:delete(drift_name)
    end
    return 0
end

return M
