-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- A circuit breaker per engine, shared by all workers: an engine that fails gets no requests for a while, then a few probes.
--
-- A breaker is a chain of generations, each with one state. The only way from generation G to the next is add(bt:NAME:G,
-- record): of all workers one succeeds, and the record that it wrote is the next generation whether or not that worker
-- lives on. bs:NAME is a copy of the newest record, so that reading is one get. Whoever finds the link taken carries the
-- copy forward, so a worker that dies after the add delays nothing but the copy, and one that was stalled and writes an
-- old copy looks along the chain and writes the newest instead.
--
-- Keys of the dict. bs:NAME the copy; bt:NAME:G the links; bb:NAME end of a pause; br:NAME begin of a slow start that
-- another module asked for; bp:NAME:I places of probes; bk: and bf:NAME:G:B good and failed results of a part of the
-- window, bc:NAME:G failures on end, bw:NAME:G good probes; bv a number that changes when any of the first four does;
-- bi numbers of probes.

local M = {}
M.__index = M

local floor, max, min = math.floor, math.max, math.min
local format, match = string.format, string.match

-- Parts of the window of the error rate.
local PARTS = 10
-- Seconds that a link of the chain is kept: longer than any worker may stand still and go on.
local LINK_S = 600
-- Seconds after which cached states are read again even if bv says that nothing changed: its writer may have died before.
local CACHE_S = 1
-- Seconds after which failures on end are no longer on end.
local ROW_S = 3600
-- Seconds that a slow start may last at most.
local WARM_S = 7200
-- Seconds until it makes sense to ask again when all places of probes are taken.
local FULL_S = 1
-- A probe is number * PLACES + place.
local PLACES = 1024

local STATES = { c = "closed", o = "open", h = "half_open" }

-- new{dict, rand, conf, on_transition}
--   dict: shared dict; rand() -> [0, 1)
--   conf: window_s, min_requests, error_rate, consecutive (0: not looked at), open_base_s, open_max_s, half_open_probes (up
--     to 1023), success_needed, and probe_s: seconds after which a probe without result is given up and its place is free; 120
--     unless given
--   on_transition(name, to, from, now, kind): called by the one worker that made the transition; kind is that of the failure
--     that opened it, else nil; may be nil
function M.new(options)
    local conf = options.conf
    return setmetatable({
        dict = options.dict,
        rand = options.rand,
        on_transition = options.on_transition,
        conf = conf,
        part = conf.window_s / PARTS,
        part_ttl = conf.window_s + 1,
        probe_s = conf.probe_s or 120,
        entries = {},
        -- Entries of an older epoch are read again before they are used.
        epoch = 0,
        version = nil,
        read_at = 0,
        -- Operations that the dict refused for lack of memory.
        failures = 0,
    }, M)
end

-- Read the record of an engine and its pauses into its entry.
local function load(self, entry)
    local dict = self.dict
    local raw = dict:get(entry.copy)
    if raw ~= entry.raw or not entry.state then
        entry.raw = raw
        local generation, state, until_, trips, since = match(raw or "", "^(%d+) (%a) (%S+) (%d+) (%S+)$")
        entry.generation = tonumber(generation) or 0
        entry.state = state or "c"
        entry.until_ = tonumber(until_) or 0
        entry.trips = tonumber(trips) or 0
        entry.since = tonumber(since)
    end
    entry.pause = dict:get(entry.pause_key) or 0
    entry.warm = dict:get(entry.warm_key)
    entry.epoch = self.epoch
end

local function entry_of(self, name)
    local entry = self.entries[name]
    if not entry then
        entry = {
            name = name,
            copy = "bs:" .. name,
            link = "bt:" .. name .. ":",
            pause_key = "bb:" .. name,
            warm_key = "br:" .. name,
            place = "bp:" .. name .. ":",
        }
        self.entries[name] = entry
    end
    if entry.epoch ~= self.epoch then
        load(self, entry)
    end
    return entry
end

-- Make sure that what peek says from now on is up to date: one get, unless some breaker changed. To be called once before
-- a series of peeks; the other functions do it themselves.
function M:refresh(now)
    local version = self.dict:get("bv") or 0
    if version ~= self.version or now - self.read_at >= CACHE_S or now < self.read_at then
        self.version = version
        self.read_at = now
        self.epoch = self.epoch + 1
    end
end

local function changed(self, entry)
    if not self.dict:incr("bv", 1, 0) then
        self.failures = self.failures + 1
    end
    load(self, entry)
end

-- Write the copy of a generation, or of the newest one after it.
local function publish(self, entry, generation, record)
    local dict = self.dict
    repeat
        if not dict:set(entry.copy, record) then
            self.failures = self.failures + 1
        end
        local newer = dict:get(entry.link .. generation)
        if newer then
            record = newer
            generation = generation + 1
        end
    until not newer
    changed(self, entry)
end

