-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- A shared dict of nginx for specs: the same calls and return values, a clock that the spec moves, and a hook before
-- every operation by which a scheduler interleaves workers.
--
-- Like that of nginx, a full dict frees what has expired only at the cold end of its list of least recent use:
-- something expired behind a live key takes room until flush_expired or an eviction.

local M = {}
M.__index = M

-- new{now, capacity, yield_hook}: now() -> seconds; capacity: keys that fit, nil for any number; yield_hook() runs
-- before each call (also as the field of that name, and as the option `hook`).
function M.new(options)
    options = options or {}
    return setmetatable({
        clock = options.now or os.time,
        size = options.capacity or math.huge,
        yield_hook = options.yield_hook or options.hook,
        items = {},
        used = 0,
        tick = 0,
        evictions = 0,
        operations = 0,
    }, M)
end

local function enter(self)
    if self.yield_hook then
        self.yield_hook()
    end
    self.tick = self.tick + 1
    self.operations = self.operations + 1
end

local function drop(self, key)
    if self.items[key] then
        self.items[key] = nil
        self.used = self.used - 1
    end
end

local function expired(self, item)
    return item.ends ~= nil and item.ends <= self.clock()
end

-- The item if it lives; keep: do not count it as used.
local function live(self, key, keep)
    local item = self.items[key]
    if not item or expired(self, item) then
        return nil
    end
    if not keep then
        item.touched = self.tick
    end
    return item
end

local function coldest(self)
    local oldest
    for key, item in pairs(self.items) do
        if not oldest or item.touched < self.items[oldest].touched then
            oldest = key
        end
    end
    return oldest
end

-- Make room for one key. Returns ok, forcible.
local function room(self, safe)
    if self.used < self.size then
        return true, false
    end
    local oldest = coldest(self)
    if oldest and expired(self, self.items[oldest]) then
        drop(self, oldest)
        return true, false
    end
    if safe or not oldest then
        return false, false
    end
    drop(self, oldest)
    self.evictions = self.evictions + 1
    return true, true
end

local function put(self, key, value, ttl, safe)
    local kind = type(value)
    if kind ~= "number" and kind ~= "string" and kind ~= "boolean" then
        return nil, "bad value type", false
    end
    local forcible = false
    if not self.items[key] then
        local ok
        ok, forcible = room(self, safe)
        if not ok then
            return false, "no memory", false
        end
        self.used = self.used + 1
    end
    local ends = ttl and ttl > 0 and self.clock() + ttl or nil
    self.items[key] = { value = value, ends = ends, touched = self.tick }
    return true, nil, forcible
end

function M:get(key)
    enter(self)
    local item = live(self, key)
    if item then
        return item.value
    end
    return nil
end

-- Returns value, flags, stale.
function M:get_stale(key)
    enter(self)
    local item = self.items[key]
    if not item then
        return nil
    end
    item.touched = self.tick
    return item.value, nil, expired(self, item)
end

function M:set(key, value, ttl)
    enter(self)
    if value == nil then
        drop(self, key)
        return true, nil, false
    end
    return put(self, key, value, ttl, false)
end

function M:safe_set(key, value, ttl)
    enter(self)
    return put(self, key, value, ttl, true)
end

function M:add(key, value, ttl)
    enter(self)
    if live(self, key) then
        return false, "exists", false
    end
    return put(self, key, value, ttl, false)
end

function M:safe_add(key, value, ttl)
    enter(self)
    if live(self, key) then
        return false, "exists", false
    end
    return put(self, key, value, ttl, true)
end

function M:replace(key, value, ttl)
    enter(self)
    if not live(self, key) then
        return false, "not found", false
    end
    return put(self, key, value, ttl, false)
end

function M:incr(key, delta, init, ttl)
    enter(self)
    local item = live(self, key)
    if item then
        if type(item.value) ~= "number" then
            return nil, "not a number"
        end
        item.value = item.value + delta
        return item.value, nil, false
    end
    if not init then
        return nil, "not found"
    end
    local ok, err, forcible = put(self, key, init + delta, ttl, false)
    if not ok then
        return nil, err
    end
    return init + delta, nil, forcible
end

function M:delete(key)
    enter(self)
    drop(self, key)
end

function M:expire(key, ttl)
    enter(self)
    local item = live(self, key, true)
    if not item then
        return nil, "not found"
    end
    item.ends = ttl > 0 and self.clock() + ttl or nil
    return true
end

function M:ttl(key)
    enter(self)
    local item = live(self, key, true)
    if not item then
        return nil, "not found"
    end
    return item.ends and item.ends - self.clock() or 0
end

-- get_keys(max): 0 is all of them, as in nginx.
function M:get_keys(max)
    enter(self)
    max = max or 1024
    local keys = {}
    for key, item in pairs(self.items) do
        if not expired(self, item) then
            keys[#keys + 1] = key
        end
    end
    table.sort(keys)
    if max ~= 0 then
        for i = #keys, max + 1, -1 do
            keys[i] = nil
        end
    end
    return keys
end

-- Returns how many keys were freed: max at the most, 0 or nothing is all.
function M:flush_expired(max)
    enter(self)
    local dead = {}
    for key, item in pairs(self.items) do
        if expired(self, item) then
            dead[#dead + 1] = key
        end
    end
    local count = (max and max > 0) and math.min(max, #dead) or #dead
    table.sort(dead)
    for i = 1, count do
        drop(self, dead[i])
    end
    return count
end

function M:free_space()
    enter(self)
    return math.max(0, self.size - self.used) * 64
end

function M:capacity()
    enter(self)
    return self.size * 64
end

-- For specs: what a key holds, without the hook.
function M:peek(key)
    local item = self.items[key]
    if item and not expired(self, item) then
        return item.value
    end
    return nil
end

return M
