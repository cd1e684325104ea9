-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local shed = require("gw.shed")
local slots = require("gw.slots")
local workers = require("workers")

local function setup(changes)
    local world = { now = 1000 }
    local function dict()
        return workers.dict(world)
    end
    local conf = {
        thresholds = { batch = 0.7, standard = 0.9, premium = 1 },
        max_waiters = { batch = 2, standard = 4, premium = 8 },
        ttft_target_ms = 3000,
    }
    for key, value in pairs(changes or {}) do
        conf[key] = value
    end
    world.dict, world.counts, world.ledger = dict(), dict(), dict()
    function world.worker(pid)
        local held = slots.new({ dict = world.counts, ledger = world.ledger, pid = pid })
        return shed.new({ dict = world.dict, slots = held, conf = conf }), held
    end
    return world
end

local function pool(size, state)
    local peers = {}
    for i = 1, size do
        peers[i] = { name = "gpu" .. i, capacity_tokens = 1000, state = state or "up" }
    end
    return { name = "m", peers = peers }
end

describe("load", function()
    it("is tokens over the capacity of the engines that can be used", function()
        local s, held = setup().worker(1)
        local three = pool(3)
        assert.equal(0, s:load(three, held, 1000))
        held:add("k:gpu1", 600)
        held:add("k:gpu2", 300)
        assert.near(0.3, s:load(three, held, 1000), 1e-9)
        three.peers[3].state = "drain"
        assert.near(0.45, s:load(three, held, 1000), 1e-9)
        local function usable(peer)
            return peer.name ~= "gpu2"
        end
        assert.near(0.6, s:load(three, held, 1000, usable), 1e-9)
    end)

    it("is infinite without engines", function()
        local s, held = setup().worker(1)
        assert.equal(math.huge, s:load(pool(2, "down"), held, 1000))
        assert.equal(math.huge, s:load(pool(0), held, 1000))
        assert.equal("shed", s:decide("premium", math.huge, "m"))
    end)

    it("of a large pool is at most a moment old", function()
        local s, held = setup().worker(1)
        local large = pool(40)
        assert.equal(0, s:load(large, held, 1000))
        held:add("k:gpu1", 4000)
        assert.equal(0, s:load(large, held, 1000.01))
        assert.near(0.1, s:load(large, held, 1000.06), 1e-9)
    end)
end)

