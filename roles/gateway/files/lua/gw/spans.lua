-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Spans of requests for an OpenTelemetry collector: which requests have some, the queue, OTLP as JSON, what becomes of a batch.
--
-- The log phase of a request puts one plain table into a queue that never grows beyond its bound; all else is done by a timer.
-- Nothing of a prompt, an answer or a key is ever handed to this module.
--
-- A record has: trace, span (ids as hexadecimal digits), parent (id of the client's span, or nil), sampled, begin, ends (Unix
-- time in seconds), name, method, route, status, tenant, tier, and where known model, reason, error, stream, input_tokens,
-- output_tokens, charged, ttft, waited (seconds), and tries: a list of {span, begin, ends, peer, region, address, port, and where
-- known status, error}, one for each engine that was asked.

local quote = require("gw.text").quote

local M = {}
M.__index = M

local band = require("bit").band
local find, format, match = string.find, string.format, string.match
local concat, min = table.concat, math.min

-- How often a batch is sent before it is dropped, and the longest pause after a failure, in seconds.
M.TRIES, M.LONGEST_PAUSE = 6, 30
-- Batches of one round: the timer comes again.
M.ROUND = 256
-- Why spans are dropped: the queue was full, the collector could not be reached, it said no, the worker ended.
M.REASONS = { "queue_full", "unreachable", "refused", "shutdown" }

-- Kinds of spans, and the status of a failure, as OTLP numbers them.
local SERVER, CLIENT, ERROR = 2, 3, 2
-- Quoted texts that come again and again. Bounded, in case they do not.
local MOST_QUOTED = 4096

-- new{ratio, follow, errors, queue, batch, rand, resource, count}:
--   ratio: share of the traces beginning here that are recorded, 0 to 1; follow: does a client's own sampled flag decide?
--   errors: are requests recorded that end in an error of the gateway or an engine, whatever was decided?
--   queue: most requests that wait; batch: most requests of one message
--   rand() in [0, 1); resource: list of {key, text}; count(what, number): "sent", or a reason of M.REASONS
function M.new(options)
    local self = setmetatable({
        ratio = options.ratio,
        follow = options.follow,
        errors = options.errors,
        most = options.queue,
        batch = options.batch,
        count = options.count,
        -- A ring: the oldest is at first.
        ring = {},
        first = 1,
        size = 0,
        quoted = {},
        known = 0,
        -- A batch that was not taken, when to try again, and failures on end.
        pending = nil,
        resume_at = 0,
        failures = 0,
    }, M)
    local rand, ratio, follow = options.rand, options.ratio, options.follow
    -- decide(flags): is a request to be recorded? flags: a number as trace.parse returns it, nil for a trace that begins here.
    self.decide = function(flags)
        if flags and follow then
            return band(flags, 1) == 1
        end
        return rand() < ratio
    end
    local attributes = {}
    for i = 1, #options.resource do
        attributes[i] = '{"key":"' .. options.resource[i][1] .. '","value":{"stringValue":'
            .. quote(options.resource[i][2]) .. "}}"
    end
    self.head = '{"resourceSpans":[{"resource":{"attributes":[' .. concat(attributes, ",")
        .. ']},"scopeSpans":[{"scope":{"name":"gpufleet.gateway"},"spans":['
    return self
end

-- Is a request that was decided so, and ended so, to be recorded?
function M:wanted(sampled, failed)
    return sampled or (failed and self.errors) or false
end

-- The spans of a record: its own, and one for each engine that was asked.
local function spans_of(record)
    return 1 + #record.tries
end

-- add(record): put it into the queue, or drop it when that is full. Returns whether it was taken.
function M:add(record)
    if self.size >= self.most then
        self.count("queue_full", spans_of(record))
        return false
    end
    self.ring[(self.first + self.size - 1) % self.most + 1] = record
    self.size = self.size + 1
    return true
end

-- Records that wait, those of a batch that is being sent included.
function M:waiting()
    return self.size + (self.pending and self.pending.records or 0)
end

---------------------------------------------------------------------------------------------------------------------
-- OTLP as JSON: ids in hexadecimal, 64-bit numbers as strings

local function quoted(self, text)
    local known = self.quoted[text]
    if not known then
        known = quote(text)
        if self.known < MOST_QUOTED then
            self.known = self.known + 1
            self.quoted[text] = known
        end
    end
    return known
end

-- Unix time in seconds as nanoseconds; nginx's clock has milliseconds.
local function nanoseconds(seconds)
    return '"' .. format("%.0f", seconds * 1000) .. '000000"'
end

