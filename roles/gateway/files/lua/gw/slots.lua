-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Counters of what is in flight (requests of a tenant, load of a peer) that survive the death of a worker.
--
-- Each worker notes in a ledger, under its pid, what it holds. When a worker is gone without giving back, another one
-- reads its ledger and does it. Pids and not worker numbers: nginx gives a number to a new worker while the old one
-- still drains.
--
-- A counter is raised before the ledger line and lowered after it, by no more than the line held. So at every moment
-- a counter is at least the sum of its lines: whatever is killed in between, a limit is tighter for a while, never
-- looser, and no counter is ever negative.
--
-- Keys. dict: KEY a counter, which stays when it is zero, since it could not be deleted at the same moment. ledger:
-- PID|KEY what a worker holds, kept only while that is not zero; pid|PID a worker; d|KEY and c|KEY a drift that was
-- seen, and how often; generation, reap, compare, suspect. No key is made by evicting another: without memory a slot
-- is refused. Nothing else may write to the two dicts in a way that evicts.

local drift = require("gw.drift")

local M = {}
M.__index = M

local max = math.max
local match, sub = string.match, string.sub

-- A line that was taken away holds less than half of this.
local DEAD = -2 ^ 50
local HALF_DEAD = DEAD / 2

-- Seconds between two comparisons of all counters with the ledgers, while there is reason to suspect a difference (a
-- worker died, or one was seen), and otherwise. There can be as many counters as tenants, so it is not done all the
-- time.
local SUSPECT_EVERY, COMPARE_EVERY = 5, 60
local SUSPECT_FOR = 60
-- Times that a difference must have been seen before it is put right.
local SIGHTINGS = 3
-- Counters that are looked at closely in one comparison; the others have their turn in the next.
local CLOSE_LOOKS = 500

-- Names of lines, remembered per worker. Forgotten as a whole when there are so many.
local LINES_MAX = 20000

-- Raise a number, which is made if it is not there. Returns its new value, or nil without memory.
local function raise(dict, name, n)
    local value, err = dict:incr(name, n)
    if value or err ~= "not found" then
        return value
    end
    local ok
    ok, err = dict:safe_add(name, n)
    if ok then
        return n
    end
    if err == "exists" then
        return (dict:incr(name, n))
    end
    return nil
end

-- Take a line out of the ledger, once over all workers. Returns what it held; 0 if another reaper was first. One that
-- died after that has left a drift, which is found.
local function claim(ledger, name)
    local left = ledger:incr(name, DEAD)
    if not left then
        return 0
    end
    ledger:delete(name)
    return max(0, left - DEAD)
end

