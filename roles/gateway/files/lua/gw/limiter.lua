-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- The admission of a request by the limits of its tenant: concurrency, burst, requests, tokens, tokens of a day.
--
-- Tokens are reserved before a request runs (prompt estimate and the most that the answer may have) and settled by
-- what it used, so requests at the same time cannot pass an almost empty budget together. What a later limit refuses
-- is given back to the earlier ones: a refused request costs no quota.
--
-- The windows are reached through four backends with the calls of gw.window (new(...).take, give, charge, used,
-- reset_after; a bucket is a number). For counters of a whole fleet, others can be put in their place that spend a
-- lease from a shared store: take answers from the lease, give and charge correct it, and no caller changes.
--
-- Why no refusals are cached by time: quota comes back before a refusal's time is over, when an answer is shorter
-- than what was reserved for it, when an engine never worked, and when a later limit refuses a request. A cache would
-- refuse requests that would be admitted. Instead a worker remembers which limit refused a tenant and until when that
-- may last, and looks at that one counter first: one read, as exact as an attempt, and whoever hammers at a closed
-- door costs no more than that.

local slots_of = require("gw.slots")
local window = require("gw.window")

local M = {}
M.__index = M

local ceil, floor, max = math.ceil, math.floor, math.max
local format = string.format
local tonumber, tostring = tonumber, tostring

-- The windows in the order of admission, the field of the limits of each, and how a refusal by it is called.
local BURST, REQUESTS, TOKENS, DAY = 1, 2, 3, 4
local FIELD = { "burst_rps", "rpm", "tpm", "tpd" }
local TYPE = { "requests", "requests", "tokens", "tokens" }
local UNIT = { "requests", "requests", "tokens", "tokens" }

-- Tenants that were refused lately, remembered per worker. Forgotten as a whole when there are so many.
local REFUSED_MAX = 4096

-- The tickets of this process by their number, as long as something is to be done for them: SLOT to give back the slot,
-- QUOTA to settle. Of the process and not of a limiter, for a new configuration makes a new limiter while requests run.
-- A request stays in its process.
local SLOT, QUOTA = 1, 2
local open, serial = {}, 0

-- new{rate, slots, windows, rand, backends}
--   rate: shared dict of the windows, used by nothing else
--   slots: the gw.slots of this process; or conc, ledger, pid to make one
--   windows: {requests_s, tokens_s, day_s, buckets}, of the policy; 60, 60, 86400 and 60 unless given
--   rand() -> [0, 1)
--   backends: list of four in the place of windows over `rate`: burst, requests, tokens, day
function M.new(options)
    local windows = options.windows or {}
    local buckets = windows.buckets or 60
    local lengths = { 1, windows.requests_s or 60, windows.tokens_s or 60, windows.day_s or 86400 }
    local names = { "b", "r", "t", "d" }
    local backends = options.backends
    if not backends then
        backends = {}
        for kind = BURST, DAY do
            local parts = kind == BURST and 10 or buckets
            backends[kind] = window.new({
                dict = options.rate,
                -- Buckets of another length must not be mixed with these after a change of the configuration.
                name = names[kind] .. lengths[kind] .. "/" .. parts,
                window = lengths[kind],
                buckets = parts,
            })
        end
    end
    return setmetatable({
        rate = options.rate,
        backends = backends,
        slots = options.slots
            or slots_of.new({ dict = options.conc, ledger = options.ledger, pid = options.pid }),
        lengths = lengths,
        rand = options.rand or math.random,
        refused_until = {},
        refused_kind = {},
        refused_cost = {},
        refused_count = 0,
        -- The keys of slots, by tenant.
        slot_keys = {},
        -- What was left of each window, and until when, for the request that was admitted last.
        left = {},
        ends = {},
    }, M)
end

local function slot_key(self, id)
    local key = self.slot_keys[id]
    if not key then
        key = "c:" .. id
        self.slot_keys[id] = key
    end
    return key
end

local function no_memory()
    return {
        status = 503,
        type = "overloaded",
        reason = "memory",
        message = "The gateway has no memory left to count this request.",
        retry_after = 1,
    }
end

