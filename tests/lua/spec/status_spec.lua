-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson.safe")
local status = require("gw.status")

local NOW = 1760000000

local function peer(name, changes)
    local made = {
        name = name, address = "10.0.0.1", port = 8443, region = "eu", weight = 3, state = "up", well = true,
        breaker = "closed", trips = 0, share = 1, inflight = 10, max_inflight = 100, tokens = 1000,
        capacity_tokens = 10000, ttft_ms = 412.4,
    }
    for field, value in pairs(changes or {}) do
        made[field] = value
    end
    return made
end

local function data(changes)
    local made = {
        now = NOW, started_at = NOW - 90061, node = "gw-1", version = "1.2.3",
        config = { id = "aaaa-bbbb", loaded_at = NOW - 60 },
        workers = { running = 4, expected = 4 },
        shed = {
            factor = 1, ttft_p90_ms = 800, ttft_target_ms = 3000, waiting = { batch = 1, standard = 2, premium = 0 },
            max_waiters = { batch = 64, standard = 256, premium = 512 },
        },
        pools = {
            {
                name = "r1", aliases = { "alias" }, default = true, context_tokens = 131072,
                peers = { peer("g1"), peer("g2") },
            },
        },
        tenants = {
            { id = "acme", tier = "pro", priority = "standard", concurrency = { used = 1, limit = 10 },
                rpm = { used = 5, limit = 0 }, tpm = { used = 80, limit = 100 }, tpd = { used = 1, limit = 1000 } },
        },
    }
    for field, value in pairs(changes or {}) do
        made[field] = value
    end
    return made
end

local function with_peer(changes)
    return data({ pools = { { name = "r1", aliases = {}, peers = { peer("g1", changes), peer("g2") } } } })
end

