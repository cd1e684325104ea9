-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local limiter = require("gw.limiter")
local slots = require("gw.slots")
local workers = require("workers")

local NAMES = { "b1/10", "r60/60", "t60/60", "d86400/60" }

-- A set of limits of which only the named ones exist.
local function tenant(limits, id)
    local all = { rpm = 0, burst_rps = 0, tpm = 0, tpd = 0, concurrency = 0 }
    for name, value in pairs(limits) do
        all[name] = value
    end
    return { id = id or "acme", tier = "pro", limits = all }
end

local function setup(options)
    options = options or {}
    local clock = { now = 1700000000 }
    local function dict(capacity)
        return workers.dict(clock, capacity)
    end
    local shared = {
        rate = dict(options.rate_capacity),
        conc = dict(options.conc_capacity),
        ledger = dict(),
    }
    local function worker(pid, windows)
        return limiter.new({
            rate = shared.rate,
            conc = shared.conc,
            ledger = shared.ledger,
            pid = pid or 1,
            windows = windows,
            rand = workers.random(pid or 1),
        })
    end
    return worker, clock, shared
end

-- All that a tenant is counted for: slots, burst, requests, tokens, tokens of a day.
local function use(w, who, now)
    return { w:use(who, now) }
end

describe("admission", function()
    it("counts a request everywhere, and a release and a settlement take their part away", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 10, burst_rps = 5, tpm = 1000, tpd = 5000, concurrency = 2 })
        local ticket = w:admit(who, 300, clock.now)
        assert.same({ 1, 1, 1, 300, 300 }, use(w, who, clock.now))
        assert.is_true(w:settle(ticket, 120, clock.now))
        assert.same({ 1, 1, 1, 120, 120 }, use(w, who, clock.now))
        assert.is_true(w:release(ticket))
        assert.same({ 0, 1, 1, 120, 120 }, use(w, who, clock.now))
    end)

    it("charges an answer that used more than was reserved", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ tpm = 1000, tpd = 5000 })
        local ticket = w:admit(who, 300, clock.now)
        w:settle(ticket, 450.2, clock.now + 1)
        assert.same({ 1, 0, 0, 451, 451 }, use(w, who, clock.now + 1))
    end)

    it("keeps the reservation when nobody knows what was used", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ tpm = 1000 })
        local ticket = w:admit(who, 300, clock.now)
        assert.is_true(w:settle(ticket, nil, clock.now))
        assert.equal(300, use(w, who, clock.now)[4])
        assert.is_false(w:settle(ticket, 1, clock.now))
        assert.equal(300, use(w, who, clock.now)[4])
    end)

    it("gives back everything when no engine worked", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 10, burst_rps = 5, tpm = 1000, tpd = 5000, concurrency = 2 })
        local ticket = w:admit(who, 300, clock.now)
        assert.is_true(w:abandon(ticket, clock.now))
        assert.same({ 1, 0, 0, 0, 0 }, use(w, who, clock.now))
        assert.is_true(w:release(ticket))
        assert.same({ 0, 0, 0, 0, 0 }, use(w, who, clock.now))
    end)

    it("does nothing twice, not even by a copy of the ticket", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 10, burst_rps = 5, tpm = 1000, tpd = 5000, concurrency = 5 })
        local other = w:admit(who, 100, clock.now)
        local before = limiter.pending()
        local ticket = w:admit(who, 300, clock.now)
        local copy = limiter.decode(limiter.encode(ticket))
        assert.is_true(w:settle(copy, 200, clock.now))
        assert.is_false(w:settle(ticket, 200, clock.now))
        assert.is_false(w:abandon(ticket, clock.now))
        assert.is_true(w:release(ticket))
        assert.is_false(w:release(copy))
        assert.is_false(w:release(ticket))
        assert.same({ 1, 2, 2, 300, 300 }, use(w, who, clock.now))
        assert.equal(before, limiter.pending())
        w:abandon(other, clock.now)
        assert.is_false(w:settle(other, 1, clock.now))
        w:release(other)
        assert.equal(before - 1, limiter.pending())
    end)

    it("has no limit where the limit is 0", function()
        local worker, clock, shared = setup()
        local w = worker()
        local who = tenant({})
        for _ = 1, 200 do
            assert.is_table(w:admit(who, 1000000, clock.now))
        end
        assert.same({ 200, 0, 0, 0, 0 }, use(w, who, clock.now))
        assert.equal(0, shared.rate.used)
    end)

    it("counts no tokens for a request that uses none", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 2, tpm = 10 })
        w:admit(who, 10, clock.now)
        assert.is_table(w:admit(who, 0, clock.now))
        assert.same({ 2, 0, 2, 10, 0 }, use(w, who, clock.now))
    end)
