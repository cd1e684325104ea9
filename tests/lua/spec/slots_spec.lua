-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local slots = require("gw.slots")
local workers = require("workers")

local function setup(options)
    options = options or {}
    local clock = { now = 1000 }
    local function dict(capacity)
        return workers.dict(clock, capacity)
    end
    local shared = { dict = dict(options.capacity), ledger = dict(options.ledger_capacity) }
    return function(pid)
        return slots.new({ dict = shared.dict, ledger = shared.ledger, pid = pid })
    end, clock, shared
end

-- Reap as often as it takes to see a drift three times.
local function settle(worker, clock, alive)
    local sum = 0
    for _ = 1, 5 do
        clock.now = clock.now + 6
        sum = sum + worker:reap(alive)
    end
    return sum
end

local function all()
    return true
end

describe("one worker", function()
    it("gives the limit and not one more", function()
        local worker, _, shared = setup()
        local w = worker(1)
        for i = 1, 4 do
            local ok, used = w:acquire("a", 4)
            assert.is_true(ok)
            assert.equal(i, used)
        end
        local ok, used = w:acquire("a", 4)
        assert.is_false(ok)
        assert.equal(4, used)
        w:release("a")
        assert.equal(3, w:value("a"))
        assert.is_true((w:acquire("a", 4)))
        for _ = 1, 4 do
            w:release("a")
        end
        assert.equal(0, w:value("a"))
        assert.is_nil(shared.ledger:peek("1|a"))
    end)

    it("has no limit when the limit is 0, and takes several at once", function()
        local worker = setup()
        local w = worker(1)
        assert.is_true((w:acquire("a", 0, 1000)))
        assert.is_false((w:acquire("b", 5, 6)))
        assert.equal(0, w:value("b"))
        assert.is_true((w:acquire("b", 5, 5)))
    end)

    it("adds and takes away without a limit", function()
        local worker, _, shared = setup()
        local w = worker(1)
        w:add("k:gpu1", 500)
        w:add("k:gpu1", -200)
        w:add("k:gpu1", 0)
        assert.equal(300, w:value("k:gpu1"))
        w:add("k:gpu1", -300)
        assert.is_nil(shared.ledger:peek("1|k:gpu1"))
        assert.equal(0, w:value("nothing"))
    end)

    it("refuses when there is no memory, and evicts nobody", function()
        local worker, _, shared = setup({ capacity = 1 })
        local w = worker(1)
        assert.is_true((w:acquire("a", 4)))
        local ok, used = w:acquire("b", 4)
        assert.is_false(ok)
        assert.equal(0, used)
        assert.equal(1, w.failures)
        assert.is_false(w:add("c", 5))
        assert.equal(2, w.failures)
        assert.equal(1, w:value("a"))
        assert.equal(0, shared.dict.evictions)
    end)

    it("refuses what it could not note, and lowers nothing for it later", function()
        -- Room for pid, generation and one line.
        local worker, _, shared = setup({ ledger_capacity = 3 })
        local w = worker(1)
        assert.is_true((w:acquire("a", 4)))
        assert.is_false((w:acquire("b", 4)))
        assert.is_false(w:add("k:gpu1", 7))
        w:add("k:gpu1", -7)
        assert.equal(0, shared.dict:peek("b"))
        assert.equal(0, shared.dict:peek("k:gpu1"))
        assert.equal(2, w.failures)
    end)

    it("gives back no more than it holds", function()
        local worker = setup()
        local w, other = worker(1), worker(2)
        other:acquire("a", 10, 3)
        w:release("a")
        assert.equal(3, w:value("a"))
        w:acquire("a", 10, 2)
        w:release("a", 5)
        assert.equal(3, w:value("a"))
        w:release("a")
        assert.equal(3, w:value("a"))
    end)
end)