local function put_text(self, out, key, value)
    if value ~= nil and value ~= "" then
        out[#out + 1] = '{"key":"' .. key .. '","value":{"stringValue":' .. quoted(self, value) .. "}}"
    end
end

local function put_whole(out, key, value)
    if value then
        out[#out + 1] = '{"key":"' .. key .. '","value":{"intValue":"' .. format("%.0f", value) .. '"}}'
    end
end

local function put_seconds(out, key, value)
    if value then
        out[#out + 1] = '{"key":"' .. key .. '","value":{"doubleValue":' .. format("%.3f", value) .. "}}"
    end
end

local function put_flag(out, key, value)
    if value ~= nil then
        out[#out + 1] = '{"key":"' .. key .. '","value":{"boolValue":' .. (value and "true" or "false") .. "}}"
    end
end

local function span(self, record, id, parent, name, kind, begin, ends, attributes, err)
    return '{"traceId":"' .. record.trace .. '","spanId":"' .. id .. '",'
        .. (parent and '"parentSpanId":"' .. parent .. '",' or "")
        .. '"flags":' .. (record.sampled and 1 or 0) .. ',"name":' .. quoted(self, name) .. ',"kind":' .. kind
        .. ',"startTimeUnixNano":' .. nanoseconds(begin) .. ',"endTimeUnixNano":' .. nanoseconds(ends)
        .. ',"attributes":[' .. concat(attributes, ",") .. "]"
        .. (err and ',"status":{"code":' .. ERROR .. ',"message":' .. quoted(self, err) .. "}" or "") .. "}"
end

local OPERATIONS = {
    ["/v1/chat/completions"] = "chat",
    ["/v1/completions"] = "text_completion",
    ["/v1/embeddings"] = "embeddings",
}

local function server_span(self, record)
    local out = {}
    put_text(self, out, "http.request.method", record.method)
    put_text(self, out, "http.route", record.route)
    put_whole(out, "http.response.status_code", record.status)
    put_text(self, out, "gen_ai.operation.name", OPERATIONS[record.route])
    put_text(self, out, "gen_ai.request.model", record.model)
    put_whole(out, "gen_ai.usage.input_tokens", record.input_tokens)
    put_whole(out, "gen_ai.usage.output_tokens", record.output_tokens)
    put_text(self, out, "gpufleet.tenant", record.tenant)
    put_text(self, out, "gpufleet.tier", record.tier)
    put_text(self, out, "gpufleet.reason", record.reason)
    put_flag(out, "gpufleet.stream", record.stream)
    put_whole(out, "gpufleet.tokens_charged", record.charged)
    put_seconds(out, "gpufleet.ttft_seconds", record.ttft)
    put_seconds(out, "gpufleet.queue_seconds", record.waited)
    local last = record.tries[#record.tries]
    put_text(self, out, "gpufleet.peer", last and last.peer)
    put_text(self, out, "error.type", record.error)
    return span(self, record, record.span, record.parent, record.name, SERVER, record.begin, record.ends, out, record.error)
end

local function try_span(self, record, number, try)
    local out = {}
    put_text(self, out, "gpufleet.peer", try.peer)
    put_text(self, out, "gpufleet.region", try.region)
    put_text(self, out, "server.address", try.address)
    put_whole(out, "server.port", try.port)
    put_text(self, out, "http.request.method", record.method)
    put_whole(out, "http.response.status_code", try.status)
    put_whole(out, "http.request.resend_count", number > 1 and number - 1 or nil)
    put_text(self, out, "error.type", try.error)
    return span(self, record, try.span, record.span, "ask engine", CLIENT, try.begin, try.ends, out, try.error)
end

-- encode(records): the body of one message, and how many spans are in it.
function M:encode(records)
    local out = {}
    for i = 1, #records do
        local record = records[i]
        out[#out + 1] = server_span(self, record)
        for number = 1, #record.tries do
            out[#out + 1] = try_span(self, record, number, record.tries[number])
        end
    end
    return self.head .. concat(out, ",") .. "]}]}]}", #out
end

---------------------------------------------------------------------------------------------------------------------
-- Sending

-- Take the oldest records out of the queue, as a batch {body, spans, records, tries}; nil when there are none.
function M:take()
    local number = min(self.size, self.batch)
    if number == 0 then
        return nil
    end
    local records = {}
    for i = 1, number do
        records[i] = self.ring[self.first]
        self.ring[self.first] = false
        self.first = self.first % self.most + 1
    end
    self.size = self.size - number
    local body, spans = self:encode(records)
    return { body = body, spans = spans, records = number, tries = 0 }
end

-- Does the collector ask to try again? nil: it could not be reached.
local function again(status)
    return not status or status == 429 or status == 502 or status == 503 or status == 504
end

-- Spans that the collector did not take although it said 200.
local function rejected(answer, most)
    local number = answer and find(answer, "rejectedSpans", 1, true) and match(answer, '"rejectedSpans"%s*:%s*"?(%d+)')
    return number and min(tonumber(number), most) or 0
end

-- One batch has been sent: what became of it. Returns whether the next one may follow now.
local function settle(self, batch, status, answer, now)
    if status and status >= 200 and status < 300 then
        local lost = rejected(answer, batch.spans)
        self.count("sent", batch.spans - lost)
        if lost > 0 then
            self.count("refused", lost)
        end
        self.pending, self.failures, self.resume_at = nil, 0, 0
        return true
    end
    batch.tries = batch.tries + 1
    self.failures = self.failures + 1
    self.resume_at = now + min(2 ^ (self.failures - 1), M.LONGEST_PAUSE)
    if not again(status) then
        self.count("refused", batch.spans)
        self.pending = nil
    elseif batch.tries >= M.TRIES then
        self.count("unreachable", batch.spans)
        self.pending = nil
    end
    return false
end

-- export(clock, send): hand over what waits. clock() is the time in seconds; send(body) returns the status and the text of the
-- answer, or nil. What could not be sent stays, within the bound, and is tried again by a later call.
function M:export(clock, send)
    for _ = 1, M.ROUND do
        if clock() < self.resume_at then
            return
        end
        local batch = self.pending or self:take()
        if not batch then
            return
        end
        self.pending = batch
        local status, answer = send(batch.body)
        if not settle(self, batch, status, answer, clock()) then
            return
        end
    end
end

-- The worker ends: one last try, without pauses. What is not taken now is counted as lost.
function M:last(clock, send)
    self.resume_at = 0
    self:export(clock, send)
    local lost = self.pending and self.pending.spans or 0
    for i = 0, self.size - 1 do
        lost = lost + spans_of(self.ring[(self.first + i - 1) % self.most + 1])
    end
    if lost > 0 then
        self.count("shutdown", lost)
    end
    self.pending, self.size, self.first = nil, 0, 1
end

return M
