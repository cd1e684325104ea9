-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Several workers on one shared dict, interleaved before each of its operations as a random number generator says.

local fake_dict = require("fake_dict")

local M = {}

-- A generator of its own, so that a seed gives the same schedule on every machine: returns numbers in [0, 1).
function M.random(seed)
    local state = (seed * 2654435761) % 4294967296
    return function()
        state = (state * 1664525 + 1013904223) % 4294967296
        return state / 4294967296
    end
end

-- The hook for fake dicts: outside of a worker it does nothing.
function M.yield()
    local thread, is_main = coroutine.running()
    if thread and not is_main then
        coroutine.yield()
    end
end

-- Run each function of a list as a worker until all are done. rand chooses who goes on; kill(index, step) -> true ends
-- a worker where it stands, as SIGKILL does. Returns the number of steps.
function M.run(bodies, rand, kill)
    local threads = {}
    for index, body in ipairs(bodies) do
        threads[#threads + 1] = { index = index, thread = coroutine.create(body), steps = 0 }
    end
    local steps = 0
    while #threads > 0 do
        local place = math.floor(rand() * #threads) + 1
        local worker = threads[place]
        if kill and kill(worker.index, worker.steps) then
            table.remove(threads, place)
        else
            local ok, err = coroutine.resume(worker.thread)
            if not ok then
                error(debug.traceback(worker.thread, err), 0)
            end
            worker.steps = worker.steps + 1
            steps = steps + 1
            if coroutine.status(worker.thread) == "dead" then
                table.remove(threads, place)
            end
        end
    end
    return steps
end

-- A shared dict whose operations workers can come between. clock.now is its time; capacity: keys that fit, nil for any
-- number.
function M.dict(clock, capacity)
    return fake_dict.new({
        now = function()
            return clock.now
        end,
        capacity = capacity,
        hook = M.yield,
    })
end

return M
