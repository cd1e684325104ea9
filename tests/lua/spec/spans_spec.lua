-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson")
local spans = require("gw.spans")

local TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

local counted

local function make(changes)
    counted = {}
    local options = {
        ratio = 1, follow = true, errors = true, queue = 4, batch = 2, rand = function() return 0.5 end,
        resource = { { "service.name", "gateway" }, { "host.name", 'gw"1' } },
        count = function(what, number) counted[what] = (counted[what] or 0) + number end,
    }
    for key, value in pairs(changes or {}) do
        options[key] = value
    end
    return spans.new(options)
end

local function record(number, changes)
    local one = {
        trace = TRACE, span = ("%016x"):format(number), sampled = true, begin = 1795989357.051, ends = 1795989358.5,
        name = "POST /v1/chat/completions", method = "POST", route = "/v1/chat/completions", status = 200,
        tenant = "acme", tier = "pro", tries = {},
    }
    for key, value in pairs(changes or {}) do
        one[key] = value
    end
    return one
end

local function try(changes)
    local one = { span = "00000000000000aa", begin = 1795989357.1, ends = 1795989358.5, peer = "gpu1", region = "eu",
        address = "192.0.2.21", port = 8080 }
    for key, value in pairs(changes or {}) do
        one[key] = value
    end
    return one
end

-- The spans of a body, and the attributes of each by key.
local function decode(body)
    local resource = cjson.decode(body).resourceSpans[1]
    local found = resource.scopeSpans[1].spans
    for _, span in ipairs(found) do
        local by_key = {}
        for _, attribute in ipairs(span.attributes) do
            local _, value = next(attribute.value)
            by_key[attribute.key] = value
        end
        span.attributes = by_key
    end
    return found, resource.resource.attributes
end

describe("what is recorded", function()
    it("follows the client's word, or does not", function()
        local one = make({ ratio = 0 })
        assert.is_true(one.decide(1))
        assert.is_true(one.decide(3))
        assert.is_false(one.decide(0))
        assert.is_false(one.decide(2))
        assert.is_false(one.decide(nil))
        one = make({ ratio = 0, follow = false })
        assert.is_false(one.decide(1))
        one = make({ ratio = 1, follow = false })
        assert.is_true(one.decide(0))
    end)

    it("is the wanted share of the traces that begin here", function()
        local state = 0
        local one = make({ ratio = 0.01, rand = function()
            state = (state + 1) % 1000
            return state / 1000
        end })
        local yes = 0
        for _ = 1, 10000 do
            yes = yes + (one.decide(nil) and 1 or 0)
        end
        assert.equal(100, yes)
    end)

    it("has what failed, too, unless that is switched off", function()
        assert.is_true(make():wanted(false, true))
        assert.is_false(make({ errors = false }):wanted(false, true))
        assert.is_true(make({ errors = false }):wanted(true, true))
        assert.is_false(make():wanted(false, false))
    end)
end)

describe("encode", function()
    it("writes what OTLP wants", function()
        local body, number = make():encode({ record(1, {
            parent = "00f067aa0ba902b7", model = "v3", reason = "overloaded", error = "overloaded", status = 503,
            stream = true, input_tokens = 1234567, output_tokens = 0, charged = 12, ttft = 0.25, waited = 1.5,
            tries = { try({ status = 503, error = "rejected" }), try({ span = "00000000000000bb", peer = "gpu2" }) },
        }) })
        assert.equal(3, number)
        local found, resource = decode(body)
        assert.same({ key = "host.name", value = { stringValue = 'gw"1' } }, resource[2])
        local server, first, second = found[1], found[2], found[3]
        assert.equal(TRACE, server.traceId)
        assert.equal("0000000000000001", server.spanId)
        assert.equal("00f067aa0ba902b7", server.parentSpanId)
        assert.equal(2, server.kind)
        assert.equal(1, server.flags)
        -- 64-bit numbers are strings
        assert.equal("1795989357051000000", server.startTimeUnixNano)
        assert.equal("1795989358500000000", server.endTimeUnixNano)
        assert.same({ code = 2, message = "overloaded" }, server.status)
        assert.same({
            ["http.request.method"] = "POST", ["http.route"] = "/v1/chat/completions", ["http.response.status_code"] = "503",
            ["gen_ai.operation.name"] = "chat", ["gen_ai.request.model"] = "v3", ["gen_ai.usage.input_tokens"] = "1234567",
            ["gen_ai.usage.output_tokens"] = "0", ["gpufleet.tenant"] = "acme", ["gpufleet.tier"] = "pro",
            ["gpufleet.reason"] = "overloaded", ["gpufleet.stream"] = true, ["gpufleet.tokens_charged"] = "12",
            ["gpufleet.ttft_seconds"] = 0.25, ["gpufleet.queue_seconds"] = 1.5, ["gpufleet.peer"] = "gpu2",
            ["error.type"] = "overloaded",
        }, server.attributes)
        assert.equal(server.spanId, first.parentSpanId)
        assert.equal(server.spanId, second.parentSpanId)
        assert.equal(3, first.kind)
        assert.same({ code = 2, message = "rejected" }, first.status)
        assert.is_nil(first.attributes["http.request.resend_count"])
        assert.equal("1", second.attributes["http.request.resend_count"])
        assert.is_nil(second.status)
        assert.equal("8080", second.attributes["server.port"])
    end)

    it("leaves out what is not known", function()
        local found = decode((make():encode({ record(1, { sampled = false }) })))
        assert.is_nil(found[1].parentSpanId)
        assert.is_nil(found[1].status)
        assert.equal(0, found[1].flags)
        assert.is_nil(found[1].attributes["gpufleet.ttft_seconds"])
        assert.is_nil(found[1].attributes["error.type"])
    end)

    it("writes texts that may hold anything as JSON", function()
        local odd = 'a"b\\c\n\1\127\255é'
        local found = decode((make():encode({ record(1, { tenant = odd }) })))
        assert.equal('a"b\\c\n\1\127\239\191\189é', found[1].attributes["gpufleet.tenant"])
    end)
end)