end)

describe("a refusal", function()
    -- Fill a limit, then be refused by it.
    local function refused(limits, tokens, times)
        local worker, clock = setup()
        local w = worker()
        local who = tenant(limits)
        for _ = 1, times do
            assert.is_table(w:admit(who, tokens, clock.now))
        end
        local before = use(w, who, clock.now)
        local ticket, rejection = w:admit(who, tokens, clock.now)
        assert.is_nil(ticket)
        assert.same(before, use(w, who, clock.now))
        -- The same from memory.
        local again, same = w:admit(who, tokens, clock.now)
        assert.is_nil(again)
        assert.equal(rejection.reason, same.reason)
        assert.same(before, use(w, who, clock.now))
        return rejection, same
    end

    local OTHERS = { rpm = 100, burst_rps = 100, tpm = 10000, tpd = 100000, concurrency = 100 }
    local function with(name, value)
        local limits = {}
        for key, other in pairs(OTHERS) do
            limits[key] = other
        end
        limits[name] = value
        return limits
    end

    it("by concurrency costs nothing and comes with a time that is spread out", function()
        local rejection = refused(with("concurrency", 2), 10, 2)
        assert.equal("concurrency", rejection.type)
        assert.equal("concurrency", rejection.reason)
        assert.equal(429, rejection.status)
        assert.is_true(rejection.retry_after >= 1 and rejection.retry_after <= 3)
        assert.equal(math.floor(rejection.retry_after), rejection.retry_after)
    end)

    it("by burst costs nothing", function()
        local rejection = refused(with("burst_rps", 3), 10, 3)
        assert.equal("requests", rejection.type)
        assert.equal("burst_rps", rejection.reason)
        assert.equal(2, rejection.retry_after)
    end)

    it("by requests costs nothing", function()
        local rejection, same = refused(with("rpm", 3), 10, 3)
        assert.equal("requests", rejection.type)
        assert.equal("rpm", rejection.reason)
        assert.equal(62, rejection.retry_after)
        assert.equal(62, same.retry_after)
        assert.truthy(rejection.message:find("3 requests in 60 s, 0 left, 1 needed", 1, true))
    end)

    it("by tokens costs nothing", function()
        local rejection = refused(with("tpm", 1000), 300, 3)
        assert.equal("tokens", rejection.type)
        assert.equal("tpm", rejection.reason)
        assert.truthy(rejection.message:find("1000 tokens in 60 s, 100 left, 300 needed", 1, true))
    end)

    it("by tokens of a day costs nothing", function()
        local rejection = refused(with("tpd", 1000), 300, 3)
        assert.equal("tokens", rejection.type)
        assert.equal("tpd", rejection.reason)
        assert.is_true(rejection.retry_after >= 86400)
    end)

    it("of what never fits comes without a time", function()
        local worker, clock = setup()
        local w = worker()
        for _, limits in ipairs({ { tpm = 100 }, { tpd = 100 } }) do
            local who = tenant(limits)
            local ticket, rejection = w:admit(who, 101, clock.now)
            assert.is_nil(ticket)
            assert.equal("too_large", rejection.reason)
            assert.equal("tokens", rejection.type)
            assert.is_nil(rejection.retry_after)
            assert.same({ 0, 0, 0, 0, 0 }, use(w, who, clock.now))
            ticket = w:admit(who, 100, clock.now)
            assert.is_table(ticket)
            w:abandon(ticket, clock.now)
            w:release(ticket)
        end
    end)

    it("says no other time than the one after which it is admitted", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 2 })
        clock.now = clock.now + 0.3
        w:admit(who, 0, clock.now)
        clock.now = clock.now + 10
        w:admit(who, 0, clock.now)
        local _, rejection = w:admit(who, 0, clock.now)
        clock.now = clock.now + rejection.retry_after - 2
        assert.is_nil((w:admit(who, 0, clock.now)))
        clock.now = clock.now + 2
        assert.is_table(w:admit(who, 0, clock.now))
    end)

    it("from memory is one read, and ends with a refund", function()
        local worker, clock, shared = setup()
        local w = worker()
        local who = tenant({ rpm = 100, burst_rps = 50, tpm = 1000, concurrency = 50 })
        local ticket = w:admit(who, 900, clock.now)
        assert.is_nil((w:admit(who, 200, clock.now)))
        local function operations()
            return shared.rate.operations + shared.conc.operations + shared.ledger.operations
        end
        local before = operations()
        local _, rejection = w:admit(who, 200, clock.now)
        assert.equal("tpm", rejection.reason)
        assert.equal(1, operations() - before)
        -- One that needs less is admitted in between, and so is the same one after a refund.
        local small = w:admit(who, 100, clock.now)
        assert.is_table(small)
        assert.is_nil((w:admit(who, 200, clock.now)))
        w:settle(ticket, 100, clock.now)
        assert.is_table(w:admit(who, 200, clock.now))
    end)

    it("is of one tenant", function()
        local worker, clock = setup()
        local w = worker()
        w:admit(tenant({ rpm = 1 }, "a"), 0, clock.now)
        assert.is_nil((w:admit(tenant({ rpm = 1 }, "a"), 0, clock.now)))
        assert.is_table(w:admit(tenant({ rpm = 1 }, "b"), 0, clock.now))
    end)

    it("remembers a bounded number of tenants", function()
        local worker, clock = setup()
        local w = worker()
        for i = 1, 5000 do
            local who = tenant({ tpm = 10 }, "t" .. i)
            w:admit(who, 10, clock.now)
            assert.is_nil((w:admit(who, 10, clock.now)))
        end
        local count = 0
        for _ in pairs(w.refused_until) do
            count = count + 1
        end
        assert.equal(count, w.refused_count)
        assert.is_true(count <= 4096 and count > 0)
    end)

    it("is what a full dict makes of every request, with 503", function()
        local worker, clock = setup({ rate_capacity = 2 })
        local w = worker()
        local who = tenant({ rpm = 10, concurrency = 5 })
        local ticket, rejection = w:admit(who, 0, clock.now)
        assert.is_nil(ticket)
        assert.equal(503, rejection.status)
        assert.equal("memory", rejection.reason)
        assert.equal(1, rejection.retry_after)
        assert.equal(0, w.slots:value("c:acme"))
        assert.equal(1, (w:health()))

        worker = setup({ conc_capacity = 1 })
        w = worker()
        assert.is_table(w:admit(tenant({}, "a"), 0, clock.now))
        ticket, rejection = w:admit(tenant({ concurrency = 5 }, "b"), 0, clock.now)
        assert.is_nil(ticket)
        assert.equal("memory", rejection.reason)
    end)
