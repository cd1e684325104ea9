-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local window = require("gw.window")
local workers = require("workers")

local function setup(options)
    options = options or {}
    local clock = { now = options.now or 1700000000 }
    local dict = workers.dict(clock, options.capacity)
    local function worker()
        return window.new({
            dict = dict,
            name = "r",
            window = options.window or 60,
            buckets = options.buckets or 60,
            slack = options.slack or 0,
            reconcile = options.reconcile,
        })
    end
    return worker, clock, dict
end

-- Sum of the buckets that live, read behind the counter's back: those of the present era.
local function buckets(dict, key)
    local sum, era = 0, dict:peek("r:" .. key .. ":e")
    for name in pairs(dict.items) do
        local of, index = name:match("^r:" .. key .. ":(%-?%d+):(%d+)$")
        if index and tonumber(of) == era then
            local held = dict:peek(name)
            if held and held > -2 ^ 45 then
                sum = sum + held
            end
        end
    end
    return sum
end

local function total(dict, key)
    local era = dict:peek("r:" .. key .. ":e")
    return era and dict:peek("r:" .. key .. ":" .. era .. ":t") or 0
end

describe("one worker", function()
    it("admits the limit and not one more", function()
        local worker, clock = setup()
        local w = worker()
        for _ = 1, 10 do
            assert.is_true((w:take("a", 1, 10, clock.now)))
        end
        local ok, wait, left = w:take("a", 1, 10, clock.now)
        assert.is_false(ok)
        assert.equal(0, left)
        assert.is_true(wait > 60 and wait <= 61)
        assert.equal(10, w:used("a", clock.now))
    end)

    it("says what is left", function()
        local worker, clock = setup()
        local w = worker()
        local ok, _, left = w:take("a", 30, 100, clock.now)
        assert.is_true(ok)
        assert.equal(70, left)
        ok, _, left = w:take("a", 80, 100, clock.now)
        assert.is_false(ok)
        assert.equal(70, left)
        assert.equal(30, w:used("a", clock.now))
    end)

    it("keeps keys apart", function()
        local worker, clock = setup()
        local w = worker()
        assert.is_true((w:take("a", 1, 1, clock.now)))
        assert.is_true((w:take("b", 1, 1, clock.now)))
        assert.is_false((w:take("a", 1, 1, clock.now)))
    end)

    it("waits as long as it says, and not longer than a bucket more than the window", function()
        local worker, clock = setup({ window = 6, buckets = 6 })
        local w = worker()
        clock.now = 1700000000.4
        assert.is_true((w:take("a", 3, 4, clock.now)))
        clock.now = clock.now + 2
        assert.is_true((w:take("a", 1, 4, clock.now)))
        local ok, wait = w:take("a", 2, 4, clock.now)
        assert.is_false(ok)
        -- The first bucket ends 6 s after its own end.
        assert.is_true(math.abs(wait - (1700000007 - clock.now)) < 1e-6)
        clock.now = clock.now + wait - 0.01
        assert.is_false((w:take("a", 2, 4, clock.now)))
        clock.now = clock.now + 0.02
        assert.is_true((w:take("a", 2, 4, clock.now)))
    end)

    it("lives on through many windows without drifting", function()
        local worker, clock, dict = setup({ window = 6, buckets = 6 })
        local w = worker()
        local rand = workers.random(7)
        for _ = 1, 2000 do
            clock.now = clock.now + rand() * 0.7
            w:take("a", math.floor(rand() * 3) + 1, 10, clock.now)
        end
        assert.equal(w:used("a", clock.now), buckets(dict, "a"))
        assert.equal(0, w.repairs)
        clock.now = clock.now + 8
        assert.equal(0, w:used("a", clock.now))
    end)

    it("starts from zero after a pause, and leaves nothing behind", function()
        local worker, clock, dict = setup({ window = 6, buckets = 6 })
        local w = worker()
        w:take("a", 5, 5, clock.now)
        clock.now = clock.now + 1000
        assert.equal(0, #dict:get_keys(0))
        assert.is_true((w:take("a", 5, 5, clock.now)))
    end)

    it("gives back what still counts, once", function()
        local worker, clock = setup({ window = 6, buckets = 6 })
        local w = worker()
        local _, bucket = w:take("a", 10, 10, clock.now)
        clock.now = clock.now + 3
        assert.equal(4, w:give("a", bucket, 4))
        assert.equal(6, w:used("a", clock.now))
        clock.now = clock.now + 5
        assert.equal(0, w:used("a", clock.now))
        assert.equal(0, w:give("a", bucket, 6))
        assert.equal(0, w:used("a", clock.now))
        assert.equal(0, w:give("a", bucket, 0))
    end)

    it("counts an excess above the limit", function()
        local worker, clock = setup({ window = 6, buckets = 6 })
        local w = worker()
        w:take("a", 10, 10, clock.now)
        w:charge("a", 7, clock.now)
        assert.equal(17, w:used("a", clock.now))
        assert.is_false((w:take("a", 1, 10, clock.now)))
        clock.now = clock.now + 7.01
        assert.equal(0, w:used("a", clock.now))
    end)

    it("says when everything will have expired", function()
        local worker, clock = setup({ window = 6, buckets = 6 })
        local w = worker()
        assert.equal(0, w:reset_after("a", clock.now))
        w:take("a", 1, 10, clock.now)
        assert.is_true(math.abs(w:reset_after("a", clock.now) - 7) < 1e-6)
    end)

    it("never admits more than the limit in any window, whatever the bursts", function()
        local worker, clock = setup({ window = 2, buckets = 60, now = 1700000000.9 })
        local w = worker()
        local rand = workers.random(3)
        local admitted = {}
        for _ = 1, 4000 do
            -- Bursts at the edges of windows and of buckets.
            clock.now = clock.now + (rand() < 0.9 and rand() * 0.004 or 1.9 + rand() * 0.2)
            if w:take("a", 1, 100, clock.now) then
                admitted[#admitted + 1] = clock.now
            end
        end
        assert.is_true(#admitted > 1000)
        for i = 101, #admitted do
            assert.is_true(admitted[i] - admitted[i - 100] >= 2)
        end
    end)

    it("admits nearly all of the limit under steady load", function()
        local worker, clock = setup({ window = 60, buckets = 60 })
        local w = worker()
        local admitted, begin = 0, clock.now
        while clock.now < begin + 1220 do
            clock.now = clock.now + 0.05
            if clock.now > begin + 610 and w:take("a", 1, 60, clock.now) then
                admitted = admitted + 1
            elseif clock.now <= begin + 610 then
                w:take("a", 1, 60, clock.now)
            end
        end
        -- 610 s, which is ten times window and bucket.
        assert.is_true(admitted >= 590 and admitted <= 610, "admitted " .. admitted)
    end)

    it("says with what it takes when that stops to count", function()
        local worker, clock = setup()
        local w = worker()
        for _ = 1, 20 do
            clock.now = clock.now + 0.37
            local _, _, _, ends = w:take("a", 1, 1000, clock.now)
            assert.equal(w:reset_after("a", clock.now), ends)
        end
    end)

    it("takes two operations where it took before", function()
        local worker, clock, dict = setup()
        local w = worker()
        w:take("a", 1, 10, clock.now)
        local before = dict.operations
        w:take("a", 1, 10, clock.now)
        assert.equal(2, dict.operations - before)
    end)

    it("reads a counter that nobody uses without making keys", function()
        local worker, clock, dict = setup()
        local w = worker()
        assert.equal(0, w:used("a", clock.now))
        assert.equal(0, w:reset_after("a", clock.now))
        assert.equal(0, w:give("a", 1, 5))
        assert.equal(0, dict.used)
    end)

    it("frees the buckets that expired", function()
        local worker, clock, dict = setup({ window = 60, buckets = 60 })
        local w = worker()
        for _ = 1, 600 do
            clock.now = clock.now + 1
            w:take("a", 1, 1000, clock.now)
        end
        -- Those of the window, those in their grave, and a handful of others.
        assert.is_true(dict.used < 60 + 10 + 12, dict.used .. " keys")
    end)

    it("does not count a take of a clock that is a window late", function()
        local worker, clock, dict = setup({ window = 6, buckets = 6 })
        local w, late = worker(), worker()
        local then_ = clock.now
        w:take("a", 1, 10, clock.now)
        late:take("a", 1, 10, clock.now)
        clock.now = clock.now + 7.5
        w:take("a", 1, 10, clock.now)
        assert.is_false((late:take("a", 1, 10, then_)))
        assert.equal(1, late.failures)
        assert.equal(1, w:used("a", clock.now))
        late:charge("a", 3, then_)
        assert.equal(1, w:used("a", clock.now))
        assert.equal(1, total(dict, "a"))
    end)

    it("refuses when there is no memory, and evicts nobody", function()
        local worker, clock, dict = setup({ capacity = 4 })
        local w = worker()
        assert.is_true((w:take("a", 9, 10, clock.now)))
        -- An era, a total, a pointer that needs no room, a bucket: the next one finds no room.
        local ok, wait, left
        for i = 1, 5 do
            ok, wait, left = w:take("b" .. i, 1, 10, clock.now)
        end
        assert.is_false(ok)
        assert.equal(1, wait)
        assert.equal(0, left)
        assert.is_true(w.failures >= 4)
        assert.equal(0, dict.evictions)
        assert.equal(9, w:used("a", clock.now))
        assert.is_false((w:take("a", 2, 10, clock.now)))
        local failures = w.failures
        w:charge("b9", 4, clock.now)
        assert.equal(failures + 1, w.failures)
    end)

    it("finds the memory of what expired behind a key that lives", function()
        local worker, clock, dict = setup({ capacity = 7, window = 2, buckets = 2 })
        local w = worker()
        dict:set("cold", 1)
        w:take("a", 1, 10, clock.now)
        w:take("b", 1, 10, clock.now)
        assert.equal(7, dict.used)
        clock.now = clock.now + 60
        assert.is_true((w:take("c", 1, 10, clock.now)))
        assert.equal(0, w.failures)
        assert.equal(1, dict:peek("cold"))
    end)
end)

describe("several workers", function()
    -- A storm of takes by several workers at one moment or over some time; returns what was admitted, with its moment.
    local function storm(seed, options)
        local worker, clock, dict = setup(options)
        local rand = workers.random(seed)
        local admitted, late = {}, 0
        local bodies = {}
        for index = 1, options.workers do
            bodies[index] = function()
                local w = worker()
                for _ = 1, options.takes do
                    if options.step then
                        clock.now = clock.now + rand() * options.step
                    end
                    local now = clock.now
                    local ok, bucket = w:take("a", options.cost or 1, options.limit, now)
                    late = math.max(late, clock.now - now)
                    if ok then
                        admitted[#admitted + 1] = now
                        if options.refund and rand() < 0.3 then
                            coroutine.yield()
                            if w:give("a", bucket, 1) == 1 then
                                admitted[#admitted] = nil
                            end
                        end
                    end
                end
            end
        end
        workers.run(bodies, rand, options.kill)
        -- What the slack is for.
        assert.is_true(late <= (options.slack or math.huge), "a clock was late by " .. late)
        return admitted, worker, clock, dict
    end

    it("admit exactly the limit at one moment, in every order", function()
        for seed = 1, 300 do
            local limit = (seed % 3 == 0 and 1) or (seed % 3 == 1 and 7) or 40
            local admitted, worker, clock, dict = storm(seed, { workers = 4, takes = 15, limit = limit })
            assert.is_true(#admitted <= limit, "seed " .. seed .. ": " .. #admitted)
            -- Transient increments may refuse early; what is left is there for who comes next.
            local w = worker()
            while w:take("a", 1, limit, clock.now) do
                admitted[#admitted + 1] = clock.now
            end
            assert.equal(limit, #admitted)
            assert.equal(limit, buckets(dict, "a"))
            assert.equal(limit, total(dict, "a"))
        end
    end)

    it("stay below the limit while buckets expire", function()
        for seed = 1, 150 do
            local admitted, worker, clock, dict = storm(seed, {
                workers = 4,
                takes = 250,
                limit = 12,
                window = 2,
                buckets = 10,
                step = 0.04,
                slack = 2.5,
                reconcile = false,
            })
            table.sort(admitted)
            for i = 13, #admitted do
                assert.is_true(admitted[i] - admitted[i - 12] >= 2 - 1e-9, "seed " .. seed)
            end
            assert.is_true(#admitted > 12)
            local w = worker()
            assert.equal(w:used("a", clock.now), buckets(dict, "a"))
        end
    end)

    it("lose nothing when refunds meet an expiry", function()
        for seed = 1, 150 do
            local _, worker, clock, dict = storm(seed, {
                workers = 4,
                takes = 60,
                limit = 9,
                window = 1,
                buckets = 4,
                step = 0.03,
                slack = 2,
                refund = true,
                reconcile = false,
            })
            local w = worker()
            assert.equal(w:used("a", clock.now), buckets(dict, "a"))
            clock.now = clock.now + 3.3
            assert.equal(0, w:used("a", clock.now))
            assert.is_true(total(dict, "a") == 0)
        end
    end)

    -- Every operation of a life of takes, refunds, charges and expiries at which a worker can be killed.
    it("are put right after a worker was killed at any operation", function()
        local lines, repaired, after = 0, 0, nil
        for step = 0, 400 do
            local worker, clock, dict = setup({ window = 6, buckets = 6 })
            local killed, ends = false, false
            local rand = workers.random(step + 1)
            local function life(steady)
                return function()
                    local w = worker()
                    for i = 1, 25 do
                        clock.now = clock.now + 0.23
                        local ok, bucket = w:take("a", 3, 40, clock.now)
                        if ok and i % 2 == 0 then
                            w:give("a", bucket, 1)
                        elseif ok and i % 3 == 0 then
                            w:charge("a", 2, clock.now)
                        end
                    end
                    ends = ends or not steady
                end
            end
            workers.run({ life(false), life(true), life(true) }, rand, function(index, steps)
                if index == 1 and steps == step and not killed then
                    killed = true
                    return true
                end
                return false
            end)
            assert.is_true(killed or ends)
            if not killed then
                after = step
                break
            end
            -- Whoever is killed can only make a limit tighter.
            assert.is_true(total(dict, "a") >= buckets(dict, "a"), "killed after " .. step)
            if total(dict, "a") ~= buckets(dict, "a") then
                lines = lines + 1
            end
            local w = worker()
            -- Two windows of light use.
            for _ = 1, 26 do
                clock.now = clock.now + 0.5
                w:take("a", 1, 40, clock.now)
            end
            assert.equal(buckets(dict, "a"), w:used("a", clock.now), "killed after " .. step)
            repaired = repaired + w.repairs
        end
        assert.is_not_nil(after)
        assert.is_true(lines >= 5, lines .. " lines left a drift")
        assert.is_true(repaired >= lines, repaired .. " of " .. lines)
    end)

    it("repair nothing while nobody dies", function()
        for seed = 1, 60 do
            local repairs = 0
            local worker, clock, dict = setup({ window = 2, buckets = 10 })
            local rand = workers.random(seed)
            local bodies = {}
            for index = 1, 4 do
                bodies[index] = function()
                    local w = worker()
                    for _ = 1, 200 do
                        clock.now = clock.now + rand() * 0.04
                        local ok, bucket = w:take("a", 2, 30, clock.now)
                        if ok and rand() < 0.3 then
                            w:give("a", bucket, 1)
                        end
                    end
                    repairs = repairs + w.repairs
                end
            end
            workers.run(bodies, rand)
            assert.equal(buckets(dict, "a"), total(dict, "a"), "seed " .. seed)
            assert.equal(0, repairs, "seed " .. seed)
        end
    end)

    -- The keys of a counter vanish by their ttl while workers look at them.
    it("begin a new era together when they come back after a pause", function()
        for seed = 1, 400 do
            local worker, clock, dict = setup({ window = 2, buckets = 4, slack = 0.5 })
            local rand = workers.random(seed)
            local fleet, admitted, bodies = {}, 0, {}
            for index = 1, 4 do
                fleet[index] = worker()
            end
            fleet[1]:take("a", 5, 5, clock.now)
            -- Around the moment at which the era ends.
            clock.now = clock.now + fleet[1].era_ttl - 0.05
            for index = 1, 4 do
                bodies[index] = function()
                    for _ = 1, 4 do
                        clock.now = clock.now + 0.005
                        if fleet[index]:take("a", 1, 5, clock.now) then
                            admitted = admitted + 1
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            while fleet[1]:take("a", 1, 5, clock.now) do
                admitted = admitted + 1
            end
            assert.equal(5, admitted, "seed " .. seed)
            assert.equal(5, total(dict, "a"), "seed " .. seed)
            assert.equal(5, buckets(dict, "a"), "seed " .. seed)
        end
    end)

    it("find a total that was lost, as by an eviction", function()
        local worker, clock, dict = setup({ window = 6, buckets = 6 })
        local w = worker()
        w:take("a", 20, 40, clock.now)
        dict:delete("r:a:" .. dict:peek("r:a:e") .. ":t")
        for _ = 1, 26 do
            clock.now = clock.now + 0.5
            w:take("a", 1, 40, clock.now)
        end
        assert.is_true(w.repairs >= 1)
        assert.equal(buckets(dict, "a"), w:used("a", clock.now))
    end)

    it("would be caught by this storm if they compared before they counted", function()
        local over = 0
        for seed = 1, 50 do
            local _, _, dict = setup()
            local rand = workers.random(seed)
            local admitted = 0
            local bodies = {}
            for index = 1, 4 do
                bodies[index] = function()
                    for _ = 1, 15 do
                        local used = dict:get("naive") or 0
                        if used < 7 then
                            dict:set("naive", used + 1)
                            admitted = admitted + 1
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            if admitted > 7 then
                over = over + 1
            end
        end
        assert.is_true(over > 10)
    end)
end)
