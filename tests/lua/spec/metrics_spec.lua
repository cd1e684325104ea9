-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local fake_dict = require("fake_dict")
local metrics = require("gw.metrics")
local workers = require("workers")

local clock

local function dict(options)
    options = options or {}
    options.now = function()
        return clock
    end
    return fake_dict.new(options)
end

-- Every sample of a text as {["name{labels}"] = "value"}; and each line must be well formed, no sample there twice.
local function parse(text)
    local samples, typed = {}, {}
    assert.are.equal("\n", text:sub(-1))
    for line in text:gmatch("([^\n]*)\n") do
        local name, kind = line:match("^# TYPE ([%w_:]+) (%l+)$")
        if name then
            assert.is_nil(typed[name], "TYPE twice: " .. name)
            typed[name] = kind
        elseif not line:match("^# HELP [%w_:]+ .+$") then
            local series, value = line:match("^(.+) ([^ ]+)$")
            assert.is_truthy(series, "not a sample: " .. line)
            assert.is_truthy(series:match("^[%a_:][%w_:]*$") or series:match('^[%a_:][%w_:]*{[%a_][%w_]*=".*"}$'), line)
            assert.is_truthy(tonumber(value) or value == "+Inf" or value == "-Inf" or value == "NaN", line)
            local base = series:match("^[%w_:]+")
            assert.is_truthy(typed[base] or typed[base:gsub("_%l+$", "")], "no TYPE before " .. line)
            assert.is_nil(samples[series], "sample twice: " .. series)
            samples[series] = value
        end
    end
    return samples, typed
end

