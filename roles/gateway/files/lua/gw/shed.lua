-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- What happens when the engines of a pool are full: requests of low priority are refused first, others wait a little, and
-- how much "full" is follows the time to the first token.
--
-- Load is tokens in flight over the capacity of the engines that can be used. A priority is let in below its threshold, if
-- nobody of a higher priority waits; a request that has not waited does not overtake those of its own priority that do (among
-- these, who asks first goes first). Waiters ask again after next_delay; they are counted in gw.slots, so those of a killed
-- worker are given back.
--
-- The capacity is multiplied by a factor of each pool, 0.1 to 1: once per second it is lowered by a tenth if the 90th
-- percentile of the time to the first token was above the target, and raised by 0.01 otherwise. Load and thresholds are no
-- hard limits (max_inflight of each engine is one): workers that look at the same moment may let in one request each.
--
-- Keys. slots: w:PRIORITY, w:PRIORITY:POOL and w:*:POOL waiters. dict: sf:POOL the factor; sh:POOL:B counts of times in bucket B;
-- sl:POOL latch of the second; sw:POOL seconds that few times have been collected for.

local M = {}
M.__index = M

local floor, log, max, min = math.floor, math.log, math.max, math.min

-- From the most to the least urgent.
local ORDER = { "premium", "standard", "batch" }
local RANK = { premium = 1, standard = 2, batch = 3 }

-- Seconds between two looks of a waiter: at first, and at most.
local FIRST_DELAY = { premium = 0.010, standard = 0.020, batch = 0.040 }
local LAST_DELAY = { premium = 0.100, standard = 0.200, batch = 0.400 }

-- Buckets of times: each a tenth longer than the one before, from 1 ms to 10 minutes and more.
local STEP = log(1.1)
local BUCKETS = 140

-- Fewer times than this say little: they are collected for up to PATIENCE seconds.
local ENOUGH = 10
local PATIENCE = 5
local LOWEST = 0.1
local UP = 0.01
local DOWN = 0.9
-- Seconds between two decisions. A little less than the timer's, which is never quite on time.
local SECOND = 0.9

-- Pools larger than this are summed up this often only, in seconds.
local SMALL_POOL = 16
local SUM_S = 0.05

-- new{dict, slots, conf}
--   dict: shared dict; slots: a gw.slots
--   conf: thresholds {batch, standard, premium} (0 to 1, ascending), max_waiters {batch, standard, premium} over all pools,
--     ttft_target_ms (0: the factor stays 1)
function M.new(options)
    return setmetatable({
        dict = options.dict,
        slots = options.slots,
        conf = options.conf,
        factors = {},
        counts = {},
        pools = {},
        names = {},
        sums = setmetatable({}, { __mode = "k" }),
        keys = {},
        failures = 0,
    }, M)
end

-- Names of the keys of waiters in a pool, by priority and of all ("*").
local function waiter_key(self, priority, pool)
    local keys = self.keys[pool]
    if not keys then
        keys = { ["*"] = "w:*:" .. pool }
        for i = 1, #ORDER do
            keys[ORDER[i]] = "w:" .. ORDER[i] .. ":" .. pool
        end
        self.keys[pool] = keys
    end
    return keys[priority]
end

