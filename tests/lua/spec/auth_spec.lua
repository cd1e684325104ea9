-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local auth = require("gw.auth")
local sha256 = require("gw.sha256")

describe("auth", function()
    local KEY, SHORT, LONG = "sk-live-0123456789", "12345678", ("k"):rep(512)
    local one, two = { id = "one" }, { id = "two" }
    local hashed, door

    before_each(function()
        hashed = 0
        door = auth.new({
            keys = { [sha256.hex(KEY)] = one, [sha256.hex(SHORT)] = two, [sha256.hex(LONG)] = two },
            sha256 = function(text)
                hashed = hashed + 1
                return sha256.hex(text)
            end,
        })
    end)

    it("knows a key in either header", function()
        for _, value in ipairs({ "Bearer " .. KEY, "bearer " .. KEY, "BEARER   " .. KEY .. "  ", KEY, KEY .. " " }) do
            assert.equal(one, door:check(value), value)
        end
        assert.equal(two, door:check(SHORT))
        assert.equal(two, door:check("Bearer " .. LONG))
    end)

    local function refused(value, reason)
        local tenant, why = door:check(value)
        assert.is_nil(tenant)
        assert.equal(reason, why)
    end

    it("says what is wrong", function()
        refused(nil, "missing")
        refused("", "missing")
        for _, value in ipairs({ "Bearer", "Bearer ", "Bearer  ", "1234567", "Bearer 1234567", LONG .. "k", ("k"):rep(100000),
            "Basic " .. KEY, "Bearer " .. KEY .. " " .. KEY, "Bearer\t" .. KEY, KEY .. "\195\169", KEY .. "\0", KEY .. "\n",
            "Bearer Bearer " .. KEY, " " .. KEY }) do
            refused(value, "malformed")
        end
        refused({ "Bearer " .. KEY, "Bearer " .. KEY }, "malformed")
        refused("Bearer " .. KEY .. "0", "unknown")
        refused("Bearer " .. KEY:upper(), "unknown")
        refused(KEY:sub(1, -2), "unknown")
    end)

    it("does not take a digest for a key", function()
        refused("Bearer " .. sha256.hex(KEY), "unknown")
    end)

    it("does not hash what cannot be a key", function()
        door:check(("k"):rep(100000))
        door:check(nil)
        door:check("Basic " .. KEY)
        assert.equal(0, hashed)
    end)

    it("keeps no raw key", function()
        for index = 1, 100 do
            door:check("Bearer " .. KEY .. index)
        end
        door:check("Bearer " .. KEY)
        local function search(value, seen)
            if type(value) == "string" then
                assert.is_nil(value:find(KEY, 1, true))
            elseif type(value) == "table" and not seen[value] then
                seen[value] = true
                for key, inner in pairs(value) do
                    search(key, seen)
                    search(inner, seen)
                end
            end
        end
        search(door, {})
        search(auth, {})
    end)

    it("refuses everybody when the digest cannot be made", function()
        door.sha256 = function()
            return nil, "no"
        end
        refused(KEY, "unknown")
    end)
end)
