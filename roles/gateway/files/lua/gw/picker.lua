-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Which engine gets a request: the one with the fewest tokens in flight for its weight, or the one that has the prompt's
-- beginning in its cache, among those that are up, well, not full and not held back by their breakers.
--
-- Load is tokens in flight (prompt and the answer that was asked for), because a request of 100 tokens and one of 100000
-- are not the same work. It is compared as load/weight without the new request: load+1 would never send anything to a
-- light engine as long as there is little to do. What is left undecided by rounding (engines whose loads differ by less than
-- one request) goes round by weight, with credits that make good in the next round what load forbade in this one; so shares
-- are those of the weights at any number of requests in flight, and not only when there are many.
--
-- Affinity is weighted rendezvous hashing with bounded load: each prompt has its own order of the engines, so when one
-- leaves only its prompts move, and an engine above the bound hands the prompt to the next one in that order.

local M = {}
M.__index = M

local bit = require("bit")
local ffi = require("ffi")

local band, bxor, lshift, rol, rshift, tobit = bit.band, bit.bxor, bit.lshift, bit.rol, bit.rshift, bit.tobit
local byte, cast = string.byte, ffi.cast
local floor, log, max, min = math.floor, math.log, math.max, math.min
local sort = table.sort

local WORDS = ffi.typeof("const int32_t *")

-- Levels up to this size are looked at as a whole; of larger ones two engines are drawn.
local SCAN_MAX = 16
-- Draws until two usable engines of a large level should have been found.
local DRAWS = 8
-- How far down its order a prompt goes in a large level.
local RANKS = 8
-- Seconds for which what is known of a level as a whole (health, mean load) is not looked at again.
local LEVEL_S = 0.25
-- Share of requests that go to a half-open engine if there is one, whatever load and affinity say: without it an engine
-- that no prompt prefers would never be probed.
local PROBE_SHARE = 0.1
-- Part of its capacity up to which an engine is idle enough for any prompt of its own, however little the others have.
local IDLE = 0.1
-- Credits are kept within so many rounds.
local CREDIT_ROUNDS = 2
-- Weight of the newest request in the mean size of requests.
local NEWEST = 0.05

-- a * b modulo 2^32 for a number that fits 32 bits and a positive constant below 2^32, exact in doubles.
local function multiply(a, b)
    return (tobit(band(a, 0xffff) * b + lshift(tobit(rshift(a, 16) * b), 16)))
end

-- Spread all bits over all bits.
local function mix(h)
    h = multiply(bxor(h, rshift(h, 16)), 0x85ebca6b)
    h = multiply(bxor(h, rshift(h, 13)), 0xc2b2ae35)
    return (bxor(h, rshift(h, 16)))
end

local function block(k)
    return multiply(rol(multiply(k, 0xcc9e2d51), 15), 0x1b873593)
end

