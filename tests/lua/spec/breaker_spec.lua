-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local breaker = require("gw.breaker")
local workers = require("workers")

local CONF = {
    window_s = 10,
    min_requests = 20,
    error_rate = 0.5,
    consecutive = 5,
    open_base_s = 4,
    open_max_s = 32,
    half_open_probes = 2,
    success_needed = 3,
}

local function with(changes)
    local conf = {}
    for name, value in pairs(CONF) do
        conf[name] = value
    end
    for name, value in pairs(changes or {}) do
        conf[name] = value
    end
    return conf
end

local function zero()
    return 0
end

-- A clock, a dict and a function that makes a breaker as another worker has it.
local function setup(conf, rand)
    local clock = { now = 1000 }
    local dict = workers.dict(clock)
    local log = {}
    local function worker()
        return breaker.new({
            dict = dict,
            rand = rand or zero,
            conf = conf or CONF,
            on_transition = function(peer, to, from, now, kind)
                log[#log + 1] = { peer = peer, from = from, to = to, now = now, kind = kind }
            end,
        })
    end
    return worker, clock, dict, log
end

local function fail(b, clock, times)
    for _ = 1, times do
        local ok, probe, generation = b:allow("gpu1", clock.now)
        assert.is_true(ok)
        b:report("gpu1", false, "connect", clock.now, probe, generation)
    end
end

local function succeed(b, clock, times)
    for _ = 1, times do
        local ok, probe, generation = b:allow("gpu1", clock.now)
        assert.is_true(ok)
        b:report("gpu1", true, "answered", clock.now, probe, generation)
    end
end

describe("closed", function()
    it("lets everything pass, and says so", function()
        local worker, clock = setup()
        local b = worker()
        local ok, probe, generation = b:allow("gpu1", clock.now)
        assert.is_true(ok)
        assert.is_false(probe)
        assert.equal(0, generation)
        assert.equal("closed", (b:state("gpu1", clock.now)))
        assert.equal("closed", (b:peek("gpu1", clock.now)))
    end)

    it("opens at so many failures on end, and not at one less", function()
        local worker, clock, _, log = setup()
        local b = worker()
        fail(b, clock, 4)
        assert.is_true((b:allow("gpu1", clock.now)))
        fail(b, clock, 1)
        local ok, till = b:allow("gpu1", clock.now)
        assert.is_false(ok)
        assert.equal(1004, till)
        assert.same({ { peer = "gpu1", from = "closed", to = "open", now = 1000, kind = "connect" } }, log)
        assert.is_true((b:allow("gpu2", clock.now)))
    end)

    it("begins to count anew after a success", function()
        local worker, clock = setup()
        local b = worker()
        fail(b, clock, 4)
        succeed(b, clock, 1)
        fail(b, clock, 4)
        assert.equal("closed", (b:state("gpu1", clock.now)))
        fail(b, clock, 1)
        assert.equal("open", (b:state("gpu1", clock.now)))
    end)

    it("forgets a run of failures that is an hour old", function()
        local worker, clock = setup()
        local b = worker()
        fail(b, clock, 4)
        clock.now = clock.now + 3600
        fail(b, clock, 4)
        assert.equal("closed", (b:state("gpu1", clock.now)))
    end)

    it("opens at a rate of failures only with enough requests", function()
        local worker, clock = setup(with({ consecutive = 0 }))
        local b = worker()
        fail(b, clock, 9)
        succeed(b, clock, 9)
        fail(b, clock, 1)
        assert.equal("closed", (b:state("gpu1", clock.now)))
        fail(b, clock, 1)
        assert.equal("open", (b:state("gpu1", clock.now)))
    end)

    it("stays closed below the rate", function()
        local worker, clock = setup(with({ consecutive = 0 }))
        local b = worker()
        succeed(b, clock, 100)
        fail(b, clock, 99)
        assert.equal("closed", (b:state("gpu1", clock.now)))
        fail(b, clock, 1)
        assert.equal("open", (b:state("gpu1", clock.now)))
    end)

    it("looks back no further than the window", function()
        local worker, clock = setup(with({ consecutive = 0 }))
        local b = worker()
        fail(b, clock, 19)
        clock.now = clock.now + 9
        fail(b, clock, 1)
        assert.equal("open", (b:state("gpu1", clock.now)))
        worker, clock = setup(with({ consecutive = 0 }))
        b = worker()
        fail(b, clock, 19)
        clock.now = clock.now + 10
        fail(b, clock, 1)
        assert.equal("closed", (b:state("gpu1", clock.now)))
    end)

    it("counts nothing for an end that says nothing", function()
        local worker, clock = setup()
        local b = worker()
        fail(b, clock, 4)
        b:report("gpu1", nil, "client_gone", clock.now, false, 0)
        fail(b, clock, 1)
        assert.equal("open", (b:state("gpu1", clock.now)))
    end)

    it("counts the results of all workers", function()
        local worker, clock = setup()
        local a, b = worker(), worker()
        fail(a, clock, 3)
        fail(b, clock, 2)
        assert.is_false((a:allow("gpu1", clock.now)))
        assert.is_false((b:allow("gpu1", clock.now)))
    end)
end)

describe("open", function()
    it("doubles its time with each trip, up to a bound", function()
        local worker, clock = setup()
        local b = worker()
        local times = {}
        fail(b, clock, 5)
        for _ = 1, 6 do
            local _, till, trips = b:state("gpu1", clock.now)
            times[#times + 1] = till - clock.now
            assert.equal(#times, trips)
            clock.now = till
            fail(b, clock, 1)
        end
        assert.same({ 4, 8, 16, 32, 32, 32 }, times)
    end)

    it("takes up to a tenth off by chance and never exceeds the bound", function()
        local rand = workers.random(7)
        local low, high = math.huge, 0
        for _ = 1, 200 do
            local worker, clock = setup(with({ open_base_s = 100, open_max_s = 100 }), rand)
            local b = worker()
            fail(b, clock, 5)
            local _, till = b:state("gpu1", clock.now)
            low, high = math.min(low, till - clock.now), math.max(high, till - clock.now)
        end
        assert.is_true(low >= 90 and low < 91, tostring(low))
        assert.is_true(high <= 100 and high > 99, tostring(high))
    end)

    it("begins with the short time after it was closed for long", function()
        for _, case in ipairs({ { 32, 8 }, { 32.125, 4 } }) do
            local worker, clock = setup()
            local b = worker()
            fail(b, clock, 5)
            clock.now = clock.now + 4
            succeed(b, clock, 3)
            assert.equal("closed", (b:state("gpu1", clock.now)))
            clock.now = clock.now + case[1]
            fail(b, clock, 5)
            local _, till = b:state("gpu1", clock.now)
            assert.equal(case[2], till - clock.now)
        end
    end)

    it("ignores results of requests that began before", function()
        local worker, clock = setup()
        local b = worker()
        local _, probe, generation = b:allow("gpu1", clock.now)
        fail(b, clock, 5)
        clock.now = clock.now + 4
        succeed(b, clock, 2)
        b:report("gpu1", true, "answered", clock.now, probe, generation)
        assert.equal("half_open", (b:state("gpu1", clock.now)))
        b:report("gpu1", false, "reset", clock.now, probe, generation)
        assert.equal("half_open", (b:state("gpu1", clock.now)))
        succeed(b, clock, 1)
        for _ = 1, 10 do
            b:report("gpu1", false, "reset", clock.now, probe, generation)
        end
        assert.equal("closed", (b:state("gpu1", clock.now)))
    end)
end)

describe("half open", function()
    local function half_open(conf)
        local worker, clock, dict, log = setup(conf)
        local b = worker()
        fail(b, clock, 5)
        clock.now = clock.now + 4
        return b, clock, worker, dict, log
    end

    it("gives so many probes at once, and another when one is back", function()
        local b, clock, worker = half_open()
        local other = worker()
        b:refresh(clock.now)
        assert.equal("probe", (b:peek("gpu1", clock.now)))
        local ok1, probe1, generation = b:allow("gpu1", clock.now)
        local ok2, probe2 = other:allow("gpu1", clock.now)
        assert.is_true(ok1 and ok2)
        assert.is_truthy(probe1)
        assert.is_truthy(probe2)
        assert.equal(2, generation)
        local ok3, till = b:allow("gpu1", clock.now)
        assert.is_false(ok3)
        assert.is_true(till > clock.now)
        b:report("gpu1", nil, "client_gone", clock.now, probe1, generation)
        assert.is_true((other:allow("gpu1", clock.now)))
        assert.is_false((other:allow("gpu1", clock.now)))
    end)

    it("closes after so many successes and tells since when", function()
        local b, clock, _, _, log = half_open()
        succeed(b, clock, 2)
        assert.equal("half_open", (b:state("gpu1", clock.now)))
        clock.now = clock.now + 0.5
        succeed(b, clock, 1)
        local state, till, trips, generation = b:state("gpu1", clock.now)
        assert.is_nil(till)
        assert.same({ "closed", 1, 3 }, { state, trips, generation })
        assert.equal(1004.5, b:warm_since("gpu1", clock.now))
        assert.equal("half_open", log[2].to)
        assert.equal("closed", log[3].to)
    end)

    it("opens again at one failure", function()
        local b, clock = half_open()
        succeed(b, clock, 2)
        fail(b, clock, 1)
        local state, till, trips = b:state("gpu1", clock.now)
        assert.same({ "open", clock.now + 8, 2 }, { state, till, trips })
    end)

    it("takes a lost probe back after a bound", function()
        local b, clock = half_open(with({ probe_s = 30 }))
        assert.is_true((b:allow("gpu1", clock.now)))
        assert.is_true((b:allow("gpu1", clock.now)))
        clock.now = clock.now + 29.9
        assert.is_false((b:allow("gpu1", clock.now)))
        clock.now = clock.now + 0.1
        assert.is_true((b:allow("gpu1", clock.now)))
    end)

    it("does not count results of requests that are no probes", function()
        local b, clock = half_open()
        b:allow("gpu1", clock.now)
        for _ = 1, 10 do
            b:report("gpu1", false, "reset", clock.now, false, nil)
        end
        assert.equal("half_open", (b:state("gpu1", clock.now)))
        for _ = 1, 10 do
            b:report("gpu1", true, "answered", clock.now, false, nil)
        end
        assert.equal("half_open", (b:state("gpu1", clock.now)))
    end)

    it("starts no probe if it ends while the probe is taken", function()
        local b, clock, worker, dict = half_open()
        local _, first, generation = b:allow("gpu1", clock.now)
        local other, add, done = worker(), dict.add, false
        function dict.add(self, key, ...)
            if key:find("^bp:") and not done then
                done = true
                other:report("gpu1", false, "connect", clock.now, first, generation)
            end
            return add(self, key, ...)
        end
        local ok, till = b:allow("gpu1", clock.now)
        assert.is_true(done)
        assert.is_false(ok)
        assert.near(clock.now + 8, till, 0.001)
        for place = 1, 2 do
            assert.is_nil(dict:peek("bp:gpu1:" .. place))
        end
    end)

    it("does not give away a place twice when a probe reports after its bound", function()
        local b, clock = half_open(with({ probe_s = 30, half_open_probes = 1 }))
        local _, late, generation = b:allow("gpu1", clock.now)
        clock.now = clock.now + 30
        assert.is_true((b:allow("gpu1", clock.now)))
        b:report("gpu1", nil, "client_gone", clock.now, late, generation)
        assert.is_false((b:allow("gpu1", clock.now)))
    end)

    it("knows each of very many probes", function()
        local b, clock = half_open(with({ half_open_probes = 1000, success_needed = 5000 }))
        local probes = {}
        for i = 1, 1000 do
            local ok, probe, generation = b:allow("gpu1", clock.now)
            assert.is_true(ok)
            probes[i] = { probe, generation }
        end
        assert.is_false((b:allow("gpu1", clock.now)))
        for _, one in ipairs(probes) do
            b:report("gpu1", true, "ok", clock.now, one[1], one[2])
        end
        for _ = 1, 1000 do
            assert.is_true((b:allow("gpu1", clock.now)))
        end
        assert.is_false((b:allow("gpu1", clock.now)))
    end)

    it("counts a probe of an earlier half-open time that is still under way", function()
        local b, clock = half_open()
        local _, slow, generation = b:allow("gpu1", clock.now)
        fail(b, clock, 1)
        clock.now = clock.now + 8
        assert.is_true((b:allow("gpu1", clock.now)))
        assert.is_false((b:allow("gpu1", clock.now)))
        b:report("gpu1", true, "answered", clock.now, slow, generation)
        assert.is_true((b:allow("gpu1", clock.now)))
    end)
end)

describe("pause", function()
    it("keeps requests away for a time and is no failure", function()
        local worker, clock = setup()
        local a, b = worker(), worker()
        a:back_off("gpu1", 2, clock.now)
        local ok, till = b:allow("gpu1", clock.now)
        assert.same({ false, 1002 }, { ok, till })
        assert.equal("no", (b:peek("gpu1", clock.now)))
        assert.equal("closed", (b:state("gpu1", clock.now)))
        clock.now = 1002
        assert.is_true((b:allow("gpu1", clock.now)))
    end)

    it("is never made shorter, never negative, and never longer than the longest time that a breaker is open", function()
        local worker, clock = setup()
        local b = worker()
        b:back_off("gpu1", 1e9, clock.now)
        b:back_off("gpu1", 1, clock.now)
        local _, till = b:allow("gpu1", clock.now)
        assert.equal(1032, till)
        b:back_off("gpu2", -1, clock.now)
        b:back_off("gpu2", 0, clock.now)
        assert.is_true((b:allow("gpu2", clock.now)))
    end)
end)

describe("a breaker", function()
    it("can be closed by hand, and a pause stays", function()
        local worker, clock = setup()
        local a, b = worker(), worker()
        fail(a, clock, 5)
        a:back_off("gpu1", 3, clock.now)
        assert.is_true(b:reset("gpu1", clock.now))
        assert.is_false(b:reset("gpu1", clock.now))
        assert.equal("closed", (a:state("gpu1", clock.now)))
        assert.is_false((a:allow("gpu1", clock.now)))
        clock.now = clock.now + 3
        assert.is_true((a:allow("gpu1", clock.now)))
        local _, _, trips = a:state("gpu1", clock.now)
        assert.equal(0, trips)
    end)

    it("is closed when its dict lost everything, and counts what the dict refuses", function()
        local worker, clock, dict = setup()
        local b = worker()
        dict:delete("bs:gpu1")
        assert.is_true((b:allow("gpu1", clock.now)))
        dict.incr = function()
            return nil, "no memory"
        end
        b:report("gpu1", false, "connect", clock.now, false, 0)
        assert.equal(1, b.failures)
        b:report("gpu1", true, "ok", clock.now, false, 0)
        assert.equal(2, b.failures)
        dict.set = dict.incr
        b:back_off("gpu1", 1, clock.now)
        -- The pause itself, and the number by which others notice.
        assert.equal(4, b.failures)
    end)

    it("treats a state that nobody could have written as none", function()
        local worker, clock, dict = setup()
        dict:set("bs:gpu1", "nonsense")
        assert.is_true((worker():allow("gpu1", clock.now)))
    end)

    it("says without taking a probe what allow would say", function()
        local worker, clock = setup()
        local b = worker()
        local function peek()
            b:refresh(clock.now)
            return b:peek("gpu1", clock.now)
        end
        assert.equal("closed", peek())
        fail(b, clock, 5)
        assert.equal("no", peek())
        clock.now = clock.now + 3.9
        assert.equal("no", peek())
        clock.now = clock.now + 0.1
        for _ = 1, 5 do
            assert.equal("probe", peek())
        end
        assert.is_true((b:allow("gpu1", clock.now)))
        assert.is_true((b:allow("gpu1", clock.now)))
        assert.is_false((b:allow("gpu1", clock.now)))
    end)

    it("sees a change within a second even if the worker that made it died before it told the others", function()
        local worker, clock, dict = setup()
        local b = worker()
        b:refresh(clock.now)
        assert.equal("closed", b:peek("gpu1", clock.now))
        dict:set("bs:gpu1", "1 o 2000.000 1 1000.000")
        b:refresh(clock.now + 0.9)
        assert.equal("closed", b:peek("gpu1", clock.now + 0.9))
        b:refresh(clock.now + 1)
        assert.equal("no", b:peek("gpu1", clock.now + 1))
    end)

    it("says which result changed it", function()
        local worker, clock = setup()
        local b = worker()
        for i = 1, 5 do
            assert.equal(i == 5, b:report("gpu1", false, "reset", clock.now, false, 0))
        end
        clock.now = clock.now + 4
        for i = 1, 3 do
            local _, probe, generation = b:allow("gpu1", clock.now)
            assert.equal(i == 3, b:report("gpu1", true, "ok", clock.now, probe, generation))
        end
    end)

    it("starts an engine slowly that came back for another reason", function()
        local worker, clock = setup()
        local a, b = worker(), worker()
        assert.is_nil(b:warm_since("gpu1", clock.now))
        a:warm_up("gpu1", clock.now)
        clock.now = clock.now + 1
        b:refresh(clock.now)
        assert.equal(1000, b:warm_since("gpu1", clock.now))
        -- The later of the two counts; half-open, it is as new as can be.
        fail(b, clock, 5)
        clock.now = clock.now + 4
        assert.is_true((b:allow("gpu1", clock.now)))
        assert.equal(clock.now, b:warm_since("gpu1", clock.now))
        succeed(b, clock, 3)
        assert.equal(clock.now, b:warm_since("gpu1", clock.now + 9))
    end)

    it("knows what an answer says about an engine", function()
        local cases = {
            { true, "ok", 200 },
            { nil, "client", 400 },
            { nil, "client", 499 },
            { nil, "client", 200, "client" },
            { nil, "client", nil, "client" },
            { nil, "rejected", 429 },
            { nil, "rejected", 503, "rejected" },
            { false, "status", 503 },
            { false, "status", 500 },
            { false, "status", 502 },
            { false, "timeout", 504 },
            { false, "stall", 200, "stall" },
            { false, "stream_error", 200, "stream_error" },
            { false, "connect", nil, "connect" },
            { false, "timeout", nil, "timeout" },
            { false, "reset", nil },
        }
        for _, case in ipairs(cases) do
            local ok, kind = breaker.verdict(case[3], case[4])
            assert.equal(case[1], ok, tostring(case[3]))
            assert.equal(case[2], kind)
        end
    end)
end)

-- The same rules once more, from lists of results instead of counters.
local function model(conf, probe_s)
    local m = { state = "closed", generation = 0, trips = 0, till = 0, results = {}, run = {}, probes = {}, good = 0 }

    local function move(to, now)
        m.state, m.since, m.generation = to, now, m.generation + 1
        m.results, m.run, m.good = {}, {}, 0
    end

    local function trip(now)
        if m.state == "closed" and m.since and now - m.since > conf.open_max_s then
            m.trips = 0
        end
        m.trips = m.trips + 1
        local time = conf.open_base_s
        for _ = 2, m.trips do
            time = math.min(conf.open_max_s, time * 2)
        end
        move("open", now)
        m.till = now + time
    end

    function m.allow(now)
        if m.state == "open" then
            if now < m.till then
                return false
            end
            move("half_open", now)
        end
        if m.state == "closed" then
            return true, nil, m.generation
        end
        local busy = 0
        for _, probe in ipairs(m.probes) do
            if not probe.free and now < probe.ends then
                busy = busy + 1
            end
        end
        if busy >= conf.half_open_probes then
            return false
        end
        local probe = { ends = now + probe_s }
        m.probes[#m.probes + 1] = probe
        return true, probe, m.generation
    end

    function m.report(ok, now, probe, generation)
        if probe and now < probe.ends then
            probe.free = true
        end
        if ok == nil or generation ~= m.generation then
            return
        end
        if m.state == "half_open" then
            if not ok then
                trip(now)
            else
                m.good = m.good + 1
                if m.good >= conf.success_needed then
                    move("closed", now)
                end
            end
            return
        end
        m.results[#m.results + 1] = { at = math.floor(now / (conf.window_s / 10)), ok = ok }
        if ok then
            m.run = {}
            return
        end
        if m.run.first and now - m.run.first >= 3600 then
            m.run = {}
        end
        m.run.first = m.run.first or now
        m.run.length = (m.run.length or 0) + 1
        local all, failed = 0, 0
        for _, result in ipairs(m.results) do
            if result.at > math.floor(now / (conf.window_s / 10)) - 10 then
                all = all + 1
                failed = failed + (result.ok and 0 or 1)
            end
        end
        if conf.consecutive > 0 and m.run.length >= conf.consecutive then
            trip(now)
        elseif all >= conf.min_requests and failed / all >= conf.error_rate then
            trip(now)
        end
    end
    return m
end

describe("random results", function()
    it("lead through the states of the model", function()
        local seen = { closed = 0, open = 0, half_open = 0 }
        for seed = 1, 120 do
            local rand = workers.random(seed)
            local conf = with({
                window_s = 2 + math.floor(rand() * 6),
                min_requests = 3 + math.floor(rand() * 12),
                error_rate = 0.25 + 0.25 * math.floor(rand() * 3),
                consecutive = math.floor(rand() * 6),
                half_open_probes = 1 + math.floor(rand() * 3),
                success_needed = 1 + math.floor(rand() * 4),
                probe_s = 16,
            })
            local worker, clock = setup(conf)
            local m = model(conf, 16)
            local pair = { worker(), worker() }
            local pending = {}
            local mood = 0.5
            for step = 1, 250 do
                local b = pair[1 + math.floor(rand() * 2)]
                local where = "seed " .. seed .. ", step " .. step
                if rand() < 0.05 then
                    mood = rand()
                end
                local dice = rand()
                if dice < 0.55 or #pending == 0 then
                    local ok, probe, generation = b:allow("gpu1", clock.now)
                    local ok_m, probe_m, generation_m = m.allow(clock.now)
                    assert.equal(ok_m, ok, where)
                    if ok then
                        assert.equal(probe_m ~= nil, probe ~= false, where)
                        assert.equal(generation_m, generation, where)
                        pending[#pending + 1] = { probe, generation, probe_m }
                    end
                elseif dice < 0.9 then
                    local one = table.remove(pending, 1 + math.floor(rand() * #pending))
                    local ok = rand() < mood
                    if rand() < 0.1 then
                        ok = nil
                    end
                    b:report("gpu1", ok, "x", clock.now, one[1], one[2])
                    m.report(ok, clock.now, one[3], one[2])
                else
                    clock.now = clock.now + math.floor(rand() * 24) / 8 + (rand() < 0.02 and 4000 or 0)
                end
                local state, till, trips, generation = b:state("gpu1", clock.now)
                local shown = m.state == "open" and clock.now >= m.till and "half_open" or m.state
                assert.equal(shown, state, where)
                assert.equal(m.generation, generation, where)
                assert.equal(m.trips, trips, where)
                if state == "open" then
                    assert.equal(m.till, till, where)
                end
                seen[state] = seen[state] + 1
            end
        end
        -- The sequences must have been everywhere for the agreement to mean anything.
        assert.is_true(seen.closed > 3000 and seen.open > 3000 and seen.half_open > 300)
    end)
end)

-- Workers that ask and report in every order. Returns the log of changes, and how many probes there were at once.
local function storm(seed, spoil, kill)
    local rand = workers.random(seed)
    local conf = with({ min_requests = 6, consecutive = 3, open_base_s = 1, open_max_s = 4, success_needed = 2 })
    local worker, clock, dict, log = setup(conf, rand)
    if spoil then
        local add = dict.add
        function dict:add(key, value, ttl)
            local ok, err, forcible = add(self, key, value, ttl)
            if key:find(spoil, 1, true) == 1 then
                return true
            end
            return ok, err, forcible
        end
    end
    local probing, high = 0, 0
    local bodies = {}
    for index = 1, 5 do
        bodies[index] = function()
            local b = worker()
            for _ = 1, 40 do
                local ok, probe, generation = b:allow("gpu1", clock.now)
                if ok then
                    if probe then
                        probing = probing + 1
                        high = math.max(high, probing)
                    end
                    coroutine.yield()
                    if probe then
                        probing = probing - 1
                    end
                    b:report("gpu1", rand() < 0.6, "x", clock.now, probe, generation)
                else
                    clock.now = clock.now + rand() * 0.5
                    coroutine.yield()
                end
            end
        end
    end
    workers.run(bodies, rand, kill)
    local _, _, _, generation = worker():state("gpu1", clock.now)
    return log, high, worker, clock, generation
end

-- Is each change of the chain told once, and do the changes make a way through the states?
local function flaw(log, _, _, _, generation)
    if #log ~= generation then
        return #log .. " changes, generation " .. generation
    end
    local count = {}
    for _, change in ipairs(log) do
        local step = change.from .. " to " .. change.to
        count[step] = (count[step] or 0) + 1
    end
    local function of(from, to)
        local n = count[from .. " to " .. to] or 0
        count[from .. " to " .. to] = nil
        return n
    end
    local trips, halves = of("closed", "open"), of("open", "half_open")
    local again, closed = of("half_open", "open"), of("half_open", "closed")
    if next(count) then
        return next(count)
    end
    -- Each state is left as often as it is entered, but for the first and the last one.
    if trips - closed < 0 or trips - closed > 1 or trips + again - halves < 0 or trips + again - halves > 1 then
        return trips .. " " .. halves .. " " .. again .. " " .. closed
    end
    return nil, generation
end

describe("several workers", function()
    it("make each change once and never probe with more than allowed, in every order", function()
        local changes, most = 0, 0
        for seed = 1, 300 do
            local log, high, worker, clock, generation = storm(seed)
            local err, last = flaw(log, high, worker, clock, generation)
            assert.is_nil(err, "seed " .. seed)
            assert.is_true(high <= 2, "seed " .. seed .. ": " .. high)
            changes, most = changes + last, math.max(most, high)
        end
        assert.is_true(changes > 1000, changes)
        assert.equal(2, most)
    end)

    it("would be caught if they had no latch", function()
        local caught = 0
        for seed = 1, 100 do
            caught = caught + ((flaw(storm(seed, "bt:"))) and 1 or 0)
        end
        assert.is_true(caught > 50, caught)
    end)

    it("would be caught if probes had no places", function()
        local most = 0
        for seed = 1, 100 do
            local _, high = storm(seed, "bp:")
            most = math.max(most, high)
        end
        assert.is_true(most > 2, most)
    end)

    it("go on when one is killed at any operation", function()
        for step = 0, 160 do
            local killed
            local _, _, worker, clock = storm(step + 1000, nil, function(index, steps)
                if index == 1 and steps == step and not killed then
                    killed = true
                    return true
                end
                return false
            end)
            -- Latches and lost probes expire; then the peer is well, and then it is not.
            local b = worker()
            clock.now = clock.now + 130
            for _ = 1, 10 do
                local ok, probe, generation = b:allow("gpu1", clock.now)
                if ok then
                    b:report("gpu1", true, "x", clock.now, probe, generation)
                end
                clock.now = clock.now + 6
            end
            assert.equal("closed", (b:state("gpu1", clock.now)), "killed after " .. step)
            fail(b, clock, 3)
            assert.equal("open", (b:state("gpu1", clock.now)), "killed after " .. step)
        end
    end)
end)
