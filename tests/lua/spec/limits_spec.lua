-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Windows, slots and limiter together, against a model that keeps every request in a list and adds up.

local limiter = require("gw.limiter")
local slots = require("gw.slots")
local window = require("gw.window")
local workers = require("workers")

local function new_clock()
    return { now = 1700000000.0005 }
end

local new_dict = workers.dict

local function new_limiter(clock)
    return limiter.new({
        rate = new_dict(clock),
        slots = slots.new({ dict = new_dict(clock), ledger = new_dict(clock), pid = 1 }),
        windows = { requests_s = 60, tokens_s = 60, day_s = 86400, buckets = 60 },
        rand = math.random,
    })
end

local function all()
    return true
end

-- Does a bucket of a length count at a time? Until all of it is older than window and slack.
local function counts(index, length, span, now)
    return now < (index + 1) * length + span + 0.05
end

describe("the limiter and a model", function()
    local LENGTHS = { burst = 0.1, requests = 1, tokens = 1, day = 1440 }
    local SPANS = { burst = 1, requests = 60, tokens = 60, day = 86400 }
    local LIMITS = { burst_rps = 3, rpm = 12, tpm = 800, tpd = 15000, concurrency = 6 }

    -- Requests of one tenant through three workers, one after the other; returns what happened how often.
    local function life(seed)
        local rand, clock = workers.random(seed), new_clock()
        local rate, conc, ledger = new_dict(clock), new_dict(clock), new_dict(clock)
        local fleet = {}
        for pid = 1, 3 do
            fleet[pid] = limiter.new({
                rate = rate,
                slots = slots.new({ dict = conc, ledger = ledger, pid = pid }),
                windows = { requests_s = 60, tokens_s = 60, day_s = 86400, buckets = 60 },
                rand = rand,
            })
        end
        local who = { id = "acme", limits = LIMITS }
        local list, flying, happened = {}, {}, { admitted = 0, abandoned = 0, charged = 0 }
        local function sum(kind)
            local total, length = 0, LENGTHS[kind]
            for _, item in ipairs(list) do
                if item[kind] and counts(math.floor(item.at / length), length, SPANS[kind], clock.now) then
                    total = total + item[kind]
                end
            end
            return total
        end
        for _ = 1, 900 do
            -- Bursts, single requests, and pauses of whole windows; never on the edge of a bucket, where a rounding
            -- would decide.
            local kind, step = rand(), rand()
            step = kind < 0.5 and step * 0.2 or kind < 0.99 and step ^ 4 * 20 or step * 4000
            clock.now = math.floor((clock.now + step) * 1000) / 1000 + 0.0005
            local now, dice = clock.now, rand()
            if dice < 0.6 then
                local tokens = 1 + math.floor(rand() * 150)
                local place = math.floor(rand() * 3) + 1
                local fits = #flying < LIMITS.concurrency
                    and sum("burst") + 1 <= LIMITS.burst_rps
                    and sum("requests") + 1 <= LIMITS.rpm
                    and sum("tokens") + tokens <= LIMITS.tpm
                    and sum("day") + tokens <= LIMITS.tpd
                local ticket, refused = fleet[place]:admit(who, tokens, now)
                if fits then
                    assert.is_table(ticket, refused and refused.message)
                    local item = { at = now, burst = 1, requests = 1, tokens = tokens, day = tokens }
                    list[#list + 1] = item
                    flying[#flying + 1] = { ticket = ticket, item = item, place = place }
                    happened.admitted = happened.admitted + 1
                else
                    assert.is_nil(ticket, "seed " .. seed)
                    assert.equal(429, refused.status)
                    assert.is_true(refused.retry_after >= 1)
                    happened[refused.reason] = (happened[refused.reason] or 0) + 1
                end
            elseif #flying > 0 then
                local flight = table.remove(flying, math.floor(rand() * #flying) + 1)
                local ticket, item, l = flight.ticket, flight.item, fleet[flight.place]
                if rand() < 0.5 then
                    ticket = limiter.decode(limiter.encode(ticket))
                end
                if rand() < 0.5 then
                    assert.is_true(l:release(ticket))
                end
                if dice < 0.65 then
                    -- What does not count any more cannot be given back, which is the same here.
                    l:abandon(ticket, now)
                    item.burst, item.requests, item.tokens, item.day = nil, nil, nil, nil
                    happened.abandoned = happened.abandoned + 1
                else
                    local actual = math.floor(rand() * 170)
                    l:settle(ticket, actual, now)
                    if actual > item.tokens then
                        list[#list + 1] = { at = now, tokens = actual - item.tokens, day = actual - item.tokens }
                        happened.charged = happened.charged + 1
                    else
                        item.tokens, item.day = actual, actual
                    end
                end
                l:release(ticket)
                -- All of it is done, for the ticket and for its copies.
                assert.is_false(l:release(flight.ticket))
                assert.is_false(l:settle(flight.ticket, 0, now))
                assert.is_false(l:abandon(flight.ticket, now))
            end
            local in_flight, burst, requests, tokens, day = fleet[math.floor(rand() * 3) + 1]:use(who, now)
            assert.same(
                { #flying, sum("burst"), sum("requests"), sum("tokens"), sum("day") },
                { in_flight, burst, requests, tokens, day },
                "seed " .. seed
            )
        end
        return happened
    end

    it("agree on every decision and every number", function()
        local seen = {}
        for seed = 1, 10 do
            for name, count in pairs(life(seed)) do
                seen[name] = (seen[name] or 0) + count
            end
        end
        local all_of_them = { "admitted", "abandoned", "charged", "concurrency", "burst_rps", "rpm", "tpm", "tpd" }
        for _, name in ipairs(all_of_them) do
            assert.is_true((seen[name] or 0) > 5, name .. " happened " .. (seen[name] or 0) .. " times")
        end
    end)
end)

describe("a window under interleaved takes, refunds and charges", function()
    -- At each admission: what was admitted in the window that ends there, without what had been given back.
    local function storm(seed, make)
        local clock = new_clock()
        local dict, rand = new_dict(clock), workers.random(seed)
        local items, most, refunds, late = {}, 0, 0, 0
        local bodies = {}
        for index = 1, 4 do
            bodies[index] = function()
                local w = make(dict)
                for _ = 1, 120 do
                    clock.now = clock.now + rand() * 0.03
                    local now, cost = clock.now, 1 + math.floor(rand() * 5)
                    local ok, bucket = w:take("a", cost, 40, now)
                    late = math.max(late, clock.now - now)
                    if ok then
                        local item = { at = now, cost = cost }
                        items[#items + 1] = item
                        local used = 0
                        for i = 1, #items do
                            if items[i].at > now - 1.5 and items[i].at <= now then
                                used = used + items[i].cost
                            end
                        end
                        most = math.max(most, used)
                        if rand() < 0.4 then
                            coroutine.yield()
                            -- The model gives back before the window does.
                            item.cost = item.cost - 1
                            if w:give("a", bucket, 1, clock.now) == 1 then
                                refunds = refunds + 1
                            else
                                item.cost = item.cost + 1
                            end
                        end
                    end
                end
            end
        end
        workers.run(bodies, rand)
        assert.is_true(late < 2, "a worker was late by " .. late)
        return most, refunds, #items
    end

    it("never holds more than the limit", function()
        local refunds, high = 0, 0
        for seed = 1, 60 do
            local most, given = storm(seed, function(dict)
                return window.new({ dict = dict, name = "w", window = 1.5, buckets = 6, slack = 2 })
            end)
            assert.is_true(most <= 40, "seed " .. seed .. ": " .. most)
            refunds, high = refunds + given, math.max(high, most)
        end
        assert.is_true(refunds > 500)
        assert.is_true(high > 30, "the limit was never near: " .. high)
    end)

    it("holds more when a limiter reads before it writes, so this storm can tell", function()
        local naive = {}
        naive.__index = naive
        function naive:take(key, cost, limit, now)
            local used = 0
            for index = math.floor(now / 0.25) - 7, math.floor(now / 0.25) do
                used = used + (self.dict:get(key .. index) or 0)
            end
            if used + cost > limit then
                return false, 1
            end
            local index = math.floor(now / 0.25)
            self.dict:incr(key .. index, cost, 0, 10)
            return true, index
        end
        function naive:give(key, bucket, amount)
            self.dict:incr(key .. bucket, -amount, 0, 10)
            return amount
        end
        local over = 0
        for seed = 1, 60 do
            local most = storm(seed, function(dict)
                return setmetatable({ dict = dict }, naive)
            end)
            over = over + (most > 40 and 1 or 0)
        end
        assert.is_true(over > 10, over .. " of 60")
    end)
end)

describe("a clock that is set back", function()
    -- A full tenant, four workers, a step, and a storm of takes for ten windows.
    local function after(step, seed)
        local clock = new_clock()
        local dict, fleet, admitted, bodies = new_dict(clock), {}, {}, {}
        for index = 1, 4 do
            fleet[index] = window.new({ dict = dict, name = "w", window = 6, buckets = 6, slack = 3 })
        end
        -- Long enough for an era that began long before.
        for _ = 1, 40 do
            clock.now = clock.now + 1
            fleet[1]:take("a", 5, 10, clock.now)
        end
        assert.is_false((fleet[2]:take("a", 10, 10, clock.now)))
        clock.now = clock.now - step
        local begin = clock.now
        for index = 1, 4 do
            bodies[index] = function()
                while clock.now < begin + 60 do
                    clock.now = clock.now + 0.05
                    local now = clock.now
                    if fleet[index]:take("a", 1, 10, now) then
                        admitted[#admitted + 1] = now
                    end
                end
            end
        end
        workers.run(bodies, workers.random(seed))
        table.sort(admitted)
        return admitted, fleet[1], clock
    end

    it("does not refuse for longer than two windows, and keeps the bound from then on", function()
        local steps = { 3, 7, 16, 30, 37, 47, 100, 3600, 86400 }
        for seed = 1, 90 do
            local step = steps[seed % #steps + 1]
            local admitted, w, clock = after(step, seed)
            assert.is_true(#admitted >= 50, step .. " s: " .. #admitted)
            -- While the step itself is going on, several workers may begin anew at the same time.
            local first = admitted[1]
            for i = 1, #admitted - 10 do
                if admitted[i] > first + 2 then
                    assert.is_true(admitted[i + 10] - admitted[i] >= 6, step .. " s")
                end
            end
            assert.is_true(w:used("a", clock.now) <= 10)
        end
    end)

    it("ends what a limiter remembers of refusals", function()
        local clock = new_clock()
        local l = new_limiter(clock)
        local who = { id = "acme", limits = { rpm = 2, burst_rps = 0, tpm = 0, tpd = 0, concurrency = 0 } }
        for _ = 1, 2 do
            assert.is_table((l:admit(who, 1, clock.now)))
        end
        assert.is_nil((l:admit(who, 1, clock.now)))
        clock.now = clock.now - 3600
        assert.is_table((l:admit(who, 1, clock.now)))
        assert.is_table((l:admit(who, 1, clock.now)))
        assert.is_nil((l:admit(who, 1, clock.now)))
    end)
end)

it("tells a larger request a longer time, although a smaller one was refused before", function()
    local clock = new_clock()
    local l = new_limiter(clock)
    local who = { id = "acme", limits = { rpm = 0, burst_rps = 0, tpm = 100, tpd = 0, concurrency = 0 } }
    l:admit(who, 20, clock.now)
    clock.now = clock.now + 30
    l:admit(who, 70, clock.now)
    local _, little = l:admit(who, 30, clock.now)
    local _, much = l:admit(who, 90, clock.now)
    assert.is_true(little.retry_after >= 31 and little.retry_after <= 32)
    assert.is_true(much.retry_after >= 61 and much.retry_after <= 62)
    clock.now = clock.now + little.retry_after
    assert.is_nil((l:admit(who, 90, clock.now)))
    assert.is_table((l:admit(who, 30, clock.now)))
end)

describe("slots", function()
    it("are made once when several workers take the first ones of a tenant", function()
        for seed = 1, 150 do
            local clock = new_clock()
            local dict, ledger = new_dict(clock), new_dict(clock)
            local fleet, bodies, taken = {}, {}, 0
            for pid = 1, 4 do
                fleet[pid] = slots.new({ dict = dict, ledger = ledger, pid = pid })
                bodies[pid] = function()
                    for _ = 1, 2 do
                        if fleet[pid]:acquire("a", 8) then
                            taken = taken + 1
                        end
                    end
                end
            end
            workers.run(bodies, workers.random(seed))
            assert.equal(8, taken, "seed " .. seed)
            assert.equal(8, dict:peek("a"))
            for pid = 1, 4 do
                assert.equal(0, fleet[pid].failures)
                assert.equal(2, ledger:peek(pid .. "|a"))
            end
        end
    end)

    it("that drifted and came right by themselves are not repaired later", function()
        local clock = new_clock()
        local dict, ledger = new_dict(clock), new_dict(clock)
        local w = slots.new({ dict = dict, ledger = ledger, pid = 1 })
        w:acquire("a", 5)
        -- Two sightings of one drift, then none, again and again: never three in a row.
        for _ = 1, 12 do
            dict:incr("a", 1)
            for _ = 1, 2 do
                clock.now = clock.now + 5.5
                w:reap(all, clock.now)
            end
            dict:incr("a", -1)
            for _ = 1, 2 do
                clock.now = clock.now + 5.5
                w:reap(all, clock.now)
            end
        end
        assert.equal(1, dict:peek("a"))
        assert.equal(0, w.repairs)
    end)

    it("are all put right, however many have drifted", function()
        local clock = new_clock()
        local dict, ledger = new_dict(clock), new_dict(clock)
        local w = slots.new({ dict = dict, ledger = ledger, pid = 1 })
        for i = 1, 1300 do
            w:acquire("t" .. i, 0)
            dict:incr("t" .. i, i % 2 == 0 and 3 or 7)
        end
        for _ = 1, 240 do
            clock.now = clock.now + 1
            w:reap(all, clock.now)
        end
        for i = 1, 1300 do
            assert.equal(1, dict:peek("t" .. i), "t" .. i)
        end
        assert.equal(1300, w.repairs)
    end)

    it("are given back for a worker that came and went between two looks", function()
        local clock = new_clock()
        local dict, ledger = new_dict(clock), new_dict(clock)
        local old = slots.new({ dict = dict, ledger = ledger, pid = 1 })
        for _ = 1, 3 do
            clock.now = clock.now + 1
            old:reap(all, clock.now)
        end
        slots.new({ dict = dict, ledger = ledger, pid = 2 }):acquire("a", 9, 4)
        clock.now = clock.now + 1
        assert.equal(4, old:reap(function(pid)
            return pid == 1
        end, clock.now))
        assert.equal(0, old:value("a"))
        assert.is_nil(ledger:peek("pid|2"))
    end)
end)