-- Go from the generation in the entry to a new one. Afterwards the entry is up to date, whoever made the step.
-- Returns whether it was this call.
local function move(self, entry, state, until_, trips, now, kind)
    local dict, generation, from = self.dict, entry.generation, entry.state
    -- The entry may be older than the links that are kept.
    if dict:get(entry.copy) ~= entry.raw then
        load(self, entry)
        return false
    end
    local record = format("%d %s %.3f %d %.3f", generation + 1, state, until_, trips, now)
    local ok, err = dict:add(entry.link .. generation, record, LINK_S)
    if ok then
        publish(self, entry, generation + 1, record)
        if self.on_transition then
            self.on_transition(entry.name, STATES[state], STATES[from], now, kind)
        end
        return true
    end
    if err ~= "exists" then
        self.failures = self.failures + 1
        return false
    end
    local made = dict:get(entry.link .. generation)
    if made and dict:get(entry.copy) == entry.raw then
        publish(self, entry, generation + 1, made)
    else
        load(self, entry)
    end
    return false
end

-- Take a place of a probe. Returns the probe, or nil when all are taken.
local function take_place(self, entry)
    local dict = self.dict
    for place = 1, self.conf.half_open_probes do
        local key = entry.place .. place
        if not dict:get(key) then
            local number = dict:incr("bi", 1, 0)
            if number then
                local probe = number * PLACES + place
                if dict:add(key, probe, self.probe_s) then
                    return probe
                end
            end
        end
    end
    return nil
end

-- Free the place of a probe, unless it was given up and the place is another's.
local function free_place(self, entry, probe)
    local key = entry.place .. probe % PLACES
    if self.dict:get(key) == probe then
        self.dict:delete(key)
    end
end

-- May a request go to the engine? Takes nothing; to be called after refresh.
-- Returns "closed" (yes), "probe" (only if allow says so) or "no".
function M:peek(name, now)
    local entry = entry_of(self, name)
    if entry.pause > now then
        return "no"
    end
    local state = entry.state
    if state == "c" then
        return "closed"
    end
    if state == "o" and now < entry.until_ then
        return "no"
    end
    return "probe"
end

-- allow, for an engine that is not just closed.
local function ask(self, entry, now)
    -- A state that changes under our hands is looked at again, but not for ever.
    for _ = 1, 4 do
        if entry.pause > now then
            return false, entry.pause
        end
        if entry.state == "c" then
            return true, false, entry.generation
        end
        if entry.state == "o" then
            if now < entry.until_ then
                return false, entry.until_
            end
            move(self, entry, "h", 0, entry.trips, now)
        else
            local probe = take_place(self, entry)
            if not probe then
                return false, now + FULL_S
            end
            if self.dict:get(entry.copy) == entry.raw then
                return true, probe, entry.generation
            end
            free_place(self, entry, probe)
            load(self, entry)
        end
    end
    return false, now + FULL_S
end

-- Ask for leave to send a request to an engine.
--   name: the engine; now: seconds; fresh: refresh was called just now
-- Returns true, probe, generation: probe is false, or a number (the request is a probe, and report must be called for it);
-- or false, and the time from which it makes sense to ask again.
function M:allow(name, now, fresh)
    if not fresh then
        self:refresh(now)
    end
    local entry = entry_of(self, name)
    if entry.state == "c" and entry.pause <= now then
        return true, false, entry.generation
    end
    return ask(self, entry, now)
end

-- Open the breaker. Each time in a row it is for twice as long; an engine that was good for open_max_s begins anew.
local function trip(self, entry, now, kind)
    local conf, trips = self.conf, entry.trips + 1
    if entry.state == "c" and (not entry.since or now - entry.since > conf.open_max_s) then
        trips = 1
    end
    -- Up to a tenth less, so that several gateways do not probe at the same moment. 2^60 seconds are enough for the cap.
    local seconds = min(conf.open_max_s, conf.open_base_s * 2 ^ min(60, trips - 1)) * (1 - 0.1 * self.rand())
    return move(self, entry, "o", now + seconds, trips, now, kind)
end

-- Is the share of failures in the window too high?
local function too_many(self, entry, part)
    local dict, conf = self.dict, self.conf
    local good, bad = 0, 0
    for i = part - PARTS + 1, part do
        good = good + (dict:get(entry.good_prefix .. i) or 0)
        bad = bad + (dict:get(entry.bad_prefix .. i) or 0)
    end
    return good + bad >= conf.min_requests and bad >= conf.error_rate * (good + bad)
end

