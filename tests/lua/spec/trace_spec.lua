-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local trace = require("gw.trace")

local TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

describe("parse", function()
    it("reads what is valid", function()
        for value, flags in pairs({
            ["00-" .. TRACE .. "-" .. PARENT .. "-01"] = 1,
            ["00-" .. TRACE .. "-" .. PARENT .. "-00"] = 0,
            ["00-" .. TRACE .. "-" .. PARENT .. "-03"] = 3,
            -- unknown flags are not passed on
            ["00-" .. TRACE .. "-" .. PARENT .. "-ff"] = 3,
            ["00-" .. TRACE .. "-" .. PARENT .. "-09"] = 1,
            -- later versions: the same length, or more behind a hyphen
            ["cc-" .. TRACE .. "-" .. PARENT .. "-01"] = 1,
            ["01-" .. TRACE .. "-" .. PARENT .. "-01-what-the-future-will-be-like"] = 1,
            ["fe-" .. TRACE .. "-" .. PARENT .. "-01-"] = 1,
        }) do
            assert.same({ TRACE, PARENT, flags }, { trace.parse(value) }, value)
        end
    end)

    it("refuses what is not", function()
        for _, value in ipairs({
            "",
            "00-" .. TRACE .. "-" .. PARENT .. "-0",
            "00-" .. TRACE .. "-" .. PARENT .. "-012",
            "00-" .. TRACE .. "-" .. PARENT .. "-01-extra",
            "00-" .. TRACE .. "-" .. PARENT .. "-01-",
            "00-" .. TRACE .. "-" .. PARENT .. "-01.",
            "01-" .. TRACE .. "-" .. PARENT .. "-01.more",
            "01-" .. TRACE .. "-" .. PARENT .. "-011",
            "ff-" .. TRACE .. "-" .. PARENT .. "-01",
            "0-" .. TRACE .. "-" .. PARENT .. "-001",
            ".0-" .. TRACE .. "-" .. PARENT .. "-01",
            "0A-" .. TRACE .. "-" .. PARENT .. "-01",
            "00-" .. TRACE:upper() .. "-" .. PARENT .. "-01",
            "00-" .. TRACE .. "-" .. PARENT:upper() .. "-01",
            "00-" .. TRACE .. "-" .. PARENT .. "-0A",
            "00-" .. ("0"):rep(32) .. "-" .. PARENT .. "-01",
            "00-" .. TRACE .. "-" .. ("0"):rep(16) .. "-01",
            "00-" .. TRACE:sub(1, 31) .. "g-" .. PARENT .. "-01",
            "00-" .. TRACE .. "-" .. PARENT:sub(1, 15) .. " -01",
            "00-" .. TRACE .. PARENT .. "---01",
            "00_" .. TRACE .. "-" .. PARENT .. "-01",
            "00-" .. TRACE .. "-" .. PARENT .. "_01",
            " 00-" .. TRACE .. "-" .. PARENT .. "-01",
            "00-" .. TRACE .. "-" .. PARENT .. "-01 ",
        }) do
            assert.is_nil((trace.parse(value)), value)
        end
        assert.is_nil((trace.parse(nil)))
        assert.is_nil((trace.parse({ "00-" .. TRACE .. "-" .. PARENT .. "-01" })))
    end)

    it("reads back what format wrote", function()
        assert.same({ TRACE, PARENT, 1 }, { trace.parse(trace.format(TRACE, PARENT, 1)) })
        assert.equal("00-" .. TRACE .. "-" .. PARENT .. "-00", trace.format(TRACE, PARENT, nil))
        assert.equal("00-" .. TRACE .. "-" .. PARENT .. "-02", trace.format(TRACE, PARENT, 0xFE))
    end)
end)

