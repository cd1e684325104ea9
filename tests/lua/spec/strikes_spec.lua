-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local fake_dict = require("fake_dict")
local strikes = require("gw.strikes")
local workers = require("workers")

describe("strikes", function()
    local now, dict, guard

    before_each(function()
        now = 1000
        dict = fake_dict.new({ now = function()
            return now
        end })
        guard = strikes.new({ dict = dict, limit = 3, window = 60 })
    end)

    it("blocks an address at the limit, for one window", function()
        assert.is_false(guard:blocked("192.0.2.1", now))
        assert.same({ 1, false }, { guard:strike("192.0.2.1", now) })
        assert.same({ 2, false }, { guard:strike("192.0.2.1", now) })
        assert.is_false(guard:blocked("192.0.2.1", now))
        assert.same({ 3, true }, { guard:strike("192.0.2.1", now) })
        assert.same({ true, 60 }, { guard:blocked("192.0.2.1", now) })
        assert.is_false(guard:blocked("192.0.2.2", now))
        now = 1059.5
        assert.same({ true, 1 }, { guard:blocked("192.0.2.1", now) })
        now = 1060
        assert.is_false(guard:blocked("192.0.2.1", now))
        -- and the count begins anew
        assert.same({ 1, false }, { guard:strike("192.0.2.1", now) })
    end)

    it("forgets strikes a window after the first one", function()
        guard:strike("192.0.2.1", now)
        now = now + 59
        guard:strike("192.0.2.1", now)
        now = now + 2
        assert.same({ 1, false }, { guard:strike("192.0.2.1", now) })
        assert.is_false(guard:blocked("192.0.2.1", now))
    end)

    it("counts an IPv6 network as one address", function()
        guard:strike("2001:db8:0:1::1", now)
        guard:strike("2001:0DB8::1:aaaa:bbbb:cccc:dddd", now)
        guard:strike("2001:db8:0:1:ffff:ffff:192.0.2.1", now)
        assert.is_true((guard:blocked("2001:db8:0:1:9::9", now)))
        assert.is_false((guard:blocked("2001:db8:0:2::1", now)))
    end)

    it("knows what addresses are one", function()
        for address, network in pairs({
            ["192.0.2.1"] = "192.0.2.1",
            ["::ffff:192.0.2.1"] = "192.0.2.1",
            ["::FFFF:c000:0201"] = "192.0.2.1",
            ["::1"] = "0:0:0:0::/64",
            ["::"] = "0:0:0:0::/64",
            ["fe80::1%eth0"] = "fe80:0:0:0::/64",
            ["2001:db8::"] = "2001:db8:0:0::/64",
            ["1:2:3:4:5:6:7:8"] = "1:2:3:4::/64",
            ["1::8"] = "1:0:0:0::/64",
            ["unix:"] = "unix:",
            ["1:2:3"] = "1:2:3",
        }) do
            assert.equal(network, strikes.network(address))
        end
    end)

    it("never blocks with limit 0", function()
        guard = strikes.new({ dict = dict, limit = 0, window = 60 })
        for _ = 1, 10 do
            guard:strike("192.0.2.1", now)
        end
        assert.is_false(guard:blocked("192.0.2.1", now))
        assert.same({}, dict:get_keys(0))
    end)

    it("blocks at the first strike with limit 1", function()
        guard = strikes.new({ dict = dict, limit = 1, window = 60 })
        assert.same({ 1, true }, { guard:strike("192.0.2.1", now) })
        assert.is_true((guard:blocked("192.0.2.1", now)))
    end)

    it("pushes nobody else's key out of a full dict", function()
        dict = fake_dict.new({ capacity = 10, now = function()
            return now
        end })
        dict:set("someone", "else")
        guard = strikes.new({ dict = dict, limit = 3, window = 60 })
        for index = 1, 100 do
            guard:strike("192.0.2." .. index, now)
        end
        assert.equal("else", dict:peek("someone"))
        assert.equal(0, dict.evictions)
        assert.equal(91, guard.dropped)
        -- those that are noted go on being counted, and the count makes the room for the block
        assert.same({ 2, false }, { guard:strike("192.0.2.1", now) })
        assert.same({ 3, true }, { guard:strike("192.0.2.1", now) })
        assert.is_true((guard:blocked("192.0.2.1", now)))
        assert.equal(91, guard.dropped)
        assert.equal("else", dict:get("someone"))
        -- and what has expired makes room
        now = now + 61
        assert.same({ 1, false }, { guard:strike("192.0.2.99", now) })
        assert.equal("else", dict:peek("someone"))
    end)

    it("blocks once and loses no strike over any interleaving of workers", function()
        for seed = 1, 300 do
            local rand = workers.random(seed)
            dict = fake_dict.new({ hook = workers.yield, now = function()
                return now
            end })
            guard = strikes.new({ dict = dict, limit = 6, window = 60 })
            local blocks, bodies = 0, {}
            for index = 1, 3 do
                bodies[index] = function()
                    for _ = 1, 2 do
                        local _, blocked = guard:strike("192.0.2.1", now)
                        blocks = blocks + (blocked and 1 or 0)
                    end
                end
            end
            workers.run(bodies, rand)
            assert.equal(1, blocks)
            assert.is_true((guard:blocked("192.0.2.1", now)))
        end
    end)
end)