end)

describe("a ticket", function()
    it("is the same after it was a string", function()
        local worker, clock = setup()
        local w = worker()
        local all = { rpm = 10, burst_rps = 5, tpm = 100000000000, tpd = 10000000000000, concurrency = 5 }
        for i, limits in ipairs({ all, {}, { tpm = 5000000000 }, { rpm = 7 } }) do
            local ticket = w:admit(tenant(limits, "a-b.c_d:e" .. i), 4123456789, clock.now)
            local text = limiter.encode(ticket)
            assert.is_true(#text < 120)
            assert.is_nil(text:find("[^%w:._-]"))
            assert.same(ticket, limiter.decode(text))
        end
    end)

    it("is nothing else", function()
        for _, text in ipairs({ "", "x", "1:2:3", "1:2:-:-:-:-:", ":2:-:-:-:-:a", "1:x:-:-:-:-:a" }) do
            local ticket, sentence = limiter.decode(text)
            assert.is_nil(ticket, text)
            assert.equal("not a ticket", sentence)
        end
        assert.is_nil((limiter.decode(nil)))
    end)

    it("outlives a change of the configuration", function()
        local worker, clock, shared = setup()
        local old = worker(1)
        local who = tenant({ rpm = 10, tpm = 1000, concurrency = 2 })
        local ticket = old:admit(who, 300, clock.now)
        local new = limiter.new({ rate = shared.rate, slots = old.slots, windows = { requests_s = 30, tokens_s = 30 } })
        assert.is_true(new:settle(ticket, 100, clock.now))
        assert.is_true(new:release(ticket))
        assert.equal(0, new.slots:value("c:acme"))
        -- Buckets of another length are another counter, from which nothing is taken away.
        assert.same({ 0, 0, 0, 0, 0 }, use(new, who, clock.now))
    end)
end)

describe("several workers", function()
    -- A storm over all limits at one moment: every request is admitted or costs nothing.
    it("together admit no more than any limit, and all of the tightest", function()
        for seed = 1, 120 do
            local worker, clock, shared = setup()
            local rand = workers.random(seed)
            local tight = seed % 4
            local limits = {
                concurrency = tight == 0 and 7 or 100,
                burst_rps = tight == 1 and 7 or 90,
                rpm = tight == 2 and 7 or 80,
                tpm = tight == 3 and 75 or 1000,
                tpd = 2000,
            }
            local who = tenant(limits)
            local fleet, tickets, bodies = {}, {}, {}
            for index = 1, 4 do
                fleet[index] = worker(index)
                bodies[index] = function()
                    for _ = 1, 8 do
                        local ticket = fleet[index]:admit(who, 10, clock.now)
                        if ticket then
                            tickets[#tickets + 1] = { ticket, index }
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            assert.is_true(#tickets <= 7, "seed " .. seed .. ": " .. #tickets)
            for _ = 1, 8 do
                local ticket = fleet[1]:admit(who, 10, clock.now)
                if ticket then
                    tickets[#tickets + 1] = { ticket, 1 }
                end
            end
            assert.equal(7, #tickets, "seed " .. seed)
            assert.same({ 7, 7, 7, 70, 70 }, use(fleet[1], who, clock.now), "seed " .. seed)
            -- Each in its own worker, interleaved again.
            bodies = {}
            for index = 1, 4 do
                bodies[index] = function()
                    for _, pair in ipairs(tickets) do
                        if pair[2] == index then
                            assert(fleet[index]:settle(pair[1], 4, clock.now))
                            assert(fleet[index]:release(pair[1]))
                            assert(not fleet[index]:settle(pair[1], 4, clock.now))
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            assert.same({ 0, 7, 7, 28, 28 }, use(fleet[2], who, clock.now), "seed " .. seed)
            for key in pairs(shared.ledger.items) do
                assert.is_nil(key:match("^%d+|"), key)
            end
        end
    end)

    -- Tokens that were really used never exceed the limit in any window, though nobody knows them before.
    it("never use more tokens than the limit in any window, and most of it", function()
        for seed = 1, 12 do
            local worker, clock = setup()
            local rand = workers.random(seed)
            local who = tenant({ tpm = 1000 })
            local used, bodies, busy = {}, {}, 0
            for index = 1, 3 do
                local w = worker(index, { requests_s = 4, tokens_s = 4, buckets = 8 })
                -- Workers that stand still for seconds in the middle of a step are not what the bound is for.
                w.backends[3].slack = 3
                bodies[index] = function()
                    for _ = 1, 250 do
                        clock.now = clock.now + rand() * 0.03
                        local now = clock.now
                        local ticket = w:admit(who, 100, now)
                        if ticket then
                            busy = busy + 1
                            local actual = math.floor(rand() * 100) + 1
                            used[#used + 1] = { now, actual }
                            coroutine.yield()
                            w:settle(ticket, actual, clock.now)
                            w:release(ticket)
                        end
                    end
                end
            end
            workers.run(bodies, rand)
            table.sort(used, function(a, b)
                return a[1] < b[1]
            end)
            local first, sum, most = 1, 0, 0
            for last = 1, #used do
                sum = sum + used[last][2]
                while used[last][1] - used[first][1] >= 4 do
                    sum = sum - used[first][2]
                    first = first + 1
                end
                most = math.max(most, sum)
            end
            assert.is_true(most <= 1000, "seed " .. seed .. ": " .. most)
            assert.is_true(most >= 850, "seed " .. seed .. ": " .. most)
            assert.is_true(busy > 30)
        end
    end)

    it("lose no slot when one of them is killed at any operation of a request", function()
        local after
        for step = 0, 120 do
            local worker, clock = setup()
            local who = tenant({ rpm = 100, burst_rps = 50, tpm = 1000, tpd = 5000, concurrency = 3 })
            local dead, living = worker(1), worker(2)
            local killed = false
            workers.run({
                function()
                    local ticket = dead:admit(who, 100, clock.now)
                    dead:settle(ticket, 60, clock.now)
                    dead:release(ticket)
                end,
            }, workers.random(1), function(_, steps)
                killed = killed or steps == step
                return steps == step
            end)
            for _ = 1, 8 do
                clock.now = clock.now + 6
                living.slots:reap(function(pid)
                    return pid == 2
                end)
            end
            assert.equal(0, living.slots:value("c:acme"), "killed after " .. step)
            for _ = 1, 3 do
                assert.is_table(living:admit(who, 10, clock.now))
            end
            assert.is_nil((living:admit(who, 10, clock.now)))
            if not killed then
                after = step
                break
            end
        end
        assert.is_true(after ~= nil and after > 20, tostring(after))
    end)
end)

describe("what a client sees", function()
    it("are the headers of the OpenAI API", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ rpm = 100, tpm = 40000, tpd = 1000000 })
        w:admit(who, 1500, clock.now)
        local out = {}
        assert.equal(out, w:headers(who, clock.now, out))
        assert.same({
            ["x-ratelimit-limit-requests"] = "100",
            ["x-ratelimit-remaining-requests"] = "99",
            ["x-ratelimit-reset-requests"] = "1m2s",
            ["x-ratelimit-limit-tokens"] = "40000",
            ["x-ratelimit-remaining-tokens"] = "38500",
            ["x-ratelimit-reset-tokens"] = "1m2s",
        }, out)
        clock.now = clock.now + 30
        w:headers(who, clock.now, out)
        assert.equal("31.05s", out["x-ratelimit-reset-tokens"])
        clock.now = clock.now + 40
        w:headers(who, clock.now, out)
        assert.equal("40000", out["x-ratelimit-remaining-tokens"])
        assert.equal("0s", out["x-ratelimit-reset-requests"])
    end)

    it("has the tokens of a day when there is no other limit of tokens, and nothing without limits", function()
        local worker, clock = setup()
        local w = worker()
        local out = w:headers(tenant({ tpd = 10000000000 }), clock.now, {})
        assert.same({
            ["x-ratelimit-limit-tokens"] = "10000000000",
            ["x-ratelimit-remaining-tokens"] = "10000000000",
            ["x-ratelimit-reset-tokens"] = "0s",
        }, out)
        assert.same({}, w:headers(tenant({}), clock.now, {}))
    end)

    it("is the same for a request that was admitted just now, without looking", function()
        local worker, clock, shared = setup()
        local w = worker()
        for i, limits in ipairs({
            { rpm = 100, tpm = 40000, tpd = 1000000 }, { tpd = 5000 }, { rpm = 7, burst_rps = 3 }, { tpm = 3000 }, {},
        }) do
            local who = tenant(limits, "t" .. i)
            for _ = 1, 2 do
                clock.now = clock.now + 0.3
                local ticket = w:admit(who, i == 4 and 0 or 1500, clock.now)
                local before = shared.rate.operations
                local found = w:headers(who, clock.now, {}, ticket)
                if i ~= 4 then
                    assert.equal(before, shared.rate.operations)
                end
                assert.same(w:headers(who, clock.now, {}), found)
            end
        end
        -- A later request has changed what is left: that of an earlier one is read.
        local who = tenant({ rpm = 10 }, "later")
        local first = w:admit(who, 1, clock.now)
        w:admit(who, 1, clock.now)
        assert.equal("8", w:headers(who, clock.now, {}, first)["x-ratelimit-remaining-requests"])
    end)

    it("never has less than nothing left", function()
        local worker, clock = setup()
        local w = worker()
        local who = tenant({ tpm = 100 })
        w:settle(w:admit(who, 100, clock.now), 900, clock.now)
        assert.equal("0", w:headers(who, clock.now, {})["x-ratelimit-remaining-tokens"])
    end)

    it("reads times as Go writes them", function()
        local cases = {
            { 0, "0s" }, { -3, "0s" }, { 0.0001, "1ms" }, { 0.02, "20ms" }, { 0.9999, "1s" }, { 1, "1s" },
            { 1.234, "1.234s" }, { 1.2341, "1.235s" }, { 59.7, "59.7s" }, { 59.9999, "1m0s" }, { 60, "1m0s" },
            { 360, "6m0s" }, { 360.2, "6m1s" }, { 3599.5, "1h0m0s" }, { 3605, "1h0m5s" }, { 86400, "24h0m0s" },
        }
        for _, case in ipairs(cases) do
            assert.equal(case[2], limiter.duration(case[1]))
        end
    end)
end)

describe("the shared dict", function()
    it("is swept by one worker when it fills up", function()
        local worker, clock, shared = setup({ rate_capacity = 60 })
        local a, b = worker(1), worker(2)
        -- Something that lives at the cold end keeps nginx from freeing what is behind it.
        shared.rate:set("cold", 1)
        assert.equal(0, a:tick())
        for i = 1, 16 do
            a:admit(tenant({ rpm = 5 }, "t" .. i), 0, clock.now)
        end
        clock.now = clock.now + 1000
        assert.is_true(shared.rate.used > 45)
        assert.is_true(a:tick() >= 48)
        assert.equal(0, b:tick())
        assert.equal(2, shared.rate.used)
    end)

    it("has keys named after the kind and length of a window", function()
        local worker, clock, shared = setup()
        local w = worker()
        w:admit(tenant({ rpm = 10, burst_rps = 5, tpm = 1000, tpd = 5000 }), 10, clock.now)
        for _, name in ipairs(NAMES) do
            assert.is_number(shared.rate:peek(name .. ":acme:e"), name)
        end
    end)
end)

describe("another backend", function()
    it("takes the place of the windows, with the same calls", function()
        local calls = {}
        local function fake(name, refuse)
            return {
                take = function(_, key, cost, limit, now)
                    calls[#calls + 1] = table.concat({ name, "take", key, cost, limit, now }, " ")
                    if refuse then
                        return false, 7.5, 3
                    end
                    return true, 42, limit - cost
                end,
                give = function(_, key, bucket, amount, now)
                    calls[#calls + 1] = table.concat({ name, "give", key, bucket, amount, now }, " ")
                    return amount
                end,
            }
        end
        local _, clock, shared = setup()
        clock.now = 5
        local w = limiter.new({
            slots = slots.new({ dict = shared.conc, ledger = shared.ledger, pid = 1 }),
            backends = { fake("b"), fake("r"), fake("t"), fake("d", true) },
        })
        local who = tenant({ burst_rps = 1, rpm = 2, tpm = 30, tpd = 40 })
        local ticket, rejection = w:admit(who, 9, clock.now)
        assert.is_nil(ticket)
        assert.equal("tpd", rejection.reason)
        assert.equal(8, rejection.retry_after)
        assert.same({
            "b take acme 1 1 5", "r take acme 1 2 5", "t take acme 9 30 5", "d take acme 9 40 5",
            "t give acme 42 9 5", "r give acme 42 1 5", "b give acme 42 1 5",
        }, calls)
        assert.equal(0, w:tick())
    end)
end)