describe("the queue", function()
    it("is first in, first out, and bounded", function()
        local one = make()
        for number = 1, 6 do
            assert.equal(number <= 4, one:add(record(number, { tries = { try() } })))
        end
        assert.same({ queue_full = 4 }, counted)
        assert.equal(4, one:waiting())
        local order = {}
        for _ = 1, 2 do
            local batch = one:take()
            assert.equal(2, batch.records)
            assert.equal(4, batch.spans)
            for _, span in ipairs((decode(batch.body))) do
                order[#order + 1] = span.kind == 2 and span.spanId or nil
            end
        end
        assert.same({ "0000000000000001", "0000000000000002", "0000000000000003", "0000000000000004" }, order)
        assert.is_nil(one:take())
    end)

    it("goes round", function()
        local one, next_out = make({ queue = 3, batch = 1 }), 1
        for number = 1, 20 do
            assert.is_true(one:add(record(number)))
            if number % 3 ~= 1 or number > 15 then
                assert.equal(("%016x"):format(next_out), decode(one:take().body)[1].spanId)
                next_out = next_out + 1
            end
            if one:waiting() == 3 then
                one:take()
                next_out = next_out + 1
            end
        end
    end)
end)

describe("export", function()
    local now, answers, bodies

    local function clock()
        return now
    end

    local function send(body)
        bodies[#bodies + 1] = body
        local answer = table.remove(answers, 1) or { 200, "{}" }
        return answer[1], answer[2]
    end

    before_each(function()
        now, answers, bodies = 1000, {}, {}
    end)

    it("sends all that waits, a batch at a time", function()
        local one = make()
        for number = 1, 3 do
            one:add(record(number))
        end
        one:export(clock, send)
        assert.equal(2, #bodies)
        assert.same({ sent = 3 }, counted)
        assert.equal(0, one:waiting())
        one:export(clock, send)
        assert.equal(2, #bodies)
    end)

    it("tries again what could not be sent, with longer and longer pauses, and gives up at last", function()
        local one = make({ batch = 1 })
        one:add(record(1))
        one:add(record(2))
        local at = {}
        for second = 1000, 1100 do
            now = second
            local before = #bodies
            answers = #at < spans.TRIES and { {} } or {}
            one:export(clock, send)
            if #bodies > before then
                at[#at + 1] = second - 1000
            end
        end
        -- The seventh message is that of the second record.
        assert.same({ 0, 1, 3, 7, 15, 31, 61 }, at)
        assert.equal(bodies[1], bodies[6])
        assert.same({ unreachable = 1, sent = 1 }, counted)
    end)

    it("keeps a batch when the collector has too much to do", function()
        local one = make()
        one:add(record(1))
        for _, status in ipairs({ 429, 502, 503, 504 }) do
            answers = { { status } }
            one:export(clock, send)
            assert.equal(1, one:waiting())
            now = now + 60
        end
        one:export(clock, send)
        assert.same({ sent = 1 }, counted)
    end)

    it("drops what the collector refuses", function()
        local one = make({ batch = 1 })
        one:add(record(1, { tries = { try() } }))
        one:add(record(2))
        answers = { { 400, "no" }, { 200, '{"partialSuccess":{"rejectedSpans":"1","errorMessage":"no"}}' } }
        one:export(clock, send)
        assert.same({ refused = 2 }, counted)
        now = now + 1
        one:export(clock, send)
        assert.same({ refused = 3, sent = 0 }, counted)
    end)

    it("ends: one more try, and what is left is counted", function()
        local one = make({ batch = 1 })
        for number = 1, 3 do
            one:add(record(number, { tries = { try() } }))
        end
        answers = { {} }
        one:export(clock, send)
        answers = { { 200, "{}" }, {} }
        one:last(clock, send)
        assert.same({ sent = 2, shutdown = 4 }, counted)
        assert.equal(0, one:waiting())
        assert.equal(3, #bodies)
    end)
end)