local function too_large(self, kind, limit, tokens)
    return {
        status = 429,
        type = "tokens",
        reason = "too_large",
        message = format(
            "Request too large: it may use %d tokens, and the limit is %d in %d s. "
                .. "Shorten the prompt or ask for fewer tokens.",
            tokens, limit, self.lengths[kind]
        ),
        -- It never fits, so there is no time after which to try again.
        retry_after = nil,
    }
end

local function over_limit(self, kind, limit, left, cost, wait)
    local seconds = max(1, ceil(wait))
    return {
        status = 429,
        type = TYPE[kind],
        reason = FIELD[kind],
        message = format(
            "Rate limit reached: %d %s in %d s, %d left, %d needed. Try again in %d s.",
            limit, UNIT[kind], self.lengths[kind], left, cost, seconds
        ),
        retry_after = seconds,
    }
end

local function forget(self, id)
    if self.refused_until[id] then
        self.refused_until[id], self.refused_kind[id], self.refused_cost[id] = nil, nil, nil
        self.refused_count = self.refused_count - 1
    end
end

local function remember(self, id, kind, cost, till)
    if not self.refused_until[id] then
        if self.refused_count >= REFUSED_MAX then
            self.refused_until, self.refused_kind, self.refused_cost, self.refused_count = {}, {}, {}, 0
        end
        self.refused_count = self.refused_count + 1
    end
    self.refused_until[id], self.refused_kind[id], self.refused_cost[id] = till, kind, cost
end

-- The refusal of a tenant that was refused lately, if the same limit refuses it still; else nil.
local function refused_still(self, id, limits, tokens, now)
    local till, kind = self.refused_until[id], self.refused_kind[id]
    if not till then
        return nil
    end
    local limit = limits[FIELD[kind]]
    local cost = kind <= REQUESTS and 1 or tokens
    if now < till and limit > 0 and cost > 0 then
        if cost > self.refused_cost[id] then
            -- It has to wait longer than is known here.
            return nil
        end
        local used = self.backends[kind]:used(id, now)
        if used + cost > limit then
            return over_limit(self, kind, limit, max(0, limit - used), cost, till - now)
        end
    end
    forget(self, id)
    return nil
end

-- Give back what was taken out of the windows before one, last first.
local function undo(self, ticket, kind, now)
    for earlier = kind - 1, BURST, -1 do
        if ticket[earlier] then
            self.backends[earlier]:give(ticket.id, ticket[earlier], earlier <= REQUESTS and 1 or ticket.tokens, now)
        end
    end
end

-- Take a cost out of one window. Returns nil, or a rejection; then nothing is left of the ticket.
local function spend(self, ticket, kind, cost, limit, now)
    if limit <= 0 or cost <= 0 then
        return nil
    end
    local id = ticket.id
    local ok, bucket, left, more = self.backends[kind]:take(id, cost, limit, now)
    if ok then
        ticket[kind], self.left[kind], self.ends[kind] = bucket, left, more
        return nil
    end
    undo(self, ticket, kind, now)
    self.slots:release(slot_key(self, id))
    if more then
        return no_memory()
    end
    remember(self, id, kind, cost, now + bucket)
    return over_limit(self, kind, limit, left, cost, bucket)
end

