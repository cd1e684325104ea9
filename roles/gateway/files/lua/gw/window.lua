-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- A strict sliding window over a shared dict: in no window of its length is more admitted than the limit.
--
-- Time is cut into sub-buckets. A bucket counts whole until all of it is older than the window, which costs
-- 1/(buckets+1) of the throughput and buys that the bound holds for every trailing window, not only on average. A
-- running total makes a decision two atomic increments, whatever the number of buckets: raise the total, compare,
-- undo if it is too much.
--
-- Every operation that another worker can come between is ordered so that the total is never below the sum of the
-- buckets that count: raise the total before a bucket, lower a bucket before the total. What goes wrong in between, a
-- killed worker included, makes a limit tighter for a while, never looser.
--
-- Keys of the dict, for one counter. NAME:KEY:e names the era: a counter that nobody used for longer than a window
-- loses this key, and the next era begins from zero with names of its own, so that leftovers of the old one cannot be
-- mixed in. NAME:KEY:ERA:NUMBER a bucket; ...:t the total; ...:p the newest bucket that was expired; ...:d and ...:c
-- a drift that was seen and how often; ...:l a latch. No key is made by evicting another, which would reset some
-- limit: without memory the answer is no. Nothing else may write to the dict in a way that evicts.

local drift = require("gw.drift")

local M = {}
M.__index = M

local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min

-- A bucket that was expired holds less than half of this. Sums stay exact while 127 workers expire one bucket at a
-- time.
local DEAD = -2 ^ 46
local HALF_DEAD = DEAD / 2

-- Remembered per worker: name and age of a counter. Forgotten as a whole when there are so many.
local CELLS_MAX = 20000

-- Times that a drift must have been seen. Putting right what is not wrong would admit too much, so there are many.
local SIGHTINGS = 5

-- Seconds that an expired bucket stays to be recognized by a refund or by a clock that is late.
local GRAVE = 10

-- new{dict, name, window, buckets, slack, reconcile}
--   dict: shared dict; name: prefix of the keys, one per kind of window
--   window: seconds; buckets: 60 unless given
--   slack: seconds that a bucket counts longer, because the cached clocks of workers differ; 0.05 unless given. The
--     bound holds for requests whose clock is late by no more than this.
--   reconcile: false leaves totals of killed workers as they are
function M.new(options)
    local buckets = options.buckets or 60
    local window, slack = options.window, options.slack or 0.05
    local length = window / buckets
    -- A bucket counts for at most window + length + slack after it was made. Two more lengths, for the era is
    -- prolonged once per length only; one more second for what rounds.
    local idle = window + 3 * length + slack + 1
    return setmetatable({
        dict = options.dict,
        name = options.name .. ":",
        window = window,
        buckets = buckets,
        slack = slack,
        length = length,
        -- All of an era outlives the key that names it.
        era_ttl = idle,
        ttl = 2 * idle + 1,
        reach = ceil(idle / length) + 2,
        grave = max(1, ceil(min(window, GRAVE) / length)),
        tenth = max(1, floor(buckets / 10)),
        reconciles = options.reconcile ~= false,
        cells = {},
        cell_count = 0,
        flushed = -1,
        -- Operations that the dict refused for lack of memory, or a clock that was a window late; each refused a
        -- request.
        failures = 0,
        -- Totals that were put right after a worker had died between two operations.
        repairs = 0,
    }, M)
end

-- The newest bucket of which nothing can be in the window any more.
local function expired_index(self, now)
    return floor((now - self.window - self.slack) / self.length) - 1
end

-- When a bucket stops to count.
local function expires_at(self, index)
    return (index + 1) * self.length + self.window + self.slack
end

-- Make a key if there is room. nginx frees expired keys only where it looks, so a full dict is swept, but not too
-- often.
local function add(self, name, value, ttl, now)
    local ok, err = self.dict:safe_add(name, value, ttl)
    if not ok and err == "no memory" and (now >= self.flushed + 1 or now < self.flushed) then
        self.flushed = now
        if (self.dict:flush_expired(1000) or 0) > 0 then
            ok, err = self.dict:safe_add(name, value, ttl)
        end
    end
    return ok, err
end

-- Raise a number, which is made if it is not there. Returns its new value, or nil without memory.
local function raise(self, name, amount, ttl, now)
    local dict = self.dict
    local value, err = dict:incr(name, amount)
    if value or err ~= "not found" then
        return value
    end
    local ok
    ok, err = add(self, name, amount, ttl, now)
    if ok then
        return amount
    end
    if err == "exists" then
        return (dict:incr(name, amount))
    end
    return nil
end