-- new{dict, ledger, pid}: two shared dicts, and the number of this process. Registers the worker. Once per process,
-- for what an earlier process of the same number left is given back.
function M.new(options)
    local self = setmetatable({
        dict = options.dict,
        ledger = options.ledger,
        pid = options.pid,
        prefix = options.pid .. "|",
        -- The processes that may hold something, as this worker last read them, and when that was.
        pids = {},
        generation = nil,
        lines = {},
        line_count = 0,
        -- Operations that a dict refused for lack of memory.
        failures = 0,
        -- Counters that were put right.
        repairs = 0,
    }, M)
    local ledger, prefix = self.ledger, self.prefix
    local names = ledger:get_keys(0)
    for i = 1, #names do
        local name = names[i]
        if sub(name, 1, #prefix) == prefix then
            local held = claim(ledger, name)
            if held > 0 then
                self.dict:incr(sub(name, #prefix + 1), -held)
            end
        end
    end
    ledger:safe_set("pid|" .. options.pid, 1)
    raise(ledger, "generation", 1)
    return self
end

-- The name of the worker's own line.
local function line_of(self, key)
    local line = self.lines[key]
    if not line then
        if self.line_count >= LINES_MAX then
            self.lines, self.line_count = {}, 0
        end
        line = self.prefix .. key
        self.lines[key], self.line_count = line, self.line_count + 1
    end
    return line
end

-- Lower the worker's own line by n at the most; returns by how much. Nobody else writes it while the worker lives, so
-- an empty one can be deleted.
local function unnote(self, key, n)
    local ledger, name = self.ledger, line_of(self, key)
    local left = ledger:incr(name, -n)
    if not left then
        return 0
    end
    if left <= 0 then
        ledger:delete(name)
        return max(0, n + left)
    end
    return n
end

-- Raise counter and line by n. Returns the counter's new value, or nil without memory; then nothing has changed. With
-- a limit above 0 and a counter beyond it nothing has changed either.
local function hold(self, key, n, limit)
    local used = raise(self.dict, key, n)
    if not used then
        self.failures = self.failures + 1
        return nil
    end
    if limit > 0 and used > limit then
        self.dict:incr(key, -n)
        return used
    end
    if not raise(self.ledger, line_of(self, key), n) then
        self.dict:incr(key, -n)
        self.failures = self.failures + 1
        return nil
    end
    return used
end

-- Take n (1 unless given) of a limit; 0 is no limit.
-- Returns true and what is in use, this included; or false and what is in use. The counter is raised before it is
-- compared, so no two requests can both have the last slot.
function M:acquire(key, limit, n)
    n = n or 1
    local used = hold(self, key, n, limit)
    if not used then
        return false, self:value(key)
    end
    if limit > 0 and used > limit then
        return false, max(0, used - n)
    end
    return true, used
end

-- Give back n (1 unless given). What this worker does not hold is not given back.
function M:release(key, n)
    local held = unnote(self, key, n or 1)
    if held > 0 then
        self.dict:incr(key, -held)
    end
end

-- Raise or lower a counter that has no limit, by a whole number. Returns false if there was no memory to raise it;
-- lowering it by the same later does nothing then.
function M:add(key, n)
    if n > 0 then
        return hold(self, key, n, 0) ~= nil
    elseif n < 0 then
        self:release(key, -n)
    end
    return true
end

-- What is in use.
function M:value(key)
    return (max(0, self.dict:get(key) or 0))
end

-- A worker that ends by itself has given back everything and is no longer one.
function M:leave()
    self.ledger:delete("pid|" .. self.pid)
    raise(self.ledger, "generation", 1)
end

-- The lines of a counter, together.
local function lines(ledger, key, pids)
    local sum = 0
    for pid in pairs(pids) do
        local held = ledger:get(pid .. "|" .. key)
        if held and held > HALF_DEAD then
            sum = sum + held
        end
    end
    return sum
end

-- There may be a difference: compare again in some seconds, and often for a while.
local function suspect(ledger, seconds)
    ledger:safe_set("suspect", 1, SUSPECT_FOR)
    ledger:expire("compare", seconds)
end

-- Take note of a drift; put the counter right when it was seen often enough. Returns what was given back.
local function sighting(self, key, seen)
    local ledger, drift_name = self.ledger, "d|" .. key
    local last = ledger:get(drift_name)
    if seen ~= 0 then
        suspect(ledger, SUSPECT_EVERY)
    end
    local wrong = drift.sighted(ledger, drift_name, "c|" .. key, 2 * SUSPECT_FOR, seen, last, SIGHTINGS)
    if wrong == 0 then
        return 0
    end
    raise(self.dict, key, -wrong)
    self.repairs = self.repairs + 1
    return max(0, wrong)
end

-- Put right the counters that do not agree with the ledgers: a worker was killed between two operations. The lists
-- are older than the counters when they are compared, so they only say where to look closely.
local function compare(self, names, pids)
    local dict, ledger, reaped, looks = self.dict, self.ledger, 0, 0
    local held = {}
    for i = 1, #names do
        local key = match(names[i], "^%d+|(.+)$")
        if key then
            held[key] = (held[key] or 0) + (ledger:get(names[i]) or 0)
        end
    end
    local keys = dict:get_keys(0)
    local count, listed = #keys, {}
    for i = 1, count do
        listed[keys[i]] = true
    end
    for key in pairs(held) do
        if not listed[key] then
            count = count + 1
            keys[count] = key
        end
    end
    local from = count > 0 and (self.cursor or 0) % count or 0
    for i = 1, count do
        local key = keys[(from + i - 1) % count + 1]
        if (dict:get(key) or 0) ~= (held[key] or 0) or ledger:get("d|" .. key) then
            local seen = drift.measure(dict, key, 4, lines, ledger, key, pids)
            if seen then
                reaped = reaped + sighting(self, key, seen)
            end
            looks = looks + 1
            if looks >= CLOSE_LOOKS then
                self.cursor = from + i
                break
            end
        end
    end
    return reaped
end

-- The processes named by a list of keys: those that registered, and those that hold something.
local function pids_of(names)
    local pids = {}
    for i = 1, #names do
        local pid = match(names[i], "^pid|(%d+)$") or match(names[i], "^(%d+)|")
        if pid then
            pids[pid] = true
        end
    end
    return pids
end

-- Give back what dead workers hold. One worker at a time does it; call it every second in each. It costs a handful of
-- operations unless a worker came or died or it is time to compare; only then the keys are listed.
--   alive(pid) -> boolean: is there such a worker? A number that another program has now must not count as one.
-- Returns how much was given back, by all counters together.
function M:reap(alive)
    local dict, ledger, reaped = self.dict, self.ledger, 0
    if not ledger:safe_add("reap", self.pid, 0.9) then
        return 0
    end
    local generation = ledger:get("generation")
    local due = ledger:safe_add("compare", self.pid, ledger:get("suspect") and SUSPECT_EVERY or COMPARE_EVERY)
    local names
    if due or generation ~= self.generation then
        names = ledger:get_keys(0)
        self.pids, self.generation = pids_of(names), generation
    end
    local died
    for pid in pairs(self.pids) do
        if not alive(tonumber(pid)) then
            died = died or {}
            died[pid] = true
        end
    end
    if died then
        -- Lines that were written since the keys were listed are among these.
        names = ledger:get_keys(0)
        for i = 1, #names do
            local pid, key = match(names[i], "^(%d+)|(.+)$")
            if pid and died[pid] then
                -- Out of the ledger first: a reaper that dies here leaves a drift, which is found later, and no line
                -- that would be given back twice.
                local n = claim(ledger, names[i])
                if n > 0 then
                    dict:incr(key, -n)
                    reaped = reaped + n
                end
            end
        end
        for pid in pairs(died) do
            ledger:delete("pid|" .. pid)
            self.pids[pid] = nil
        end
        -- It may have stood between a counter and its line. The next comparison comes soon.
        suspect(ledger, 1)
        raise(ledger, "generation", 1)
    elseif due then
        reaped = reaped + compare(self, names, self.pids)
    end
    return reaped
end

return M
