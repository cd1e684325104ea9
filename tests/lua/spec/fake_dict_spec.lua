-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- The other specs are worth as much as their dict is like that of nginx.

local fake_dict = require("fake_dict")

local function setup(capacity)
    local clock = { now = 100 }
    return fake_dict.new({
        now = function()
            return clock.now
        end,
        capacity = capacity,
    }), clock
end

describe("the dict of the specs", function()
    it("increments as nginx does", function()
        local dict, clock = setup()
        assert.same({ nil, "not found" }, { dict:incr("a", 1) })
        assert.equal(6, (dict:incr("a", 1, 5, 10)))
        assert.equal(4, (dict:incr("a", -2, 5, 99)))
        clock.now = 109.9
        assert.equal(4, dict:get("a"))
        clock.now = 110
        assert.is_nil(dict:get("a"))
        assert.same({ 4, nil, true }, { dict:get_stale("a") })
        dict:set("s", "text")
        assert.same({ nil, "not a number" }, { dict:incr("s", 1) })
    end)

    it("adds what is not there, and what has expired", function()
        local dict, clock = setup()
        assert.is_true((dict:add("a", 1, 5)))
        assert.same({ false, "exists", false }, { dict:add("a", 2) })
        assert.same({ false, "exists", false }, { dict:safe_add("a", 2) })
        clock.now = 105
        assert.is_true((dict:safe_add("a", 2)))
        assert.equal(2, dict:get("a"))
        assert.same({ false, "not found", false }, { dict:replace("b", 1) })
        dict:set("a", nil)
        assert.is_nil(dict:get("a"))
    end)

    it("changes the time that a key has", function()
        local dict, clock = setup()
        dict:set("a", 1, 5)
        assert.equal(5, dict:ttl("a"))
        assert.is_true(dict:expire("a", 9))
        clock.now = 108
        assert.equal(1, dict:ttl("a"))
        assert.is_true(dict:expire("a", 0))
        clock.now = 1000
        assert.equal(1, dict:get("a"))
        assert.equal(0, dict:ttl("a"))
        assert.same({ nil, "not found" }, { dict:expire("b", 1) })
    end)

    it("evicts the one used least recently, but not for the safe calls", function()
        local dict = setup(2)
        dict:set("a", 1)
        dict:set("b", 1)
        dict:get("a")
        assert.same({ false, "no memory", false }, { dict:safe_set("c", 1) })
        assert.same({ false, "no memory", false }, { dict:safe_add("c", 1) })
        assert.same({ 1, nil, true }, { dict:incr("c", 1, 0) })
        assert.same({ "a", "c" }, dict:get_keys(0))
        assert.equal(1, dict.evictions)
        assert.equal(0, dict:free_space())
    end)

    it("frees what has expired only at the cold end, or when it is swept", function()
        local dict, clock = setup(3)
        dict:set("cold", 1)
        dict:set("a", 1, 5)
        dict:set("b", 1, 5)
        clock.now = 200
        assert.same({ "cold" }, dict:get_keys(0))
        assert.same({ false, "no memory", false }, { dict:safe_add("c", 1) })
        assert.equal(1, dict:flush_expired(1))
        assert.is_true((dict:safe_add("c", 1)))
        assert.equal(1, dict:flush_expired())
        assert.equal(0, dict:flush_expired())
        dict:get("cold")
        dict:expire("c", 1)
        clock.now = 300
        dict:set("d", 1)
        dict:set("e", 1)
        assert.same({ "cold", "d", "e" }, dict:get_keys(0))
        assert.equal(1, #dict:get_keys(1))
    end)

    it("calls its hook before each operation", function()
        local dict = setup()
        local calls = 0
        dict.yield_hook = function()
            calls = calls + 1
        end
        dict:set("a", 1)
        dict:incr("a", 1)
        dict:get("a")
        dict:get_keys(0)
        assert.equal(4, calls)
        assert.equal(2, dict:peek("a"))
        assert.equal(4, calls)
    end)
end)