-- Elements that are opened are closed, in order; returns how many there were.
local function balanced(html)
    local open, count = {}, 0
    local void = { meta = true, br = true }
    for slash, name in html:gmatch("<(/?)(%a%w*)[^>]*>") do
        if slash == "/" then
            assert.are.equal(table.remove(open), name)
        elseif not void[name] then
            open[#open + 1] = name
            count = count + 1
        end
    end
    assert.are.equal(0, #open)
    return count
end

local function has(text, part)
    assert.is_truthy(text:find(part, 1, true), "not there: " .. part)
end

local function has_not(text, part)
    assert.is_nil(text:find(part, 1, true), "there: " .. part)
end

describe("view", function()
    it("has one status for an engine, the strongest", function()
        for _, case in ipairs({
            { {}, "up" }, { { share = 0.4 }, "warming up" }, { { breaker = "half_open" }, "on trial" },
            { { state = "drain" }, "draining" }, { { breaker = "open" }, "broken" }, { { well = false }, "sick" },
            { { state = "down" }, "down" }, { { state = "down", well = false, breaker = "open" }, "down" },
            { { state = "drain", breaker = "open" }, "broken" }, { { well = false, breaker = "open" }, "sick" },
            { { breaker = "half_open", share = 0.1 }, "on trial" },
        }) do
            assert.are.equal(case[2], status.view(with_peer(case[1])).pools[1].peers[1].status)
        end
        local unchecked = with_peer()
        unchecked.pools[1].peers[1].well = nil
        assert.are.equal("up", status.view(unchecked).pools[1].peers[1].status)
    end)

    it("counts the load over the engines that get requests", function()
        local pool = status.view(data()).pools[1]
        assert.are.same({ 2, 20, 2000, 20000, 0.1 },
            { pool.usable, pool.inflight, pool.tokens, pool.capacity_tokens, pool.load })
        pool = status.view(with_peer({ state = "drain" })).pools[1]
        assert.are.same({ 1, 20, 1000, 10000, 0.1 },
            { pool.usable, pool.inflight, pool.tokens, pool.capacity_tokens, pool.load })
        pool = status.view(data({ pools = { { name = "r1", peers = { peer("g1", { state = "down" }) } } } })).pools[1]
        assert.are.equal(0, pool.usable)
        assert.is_nil(pool.load)
    end)

    it("has no warning when all is well", function()
        assert.are.same({}, status.view(data()).warnings)
    end)

    it("warns, the worst first", function()
        local warned = with_peer({ well = false, reason = "timeout" })
        warned.pools[2] = { name = "embed", aliases = {}, peers = { peer("g3", { state = "down" }) } }
        warned.config.error = "policy.id: is missing"
        warned.workers.running = 3
        warned.shed.factor = 0.6
        warned.warnings = { "50 % of nothing" }
        local out = {}
        for i, warning in ipairs(status.view(warned).warnings) do
            out[i] = warning.level .. " " .. warning.text
        end
        assert.are.same({
            "3 The configuration on disk is not in use: policy.id: is missing",
            "3 Pool embed has no engine that gets requests",
            "2 3 of 4 workers run",
            "2 Engine g1 of pool r1 fails its checks: timeout",
            "2 The engines are held to 60 % of their capacity: the first token takes 800 ms at the 90th percentile",
            "1 50 % of nothing",
        }, out)
    end)

    it("says how long a breaker stays open, and that a pool is nearly full", function()
        local warnings = status.view(with_peer({ breaker = "open", breaker_until = NOW + 75 })).warnings
        assert.are.equal("Engine g1 of pool r1 gets no requests after failures, for another 1 min 15 s",
            warnings[1].text)
        warnings = status.view(with_peer({ breaker = "open", breaker_until = NOW })).warnings
        assert.are.equal("Engine g1 of pool r1 gets no requests after failures", warnings[1].text)
        assert.are.equal("Pool r1 is 90 % full", status.view(with_peer({ tokens = 17000 })).warnings[1].text)
        assert.are.equal(0, #status.view(with_peer({ tokens = 16900 })).warnings)
        assert.are.equal("There is no pool", status.view({}).warnings[1].text)
    end)

    it("puts the fullest tenants first, and leaves the data as it was", function()
        local given = data({
            tenants = {
                { id = "b", rpm = { used = 1, limit = 10 } }, { id = "c", tpd = { used = 12, limit = 10 } },
                { id = "a", rpm = { used = 1, limit = 10 } }, { id = "d", rpm = { used = 1000, limit = 0 } },
            },
        })
        local before = cjson.encode(given)
        local ids = {}
        for i, tenant in ipairs(status.view(given).tenants) do
            ids[i] = tenant.id
        end
        assert.are.same({ "c", "a", "b", "d" }, ids)
        status.page(given)
        assert.are.same(cjson.decode(before), cjson.decode(cjson.encode(given)))
        assert.are.equal("b", given.tenants[1].id)
    end)
end)

describe("json", function()
    it("is what the view is", function()
        local decoded = assert(cjson.decode(status.json(data())))
        assert.are.equal("gw-1", decoded.node)
        assert.are.equal(90061, decoded.uptime_s)
        assert.are.same({ "alias" }, decoded.pools[1].aliases)
        assert.are.equal(0.1, decoded.pools[1].load)
        assert.are.equal("up", decoded.pools[1].peers[2].status)
        assert.are.equal(412.4, decoded.pools[1].peers[2].ttft_ms)
        assert.are.same({ used = 80, limit = 100, share = 0.8 }, decoded.tenants[1].tpm)
        assert.are.same({ used = 5, limit = 0 }, decoded.tenants[1].rpm)
    end)

    it("says the same each time, with lists that are lists even when empty", function()
        local text = status.json(data({ pools = {}, tenants = {} }))
        assert.are.equal(text, status.json(data({ pools = {}, tenants = {} })))
        has(text, '"pools":[]')
        has(text, '"tenants":[]')
        has(status.json(data({ pools = { { name = "p", peers = {} } } })), '"aliases":[]')
        has(status.json(data()), '"warnings":[]')
        has(status.json({}), '"config":{}')
    end)

    it("escapes what JSON cannot hold", function()
        local node = 'a"b\\c\n\1\0\127</script>\xff\xc3\xa9\xed\xa0\x80'
        local decoded = assert(cjson.decode(status.json(data({ node = node }))))
        assert.are.equal('a"b\\c\n\1\0\127</script>\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd',
            decoded.node)
        has(status.json(data({ now = 0 / 0 })), '"now":null')
        has(status.json(data({ now = math.huge })), '"now":null')
        has(status.json(data({ now = 1760000000.25 })), '"now":1760000000.25')
    end)
end)

describe("texts", function()
    -- Every boundary of well-formed UTF-8: what is well-formed stays, of the rest each byte is marked.
    it("are UTF-8 whatever was given", function()
        for _, good in ipairs({
            "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xe1\x80\x80", "\xec\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80",
            "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf1\x80\x80\x80", "\xf3\xbf\xbf\xbf", "\xf4\x8f\xbf\xbf",
        }) do
            local node = "x" .. good .. "yz\xc3\xa9"
            assert.are.equal(node, cjson.decode(status.json({ node = node })).node)
        end
        for _, bad in ipairs({
            "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2",
            "\xc2\xc0", "\xdf\x7f", "\xe0\x9f\xbf", "\xe0\xa0", "\xe1\x80\xc0",
            "\xe1\x80\x7f", "\xe1\xc0\x80", "\xec\x7f\x80",
            "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80",
            "\xf1\x80\x80\xc0", "\xf1\x80\x80\x7f", "\xf1\x80\xc0\x80",
            "\xf1\x80\x7f\x80", "\xf1\xc0\x80\x80", "\xf4\x90\x80\x80",
            "\xf5\x80\x80\x80", "\xff", "\xfe\x80", "\xf0\xc0\x80\x80", "\xe0\xc0\x80",
        }) do
            for _, after in ipairs({ "", "!" }) do
                local shown = cjson.decode(status.json({ node = bad .. after })).node
                -- Continuation bytes that stand alone are marked one by one, ASCII stays.
                local marks = bad:gsub("[\128-\255]", "\xef\xbf\xbd") .. after
                assert.are.equal(marks, shown)
            end
        end
    end)
end)

describe("page", function()
    it("says on top how the whole gateway is", function()
        local given = with_peer({ state = "drain" })
        given.shed.waiting.batch = 1500
        local html = status.page(given)
        for _, card in ipairs({
            { "Requests in flight", "20" }, { "Tokens in flight", "1k of 10k" },
            { "Engines that get requests", "1 of 2" }, { "Waiting", "1.5k batch, 2 standard, 0 premium" },
            { "First token, 90th percentile", "800 ms, aim 3000 ms" },
            { "Workers", "4" }, { "Up for", "1 d 1 h" }, { "Version", "1.2.3" },
            { "Configuration", 'aaaa-bbbb <span class="dim">for 1 min 0 s</span>' },
        }) do
            has(html, "<dt>" .. card[1] .. "</dt><dd>" .. card[2] .. "</dd>")
        end
        has(html, "As of 2025-10-09 08:53:20 UTC")
        given.shed.ttft_target_ms, given.shed.waiting = 0, nil
        html = status.page(given)
        has(html, "<dd>800 ms</dd>")
        has(html, "<dd>0 batch, 0 standard, 0 premium</dd>")
        given.shed.ttft_p90_ms = nil
        has_not(status.page(given), "First token, 90th")
    end)

    it("says of each pool what it is called and how full it is", function()
        has(status.page(data()), '<h2>r1 <span class="dim">default · also alias · 131k tokens of context · '
            .. "2 of 2 engines get requests · 10 % full</span></h2>")
        local down = { peer("g", { state = "down" }) }
        has(status.page(data({ pools = { { name = "m", context_tokens = 8192, peers = down } } })),
            '<h2>m <span class="dim">8.19k tokens of context · 0 of 1 engines get requests</span></h2>')
        has(status.page(data()), '<th scope="col" class="n">Weight</th><th scope="col">Requests</th>')
        for _, trial in ipairs({ { breaker = "half_open" }, { share = 0.5 } }) do
            assert.are.equal(2, status.view(with_peer(trial)).pools[1].usable)
        end
        assert.are.equal(512, status.view(data()).shed.max_waiters.premium)
        assert.are.equal("Pool r1 is 95 % full", status.view(with_peer({ tokens = 18000 })).warnings[1].text)
    end)

    it("is complete in itself", function()
        local html = status.page(data())
        assert.are.equal("<!DOCTYPE html>", html:sub(1, 15))
        assert.is_true(balanced(html) > 50)
        has_not(html, "<script")
        has_not(html, "http:")
        has_not(html, "https:")
        has_not(html, "url(")
        has_not(html, "http-equiv")
        has(status.page(data({ refresh_s = 1 })),
            '<meta charset="utf-8">\n<meta http-equiv="refresh" content="1">\n<meta name')
        has_not(status.page(data({ refresh_s = 0 })), "http-equiv")
        has(html, "prefers-color-scheme:dark")
        has(status.CSP, "default-src 'none'")
    end)

    it("shows engines with their load as bars", function()
        local html = status.page(with_peer({ inflight = 42, tokens = 9500, breaker = "half_open", trips = 2 }))
        has(html, '<div class="bar"><i style="width:42.0%"></i><span>42 / 100</span></div>')
        has(html, '<div class="bar full"><i style="width:95.0%"></i><span>9.5k / 10k</span></div>')
        has(html, '10.0.0.1:8443')
        has_not(status.page(data()), "opened")
        has(status.page(with_peer({ inflight = 90 })), '<div class="bar full"><i style="width:90.0%">')
        has(status.page(with_peer({ inflight = 75 })), '<div class="bar high"><i style="width:75.0%">')
        has(status.page(with_peer({ inflight = 74 })), '<div class="bar"><i style="width:74.0%">')
        has(html, 'half-open <span class="dim">opened 2×</span>')
        has(html, '<td class="s high">on trial</td>')
        has(html, "412 ms")
        has(status.page(with_peer({ share = 0.35 })), "warming up 35 %")
        has(status.page(with_peer({ breaker = "open", breaker_until = NOW + 9 })), "open 9 s")
        has(status.page(with_peer({ inflight = 80 })), '<div class="bar high"><i style="width:80.0%">')
    end)

    it("shows tenants, and no bar without a limit", function()
        local html = status.page(data())
        has(html, '<div class="bar high"><i style="width:80.0%"></i><span>80 / 100</span></div>')
        has(html, '5 <span class="dim">no limit</span>')
        has_not(status.page(data({ tenants = {} })), "Tenants")
    end)

    it("keeps a bar within its box, whatever the numbers", function()
        has(status.page(with_peer({ inflight = 500 })), '<i style="width:100.0%"></i><span>500 / 100</span>')
        has(status.page(with_peer({ inflight = -3 })), '<i style="width:0.0%"></i><span>-3 / 100</span>')
        has_not(status.page(with_peer({ inflight = 0 / 0, ttft_ms = 0 / 0 })):gsub("Tenant", ""), "nan")
        has_not(status.page(with_peer({ max_inflight = 0 })), "inf")
    end)

    it("shows some hundreds of tenants at most, and says so", function()
        local tenants = {}
        for i = 1, 1000 do
            tenants[i] = { id = "t" .. i, tier = "pro", rpm = { used = i, limit = 1000 } }
        end
        local html = status.page(data({ tenants = tenants }))
        has(html, "the fullest 200 of 1000")
        has(html, "<td>t1000</td>")
        has(html, "<td>t801</td>")
        has_not(html, "<td>t800</td>")
        has(status.json(data({ tenants = tenants })), '"t800"')
    end)

    it("counts an engine of two pools once on top", function()
        local html = status.page(data({ pools = {
            { name = "a", aliases = {}, peers = { peer("g1"), peer("g2") } },
            { name = "b", aliases = {}, peers = { peer("g1") } },
        } }))
        has(html, "<dt>Requests in flight</dt><dd>20</dd>")
        has(html, "<dt>Tokens in flight</dt><dd>2k of 20k</dd>")
        has(html, "<dt>Engines that get requests</dt><dd>2 of 2</dd>")
    end)

    it("escapes every text that it is given", function()
        local evil = "<b x='y'>\"&\1\xff"
        local safe = "&lt;b x=&#39;y&#39;&gt;&quot;&amp;\xef\xbf\xbd\xef\xbf\xbd"
        local given = data({ node = evil, version = evil, warnings = { evil } })
        given.config = { id = evil, error = evil }
        given.pools = { { name = evil, aliases = { evil }, peers = { peer(evil, {
            address = evil, port = evil, region = evil, breaker = evil, well = false, reason = evil,
        }) } } }
        given.tenants = { { id = evil, tier = evil, priority = evil } }
        local html = status.page(given)
        has_not(html, "<b ")
        has_not(html, evil)
        balanced(html)
        -- node twice, version, id, error, the warning, pool, alias, name, address, port, region, breaker, the engine's
        -- warning (name, pool, reason), id, tier and priority of the tenant: each is there.
        local count = 0
        for _ in html:gmatch(safe:gsub("%p", "%%%0")) do
            count = count + 1
        end
        assert.are.equal(20, count)
    end)

    it("can be made of nothing", function()
        local html = status.page({})
        balanced(html)
        has(html, "There is no pool")
        has_not(html, "nil")
        balanced(status.page({ pools = { {} }, tenants = { {} } }))
        balanced(status.page({ pools = { { peers = { {} } } } }))
    end)
end)

describe("numbers and times", function()
    it("are written for people", function()
        for _, case in ipairs({
            { 0, "0" }, { 999, "999" }, { 1000, "1k" }, { 1234, "1.23k" }, { 12345, "12.3k" }, { 123456, "123k" },
            { 999499, "999k" }, { 999500, "1M" }, { 1e6, "1M" }, { 2500000, "2.5M" }, { 1e12, "1T" }, { 0.25, "0.25" },
            { 99.96, "100" }, { 99.94, "99.9" }, { 99.95, "100" }, { 0.999, "1" },
            { 9.999, "10" }, { 1e9, "1G" }, { -1500, "-1.5k" }, { 100, "100" }, { 5e15, "5000T" },
        }) do
            assert.are.equal(case[2], status.short(case[1]))
        end
        for _, case in ipairs({
            { 0, "0 s" }, { 59.4, "59 s" }, { 59.6, "1 min 0 s" }, { 3599, "59 min 59 s" }, { 3600, "1 h 0 min" },
            { 86400, "1 d 0 h" }, { 90061, "1 d 1 h" }, { -5, "0 s" },
        }) do
            assert.are.equal(case[2], status.span(case[1]))
        end
        assert.are.same({ "-", "-", "-" }, { status.short(nil), status.short(0 / 0), status.span("x") })
    end)
end)