-- The lines of a text that belong to a metric.
local function lines(text, name)
    local out = {}
    for line in text:gmatch("([^\n]*)\n") do
        if line:match("^" .. name .. "[ {_]") then
            out[#out + 1] = line
        end
    end
    return out
end

before_each(function()
    clock = 1000
end)

describe("a counter", function()
    it("adds up over workers, and keeps its count when a worker is replaced", function()
        local shared = dict()
        local function worker(pid)
            local m = metrics.new({ dict = shared, pid = pid })
            return m, m:counter("requests_total", "Requests.", { "tenant", "code" })
        end
        local one, a = worker(11)
        local two, b = worker(12)
        a:inc(1, "acme", 200)
        a:inc(2, "acme", 200)
        b:inc(5, "acme", "200")
        b:inc(1, "globex", 429)
        one:flush(clock)
        two:flush(clock)
        local three, c = worker(13)
        c:inc(1, "acme", 200)
        local samples, typed = parse(three:render(clock))
        assert.are.equal("9", samples['gw_requests_total{tenant="acme",code="200"}'])
        assert.are.equal("1", samples['gw_requests_total{tenant="globex",code="429"}'])
        assert.are.equal("counter", typed.gw_requests_total)
    end)

    it("shows others' counts from their flush on, not before, and once", function()
        local shared = dict()
        local one = metrics.new({ dict = shared, pid = 1 })
        local two = metrics.new({ dict = shared, pid = 2 })
        local a = one:counter("x_total", "X.")
        two:counter("x_total", "X.")
        a:inc(3)
        assert.is_nil(parse(two:render(clock)).gw_x_total)
        one:flush(clock)
        one:flush(clock)
        assert.are.equal("3", parse(two:render(clock)).gw_x_total)
    end)

    it("never falls, and ignores what is no count", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local x = m:counter("x_total", "X.")
        x:inc(4)
        x:inc(-1)
        x:inc(0 / 0)
        x:inc(math.huge)
        x:inc(0.5)
        assert.are.equal("4.5", parse(m:render(clock)).gw_x_total)
    end)

    it("appears at zero when it is told to", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local x = m:counter("x_total", "X.", { "a" })
        assert.are.equal(0, #lines(m:render(clock), "gw_x_total"))
        x:inc(0, "v")
        assert.are.equal("0", parse(m:render(clock))['gw_x_total{a="v"}'])
    end)

    it("takes one to four labels, and none missing", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:counter("one_total", "1.", { "a" }):inc(1, "p")
        m:counter("two_total", "2.", { "a", "b" }):inc(1, "p", "q")
        m:counter("three_total", "3.", { "a", "b", "c" }):inc(1, "p", nil, "r")
        local four = m:counter("four_total", "4.", { "a", "b", "c", "d" })
        four:inc(1, "p", "q", "r", true)
        four:inc(1, "p", "q", "r", "true")
        four:inc(7, "p", "q", "r", "s")
        local samples = parse(m:render(clock))
        assert.are.equal("1", samples['gw_one_total{a="p"}'])
        assert.are.equal("1", samples['gw_two_total{a="p",b="q"}'])
        assert.are.equal("1", samples['gw_three_total{a="p",b="",c="r"}'])
        assert.are.equal("2", samples['gw_four_total{a="p",b="q",c="r",d="true"}'])
        assert.are.equal("7", samples['gw_four_total{a="p",b="q",c="r",d="s"}'])
    end)

    it("touches the dict only for series that are new to the worker", function()
        local calls = 0
        local shared = dict({
            hook = function()
                calls = calls + 1
            end,
        })
        local m = metrics.new({ dict = shared, pid = 1 })
        local x = m:counter("x_total", "X.", { "a", "b" })
        x:inc(1, "p", "q")
        for i = 1, 200 do
            x:inc(1, "p", i)
        end
        calls = 0
        for _ = 1, 1000 do
            x:inc(1, "p", "q")
        end
        assert.are.equal(0, calls)
        m:flush(clock)
        assert.is_true(calls > 200)
        calls = 0
        m:flush(clock)
        assert.is_true(calls < 5, "a flush with nothing new must not write series again")
        assert.are.equal("1001", parse(m:render(clock))['gw_x_total{a="p",b="q"}'])
    end)

    it("makes no garbage for a series that it knows", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local x = m:counter("x_total", "X.", { "a", "b", "c" })
        local h = m:histogram("h", "H.", { "a" }, { 1, 2 })
        x:inc(1, "p", "q", 3)
        h:observe(1, "p")
        collectgarbage()
        collectgarbage("stop")
        local before = collectgarbage("count")
        for _ = 1, 10000 do
            x:inc(1, "p", "q", 3)
            h:observe(1.5, "p")
        end
        local grown = collectgarbage("count") - before
        collectgarbage("restart")
        -- Compiled traces are counted too; one table per call would be 400 KB and more.
        assert.is_true(grown < 64, grown .. " KB")
    end)
end)

describe("label values", function()
    local function shown(value)
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:counter("x_total", "X.", { "a" }):inc(1, value)
        local found = lines(m:render(clock), "gw_x_total")
        assert.are.equal(1, #found)
        return found[1]:match('^gw_x_total{a="(.*)"} 1$')
    end

    it("are escaped", function()
        assert.are.equal([[a\"b\\c\nd]], shown('a"b\\c\nd'))
        assert.are.equal("a{b}=,c", shown("a{b}=,c"))
    end)

    it("cannot forge a sample or break the list of series", function()
        assert.are.equal([[x\"} 9\ny_total{z=\"]], shown('x"} 9\ny_total{z="'))
        assert.are.equal("a?b?c", shown("a\31b\0c"))
    end)

    it("are UTF-8 whatever comes in", function()
        assert.are.equal("Zürich 東京 😀", shown("Zürich 東京 😀"))
        assert.are.equal("a?b", shown("a\255b"))
        assert.are.equal("??", shown("\192\128"))
        assert.are.equal("???", shown("\237\160\128"))
        assert.are.equal("?", shown("\195"))
        assert.are.equal("????", shown("\244\144\128\128"))
        local widest = "\244\143\191\191 \240\144\128\128 \224\160\128"
        assert.are.equal(widest, shown(widest))
    end)

    it("are cut, but not within a character", function()
        assert.are.equal(128, #shown(("x"):rep(500)))
        assert.are.equal("x" .. ("ü"):rep(63), shown("x" .. ("ü"):rep(100)))
    end)
end)

describe("a histogram", function()
    it("is cumulative, closed by +Inf, and its count agrees", function()
        local shared = dict()
        local one = metrics.new({ dict = shared, pid = 1 })
        local two = metrics.new({ dict = shared, pid = 2 })
        local function make(m)
            return m:histogram("ttft_seconds", "TTFT.", { "region" }, { 0.005, 0.1, 1, 10 })
        end
        local a, b = make(one), make(two)
        for _, value in ipairs({ 0.005, 0.0051, 0.1, 5, 11, 12 }) do
            a:observe(value, "eu")
        end
        b:observe(0.001, "eu")
        b:observe(3, "us")
        two:flush(clock)
        local text = one:render(clock)
        parse(text)
        assert.are.same({
            'gw_ttft_seconds_bucket{region="eu",le="0.005"} 2',
            'gw_ttft_seconds_bucket{region="eu",le="0.1"} 4',
            'gw_ttft_seconds_bucket{region="eu",le="1"} 4',
            'gw_ttft_seconds_bucket{region="eu",le="10"} 5',
            'gw_ttft_seconds_bucket{region="eu",le="+Inf"} 7',
            'gw_ttft_seconds_sum{region="eu"} 28.1111',
            'gw_ttft_seconds_count{region="eu"} 7',
            'gw_ttft_seconds_bucket{region="us",le="0.005"} 0',
            'gw_ttft_seconds_bucket{region="us",le="0.1"} 0',
            'gw_ttft_seconds_bucket{region="us",le="1"} 0',
            'gw_ttft_seconds_bucket{region="us",le="10"} 1',
            'gw_ttft_seconds_bucket{region="us",le="+Inf"} 1',
            'gw_ttft_seconds_sum{region="us"} 3',
            'gw_ttft_seconds_count{region="us"} 1',
        }, lines(text, "gw_ttft_seconds"))
    end)

    it("has none but le when it has no labels", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:histogram("h", "H.", nil, { 1 }):observe(2)
        assert.are.same(
            { 'gw_h_bucket{le="1"} 0', 'gw_h_bucket{le="+Inf"} 1', "gw_h_sum 2", "gw_h_count 1" },
            lines(m:render(clock), "gw_h")
        )
    end)

    it("ignores what would spoil its sum", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local h = m:histogram("h", "H.", nil, { 1 })
        h:observe(0 / 0)
        h:observe(math.huge)
        h:observe(-math.huge)
        h:observe(-3)
        local samples = parse(m:render(clock))
        assert.are.equal("1", samples.gw_h_count)
        assert.are.equal("-3", samples.gw_h_sum)
        assert.are.equal("1", samples['gw_h_bucket{le="1"}'])
    end)

    it("refuses buckets that do not ascend", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        assert.has_error(function()
            m:histogram("h", "H.", nil, { 1, 1 })
        end)
    end)
end)

describe("a gauge", function()
    it("is asked at each scrape", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local value = 1
        m:gauge("free", "Free.", { "dict" }, function(emit)
            emit(value, "rate")
            emit(-value / 2, "conf")
            emit(nil, "gone")
        end)
        assert.are.same({ 'gw_free{dict="rate"} 1', 'gw_free{dict="conf"} -0.5' }, lines(m:render(clock), "gw_free"))
        value = 2 ^ 53 + 2
        assert.are.equal("9007199254740994", ("%.0f"):format(parse(m:render(clock))['gw_free{dict="rate"}']))
    end)

    it("shows NaN and infinity as Prometheus writes them", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:gauge("g", "G.", { "a" }, function(emit)
            emit(0 / 0, "n")
            emit(math.huge, "p")
            emit(-math.huge, "m")
        end)
        local samples = parse(m:render(clock))
        assert.are.equal("NaN", samples['gw_g{a="n"}'])
        assert.are.equal("+Inf", samples['gw_g{a="p"}'])
        assert.are.equal("-Inf", samples['gw_g{a="m"}'])
    end)

    it("that fails costs only itself, and is counted", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:gauge("bad", "Bad.", nil, function()
            error("no")
        end)
        m:gauge("good", "Good.", nil, function(emit)
            emit(1)
        end)
        assert.are.equal("1", parse(m:render(clock)).gw_good)
        assert.are.equal("1", parse(m:render(clock))['gw_metrics_errors_total{metric="gw_bad"}'])
    end)
end)

describe("the values of workers", function()
    local function worker(shared, pid)
        local m = metrics.new({ dict = shared, pid = pid })
        return m, m:worker("lua_bytes", "Memory.")
    end

    it("stand side by side, and vanish with their worker", function()
        local shared = dict()
        local one, a = worker(shared, 101)
        local two, b = worker(shared, 102)
        a:set(5)
        b:set(6)
        one:flush(clock)
        two:flush(clock + 1)
        local samples = parse(one:render(clock))
        assert.are.equal("5", samples['gw_lua_bytes{worker="1"}'])
        assert.are.equal("6", samples['gw_lua_bytes{worker="2"}'])
        assert.are.equal("1001", samples['gw_worker_start_time_seconds{worker="2"}'])
        assert.are.equal("2", samples.gw_workers)
        assert.are.same({ { place = 1, pid = 101 }, { place = 2, pid = 102 } }, one:workers())
        for _ = 1, 20 do
            clock = clock + 1
            two:flush(clock)
        end
        samples = parse(two:render(clock))
        assert.is_nil(samples['gw_lua_bytes{worker="1"}'])
        assert.are.equal("6", samples['gw_lua_bytes{worker="2"}'])
        assert.are.equal("1", samples.gw_workers)
        -- The free place is used again.
        local three, c = worker(shared, 103)
        c:set(7)
        assert.are.equal("7", parse(three:render(clock))['gw_lua_bytes{worker="1"}'])
    end)

    it("never share a place, even when a worker stood still for long", function()
        local shared = dict()
        local one, a = worker(shared, 1)
        a:set(1)
        one:flush(clock)
        clock = clock + 60
        local two, b = worker(shared, 2)
        b:set(2)
        two:flush(clock)
        one:flush(clock)
        local samples = parse(two:render(clock))
        assert.are.equal("2", samples['gw_lua_bytes{worker="1"}'])
        assert.are.equal("1", samples['gw_lua_bytes{worker="2"}'])
    end)
end)

describe("too many label sets", function()
    it("go to one series, are counted, and do not disturb those that are there", function()
        local shared = dict()
        local function worker(pid)
            local m = metrics.new({ dict = shared, pid = pid })
            return m, m:counter("x_total", "X.", { "a", "b" }, 3)
        end
        local one, a = worker(1)
        for i = 1, 10 do
            a:inc(1, "v" .. i, "w")
        end
        a:inc(1, "v9", "w")
        a:inc(1, "v2", "w")
        local samples = parse(one:render(clock))
        assert.are.equal("1", samples['gw_x_total{a="v1",b="w"}'])
        assert.are.equal("2", samples['gw_x_total{a="v2",b="w"}'])
        assert.are.equal("8", samples['gw_x_total{a="other",b="other"}'])
        assert.are.equal("8", samples['gw_metrics_dropped_total{metric="gw_x_total"}'])
        assert.are.equal(4, #lines(one:render(clock), "gw_x_total"))
        -- Another worker finds the series that are there, and shares the bound.
        local two, b = worker(2)
        b:inc(1, "v3", "w")
        b:inc(1, "v77", "w")
        samples = parse(two:render(clock))
        assert.are.equal("2", samples['gw_x_total{a="v3",b="w"}'])
        assert.are.equal("9", samples['gw_x_total{a="other",b="other"}'])
        assert.are.equal(3, shared:peek("c:gw_x_total"))
    end)

    it("cost a worker bounded memory and the dict none", function()
        local shared = dict()
        local m = metrics.new({ dict = shared, pid = 1 })
        local x = m:counter("x_total", "X.", { "a" }, 10)
        for i = 1, 50 do
            x:inc(1, i)
        end
        m:flush(clock)
        local used, cached = shared.used, x.cached
        for i = 51, 5000 do
            x:inc(1, i)
        end
        m:flush(clock)
        assert.are.equal(used, shared.used)
        assert.are.equal(cached, x.cached)
        assert.are.equal("4990", parse(m:render(clock))['gw_x_total{a="other"}'])
        -- A series of its own is found even when the cache is full.
        x:inc(1, 5)
        assert.are.equal("2", parse(m:render(clock))['gw_x_total{a="5"}'])
    end)

    it("are bounded for histograms as well", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        local h = m:histogram("h", "H.", { "a" }, { 1 }, 2)
        for i = 1, 5 do
            h:observe(i, i)
        end
        local samples = parse(m:render(clock))
        assert.are.equal("3", samples['gw_h_count{a="other"}'])
        assert.are.equal("12", samples['gw_h_sum{a="other"}'])
        assert.are.equal("1", samples['gw_h_count{a="1"}'])
        assert.is_nil(samples['gw_h_count{a="3"}'])
    end)
end)

describe("a dict that is full", function()
    it("evicts nothing, and gets what was kept once there is room", function()
        local shared = dict({ capacity = 12 })
        local m = metrics.new({ dict = shared, pid = 1 })
        local x = m:counter("x_total", "X.", { "a" })
        local h = m:histogram("h", "H.", nil, { 1, 2 })
        for round = 1, 3 do
            for i = 1, 20 do
                x:inc(1, "v" .. i)
            end
            h:observe(1.5)
            local kept = m:flush(clock)
            assert.is_true(kept > 0, "round " .. round)
            -- A series that waits is in the list of those to flush once, however often it is counted.
            assert.are.equal(kept, #m.dirty)
        end
        assert.are.equal(0, shared.evictions)
        assert.is_true(shared.used <= 12)
        shared.size = 1000
        assert.are.equal(0, m:flush(clock))
        local samples = parse(m:render(clock))
        for i = 1, 20 do
            assert.are.equal("3", samples['gw_x_total{a="v' .. i .. '"}'])
        end
        assert.are.equal("3", samples.gw_h_count)
        assert.are.equal("4.5", samples.gw_h_sum)
        assert.are.equal('3', samples['gw_h_bucket{le="2"}'])
    end)

    it("loses no part of a series for which there was room before", function()
        local shared = dict()
        local m = metrics.new({ dict = shared, pid = 1 })
        local x, h = m:counter("x_total", "X."), m:histogram("h", "H.", nil, { 1, 2 })
        x:inc(1)
        h:observe(0.5)
        m:flush(clock)
        -- The counter's value is taken away, the histogram's second bucket does not exist yet, and there is no room.
        shared:delete("v:gw_x_total\31")
        shared.size = shared.used
        x:inc(2)
        h:observe(1.5)
        assert.are.equal(2, m:flush(clock))
        assert.are.equal(2, m:flush(clock))
        shared.size = 1000
        assert.are.equal(0, m:flush(clock))
        local samples = parse(m:render(clock))
        assert.are.equal("2", samples.gw_x_total)
        assert.are.equal("2", samples.gw_h_count)
        assert.are.equal("2", samples.gw_h_sum)
    end)

    it("keeps the bound for what waited", function()
        local shared = dict({ capacity = 4 })
        local m = metrics.new({ dict = shared, pid = 1 })
        local x = m:counter("x_total", "X.", { "a" }, 2)
        for i = 1, 5 do
            x:inc(1, "v" .. i)
        end
        m:flush(clock)
        shared.size = 1000
        m:flush(clock)
        local samples, total, series = parse(m:render(clock)), 0, 0
        for name, value in pairs(samples) do
            if name:match("^gw_x_total") then
                total, series = total + value, series + 1
            end
        end
        assert.are.equal(5, total)
        assert.are.equal(3, series)
    end)
end)

describe("the text", function()
    it("is in the order of registration, sorted within, and the same whoever asks", function()
        local shared = dict()
        local function worker(pid)
            local m = metrics.new({ dict = shared, pid = pid, prefix = "t_" })
            return m, m:counter("z_total", "Last\nletter \\ first.", { "a" }), m:counter("a_total", "A.")
        end
        local one, z, a = worker(1)
        a:inc(1)
        z:inc(1, "c")
        z:inc(1, "a")
        one:flush(clock)
        local two, y = worker(2)
        y:inc(1, "b")
        two:flush(clock)
        local text = two:render(clock)
        assert.are.equal(text, one:render(clock))
        assert.are.same({
            "# HELP t_z_total Last\\nletter \\\\ first.",
            "# TYPE t_z_total counter",
            't_z_total{a="a"} 1',
            't_z_total{a="b"} 1',
            't_z_total{a="c"} 1',
            "# HELP t_a_total A.",
            "# TYPE t_a_total counter",
            "t_a_total 1",
        }, (function()
            local out = {}
            for line in text:gmatch("([^\n]*)\n") do
                if line:match("t_[za]_total") then
                    out[#out + 1] = line
                end
            end
            return out
        end)())
    end)

    it("ends with what the caller adds, on lines of its own", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        assert.is_truthy(m:render(clock, "extra 1"):match("\nextra 1\n$"))
        assert.is_truthy(m:render(clock, "extra 1\n"):match("\nextra 1\n$"))
        assert.are.equal(m:render(clock), m:render(clock, ""))
    end)

    it("has nothing of a metric without series", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:counter("x_total", "X.", { "a" })
        m:histogram("h", "H.", nil, { 1 })
        local text = m:render(clock)
        assert.is_nil(text:find("gw_x_total", 1, true))
        assert.is_nil(text:find("gw_h", 1, true))
    end)

    it("leaves out series of metrics that this version does not have", function()
        local shared = dict()
        local old = metrics.new({ dict = shared, pid = 1 })
        old:counter("gone_total", "Gone."):inc(1)
        old:flush(clock)
        assert.is_nil(parse(metrics.new({ dict = shared, pid = 2 }):render(clock)).gw_gone_total)
    end)

    it("refuses a name that is there, and more than four labels", function()
        local m = metrics.new({ dict = dict(), pid = 1 })
        m:counter("x_total", "X.")
        assert.has_error(function()
            m:histogram("x_total", "X.", nil, { 1 })
        end)
        assert.has_error(function()
            m:counter("y_total", "Y.", { "a", "b", "c", "d", "e" })
        end)
    end)
end)

describe("two workers that meet a series at the same moment", function()
    -- Just before our safe_add of a key, the other one's.
    local function meet(shared, key, value)
        local add = shared.safe_add
        shared.safe_add = function(self, name, ...)
            if name == key then
                shared.safe_add = nil
                add(self, key, value)
            end
            return add(self, name, ...)
        end
    end

    it("both count", function()
        local shared = dict()
        local m = metrics.new({ dict = shared, pid = 1 })
        local h = m:histogram("h", "H.", nil, { 1, 2 })
        meet(shared, "v:gw_h\31\0311", 5)
        h:observe(0.5)
        assert.are.equal(0, m:flush(clock))
        assert.are.equal("6", parse(m:render(clock)).gw_h_count)
    end)

    it("take one place of the bound, and one line of the list", function()
        local shared = dict()
        local m = metrics.new({ dict = shared, pid = 1 })
        local x = m:counter("x_total", "X.", { "a" }, 2)
        shared:set("n", 1)
        shared:set("i:1", 'gw_x_total\31a="p"')
        shared:set("c:gw_x_total", 1)
        meet(shared, 'v:gw_x_total\31a="p"', 7)
        x:inc(1, "p")
        x:inc(1, "q")
        assert.are.equal("8", parse(m:render(clock))['gw_x_total{a="p"}'])
        assert.are.equal("1", parse(m:render(clock))['gw_x_total{a="q"}'])
        assert.are.equal(2, shared:peek("c:gw_x_total"))
    end)

    it("are shown once when both are in the list", function()
        local shared = dict()
        local m = metrics.new({ dict = shared, pid = 1 })
        m:counter("x_total", "X.", { "a" }):inc(1, "p")
        m:flush(clock)
        shared:set("i:" .. shared:incr("n", 1), 'gw_x_total\31a="p"')
        assert.are.equal(1, #lines(m:render(clock), "gw_x_total"))
    end)
end)

-- Several workers, interleaved before each operation on the dict.
describe("workers that flush at the same time", function()
    local function run(seed, kill)
        local shared = dict({ hook = workers.yield })
        local rand, bodies, counted = workers.random(seed), {}, {}
        for w = 1, 4 do
            counted[w] = 0
            bodies[w] = function()
                local m = metrics.new({ dict = shared, pid = w })
                local x = m:counter("x_total", "X.", { "a" }, 5)
                local h = m:histogram("h", "H.", { "a" }, { 1, 2 })
                for _ = 1, 6 do
                    for _ = 1, 5 do
                        local value = math.floor(rand() * 8)
                        x:inc(1, value)
                        h:observe(value % 3, value % 2)
                        counted[w] = counted[w] + 1
                    end
                    m:flush(clock)
                end
            end
        end
        workers.run(bodies, rand, kill)
        local m = metrics.new({ dict = shared, pid = 9 })
        m:counter("x_total", "X.", { "a" }, 5)
        m:histogram("h", "H.", { "a" }, { 1, 2 })
        local samples, total, observed, series = parse(m:render(clock)), 0, 0, 0
        for name, value in pairs(samples) do
            if name:match("^gw_x_total") then
                total, series = total + value, series + (name:match('"other"') and 0 or 1)
            elseif name:match("^gw_h_count") then
                observed = observed + value
            end
        end
        return total, observed, series, shared, counted
    end

    it("lose nothing, double nothing and keep the bound", function()
        for seed = 1, 150 do
            local total, observed, series, shared = run(seed)
            assert.are.equal(120, total, "seed " .. seed)
            assert.are.equal(120, observed, "seed " .. seed)
            assert.is_true(series <= 5, "seed " .. seed)
            assert.are.equal(series, shared:peek("c:gw_x_total"), "seed " .. seed)
        end
    end)

    it("lose at most what a killed one had not flushed", function()
        for seed = 1, 150 do
            local at = 20 + seed * 3
            local total, observed, series, shared, counted = run(seed, function(index, steps)
                return index == 1 and steps >= at
            end)
            local others = counted[2] + counted[3] + counted[4]
            assert.are.equal(90, others)
            assert.is_true(total >= others and total <= others + counted[1], "seed " .. seed)
            assert.is_true(observed >= others and observed <= others + counted[1], "seed " .. seed)
            -- It may take one place with it, and never gives a second one away.
            local places = shared:peek("c:gw_x_total") or 0
            assert.is_true(places == series or places == series + 1, "seed " .. seed .. ": " .. places .. " of " .. series)
        end
    end)
end)