-- A result while the breaker is closed. Only a failure can open it, so only then is the window summed up.
-- Returns whether this call opened it.
local function count(self, entry, ok, now, kind)
    local dict, generation = self.dict, entry.generation
    local part = floor(now / self.part)
    if entry.counted ~= generation then
        entry.counted = generation
        local of = entry.name .. ":" .. generation
        entry.good_prefix = "bk:" .. of .. ":"
        entry.bad_prefix = "bf:" .. of .. ":"
        entry.row_key = "bc:" .. of
        entry.part = nil
    end
    if entry.part ~= part then
        entry.part = part
        entry.good_key = entry.good_prefix .. part
    end
    if ok then
        if not dict:incr(entry.good_key, 1, 0, self.part_ttl) then
            self.failures = self.failures + 1
        end
        if dict:get(entry.row_key) then
            dict:delete(entry.row_key)
        end
        return false
    end
    if not dict:incr(entry.bad_prefix .. part, 1, 0, self.part_ttl) then
        self.failures = self.failures + 1
    end
    local row, consecutive = dict:incr(entry.row_key, 1, 0, ROW_S) or 0, self.conf.consecutive
    if (consecutive > 0 and row >= consecutive) or too_many(self, entry, part) then
        return trip(self, entry, now, kind)
    end
    return false
end

-- Say how a request went. For a probe it must be called; for another request whose end says nothing, it need not.
--   ok: true, false, or nil when the result says nothing about the engine (see verdict); kind is for on_transition
--   probe, generation: what allow returned. A result of an older generation is no news and does not count; without a
--     generation it counts as one of the present.
-- Returns true when this result opened or closed the breaker.
function M:report(name, ok, kind, now, probe, generation)
    -- A success that is no probe changes nothing but a counter of its generation: an old view of the breaker does no harm.
    if not (ok and generation and not probe) then
        self:refresh(now)
    end
    local entry = entry_of(self, name)
    local moved = false
    if ok ~= nil and (not generation or generation == entry.generation) then
        if entry.state == "c" then
            moved = count(self, entry, ok, now, kind)
        elseif entry.state == "h" and probe then
            if not ok then
                moved = trip(self, entry, now, kind)
            else
                local good = self.dict:incr("bw:" .. name .. ":" .. entry.generation, 1, 0, ROW_S) or 0
                if good >= self.conf.success_needed then
                    moved = move(self, entry, "c", 0, entry.trips, now)
                end
            end
        end
    end
    -- After the step, so that no other probe starts in a half-open state that is about to end.
    if probe then
        free_place(self, entry, probe)
    end
    return moved
end

-- Pause an engine that said that it has too much to do. That is no failure.
--   seconds: how long, open_max_s at most: an engine must not take itself out for good; an earlier pause that ends later
--     stays
function M:back_off(name, seconds, now)
    self:refresh(now)
    local entry = entry_of(self, name)
    seconds = min(seconds, self.conf.open_max_s)
    local ends = now + seconds
    if seconds > 0 and ends > (self.dict:get(entry.pause_key) or 0) then
        if not self.dict:set(entry.pause_key, ends, seconds) then
            self.failures = self.failures + 1
        end
        changed(self, entry)
    end
end

-- Begin a slow start now, for an engine that comes back for another reason than its breaker (health checks).
function M:warm_up(name, now)
    local entry = entry_of(self, name)
    if not self.dict:set(entry.warm_key, now, WARM_S) then
        self.failures = self.failures + 1
    end
    changed(self, entry)
end

-- When the slow start of an engine began: the time at which its breaker closed, or warm_up was called. nil if neither, and
-- now while it is half-open. To be called after refresh.
function M:warm_since(name, now)
    local entry = entry_of(self, name)
    if entry.state ~= "c" then
        return now
    end
    if entry.warm and entry.since then
        return max(entry.warm, entry.since)
    end
    return entry.warm or entry.since
end

-- Close the breaker by hand.
function M:reset(name, now)
    self:refresh(now)
    local entry = entry_of(self, name)
    if entry.state ~= "c" then
        return move(self, entry, "c", 0, 0, now)
    end
    return false
end

-- The state for people: "closed", "open" or "half_open" (also from the moment at which an open one would let a probe
-- pass), the time until which it is open or paused (nil if neither), the number of times it opened in a row, and the
-- generation.
function M:state(name, now)
    self:refresh(now)
    local entry = entry_of(self, name)
    local state = STATES[entry.state]
    local ends = entry.pause > now and entry.pause or nil
    if state == "open" then
        if now >= entry.until_ then
            state = "half_open"
        else
            ends = max(entry.until_, entry.pause)
        end
    end
    return state, ends, entry.trips, entry.generation
end

-- What an answer says about the engine.
--   status: the engine's, or nil when it gave none
--   cause: with no status, why: "connect", "timeout", "reset", "client" (the client went away); with a status, "rejected"
--     when the engine said that it refused the work, "stall" or "stream_error" when its answer stopped or failed half-way
-- Returns ok (true, false, or nil for nothing) and a kind: "ok", "client", "rejected", "connect", "timeout", "reset",
-- "stall", "stream_error", "status".
function M.verdict(status, cause)
    if cause == "client" or status == 499 then
        return nil, "client"
    end
    if not status then
        return false, cause or "reset"
    end
    if cause == "stall" or cause == "stream_error" then
        return false, cause
    end
    if status == 429 or (cause == "rejected" and status == 503) then
        return nil, "rejected"
    end
    if status >= 500 then
        return false, status == 504 and "timeout" or "status"
    end
    if status >= 400 then
        return nil, "client"
    end
    return true, "ok"
end

return M