-- Admit a request.
--   tenant: {id, limits}; tokens: to reserve, a whole number (see gw.tokens), 0 for a request that uses none; now:
--     seconds
-- Returns a ticket, which must be released, and settled or abandoned; or nil and a rejection
-- {status, type, reason, message, retry_after}: retry_after is nil when the request will never fit. Reasons:
-- concurrency, burst_rps, rpm, tpm, tpd, too_large, memory.
function M:admit(tenant, tokens, now)
    local id, limits = tenant.id, tenant.limits
    local tpm, tpd = limits.tpm, limits.tpd
    if tokens > tpm and tpm > 0 then
        return nil, too_large(self, TOKENS, tpm, tokens)
    elseif tokens > tpd and tpd > 0 then
        return nil, too_large(self, DAY, tpd, tokens)
    end
    local refusal = refused_still(self, id, limits, tokens, now)
    if refusal then
        return nil, refusal
    end
    local concurrency = limits.concurrency
    local held, in_use = self.slots:acquire(slot_key(self, id), concurrency)
    if not held then
        if concurrency == 0 or in_use < concurrency then
            return nil, no_memory()
        end
        return nil, {
            status = 429,
            type = "concurrency",
            reason = "concurrency",
            message = format("Too many requests at the same time: the limit is %d.", concurrency),
            -- Nobody knows when an answer ends. Spread out who comes back.
            retry_after = 1 + floor(self.rand() * 3),
        }
    end
    local ticket = { false, false, false, false, id = id, tokens = tokens, serial = 0, todo = SLOT + QUOTA }
    -- One after the other and not in a loop: LuaJIT compiles short loops badly.
    refusal = spend(self, ticket, BURST, 1, limits.burst_rps, now)
        or spend(self, ticket, REQUESTS, 1, limits.rpm, now)
        or spend(self, ticket, TOKENS, tokens, tpm, now)
        or spend(self, ticket, DAY, tokens, tpd, now)
    if refusal then
        return nil, refusal
    end
    serial = serial + 1
    ticket.serial = serial
    open[serial] = ticket
    return ticket
end

-- Mark a part of a ticket as done. Returns false if it was done before.
local function close(ticket, part)
    local todo = ticket.todo
    if (part == SLOT and todo % 2 == 0) or (part == QUOTA and todo < QUOTA) then
        return false
    end
    todo = todo - part
    ticket.todo = todo
    if todo == 0 then
        open[ticket.serial] = nil
    end
    return true
end

local function correct(self, ticket, kind, more, now)
    if ticket[kind] then
        if more > 0 then
            self.backends[kind]:charge(ticket.id, more, now)
        elseif more < 0 then
            self.backends[kind]:give(ticket.id, ticket[kind], -more, now)
        end
    end
end

-- Count what a request used in the place of what was reserved for it.
--   actual: a charge, see gw.tokens; nil keeps the reservation
-- Returns true the first time; later, and after abandon, it does nothing and returns false.
function M:settle(ticket, actual, now)
    if not close(ticket, QUOTA) then
        return false
    end
    if actual then
        local more = ceil(actual) - ticket.tokens
        correct(self, ticket, TOKENS, more, now)
        correct(self, ticket, DAY, more, now)
    end
    return true
end

-- No engine worked for this request: give back everything it was counted for. The slot is released separately.
-- Returns true the first time; later, and after settle, it does nothing and returns false.
function M:abandon(ticket, now)
    if not close(ticket, QUOTA) then
        return false
    end
    undo(self, ticket, DAY + 1, now)
    return true
end

-- Free the slot of a request. Returns true the first time; later it does nothing and returns false.
function M:release(ticket)
    if not close(ticket, SLOT) then
        return false
    end
    self.slots:release(slot_key(self, ticket.id))
    return true
end

-- A ticket as a short string, for an nginx variable: ngx.ctx is lost at an internal redirect.
function M.encode(ticket)
    return (tostring(ticket.serial))
end

-- The ticket of a string, in the process that encoded it and as long as something is to be done for it; or nil, sentence.
function M.decode(text)
    local ticket = open[tonumber(text or "")]
    if not ticket then
        return nil, "not a ticket"
    end
    return ticket
end

-- The limits of a tenant as a client sees them: that of requests, and that of tokens, or of tokens of a day when
-- there is no other.
--   ticket: that of the request that was admitted just now, nil for none: then nothing has to be read
-- Returns limit, remaining, seconds until all of it is there again, for requests and for tokens: six numbers; the
-- three of a limit that does not exist are nil.
function M:state(tenant, now, ticket)
    local limits, id = tenant.limits, tenant.id
    local rpm, kind = limits.rpm, TOKENS
    if limits.tpm == 0 then
        kind = DAY
    end
    local tokens = limits[FIELD[kind]]
    local left, reset, tokens_left, tokens_reset
    local known = ticket ~= nil and ticket.serial == serial
    if rpm > 0 then
        if known and ticket[REQUESTS] and self.ends[REQUESTS] then
            left, reset = self.left[REQUESTS], self.ends[REQUESTS]
        else
            local backend = self.backends[REQUESTS]
            left, reset = max(0, rpm - backend:used(id, now)), backend:reset_after(id, now)
        end
    else
        rpm = nil
    end
    if tokens > 0 then
        if known and ticket[kind] and self.ends[kind] then
            tokens_left, tokens_reset = self.left[kind], self.ends[kind]
        else
            local backend = self.backends[kind]
            tokens_left, tokens_reset = max(0, tokens - backend:used(id, now)), backend:reset_after(id, now)
        end
    else
        tokens = nil
    end
    return rpm, left, reset, tokens, tokens_left, tokens_reset
