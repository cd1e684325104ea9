-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson")
local sse = require("gw.sse")
local workers = require("workers")

local function events(list, ending)
    local out = {}
    for _, data in ipairs(list) do
        out[#out + 1] = "data: " .. data .. (ending or "\n\n")
    end
    return table.concat(out)
end

-- An OpenAI stream with include_usage: usage null in each event, then one without choices.
local OPENAI = events({
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":'
        .. '"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":'
        .. '"He said \\"usage\\":{\\"prompt_tokens\\":999},\\n\\n"},"finish_reason":null}],"usage":null}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":'
        .. '"\\"error\\": \\\\"},"finish_reason":null}],"usage":null}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
        .. '"finish_reason":"stop"}],"usage":null}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":11,'
        .. '"completion_tokens":7,"total_tokens":18,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},'
        .. '"completion_tokens_details":{"reasoning_tokens":0}}}',
    "[DONE]",
})
local OPENAI_STRIPPED = events({
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":'
        .. '"assistant","content":""},"logprobs":null,"finish_reason":null}]}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":'
        .. '"He said \\"usage\\":{\\"prompt_tokens\\":999},\\n\\n"},"finish_reason":null}]}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":'
        .. '"\\"error\\": \\\\"},"finish_reason":null}]}',
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
        .. '"finish_reason":"stop"}]}',
    "[DONE]",
})

-- vLLM with continuous usage and reasoning; the usage is in front of the choices in one event.
local VLLM = events({
    '{"id":"v","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":9,'
        .. '"total_tokens":9,"completion_tokens":0}}',
    '{"id":"v","choices":[{"index":0,"delta":{"reasoning_content":"hm"}}],"usage":{"prompt_tokens":9,'
        .. '"total_tokens":10,"completion_tokens":1}}',
    '{"usage":{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2}, "id":"v","choices":[{"index":0,"delta":'
        .. '{"content":"usage"}}]}',
    '{"id":"v","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop","stop_reason":null}],"usage":'
        .. '{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3}}',
    '{"id":"v","choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,'
        .. '"prompt_tokens_details":null}}',
    "[DONE]",
})
local VLLM_STRIPPED = events({
    '{"id":"v","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    '{"id":"v","choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}',
    '{"id":"v","choices":[{"index":0,"delta":{"content":"usage"}}]}',
    '{"id":"v","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop","stop_reason":null}]}',
    "[DONE]",
})

-- SGLang: CRLF, comments between events, no space behind "data:", a tool call, members with spaces around.
local SGLANG = ": ping\r\n\r\n"
    .. 'data:{"id": "s", "choices": [{"index": 0, "delta": {"role": "assistant", "content": null, "tool_calls": []}}],'
    .. ' "usage": null}\r\n\r\n'
    .. ": ping\r\n\r\n"
    .. 'data:{"id": "s", "choices": [{"index": 0, "delta": {"content": null, "tool_calls": [{"function": {"name": "f",'
    .. ' "arguments": ""}}]}}], "usage": null, "x": {"usage": {"prompt_tokens": 1}}}\r\n\r\n'
    .. 'data:{"id": "s", "choices": [], "usage": {"prompt_tokens": 20, "total_tokens": 25, "completion_tokens": 5,'
    .. ' "prompt_tokens_details": {"cached_tokens": 16}}}\r\n\r\n'
    .. "data:[DONE]\r\n\r\n"
local SGLANG_STRIPPED = ": ping\r\n\r\n"
    .. 'data:{"id": "s", "choices": [{"index": 0, "delta": {"role": "assistant", "content": null, "tool_calls": []}}]}'
    .. "\r\n\r\n: ping\r\n\r\n"
    .. 'data:{"id": "s", "choices": [{"index": 0, "delta": {"content": null, "tool_calls": [{"function": {"name": "f",'
    .. ' "arguments": ""}}]}}], "x": {"usage": {"prompt_tokens": 1}}}\r\n\r\n'
    .. "data:[DONE]\r\n\r\n"

-- llama.cpp: completion text, timings behind the usage, an event with an id and a comment of its own.
local LLAMA = 'id: 1\n: note\ndata: {"choices":[{"text":"Hi","index":0,"logprobs":{"content":[]}}],"usage":null,"created":1}\n\n'
    .. 'data: {"choices":[{"text":"","index":0,"finish_reason":"length"}],"created":1}\n\n'
    .. 'data: {"choices":[],"created":1,"usage":{"completion_tokens":2,"prompt_tokens":3,"total_tokens":5},"timings":'
    .. '{"prompt_n":3,"prompt_ms":1.5,"predicted_n":2}}\n\n'
    .. "data: [DONE]\n\n"
local LLAMA_STRIPPED = 'id: 1\n: note\ndata: {"choices":[{"text":"Hi","index":0,"logprobs":{"content":[]}}],"created":1}\n\n'
    .. 'data: {"choices":[{"text":"","index":0,"finish_reason":"length"}],"created":1}\n\n'
    .. "data: [DONE]\n\n"

local function usage(prompt, completion, total, cached)
    return { prompt_tokens = prompt, completion_tokens = completion, total_tokens = total,
        prompt_tokens_details = { cached_tokens = cached } }
end

local STREAMS = {
    { name = "OpenAI", text = OPENAI, stripped = OPENAI_STRIPPED, usage = usage(11, 7, 18, 4), chunks = 2, events = 6 },
    { name = "vLLM", text = VLLM, stripped = VLLM_STRIPPED, usage = usage(9, 3, 12, 0), chunks = 2, events = 6 },
    { name = "SGLang", text = SGLANG, stripped = SGLANG_STRIPPED, usage = usage(20, 5, 25, 16), chunks = 1, events = 4 },
    { name = "llama.cpp", text = LLAMA, stripped = LLAMA_STRIPPED, usage = usage(3, 2, 5, 0), chunks = 1, events = 4 },
}

-- Feed chunks, the last one with last. Returns the bytes out, the object, and how often each flag was seen.
local function run(chunks, strip)
    local object = sse.new({ strip_usage = strip })
    local out, seen = {}, { first = 0, error = 0, done = 0 }
    for index, chunk in ipairs(chunks) do
        local bytes, flags = object:feed(chunk, index == #chunks)
        if not strip then
            assert.equal(chunk, bytes)
        end
        out[index] = bytes
        for name, value in pairs(flags) do
            seen[name] = seen[name] + (value and 1 or 0)
        end
    end
    return table.concat(out), object, seen
end

local function check(stream, chunks, strip)
    local out, object, seen = run(chunks, strip)
    assert.equal(strip and stream.stripped or stream.text, out)
    assert.same(stream.usage, object.usage)
    assert.is_true(object.final)
    assert.equal(stream.chunks, object.chunks)
    assert.equal(stream.events, object.events)
    assert.is_true(object.done)
    assert.is_nil(object.failed)
    assert.same({ first = 1, error = 0, done = 1 }, seen)
end

describe("a stream", function()
    for _, stream in ipairs(STREAMS) do
        it("is read the same wherever it is split: " .. stream.name, function()
            for _, strip in ipairs({ false, true }) do
                check(stream, { stream.text }, strip)
                check(stream, { stream.text, "" }, strip)
                for at = 1, #stream.text - 1 do
                    check(stream, { stream.text:sub(1, at), stream.text:sub(at + 1) }, strip)
                end
                local bytes = {}
                for at = 1, #stream.text do
                    bytes[at] = stream.text:sub(at, at)
                end
                check(stream, bytes, strip)
            end
        end)

        it("is read the same in random pieces: " .. stream.name, function()
            local rand = workers.random(11)
            for _ = 1, 300 do
                local chunks, pos = {}, 1
                while pos <= #stream.text do
                    local size = math.floor(rand() * rand() * 400)
                    chunks[#chunks + 1] = stream.text:sub(pos, pos + size - 1)
                    pos = pos + size
                end
                check(stream, chunks, rand() < 0.5)
            end
        end)

        it("stays JSON when the usage is taken out: " .. stream.name, function()
            local out = run({ stream.text }, true)
            for data in out:gmatch("data: ?({[^\r\n]*})\r?\n") do
                local event = cjson.decode(data)
                assert.is_nil(event.usage)
            end
        end)
    end

    it("keeps the numbers of the last event when it is cut", function()
        local cut = VLLM:find('"total_tokens":12', 1, true)
        local out, object = run({ VLLM:sub(1, cut) }, false)
        assert.equal(VLLM:sub(1, cut), out)
        assert.same(usage(9, 2, 11, 0), object.usage)
        assert.is_false(object.final)
        assert.is_false(object.done)
        assert.equal(2, object.chunks)
        -- What was held back goes out at the end.
        local stripped = run({ VLLM:sub(1, cut) }, true)
        local _, complete = VLLM_STRIPPED:find('"content":"usage"}}]}\n\n', 1, true)
        local from = VLLM:find('{"id":"v","choices":[{"index":0,"delta":{"content":""},', 1, true)
        assert.equal(VLLM_STRIPPED:sub(1, complete) .. "data: " .. VLLM:sub(from, cut), stripped)
    end)

    it("sends each event on with its last byte, also when bytes come one by one", function()
        for _, stream in ipairs(STREAMS) do
            local object = sse.new({ strip_usage = true })
            local sent, got = 0, 0
            for at = 1, #stream.text do
                local bytes = object:feed(stream.text:sub(at, at), false)
                sent, got = sent + #bytes, got + (bytes ~= "" and 1 or 0)
                local ended = stream.text:sub(1, at)
                if ended:find("\n\r?\n$") then
                    assert.is_false(object.count > 0)
                end
            end
            assert.equal(#stream.stripped, sent)
            assert.equal(select(2, stream.stripped:gsub("\n\r?\n", "")), got)
        end
    end)

    it("takes the usage in front of [DONE] for that of the whole answer", function()
        local last = 'data: {"choices":[{"text":"","finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n'
        local _, object = run({ last })
        assert.is_false(object.final)
        _, object = run({ last, "data: [DONE]\n\n" })
        assert.is_true(object.final)
        _, object = run({ "data: [DONE]\n\n" })
        assert.is_false(object.final)
    end)

    it("counts the usage of a last event without an empty line", function()
        local text = 'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
        for _, tail in ipairs({ "", "\n", "\r", "\r\n" }) do
            local out, object = run({ text .. tail }, true)
            assert.equal("", out)
            assert.same(usage(1, 2, 3, 0), object.usage)
            assert.is_true(object.final)
        end
    end)

    it("holds back no more than the incomplete event", function()
        local object = sse.new({ strip_usage = true })
        local a = 'data: {"choices":[{"text":"a"}]}\n\n'
        assert.equal(a, (object:feed(a .. 'data: {"cho')))
        assert.equal("", (object:feed('ices":[{"text":"b"}]}\n')))
        assert.equal('data: {"choices":[{"text":"b"}]}\n\n: p\n\n', (object:feed("\n: p\n\n")))
        assert.equal(2, object.chunks)
        assert.is_false(object:inside())
    end)

    it("removes the member with the right comma", function()
        for given, expected in pairs({
            ['{"usage":null}'] = "{}",
            ['{ "usage" : null }'] = "{  }",
            ['{"usage": null, "a": 1}'] = '{"a": 1}',
            ['{"a": 1, "usage": null}'] = '{"a": 1}',
            ['{"a":1 ,"usage":{"prompt_tokens":1} ,"b":2}'] = '{"a":1  ,"b":2}',
            ['{"a":"x","choices":[],"usage":null}'] = '{"a":"x","choices":[]}',
            ['{"usage":"text"}'] = '{"usage":"text"}',
            ['{"a":{"usage":null}}'] = '{"a":{"usage":null}}',
            ['{"a":["usage"],"b":"usage"}'] = '{"a":["usage"],"b":"usage"}',
            ['{"usage":null'] = '{"usage":null',
            ['{"usage":nul}'] = '{"usage":nul}',
        }) do
            assert.equal("data: " .. expected .. "\n\n", (run({ "data: " .. given .. "\n\n" }, true)))
        end
    end)

    it("cuts long events and many events in one chunk alike", function()
        for _, size in ipairs({ 1, 60000, 65500, 70000, 300000 }) do
            local long = ("z"):rep(size)
            local given = 'data: {"x":"' .. long .. '","usage":null,"choices":[{"text":"a"}]}\n\n'
            local expected = 'data: {"x":"' .. long .. '","choices":[{"text":"a"}]}\n\n'
            assert.equal(expected, (run({ given }, true)))
            local out, object = run({ given:rep(3) .. 'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n: x\n\n' .. given,
                "data: [DO", "NE]\n\n" }, true)
            assert.equal(expected:rep(3) .. ": x\n\n" .. expected .. "data: [DONE]\n\n", out)
            assert.equal(4, object.chunks)
        end
    end)

    it("agrees with a decoder on random events", function()
        local rand = workers.random(21)
        local function pick(list)
            return list[math.floor(rand() * #list) + 1]
        end
        local cuts, drops = 0, 0
        for _ = 1, 3000 do
            local members = { '"id":"x"', '"x":{"usage":{"prompt_tokens":5},"error":1}', '"y":["usage",":",{"choices":[]}]',
                '"z":"\\"usage\\":null,\\\\"', '"choices":' .. pick({ "[]", "[ ]", '[{"delta":{"content":"a"}}]' }) }
            local given = pick({ "null", '{"prompt_tokens":3,"completion_tokens":4}', '{ "total_tokens" : 9 }', false })
            if given then
                members[#members + 1] = '"usage"' .. pick({ ":", " : " }) .. given
            end
            for index = #members, 2, -1 do
                local other = math.floor(rand() * index) + 1
                members[index], members[other] = members[other], members[index]
            end
            local comma = pick({ ",", ", ", " ,  " })
            local data = "{" .. table.concat(members, comma) .. "}"
            local read = cjson.decode(data)
            local out, object = run({ "data: " .. data .. "\n\n" }, true)
            if type(read.usage) == "table" then
                assert.equal(read.usage.prompt_tokens or 0, object.usage.prompt_tokens)
            else
                assert.is_nil(object.usage)
            end
            if type(read.usage) == "table" and #read.choices == 0 then
                assert.equal("", out)
                drops = drops + 1
            else
                cuts = cuts + (read.usage and 1 or 0)
                read.usage = nil
                assert.same(read, cjson.decode(out:sub(7)))
                assert.is_nil(object.failed)
            end
        end
        assert.is_true(cuts > 300 and drops > 300)
    end)

    it("joins an event of several data lines", function()
        local text = 'data: {"choices":[],\r\ndata: "usage":\r\ndata:{"prompt_tokens":4,"completion_tokens":1}}\r\n\r\n'
        local out, object = run({ text }, true)
        assert.equal("", out)
        assert.same(usage(4, 1, 5, 0), object.usage)
        out = run({ 'event: x\ndata: {"a":1,\ndata: "usage":null,\ndata: "b":2}\n\n' }, true)
        assert.equal('event: x\ndata: {"a":1,\ndata: "b":2}\n\n', out)
    end)

    it("passes on what is no data", function()
        local text = "\n\r\n: ping\n\nretry: 10\n\nevent: x\n\ndata\n\ndata:\n\n"
        local out, object = run({ text }, true)
        assert.equal(text, out)
        assert.equal(0, object.events)
    end)

    it("notices errors", function()
        for _, event in ipairs({
            'data: {"error":{"message":"boom","code":500}}\n\n',
            'data: {"error": "boom"}\n\n',
            'data: {"object":"error","message":"boom"}\n\n',
            'error: {"message":"boom"}\n\n',
            'event: error\ndata: {"message":"boom"}\n\n',
        }) do
            local out, object, seen = run({ 'data: {"choices":[{"text":"a"}]}\n\n', event }, true)
            assert.equal(1, seen.error)
            assert.matches("boom", object.failed .. out)
            assert.is_string(object.failed)
            assert.equal('data: {"choices":[{"text":"a"}]}\n\n' .. event, out)
        end
        local _, object, seen = run({ 'data: {"error":null,"choices":[{"delta":{"content":"error"},"error":1}]}\n\n' })
        assert.equal(0, seen.error)
        assert.is_nil(object.failed)
        _, object = run({ 'data: {"error":"' .. ("x"):rep(5000) .. '"}\n\n' })
        assert.equal(sse.MAX_ERROR, #object.failed)
    end)

    it("counts only events with content", function()
        local function chunks(data)
            local _, object, seen = run({ "data: " .. data .. "\n\n" })
            assert.equal(object.chunks, seen.first)
            return object.chunks
        end
        for _, delta in ipairs({ '{"content":"a"}', '{"content":"","reasoning_content":"a"}', '{"reasoning":" "}',
            '{"content" : "a"}', '{"refusal":"no"}', '{"tool_calls":[{"index":0}]}', '{"content":"content"}',
            '{"content":"\\""}', '{"function_call":{"arguments":"x"}}' }) do
            assert.equal(1, chunks('{"choices":[{"delta":' .. delta .. "}]}"), delta)
        end
        for _, delta in ipairs({ "{}", '{"content":""}', '{"content":null}', '{"role":"assistant"}', '{"tool_calls":[ ]}',
            '{"role":"content"}', '{"x":["text"]}' }) do
            assert.equal(0, chunks('{"choices":[{"delta":' .. delta .. "}]}"), delta)
        end
        assert.equal(1, chunks('{"choices":[{"text":"a"}]}'))
    end)

    it("takes the last usage, ignores numbers that are none, and knows DeepSeek's cache hits", function()
        local function read(text)
            local _, object = run({ 'data: {"usage":' .. text .. "}\n\n" })
            return object.usage
        end
        assert.same(usage(1, 0, 1, 0), read('{"prompt_tokens":1}'))
        assert.same(usage(0, 5, 5, 0), read('{"total_tokens":5}'))
        assert.same(usage(2, 3, 5, 0), read('{"prompt_tokens":2,"total_tokens":5}'))
        assert.same(usage(0, 4, 4, 0), read('{"prompt_tokens":-2,"completion_tokens":4}'))
        assert.same(usage(9, 1, 10, 7), read('{"prompt_tokens":9,"completion_tokens":1,"prompt_cache_hit_tokens":7}'))
        assert.is_nil(read("{}"))
        assert.is_nil(read('{"prompt_tokens":"1"}'))
        assert.is_nil(read('{"prompt_tokens":1e3,"completion_tokens":1.5}'))
        assert.is_nil(read('{"a":{"prompt_tokens":1}}'))
    end)

    it("says whether the client is inside of an event", function()
        local object = sse.new({})
        assert.is_false(object:inside())
        object:feed("data: {")
        assert.is_true(object:inside())
        object:feed("}\n\n")
        assert.is_false(object:inside())
        object = sse.new({ strip_usage = true })
        object:feed("data: {")
        assert.is_false(object:inside())
    end)

    it("passes an event that is too long, in bounded memory, and goes on behind it", function()
        local big = 'data: {"usage":null,"x":"' .. ("y"):rep(3 * 1048576) .. '"}'
        for _, ending in ipairs({ "\n\n", "\r\n\r\n" }) do
            local text = big .. ending .. 'data: {"choices":[{"text":"a"}],"usage":null}' .. ending
            for at = #big - 2, #big + #ending + 2 do
                local object = sse.new({ strip_usage = true })
                local out = { (object:feed(text:sub(1, 2000000))), (object:feed(text:sub(2000001, at))),
                    (object:feed(text:sub(at + 1, at + 1))), (object:feed(text:sub(at + 2))) }
                assert.equal(big .. ending .. 'data: {"choices":[{"text":"a"}]}' .. ending, table.concat(out))
                assert.equal(1, object.chunks)
                assert.is_false(object:inside())
            end
            for _, size in ipairs({ 1048575, 65536, 4099, #big + 1, #big + 2, #big + 3, #text }) do
                local object = sse.new({ strip_usage = true })
                local out, most = {}, 0
                for at = 1, #text, size do
                    out[#out + 1] = object:feed(text:sub(at, at + size - 1), at + size > #text)
                    local held = 0
                    for _, part in ipairs(object.parts) do
                        held = held + #part
                    end
                    most = math.max(most, held)
                end
                assert.equal(big .. ending .. 'data: {"choices":[{"text":"a"}]}' .. ending, table.concat(out))
                assert.equal(1, object.oversize)
                assert.equal(1, object.chunks)
                assert.is_true(most <= sse.MAX_EVENT)
            end
        end
    end)

    it("reads an event in tiny pieces", function()
        -- 1 MB in pieces of 16 bytes: joined at each piece this would be 32 GB of copies, and nobody would wait for it.
        local object = sse.new({})
        object:feed("data: ")
        for _ = 1, 65000 do
            object:feed('"0123456789abc"\n')
        end
        object:feed("\n")
        assert.equal(1, object.events + object.oversize)
    end)
end)

describe("usage_of", function()
    local ANSWER = '{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"\\"usage\\":{\\"prompt_tokens'
        .. '\\":999}}"},"usage":{"prompt_tokens":77}}],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,'
        .. '"prompt_tokens_details":{"cached_tokens":3}},"prompt_logprobs":null,"kv":{"usage":"a}"}}\n'

    it("finds the top-level object from any beginning", function()
        local place = ANSWER:find('"usage":{"prompt_tokens":11', 1, true)
        for from = 1, #ANSWER do
            local found = sse.usage_of(ANSWER:sub(from))
            if from <= place then
                assert.same(usage(11, 7, 18, 3), found)
            else
                assert.is_nil(found)
            end
        end
    end)

    it("finds nothing in a body that is cut, has none, or is no JSON", function()
        -- One cut cannot be told from an end: right behind the object that holds the inner usage.
        local _, alike = ANSWER:find('{"prompt_tokens":77}}', 1, true)
        for to = 0, #ANSWER - 2 do
            if to ~= alike then
                assert.is_nil(sse.usage_of(ANSWER:sub(1, to)))
            end
        end
        assert.is_nil(sse.usage_of('{"choices":[],"usage":null}'))
        assert.is_nil(sse.usage_of('{"choices":[{"usage":{"prompt_tokens":1}}]}'))
        assert.is_nil(sse.usage_of('{"a":{"usage":{"prompt_tokens":1}}}'))
        assert.is_nil(sse.usage_of("<html>usage</html>"))
        assert.same(usage(1, 0, 1, 0), sse.usage_of('{ "usage" : { "prompt_tokens" : 1 } }'))
    end)

    it("reads an answer that is full of the word", function()
        assert.is_nil(sse.usage_of("{" .. ('"usage":{"a":1},'):rep(4000)))
    end)
end)