describe("a worker that died", function()
    it("is relieved of what it held, and nobody else is", function()
        local worker, clock = setup()
        local dead, living = worker(11), worker(12)
        dead:acquire("a", 10, 3)
        dead:add("k:gpu1", 700)
        living:acquire("a", 10, 2)
        living:add("k:gpu1", 50)
        clock.now = clock.now + 1
        assert.equal(703, living:reap(function(pid)
            return pid ~= 11
        end))
        assert.equal(2, living:value("a"))
        assert.equal(50, living:value("k:gpu1"))
        clock.now = clock.now + 1
        assert.equal(0, living:reap(function(pid)
            return pid ~= 11
        end))
    end)

    it("is not confused with one that drains after a reload", function()
        local worker, clock = setup()
        local old, new = worker(11), worker(12)
        old:acquire("a", 10, 3)
        assert.equal(0, settle(new, clock, all))
        assert.equal(3, new:value("a"))
        old:release("a", 3)
        old:leave()
        assert.equal(0, settle(new, clock, function(pid)
            return pid == 12
        end))
        assert.equal(0, new:value("a"))
    end)

    it("leaves nothing, whatever it was doing when it was killed, and no counter is ever below its lines", function()
        local after
        for step = 0, 300 do
            local worker, clock, shared = setup()
            local rand = workers.random(step + 1)
            local function check()
                for _, key in ipairs({ "a", "k:gpu1" }) do
                    local sum = 0
                    for pid = 1, 3 do
                        local held = shared.ledger:peek(pid .. "|" .. key) or 0
                        sum = sum + (held > -2 ^ 49 and held or 0)
                    end
                    assert(sum >= 0 and (shared.dict:peek(key) or 0) >= sum, "killed after " .. step)
                end
            end
            shared.dict.yield_hook = function()
                check()
                workers.yield()
            end
            shared.ledger.yield_hook = shared.dict.yield_hook
            local function body(pid)
                return function()
                    local w = worker(pid)
                    for _ = 1, 6 do
                        if w:acquire("a", 3) then
                            w:add("k:gpu1", 10)
                            w:add("k:gpu1", -10)
                            w:release("a")
                        end
                    end
                    w:leave()
                end
            end
            local killed = false
            workers.run({ body(1), body(2), body(3) }, rand, function(index, steps)
                if index == 1 and steps == step and not killed then
                    killed = true
                    return true
                end
                return false
            end)
            local reaper = worker(4)
            settle(reaper, clock, function(pid)
                return pid == 4
            end)
            assert.equal(0, shared.dict:peek("a") or 0, "killed after " .. step)
            assert.equal(0, shared.dict:peek("k:gpu1") or 0, "killed after " .. step)
            for key in pairs(shared.ledger.items) do
                assert.is_nil(key:match("^%d+|"), "left: " .. key)
            end
            if not killed then
                after = step
                break
            end
        end
        -- The worker was killed before each of its operations.
        assert.is_true(after ~= nil and after > 30, tostring(after))
    end)

    it("leaves nothing even if its reaper is killed at any point as well", function()
        local after
        for step = 0, 200 do
            local worker, clock, shared = setup()
            local function alive(pid)
                return pid > 10
            end
            local dead = worker(1)
            dead:acquire("a", 10, 3)
            dead:acquire("b", 10, 2)
            local first, second = worker(2), worker(11)
            second:acquire("a", 10, 1)
            local killed = false
            workers.run({
                function()
                    first:reap(alive)
                end,
            }, workers.random(1), function(_, steps)
                killed = killed or steps == step
                return steps == step
            end)
            clock.now = clock.now + 1
            for _ = 1, 8 do
                second:reap(alive)
                clock.now = clock.now + 6
            end
            assert.equal(1, shared.dict:peek("a"), "killed after " .. step)
            assert.equal(0, shared.dict:peek("b"), "killed after " .. step)
            if not killed then
                after = step
                break
            end
        end
        assert.is_true(after ~= nil and after > 10, tostring(after))
    end)

    it("is reaped by one of many only", function()
        for seed = 1, 100 do
            local worker, clock, shared = setup()
            worker(1):acquire("a", 100, 40)
            local sum = 0
            clock.now = clock.now + 1
            local bodies = {}
            for index = 1, 4 do
                bodies[index] = function()
                    local w = worker(index + 1)
                    -- Time passes while they work, so the latch of one ends before it is done.
                    clock.now = clock.now + 0.5
                    local n = w:reap(function(pid)
                        clock.now = clock.now + 0.4
                        return pid ~= 1
                    end)
                    sum = sum + n
                end
            end
            workers.run(bodies, workers.random(seed))
            assert.equal(40, sum)
            assert.equal(0, shared.dict:peek("a"))
        end
    end)

    it("is relieved when another process gets its number", function()
        local worker, _, shared = setup()
        worker(11):acquire("a", 10, 3)
        local other = worker(12)
        other:acquire("a", 10, 1)
        local again = worker(11)
        assert.equal(1, again:value("a"))
        assert.is_nil(shared.ledger:peek("11|a"))
        assert.is_true((again:acquire("a", 2)))
    end)

    it("costs little while nobody dies, however many tenants there are", function()
        local worker, clock, shared = setup()
        local w = worker(1)
        for i = 1, 3000 do
            w:acquire("tenant" .. i, 10)
        end
        w:reap(all)
        local listed, keys = 0, shared.dict.get_keys
        shared.dict.get_keys = function(...)
            listed = listed + 1
            return keys(...)
        end
        shared.ledger.get_keys = shared.dict.get_keys
        local before = shared.dict.operations + shared.ledger.operations
        for _ = 1, 50 do
            clock.now = clock.now + 1
            w:reap(all)
        end
        assert.is_true(shared.dict.operations + shared.ledger.operations - before <= 50 * 5)
        assert.equal(0, listed)
        clock.now = clock.now + 60
        w:reap(all)
        assert.is_true(listed > 0)
        assert.equal(0, w.repairs)
    end)

    it("had its counter lost or raised by somebody else: it is put right", function()
        local worker, clock, shared = setup()
        local w = worker(1)
        w:acquire("a", 0, 5)
        w:acquire("b", 0, 5)
        shared.dict:delete("a")
        shared.dict:incr("b", 2)
        w:reap(all)
        clock.now = clock.now + 60
        assert.equal(2, settle(w, clock, all))
        assert.equal(5, w:value("a"))
        assert.equal(5, w:value("b"))
        assert.equal(2, w.repairs)
    end)
end)