-- The buckets that count, together. When the clock was set back by less than a window, some of them lie in the future.
local function live(self, cell, now)
    local dict, sum = self.dict, 0
    for index = cell.newest + 1, floor(now / self.length) + self.buckets + 2 do
        local held = dict:get(cell.prefix .. (index - cell.era))
        if held and held > HALF_DEAD then
            sum = sum + held
        end
    end
    return sum
end

-- Compare the total with its buckets: see gw.drift; the sightings are a tenth of a window apart. Looks once per window, and
-- each tenth while a drift is suspected.
local function reconcile(self, cell, now, done)
    local dict, newest, tenth, buckets = self.dict, cell.newest, self.tenth, self.buckets
    if floor(newest / tenth) == floor(done / tenth) then
        return
    end
    local drift_name = cell.prefix .. "d"
    local last = dict:get(drift_name)
    if not last and floor(newest / buckets) == floor(done / buckets) then
        return
    end
    if not dict:safe_add(cell.prefix .. "l", 1, tenth * self.length / 2) then
        return
    end
    local seen = drift.measure(dict, cell.total, 3, live, self, cell, now)
    local wrong = seen and drift.sighted(dict, drift_name, cell.prefix .. "c", self.ttl, seen, last, SIGHTINGS) or 0
    if wrong ~= 0 then
        raise(self, cell.total, -wrong, self.ttl, now)
        self.repairs = self.repairs + 1
    end
end

-- Take what is too old out of the total. Each bucket is taken once over all workers: who lowers it first has what it
-- held. A refund that comes at the same moment finds it dead.
local function expire(self, cell, first, last)
    local dict, prefix, era = self.dict, cell.prefix, cell.era
    for index = first, last do
        local bucket = prefix .. (index - era)
        local left = dict:incr(bucket, DEAD)
        if left then
            local held = left - DEAD
            if held < 0 then
                -- Another worker has been here.
                dict:incr(bucket, -DEAD)
            elseif held > 0 then
                dict:incr(cell.total, -held)
            end
        end
        -- Freed by hand: nginx frees what has expired only at the cold end of its list.
        dict:delete(prefix .. (index - era - self.grave))
    end
end

-- The era of a counter, prolonged; made if there is none and `create`. Returns nil if there is none, or no memory for
-- it.
local function era_of(self, base, now, newest, create)
    local dict, name = self.dict, base .. ":e"
    for _ = 1, 4 do
        local era = dict:get(name)
        if era then
            -- The total first: whoever prolongs an era has prolonged its total.
            dict:expire(base .. ":" .. era .. ":t", self.ttl)
            if dict:expire(name, self.era_ttl) then
                return era
            end
        elseif not create then
            return nil
        else
            local ok, err = add(self, name, newest, self.era_ttl, now)
            if ok then
                return newest
            end
            if err ~= "exists" then
                return nil
            end
        end
    end
    return nil
end

-- The clock was set back by more than a window: what was counted lies in the future, and would count until that has
-- come and gone. Begins a new era, once over all workers, at the price of what the old one had admitted. Returns its
-- name, or nil without memory.
local function restart(self, base, era, now, newest)
    local dict, name = self.dict, base .. ":e"
    if dict:get(name) == era then
        dict:delete(name)
    end
    -- Never the name of the old one: its keys are still there.
    return era_of(self, base, now, newest == era and newest - 1 or newest, true)
end

local function new_cell(self, key)
    local base = self.name .. key
    return { base = base, era_name = base .. ":e", era = false, newest = 0, index = -1, prefix = "", total = "", bucket = "" }
end

local function point_at(cell, era)
    if cell.era ~= era then
        cell.era, cell.index = era, -1
        cell.prefix = cell.base .. ":" .. era .. ":"
        cell.total = cell.prefix .. "t"
    end
end

-- The counter of a key, brought up to now: once per bucket and worker, otherwise it is a look into a table.
local function cell_of(self, key, now, create)
    local newest = expired_index(self, now)
    local cell = self.cells[key]
    if cell and cell.newest == newest then
        return cell
    end
    local base = self.name .. key
    local era = era_of(self, base, now, newest, create)
    if not era then
        if cell then
            self.cells[key] = nil
            self.cell_count = self.cell_count - 1
        end
        return nil
    end
    if not cell then
        if self.cell_count >= CELLS_MAX then
            self.cells, self.cell_count = {}, 0
        end
        cell = new_cell(self, key)
        self.cells[key] = cell
        self.cell_count = self.cell_count + 1
    end
    point_at(cell, era)
    local dict = self.dict
    local done = dict:get(cell.prefix .. "p") or era
    if done > newest + self.buckets + 1 then
        era = create and restart(self, base, era, now, newest)
        if not era then
            return nil
        end
        point_at(cell, era)
        done = dict:get(cell.prefix .. "p") or era
    end
    cell.newest = newest
    if done < newest then
        expire(self, cell, max(done + 1, newest - self.reach), newest)
        dict:safe_set(cell.prefix .. "p", newest, self.ttl)
        if self.reconciles then
            reconcile(self, cell, now, done)
        end
    end
    return cell
