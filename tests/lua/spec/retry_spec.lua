-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local retry = require("gw.retry")
local workers = require("workers")

local function setup(changes)
    local world = { now = 1000 }
    local conf = { budget_percent = 10, floor = 3, max_tries = 2, max_first_try_ms = 2000 }
    for key, value in pairs(changes or {}) do
        conf[key] = value
    end
    world.dict = workers.dict(world)
    function world.worker()
        return retry.new({ dict = world.dict, conf = conf })
    end
    return world
end

local function try(changes)
    local one = {
        upstream_status = "502 : ",
        bytes_sent_text = "0 : ",
        header_or_body_forwarded = false,
        elapsed_ms = 1,
        attempt = 1,
        max_tries = 2,
        max_first_try_ms = 2000,
    }
    for key, value in pairs(changes) do
        if value == "nil" then
            value = nil
        end
        one[key] = value
    end
    return one
end

describe("the last attempt", function()
    for text, expected in pairs({
        ["153 : "] = 153,
        ["0, 0 : "] = 0,
        ["0 : "] = 0,
        ["0, 1520"] = 1520,
        ["1520, 0"] = 0,
        ["503"] = 503,
        ["502, 503 : "] = 503,
        ["17 : 4, 9 : "] = 9,
    }) do
        it(("in %q is %d"):format(text, expected), function()
            assert.equal(expected, retry.last(text))
        end)
    end
    for _, text in ipairs({ "", "-", "503, -", "503, - : ", " : ", ", " }) do
        it(("in %q has none"):format(text), function()
            assert.is_nil(retry.last(text))
        end)
    end
    it("may be a number or nothing", function()
        assert.equal(503, retry.last(503))
        assert.is_nil(retry.last(nil))
    end)
end)

describe("a second try", function()
    for _, case in ipairs({
        { "nobody listened", {}, true, "connect" },
        { "nobody listened, at two engines", { bytes_sent_text = "0, 0 : ", upstream_status = "502, 502 : ", attempt = 2,
            max_tries = 3 }, true, "connect" },
        { "no connection in time", { upstream_status = "504 : " }, true, "connect" },
        { "no status is known, nothing sent", { upstream_status = "nil" }, true, "connect" },
        { "the engine refused the work", { upstream_status = "503 : ", bytes_sent_text = "153 : " }, true, "rejected" },
        { "the engine has too much to do", { upstream_status = "429 : ", bytes_sent_text = "153 : " }, true, "rejected" },
        { "the engine is silent after the request", { upstream_status = "504 : ", bytes_sent_text = "153 : " }, false,
            "started" },
        { "the connection broke after the request", { bytes_sent_text = "153 : " }, false, "started" },
        { "it broke after one byte", { bytes_sent_text = "1 : " }, false, "started" },
        { "the first got nothing, the second something", { bytes_sent_text = "0, 153 : ", upstream_status = "502, 502 : ",
            attempt = 2, max_tries = 3 }, false, "started" },
        { "a 503 of an earlier try does not help a later one", { bytes_sent_text = "153, 153 : ",
            upstream_status = "503, 502 : ", attempt = 2, max_tries = 3 }, false, "started" },
        { "nor if the later one has no status", { bytes_sent_text = "153, 153 : ", upstream_status = "503, - : ",
            attempt = 2, max_tries = 3 }, false, "started" },
        { "the engine failed", { upstream_status = "500 : ", bytes_sent_text = "153 : " }, false, "started" },
        { "the engine answered although nothing was counted", { upstream_status = "500 : " }, false, "started" },
        { "it is not known what was sent", { bytes_sent_text = "nil" }, false, "unknown" },
        { "it is not said what was sent", { bytes_sent_text = "- : " }, false, "unknown" },
        { "the client has a part of the answer", { upstream_status = "503 : ", header_or_body_forwarded = true }, false,
            "forwarded" },
        { "there were enough tries", { attempt = 2 }, false, "tries" },
        { "the first took long", { elapsed_ms = 2001 }, false, "slow" },
        { "the first took just as long as it may", { elapsed_ms = 2000 }, true, "connect" },
        { "there is no bound on the time", { elapsed_ms = 99999, max_first_try_ms = "nil" }, true, "connect" },
    }) do
        it(("%s: %s"):format(case[1], case[4]), function()
            local ok, reason = retry.may_retry(try(case[2]))
            assert.equal(case[3], ok)
            assert.equal(case[4], reason)
        end)
    end
end)