end

-- What a tenant uses: requests in flight, and what counts in the windows of burst, requests, tokens, tokens of a day.
-- Counters that a tenant has no limit for are 0.
function M:use(tenant, now)
    local id, backends = tenant.id, self.backends
    return self.slots:value(slot_key(self, id)), backends[BURST]:used(id, now), backends[REQUESTS]:used(id, now),
        backends[TOKENS]:used(id, now), backends[DAY]:used(id, now)
end

local function spell(ms)
    if ms <= 0 then
        return "0s"
    end
    if ms < 1000 then
        return ms .. "ms"
    end
    if ms < 60000 then
        return ms / 1000 .. "s"
    end
    local whole = ms / 1000
    local hours, minutes = floor(whole / 3600), floor(whole / 60) % 60
    if hours > 0 then
        return (format("%dh%dm%ds", hours, minutes, whole % 60))
    end
    return (format("%dm%ds", minutes, whole % 60))
end

-- Those that were spelled before, by milliseconds. Forgotten as a whole when there are so many.
local SPELLED_MAX = 4096
local spelled, spelled_count = {}, 0

-- Seconds in the form of the OpenAI API: "0s", "20ms", "1.234s", "6m0s", "1h0m5s". Rounded up, to whole seconds from
-- a minute on.
function M.duration(seconds)
    local ms = ceil(seconds * 1000 - 1e-6)
    if ms >= 60000 then
        ms = ceil(ms / 1000) * 1000
    end
    local text = spelled[ms]
    if not text then
        if spelled_count >= SPELLED_MAX then
            spelled, spelled_count = {}, 0
        end
        text = spell(ms)
        spelled[ms], spelled_count = text, spelled_count + 1
    end
    return text
end
local duration = M.duration

-- The headers that headers() may write.
M.HEADERS = {
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
}

-- Write the x-ratelimit-* headers of the OpenAI API into a table. Those of a limit that does not exist are left out.
-- ticket: see state. Returns the table.
function M:headers(tenant, now, out, ticket)
    local rpm, left, reset, tokens, tokens_left, tokens_reset = self:state(tenant, now, ticket)
    if rpm then
        out["x-ratelimit-limit-requests"] = format("%d", rpm)
        out["x-ratelimit-remaining-requests"] = format("%d", left)
        out["x-ratelimit-reset-requests"] = duration(reset)
    end
    if tokens then
        out["x-ratelimit-limit-tokens"] = format("%d", tokens)
        out["x-ratelimit-remaining-tokens"] = format("%d", tokens_left)
        out["x-ratelimit-reset-tokens"] = duration(tokens_reset)
    end
    return out
end

-- Free what has expired when the dict fills up; nginx does it only where it looks. Call it every second in each
-- worker; one of them does it, every ten seconds at the most.
-- Returns how many keys were freed.
function M:tick()
    local rate = self.rate
    if not rate or rate:free_space() * 4 > rate:capacity() or not rate:safe_add("flush", 1, 10) then
        return 0
    end
    return rate:flush_expired(10000) or 0
end

-- Refusals for lack of memory, and counters that were put right after the death of a worker: of this worker, as two
-- numbers.
function M:health()
    local failures, repairs = self.slots.failures or 0, self.slots.repairs or 0
    for kind = BURST, DAY do
        failures = failures + (self.backends[kind].failures or 0)
        repairs = repairs + (self.backends[kind].repairs or 0)
    end
    return failures, repairs
end

-- Requests of this process that were admitted and not released and settled yet. For specs and the status page.
function M.pending()
    local count = 0
    for _ in pairs(open) do
        count = count + 1
    end
    return count
end

return M
