-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Who sends a request: from the key in its Authorization or x-api-key header to the tenant.
--
-- The configuration holds SHA-256 digests only, and the digest of what was sent is looked up in a table. No comparison
-- depends on how much of a key is right: one wrong bit gives an unrelated digest, so the time that a lookup takes says
-- nothing about the bytes of any key, and a digest cannot be turned back into a key. (Keys are random and long; slow
-- password hashes are for what people choose.)
--
-- There is deliberately no cache from raw keys to tenants: hashing costs less than half a microsecond, a cache would save
-- a part of that and keep raw keys in the memory of every worker for as long as it lives. Unknown keys need no negative
-- cache for the same reason, so neither can be flooded.

local M = {}
M.__index = M

local span = require("gw.scan").span

local byte, char, find, lower, sub = string.byte, string.char, string.find, string.lower, string.sub

local VISIBLE = ""
for code = 33, 126 do
    VISIBLE = VISIBLE .. char(code)
end

-- Length of a key in bytes.
M.SHORTEST, M.LONGEST = 8, 512

-- new{keys, sha256}: keys: table from digests (64 lower-case hexadecimal digits) to tenants;
-- sha256(string) -> such a digest, or nil.
function M.new(options)
    return setmetatable({ keys = options.keys, sha256 = options.sha256 }, M)
end

-- The key in a header's value ("Bearer KEY" in any case of the scheme, or the key alone), or nil, "missing"|"malformed".
function M.key(value)
    if value == nil or value == "" then
        return nil, "missing"
    elseif type(value) ~= "string" or #value > M.LONGEST + 64 then
        -- A header that was sent several times is a table.
        return nil, "malformed"
    end
    local first, last = 1, #value
    if byte(value, 7) == 32 and lower(sub(value, 1, 6)) == "bearer" then
        first = byte(value, 8) ~= 32 and 8 or find(value, "[^ ]", 8) or last + 1
    end
    while last >= first and byte(value, last) == 32 do
        last = last - 1
    end
    local length = last - first + 1
    if length < M.SHORTEST or length > M.LONGEST then
        return nil, "malformed"
    end
    if first > 1 or last < #value then
        value = sub(value, first, last)
    end
    -- Visible ASCII only. A space left means another scheme, or two words.
    if span(value, 1, VISIBLE) ~= #value then
        return nil, "malformed"
    end
    return value
end

-- check(value): value of the Authorization or x-api-key header, nil when there is none.
-- Returns the tenant, or nil and "missing", "malformed" or "unknown".
function M:check(value)
    local key, reason = M.key(value)
    if not key then
        return nil, reason
    end
    local digest = self.sha256(key)
    local tenant = digest and self.keys[digest]
    if tenant then
        return tenant
    end
    return nil, "unknown"
end

return M