describe("the budget", function()
    it("is the floor when there is little to do", function()
        local world = setup()
        local r = world.worker()
        for i = 1, 6 do
            assert.equal(i <= 3, r:take(world.now))
        end
        world.now = 1011
        assert.is_true(r:take(world.now))
    end)

    it("is a share of the requests beyond that, over all workers", function()
        local world = setup()
        local a, b = world.worker(), world.worker()
        for i = 1, 1000 do
            (i % 2 == 0 and a or b):request(1000 + i / 200)
            world.now = 1000 + i / 200
        end
        -- A worker's last few are counted when it asks itself.
        assert.is_true(b:take(world.now))
        local taken = 1
        for _ = 1, 300 do
            taken = taken + (a:take(world.now) and 1 or 0)
        end
        assert.equal(103, taken)
        assert.is_true(a:left(world.now) < 1)
        world.now = 1016
        taken = 0
        for _ = 1, 300 do
            taken = taken + (a:take(world.now) and 1 or 0)
        end
        assert.equal(3, taken)
    end)

    it("costs nothing when it refuses", function()
        local world = setup({ floor = 1, budget_percent = 0 })
        local r = world.worker()
        assert.is_true(r:take(1000))
        for i = 1, 50 do
            world.now = 1000 + i / 10
            assert.is_false(r:take(world.now))
        end
        -- 1000 is in the window of each of those; 1011 is not.
        world.now = 1011.5
        assert.is_true(r:take(world.now))
    end)

    it("holds in every window of ten seconds", function()
        for seed = 1, 20 do
            local rand = workers.random(seed)
            local world = setup({ floor = 2, budget_percent = 20 })
            local r = world.worker()
            local requests, retries = {}, {}
            for _ = 1, 800 do
                world.now = world.now + rand() ^ 3
                if rand() < 0.6 then
                    r:request(world.now)
                    requests[#requests + 1] = world.now
                elseif r:take(world.now) then
                    retries[#retries + 1] = world.now
                    local asked, done = 0, 0
                    for _, at in ipairs(requests) do
                        asked = asked + (at > world.now - 10 and 1 or 0)
                    end
                    for _, at in ipairs(retries) do
                        done = done + (at > world.now - 10 and 1 or 0)
                    end
                    assert.is_true(done <= 2 + asked * 0.2)
                end
            end
            assert.is_true(#retries > 20)
        end
    end)

    -- Workers that ask at the same time. naive: look first, then count.
    local function race(seed, naive)
        local rand = workers.random(seed)
        local world = setup({ floor = 5, budget_percent = 0 })
        local taken = 0
        local bodies = {}
        for i = 1, 6 do
            bodies[i] = function()
                local r = world.worker()
                for _ = 1, 4 do
                    local ok
                    if naive then
                        ok = (world.dict:get("rt:1000") or 0) < 5
                        if ok then
                            world.dict:incr("rt:1000", 1, 0)
                        end
                    else
                        ok = r:take(i > 3 and 1001 or 1000.9)
                    end
                    taken = taken + (ok and 1 or 0)
                end
            end
        end
        workers.run(bodies, rand)
        return taken, world
    end

    it("is not overdrawn by workers that ask at the same time, also at the turn of a second", function()
        local most = 0
        for seed = 1, 300 do
            local taken, world = race(seed)
            assert.is_true(taken <= 5)
            most = math.max(most, taken)
            -- What a race refused without need is there again.
            local r = world.worker()
            while r:take(1001) do
                taken = taken + 1
            end
            assert.equal(5, taken)
        end
        assert.equal(5, most)
    end)

    it("would be overdrawn by looking first", function()
        local over = 0
        for seed = 1, 300 do
            over = over + ((race(seed, true)) > 5 and 1 or 0)
        end
        assert.is_true(over > 100)
    end)

    it("refuses when the dict has no memory", function()
        local world = setup()
        function world.dict.incr()
            return nil, "no memory"
        end
        local r = world.worker()
        r:request(world.now)
        assert.is_false(r:take(world.now))
        assert.is_true(r.failures >= 1)
    end)
end)
