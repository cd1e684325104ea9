-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- When a request may go to a second engine: never if the first may have begun to work, and never so often that retries
-- become the load.
--
-- The budget is a share of the requests of the last 10 seconds, over all workers. Retries are counted before they are
-- decided, so workers that ask at the same time cannot overdraw it. Keys of the dict: rq:SECOND requests, rt:SECOND retries.

local M = {}
M.__index = M

local floor = math.floor
local gsub, match = string.gsub, string.match

-- Seconds over which retries are compared with requests.
local WINDOW = 10
-- A worker adds its requests to the common count when it has so many, when the second is over, or when it needs the sum.
local BATCH = 32
local TTL = WINDOW + 5

-- new{dict, conf}: conf {budget_percent, floor}
function M.new(options)
    local conf = options.conf
    return setmetatable({
        dict = options.dict,
        conf = conf,
        -- Requests of a second that are not yet in the dict.
        pending = 0,
        second = 0,
        -- Retries that the budget refused, and operations that the dict refused for lack of memory.
        exhausted = 0,
        failures = 0,
    }, M)
end

local function flush(self)
    local pending = self.pending
    if pending == 0 then
        return
    end
    self.pending = 0
    if not self.dict:incr("rq:" .. self.second, pending, 0, TTL) then
        self.failures = self.failures + 1
    end
end

-- Count a request (not its retries).
function M:request(now)
    local second = floor(now)
    if second ~= self.second then
        flush(self)
        self.second = second
    end
    self.pending = self.pending + 1
    if self.pending >= BATCH then
        flush(self)
    end
end

local function sum(dict, prefix, first, last)
    local n = 0
    for second = first, last do
        n = n + (dict:get(prefix .. second) or 0)
    end
    return n
end

-- Take one retry out of the budget: `floor` retries, and budget_percent of the requests of the last 10 seconds.
-- A second that is partly in the window counts whole for retries and not at all for requests, so the bound is kept.
-- Returns whether there was one.
function M:take(now)
    local dict, conf, second = self.dict, self.conf, floor(now)
    flush(self)
    local key = "rt:" .. second
    if not dict:incr(key, 1, 0, TTL) then
        self.failures = self.failures + 1
        return false
    end
    -- One second more: the clock of another worker may be a little ahead.
    local retries = sum(dict, "rt:", second - WINDOW, second + 1)
    local requests = sum(dict, "rq:", second - WINDOW + 1, second)
    if retries > conf.floor + requests * conf.budget_percent / 100 then
        dict:incr(key, -1)
        self.exhausted = self.exhausted + 1
        return false
    end
    return true
end

-- What is left in the budget, for people.
function M:left(now)
    local second = floor(now)
    flush(self)
    local requests = sum(self.dict, "rq:", second - WINDOW + 1, second)
    return self.conf.floor + requests * self.conf.budget_percent / 100 - sum(self.dict, "rt:", second - WINDOW, second + 1)
end

-- The last attempt in an upstream variable of nginx. Attempts are divided by commas, and by colons after an internal
-- redirect; in the balancer, the attempt that is about to begin stands behind the last one, empty ("153 : ").
-- Returns a number, or nil if the last attempt has none ("-").
function M.last(text)
    if type(text) == "number" then
        return text
    end
    if not text then
        return nil
    end
    text = gsub(text, "[%s:,]+$", "")
    return tonumber(match(text, "(%d+)$"))
end

local last = M.last

-- Is a second try safe? Told from what is known in the balancer of the try that failed:
--   upstream_status: value of $upstream_status, a number or text. nginx itself puts 502 and 504 there for a try that had no
--     answer; 503 and 429 are the engine's
--   bytes_sent_text: value of $upstream_bytes_sent
--   header_or_body_forwarded: whether anything of an answer went to the client
--   elapsed_ms: how long the request has been with engines; max_first_try_ms: above it there is no second try; nil: no bound
--   attempt: number of the try that failed, from 1; max_tries: how many there may be
-- Returns true and "rejected" (the engine refused the work) or "connect" (it got nothing of the request);
-- or false and "forwarded", "tries", "slow", "unknown" (nginx does not say what was sent) or "started" (the engine may have
-- begun to work).
function M.may_retry(try)
    if try.header_or_body_forwarded then
        return false, "forwarded"
    end
    if try.attempt >= try.max_tries then
        return false, "tries"
    end
    if try.max_first_try_ms and try.elapsed_ms > try.max_first_try_ms then
        return false, "slow"
    end
    local status = last(try.upstream_status)
    if status == 503 or status == 429 then
        return true, "rejected"
    end
    local bytes = last(try.bytes_sent_text)
    if not bytes then
        return false, "unknown"
    end
    if bytes > 0 then
        return false, "started"
    end
    -- Another status is an answer; who answers has read something, whatever the counter says.
    if status and status ~= 502 and status ~= 504 then
        return false, "started"
    end
    return true, "connect"
end

return M