end

-- The name of the bucket of this moment.
local function bucket_of(self, cell, now)
    local index = floor(now / self.length)
    if cell.index ~= index then
        cell.index = index
        cell.bucket = cell.prefix .. (index - cell.era)
    end
    return cell.bucket, index
end

-- Seconds until enough has expired that a cost fits.
local function wait_for(self, cell, cost, limit, now)
    local dict = self.dict
    local used = dict:get(cell.total) or 0
    local last = floor(now / self.length)
    for index = cell.newest + 1, last do
        local held = dict:get(cell.prefix .. (index - cell.era))
        if held and held > 0 then
            used = used - held
            if used + cost <= limit then
                return max(expires_at(self, index) - now, 0.001)
            end
        end
    end
    return max(expires_at(self, last) - now, 0.001)
end

-- Ask for a part of the limit.
--   key: whose; cost: whole number; limit: per window; now: seconds
-- Returns true, the bucket to which it was counted, what is left, and the seconds until that bucket stops to count, which
-- is reset_after at this moment; or false, the seconds after which it is worth another try, and what is left. A refusal
-- costs nothing. Without memory everything is refused, with "memory" as a fourth value: a limit fails closed.
function M:take(key, cost, limit, now)
    local cell = cell_of(self, key, now, true)
    local used = cell and raise(self, cell.total, cost, self.ttl, now)
    if not used then
        self.failures = self.failures + 1
        return false, 1, 0, "memory"
    end
    local dict = self.dict
    if used > limit then
        dict:incr(cell.total, -cost)
        return false, wait_for(self, cell, cost, limit, now), max(0, limit - used + cost)
    end
    local bucket, index = bucket_of(self, cell, now)
    local held = raise(self, bucket, cost, self.ttl, now)
    if not held or held < HALF_DEAD then
        if held then
            dict:incr(bucket, -cost)
        end
        dict:incr(cell.total, -cost)
        self.failures = self.failures + 1
        return false, 1, 0, "memory"
    end
    return true, index, limit - used, expires_at(self, index) - now
end

-- Give back a part of what was taken, while it still counts.
--   bucket: as take returned it; amount: whole number, together no more than was taken
-- Returns what was given back: amount, or 0 when it no longer counted.
function M:give(key, bucket, amount)
    if amount <= 0 then
        return 0
    end
    local dict, cell = self.dict, self.cells[key]
    local era = dict:get(cell and cell.era_name or self.name .. key .. ":e")
    if not era then
        return 0
    end
    if not cell or cell.era ~= era then
        cell = new_cell(self, key)
        point_at(cell, era)
    end
    local name = cell.index == bucket and cell.bucket or cell.prefix .. (bucket - cell.era)
    local held = dict:incr(name, -amount)
    if not held then
        return 0
    end
    if held < 0 then
        -- It expired at this moment, and the total was lowered by all of it. Or it never held so much.
        dict:incr(name, amount)
        return 0
    end
    dict:incr(cell.total, -amount)
    return amount
end

-- Count an amount whatever the limit is: what an answer used beyond what was reserved for it.
function M:charge(key, amount, now)
    if amount <= 0 then
        return
    end
    local cell = cell_of(self, key, now, true)
    if not cell or not raise(self, cell.total, amount, self.ttl, now) then
        self.failures = self.failures + 1
        return
    end
    local held = raise(self, bucket_of(self, cell, now), amount, self.ttl, now)
    if not held or held < HALF_DEAD then
        if held then
            self.dict:incr(cell.bucket, -amount)
        end
        self.dict:incr(cell.total, -amount)
        self.failures = self.failures + 1
    end
end

-- What counts at this moment. Makes no keys for a counter that nobody uses.
function M:used(key, now)
    local cell = cell_of(self, key, now, false)
    return cell and max(0, self.dict:get(cell.total) or 0) or 0
end

-- Seconds until nothing that counts now will count any more; 0 when nothing does.
function M:reset_after(key, now)
    local cell = cell_of(self, key, now, false)
    if not cell then
        return 0
    end
    for index = floor(now / self.length), cell.newest + 1, -1 do
        local held = self.dict:get(cell.prefix .. (index - cell.era))
        if held and held > 0 then
            return (max(0, expires_at(self, index) - now))
        end
    end
    return 0
end

return M