describe("several workers", function()
    it("never hold more than the limit, in every order, and all of it when nobody asks at once", function()
        for seed = 1, 200 do
            local worker, clock, shared = setup()
            local rand = workers.random(seed)
            local holding, high = 0, 0
            local bodies = {}
            for index = 1, 5 do
                bodies[index] = function()
                    local w = worker(index)
                    for _ = 1, 10 do
                        if w:acquire("a", 2) then
                            holding = holding + 1
                            high = math.max(high, holding)
                            coroutine.yield()
                            holding = holding - 1
                            w:release("a")
                        end
                        if rand() < 0.1 then
                            clock.now = clock.now + 1
                            w:reap(all)
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            assert.is_true(high <= 2, "seed " .. seed .. ": " .. high)
            assert.is_true(high > 0)
            assert.equal(0, shared.dict:peek("a") or 0)
            local w = worker(9)
            assert.is_true((w:acquire("a", 2)))
            assert.is_true((w:acquire("a", 2)))
            assert.is_false((w:acquire("a", 2)))
        end
    end)

    it("are not put right while all of them live, however busy they are", function()
        for seed = 1, 40 do
            local worker, clock = setup()
            local rand = workers.random(seed)
            local bodies, repairs, reaps, busy = {}, 0, 0, false
            for index = 1, 4 do
                bodies[index] = function()
                    local w = worker(index)
                    for _ = 1, 40 do
                        local got = w:acquire("a", 3)
                        if got then
                            w:add("k:gpu1", 10)
                            coroutine.yield()
                            w:add("k:gpu1", -10)
                            w:release("a")
                        end
                        -- One at a time, as the latch sees to unless a reaper takes a second and more.
                        if rand() < 0.3 and not busy then
                            busy = true
                            clock.now = clock.now + 61
                            w:reap(all)
                            reaps, busy = reaps + 1, false
                        end
                    end
                    repairs = repairs + w.repairs
                end
            end
            workers.run(bodies, rand)
            assert.is_true(reaps > 5)
            local w = worker(9)
            assert.equal(0, w:value("a"), "seed " .. seed)
            assert.equal(0, w:value("k:gpu1"), "seed " .. seed)
            assert.equal(0, repairs, "seed " .. seed)
        end
    end)
end)
