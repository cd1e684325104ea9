-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Count failed authentications by address and block an address that has too many of them.
--
-- Strikes are counted from the first one on, for one window; the one that reaches the limit blocks the address for one
-- window and ends the count. Only one number per address is kept, with a time to live, and a new address is noted with
-- safe_add: a flood of addresses can fill the dict, but it never pushes out a key that others use (what was not noted is
-- counted in `dropped`).

local M = {}
M.__index = M

local find, format, gmatch, lower, match, sub =
    string.find, string.format, string.gmatch, string.lower, string.match, string.sub
local concat = table.concat

-- new{dict, limit, window}: limit: strikes that block (0 = never block); window: seconds.
function M.new(options)
    return setmetatable({
        dict = options.dict,
        limit = options.limit,
        window = options.window,
        dropped = 0,
    }, M)
end

-- The eight groups of an IPv6 address in text form, or nil.
local function groups(address)
    -- A dotted quad at the end stands for two groups.
    local head, a, b, c, d = match(address, "^(.*:)(%d+)%.(%d+)%.(%d+)%.(%d+)$")
    if head then
        address = head .. format("%x:%x", a * 256 + b, c * 256 + d)
    end
    local left, right = address, nil
    local at = find(address, "::", 1, true)
    if at then
        left, right = sub(address, 1, at - 1), sub(address, at + 2)
    end
    local out = {}
    for group in gmatch(left, "[^:]+") do
        out[#out + 1] = tonumber(group, 16)
    end
    if right then
        local tail = {}
        for group in gmatch(right, "[^:]+") do
            tail[#tail + 1] = tonumber(group, 16)
        end
        for _ = #out + #tail + 1, 8 do
            out[#out + 1] = 0
        end
        for index = 1, #tail do
            out[#out + 1] = tail[index]
        end
    end
    if #out ~= 8 then
        return nil
    end
    return out
end

-- What an address is counted under: an IPv4 address itself (also when it is mapped into IPv6), the /64 network of an IPv6
-- address, because whoever has one address of it has all of them. Any other text (such as unix:) stands for itself.
function M.network(address)
    if not find(address, ":", 1, true) then
        return address
    end
    local zone = find(address, "%", 1, true)
    local out = groups(lower(zone and sub(address, 1, zone - 1) or address))
    if not out then
        return address
    end
    if concat(out, ":", 1, 6) == "0:0:0:0:0:65535" then
        return format("%d.%d.%d.%d", out[7] / 256, out[7] % 256, out[8] / 256, out[8] % 256)
    end
    return format("%x:%x:%x:%x::/64", out[1], out[2], out[3], out[4])
end

-- Note a failed authentication. address: text form of the peer's IP; now: seconds.
-- Returns the strikes counted so far, and whether this one blocked the address.
function M:strike(address, now)
    if self.limit <= 0 then
        return 0, false
    end
    local dict, network = self.dict, M.network(address)
    local key = "s:" .. network
    local count
    -- Twice: the key may vanish between incr and safe_add, or appear.
    for _ = 1, 2 do
        count = dict:incr(key, 1)
        if count then
            break
        end
        local added, why = dict:safe_add(key, 1, self.window)
        if added then
            count = 1
            break
        elseif why ~= "exists" then
            self.dropped = self.dropped + 1
            return 0, false
        end
    end
    if not count then
        return 0, false
    end
    if count < self.limit then
        return count, false
    end
    -- Several workers may come here with counts from the limit on; add lets one of them block.
    local added, why = dict:safe_add("b:" .. network, now + self.window, self.window)
    dict:delete(key)
    if not added and why ~= "exists" then
        -- In a full dict the count itself makes the room.
        added, why = dict:safe_add("b:" .. network, now + self.window, self.window)
        if not added and why ~= "exists" then
            self.dropped = self.dropped + 1
        end
    end
    return count, added
end

-- Is the address blocked? Returns true and the seconds until it is not (a whole number >= 1), or false.
function M:blocked(address, now)
    if self.limit <= 0 then
        return false
    end
    local ends = self.dict:get("b:" .. M.network(address))
    if not ends or ends <= now then
        return false
    end
    return true, math.ceil(ends - now)
end

return M