describe("state", function()
    it("passes on what fits and drops the rest", function()
        for _, value in ipairs({ "a=1", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "a=1 ,\tb=2", ("x"):rep(512),
            ("a,"):rep(31) .. "a" }) do
            assert.equal(value, trace.state(value))
        end
        for _, value in ipairs({ "", " ", ", ,", ("x"):rep(513), "a=1\r\nX: y", "a=\195\169", "a\0", ("a,"):rep(32) .. "a" }) do
            assert.is_nil(trace.state(value))
        end
        assert.is_nil(trace.state(nil))
        assert.is_nil(trace.state({ "a=1", "b=2" }))
    end)
end)

describe("ids", function()
    it("are all the bits of the two numbers", function()
        local function pair(high, low)
            return function()
                return high, low
            end
        end
        assert.equal("deadbeef00000001", trace.child(pair(0xdeadbeef, 1)))
        assert.equal("ffffffffffffffff", trace.child(pair(0xffffffff, 0xffffffff)))
        assert.equal("0102030480000000", trace.child(pair(0x01020304, 0x80000000)))
        assert.equal("0000000000000001", trace.child(pair(0, 0)))
        local id, span = trace.root(pair(0, 0))
        assert.is_string((trace.parse(trace.format(id, span, 0))))
    end)

    it("differ, and use every digit at every place", function()
        math.randomseed(5)
        local source = trace.source(math.random)
        local seen, places = {}, {}
        for _ = 1, 5000 do
            local id, span = trace.root(source)
            assert.is_string((trace.parse(trace.format(id, span, 0))))
            assert.is_nil(seen[id])
            assert.is_nil(seen[span])
            seen[id], seen[span] = true, true
            local both = id .. span
            for place = 1, #both do
                places[place .. both:sub(place, place)] = true
            end
        end
        local count = 0
        for _ in pairs(places) do
            count = count + 1
        end
        assert.equal(48 * 16, count)
    end)
end)

describe("continue", function()
    local function fixed()
        return 0xaaaaaaaa, 0xbbbbbbbb
    end

    it("goes on with the client's trace", function()
        assert.same({ "00-" .. TRACE .. "-aaaaaaaabbbbbbbb-01", "a=1", TRACE, "aaaaaaaabbbbbbbb", PARENT, 1 },
            { trace.continue("00-" .. TRACE .. "-" .. PARENT .. "-01", "a=1", fixed, false) })
        local header, state = trace.continue("00-" .. TRACE .. "-" .. PARENT .. "-00", ("x"):rep(600), fixed, true)
        assert.equal("00-" .. TRACE .. "-aaaaaaaabbbbbbbb-00", header)
        assert.is_nil(state)
    end)

    it("begins one otherwise, without the client's state", function()
        local header, state, id, span, parent = trace.continue("garbage", "a=1", fixed, true)
        assert.equal("00-aaaaaaaabbbbbbbbaaaaaaaabbbbbbbb-aaaaaaaabbbbbbbb-03", header)
        assert.is_nil(state)
        assert.equal(("aaaaaaaabbbbbbbb"):rep(2), id)
        assert.equal("aaaaaaaabbbbbbbb", span)
        assert.is_nil(parent)
        assert.matches("%-02$", (trace.continue(nil, nil, fixed, false)))
    end)

    it("lets somebody else decide what is recorded", function()
        local asked
        local function decide(flags)
            asked = flags
            return flags ~= 1
        end
        local header, _, id, span, parent, flags =
            trace.continue("00-" .. TRACE .. "-" .. PARENT .. "-01", nil, fixed, true, decide)
        assert.equal(1, asked)
        assert.same({ TRACE, PARENT, 0 }, { id, parent, flags })
        assert.equal("00-" .. TRACE .. "-" .. span .. "-00", header)
        -- How the id was made stays true.
        header = trace.continue("00-" .. TRACE .. "-" .. PARENT .. "-02", nil, fixed, false, decide)
        assert.matches("%-03$", header)
        header, _, _, _, parent, flags = trace.continue(nil, nil, fixed, false, decide)
        assert.is_nil(asked)
        assert.is_nil(parent)
        assert.equal(3, flags)
        assert.matches("%-03$", header)
    end)
end)
