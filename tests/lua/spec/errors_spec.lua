-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson")
local errors = require("gw.errors")
local workers = require("workers")

describe("quote", function()
    it("writes what a decoder reads back", function()
        local all = {}
        for code = 0, 127 do
            all[code + 1] = string.char(code)
        end
        for _, text in ipairs({ "", "a", '"', "\\", "</script>", table.concat(all), "\195\169\226\130\172\240\159\152\128",
            "\237\159\191", "\238\128\128", "\244\143\191\191" }) do
            local json = errors.quote(text)
            assert.equal(text, cjson.decode("[" .. json .. "]")[1])
            assert.is_nil(json:find("%c"))
        end
        assert.equal("null", errors.quote(nil))
        assert.equal('"\\n\\t\\u0000\\u007f"', errors.quote("\n\t\0\127"))
    end)

    it("replaces each byte that is no UTF-8", function()
        local bad = "\239\191\189"
        for text, clean in pairs({
            ["\255"] = bad,
            ["a\128b"] = "a" .. bad .. "b",
            ["\195"] = bad,
            ["\195a"] = bad .. "a",
            ["\192\175"] = bad .. bad, -- overlong
            ["\224\128\175"] = bad:rep(3), -- overlong
            ["\237\160\128"] = bad:rep(3), -- surrogate
            ["\226\130"] = bad .. bad,
            ["\244\144\128\128"] = bad:rep(4), -- beyond U+10FFFF
            ["\240\143\191\191"] = bad:rep(4), -- overlong
            ["\240\159\152"] = bad:rep(3),
            ["\245\128\128\128"] = bad:rep(4),
            ["\195\169\255\195\169"] = "\195\169" .. bad .. "\195\169",
        }) do
            assert.equal('"' .. clean .. '"', errors.quote(text))
        end
        local rand = workers.random(9)
        for _ = 1, 2000 do
            local bytes = {}
            for index = 1, 12 do
                bytes[index] = string.char(math.floor(rand() * 256))
            end
            local text = table.concat(bytes)
            local read = cjson.decode("[" .. errors.quote(text) .. "]")[1]
            assert.equal(errors.quote(read), errors.quote(text))
        end
    end)
end)

describe("body", function()
    it("has the form of the OpenAI API", function()
        assert.equal('{"error":{"message":"m \\"x\\"","type":"t","param":null,"code":"c"}}',
            errors.body(400, "t", "c", 'm "x"'))
        assert.same({ error = { message = "m", type = "t", param = "n", code = "418" } },
            cjson.decode(errors.body(418, "t", nil, "m", "n")))
    end)

    it("is there for each known error", function()
        local count = 0
        for word, known in pairs(errors.known) do
            local status, body = errors.answer(word)
            local read = cjson.decode(body).error
            assert.is_true(status >= 400 and status < 600)
            assert.equal(known[2], read.type)
            assert.equal(known[3], read.code)
            assert.matches("%.$", read.message)
            assert.equal(cjson.null, read.param)
            count = count + 1
        end
        assert.is_true(count >= 16)
    end)

    it("can say more than what is known", function()
        local status, body = errors.answer("bad_request", "n: wrong", "n")
        assert.equal(400, status)
        assert.same({ message = "n: wrong", type = "invalid_request_error", code = "invalid_request_error", param = "n" },
            cjson.decode(body).error)
        assert.equal(500, (errors.answer("no such word")))
    end)
end)

describe("rejection", function()
    local function answer(rejection)
        local status, body = errors.rejection(rejection)
        return status, cjson.decode(body).error
    end

    it("is a 429 by its type", function()
        for _, kind in ipairs({ "requests", "tokens", "concurrency" }) do
            local status, read = answer({ status = 429, type = kind, reason = "rpm", message = "Limit of 5.", retry_after = 3 })
            assert.equal(429, status)
            assert.equal(kind, read.type)
            assert.equal("rate_limit_exceeded", read.code)
            assert.equal("Limit of 5.", read.message)
        end
        local _, read = answer({ status = 429, type = "tokens" })
        assert.equal(errors.known.tokens[4], read.message)
    end)

    it("is a 503 with its reason", function()
        local status, read = answer({ status = 503, type = "overloaded", reason = "full", message = "m" })
        assert.equal(503, status)
        assert.equal("overloaded", read.type)
        assert.equal("overloaded_full", read.code)
        status, read = answer({ status = 503, type = "unavailable", reason = "unavailable" })
        assert.equal(503, status)
        assert.equal("unavailable", read.code)
        status, read = answer({ status = 503, type = "new", reason = nil })
        assert.equal(503, status)
        assert.equal("overloaded", read.code)
    end)
end)

describe("an error in a stream", function()
    it("is an event of its own and does not pretend an end", function()
        local text = errors.sse_error("server_error", "c", "line\nline")
        assert.matches("^data: {[^\n]*}\n\n$", text)
        assert.equal("line\nline", cjson.decode(text:sub(7)).error.message)
        assert.matches("^\n\ndata: {[^\n]*}\n\n$", errors.sse_error("server_error", "c", "m", true))
        assert.matches('"code":"stream_timeout"', errors.sse_answer("stream_timeout", false))
        assert.is_nil(errors.sse_answer("stream_broken"):find("DONE", 1, true))
    end)

    it("is noticed by the reader of streams", function()
        local sse = require("gw.sse").new({})
        sse:feed('data: {"choices":[{"te', false)
        assert.is_true(sse:inside())
        local _, flags = sse:feed(errors.sse_answer("stream_broken", true), true)
        assert.is_true(flags.error)
    end)
end)

describe("models", function()
    local POOLS = {
        { name = "deepseek-r1", aliases = { "r1", "gpt-4" }, context_tokens = 131072 },
        { name = 'odd"name', aliases = {} },
    }

    local function ids(allowed)
        local out = {}
        for _, model in ipairs(cjson.decode(errors.models(POOLS, allowed)).data) do
            out[#out + 1] = model.id
        end
        return out
    end

    it("lists pools and aliases", function()
        local list = cjson.decode(errors.models(POOLS, nil, 1700000000))
        assert.equal("list", list.object)
        assert.same({ id = "deepseek-r1", object = "model", created = 1700000000, owned_by = "gpufleet",
            root = "deepseek-r1", max_model_len = 131072 }, list.data[1])
        assert.equal("deepseek-r1", list.data[2].root)
        assert.equal(cjson.null, list.data[4].max_model_len)
        assert.same({ "deepseek-r1", "gpt-4", "r1", 'odd"name' }, ids(nil))
    end)

    it("lists only what a tenant may use", function()
        assert.same({ "deepseek-r1", "gpt-4", "r1" }, ids({ ["deepseek-r1"] = true }))
        assert.same({ "r1" }, ids({ r1 = true }))
        assert.same({}, ids({}))
        assert.equal('{"object":"list","data":[]}', errors.models({}))
    end)

    it("leaves the order of the aliases in the pool alone", function()
        errors.models(POOLS)
        assert.same({ "r1", "gpt-4" }, POOLS[1].aliases)
    end)
end)