-- A pool of which the factor is to be kept.
local function know(self, pool)
    if self.pools[pool] then
        return
    end
    self.pools[pool] = true
    self.names[#self.names + 1] = pool
    self.factors[pool] = self.dict:get("sf:" .. pool) or 1
    local counts = { n = 0 }
    for i = 0, BUCKETS do
        counts[i] = 0
    end
    self.counts[pool] = counts
end

-- The factor of a pool's capacity, as old as the last tick of this worker.
function M:factor(pool)
    if self.conf.ttft_target_ms == 0 then
        return 1
    end
    know(self, pool)
    return self.factors[pool]
end

local function include(sum, peer, key, loads, usable)
    if peer.state == "up" and (not usable or usable(peer)) then
        sum.tokens = sum.tokens + loads:value(key)
        sum.capacity = sum.capacity + peer.capacity_tokens
    end
end

-- Tokens in flight over capacity (times the factor) of the engines of a pool that can be used.
--   pool: {name, peers}; loads: a gw.slots with value("k:NAME"); now: seconds
--   usable(peer) -> boolean: well, and not held back by its breaker; nil: all that are up
-- Returns 0 or more; infinity if there is no engine.
function M:load(pool, loads, now, usable)
    local peers, sum = pool.peers, self.sums[pool]
    if not sum then
        sum = { at = -1, load = 0, tokens = 0, capacity = 0, keys = {} }
        for i = 1, #peers do
            sum.keys[i] = "k:" .. peers[i].name
        end
        self.sums[pool] = sum
    end
    if #peers <= SMALL_POOL or now - sum.at >= SUM_S or now < sum.at then
        sum.at, sum.tokens, sum.capacity = now, 0, 0
        for i = 1, #peers do
            include(sum, peers[i], sum.keys[i], loads, usable)
        end
        sum.load = sum.capacity > 0 and sum.tokens / sum.capacity or math.huge
    end
    return sum.load / self:factor(pool.name)
end

-- Would it go before one that has more right to?
local function overtakes(self, priority, pool, waiting)
    -- Of its own priority, who waits was here before who does not.
    for i = 1, waiting and RANK[priority] - 1 or RANK[priority] do
        if self.slots:value(waiter_key(self, ORDER[i], pool)) > 0 then
            return true
        end
    end
    return false
end

-- What to do with a request.
--   priority: "batch", "standard" or "premium"; load: see load; pool: name of the pool
--   waiting: whether the request is counted as a waiter already
-- Returns "go"; "wait" (enter, sleep next_delay and ask again, if the request may wait: else it is shed); or "shed".
function M:decide(priority, load, pool, waiting)
    if load < self.conf.thresholds[priority]
        and (self.slots:value(waiter_key(self, "*", pool)) == 0 or not overtakes(self, priority, pool, waiting)) then
        return "go"
    end
    -- No engine at all is not a matter of waiting for room.
    if load == math.huge or self.conf.max_waiters[priority] == 0 then
        return "shed"
    end
    return "wait"
end

-- Be counted as a waiter. Returns false when there are enough of that priority: the request is shed.
function M:enter(priority, pool)
    local limit = self.conf.max_waiters[priority]
    -- For slots 0 is no limit.
    if limit == 0 or not self.slots:acquire("w:" .. priority, limit) then
        return false
    end
    -- That of all first, and last when it leaves: it is what others look at.
    self.slots:add(waiter_key(self, "*", pool), 1)
    self.slots:add(waiter_key(self, priority, pool), 1)
    return true
end

-- Wait no longer, whatever came of it. Once for each enter that returned true.
function M:leave(priority, pool)
    self.slots:release("w:" .. priority)
    self.slots:add(waiter_key(self, priority, pool), -1)
    self.slots:add(waiter_key(self, "*", pool), -1)
end

-- How many of a priority wait, in a pool or (pool nil) in all.
function M:waiters(priority, pool)
    return self.slots:value(pool and waiter_key(self, priority, pool) or "w:" .. priority)
end

-- Seconds until a waiter asks again: more urgent ones ask more often, all more seldom the longer they wait, and none at the
-- same time as the others (half to one and a half of the mean).
--   waited_ms: how long it has waited; rand() -> [0, 1)
function M.next_delay(priority, waited_ms, rand)
    local mean = min(LAST_DELAY[priority], FIRST_DELAY[priority] + waited_ms / 8000)
    return mean * (0.5 + rand())
end

-- Note a time to the first token, in milliseconds. It is told to the other workers at the next tick.
function M:feed(ttft_ms, pool)
    if self.conf.ttft_target_ms == 0 then
        return
    end
    know(self, pool)
    local counts = self.counts[pool]
    local bucket = ttft_ms > 1 and min(BUCKETS, floor(log(ttft_ms) / STEP) + 1) or 0
    counts[bucket] = counts[bucket] + 1
    counts.n = counts.n + 1
end

-- The time that stands for a bucket, in milliseconds: at most a twentieth from any in it.
local function middle(bucket)
    return bucket > 0 and 1.1 ^ (bucket - 0.5) or 1
end

local function flush(self, pool)
    local counts, dict = self.counts[pool], self.dict
    if counts.n == 0 then
        return
    end
    for i = 0, BUCKETS do
        if counts[i] > 0 then
            if not dict:incr("sh:" .. pool .. ":" .. i, counts[i], 0) then
                self.failures = self.failures + 1
            end
            counts[i] = 0
        end
    end
    counts.n = 0
end

-- 90th percentile of the times collected, and takes them out. Returns the percentile or nil, and whether that is all there
-- is to know: not, while there are few times and more may come.
local function percentile(self, pool)
    local dict, found, n = self.dict, {}, 0
    for i = 0, BUCKETS do
        found[i] = dict:get("sh:" .. pool .. ":" .. i) or 0
        n = n + found[i]
    end
    if n == 0 then
        return nil, true
    end
    if n < ENOUGH and (dict:incr("sw:" .. pool, 1, 0) or PATIENCE) < PATIENCE then
        return nil, false
    end
    dict:delete("sw:" .. pool)
    local rank, seen, result = max(1, math.ceil(0.9 * n)), 0, nil
    for i = 0, BUCKETS do
        if found[i] > 0 then
            -- What others added since is for the next time.
            dict:incr("sh:" .. pool .. ":" .. i, -found[i])
            seen = seen + found[i]
            if not result and seen >= rank then
                result = middle(i)
            end
        end
    end
    return result, true
end

-- Once per second, in each worker: tell the others what was fed, adjust the factors (one worker does it for a pool), and
-- read them. Percentiles are those of buckets a tenth wide, so a twentieth from the real ones at most.
function M:tick()
    local dict, target = self.dict, self.conf.ttft_target_ms
    if target == 0 then
        return
    end
    for i = 1, #self.names do
        local pool = self.names[i]
        flush(self, pool)
        local key = "sf:" .. pool
        if dict:add("sl:" .. pool, 1, SECOND) then
            local p90, decided = percentile(self, pool)
            if decided then
                local factor = dict:get(key) or 1
                if p90 and p90 > target then
                    factor = max(LOWEST, factor * DOWN)
                else
                    factor = min(1, factor + UP)
                end
                if not dict:set(key, factor) then
                    self.failures = self.failures + 1
                end
            end
        end
        self.factors[pool] = dict:get(key) or 1
    end
end

return M
