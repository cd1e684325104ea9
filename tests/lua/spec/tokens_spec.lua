-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0

local tokens = require("gw.tokens")

local COST = { prompt = 1, cached_prompt = 0.1, completion = 1 }

local function usage(prompt, completion, cached)
    return {
        prompt_tokens = prompt,
        completion_tokens = completion,
        total_tokens = prompt + completion,
        prompt_tokens_details = cached and { cached_tokens = cached } or nil,
    }
end

describe("the estimate of a prompt", function()
    it("is no less than the bytes when it is a bound", function()
        assert.equal(1000, tokens.estimate(1000, "bound"))
        assert.equal(1, tokens.estimate(0, "bound"))
    end)

    it("is three tokens for ten bytes as a rule", function()
        assert.equal(300, tokens.estimate(1000, "typical"))
        assert.equal(3, tokens.estimate(10, "typical"))
        assert.equal(4, tokens.estimate(11, "typical"))
        assert.equal(1, tokens.estimate(0, "typical"))
    end)

    it("is enough for Chinese, which is three bytes and 0.6 tokens each", function()
        local text = string.rep("中", 500)
        assert.is_true(tokens.estimate(#text, "typical") >= 300)
    end)

    it("is whole and never above the bound", function()
        for bytes = 1, 5000, 7 do
            local typical = tokens.estimate(bytes, "typical")
            assert.equal(math.floor(typical), typical)
            assert.is_true(typical <= tokens.estimate(bytes, "bound"))
            assert.is_true(typical >= bytes * 0.3 - 1e-3 and typical < bytes * 0.3 + 1)
        end
    end)
end)

describe("a reservation", function()
    it("has the prompt once and the answer n times", function()
        assert.equal(1100, tokens.reserve(100, 1000))
        assert.equal(3100, tokens.reserve(100, 1000, 3))
        assert.equal(1, tokens.reserve(0, 0, 1))
    end)

    it("is in charges, so that an answer of full length does not exceed it", function()
        local cost = { prompt = 2, cached_prompt = 0.5, completion = 3.5 }
        local reserved = tokens.reserve(101, 33, 2, cost)
        assert.equal(433, reserved)
        assert.equal(reserved, tokens.actual(usage(101, 66), cost))
        assert.is_true(tokens.actual(usage(101, 66, 50), cost) < reserved)
    end)
end)

describe("what was used", function()
    it("is prompt and answer", function()
        assert.equal(150, tokens.actual(usage(100, 50), COST))
        assert.equal(150, tokens.actual(usage(100, 50)))
    end)

    it("has a cached prompt at its own price, rounded up", function()
        assert.equal(70, tokens.actual(usage(100, 50, 90), { prompt = 1, cached_prompt = 1 / 9, completion = 1 }))
        assert.equal(59, tokens.actual(usage(100, 40, 90), COST))
        assert.equal(60, tokens.actual(usage(100, 40, 89), COST))
        -- 0.1 * 30 is 3.0000000000000004.
        assert.equal(3, tokens.actual(usage(30, 0, 30), COST))
    end)

    it("never has more cached than there is", function()
        assert.equal(10, tokens.actual(usage(100, 0, 5000), COST))
    end)

    it("is found from what is there", function()
        assert.equal(12, tokens.actual({ prompt_tokens = 12, total_tokens = 12 }, COST))
        assert.equal(20, tokens.actual({ prompt_tokens = 12, total_tokens = 20 }, COST))
        assert.equal(20, tokens.actual({ completion_tokens = 12, total_tokens = 20 }, COST))
        assert.equal(12, tokens.actual({ prompt_tokens = 12 }, COST))
        assert.equal(12, tokens.actual({ prompt_tokens = 12, prompt_tokens_details = 7 }, COST))
    end)

    it("is not made up from what is no usage", function()
        local bad = {
            {},
            "x",
            { prompt_tokens = -1, completion_tokens = 5 },
            { prompt_tokens = "12" },
            { prompt_tokens = 0 / 0 },
            { prompt_tokens = 1 / 0 },
            { completion_tokens = 30, total_tokens = 20 },
        }
        for i = 1, #bad do
            local charge, sentence = tokens.actual(bad[i], COST)
            assert.is_nil(charge, "case " .. i)
            assert.equal("string", type(sentence))
        end
        assert.is_nil((tokens.actual(nil, COST)))
    end)

    it("is nothing when tokens are free", function()
        assert.equal(0, tokens.actual(usage(100, 50), { prompt = 0, cached_prompt = 0, completion = 0 }))
    end)
end)

describe("a stream that was cut", function()
    it("is charged what was sent", function()
        assert.equal(130, tokens.cut(100, 30, nil, COST))
        assert.equal(130, tokens.cut(100, 30))
    end)

    it("is never free", function()
        assert.equal(1, tokens.cut(0, 0, nil, COST))
        assert.equal(1, tokens.cut(0, 0, nil, { prompt = 0, cached_prompt = 0, completion = 0 }))
        assert.equal(100, tokens.cut(100, 0, {}, COST))
        assert.equal(100, tokens.cut(100, nil, nil, COST))
    end)

    it("is never charged less than the usage that was seen, nor less than the events after it", function()
        assert.equal(140, tokens.cut(999, 30, usage(100, 40), COST))
        assert.equal(160, tokens.cut(999, 60, usage(100, 40), COST))
        assert.equal(50, tokens.cut(999, 0, usage(100, 40, 100), COST))
        for chunks = 0, 80, 5 do
            local seen = usage(77, 40, 33)
            assert.is_true(tokens.cut(1, chunks, seen, COST) >= tokens.actual(seen, COST))
        end
    end)

    it("is whole at any price", function()
        local charge = tokens.cut(101, 7, nil, { prompt = 0.3, cached_prompt = 0.1, completion = 0.7 })
        assert.equal(36, charge)
    end)
end)