-- MurmurHash3 (32 bits, seed 0) of the first `length` bytes of a text; of all if there are no more. Returns a signed number.
-- Every gateway computes the same, so they agree on the engine of a prompt.
function M.hash(text, length)
    length = min(length or #text, #text)
    local h, odd = 0, length % 4
    local whole = length - odd
    -- A string begins at a multiple of eight, and every machine that nginx runs on has the low byte first.
    local words = cast(WORDS, text)
    for i = 0, whole / 4 - 1 do
        h = tobit(rol(bxor(h, block(words[i])), 13) * 5 + 0xe6546b64)
    end
    if odd > 0 then
        local a, b, c = byte(text, whole + 1, length)
        h = bxor(h, block(a + lshift(b or 0, 8) + lshift(c or 0, 16)))
    end
    return mix(bxor(h, length))
end

-- new{loads, breaker, well, rand, conf}
--   loads: a gw.slots with value, acquire, release, add; breaker: a gw.breaker; rand() -> [0, 1)
--   well(name) -> boolean: do the health checks say that the engine is well? nil: they all are
--   conf.slow_start {window_s, min_percent, aggression}
--   conf.affinity {mode = "off" or "prefix", bytes, max_load_factor}
--   conf.regions name -> {priority}, conf.local_region: may both be nil
--   conf.overprovision: load that the rest of a region can take over what it should have; 1.4 unless given
function M.new(options)
    local conf = options.conf
    return setmetatable({
        loads = options.loads,
        breaker = options.breaker,
        well = options.well,
        rand = options.rand,
        slow_start = conf.slow_start,
        affinity = conf.affinity and conf.affinity.mode == "prefix" and conf.affinity or nil,
        regions = conf.regions or {},
        local_region = conf.local_region,
        overprovision = conf.overprovision or 1.4,
        -- Pools are replaced as a whole when the configuration changes; what is known of an old one goes with it.
        levels = setmetatable({}, { __mode = "k" }),
        peers = {},
        typical = 0,
        -- Reused by each call: candidates of a level with load, effective weight and whether they are half-open.
        found = {},
        load = {},
        weight = {},
        half = {},
        -- Engines that this call has found unusable: the number of the call by name.
        passed = {},
        call = 0,
    }, M)
end

local function keys_of(self, name)
    local keys = self.peers[name]
    if not keys then
        keys = { n = "n:" .. name, k = "k:" .. name, hash = M.hash(name) }
        self.peers[name] = keys
    end
    return keys
end

-- The peers of a pool, by the order in which regions are used: the local one, then by priority, equal ones together.
local function levels_of(self, pool)
    local levels = self.levels[pool]
    if levels then
        return levels
    end
    local by_rank, ranks = {}, {}
    for i = 1, #pool.peers do
        local peer = pool.peers[i]
        local rank = -1
        if self.local_region and peer.region ~= self.local_region then
            local region = self.regions[peer.region]
            rank = region and region.priority or 1e9
        end
        local level = by_rank[rank]
        if not level then
            level = { peers = {}, sums = {}, credit = {}, half = {}, capacity = 0, total = 0, share = 1, mean = 0, at = -1 }
            by_rank[rank] = level
            ranks[#ranks + 1] = rank
        end
        level.capacity = level.capacity + peer.capacity_tokens
        if peer.state == "up" then
            local place = #level.peers + 1
            level.total = level.total + peer.weight
            level.peers[place] = peer
            level.sums[place] = level.total
            -- Workers begin at different places of the round.
            level.credit[peer.name] = self.rand() * peer.weight
        end
    end
    sort(ranks)
    levels = {}
    for i = 1, #ranks do
        levels[i] = by_rank[ranks[i]]
    end
    self.levels[pool] = levels
    return levels
end

-- Part of its weight that an engine has at a time: 1, or less for a while after it came back.
--   conf: slow_start; age: seconds since it came back, or nil
function M.warmth(conf, age)
    if not age or not conf or age >= conf.window_s then
        return 1
    end
    return max(conf.min_percent / 100, (max(0, age) / conf.window_s) ^ (1 / conf.aggression))
end

local warmth = M.warmth

local function effective(self, peer, now)
    local since = self.breaker:warm_since(peer.name, now)
    if not since then
        return peer.weight
    end
    return peer.weight * warmth(self.slow_start, now - since)
end

-- May the engine be chosen? Returns its load and whether it is half-open, or nil; why not is noted for the reason.
local function look(self, peer, tried, now)
    local name = peer.name
    if self.passed[name] == self.call or (tried and tried[name]) then
        return nil
    end
    if self.well and not self.well(name) then
        self.sick = true
        return nil
    end
    local view = self.breaker:peek(name, now)
    if view == "no" then
        self.blocked = true
        return nil
    end
    local keys = keys_of(self, name)
    if self.loads:value(keys.n) >= peer.max_inflight then
        self.full = true
        return nil
    end
    return self.loads:value(keys.k), view == "probe"
end

-- What is known of levels as a whole: health, mean load, half-open engines, and from these the shares.
local function survey(self, levels, now)
    local sum = 0
    for i = 1, #levels do
        local level = levels[i]
        local healthy, tokens, weight, halves = 0, 0, 0, 0
        for k = 1, #level.peers do
            local peer = level.peers[k]
            local view = self.breaker:peek(peer.name, now)
            if view ~= "no" and not (self.well and not self.well(peer.name)) then
                healthy = healthy + peer.capacity_tokens
                tokens = tokens + self.loads:value(keys_of(self, peer.name).k)
                weight = weight + effective(self, peer, now)
                if view == "probe" then
                    halves = halves + 1
                    level.half[halves] = peer
                end
            end
        end
        for k = #level.half, halves + 1, -1 do
            level.half[k] = nil
        end
        level.mean = weight > 0 and tokens / weight or 0
        level.able = min(1, self.overprovision * healthy / level.capacity)
        level.at = now
        level.epoch = self.breaker.epoch
        sum = sum + level.able
    end
    local left = 1
    for i = 1, #levels do
        local level = levels[i]
        level.share = sum > 0 and min(left, level.able / min(1, sum)) or 0
        left = left - level.share
    end
end

-- The place of a prompt in an engine's order: the engine with the highest comes first.
local function rank(key, hash, weight)
    local u = (band(mix(bxor(key, hash)), 0x7fffffff) + 0.5) / 2147483648
    return weight / -log(u)
end

-- Is the engine's load within the bound? mean: tokens per weight over the level.
local function bounded(self, peer, load, weight, mean, tokens)
    return load <= self.affinity.max_load_factor * mean * weight
        or load + tokens <= IDLE * peer.capacity_tokens * weight / peer.weight
end

local function remove(self, i, n)
    self.found[i], self.load[i], self.weight[i], self.half[i] = self.found[n], self.load[n], self.weight[n], self.half[n]
    self.found[n] = nil
end

-- Put an engine behind n candidates if it can be chosen; returns how many there are then.
local function consider(self, peer, n, tried, now)
    local load, half = look(self, peer, tried, now)
    if load then
        n = n + 1
        self.found[n], self.load[n], self.half[n] = peer, load, half
        self.weight[n] = effective(self, peer, now)
    end
    return n
end

-- The candidates of a level into the tables of this object; returns how many.
local function scan(self, level, tried, now)
    local n, peers = 0, level.peers
    for i = 1, #peers do
        n = consider(self, peers[i], n, tried, now)
    end
    return n
end

-- Candidates in the prompt's own order, the first within the bound. Returns its index and whether it is the very first.
local function by_affinity(self, n, key, tokens)
    local found, weights, loads = self.found, self.weight, self.load
    local sum, total = 0, 0
    for i = 1, n do
        sum, total = sum + loads[i], total + weights[i]
    end
    local mean, last = sum / total, math.huge
    for turn = 1, n do
        local best, best_rank
        for i = 1, n do
            local r = rank(key, keys_of(self, found[i].name).hash, found[i].weight)
            if r < last and (not best or r > best_rank) then
                best, best_rank = i, r
            end
        end
        if not best then
            return nil
        end
        if bounded(self, found[best], loads[best], weights[best], mean, tokens) then
            return best, turn == 1
        end
        last = best_rank
    end
    return nil
end

-- The candidate with the least load for its weight. Those that are within one request of it go round by weight.
local function by_load(self, level, n, tokens)
    local weights, loads, credit = self.weight, self.load, level.credit
    -- A huge request must not make a busy engine look as good as an idle one.
    local step = min(tokens, self.typical)
    local edge = math.huge
    for i = 1, n do
        edge = min(edge, (loads[i] + step) / weights[i])
    end
    local best, best_credit, least
    for i = 1, n do
        local score = loads[i] / weights[i]
        local have = (credit[self.found[i].name] or 0) + weights[i]
        -- The one that sets the edge is below it, unless the step is zero: then those that have the least are equal.
        if (score < edge or (step == 0 and score == edge)) and (not best or have > best_credit) then
            best, best_credit = i, have
        end
        if not least or score < loads[least] / weights[least] then
            least = i
        end
    end
    return best or least
end

-- Everybody gets a credit of its weight, and the one that was taken pays for all.
local function pay(self, level, n, chosen)
    local weights, credit, total = self.weight, level.credit, 0
    for i = 1, n do
        total = total + weights[i]
    end
    local most = CREDIT_ROUNDS * total
    for i = 1, n do
        local name = self.found[i].name
        local have = (credit[name] or 0) + weights[i] - (i == chosen and total or 0)
        credit[name] = max(-most, min(most, have))
    end
end

local function half_open_one(self, n)
    local halves, last = 0, nil
    for i = 1, n do
        if self.half[i] then
            halves = halves + 1
            if self.rand() * halves < 1 then
                last = i
            end
        end
    end
    return halves > 0 and self.rand() < PROBE_SHARE and last or nil
end

-- Ask the breaker of the engine that was chosen. Returns the engine and what the caller must know, or nil.
local function grant(self, peer, affinity, now)
    local ok, probe, generation = self.breaker:allow(peer.name, now, true)
    if ok then
        return peer, { affinity = affinity, probe = probe, generation = generation }
    end
    self.blocked = true
    self.passed[peer.name] = self.call
    return nil
end

local function from_small(self, level, ask, key, now)
    local n = scan(self, level, ask.tried, now)
    if n == 1 then
        return grant(self, self.found[1], key and "hit" or "none", now)
    end
    local probing = true
    while n > 0 do
        local i = probing and half_open_one(self, n)
        local affinity, loaded = "none", false
        probing = false
        if not i and key then
            local first
            i, first = by_affinity(self, n, key, ask.tokens)
            affinity = first and "hit" or "spill"
        end
        if not i then
            i, loaded = by_load(self, level, n, ask.tokens), true
        end
        local peer, info = grant(self, self.found[i], affinity, now)
        if peer then
            if loaded then
                pay(self, level, n, i)
            end
            return peer, info
        end
        remove(self, i, n)
        n = n - 1
    end
    return nil
end

-- One engine of a large level, drawn by weight.
local function draw(self, level)
    local sums = level.sums
    local at, low, high = self.rand() * level.total, 1, #level.peers
    while low < high do
        local middle = floor((low + high) / 2)
        if sums[middle] > at then
            high = middle
        else
            low = middle + 1
        end
    end
    return level.peers[low]
end

local function from_large(self, level, ask, key, now)
    local tried, halves = ask.tried, #level.half
    if halves > 0 and self.rand() < PROBE_SHARE then
        local peer = level.half[floor(self.rand() * halves) + 1]
        if look(self, peer, tried, now) then
            local granted, info = grant(self, peer, "none", now)
            if granted then
                return granted, info
            end
        end
    end
    local affinity = "none"
    if key then
        affinity = "hit"
        local last = math.huge
        for _ = 1, RANKS do
            local best, best_rank
            for i = 1, #level.peers do
                local peer = level.peers[i]
                local r = rank(key, keys_of(self, peer.name).hash, peer.weight)
                if r < last and (not best or r > best_rank) then
                    best, best_rank = peer, r
                end
            end
            if not best then
                break
            end
            local load = look(self, best, tried, now)
            if load then
                if bounded(self, best, load, effective(self, best, now), level.mean, ask.tokens) then
                    local granted, info = grant(self, best, affinity, now)
                    if granted then
                        return granted, info
                    end
                else
                    affinity = "spill"
                end
            end
            last = best_rank
        end
        affinity = "spill"
    end
    for _ = 1, DRAWS do
        local chosen, score
        for _ = 1, DRAWS do
            local peer = draw(self, level)
            local load = peer ~= chosen and look(self, peer, tried, now)
            if load then
                local weight = effective(self, peer, now)
                -- The draw was by full weight; a part of the weight is a part of the draws. The bound is for all engines
                -- that get a prompt, whether or not they are near the beginning of its order.
                if
                    (weight >= peer.weight or self.rand() * peer.weight < weight)
                    and (not key or bounded(self, peer, load, weight, level.mean, ask.tokens))
                then
                    if chosen then
                        chosen = load / weight < score and peer or chosen
                        break
                    end
                    chosen, score = peer, load / weight
                end
            end
        end
        if not chosen then
            break
        end
        local granted, info = grant(self, chosen, affinity, now)
        if granted then
            return granted, info
        end
    end
    -- Few are usable: look at all of them.
    return from_small(self, level, ask, nil, now)
end

local function from_level(self, level, ask, key, now)
    if #level.peers > SCAN_MAX then
        return from_large(self, level, ask, key, now)
    end
    return from_small(self, level, ask, key, now)
end

-- Choose an engine. It is not charged: see take.
--   pool: {peers}; now: seconds
--   ask: tokens (of the request); affinity_key: nil, a text of which the first affinity.bytes bytes count, or a whole
--     number that is a hash; tried: nil or a set of names that are not to be chosen
-- Returns peer, info {affinity = "hit" (the engine that is the prompt's first choice of those usable), "spill" (another,
-- because of load) or "none"; probe, generation: for breaker:report};
-- or nil, reason: "no_peers" (none, or no other than those tried), "all_down" (none up and well), "breaker" (those that are
-- well are held back), "full" (all others have max_inflight requests).
function M:pick(pool, ask, now)
    local levels = levels_of(self, pool)
    local count = #levels
    if count == 0 then
        return nil, "no_peers"
    end
    self.call = self.call + 1
    self.full, self.blocked, self.sick = false, false, false
    self.breaker:refresh(now)
    self.typical = self.typical + (ask.tokens - self.typical) * (self.typical == 0 and 1 or NEWEST)
    local key = self.affinity and ask.affinity_key
    if type(key) == "string" then
        key = M.hash(key, self.affinity.bytes)
    end
    local first = 1
    local level = levels[1]
    if count > 1 or #level.peers > SCAN_MAX then
        if now - level.at >= LEVEL_S or now < level.at or level.epoch ~= self.breaker.epoch then
            survey(self, levels, now)
        end
        if count > 1 then
            -- By the prompt where there is one, so that the prompts that spill are always the same.
            local at = key and (band(mix(tobit(key + 0x9e3779b9)), 0x7fffffff) / 2147483648) or self.rand()
            for i = 1, count do
                first = i
                at = at - levels[i].share
                if at < 0 then
                    break
                end
            end
        end
    end
    local peer, info = from_level(self, levels[first], ask, key, now)
    if peer then
        return peer, info
    end
    for i = 1, count do
        if i ~= first then
            peer, info = from_level(self, levels[i], ask, key, now)
            if peer then
                return peer, info
            end
        end
    end
    if self.full then
        return nil, "full"
    end
    if self.blocked then
        return nil, "breaker"
    end
    local up = 0
    for i = 1, count do
        up = up + #levels[i].peers
    end
    if self.sick or up == 0 then
        return nil, "all_down"
    end
    return nil, "no_peers"
end

-- Note a request on an engine. Returns false, and notes nothing, if others have filled it in the meantime.
function M:charge(peer, tokens)
    local keys = keys_of(self, peer.name)
    if not self.loads:acquire(keys.n, peer.max_inflight) then
        return false
    end
    self.loads:add(keys.k, tokens)
    return true
end

-- The request has left the engine; tokens as charged.
function M:discharge(peer, tokens)
    local keys = keys_of(self, peer.name)
    self.loads:release(keys.n)
    self.loads:add(keys.k, -tokens)
end

-- Choose an engine and charge it: pick, with another engine where one was filled in between, so that none ever has more
-- than max_inflight requests. Arguments and results are those of pick; discharge and breaker:report must follow.
function M:take(pool, ask, now)
    for _ = 1, 4 do
        local peer, info = self:pick(pool, ask, now)
        if not peer then
            return nil, info
        end
        if self:charge(peer, ask.tokens) then
            return peer, info
        end
        if info.probe then
            self.breaker:report(peer.name, nil, "unused", now, info.probe, info.generation)
        end
    end
    return nil, "full"
end

return M