describe("a decision", function()
    for _, case in ipairs({
        { "batch", 0.69, "go" },
        { "batch", 0.70, "wait" },
        { "standard", 0.89, "go" },
        { "standard", 0.90, "wait" },
        { "premium", 0.999, "go" },
        { "premium", 1.0, "wait" },
        { "premium", 5, "wait" },
    }) do
        it(("for %s at %s is %s"):format(case[1], case[2], case[3]), function()
            local s = setup().worker(1)
            assert.equal(case[3], s:decide(case[1], case[2], "m"))
        end)
    end

    it("is to shed where nobody may wait", function()
        local s = setup({ max_waiters = { batch = 0, standard = 4, premium = 8 } }).worker(1)
        assert.equal("shed", s:decide("batch", 0.8, "m"))
        assert.equal("wait", s:decide("standard", 0.95, "m"))
        assert.is_false(s:enter("batch", "m"))
    end)

    it("lets those of higher priority that wait go first", function()
        local world = setup()
        local a, b = world.worker(1), world.worker(2)
        assert.is_true(a:enter("standard", "m"))
        assert.equal("wait", b:decide("batch", 0.1, "m"))
        assert.equal("wait", b:decide("batch", 0.1, "m", true))
        assert.equal("go", b:decide("premium", 0.1, "m"))
        -- The waiter itself, and one that has just come.
        assert.equal("go", a:decide("standard", 0.1, "m", true))
        assert.equal("wait", b:decide("standard", 0.1, "m"))
        -- Another pool has nothing to do with it.
        assert.equal("go", b:decide("batch", 0.1, "other"))
        a:leave("standard", "m")
        assert.equal("go", b:decide("batch", 0.1, "m"))
        assert.equal("go", b:decide("standard", 0.1, "m"))
    end)

    it("in a crowd lets everybody through in the end, the urgent before the others", function()
        local rand = workers.random(4)
        local world = setup({ max_waiters = { batch = 20, standard = 20, premium = 20 } })
        local s = world.worker(1)
        local waiting, gone = {}, {}
        for i = 1, 30 do
            local priority = ({ "batch", "standard", "premium" })[i % 3 + 1]
            assert.is_true(s:enter(priority, "m"))
            waiting[i] = priority
        end
        -- There is room for one at each step.
        local steps = 0
        while #waiting > 0 do
            steps = steps + 1
            assert.is_true(steps < 2000)
            local i = math.floor(rand() * #waiting) + 1
            if s:decide(waiting[i], 0.5, "m", true) == "go" then
                s:leave(waiting[i], "m")
                gone[#gone + 1] = table.remove(waiting, i)
            end
        end
        local text = table.concat(gone, " ")
        assert.equal(("premium "):rep(10) .. ("standard "):rep(10) .. ("batch "):rep(9) .. "batch", text)
    end)
end)

describe("waiters", function()
    it("are bounded over all pools and workers", function()
        local world = setup()
        local a, b = world.worker(1), world.worker(2)
        assert.is_true(a:enter("batch", "m"))
        assert.is_true(b:enter("batch", "other"))
        assert.is_false(a:enter("batch", "m"))
        assert.equal(2, a:waiters("batch"))
        assert.equal(1, a:waiters("batch", "m"))
        assert.is_true(a:enter("standard", "m"))
        a:leave("batch", "m")
        assert.equal(0, a:waiters("batch", "m"))
        assert.is_true(a:enter("batch", "m"))
    end)

    it("of a killed worker are given back", function()
        local world = setup()
        local a = world.worker(1)
        local b, held = world.worker(2)
        a:enter("premium", "m")
        assert.equal("wait", b:decide("batch", 0.1, "m"))
        held:reap(function(pid)
            return pid == 2
        end)
        assert.equal(0, b:waiters("premium"))
        assert.equal("go", b:decide("batch", 0.1, "m"))
    end)

    it("are never more than allowed, however workers interleave", function()
        local refused = 0
        for seed = 1, 100 do
            local world = setup()
            local inside, most = 0, 0
            local bodies = {}
            for i = 1, 6 do
                bodies[i] = function()
                    local s = world.worker(i)
                    for _ = 1, 4 do
                        if s:enter("batch", "m") then
                            inside = inside + 1
                            most = math.max(most, inside)
                            coroutine.yield()
                            inside = inside - 1
                            s:leave("batch", "m")
                        else
                            refused = refused + 1
                        end
                    end
                end
            end
            workers.run(bodies, workers.random(seed))
            assert.is_true(most <= 2)
            local s = world.worker(99)
            assert.equal(0, s:waiters("batch"))
            assert.equal(0, s:waiters("batch", "m"))
        end
        assert.is_true(refused > 0)
    end)
end)

describe("the next look", function()
    it("comes sooner for the urgent and later for those who wait long, with jitter", function()
        local function half()
            return 0.5
        end
        assert.near(0.010, shed.next_delay("premium", 0, half), 1e-9)
        assert.near(0.020, shed.next_delay("standard", 0, half), 1e-9)
        assert.near(0.040, shed.next_delay("batch", 0, half), 1e-9)
        assert.near(0.060, shed.next_delay("premium", 400, half), 1e-9)
        assert.near(0.100, shed.next_delay("premium", 60000, half), 1e-9)
        assert.near(0.400, shed.next_delay("batch", 60000, half), 1e-9)
        local rand, low, high = workers.random(1), math.huge, 0
        for _ = 1, 1000 do
            local delay = shed.next_delay("standard", 0, rand)
            low, high = math.min(low, delay), math.max(high, delay)
        end
        assert.is_true(low >= 0.010 and low < 0.011)
        assert.is_true(high <= 0.030 and high > 0.029)
    end)
end)

describe("the factor", function()
    local function second(world, ...)
        world.now = world.now + 1
        for _, s in ipairs({ ... }) do
            s:tick()
        end
    end

    it("is lowered by a tenth above the target, and raised by 0.01 below it", function()
        local world = setup()
        local s = world.worker(1)
        assert.equal(1, s:factor("m"))
        for _ = 1, 20 do
            s:feed(5000, "m")
        end
        second(world, s)
        assert.near(0.9, s:factor("m"), 1e-9)
        for _ = 1, 20 do
            s:feed(500, "m")
        end
        second(world, s)
        assert.near(0.91, s:factor("m"), 1e-9)
    end)

    it("stays between a tenth and one", function()
        local world = setup()
        local s = world.worker(1)
        for _ = 1, 60 do
            for _ = 1, 20 do
                s:feed(60000, "m")
            end
            second(world, s)
        end
        assert.near(0.1, s:factor("m"), 1e-9)
        for _ = 1, 120 do
            second(world, s)
        end
        assert.equal(1, s:factor("m"))
    end)

    it("looks at the 90th percentile and not at the mean or the worst", function()
        for _, case in ipairs({ { 9, 1 }, { 11, 0.9 } }) do
            local world = setup()
            local s = world.worker(1)
            for i = 1, 100 do
                s:feed(i <= case[1] and 20000 or 100, "m")
            end
            second(world, s)
            assert.near(case[2], s:factor("m"), 1e-9)
        end
    end)

    it("knows the time to a twentieth, from less than a millisecond to an hour", function()
        for _, case in ipairs({ { 0.2, 1 }, { 2850, 1 }, { 3160, 0.9 }, { 3600000, 0.9 } }) do
            local world = setup()
            local s = world.worker(1)
            for _ = 1, 20 do
                s:feed(case[1], "m")
            end
            second(world, s)
            assert.near(case[2], s:factor("m"), 1e-9)
        end
    end)

    it("is decided by all workers' times together, once per second", function()
        local world = setup()
        local a, b, c = world.worker(1), world.worker(2), world.worker(3)
        c:factor("m")
        for _ = 1, 6 do
            a:feed(5000, "m")
            b:feed(5000, "m")
        end
        -- The first that looks finds only six times, which are few; with those of the other they are enough.
        second(world, a, b, c)
        assert.equal(1, a:factor("m"))
        second(world, a, b, c)
        assert.near(0.9, a:factor("m"), 1e-9)
        assert.near(0.9, b:factor("m"), 1e-9)
        assert.near(0.9, c:factor("m"), 1e-9)
        a:tick()
        b:tick()
        assert.near(0.9, a:factor("m"), 1e-9)
    end)

    it("is decided by few times if no more come", function()
        local world = setup()
        local s = world.worker(1)
        s:feed(5000, "m")
        for _ = 1, 4 do
            second(world, s)
            assert.equal(1, s:factor("m"))
        end
        second(world, s)
        assert.near(0.9, s:factor("m"), 1e-9)
    end)

    it("is decided by few times only after patience, each time anew", function()
        local world = setup()
        local s = world.worker(1)
        for round = 1, 3 do
            s:feed(5000, "m")
            for _ = 1, 4 do
                second(world, s)
            end
            assert.near(0.9 ^ (round - 1), s:factor("m"), 1e-9)
            second(world, s)
            assert.near(0.9 ^ round, s:factor("m"), 1e-9)
        end
    end)

    it("loses no time that is told while another worker decides", function()
        local world = setup()
        local a, b = world.worker(1), world.worker(2)
        for _ = 1, 20 do
            a:feed(5000, "m")
            b:feed(5000, "m")
        end
        local get, told = world.dict.get, false
        function world.dict.get(self, key)
            local value = get(self, key)
            if key:find("^sh:") and (value or 0) > 0 and not told then
                told = true
                b:tick()
            end
            return value
        end
        world.now = world.now + 1
        a:tick()
        assert.is_true(told)
        local left = 0
        for bucket = 0, 140 do
            left = left + (world.dict:peek("sh:m:" .. bucket) or 0)
        end
        assert.equal(20, left)
    end)

    it("is each pool's own", function()
        local world = setup()
        local s = world.worker(1)
        for _ = 1, 20 do
            s:feed(5000, "m")
            s:feed(50, "other")
        end
        second(world, s)
        assert.near(0.9, s:factor("m"), 1e-9)
        assert.equal(1, s:factor("other"))
    end)

    it("makes the load higher, also in a worker that starts later", function()
        local world = setup()
        local s, held = world.worker(1)
        held:add("k:gpu1", 650)
        assert.equal("go", s:decide("batch", s:load(pool(1), held, 1000), "m"))
        for _ = 1, 20 do
            s:feed(5000, "m")
        end
        second(world, s)
        local late, late_held = world.worker(2)
        assert.near(0.65 / 0.9, late:load(pool(1), late_held, 1001), 1e-9)
        assert.equal("wait", late:decide("batch", late:load(pool(1), late_held, 1001), "m"))
    end)

    it("is off without a target", function()
        local world = setup({ ttft_target_ms = 0 })
        local s = world.worker(1)
        for _ = 1, 20 do
            s:feed(60000, "m")
        end
        second(world, s)
        assert.equal(1, s:factor("m"))
    end)

    it("is adjusted once per second and counts no time twice, however workers interleave", function()
        for seed = 1, 30 do
            local world = setup()
            local rand = workers.random(seed)
            local bodies = {}
            for i = 1, 4 do
                bodies[i] = function()
                    local s = world.worker(i)
                    for _ = 1, 20 do
                        s:feed(5000, "m")
                    end
                    s:tick()
                end
            end
            workers.run(bodies, rand)
            assert.near(0.9, world.dict:peek("sf:m"), 1e-9)
            -- What the one that decided did not see is still there, and nothing is negative.
            local left = 0
            for bucket = 0, 140 do
                local n = world.dict:peek("sh:m:" .. bucket) or 0
                assert.is_true(n >= 0)
                left = left + n
            end
            assert.is_true(left <= 60 and left % 20 == 0)
        end
    end)
end)
